"""Merges that are stopped, by whatever, and go on: same bytes, and nothing that looks like a model before."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import command
import tiny
from journals import lines
from meldkit import merge, plan
from meldkit.api import MergeResult
from meldkit.errors import OutputError, RunError
from meldkit.options import MergeOptions
from meldkit.output import PARTIAL, OutputFolder, sums
from meldkit.output.journal import Entries, read_journal

RECIPE = {
    "merge_method": "ties",
    "base_model": "base",
    "models": [{"model": "a"}, {"model": "b"}],
    "parameters": {"weight": 1, "density": 0.5},
}
JOURNAL = Path("out", PARTIAL, "journal")
#: One thread takes tensor after tensor; three weight files.
ONE = MergeOptions(num_threads=1, out_shard_size="600")


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models base, a and b in the current folder."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "a", "b")):
        tiny.decoder(tmp_path / name, seed, layers=5)
    return tmp_path


def weights(folder: str) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(Path(folder).glob("*.safetensors*"))}


def published(folder: str) -> list[str]:
    """What stands in a folder besides work in progress."""
    return sorted(p.name for p in Path(folder).iterdir() if p.name != PARTIAL)


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, after: int) -> Iterator[None]:
    """The system call succeeds `after` times and then finds the disk full."""
    real: Callable[..., Any] = getattr(owner, name)
    calls = iter(range(10**6))

    def call(*args: Any) -> Any:
        if next(calls) >= after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, call)
        yield


def interrupt(monkeypatch: pytest.MonkeyPatch, tensors: int = 4) -> Entries:
    """Go on with a merge into `out` until the disk is full; what the journal says then."""
    headers = len(plan(RECIPE, ONE).files)
    with failing(monkeypatch, os, "pwrite", headers + tensors), pytest.raises(RunError) as caught:
        merge(RECIPE, "out", ONE)
    assert str(caught.value) == (
        "cannot write to out/.meldkit-partial: No space left on device\n"
        "  free some space and run the same command again; it continues where it stopped"
    )
    assert published("out") == []
    return read_journal(JOURNAL)


def complete(**changes: Any) -> MergeResult:
    """Finish the merge in `out` and compare it with one that nobody disturbed."""
    recipe = {**RECIPE, **changes}
    result = merge(recipe, "out", ONE)
    merge(recipe, "undisturbed", ONE)
    assert weights("out") == weights("undisturbed")
    assert published("out") == published("undisturbed")
    assert not Path("out", PARTIAL).exists()
    return result


def test_continues_after_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(interrupt(monkeypatch).done) == 4
    result = complete()
    assert (result.num_resumed, result.discarded) == (4, False)


def test_continues_however_often_it_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [len(interrupt(monkeypatch, n).done) for n in (2, 0, 3, 1)] == [2, 2, 5, 6]
    assert complete().num_resumed == 6


def test_other_recipe_starts_over_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(monkeypatch)
    Path("other.yml").write_text(json.dumps({**RECIPE, "parameters": {"weight": 1, "density": 0.25}}))
    done = command.run(capsys, "merge", "other.yml", "out")
    assert done.status == 0
    assert done.out.startswith(
        "unfinished work for another recipe or other inputs was in the folder and was "
    )
    assert "continued" not in done.out


def test_input_that_was_touched_starts_over(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch)
    os.utime("b/model.safetensors", ns=(1, 1))
    result = complete()
    assert (result.num_resumed, result.discarded) == (0, True)


def test_input_that_was_replaced_by_one_of_the_same_size_and_time_starts_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    interrupt(monkeypatch)
    path, other = Path("b/model.safetensors"), Path("other")
    content = bytearray(path.read_bytes())
    content[-2:] = b"\x00\x3c" if content[-2:] != b"\x00\x3c" else b"\x00\x3d"
    other.write_bytes(content)
    status = path.stat()
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)
    result = complete()
    assert (result.num_resumed, result.discarded) == (0, True)


def test_work_that_never_got_anywhere_is_not_mentioned(monkeypatch: pytest.MonkeyPatch) -> None:
    assert interrupt(monkeypatch, tensors=0).done == {}
    result = complete(dtype="bfloat16")
    assert (result.num_resumed, result.discarded) == (0, False)


@pytest.mark.parametrize(
    "junk",
    [
        b'1234abcd {"done": "model.no',
        b"\0\0\0\0\n\0",
        b'{"done": "model.norm.weight"}\n',
        b'00000000 {"done": "model.norm.weight"}\n',
        [{"done": 3}, {"done": "model.norm.weight"}],
        [{"done": "not a tensor of this plan"}],
        [["done"]],
        [b"\xff\xfe"],
    ],
)
def test_torn_journal_is_believed_up_to_the_tear(
    monkeypatch: pytest.MonkeyPatch, junk: bytes | list[object]
) -> None:
    before = interrupt(monkeypatch, 2).done.keys()
    raw = JOURNAL.read_bytes()
    JOURNAL.write_bytes(raw + (junk if isinstance(junk, bytes) else lines(*junk, after=raw)))
    # Stopped a second time: the new entries must not be glued to the torn one.
    again = interrupt(monkeypatch, 3).done.keys() - {"not a tensor of this plan"}
    assert before < again
    assert "model.norm.weight" not in again
    assert (len(again), complete().num_resumed) == (5, 5)


@pytest.mark.parametrize(
    "journal",
    [b"", b"\n", b"{", lines({"done": "lm_head.weight"}), lines({"plan": "else"})],
    ids=["empty", "empty line", "torn", "no plan", "other plan"],
)
def test_useless_journal_starts_over(monkeypatch: pytest.MonkeyPatch, journal: bytes) -> None:
    interrupt(monkeypatch)
    JOURNAL.write_bytes(journal)
    assert complete().num_resumed == 0


def test_every_damage_to_a_journal_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with another letter would make a tensor that was never written count as done."""
    entries = interrupt(monkeypatch)
    raw = JOURNAL.read_bytes()
    whole = raw.splitlines(keepends=True)
    for position in range(len(raw)):
        for bit in (0, 5):
            damaged = bytearray(raw)
            damaged[position] ^= 1 << bit
            JOURNAL.write_bytes(damaged)
            found = read_journal(JOURNAL)
            assert found.done.items() < entries.done.items()
            assert raw.startswith(bytes(damaged[: found.length]))
    for first in range(len(whole)):
        for damaged in (whole[:first] + whole[first + 1 :], whole[: first + 1] + whole[first:]):
            JOURNAL.write_bytes(b"".join(damaged))
            assert read_journal(JOURNAL).length <= len(b"".join(whole[: first + 1]))
        JOURNAL.write_bytes(b"".join(whole[:first] + whole[first + 1 :][:1] + whole[first : first + 1]))
        assert read_journal(JOURNAL).length <= len(b"".join(whole[: first + 1]))
    JOURNAL.write_bytes(raw)
    assert complete().num_resumed == len(entries.done)


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_damaged_partial_file_starts_over(monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    interrupt(monkeypatch)
    path = next(Path("out", PARTIAL).glob("*.safetensors"))
    if damage == "missing":
        path.unlink()
    else:
        os.truncate(path, 30)
    result = complete()
    assert (result.num_resumed, result.discarded) == (0, True)


def test_what_the_disk_changed_meanwhile_is_made_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sums of what is reused are those of when it was made: damage never becomes part of a sound output."""
    done = interrupt(monkeypatch).done
    chosen = plan(RECIPE, ONE)
    finished = [job for job in chosen.jobs if job.name in done]
    for job, bit in ((finished[0], 0), (finished[-1], 7)):
        path = Path("out", PARTIAL, chosen.files[job.file].name)
        raw = bytearray(path.read_bytes())
        raw[job.offset + job.nbytes - 1] ^= 1 << bit
        path.write_bytes(raw)
    Path("recipe.yml").write_text(json.dumps(RECIPE))
    told = command.run(capsys, "merge", "recipe.yml", "out", "-j", "1", "--out-shard-size", "600")
    assert told.out.startswith(
        "continued: 2 of 18 tensors were already done\n"
        "made again: 2 finished tensors, whose bytes on the disk were not what had been written\n"
    )
    merge(RECIPE, "undisturbed", ONE)
    assert weights("out") == weights("undisturbed")
    assert json.loads(Path("out/meldkit.json").read_text()) == json.loads(
        Path("undisturbed/meldkit.json").read_text()
    )


def test_tensors_without_sums_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As journals of earlier versions enter them, or as no tensor is stored."""
    names = list(interrupt(monkeypatch).done)
    more = ({}, {"sums": []}, {"sums": None}, {"sums": ["0" * 32]})
    entries = [{"done": name, **rest} for name, rest in zip(names, more, strict=True)]
    JOURNAL.write_bytes(lines({"plan": read_journal(JOURNAL).plan}, *entries))
    result = complete()
    assert (result.num_resumed, result.num_damaged, result.discarded) == (0, 4, False)


def test_finished_tensors_that_cannot_be_read_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(sums, "tensor_sum", unreadable)
        result = merge(RECIPE, "out", ONE)
    assert (result.num_resumed, result.num_damaged) == (0, 4)
    merge(RECIPE, "undisturbed", ONE)
    assert weights("out") == weights("undisturbed")


def unreadable(*_: object) -> object:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_only_one_merge_at_a_time_writes_to_a_folder() -> None:
    with_folder = OutputFolder(Path("out"), plan(RECIPE))
    try:
        with pytest.raises(OutputError) as caught:
            merge(RECIPE, "out")
        assert str(caught.value) == (
            "another merge is writing to out\n  wait until it has finished, or name another folder"
        )
    finally:
        with_folder.close()
    assert complete().num_resumed == 0


# the end: files are moved one by one


@pytest.mark.parametrize("after", range(8))
def test_publication_can_be_interrupted_anywhere(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    with failing(monkeypatch, Path, "rename", after), pytest.raises(RunError):
        merge(RECIPE, "out", ONE)
    moved = published("out")
    assert len(moved) == after
    assert "config.json" not in moved  # it is the last one, and without it a folder is no model
    assert complete().num_resumed == 18
    assert len(published("out")) == 8


def test_files_beside_the_weights_are_those_of_the_last_run(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("base/tokenizer.json").write_text("{}")
    with failing(monkeypatch, Path, "rename", 2), pytest.raises(RunError):
        merge(RECIPE, "out", ONE)
    options = MergeOptions(out_shard_size="600", copy_tokenizer=False, write_model_card=False)
    assert merge(RECIPE, "out", options).num_resumed == 18
    assert not {"tokenizer.json", "README.md"} & set(published("out"))


def test_publication_of_another_merge_is_not_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    with failing(monkeypatch, Path, "rename", 3), pytest.raises(RunError):
        merge(RECIPE, "out", ONE)
    before = published("out")
    other = {**RECIPE, "dtype": "float16"}
    with pytest.raises(OutputError, match="holds a nearly finished merge of another recipe"):
        merge(other, "out", ONE)
    assert published("out") == before
    assert merge(other, "out", MergeOptions(overwrite=True)).discarded
    assert weights("out").keys() == {"model.safetensors"}


def test_overwriting_can_be_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    merge({**RECIPE, "dtype": "float16"}, "out")
    overwrite = MergeOptions(overwrite=True, num_threads=1, out_shard_size="600")
    with failing(monkeypatch, os, "pwrite", 9), pytest.raises(RunError):
        merge(RECIPE, "out", overwrite)
    assert json.loads(Path("out/config.json").read_text())["dtype"] == "float16"  # the old model, whole
    with failing(monkeypatch, Path, "rename", 2), pytest.raises(RunError):
        merge(RECIPE, "out", overwrite)
    assert json.loads(Path("out/config.json").read_text())["dtype"] == "float16"
    merge(RECIPE, "out", overwrite)
    merge(RECIPE, "undisturbed", ONE)
    assert weights("out") == weights("undisturbed")


# real processes


SLOW = ("-j", "1", "--out-shard-size", "20MB")


@pytest.fixture
def slow(models: Path) -> Path:
    """A merge of 60 tensors of 0.5 MB."""
    generator = torch.Generator().manual_seed(1)
    for name in ("base", "a"):
        tiny.stored(models / name, {f"w{i}": torch.randn(2**17, generator=generator) for i in range(60)})
    for i in range(3):
        shutil.copytree(models / "a", models / f"a{i}", copy_function=os.link)
    different = [{"model": f"a{i}", "parameters": {"weight": i + 1}} for i in range(3)]
    recipe = {**RECIPE, "merge_method": "della", "models": different}
    (models / "recipe.yml").write_text(json.dumps(recipe))
    return models


#: A merge that rests before each tensor, so that whoever stops it is not too late on any machine.
_RESTING = """
import time
from meldkit.cli import main
from meldkit.engine import TensorRun

process = TensorRun.process

def rested(*args):
    time.sleep(0.1)
    return process(*args)

TensorRun.process = rested
main()
"""


def started(folder: Path, number: int) -> subprocess.Popen[str]:
    """A merge whose journal has reached a number of lines."""
    process = subprocess.Popen(
        [sys.executable, "-c", _RESTING, "merge", "recipe.yml", "out", *SLOW],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not JOURNAL.exists() or JOURNAL.read_bytes().count(b"\n") < number:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return process


def test_killed_and_interrupted_merges_leave_no_model_and_continue(slow: Path) -> None:
    known = 0
    for more in (0, 12):
        process = started(slow, known + more)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert published("out") == []
        finished = len(read_journal(JOURNAL).done)
        assert finished >= known + more - 1
        known = finished
    process = started(slow, known + 10)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (4, "")
    # On a slow machine lines of progress come before.
    assert err.endswith(
        "stopped; what is done is kept. "
        "To continue: meldkit merge recipe.yml out -j 1 --out-shard-size 20MB\n"
    )
    assert published("out") == []
    known = len(read_journal(JOURNAL).done)
    process = command.start(slow, "merge", "recipe.yml", "out", *SLOW)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    # On a slow machine there are lines of progress.
    assert all(re.match(r"[ \d]{3}%  .* s left  ", line) for line in err.splitlines())
    assert out.startswith(
        f"continued: {known} of 60 tensors were already done\nmerged 60 tensors, 31 MB, in "
    )
    merge("recipe.yml", "undisturbed", MergeOptions(out_shard_size="20MB"))
    assert weights("out") == weights("undisturbed")


#: A merge in which whatever would be waited for takes a minute: a sync, or a tensor in hand.
_HANGING = """
import os, sys, threading, time
from meldkit.cli import main
from meldkit.engine import TensorRun
from meldkit.output import weight_file

def hang(*args):
    os.write(1, b"hanging\\n")
    time.sleep(60)

if sys.argv[1] == "sync":
    weight_file.sync_data = hang
else:
    TensorRun.process = hang
sys.argv[1:] = ["merge", "recipe.yml", "out"]
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
@pytest.mark.parametrize("place", ["sync", "tensor"])
def test_stops_at_once(slow: Path, number: signal.Signals, place: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _HANGING, place],
        cwd=slow,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "hanging\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 4
    assert err.endswith("stopped; what is done is kept. To continue: meldkit merge recipe.yml out\n")
    assert published("out") == []


def test_file_size_limit_is_one_message(slow: Path) -> None:
    process = command.start(
        slow,
        *("merge", "recipe.yml", "out", *SLOW),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6)),
    )
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (4, "")
    assert err.endswith(
        "error: cannot write to out/.meldkit-partial: File too large\n"
        "  the disk or 'ulimit -f' limits the size of a file; try a smaller --out-shard-size\n"
    )
    assert published("out") == []
