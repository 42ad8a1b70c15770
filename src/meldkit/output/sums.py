"""Check sums of tensors, formed from pieces that come in any order.

A tensor's sum is two numbers of 64 bits, modulo 2⁶⁴: of its little-endian 32-bit words, the last one
filled up with zeros, the sum; and the sum of each word times its position. That is Fletcher's sum with
words and sums as wide as in the file system ZFS. It is to find accidents, on disks and on the way between
machines, and merges that are not the same: up to 16 GB, a change of one or two words never escapes it, nor
do two words that changed places, and of other changes hardly any. Forgery is not what it is for.

A cryptographic hash takes longer than a merge, and CRC-32 a third of it; this is done at the speed of reading
from memory, and does not depend on how a tensor is cut into tiles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock

import numpy as np

from meldkit.checkpoint import DTYPES, TensorInfo
from meldkit.engine import default_threads
from meldkit.kernels import word_sums
from meldkit.plan import Plan, TensorJob

_WORD = 4
_MODULUS = 2**64
#: Bytes read at once; whole words.
_PIECE = 4 << 20


@dataclass(frozen=True, slots=True)
class Sum:
    """The sum of some bytes; that of two runs of bytes is the sum of theirs.

    Attributes:
        words: sum of the words.
        weighted: sum of words times positions.
    """

    words: int = 0
    weighted: int = 0

    def __add__(self, other: Sum) -> Sum:
        return Sum((self.words + other.words) % _MODULUS, (self.weighted + other.weighted) % _MODULUS)

    def __str__(self) -> str:
        return f"{self.words:016x}{self.weighted:016x}"


def sum_of(data: memoryview | bytes, start: int = 0) -> Sum:
    """The sum of a run of bytes.

    Args:
        data: the bytes.
        start: position of the first one within its tensor.
    """
    # Pieces may begin and end within a word: it is the sum of what its bytes are worth where they stand.
    head = min(-start % _WORD, len(data))
    num_words = (len(data) - head) // _WORD
    tail = head + num_words * _WORD
    words, weighted = word_sums(np.frombuffer(data, "<u4", num_words, head))
    first = (start + head) // _WORD
    total = Sum(words, (weighted + first * words) % _MODULUS)
    for position in (*range(head), *range(tail, len(data))):
        place, byte = divmod(start + position, _WORD)
        value = data[position] << 8 * byte
        total += Sum(value, place * value)
    return total


def tensor_sum(tensor: TensorInfo) -> Sum:
    """The sum of a tensor's bytes in its file.

    Raises:
        OSError: they cannot be read.
        EOFError: the file ends before them.
    """
    total, done = Sum(), 0
    with tensor.file.open("rb", buffering=0) as file:
        file.seek(tensor.offset)
        while done < tensor.nbytes:
            data = file.read(min(tensor.nbytes - done, _PIECE))
            if not data:
                raise EOFError(tensor.file)
            total += sum_of(data, done)
            done += len(data)
    return total


def intact(folder: Path, plan: Plan, done: Mapping[str, Sequence[str]]) -> dict[str, tuple[Sum, ...]]:
    """Of finished tensors, the sums of those whose bytes are still what they were.

    Args:
        folder: of the weight files, which have the sizes of the plan.
        plan: what is merged.
        done: finished tensors by name, and the sums that each had when it was written.
    """
    jobs = [job for job in plan.jobs if job.name in done]
    with ThreadPoolExecutor(default_threads(), "check") as pool:
        found = pool.map(partial(_stored_sums, folder, plan), jobs)
        return {
            job.name: sums
            for job, sums in zip(jobs, found, strict=True)
            if tuple(map(str, sums)) == tuple(done[job.name])
        }


def _stored_sums(folder: Path, plan: Plan, job: TensorJob) -> tuple[Sum, ...]:
    """The sums of what weight files hold of a tensor; none if it cannot be read."""
    parts = [
        TensorInfo(p.name, p.dtype, p.shape, folder / plan.files[p.file].name, p.offset, p.nbytes)
        for p in job.stored
    ]
    try:
        return tuple(map(tensor_sum, parts))
    except (OSError, EOFError):
        return ()


class Sums:
    """Sums of all tensors that are made; an `Observer` of the engine.

    Attributes:
        of_tensors: the sums of those that are complete, and of what there is of others.
    """

    def __init__(self) -> None:
        self.of_tensors: dict[str, Sum] = {}
        self._lock = Lock()

    def __call__(self, job: TensorJob, start: int, data: memoryview) -> None:
        piece = sum_of(data, start * DTYPES[job.dtype].itemsize)
        with self._lock:
            self.of_tensors[job.name] = self.of_tensors.get(job.name, Sum()) + piece

    def of_job(self, job: TensorJob) -> tuple[Sum, ...]:
        """The sums of all that is stored of a tensor. One without elements is never seen."""
        return tuple(self.of_tensors.get(part.name, Sum()) for part in job.stored)
