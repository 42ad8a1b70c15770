"""Bad input through the command line: one message, the right exit status, no stack trace, nothing written."""

from __future__ import annotations

import json
import os
import resource
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import command
import tiny

LINEAR = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a}, {model: b}]\n"
INDEX = "b/model.safetensors.index.json"


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models a and b in the current folder; the hub is not asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for seed, name in enumerate(("a", "b")):
        tiny.decoder(tmp_path / name, seed)
    return tmp_path


def header(change: Callable[[dict[str, Any]], object] | bytes, *, data: int = 16) -> None:
    """Replace model b by one tensor `w` of 16 bytes and a header that was tampered with."""
    if isinstance(change, bytes):
        text = change
    else:
        entries: dict[str, Any] = {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
        change(entries)
        text = json.dumps(entries).encode()
    Path("b/model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * data)


def indexed(weight_map: object) -> None:
    """Make model b sharded, with this weight_map."""
    Path("b/model.safetensors").rename("b/model-1.safetensors")
    Path(INDEX).write_text(json.dumps({"weight_map": weight_map}))


def write(path: str, data: bytes) -> None:
    Path(path).write_bytes(data)


#: name: (recipe, what is done to the models before, exit status, parts of the message)
CASES: dict[str, tuple[str, Callable[[], object] | None, int, tuple[str, ...]]] = {
    # the recipe
    "unknown method": ("merge_method: linaer\nmodels: [{model: a}]", None, 2, ("recipe.yml:1:", "'linear'?")),
    "unknown parameter": (
        LINEAR.replace("weight", "wieght"),
        None,
        2,
        ("recipe.yml:2:", "did you mean 'weight'?"),
    ),
    "missing parameter": (
        "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 1}}\n- {model: b}",
        None,
        2,
        ("recipe.yml:4:", "'weight' is missing", "'lm_head.weight'", "model 'b'", "give it under"),
    ),
    "no base": (
        "models: [{model: a}, {model: b}]\nmerge_method: ties",
        None,
        2,
        ("ties needs a base_model",),
    ),
    "layers beyond the model": (
        "merge_method: passthrough\nslices:\n- sources: [{model: a, layer_range: [1, 9]}]",
        None,
        2,
        ("recipe.yml:3:", "layer_range [1, 9] of model 'a', which has 2 layers"),
    ),
    "backward layers": (
        "merge_method: passthrough\nslices:\n- sources: [{model: a, layer_range: [2, 1]}]",
        None,
        2,
        ("recipe.yml:3:", "[2, 1]"),
    ),
    "unequal layers": (
        "merge_method: linear\nslices:\n- sources:\n"
        "  - {model: a, layer_range: [0, 1]}\n  - {model: b, layer_range: [0, 2]}",
        None,
        2,
        ("recipe.yml:5:", "2 layers", "1 layer"),
    ),
    "unknown key": (LINEAR + "dtpye: float16", None, 2, ("recipe.yml:4:", "dtype")),
    "unknown dtype": (LINEAR + "dtype: float61", None, 2, ("recipe.yml:4:", "'float64'?")),
    "not YAML": ("models: [", None, 2, ("recipe.yml:",)),
    "empty": ("", None, 2, ("recipe.yml",)),
    "a list": ("- a\n- b", None, 2, ("recipe.yml:1:",)),
    "not text": ("", lambda: write("recipe.yml", b"\xff\xfe\0"), 2, ("UTF-8",)),
    # files
    "no such model": (
        LINEAR.replace("model: b", "model: ./nowhere"),
        None,
        3,
        ("'./nowhere' does not exist",),
    ),
    "no such hub model": (
        LINEAR.replace("model: b", "model: no/where"),
        None,
        3,
        ("'no/where'", "Hugging Face Hub"),
    ),
    "empty folder": (
        LINEAR,
        lambda: Path("b/model.safetensors").unlink(),
        3,
        ("model 'b'", "model.safetensors"),
    ),
    "another format than the name says": (
        LINEAR,
        lambda: Path("b/model.safetensors").rename("b/pytorch_model.bin"),
        3,
        ("b/pytorch_model.bin is not a file of torch.save",),
    ),
    "an adapter alone": (
        LINEAR,
        lambda: (shutil.rmtree("b"), tiny.adapter(Path("b"), {"x": (4, 4)})),
        3,
        ("is a LoRA adapter", "BASE_MODEL+b"),
    ),
    "an adapter of another model": (
        LINEAR.replace("model: b", "model: b+lora"),
        lambda: tiny.adapter(Path("lora"), {"model.layers.0.self_attn.q_proj": (8, 8)}),
        3,
        ("adapter", "lora", "[4, 4]"),
    ),
    "truncated": (LINEAR, lambda: os.truncate("b/model.safetensors", 1200), 3, ("b/model.safetensors",)),
    "nothing in the file": (LINEAR, lambda: write("b/model.safetensors", b""), 3, ("has 0 bytes",)),
    "config that is no JSON": (LINEAR, lambda: write("b/config.json", b"{"), 3, ("b/config.json", "JSON")),
    "config that is a list": (
        LINEAR,
        lambda: write("b/config.json", b"[1]"),
        3,
        ("b/config.json", "mapping"),
    ),
    # formats that are not read
    "another kind of adapter": (
        LINEAR.replace("model: b", "model: b+lora"),
        lambda: (
            tiny.adapter(Path("lora"), {"model.layers.0.self_attn.q_proj": (4, 4)}),
            write("lora/adapter_config.json", b'{"peft_type": "LOHA"}'),
        ),
        3,
        ("not supported yet: adapter lora is of type 'LOHA'",),
    ),
    "another quantisation": (
        LINEAR,
        lambda: tiny.stored(
            Path("b"),
            {"w.weight": torch.ones(4, 4, dtype=torch.int32)},
            {"quantization_config": {"quant_method": "awq"}},
        ),
        3,
        ("not supported: model 'b' is quantised with AWQ",),
    ),
    # headers that lie
    "huge header": (
        LINEAR,
        lambda: write("b/model.safetensors", struct.pack("<Q", 2**62) + b"{}"),
        3,
        ("4,611,686,018,427,387,904 bytes",),
    ),
    "header that is no JSON": (LINEAR, lambda: header(b"{'w': 1}"), 3, ("header", "JSON")),
    "header that is deep": (LINEAR, lambda: header(b"[" * 100_000), 3, ("header", "deep")),
    "name twice": (
        LINEAR,
        lambda: header(b'{"w": {"dtype":"U8","shape":[0],"data_offsets":[0,0]}, "w": {}}', data=0),
        3,
        ("'w' twice",),
    ),
    "beyond the file": (
        LINEAR,
        lambda: header(lambda h: h["w"].update(shape=[400], data_offsets=[0, 1600])),
        3,
        ("'w'", "truncated"),
    ),
    "overlap": (
        LINEAR,
        lambda: header(lambda h: h.update(v={"dtype": "F32", "shape": [2], "data_offsets": [8, 16]})),
        3,
        ("overlap",),
    ),
    "hole": (LINEAR, lambda: header(lambda h: h["w"].update(shape=[2], data_offsets=[8, 16])), 3, ("8",)),
    "shape against bytes": (LINEAR, lambda: header(lambda h: h["w"].update(shape=[3])), 3, ("'w'", "12")),
    "negative size": (
        LINEAR,
        lambda: header(lambda h: h["w"].update(shape=[-1, -4])),
        3,
        ("'w'", "[-1, -4]"),
    ),
    "huge size": (LINEAR, lambda: header(lambda h: h["w"].update(shape=[2**62, 2**62])), 3, ("'w'",)),
    "unknown dtype in a file": (
        LINEAR,
        lambda: header(lambda h: h["w"].update(dtype="F3")),
        3,
        ("'w'", "F3"),
    ),
    # indices
    "index of a missing shard": (
        LINEAR,
        lambda: indexed({"w": "model-2.safetensors"}),
        3,
        ("model-2.safetensors",),
    ),
    "index that escapes": (
        LINEAR,
        lambda: indexed({"w": "../a/model.safetensors"}),
        3,
        ("'../a/model.safetensors'",),
    ),
    "index to the root": (LINEAR, lambda: indexed({"w": "/etc/passwd"}), 3, ("/etc/passwd",)),
    "index of a missing tensor": (LINEAR, lambda: indexed({"w": "model-1.safetensors"}), 3, ("'w'",)),
    "index without map": (LINEAR, lambda: indexed([]), 3, ("weight_map",)),
    "index of numbers": (LINEAR, lambda: indexed({"w": 3}), 3, ("'w'",)),
    # models that do not fit
    "shapes": (LINEAR, lambda: tiny.decoder(Path("b"), hidden=8), 3, ("[6, 4] in 'a'", "[6, 8] in 'b'")),
    "vocabularies": (
        LINEAR,
        lambda: tiny.decoder(Path("b"), vocab=8),
        3,
        ("[6, 4]", "[8, 4]", "vocabularies"),
    ),
    "depths": (LINEAR, lambda: tiny.decoder(Path("b"), layers=3), 3, ("3 blocks", "2", "layer_range")),
    "kinds": (
        LINEAR,
        lambda: tiny.decoder(Path("b"), architectures=["GPT2LMHeadModel"]),
        3,
        ("GPT2LMHeadModel", "LlamaForCausalLM", "--allow-crimes"),
    ),
    "no layers": (
        "merge_method: passthrough\nslices:\n- sources: [{model: b, layer_range: [0, 1]}]",
        lambda: tiny.stored(Path("b"), {"w": torch.ones(2)}, {}),
        3,
        ("no stack of numbered layers",),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(capsys: pytest.CaptureFixture[str], case: str) -> None:
    recipe, damage, status, parts = CASES[case]
    Path("recipe.yml").write_text(recipe)
    if damage is not None:
        damage()
    before = sorted(Path().rglob("*"))
    for args in (("merge", "recipe.yml", "out"), ("plan", "recipe.yml")):
        done = command.run(capsys, *args)
        assert (done.status, done.out) == (status, ""), done.err
        assert done.err.startswith("error: ")
        assert done.err.count("error: ") == 1
        assert "Traceback" not in done.err
        assert len(done.err) < 600
        for part in parts:
            assert part in done.err, done.err
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers(capsys: pytest.CaptureFixture[str], value: float) -> None:
    tiny.decoder(
        Path("b"), without=("model.norm.weight",), extra={"model.norm.weight": torch.full((4,), value)}
    )
    Path("recipe.yml").write_text(LINEAR)
    done = command.run(capsys, "merge", "recipe.yml", "out")
    assert (done.status, done.out) == (4, "")
    assert done.err.startswith(f"error: tensor 'model.norm.weight' of 'b' has the value {value} at element 0")
    assert [p.name for p in Path("out").iterdir()] == [".meldkit-partial"]


@pytest.mark.parametrize("where", ["inputs", "outputs"])
def test_too_many_open_files(capsys: pytest.CaptureFixture[str], where: str) -> None:
    shards = {f"model-{i}.safetensors": {f"w{i}": torch.ones(4)} for i in range(60)}
    for model in ("a", "b"):
        if where == "inputs":
            for name, content in shards.items():
                save_file(content, Path(model) / name)
            Path(model, "model.safetensors").unlink()
            weight_map = {tensor: name for name, content in shards.items() for tensor in content}
            Path(model, Path(INDEX).name).write_text(json.dumps({"weight_map": weight_map}))
        else:
            tiny.stored(Path(model), {name: t for content in shards.values() for name, t in content.items()})
    Path("recipe.yml").write_text(LINEAR)
    flags = ["--out-shard-size", "1" if where == "outputs" else "5B", "-j", "1"]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 30, hard))
    try:
        done = command.run(capsys, "merge", "recipe.yml", "out", *flags)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (done.status, done.out) == (4, "")
    assert "Too many open files\n  raise the limit with 'ulimit -n', and run the same command" in done.err
    done = command.run(capsys, "merge", "recipe.yml", "out", *flags)
    assert done.status == 0, done.err


def test_weights_cut_off_while_they_are_read(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import meldkit.api as api

    Path("recipe.yml").write_text(LINEAR)
    real = api.run_jobs

    def cut_first(*args: Any, **options: Any) -> None:
        os.truncate("b/model.safetensors", 1000)
        real(*args, **options)

    monkeypatch.setattr(api, "run_jobs", cut_first)
    done = command.run(capsys, "merge", "recipe.yml", "out")
    assert done.status in (3, 4)
    assert done.err.startswith("error: ")
    assert "ends at byte 1,000; its data was wanted up to byte " in done.err
    assert [p.name for p in Path("out").iterdir()] == [".meldkit-partial"]
