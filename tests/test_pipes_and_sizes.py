"""Files beside the weights that are no files, or far too large: nothing waits, nothing holds them whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import command
from deadline import within
from fuzz_targets import tokenizers
from meldkit import merge, plan
from meldkit.errors import CheckpointError, MeldError
from meldkit.regular import open_regular
from meldkit.report import compare_tokenizers, inspect, verify_output
from meldkit.vocab import read_templates
from test_peak_memory import _LAUNCHER

LINEAR: dict[str, Any] = {
    "merge_method": "linear",
    "models": [{"model": "a"}, {"model": "b"}],
    "parameters": {"weight": 1},
}
#: Settings that are needed if they are there at all, and a part of what is said.
NEEDED = ("config.json", "model.safetensors.index.json", "adapter_config.json")
OTHERS = (
    *("tokenizer_config.json", "chat_template.jinja", "modules.json", "processor_config.json", "README.md"),
    *("generation_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model", "x.py"),
)
#: Of a file that is only copied. It is sparse.
_LARGE = 200 * 2**20


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models a and b with tokenizers in the current folder."""
    monkeypatch.chdir(tmp_path)
    tokenizers(equal=True)


def ended(function: Callable[[], object]) -> MeldError | None:
    """The message in which it ended, in reasonable time; None if it did what it should."""
    try:
        within(60, function)
    except MeldError as e:
        return e
    return None


@pytest.mark.parametrize("name", [*NEEDED, *OTHERS])
def test_pipe_as_a_file_of_a_model_is_not_waited_for(name: str) -> None:
    path = Path("a", name)
    path.unlink(missing_ok=True)
    if name == NEEDED[1]:
        Path("a/model.safetensors").unlink()
    os.mkfifo(path)
    recipe = {**LINEAR, "models": [{"model": "b+a"}]} if name == NEEDED[2] else LINEAR
    error = ended(lambda: merge(recipe, "out"))
    ended(lambda: inspect("a"))
    ended(lambda: compare_tokenizers(["a", "b"]))
    if name in NEEDED:
        assert isinstance(error, CheckpointError)
        assert error.message.endswith(f"{path}: it is a pipe or a device, not a file")
    else:
        assert error is None
        assert not Path("out", name).is_fifo()


@pytest.mark.parametrize("name", ["README.md", "meldkit.json", "model.safetensors", "tokenizer.json"])
def test_pipe_in_an_output_is_not_waited_for(name: str) -> None:
    merge(LINEAR, "out")
    Path("out", name).unlink()
    os.mkfifo(Path("out", name))
    ended(lambda: verify_output("out"))
    ended(lambda: inspect("out"))


def test_recipe_may_come_through_a_pipe() -> None:
    text = json.dumps(LINEAR)
    bash = f"{command.SCRIPT} plan <(echo '{text}') && echo '{text}' | {command.SCRIPT} plan /dev/stdin"
    done = subprocess.run(["bash", "-c", bash], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("path", ["/dev/zero", "a"])
def test_only_files_are_opened(path: str) -> None:
    with pytest.raises(OSError, match=r"a pipe or a device|Is a directory"):
        open_regular(Path(path))


# sizes


@pytest.mark.parametrize("where", ["file", "more files", "settings"])
def test_chat_template_that_is_too_large_is_copied_unread(where: str) -> None:
    if where == "file":
        path = Path("a/chat_template.jinja")
        path.write_text("{{ 1 }}" * 200_000)
        said = f"{path} has more than 1 MB, too much for a chat template"
    elif where == "more files":
        for number in range(3):
            path = Path(f"a/additional_chat_templates/{number}.jinja")
            path.parent.mkdir(exist_ok=True)
            path.write_text("{{ 1 }}" * 60_000)
        said = "a has more than 1 MB of chat templates"
    else:
        path = Path("a/tokenizer_config.json")
        Path("a/chat_template.jinja").unlink()
        path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": "{{ 1 }}" * 200_000}))
        said = f"{path} has more than 1 MB of chat templates"
    with pytest.raises(CheckpointError) as caught:
        read_templates(Path("a"))
    assert caught.value.message == said
    result = merge(LINEAR, "out")
    assert f"{said}, so it is not compared with the chat templates of other models" in result.plan.warnings
    assert Path("out", *path.parts[1:]).read_bytes() == path.read_bytes()
    # It would have to be looked at, or changed.
    with pytest.raises(CheckpointError, match="1 MB"):
        plan({**LINEAR, "chat_template": "auto"})


@pytest.mark.parametrize("name", ["x.py", "chat_template.jinja", "tokenizer.json", "tokenizer_config.json"])
def test_file_that_is_copied_is_never_in_memory_as_a_whole(name: str) -> None:
    def peak(out: str) -> int:
        options = ["--quiet", "--num-threads", "1"]
        run = [sys.executable, "-c", _LAUNCHER, command.SCRIPT, "merge", "recipe.yml", out, *options]
        status, size = subprocess.run(run, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
        assert int(status) == 0
        return int(size)

    Path("recipe.yml").write_text(json.dumps(LINEAR))
    usual = peak("usual")
    with Path("a", name).open("wb") as file:
        file.truncate(_LARGE)
    assert peak("out") - usual < _LARGE / 4
    assert Path("out", name).stat().st_size == _LARGE
