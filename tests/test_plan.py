"""Plans: what `meldkit plan` says, what planning reads, and what its hash depends on."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from meldkit import plan
from meldkit.checkpoint import OpenFiles
from meldkit.cli.plan import describe
from meldkit.errors import MeldError
from meldkit.options import MergeOptions
from meldkit.plan import Plan
from meldkit.plan.shards import header_bytes, lay_out
from meldkit.report import summarise_plan

GOLDEN = Path(__file__).parent / "golden" / "plan.txt"


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models base, a, b (2 layers), deep (16 layers), bf16 and a+lora in the current folder."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "a", "b")):
        tiny.decoder(tmp_path / name, seed)
    tiny.decoder(tmp_path / "deep", 9, layers=16, hidden=32)
    tiny.decoder(tmp_path / "bf16", 8, dtype=torch.bfloat16, extra={"model.ids": torch.arange(3)})
    tiny.adapter(tmp_path / "lora", {"model.layers.0.self_attn.q_proj": (4, 4)})
    return tmp_path


def cases() -> list[tuple[str, str, str]]:
    """(name, recipe, text) of each case: `#### name`, the recipe, `>>>>`, what `meldkit plan` prints."""
    found: list[tuple[str, str, str]] = []
    for case in GOLDEN.read_text("utf-8").split("#### ")[1:]:
        name, rest = case.split("\n", 1)
        recipe, text = rest.split(">>>>\n")
        found.append((name, recipe, text.strip("\n")))
    return found


def shown(made: Plan, *, verbose: bool = False) -> str:
    """What `meldkit plan` prints of a plan; how much memory this process has is called N MB."""
    text = describe(summarise_plan(made, threads=2), verbose=verbose)
    return re.sub(r"up to [\d.]+ [MG]B, with", "up to N MB, with", text)


def said(recipe: str) -> str:
    """What `meldkit plan` prints, or `error STATUS: message`; the current folder is called /here."""
    Path("recipe.yml").write_text(recipe)
    try:
        return shown(plan("recipe.yml"))
    except MeldError as e:
        return f"error {e.exit_status}: {e}".replace(str(Path.cwd()), "/here")


@pytest.mark.parametrize(("recipe", "text"), [pytest.param(r, t, id=name) for name, r, t in cases()])
def test_text(recipe: str, text: str) -> None:
    assert said(recipe) == text


def test_verbose_text_lists_every_tensor_and_note() -> None:
    Path("recipe.yml").write_text("merge_method: passthrough\nmodels: [{model: bf16}]\ndtype: float32\n")
    assert shown(plan("recipe.yml"), verbose=True).split("\ntensors\n", 1)[1] == (
        "  model.ids                               I64  [3]     copied from bf16\n"
        "  lm_head.weight                          F32  [6, 4]  copied from bf16\n"
        "  model.embed_tokens.weight               F32  [6, 4]  copied from bf16\n"
        "  model.layers.0.input_layernorm.weight   F32  [4]     copied from bf16\n"
        "  model.layers.0.mlp.up_proj.weight       F32  [8, 4]  copied from bf16\n"
        "  model.layers.0.self_attn.q_proj.weight  F32  [4, 4]  copied from bf16\n"
        "  model.layers.1.input_layernorm.weight   F32  [4]     copied from bf16\n"
        "  model.layers.1.mlp.up_proj.weight       F32  [8, 4]  copied from bf16\n"
        "  model.layers.1.self_attn.q_proj.weight  F32  [4, 4]  copied from bf16\n"
        "  model.norm.weight                       F32  [4]     copied from bf16"
    )


# what planning reads


def sparse(folder: Path, numel: int) -> Path:
    """A model whose weights are a hole in the file: no disk could hold them."""
    folder.mkdir()
    shape, nbytes = [numel], 4 * numel
    header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, nbytes]}}).encode()
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(path, 8 + len(header) + nbytes)
    return folder


def bytes_read() -> int:
    """Bytes that this process has asked the system for, where it counts them (Linux); else 0."""
    if not Path("/proc/self/io").exists():
        return 0
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def test_planning_reads_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("x", "y", "z"):
        sparse(Path(name), 10**11)
    for read in ("read_into", "read_bfloat16"):
        monkeypatch.setattr(OpenFiles, read, lambda *_: pytest.fail("a weight was read"))
    recipe = {
        "merge_method": "ties",
        "base_model": "x",
        "models": [{"model": "y"}, {"model": "z"}],
        "parameters": {"weight": 1, "density": 0.5},
    }
    plan(recipe)  # imports are over after this
    before = bytes_read()
    made = plan(recipe)
    assert bytes_read() - before < 100_000
    assert made.num_parameters == 10**11
    assert made.bytes_to_read == 2 * 3 * 4 * 10**11


def test_what_the_recipe_alone_tells_is_told_before_any_model_is_opened() -> None:
    absent = "models: [{model: nowhere}, {model: never}]\n"
    for text in (
        f"merge_method: linaer\n{absent}",
        f"merge_method: ties\n{absent}",
        f"merge_method: slerp\nbase_model: else\n{absent}",
        f"merge_method: linear\n{absent}parameters: {{wieght: 1}}",
        f"merge_method: linear\n{absent}chat_template: chatlm",
    ):
        assert said(text).startswith("error 2: recipe.yml:")


# the hash


TIES = {
    "merge_method": "ties",
    "base_model": "base",
    "models": [
        {"model": "a", "parameters": {"weight": 0.5, "density": 0.5}},
        {"model": "b", "parameters": {"weight": 0.25, "density": 0.75}},
    ],
    "parameters": {"lambda": 1.0, "normalize": True},
    "dtype": "bfloat16",
}


def changed(path: tuple[Any, ...], value: object) -> dict[str, Any]:
    """TIES with one value replaced."""
    copy = json.loads(json.dumps(TIES))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return copy


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("merge_method",), "task_arithmetic"),
        (("base_model",), "b"),
        (("models", 0, "model"), "a+lora"),
        (("models", 0, "parameters", "weight"), 0.5000001),
        (("models", 1, "parameters", "weight"), [0.25, 0.3]),
        (("models", 1, "parameters", "density"), [{"filter": "norm", "value": 1}, {"value": 0.75}]),
        (("parameters", "lambda"), 2),
        (("parameters", "normalize"), False),
        (("parameters", "rescale"), True),
        (("dtype",), "float16"),
        (("out_dtype",), "float32"),
        (("models", 1, "model"), "a"),
    ],
    ids=lambda v: ".".join(map(str, v)) if isinstance(v, tuple) else None,
)
def test_hash_depends_on_every_value(path: tuple[Any, ...], value: object) -> None:
    # Headers of models that differ in weights only are equal; sizes of these do differ.
    for seed, name in enumerate(("base", "a", "b")):
        tiny.decoder(Path(name), seed, extra={name: torch.ones(2)})
    assert plan(changed(path, value)).digest() != plan(TIES).digest()


def test_hash_depends_on_seed_and_shards_but_not_on_wording() -> None:
    digest = plan(TIES).digest()
    assert plan(TIES, MergeOptions(random_seed=1)).digest() != digest
    assert plan(TIES, MergeOptions(out_shard_size="100")).digest() != digest
    assert plan(TIES, MergeOptions(quiet=True, num_threads=3)).digest() == digest
    assert plan(changed(("parameters", "int8_mask"), True)).digest() == digest
    assert plan(changed(("models", 0, "parameters", "weight"), [0.5, 0.5])).digest() == digest


def test_hash_depends_on_the_scale_of_an_adapter() -> None:
    recipe = {"merge_method": "passthrough", "models": [{"model": "a+lora"}]}
    before = plan(recipe).digest()
    tiny.adapter(Path("lora"), {"model.layers.0.self_attn.q_proj": (4, 4)}, alpha=8)
    assert plan(recipe).digest() != before


def test_hash_is_the_same_in_every_process() -> None:
    Path("recipe.json").write_text(json.dumps(TIES))
    code = "import meldkit; print(meldkit.plan('recipe.json').digest())"
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("0", "1")
    }
    assert digests == {plan(TIES).digest()}


# files


def test_shards_are_filled_in_order_and_a_large_tensor_has_its_own() -> None:
    specs = [(name, "U8", (n,), n) for name, n in (("a", 4), ("b", 4), ("c", 1), ("d", 20), ("e", 9))]
    files, positions = lay_out(specs, 9)
    assert [f.name for f in files] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert [positions[name][0] for name in "abcde"] == [0, 0, 0, 1, 2]
    for index, file in enumerate(files):
        mine = [(positions[s[0]][1], s[3]) for s in specs if positions[s[0]][0] == index]
        ends = [len(file.header), *(start + size for start, size in mine)]
        assert [start for start, _ in mine] == ends[:-1]
        assert ends[-1] == file.size


def test_elements_are_aligned_whatever_is_mixed() -> None:
    dtypes = {"BOOL": 1, "F64": 8, "BF16": 2, "F32": 4, "U8": 1, "I64": 8, "F8_E4M3": 1}
    specs = [(f"t{i}", dtype, (3,), 3 * size) for i, (dtype, size) in enumerate(dtypes.items())]
    _, positions = lay_out(specs, 10**9)
    for name, dtype, _, _ in specs:
        assert positions[name][1] % dtypes[dtype] == 0


def test_header_is_padded_and_names_the_framework() -> None:
    header = header_bytes([("w", "F32", (1,), 4)])
    assert len(header) % 4096 == 0
    assert int.from_bytes(header[:8], "little") == len(header) - 8
    assert header[8:].rstrip(b" ") == (
        b'{"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    )


def test_what_checkpoints_say_is_passed_on() -> None:
    tiny.decoder(Path("tied"), without=("lm_head.weight",), tie_word_embeddings=True)
    tiny.adapter(Path("head"), {"lm_head": (6, 4)})
    settings = json.loads(Path("head/adapter_config.json").read_text())
    Path("head/adapter_config.json").write_text(
        json.dumps({**settings, "base_model_name_or_path": "x/other"})
    )
    made = plan({"merge_method": "passthrough", "models": [{"model": "tied+head"}]})
    assert made.notes == (
        "adapter head: lm_head.weight comes apart from model.embed_tokens.weight, to which it was tied",
    )
    assert made.warnings == (
        "model 'tied+head': adapter head was trained on 'x/other', says its adapter_config.json; "
        "it is laid over tied, which may be another model",
    )


def test_config_that_does_not_fit_the_weights_is_a_warning() -> None:
    recipe = {"merge_method": "passthrough", "models": [{"model": "a"}]}
    config = json.loads(Path("a/config.json").read_text())
    Path("a/config.json").write_text(json.dumps({**config, "num_hidden_layers": 7}))
    (warning,) = plan(recipe).warnings
    assert warning == (
        "config.json of 'a' speaks of 7 layers, its weights have 2 blocks model.layers.*; "
        "one of them is of another model"
    )
    Path("a/config.json").unlink()
    (warning,) = plan(recipe).warnings
    assert warning == "model 'a' has no config.json, so the output has none either; copy it there"
