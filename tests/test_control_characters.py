"""Names from files of a model never end a line of what is printed, nor move the cursor."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import command
import tiny
from fuzz_targets import tokenizers
from meldkit import merge
from meldkit.errors import CheckpointError, MeldError, RecipeError, one_line

#: What stands in front of it is taken back; then it looks like a line of ours.
FAKE = "x\r\nFAKE\x1b[2K\x1b]0;title\x07\x9b1m\x08\u2028\u202e"
LINEAR = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a}, {model: b}]\n"


def change(path: str, **values: Any) -> None:
    """Set values of a JSON file."""
    Path(path).write_text(json.dumps({**json.loads(Path(path).read_text()), **values}))


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models a and b whose files have such names in them wherever there are names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    Path("recipe.yml").write_text(LINEAR)
    tokenizers(equal=True)
    for seed, model in enumerate("ab"):
        sizes = json.loads(Path(model, "config.json").read_text())
        weights = tiny.tensors(Path(model))
        tiny.stored(Path(model), {**weights, f"{FAKE}.{model}": torch.ones(2), FAKE: torch.full((2,), seed)})
        Path(model, "config.json").write_text(json.dumps(sizes))
        change(f"{model}/config.json", architectures=[FAKE], model_type=FAKE, _name_or_path=FAKE)
        change(f"{model}/tokenizer_config.json", bos_token=FAKE, chat_template=f"{{{{ 1 }}}}<|{FAKE}|>")
        Path(model, "README.md").write_text(
            f"---\nlicense: {json.dumps(FAKE)}\nbase_model: {json.dumps(FAKE)}\n---\n"
        )


def fit(done: command.Done) -> None:
    for text in (done.out, done.err):
        assert not re.search(r"^[^\S\n]*FAKE", text, re.MULTILINE)
        assert all(line.isprintable() for line in text.split("\n")), ascii(text)


@pytest.mark.parametrize(
    "line",
    [
        *("merge recipe.yml out -v --allow-crimes", "plan recipe.yml -v", "explain recipe.yml -v"),
        *("inspect a -v", "diff a b", "tokenizers a b -v", "new linear a b"),
    ],
)
def test_nothing_in_a_model_can_look_like_a_line(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    done = command.run(capsys, *line.split())
    fit(done)
    assert "FAKE" in done.out + done.err or line.startswith(("merge", "tokenizers"))


def test_nothing_in_an_output_can_look_like_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run(capsys, "merge", "recipe.yml", "out").status == 0
    Path("out", f"{FAKE}.json").write_text("{}")
    fit(command.run(capsys, "verify", "out"))
    change("out/meldkit.json", meldkit=FAKE)
    for name in ("verify", "reproduce"):
        fit(command.run(capsys, name, "out"))


@pytest.mark.parametrize("name", ["x\ny.py", "x\x1b[2K.txt", "x\u2028.md", "folder\r/x.json"])
def test_file_with_such_a_name_is_not_copied(name: str) -> None:
    path = Path("a", name)
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}")
    with pytest.raises(CheckpointError) as caught:
        merge({"merge_method": "passthrough", "models": [{"model": "a"}]}, "out")
    assert caught.value.message == (
        f"model 'a': a has a file or folder with control characters in its name: {path.parts[1]!r}"
    )
    assert not Path("out").exists()


def test_messages_are_one_line_each() -> None:
    error = MeldError(f"a {FAKE}", hint=f"b {FAKE}")
    assert (error.message, error.hint) == (one_line(f"a {FAKE}"), one_line(f"b {FAKE}"))
    assert str(error).count("\n") == 1
    assert str(MeldError("a", hint="b\n  c\nd")) == "a\n  b\n  c\\nd"
    both = RecipeError.of([RecipeError("a", hint="b"), RecipeError("c\nd")])
    assert str(both) == "a\n  b\nc\\nd"
    assert one_line("é ñ 日本 → … 'x'") == "é ñ 日本 → … 'x'"
