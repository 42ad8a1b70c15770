"""Nothing outside of the inputs and the output is opened or written, and nothing in them is run.

What becomes of files is watched by Python's own audit events, in a process of its own, over plans and merges
of folders whose names and links lead elsewhere.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import fuzz_vocabularies
import tiny
import word_tokenizers
from fuzz_damage import NAMES
from fuzz_targets import TEMPLATE, gguf, inside, pair, parts, sharded, tokenizers
from journals import lines
from meldkit import merge
from meldkit.errors import CheckpointError, MeldError
from meldkit.output.journal import read_journal
from meldkit.report import verify_output
from meldkit.tools.reproduce import reproduce
from meldkit.vocab.tokenizer import tokenizer_of_folder

LINEAR: dict[str, Any] = {
    "merge_method": "linear",
    "parameters": {"weight": 1},
    "models": [{"model": "a"}, {"model": "b"}],
}
#: Names that a file or a tensor can have, in JSON.
SPELLED = [name for name in NAMES if len(name) < 1000]


def edit(path: str, change: Callable[[Any], object]) -> None:
    data = json.loads(Path(path).read_text())
    change(data)
    Path(path).write_text(json.dumps(data))


def in_index(name: str) -> None:
    sharded()
    edit("b/model.safetensors.index.json", lambda d: d["weight_map"].update({"lm_head.weight": name}))


def as_part(name: str) -> None:
    parts()
    for model in "ab":
        edit(f"{model}/modules.json", lambda d: d[1].update(path=name))


def as_tensor(name: str) -> None:
    for seed, model in enumerate("ab"):
        extra = {name.encode("utf-8", "replace").decode() or "empty": torch.ones(2)}
        tiny.decoder(Path(model), seed, extra=extra)


def in_adapter(name: str) -> None:
    pair()
    name = name.encode("utf-8", "replace").decode()
    tiny.adapter(Path("lora"), {name: (4, 4)})


def as_template(name: str) -> None:
    tokenizers(equal=True)
    templates = [{"name": "default", "template": TEMPLATE}, {"name": name, "template": TEMPLATE}]
    for model in "ab":
        Path(model, "preprocessor_config.json").write_text("{}")
        edit(f"{model}/tokenizer_config.json", lambda d: d.update(chat_template=templates))


def in_tokenizer_settings(name: str) -> None:
    tokenizers(equal=True)
    files = ("tokenizer_file", "vocab_file", "merges_file", "name_or_path", "auto_map")
    for model in "ab":
        edit(f"{model}/tokenizer_config.json", lambda d: d.update(dict.fromkeys(files, name)))


def in_config(name: str) -> None:
    pair()
    keys = ("_name_or_path", "model_type", "auto_map", "transformers_version", "quantization_config")
    for model in "ab":
        edit(f"{model}/config.json", lambda d: d.update(dict.fromkeys(keys[:-1], name)))


KINDS = (in_index, as_part, as_tensor, in_adapter, as_template, in_tokenizer_settings, in_config)
RECIPES: dict[Any, dict[str, Any]] = {
    in_adapter: {**LINEAR, "models": [{"model": "a"}, {"model": "b+lora"}]},
    as_template: {**LINEAR, "tokenizer_source": "union", "chat_template": "auto"},
}


LINKED = ("vocab.txt", "config.json", "model.safetensors", "tokenizer_config.json", "1_Pooling", "LICENSE")


def linked(target: str) -> Iterator[str]:
    """Folders in which a file or a folder is a link."""
    for name in (
        "vocab.txt",
        "config.json",
        "model.safetensors",
        "tokenizer_config.json",
        "1_Pooling",
        "LICENSE",
    ):
        folder = Path(f"link-{name}-{target.replace('/', '_')}")
        folder.mkdir()
        with inside(folder):
            tokenizers(equal=True)
            path = Path("a", name)
            path.unlink(missing_ok=True)
            path.symlink_to(target)
        yield str(folder)


Found = list[tuple[str, str, list[str]]]


def audited(root: Path, cases: Sequence[tuple[str, dict[str, Any]]]) -> Found:
    """What became of each folder and recipe, and which paths outside were touched."""
    for name in ("tmp", "home"):
        (root / name).mkdir(exist_ok=True)
    allowed = [str(root / "tmp"), str(root / "home")]
    request = {"cases": [(str(root / folder), recipe) for folder, recipe in cases], "allowed": allowed}
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "TMPDIR": allowed[0],
        "HOME": allowed[1],
        "HF_HOME": allowed[1],
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, str(Path(__file__).with_name("audited.py"))]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_what_is_outside_is_seen(tmp_path: Path) -> None:
    """Else the tests below could not fail."""
    for name in ("case", "elsewhere"):
        (tmp_path / name).mkdir()
        with inside(tmp_path / name):
            pair()
    recipe = {**LINEAR, "models": [{"model": "a"}, {"model": "../elsewhere/b"}]}
    ((_, outcome, outside),) = audited(tmp_path, [("case", recipe)])
    assert outcome == "merged"
    assert str(tmp_path / "elsewhere/b/model.safetensors") in outside


def test_names_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "secret.safetensors").write_bytes(b"secret")
    cases: list[tuple[str, dict[str, Any]]] = []
    for kind in KINDS:
        for number, name in enumerate(SPELLED):
            folder = tmp_path / f"{kind.__name__} {number}"
            folder.mkdir()
            with inside(folder):
                kind(name)
            cases.append((folder.name, RECIPES.get(kind, LINEAR)))
    found = audited(tmp_path, cases)
    assert len(found) == len(cases)
    assert [(folder, outcome, outside) for folder, outcome, outside in found if outside] == []
    assert {path.name for path in tmp_path.iterdir()} == {
        *("tmp", "home", "secret.safetensors"),
        *(folder for folder, _ in cases),
    }
    assert (tmp_path / "secret.safetensors").read_bytes() == b"secret"
    for folder, _ in cases:
        assert {p.name for p in (tmp_path / folder).iterdir()} <= {"a", "b", "lora", "out"}
    # Some are merged all the same, such as those with odd names of tensors.
    assert 50 < sum(outcome == "merged" for _, outcome, _ in found) < len(found) - 50


def test_links_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"a secret of many letters")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/config.json").write_text('{"secret": 1}')
    with inside(tmp_path):
        targets = ("/etc/passwd", str(tmp_path / "secret"), "../../secret", "../../secrets")
        folders = [folder for target in targets for folder in linked(target)]
    found = audited(tmp_path, [(folder, LINEAR) for folder in folders])
    assert len(found) == 24
    for folder, outcome, outside in found:
        assert "is a link that leads out of the model's folder" in outcome, folder
        # Where it leads to was looked up, and that is all.
        assert outside == [], folder
        assert not Path(folder, "out").exists()


@pytest.mark.parametrize("tokenizer_class", ["GPT2Tokenizer", "BertTokenizer", "LlamaTokenizer"])
@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
def test_settings_of_a_tokenizer_read_nothing_into_it(
    tokenizer_class: str, file: str, tmp_path: Path
) -> None:
    """Python's audit events do not see what the tokenizers library opens; what it read would be tokens."""
    secrets = {"vocab.json": '{"SECRET": 0, "h": 1}', "merges.txt": "#version: 0.2\n", "key": "SECRET\nh\n"}
    secrets["tokenizer.7.json"] = json.dumps(word_tokenizers.content({"SECRET": 0, "h": 1}))
    (tmp_path / "secrets").mkdir()
    for name, content in secrets.items():
        (tmp_path / "secrets" / name).write_text(content)
    places = {name: str(tmp_path / "secrets" / name) for name in secrets}
    lists = {"vocab": places["vocab.json"], "merges": places["merges.txt"]}
    for number, settings in enumerate(
        (
            lists,
            {f"{key}_file": value for key, value in lists.items()},
            {"vocab": places["key"]},
            {"tokenizer_file": places["tokenizer.7.json"]},
            {"fast_tokenizer_files": ["../../secrets/tokenizer.7.json"]},
            {"sp_model_kwargs": {"model_file": places["key"]}},
            {"name_or_path": str(tmp_path / "secrets")},
        )
    ):
        (tmp_path / str(number)).mkdir()
        with inside(tmp_path / str(number)):
            fuzz_vocabularies.pairs(tokenizer_class)
            own = set(tokenizer_of_folder("a", Path("a")).tokens)  # type: ignore[union-attr]
            edit("a/tokenizer_config.json", lambda d, s=settings: d.update(s))
            Path("a", file).write_text(Path("a/tokenizer_config.json").read_text())
            assert set(tokenizer_of_folder("a", Path("a")).tokens) == own, settings  # type: ignore[union-attr]
            assert {p.name for p in Path().iterdir()} == {"a", "b"}


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "..", ".", "", "a/../b", "a\0b", "./x"])
@pytest.mark.parametrize("key", ["weights", "files"])
def test_records_tell_of_files_of_their_own_folder_only(key: str, name: str, tmp_path: Path) -> None:
    with inside(tmp_path):
        pair()
        merge(LINEAR, "out")
        entry = {"size": 1, "sha256": "", "header_sha256": "", "sums": {}}
        edit("out/meldkit.json", lambda d: d[key].update({name: entry}))
        for check in (verify_output, reproduce):
            with pytest.raises(CheckpointError, match="is not a whole record: it tells of a file "):
                check("out")


def test_a_record_does_not_say_whom_to_trust(tmp_path: Path) -> None:
    """A stranger's record of a merge that trusted code does not make `reproduce` run any."""
    mark = tmp_path / "mark"
    with inside(tmp_path):
        for model in "ab":
            folder = word_tokenizers.model(Path(model), word_tokenizers.content({"u": 0, "v": 1}))
            (folder / "tokenization_evil.py").write_text(MARK.format(path=str(mark)))
        merge({**LINEAR, "tokenizer_source": "union"}, "out")
        edit("out/meldkit.json", lambda d: d["options"].update(trust_remote_code=True))
        with pytest.raises(MeldError, match="--trust-remote-code"):
            reproduce("out")
        edit("out/meldkit.json", lambda d: d["options"].update(trust_remote_code=False))
        assert reproduce("out").same
        auto = {"auto_map": {"AutoTokenizer": ["tokenization_evil.Evil", None]}, "tokenizer_class": "Evil"}
        for model in "ab":
            edit(f"{model}/tokenizer_config.json", lambda d: d.update(auto))
            Path(model, "tokenizer.json").rename(Path(model, "vocab.json"))
        with pytest.raises(MeldError, match="--trust-remote-code"):
            reproduce("out")
    assert not mark.exists()


MARK = "import pathlib; pathlib.Path({path!r}).write_text('was here')\n"


def test_code_of_a_model_is_copied_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "home/mark"
    with inside(tmp_path):
        Path("case").mkdir()
    with inside(tmp_path / "case"):
        tokenizers(equal=True)
        code = MARK.format(path=str(mark))
        auto = {"AutoModelForCausalLM": "modeling_evil.Evil", "AutoConfig": "configuration_evil.Evil"}
        config = {"auto_map": auto, "model_type": "evil"}
        tokenizer = {
            "auto_map": {"AutoTokenizer": ["tokenization_evil.Evil", None]},
            "tokenizer_class": "Evil",
        }
        for model in "ab":
            for name in ("modeling_evil", "configuration_evil", "tokenization_evil", "__init__", "setup"):
                Path(model, f"{name}.py").write_text(code)
            edit(f"{model}/config.json", lambda d: d.update(config))
            edit(f"{model}/tokenizer_config.json", lambda d: d.update(tokenizer))
        shutil.copytree(".", "../slow")
    for model in "ab":  # what only its own code could read
        (tmp_path / "slow" / model / "tokenizer.json").unlink()
        (tmp_path / "slow" / model / "vocab.txt").write_text("a\nb\n")
    union = {**LINEAR, "tokenizer_source": "union"}
    (_, merged, outside), (_, refused, outside_too) = audited(tmp_path, [("case", union), ("slow", union)])
    assert merged == "merged"
    assert "cannot be read" in refused
    assert "--trust-remote-code" in refused
    assert outside == outside_too == []
    assert not mark.exists()
    assert (tmp_path / "case/out/modeling_evil.py").read_text() == code


def test_scaled_weights_are_read_where_no_test_looks_on(tmp_path: Path) -> None:
    """In a process in which nobody has imported jaxtyping, and with it the types of annotations."""
    (tmp_path / "case").mkdir()
    with inside(tmp_path / "case"):
        for seed, model in enumerate("ab"):
            folder = tiny.decoder(Path(model), seed, hidden=16)
            weights = tiny.tensors(folder)
            for name in [name for name in weights if "_proj" in name]:
                weights[name + "_scale_inv"] = torch.ones(1, 1)
                weights[name] = weights[name].to(torch.float8_e4m3fn)
            save_file(weights, folder / "model.safetensors")
            settings = {"quant_method": "fp8", "weight_block_size": [128, 128]}
            edit(f"{model}/config.json", lambda d, s=settings: d.update(quantization_config=s))
        Path("gguf").mkdir()
    with inside(tmp_path / "case/gguf"):
        gguf()
    found = audited(tmp_path, [("case", LINEAR), ("case/gguf", LINEAR)])
    assert [(outcome, outside) for _, outcome, outside in found] == [("merged", [])] * 2


@pytest.mark.parametrize("name", ["../../secret", "/tmp/x", "..", ".", "", "a/b", 3, None, ["x"]])
def test_a_journal_moves_files_of_its_own_folder_only(name: object, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(lines({"plan": "p"}, {"publish": ["x", name]}))
    assert read_journal(path).publish == ()
    path.write_bytes(lines({"plan": "p"}, {"publish": ["x", "2_Dense"]}, b"[" * 100_000))
    assert read_journal(path).publish == ("x", "2_Dense")
