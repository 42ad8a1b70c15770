"""What the system is told of files before they are read, and what it keeps of them afterwards."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from meldkit import merge, plan
from meldkit.checkpoint import ahead as module
from meldkit.checkpoint import files
from meldkit.checkpoint.ahead import PIECE, Ahead
from meldkit.kernels import library

_MIB = 2**20
#: In these tests, whose files are small.
AHEAD = 8 * _MIB


def cached(path: Path) -> np.ndarray:
    """Which pages of a file are in the page cache, bool."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = path.stat().st_size
    pages = (ctypes.c_ubyte * (-(-size // mmap.PAGESIZE)))()
    with (
        path.open("rb") as f,
        mmap.mmap(f.fileno(), size, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE) as mapped,
    ):
        view = np.frombuffer(mapped, np.uint8)
        address = ctypes.c_void_p(view.ctypes.data)
        assert libc.mincore(address, ctypes.c_size_t(size), pages) == 0
        del view
    return np.frombuffer(pages, np.uint8) & 1 > 0


def dropped(path: Path) -> bool:
    """Take a file out of the page cache; whether that could be done, as it can be of a disk."""
    end = time.monotonic() + 5
    with path.open("rb") as f:
        os.fsync(f.fileno())
        while cached(path).any() and time.monotonic() < end:
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return not cached(path).any()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk: the usual one, or else one beside this file."""
    (tmp_path / "tried").write_bytes(bytes(10_000))
    if dropped(tmp_path / "tried"):
        yield tmp_path
        return
    with TemporaryDirectory(dir=Path(__file__).parent) as beside:
        yield Path(beside)


def share(path: Path, begin: int, end: int) -> float:
    """Of the pages of a range, those in the page cache."""
    return float(cached(path)[begin // mmap.PAGESIZE : -(-end // mmap.PAGESIZE)].mean())


def becomes(what: Callable[[], bool]) -> bool:
    """Whether something is so before long: what the system is told of comes when the disk has it."""
    end = time.monotonic() + 60
    while not (so := what()) and time.monotonic() < end:
        time.sleep(0.01)
    return so


@pytest.fixture(autouse=True)
def less_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AHEAD", AHEAD)


@pytest.fixture
def large(folder: Path) -> Path:
    """A file of 48 MiB and a bit that is on the disk alone."""
    path = folder / "large"
    path.write_bytes(bytes(48 * _MIB + 5000))
    assert dropped(path)
    return path


@pytest.fixture
def descriptor(large: Path) -> Iterator[int]:
    descriptor = os.open(large, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def test_what_follows_is_read_ahead(large: Path, descriptor: int) -> None:
    ahead = Ahead(descriptor)
    ahead.read(5 * _MIB, _MIB)
    assert becomes(lambda: share(large, 5 * _MIB, 6 * _MIB) == 1)
    assert share(large, 6 * _MIB, large.stat().st_size) == 0
    # Threads come in any order.
    ahead.read(7 * _MIB, _MIB)
    ahead.read(6 * _MIB, _MIB)
    assert becomes(lambda: share(large, 5 * _MIB, 8 * _MIB + AHEAD - PIECE) == 1)
    assert share(large, 8 * _MIB + AHEAD + PIECE, large.stat().st_size) == 0
    ahead.read(4 * _MIB, _MIB)
    assert becomes(lambda: share(large, 4 * _MIB, 5 * _MIB) == 1)
    assert share(large, 0, 4 * _MIB) == 0


def test_a_file_is_read_at_several_places(large: Path, descriptor: int) -> None:
    ahead = Ahead(descriptor)
    for offset in range(3):
        ahead.read(offset * _MIB, _MIB)
        ahead.read((30 + offset) * _MIB, _MIB)
    for begin in (0, 30 * _MIB):
        assert becomes(lambda begin=begin: share(large, begin, begin + 3 * _MIB + AHEAD - PIECE) == 1)
    assert share(large, 20 * _MIB, 28 * _MIB) == 0


def test_the_end_of_a_file(large: Path, descriptor: int) -> None:
    ahead = Ahead(descriptor, forgets=True)
    for offset in range(40, 49):
        ahead.read(offset * _MIB, min(_MIB, large.stat().st_size - offset * _MIB))
    assert becomes(lambda: share(large, 40 * _MIB, large.stat().st_size) == 1)
    for offset in range(40, 49):
        ahead.let_go(offset * _MIB, min(_MIB, large.stat().st_size - offset * _MIB))
    assert share(large, 40 * _MIB, large.stat().st_size) == 0


def test_what_was_let_go_is_forgotten(large: Path, descriptor: int) -> None:
    ahead = Ahead(descriptor, forgets=True)
    for offset in range(12):
        ahead.read(offset * _MIB, _MIB)
    assert becomes(lambda: share(large, 0, 20 * _MIB) == 1)
    for offset in (3, 0, 2):
        ahead.let_go(offset * _MIB, _MIB)
    assert share(large, 0, 20 * _MIB) == 1
    ahead.let_go(_MIB, _MIB)
    assert (share(large, 0, PIECE), share(large, PIECE, 20 * _MIB)) == (0, 1)
    ahead.let_go(4 * _MIB, 7 * _MIB)
    assert (share(large, 0, 2 * PIECE), share(large, 2 * PIECE, 20 * _MIB)) == (0, 1)
    ahead.close()
    assert not cached(large).any()


def test_what_others_brought_in_stays(large: Path, descriptor: int) -> None:
    with large.open("rb") as other:
        os.posix_fadvise(other.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # and not what follows
        os.pread(other.fileno(), 2 * PIECE, 2 * PIECE)
    ahead = Ahead(descriptor, forgets=True)
    for offset in range(20):
        ahead.read(offset * _MIB, _MIB)
        os.pread(descriptor, _MIB, offset * _MIB)
        ahead.let_go(offset * _MIB, _MIB)
    ahead.close()
    assert (share(large, 0, 2 * PIECE), share(large, 2 * PIECE, 4 * PIECE)) == (0, 1)


def test_without_need_nothing_is_forgotten(large: Path, descriptor: int) -> None:
    ahead = Ahead(descriptor)
    ahead.read(0, 8 * _MIB)
    ahead.let_go(0, 8 * _MIB)
    ahead.close()
    assert becomes(lambda: share(large, 0, 8 * _MIB) == 1)


def test_without_compiled_kernels_nobody_knows_whose_pages_are(
    large: Path, descriptor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "FUNCTIONS", None)
    ahead = Ahead(descriptor, forgets=True)
    for offset in range(4):
        ahead.read(offset * _MIB, _MIB)
    assert becomes(lambda: share(large, 0, 4 * _MIB + AHEAD - PIECE) == 1)
    ahead.let_go(0, 4 * _MIB)
    ahead.close()
    assert share(large, 0, 4 * _MIB + AHEAD - PIECE) == 1


@pytest.mark.parametrize("method", ["linear", "ties", "passthrough"])
def test_inputs_larger_than_memory_do_not_stay_in_the_page_cache(
    method: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("base", "a", "b"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 0}')
        weights = {"model.embed_tokens.weight": torch.randn(24_000, 1024).bfloat16()}
        save_file(weights, folder / name / "model.safetensors")
    inputs = ["a"] if method == "passthrough" else ["base", "a", "b"] if method == "ties" else ["a", "b"]
    recipe = {
        "merge_method": method,
        "models": [{"model": str(folder / name), "parameters": {"weight": 0.5}} for name in inputs],
        **({"base_model": str(folder / "base")} if method == "ties" else {}),
    }
    paths = [folder / name / "model.safetensors" for name in inputs]
    usual = merge(plan(recipe), folder / "usual")
    # The first of them is somebody else's.
    assert all(map(dropped, paths[1:]))
    monkeypatch.setattr(files, "main_memory", lambda: 10_000_000)
    again = merge(plan(recipe), folder / "again")
    # The report on what was made looks at numbers here and there.
    assert [bool(cached(path).mean() > 0.5) for path in paths] == [True] + [False] * (len(paths) - 1)
    assert again.bytes_read == usual.bytes_read
    name = "model.safetensors"
    assert (folder / "again" / name).read_bytes() == (folder / "usual" / name).read_bytes()
