"""Outputs under names that are not plain: the home folder, bytes that are no text, links in circles."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

import command
import tiny
from meldkit import merge
from meldkit.errors import CheckpointError, OutputError
from meldkit.raw import merge_raw
from meldkit.report import verify_output
from meldkit.tools.reproduce import reproduce

RECIPE = {"merge_method": "linear", "models": [{"model": "a"}, {"model": "b"}], "parameters": {"weight": 1}}
#: Latin-1, as old archives have it.
ODD = os.fsdecode(b"caf\xe9")


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models a and b in the current folder, which is not the home folder."""
    (tmp_path / "here").mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for seed, name in enumerate("ab"):
        tiny.decoder(Path(name), seed)
    Path("recipe.yml").write_text(json.dumps(RECIPE))


def test_home_folder_is_meant_as_in_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    home = Path.home()
    assert merge(RECIPE, "~/one").path == home / "one"
    assert command.run(capsys, "merge", "recipe.yml", "~/two").status == 0
    assert (home / "one/config.json").exists()
    assert (home / "two/config.json").exists()
    verify_output("~/one")
    reproduce("~/one")
    assert command.run(capsys, "verify", "~/two").status == 0
    Path("raw.yml").write_text(json.dumps(RECIPE).replace('"a"', '"a/model.safetensors"'))
    Path("raw.yml").write_text(Path("raw.yml").read_text().replace('"b"', '"b/model.safetensors"'))
    merge_raw("raw.yml", "~/three.pt")
    assert (home / "three.pt").is_file()
    assert not [path.name for path in Path().iterdir() if path.name.startswith("~")]
    with pytest.raises(OutputError, match=r"^~nobody-at-all/x cannot be used as output: .*home"):
        merge(RECIPE, "~nobody-at-all/x")


def test_names_may_have_bytes_in_them_that_are_no_text() -> None:
    recipe = f"{ODD}.yml"
    Path("recipe.yml").rename(recipe)
    done = subprocess.run([command.SCRIPT, "merge", recipe, ODD], capture_output=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, b"")
    assert Path(ODD, "config.json").exists()
    # What was written under the same name is found again, and so is a model.
    again = {"merge_method": "passthrough", "models": [{"model": Path(ODD)}]}
    merge(again, Path(f"{ODD} 2"))
    raw = [command.SCRIPT, "pytorch", recipe, f"{ODD}.safetensors"]
    Path(recipe).write_text(
        json.dumps(RECIPE).replace('"a"', '"a/model.safetensors"').replace('"b"', '"a/model.safetensors"')
    )
    done = subprocess.run(raw, capture_output=True, timeout=100)
    assert b"Traceback" not in done.stderr


def test_command_to_continue_has_the_bytes_of_the_name() -> None:
    os.mkfifo("pipe")
    process = subprocess.Popen([command.SCRIPT, "merge", "pipe", ODD], stderr=subprocess.PIPE)
    time.sleep(3)  # it waits for the recipe
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert said.endswith(b"To begin again: meldkit merge pipe 'caf\xe9'\n")
    assert process.returncode == 4


@pytest.mark.parametrize("name", ["circle", "dangling"])
def test_links_that_lead_nowhere_are_called_that(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("circle").symlink_to("circle")
    Path("dangling").symlink_to("gone")
    target = Path(name).readlink()
    for line in (f"merge recipe.yml {name}", f"pytorch recipe.yml {name}"):
        done = command.run(capsys, *line.split())
        assert done.status == 2
        assert done.err.startswith(f"error: {name} is a link that leads nowhere, to {target}\n")
    with pytest.raises(CheckpointError) as caught:
        merge({**RECIPE, "models": [{"model": "a"}, {"model": name}]}, "out")
    assert caught.value.message == f"model '{name}' is a link that leads nowhere, to {target}"
    assert "did you mean" not in caught.value.hint
    for line in (f"verify {name}", f"reproduce {name}", f"inspect {name}", f"diff {name} a"):
        assert command.run(capsys, *line.split()).status in (2, 3)


def test_place_without_a_disk_is_no_full_disk() -> None:
    with pytest.raises(OutputError, match="cannot write to /proc/merged/"):
        merge(RECIPE, "/proc/merged")
