"""What machines and people do to a merge: one sentence, nothing lost, and the same bytes in the end."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import command
import killed
import tiny
from meldkit import merge, plan
from meldkit.checkpoint import Scratch
from meldkit.errors import CheckpointError, MeldError, OutputError, RunError, out_of_memory
from meldkit.kernels import library, stored
from meldkit.options import MergeOptions
from meldkit.output import PARTIAL, OutputFolder, folder, journal, replace, weight_file
from meldkit.output.journal import Journal, read_journal
from meldkit.output.replace import aside

RECIPE = {
    "merge_method": "ties",
    "base_model": "base",
    "models": [{"model": "a"}, {"model": "b"}],
    "parameters": {"weight": 1, "density": 0.5},
}
OTHER = {**RECIPE, "dtype": "float16"}
ONE = MergeOptions(num_threads=1, out_shard_size="600")
OVER = MergeOptions(num_threads=1, out_shard_size="600", overwrite=True)
OUT = Path("out")
JOURNAL = OUT / PARTIAL / "journal"


class Killed(BaseException):
    """Ends a run as a kill does: nothing tidies up after it that expects errors."""


@pytest.fixture(autouse=True)
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Models base, a and b in the current folder; a is stored in bfloat16, which is read another way."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "a", "b")):
        tiny.decoder(tmp_path / name, seed, layers=3, dtype=torch.bfloat16 if name == "a" else torch.float32)
    Path("recipe.yml").write_text(json.dumps(RECIPE))
    before = killed.hashes(Path("base")) | killed.hashes(Path("a"))
    yield
    assert killed.hashes(Path("base")) | killed.hashes(Path("a")) == before


@contextmanager
def after(
    patch: pytest.MonkeyPatch, owner: Any, name: str, count: int, fault: Callable[[], object]
) -> Iterator[None]:
    """The function works `count` times; before it works once more, or instead, something happens."""
    real: Callable[..., Any] = getattr(owner, name)
    calls = iter(range(10**6))

    def call(*args: Any, **options: Any) -> Any:
        if next(calls) == count:
            fault()
        return real(*args, **options)

    with patch.context() as inner:
        inner.setattr(owner, name, call)
        yield


def failure(number: int) -> Callable[[], object]:
    """The system's error of that number."""

    def fail() -> None:
        raise OSError(number, os.strerror(number))

    return fail


def kill() -> None:
    raise Killed


def undisturbed(recipe: Any = RECIPE, options: MergeOptions = ONE) -> dict[str, str]:
    """What a merge writes into a folder of the same name that nobody disturbs."""
    place = Path("undisturbed", "out")
    shutil.rmtree(place, ignore_errors=True)
    merge(recipe, place, options)
    return killed.hashes(place)


# disks


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (os, "pwrite"),
        (os, "posix_fallocate"),
        (os, "write"),
        (os, "fsync"),
        (journal, "sync_data"),
        (weight_file, "sync_data"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_any_call_to_the_disk_may_fail(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: int
) -> None:
    expected = undisturbed()
    errors: list[MeldError] = []
    for count in range(0, 40, 3):
        with after(monkeypatch, owner, name, count, failure(number)):
            try:
                merge(RECIPE, OUT, ONE)
                break
            except MeldError as e:
                errors.append(e)
        assert not (OUT / "config.json").exists()
    assert errors
    for error in errors:
        assert error.exit_status == 4
        assert re.fullmatch(r"cannot .*/?out.*: (No space left on device|Input/output error)", error.message)
        assert "again" in error.hint
    assert killed.hashes(OUT) == expected


#: What the library answers where a file cannot be read.
CANNOT_READ = 3


@contextmanager
def unreadable(patch: pytest.MonkeyPatch, count: int) -> Iterator[None]:
    """After so many tiles nothing can be read any more, neither by compiled loops nor without them."""
    tiles = iter(range(10**6))
    real = library.FUNCTIONS.tile

    def tile(*args: Any) -> int:
        if next(tiles) < count:
            return real(*args)
        inner.setattr(os, "preadv", failing)
        return CANNOT_READ

    def failing(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with patch.context() as inner:
        inner.setattr(library.FUNCTIONS, "tile", tile)
        inner.setattr(stored, "read_bfloat16", failing)
        yield


def test_read_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = undisturbed()
    for count in (0, 2, 5):
        with unreadable(monkeypatch, count), pytest.raises(CheckpointError) as caught:
            merge(RECIPE, OUT, ONE)
        lines = str(caught.value).split("\n")
        assert lines[0].endswith(": Input/output error")
        assert lines[0].startswith("cannot read ")
        assert lines[1:] == ["  what is done is kept; run the same command again to continue"]
        assert [p.name for p in OUT.iterdir()] == [PARTIAL]
    merge(RECIPE, OUT, ONE)
    assert killed.hashes(OUT) == expected


# inputs that change


def test_input_that_is_replaced_while_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.decoder(Path("new"), 9, layers=3)
    with (
        after(
            monkeypatch, os, "pwrite", 9, lambda: Path("new/model.safetensors").replace("b/model.safetensors")
        ),
        pytest.raises(CheckpointError) as caught,
    ):
        merge(RECIPE, OUT, ONE)
    assert str(caught.value) == (
        "b/model.safetensors changed while it was read\n  run the same command again; it starts over"
    )
    assert [p.name for p in OUT.iterdir()] == [PARTIAL]
    assert merge(RECIPE, OUT, ONE).discarded
    assert killed.hashes(OUT) == undisturbed()


def test_input_that_is_truncated_while_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Path("b/model.safetensors").read_bytes()
    with (
        after(monkeypatch, os, "pwrite", 9, lambda: os.truncate("b/model.safetensors", len(whole) - 500)),
        pytest.raises(CheckpointError) as caught,
    ):
        merge(RECIPE, OUT, ONE)
    assert re.fullmatch(
        r"b/model\.safetensors ends at byte [\d,]+; its data was wanted up to byte [\d,]+\n"
        "  the file changed after it was opened; make it whole and run the command again",
        str(caught.value),
    )
    Path("b/model.safetensors").write_bytes(whole)
    assert merge(RECIPE, OUT, ONE).num_resumed == 0
    assert killed.hashes(OUT) == undisturbed()


def test_input_that_is_removed_while_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        after(monkeypatch, os, "pwrite", 9, lambda: Path("b").rename("elsewhere")),
        pytest.raises(CheckpointError) as caught,
    ):
        merge(RECIPE, OUT, ONE)
    assert str(caught.value) == "cannot read b/model.safetensors: No such file or directory"
    Path("elsewhere").rename("b")
    assert merge(RECIPE, OUT, ONE).num_resumed == 12
    assert killed.hashes(OUT) == undisturbed()


def test_other_meldkit_that_counts_otherwise_starts_over(monkeypatch: pytest.MonkeyPatch) -> None:
    import meldkit.plan.model as model

    with after(monkeypatch, Path, "rename", 1, kill), pytest.raises(Killed):
        merge(RECIPE, OUT, ONE)
    shutil.copytree(OUT, "copy")
    for number, resumed in ((model.NUMERIC_VERSION, 12), (model.NUMERIC_VERSION + 1, 0)):
        shutil.rmtree(OUT)
        shutil.copytree("copy", OUT)
        monkeypatch.setattr(model, "NUMERIC_VERSION", number)
        result = merge(RECIPE, OUT, OVER)
        assert (result.num_resumed, result.discarded) == (resumed, not resumed)


def test_other_header_of_the_same_size_and_time_starts_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with after(monkeypatch, os, "pwrite", 9, failure(errno.EIO)), pytest.raises(RunError):
        merge(RECIPE, OUT, ONE)
    path = Path("b/model.safetensors")
    status = path.stat()
    # Two tensors of one shape trade names.
    first, second = b"layers.0.mlp.up_proj", b"layers.1.mlp.up_proj"
    path.write_bytes(
        path.read_bytes().replace(first, b"?" * 20).replace(second, first).replace(b"?" * 20, second)
    )
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    result = merge(RECIPE, OUT, ONE)
    assert (result.num_resumed, result.discarded) == (0, True)


def test_what_was_not_synced_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk refuses to make the bytes durable that it took."""
    monkeypatch.setattr(weight_file, "sync_data", lambda _: failure(errno.EIO)())
    with pytest.raises(RunError, match="Input/output error"):
        merge(RECIPE, OUT, ONE)
    assert read_journal(JOURNAL).done == {}


# the output


@pytest.mark.parametrize("how", ["removed", "moved"])
def test_output_folder_that_vanishes_while_it_is_written(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    vanish = (lambda: shutil.rmtree(OUT)) if how == "removed" else (lambda: OUT.rename("moved"))
    with after(monkeypatch, os, "pwrite", 9, vanish), pytest.raises(RunError) as caught:
        merge(RECIPE, OUT, ONE)
    assert str(caught.value) == (
        "out/.meldkit-partial was moved or removed while the merge was writing to it\n"
        "  run the same command again"
    )
    assert merge(RECIPE, OUT, ONE).num_resumed == 0
    assert killed.hashes(OUT) == undisturbed()


def test_lock_is_of_the_journal_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another merge finishes, and removes its journal, between opening and locking."""
    import fcntl

    Path("x").mkdir()

    def finished() -> None:
        Path("x/journal").unlink()
        Path("x").rmdir()

    with after(monkeypatch, fcntl, "flock", 0, finished):
        locked = Journal(Path("x/journal"), Path("out"))
    locked.restart("plan")
    assert read_journal(Path("x/journal")).plan == "plan"
    locked.close()


def test_merge_that_was_finished_meanwhile_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = undisturbed()
    with (
        after(monkeypatch, folder, "Journal", 0, lambda: shutil.copytree("undisturbed/out", OUT)),
        pytest.raises(OutputError, match="out is not empty"),
    ):
        merge(OTHER, OUT)
    assert killed.hashes(OUT) == expected
    assert not (OUT / PARTIAL).exists()


def test_second_process_is_refused(tmp_path: Path) -> None:
    first = OutputFolder(OUT, plan(RECIPE, ONE))
    try:
        process = command.start(tmp_path, "merge", "recipe.yml", "out")
        assert process.communicate() == (
            "",
            "error: another merge is writing to out\n  wait until it has finished, or name another folder\n",
        )
        assert process.returncode == 2
    finally:
        first.close()


# replacing a model


def old_model() -> dict[str, str]:
    """Put another model into the folder, and what is somebody's own."""
    merge(OTHER, OUT)
    (OUT / "notes.txt").write_text("mine")
    (OUT / "folder").mkdir()
    (OUT / "folder" / "config.json").write_text("mine")
    (OUT / "link").symlink_to("folder")
    return killed.hashes(OUT)


def mine(files: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in files.items() if name.startswith(("notes", "folder", "link"))}


def model(files: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in files.items() if name not in mine(files)}


@pytest.mark.parametrize("how", [kill, failure(errno.EIO)], ids=["killed", "EIO"])
@pytest.mark.parametrize(
    ("owner", "name", "counts"),
    [
        (Path, "rename", range(0, 15, 2)),
        (Path, "unlink", range(0, 8, 3)),
        (Path, "rmdir", range(3)),
        (Path, "mkdir", range(1, 3)),
        (replace, "exchange", range(1)),
        (replace, "sync_path", range(2)),
        (folder, "take_back", range(2)),
    ],
)
def test_replacing_can_be_stopped_anywhere(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, counts: range, how: Callable[[], object]
) -> None:
    new, old = undisturbed(), old_model()
    shutil.copytree(OUT, "old", symlinks=True)
    for count in counts:
        shutil.rmtree(OUT)
        shutil.copytree("old", OUT, symlinks=True)
        stopped = False
        with after(monkeypatch, owner, name, count, how):
            try:
                merge(RECIPE, OUT, OVER)
            except (Killed, MeldError):
                stopped = True
        found = killed.hashes(OUT)
        assert model(found) in (model(old), new), count
        if stopped:
            # A second time, while it goes on.
            with after(monkeypatch, Path, "rename", count % 5, kill):
                try:
                    merge(RECIPE, OUT, OVER)
                except Killed:
                    assert model(killed.hashes(OUT)) in (model(old), new), count
        result = merge(RECIPE, OUT, OVER)
        assert killed.hashes(OUT) == {**new, **mine(old)}, count
        assert not aside(OUT).exists()
        assert result.plan.digest()


def test_model_in_place_is_reused_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    new, old = undisturbed(), old_model()
    with after(monkeypatch, replace, "remove", 2, kill), pytest.raises(Killed):
        merge(RECIPE, OUT, OVER)
    with after(monkeypatch, Path, "rmdir", 0, kill), pytest.raises(Killed):
        merge(RECIPE, OUT, OVER)
    assert model(killed.hashes(OUT)) == new
    result = merge(RECIPE, OUT, OVER)
    assert result.num_resumed == 12
    assert killed.hashes(OUT) == {**new, **mine(old)}


def test_another_recipe_after_a_stopped_replacement(monkeypatch: pytest.MonkeyPatch) -> None:
    old_model()
    for count in (3, 8):
        with after(monkeypatch, Path, "rename", count, kill), pytest.raises(Killed):
            merge(RECIPE, OUT, OVER)
        with pytest.raises(OutputError, match="out is not empty"):
            merge(RECIPE, OUT, ONE)
        merge(OTHER, OUT, OVER)
        assert model(killed.hashes(OUT)) == undisturbed(OTHER)
        assert not aside(OUT).exists()


@pytest.mark.parametrize("place", ["no system call", "inside", "nothing beside"])
def test_replaces_file_by_file_where_folders_cannot_trade_places(
    monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    new, old = undisturbed(), old_model()
    if place == "no system call":
        monkeypatch.setattr(replace, "_EXCHANGE", {})
    elif place == "nothing beside":
        aside(OUT).write_text("in the way")
    recipe = {**RECIPE, "base_model": str(Path("base").absolute())}
    recipe["models"] = [{"model": str(Path(name).absolute())} for name in ("a", "b")]
    if place == "inside":
        monkeypatch.chdir(OUT)
        merge(recipe, ".", OVER)
        monkeypatch.chdir("..")
    else:
        merge(RECIPE, OUT, OVER)
        assert killed.hashes(OUT) == {**new, **mine(old)}
    assert (OUT / "notes.txt").read_text() == "mine"
    assert not list(OUT.glob(PARTIAL))
    assert not aside(OUT).is_dir()


def test_folder_keeps_its_rights_and_the_link_to_it() -> None:
    old_model()
    OUT.chmod(0o2750)
    Path("link").symlink_to(OUT)
    merge(RECIPE, "link", OVER)
    assert Path("link").is_symlink()
    assert OUT.stat().st_mode & 0o7777 == 0o2750
    assert model(killed.hashes(OUT)).keys() == undisturbed().keys()


# the process


def limited(megabytes: int) -> Callable[[], None]:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))

    return limit


def test_too_little_memory_is_one_message(tmp_path: Path) -> None:
    process = command.start(tmp_path, "merge", "recipe.yml", "out", preexec_fn=limited(300))
    out, err = process.communicate()
    assert (process.returncode, out) == (4, "")
    assert err == (
        "error: the system gives no more memory\n"
        "  raise the limit ('ulimit -v', 'ulimit -u' or the container's) or use fewer threads (-j 1), "
        "and run the same command again\n"
    )


def test_memory_that_ends_while_merging(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_memory() -> None:
        raise MemoryError("Unable to allocate 8 bytes for an array")

    with after(monkeypatch, Scratch, "array", 3, no_memory):
        done = command.run(capsys, "merge", "recipe.yml", "out", "-j", "1", "--out-shard-size", "600")
    assert (done.status, done.out) == (4, "")
    assert done.err.startswith("error: the system gives no more memory\n")
    merge(RECIPE, OUT, ONE)
    assert killed.hashes(OUT) == undisturbed()


def test_only_errors_about_memory_are_taken_for_such() -> None:
    assert out_of_memory(MemoryError()) is not None
    assert out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to")) is not None
    assert str(out_of_memory(RuntimeError("can't start new thread"))).startswith(
        "the system gives no more threads\n"
    )
    assert out_of_memory(RuntimeError("shapes differ")) is None


@pytest.mark.parametrize("arguments", [("methods",), ("--help",), ("plan", "recipe.yml", "--json")])
def test_reader_that_has_seen_enough_ends_a_command_silently(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [command.SCRIPT, *arguments], cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


# the same with real means; `scripts/faults.py` does more of it


@pytest.mark.slow
def test_killed_at_random(tmp_path: Path) -> None:
    tally = killed.kill_merges(tmp_path / "kills", 20, seed=2)
    assert tally.wrong == []
