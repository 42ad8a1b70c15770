"""Weight files hold what was written into them: in any pieces, past the page cache or through it."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meldkit.engine import PAGE
from meldkit.output import weight_file
from meldkit.output.weight_file import WeightFile

SIZE = 5 * PAGE + 123
_DATA = np.random.default_rng(0).integers(0, 256, SIZE, dtype=np.uint8)
#: Gives a call's arguments to the system, or an error in its place.
Call = Callable[..., Any]


def room_for(offset: int, length: int, shift: int) -> memoryview:
    """Bytes of memory that lie within a page as those in the file do, or `shift` bytes further."""
    room = torch.empty(length + 2 * PAGE, dtype=torch.uint8)
    skip = (offset + shift - room.data_ptr()) % PAGE
    return room[skip : skip + length].numpy().data


def fill(file: WeightFile, cuts: list[int], shift: int) -> None:
    """Write all data, cut at these offsets, the last piece first."""
    edges = [0, *sorted(set(cuts)), SIZE]
    for start, stop in reversed(list(pairwise(edges))):
        piece = room_for(start, stop - start, shift)
        piece[:] = _DATA[start:stop].data
        file.write(start, piece)


@given(
    cuts=st.lists(st.integers(1, SIZE - 1), max_size=6),
    shift=st.sampled_from([0, 1, 512]),
)
@settings(max_examples=60, deadline=None)
def test_any_pieces(tmp_path_factory: pytest.TempPathFactory, cuts: list[int], shift: int) -> None:
    path = tmp_path_factory.mktemp("pieces") / "file"
    file = WeightFile(path, SIZE)
    fill(file, cuts, shift)
    file.sync()
    file.close()
    assert path.read_bytes() == _DATA.tobytes()


def refusing(real: Call, what: Callable[..., bool], number: int) -> Call:
    """The system's function, which answers some calls with an error."""

    def call(*arguments: Any) -> Any:
        if what(*arguments):
            raise OSError(number, os.strerror(number))
        return real(*arguments)

    return call


def test_disk_without_direct_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems refuse the flag."""
    flag = os.O_DIRECT
    monkeypatch.setattr(
        weight_file.os, "open", refusing(os.open, lambda _, flags, *__: flags & flag, errno.EINVAL)
    )
    file = WeightFile(tmp_path / "file", SIZE)
    fill(file, [PAGE, 3 * PAGE + 7], 0)
    file.close()
    assert (tmp_path / "file").read_bytes() == _DATA.tobytes()


def test_disk_that_takes_the_flag_and_not_the_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others take it, and refuse each write."""
    refused: list[int] = []

    def is_direct(descriptor: int, data: memoryview, *_: object) -> bool:
        if not fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            return False
        refused.append(len(data))
        return True

    monkeypatch.setattr(weight_file.os, "pwrite", refusing(os.pwrite, is_direct, errno.EINVAL))
    file = WeightFile(tmp_path / "file", SIZE)
    fill(file, [PAGE, 3 * PAGE + 7], 0)
    file.close()
    assert refused
    assert (tmp_path / "file").read_bytes() == _DATA.tobytes()


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "buffered"])
def test_errors_leave_no_descriptor_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct: bool
) -> None:
    """Whichever of the two descriptors cannot be had."""
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names are enough
    with monkeypatch.context() as patch:
        patch.setattr(
            weight_file.os,
            "open",
            refusing(os.open, lambda _, flags, *__: bool(flags & os.O_DIRECT) is direct, errno.EMFILE),
        )
        with pytest.raises(OSError, match="Too many open files"):
            WeightFile(tmp_path / "file", SIZE)
    with pytest.raises(OSError, match=r"File too large|No space left on device"):
        WeightFile(tmp_path / "other", 1 << 62)
    assert set(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
