"""What stands under the names of our own folders and is not ours is refused, and stays as it is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import tiny
from meldkit import merge, plan
from meldkit.errors import OutputError
from meldkit.options import MergeOptions
from meldkit.output import PARTIAL, OutputFolder
from meldkit.output.journal import Entries, Journal, read_journal
from meldkit.output.replace import aside
from meldkit.output.weight_file import WeightFile
from meldkit.raw import merge_raw

RECIPE = {"merge_method": "linear", "models": [{"model": "a"}, {"model": "b"}], "parameters": {"weight": 1}}
OUT = Path("out")
BESIDE = Path(".out.meldkit-new")


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models a and b, a folder of somebody's own, and a file in it."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("a", "b")):
        tiny.decoder(Path(name), seed)
    Path("elsewhere/deep").mkdir(parents=True)
    Path("elsewhere/thesis").write_text("years of work")
    Path("elsewhere/deep/notes").write_text("x")


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Everything below a folder: kinds, and the content of files and links."""
    found: dict[str, tuple[int, bytes]] = {}
    for path in sorted(folder.rglob("*")):
        content = os.fsencode(path.readlink()) if path.is_symlink() else b""
        if path.is_file():
            content += path.read_bytes()
        found[str(path)] = (path.lstat().st_mode, content)
    return found


def unfinished() -> None:
    """A merge into `out` that was stopped before it was complete."""
    OutputFolder(OUT, plan(RECIPE)).close()


def link_partial() -> None:
    OUT.mkdir()
    (OUT / PARTIAL).symlink_to("../elsewhere")


def link_beside() -> None:
    merge(RECIPE, OUT)
    BESIDE.symlink_to("elsewhere")


def foreign_partial() -> None:
    shutil.copytree("elsewhere", OUT / PARTIAL)


def foreign_beside() -> None:
    merge(RECIPE, OUT)
    shutil.copytree("elsewhere", BESIDE)


def foreign_beside_and_empty_partial() -> None:
    foreign_beside()
    (BESIDE / PARTIAL).mkdir()


def file_partial() -> None:
    OUT.mkdir()
    (OUT / PARTIAL).write_text("mine")


def link_inside(name: str) -> Callable[[], None]:
    def make() -> None:
        unfinished()
        (OUT / PARTIAL / name).unlink(missing_ok=True)
        (OUT / PARTIAL / name).symlink_to(Path("elsewhere/thesis").absolute())

    make.__name__ = f"link_{name}"
    return make


def hard_link_inside(name: str) -> Callable[[], None]:
    def make() -> None:
        unfinished()
        (OUT / PARTIAL / name).unlink()
        (OUT / PARTIAL / name).hardlink_to("elsewhere/thesis")

    make.__name__ = f"hard_link_{name}"
    return make


def pipe_inside() -> None:
    unfinished()
    (OUT / PARTIAL / "journal").unlink()
    os.mkfifo(OUT / PARTIAL / "journal")


MADE: dict[Callable[[], None], str] = {
    link_partial: "out/.meldkit-partial is a link, and meldkit needs a folder of its own there",
    link_beside: ".out.meldkit-new is a link, and meldkit needs a folder of its own there",
    foreign_partial: "out/.meldkit-partial has deep, thesis, which no merge has left there",
    foreign_beside: ".out.meldkit-new has deep, thesis, which no merge has left there",
    foreign_beside_and_empty_partial: ".out.meldkit-new has deep, thesis, which no merge has left there",
    file_partial: "out/.meldkit-partial is not a folder, and meldkit needs a folder of its own there",
    link_inside("journal"): "out/.meldkit-partial/journal is a link, which no merge has left there",
    link_inside("model.safetensors"): "out/.meldkit-partial/model.safetensors is a link, which no merge",
    link_inside("README.md"): "out/.meldkit-partial/README.md is a link, which no merge has left there",
    hard_link_inside("journal"): "out/.meldkit-partial/journal has a second name elsewhere",
    hard_link_inside("model.safetensors"): "out/.meldkit-partial/model.safetensors has a second name",
    pipe_inside: "out/.meldkit-partial/journal is a pipe or a device, which no merge has left there",
}


@pytest.mark.parametrize("make", MADE, ids=lambda make: make.__name__)
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_not_ours_is_refused_and_stays(make: Callable[[], None], overwrite: bool) -> None:
    make()
    before = tree(Path())
    with pytest.raises(OutputError) as caught:
        merge(RECIPE, OUT, MergeOptions(overwrite=overwrite))
    assert MADE[make] in caught.value.message
    assert "by hand" in caught.value.hint
    assert tree(Path()) == before


@pytest.mark.parametrize("beside", [False, True])
def test_folder_of_another_user_is_refused(beside: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    OUT.mkdir()
    place = aside(OUT) if beside else OUT / PARTIAL
    place.mkdir()
    if os.geteuid() == 0:
        os.chown(place, 12345, -1)
        number = 12345
    else:  # or we are another user than its owner
        number = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: number + 1)
        monkeypatch.setattr(Path, "exists", lambda path: path != OUT)
    with pytest.raises(OutputError, match=rf"belongs to another user \(number {number}\)"):
        merge(RECIPE, OUT)
    assert place.is_dir()


def test_folder_of_the_owner_of_the_output_is_ours() -> None:
    """Who replaces a model gives the new folder to the owner of the old one."""
    OUT.mkdir()
    BESIDE.mkdir()
    for folder in (OUT, BESIDE):
        os.chown(folder, 12345, -1)
    merge(RECIPE, OUT)
    assert not BESIDE.exists()


def test_links_are_not_opened_either() -> None:
    """Nor where the folder was changed after it had been looked at."""
    Path("x").symlink_to("elsewhere/thesis")
    before = tree(Path())
    with pytest.raises(OSError, match="symbolic link"):
        WeightFile(Path("x"), 10)
    with pytest.raises(OSError, match="symbolic link"):
        Journal(Path("x"), OUT)
    assert read_journal(Path("x")) == Entries()
    assert tree(Path()) == before


@pytest.mark.parametrize("name", ["out.pt", "out.safetensors"])
@pytest.mark.parametrize("kind", ["link", "folder", "partial"])
def test_folder_beside_an_output_file(name: str, kind: str) -> None:
    work = Path(f".{name}.meldkit")
    if kind == "link":
        work.symlink_to("elsewhere")
    elif kind == "folder":
        shutil.copytree("elsewhere", work)
    else:
        shutil.copytree("elsewhere", work / PARTIAL)
    before = tree(Path())
    recipe = {**RECIPE, "models": [{"model": f"{m}/model.safetensors"} for m in "ab"]}
    with pytest.raises(OutputError, match=r"is a link, and|has deep, thesis, which no merge has left there"):
        merge_raw(recipe, name, MergeOptions(overwrite=True))
    assert tree(Path()) == before


@pytest.mark.parametrize("out", ["dangling", "circle", "dangling/out", "circle/out", "circle/x.pt"])
def test_links_that_lead_nowhere(out: str) -> None:
    Path("dangling").symlink_to("gone")
    Path("circle").symlink_to("circle")
    recipe = {**RECIPE, "models": [{"model": f"{m}/model.safetensors"} for m in "ab"]}
    link = Path(out).parts[0]
    for function in (merge, merge_raw):
        with pytest.raises(OutputError) as caught:
            function(recipe, out)
        assert caught.value.message == f"{link} is a link that leads nowhere, to {Path(link).readlink()}"
