"""The engine, with inputs and outputs in memory: every byte once, errors once, and never a deadlock."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from math import isfinite
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from deadline import within
from meldkit.checkpoint import BY_TORCH_NAME, Scratch
from meldkit.engine import Progress, TensorRun, default_threads, run
from meldkit.errors import RunError
from meldkit.methods import METHODS, Values
from meldkit.methods.base import Elementwise, Measured, Method
from meldkit.methods.statistics import CHUNK, Gram
from meldkit.plan import Input, TensorJob

#: Seconds after which a run counts as a deadlock; hundreds of times what it takes.
DEADLINE = 60
SIZES = (0, 1, 5, 1000, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7)

VALUES: dict[str, Values] = {
    "linear": {"weight": (0.25, 0.5, 1.0), "normalize": True},
    "slerp": {"t": 0.3},
    "passthrough": {"scale": (0.5,)},
    "task_arithmetic": {"weight": (0.25, 0.5, 1.0), "normalize": False, "lambda": 0.7},
    "ties": {
        "weight": (0.25, 0.5, 1.0),
        "density": (0.2, 1.0, 0.5),
        "normalize": True,
        "lambda": 1.0,
        "rescale": True,
        "elect": "weighted",
        "trim_scope": "tensor",
    },
}
NUM_MODELS = {"linear": 3, "slerp": 2, "passthrough": 1, "task_arithmetic": 3, "ties": 3}


class Values32:
    """The elements of a tensor in memory, as a file would give them."""

    def __init__(self, tensor: Tensor) -> None:
        self.flat = tensor.reshape(-1)

    def read(self, start: int, stop: int, out: Tensor, scratch: Scratch) -> None:
        # Through the scratch buffer like a real file, so that sharing it between threads would be seen.
        raw = scratch.take((stop - start) * self.flat.element_size())
        raw.copy_(self.flat[start:stop].view(torch.uint8))
        out.copy_(raw.view(self.flat.dtype))

    def read_bytes(self, start: int, buffer: memoryview, *, once: bool = False) -> None:
        del once
        data = self.flat.view(torch.uint8).numpy().data
        first = start * self.flat.element_size()
        buffer[:] = data[first : first + len(buffer)]


class Store:
    """Inputs: checkpoint number and name to tensor."""

    def __init__(self) -> None:
        self.tensors: dict[Input, Tensor] = {}

    def open(self, tensor: Input) -> Values32:
        return Values32(self.tensors[tensor])

    def label(self, tensor: Input) -> str:
        return f"model {tensor.checkpoint}"

    def open_raw(self, tensor: Input, dtype: str | None) -> Any:
        stored = self.tensors[tensor]
        same = BY_TORCH_NAME[str(stored.dtype).removeprefix("torch.")].name == dtype
        return Values32(stored) if same else None


class Memory:
    """A sink that keeps the bytes and sees to it that each comes once and `finish` last."""

    def __init__(self) -> None:
        self.bytes: dict[str, bytearray] = {}
        self.times: dict[str, np.ndarray] = {}
        self.finished: list[str] = []
        self.nonfinite: set[str] = set()
        self._lock = threading.Lock()

    def let_through(self, job: TensorJob) -> None:
        with self._lock:
            assert job.name not in self.finished
            self.nonfinite.add(job.name)

    def write(self, job: TensorJob, start: int, data: memoryview) -> None:
        itemsize = job.nbytes // job.numel
        first = start * itemsize
        with self._lock:
            assert job.name not in self.finished
            buffer = self.bytes.setdefault(job.name, bytearray(job.nbytes))
            times = self.times.setdefault(job.name, np.zeros(job.nbytes, np.uint8))
            assert data.nbytes % itemsize == 0
            buffer[first : first + data.nbytes] = data.cast("B")
            assert len(buffer) == job.nbytes
            times[first : first + data.nbytes] += 1

    def finish(self, job: TensorJob) -> None:
        with self._lock:
            assert job.name not in self.finished
            assert job.numel == 0 or np.all(self.times[job.name] == 1)
            self.finished.append(job.name)

    def tensor(self, job: TensorJob, dtype: torch.dtype = torch.float32) -> Tensor:
        data = self.bytes[job.name]
        return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)


def seeded(numel: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    rng = np.random.default_rng([seed, numel])
    return torch.from_numpy(rng.standard_normal(numel).astype(np.float32)).to(dtype)


def make_job(
    store: Store,
    name: str,
    numel: int,
    method: str | Method | None = "linear",
    *,
    dtype: torch.dtype = torch.float32,
    tensors: Sequence[Tensor] | None = None,
) -> TensorJob:
    """A job whose inputs, if not given, are random."""
    known = METHODS[method] if isinstance(method, str) else method
    delta = method in ("task_arithmetic", "ties")
    count = len(tensors) if tensors else NUM_MODELS.get(str(method), 1) + delta
    inputs = tuple(Input(i, name) for i in range(count))
    for i, key in enumerate(inputs):
        store.tensors[key] = tensors[i] if tensors else seeded(numel, i, dtype)
    values = VALUES.get(str(method), {})
    values = {
        k: (v + (1.0,) * len(inputs))[: len(inputs) - delta] if isinstance(v, tuple) else v
        for k, v in values.items()
    }
    return TensorJob(
        name=name,
        dtype=BY_TORCH_NAME[str(dtype).removeprefix("torch.")].name,
        shape=(numel,),
        method=known,
        values=values,
        inputs=inputs[1:] if delta else inputs,
        base=inputs[0] if delta else None,
        file=0,
        offset=0,
    )


def runs(
    jobs: Iterable[TensorJob], store: Any, sink: Any, tile: int = CHUNK, *, allow_nonfinite: bool = False
) -> Iterator[TensorRun]:
    return (
        TensorRun(job, store, sink, tile=tile, span=tile, allow_nonfinite=allow_nonfinite) for job in jobs
    )


def carry_out(
    jobs: Iterable[TensorJob],
    store: Any,
    sink: Any,
    *,
    threads: int = 2,
    tile: int = CHUNK,
    allow_nonfinite: bool = False,
    **more: Any,
) -> None:
    """Run the jobs; a deadlock is a failure, and no worker may outlive the run."""
    tensors = runs(jobs, store, sink, tile, allow_nonfinite=allow_nonfinite)
    try:
        within(DEADLINE, lambda: run(tensors, threads=threads, **more))
    finally:
        assert not workers(), "workers outlive the run"


def workers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("tile-") and t.is_alive()]


def every_kind(store: Store, sizes: Iterable[int] = SIZES) -> list[TensorJob]:
    """Each method and a copy, for each size."""
    return [
        make_job(store, f"{method or 'copy'}.{numel}", numel, method)
        for numel in sizes
        for method in (*VALUES, None)
    ]


# What comes out


@pytest.mark.parametrize("tile", [CHUNK, 2 * CHUNK])
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_every_byte_is_written_once_and_then_finished(threads: int, tile: int) -> None:
    store, sink = Store(), Memory()
    jobs = every_kind(store)
    carry_out(jobs, store, sink, threads=threads, tile=tile)
    assert sorted(sink.finished) == sorted(job.name for job in jobs)
    alone = Memory()
    carry_out(jobs, store, alone, threads=1, tile=CHUNK)
    assert sink.bytes == alone.bytes


def test_one_thread_finishes_each_tensor_once() -> None:
    store, sink = Store(), Memory()
    jobs = every_kind(store)
    carry_out(jobs, store, sink, threads=1)
    assert sorted(sink.finished) == sorted(job.name for job in jobs)


def test_nothing_to_do() -> None:
    carry_out([], Store(), Memory(), threads=3)


@pytest.mark.parametrize("method", [*VALUES, None])
@pytest.mark.parametrize("threads", [1, 3])
def test_empty_tensors_are_finished(method: str | None, threads: int) -> None:
    store, sink = Store(), Memory()
    jobs = [make_job(store, f"empty.{i}", 0, method) for i in range(10)]
    carry_out(jobs, store, sink, threads=threads)
    assert sorted(sink.finished) == sorted(job.name for job in jobs)
    assert not any(sink.bytes.values())


def test_many_tiny_tensors() -> None:
    store, sink = Store(), Memory()
    jobs = [
        make_job(store, f"{i}", i % 5, method)
        for i, method in zip(range(900), [*VALUES, None] * 150, strict=True)
    ]
    carry_out(jobs, store, sink, threads=4)
    assert len(sink.finished) == len(jobs)


def test_copies_are_bytes() -> None:
    """Without a method nothing is changed: NaN with its payload, infinities, negative zeros."""
    store, sink = Store(), Memory()
    bits = np.random.default_rng(0).integers(0, 2**32, 2 * CHUNK + 3, np.uint32)
    x = torch.from_numpy(bits.view(np.float32))
    carry_out([make_job(store, "x", len(x), None, tensors=[x])], store, sink, allow_nonfinite=True)
    assert sink.bytes["x"] == bits.tobytes()
    assert sink.nonfinite == {"x"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2], ids=str)
def test_copies_are_looked_at(dtype: torch.dtype) -> None:
    """NaN is refused; infinities, of which masks are made, are let through and told."""
    x = seeded(2 * CHUNK + 3, 0).to(dtype)
    for value, place in ((float("inf"), CHUNK), (float("nan"), 2 * CHUNK + 1)):
        x[place] = value
        store, sink = Store(), Memory()
        job = make_job(store, "x", len(x), None, dtype=dtype, tensors=[x])
        if value == float("inf"):
            carry_out([job], store, sink)
            assert sink.nonfinite == {"x"}
        else:
            with pytest.raises(RunError, match=rf"'x' of 'model 0' has the value nan at element {place:,}\n"):
                carry_out([job], store, sink)
    clean, sink = Store(), Memory()
    carry_out([make_job(clean, "x", 9, None, dtype=dtype, tensors=[seeded(9, 1).to(dtype)])], clean, sink)
    assert not sink.nonfinite


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("written", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_copies_to_another_dtype_are_cast(stored: torch.dtype, written: torch.dtype) -> None:
    store, sink = Store(), Memory()
    x = seeded(CHUNK + 9, 1, stored)
    job = make_job(store, "x", len(x), None, dtype=written, tensors=[x])
    carry_out([job], store, sink)
    assert torch.equal(sink.tensor(job, written), x.to(written))


def test_inputs_of_different_dtypes() -> None:
    store, sink = Store(), Memory()
    n = CHUNK + 9
    tensors = [seeded(n, 0, torch.bfloat16), seeded(n, 1, torch.float16), seeded(n, 2)]
    job = make_job(store, "x", n, "linear", dtype=torch.bfloat16, tensors=tensors)
    carry_out([job], store, sink)
    want = sum(w * t.double() for w, t in zip((0.25, 0.5, 1.0), tensors, strict=True)) / 1.75
    torch.testing.assert_close(sink.tensor(job, torch.bfloat16).double(), want, rtol=2**-8, atol=1e-7)


def test_several_passes_with_several_threads() -> None:
    """A sample, the thresholds, the L1 ratios, the merge: the same with any number of threads and tiles."""
    store = Store()
    jobs = [make_job(store, f"x.{i}", (9 + i) * CHUNK + 17, "ties") for i in range(2)]
    results = []
    for threads, tile in ((1, CHUNK), (4, CHUNK), (3, 2 * CHUNK), (2, 16 * CHUNK)):
        sink = Memory()
        carry_out(jobs, store, sink, threads=threads, tile=tile)
        results.append(sink.bytes)
    assert all(result == results[0] for result in results)


def test_partial_results_are_absorbed_one_at_a_time() -> None:
    """While other threads measure: a statistic needs no lock of its own."""
    inside: list[int] = []
    most: list[int] = []

    class Watched(Gram):
        def absorb(self, partial: Any) -> None:
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.002)
            inside.pop()
            super().absorb(partial)

    method = Measured(
        name="watched",
        function=lambda x, _: x[0],
        measure=lambda whole: Watched(whole.num_models, whole.numel),
    )
    store, sink = Store(), Memory()
    carry_out([make_job(store, "x", 12 * CHUNK, method)], store, sink, threads=4)
    assert len(most) == 12
    assert max(most) == 1


def test_tensors_are_opened_as_they_are_needed() -> None:
    """Not all at the beginning: few are open at once."""
    store, sink = Store(), Memory()
    jobs = [make_job(store, f"{i}", 3 * CHUNK, "linear") for i in range(20)]
    ahead = []

    def opening() -> Iterator[TensorJob]:
        for number, job in enumerate(jobs):
            ahead.append(number - len(sink.finished))
            yield job

    carry_out(opening(), store, sink, threads=2)
    assert max(ahead) <= 3


def test_two_runs_at_once_do_not_disturb_each_other() -> None:
    store, sinks = Store(), [Memory(), Memory()]
    jobs = every_kind(store)
    others = [
        threading.Thread(
            target=run,
            args=(runs(jobs, store, sink),),
        )
        for sink in sinks
    ]
    for thread in others:
        thread.start()
    for thread in others:
        thread.join(DEADLINE)
    assert sinks[0].bytes == sinks[1].bytes
    assert all(len(sink.finished) == len(jobs) for sink in sinks)


def test_overlapping_runs_give_torch_its_threads_back() -> None:
    """The one that begins second ends last."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first_may_end, second_began, second_may_end = (threading.Event() for _ in range(3))

        class Held(Memory):
            def __init__(self, until: threading.Event, began: threading.Event) -> None:
                super().__init__()
                self.until, self.began = until, began

            def finish(self, job: TensorJob) -> None:
                self.began.set()
                self.until.wait(DEADLINE)
                super().finish(job)

        store = Store()
        job = make_job(store, "x", 5)
        first_began = threading.Event()
        held = [Held(first_may_end, first_began), Held(second_may_end, second_began)]
        threads = [
            threading.Thread(
                target=run,
                args=(runs([job], store, sink),),
            )
            for sink in held
        ]
        for thread, began in zip(threads, (first_began, second_began), strict=True):
            thread.start()
            assert began.wait(DEADLINE)
        for thread, may_end in zip(threads, (first_may_end, second_may_end), strict=True):
            may_end.set()
            thread.join(DEADLINE)
        seen = [torch.get_num_threads()]
        new = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        new.start()
        new.join()
        assert seen == [2, 2]
    finally:
        torch.set_num_threads(before)


def test_default_threads() -> None:
    assert default_threads() >= 1


# Values that cannot be written


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("method", ["linear", "slerp", "task_arithmetic", "ties", "passthrough"])
@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (torch.float16, 1e6),
        (torch.float16, -1e6),
        (torch.bfloat16, torch.nan),
        (torch.float32, torch.nan),
        (torch.float32, torch.inf),
        (torch.float32, -torch.inf),
    ],
)
def test_values_that_do_not_fit_name_the_tensor(
    dtype: torch.dtype, value: float, method: str, threads: int
) -> None:
    store, sink = Store(), Memory()
    good = [make_job(store, f"good.{i}", 100, method) for i in range(3)]
    bad = make_job(store, "layers.7.weight", 2 * CHUNK + 5, method, dtype=dtype)
    last = store.tensors[bad.inputs[-1]] = store.tensors[bad.inputs[-1]].float()
    last[CHUNK + 3] = value
    with pytest.raises(RunError) as caught:
        carry_out([*good, bad], store, sink, threads=threads)
    assert "tensor 'layers.7.weight' of" in caught.value.message
    if isfinite(value):
        name = str(dtype).removeprefix("torch.")
        assert f"which {name} cannot hold" in caught.value.message
    else:
        assert f"has the value {value} at element {CHUNK + 3:,}" in caught.value.message
    assert caught.value.hint
    assert bad.name not in sink.finished


@pytest.mark.parametrize("method", ["linear", "slerp", "task_arithmetic", "ties"])
def test_infinities_of_both_signs_are_no_other_error(method: str) -> None:
    """Sums over the whole tensor meet them before anything is written."""
    store, sink = Store(), Memory()
    job = make_job(store, "x", 3 * CHUNK, method)
    last = store.tensors[job.inputs[-1]]
    last[0], last[2 * CHUNK] = torch.inf, -torch.inf
    for key in job.inputs[:-1]:
        store.tensors[key].abs_()
    with pytest.raises(RunError, match=r"tensor 'x' of 'model .' has the value inf at element 0"):
        carry_out([job], store, sink, threads=1)


def test_error_says_where_and_what() -> None:
    store, sink = Store(), Memory()
    x = torch.zeros(3 * CHUNK)
    x[2 * CHUNK + 1] = 70000
    x[2 * CHUNK + 2] = -2
    job = make_job(store, "x", len(x), "passthrough", dtype=torch.float16, tensors=[x])
    with pytest.raises(RunError) as caught:
        carry_out([replace(job, values={"scale": (2.0,)})], store, sink)
    assert str(caught.value) == (
        "tensor 'x' of the output has values from -4 to 140000 near element 131,072, "
        "which float16 cannot hold (it ends at 65504)\n"
        "  choose a wider dtype such as bfloat16 or float32"
    )


# Errors


class Broken(Exception):
    """What the tests raise."""


def fails(number: int, counter: list[int]) -> Callable[..., Tensor]:
    """A method that raises in its `number`-th tile."""
    lock = threading.Lock()

    def function(x: Tensor) -> Tensor:
        with lock:
            counter.append(len(counter))
            if len(counter) == number:
                raise Broken(f"tile {number}")
        time.sleep(0.001)
        return x[0]

    return function


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("number", [1, 2, 7])
def test_an_error_in_one_tile_stops_all(number: int, threads: int) -> None:
    store, sink, tiles = Store(), Memory(), list[int]()
    method = Elementwise(name="fails", function=fails(number, tiles))
    jobs = [make_job(store, f"{i}", 2 * CHUNK + 1, method) for i in range(50)]
    with pytest.raises(RunError, match=f"fails failed on tensor '.*': Broken: tile {number}"):
        carry_out(jobs, store, sink, threads=threads)
    # Those in hand are completed, and nothing is begun.
    assert len(tiles) < number + 2 * threads
    done = len(tiles), len(sink.finished)
    time.sleep(0.02)
    assert done == (len(tiles), len(sink.finished))


@pytest.mark.parametrize("threads", [1, 4])
def test_the_first_of_many_errors_is_raised(threads: int) -> None:
    store = Store()
    raised: list[Broken] = []
    lock = threading.Lock()

    def function(x: Tensor) -> Tensor:
        del x
        with lock:
            raised.append(Broken(str(len(raised))))
            raise raised[-1]

    method = Elementwise(name="fails", function=function)
    jobs = [make_job(store, f"{i}", 2 * CHUNK, method) for i in range(50)]
    with pytest.raises(RunError) as caught:
        carry_out(jobs, store, Memory(), threads=threads)
    assert caught.value.__cause__ in raised
    assert len(raised) <= threads


class BrokenStatistic(Gram):
    """Raises at one of its steps."""

    step = ""

    def _reach(self, step: str) -> None:
        if self.step == step:
            raise Broken(step)

    def ranges(self) -> Any:
        if self._done:
            self._reach("second ranges")
        return super().ranges()

    def update(self, x: Any, start: int) -> Any:
        if start:
            self._reach("update")
        return super().update(x, start)

    def absorb(self, partial: Any) -> None:
        self._reach("absorb")
        super().absorb(partial)

    def finish_pass(self) -> None:
        self._reach("finish_pass")
        super().finish_pass()

    @property
    def result(self) -> Any:
        if self._done:  # a type check may look at it at any time
            self._reach("result")
        return super().result


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("step", ["update", "absorb", "finish_pass", "second ranges", "result"])
def test_an_error_in_a_statistic_stops_all(step: str, threads: int) -> None:
    store, sink = Store(), Memory()

    def measure(whole: Whole) -> BrokenStatistic:
        statistic = BrokenStatistic(whole.num_models, whole.numel)
        statistic.step = step
        return statistic

    method = Measured(name="fails", function=lambda x, _: x[0], measure=measure)
    jobs = [make_job(store, f"{i}", 3 * CHUNK, method) for i in range(20)]
    with pytest.raises(RunError, match=f"fails failed on tensor .*: Broken: {step}"):
        carry_out(jobs, store, sink, threads=threads)
    assert not sink.finished


def test_a_result_of_another_shape_is_an_error() -> None:
    store = Store()
    method = Elementwise(name="short", function=lambda x: x[0][1:])
    with pytest.raises(RunError, match="short failed on tensor 'w'"):
        carry_out([make_job(store, "w", 5, method)], store, Memory(), threads=1)


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("step", ["open", "read", "write", "finish", "job"])
def test_an_error_around_the_arithmetic_stops_all(step: str, threads: int) -> None:
    """Opening and reading an input, writing, finishing; and while the jobs are made."""

    class BrokenSource(Values32):
        def read(self, start: int, stop: int, out: Tensor, scratch: Scratch) -> None:
            if step == "read" and start:
                raise Broken(step)
            super().read(start, stop, out, scratch)

    class BrokenStore(Store):
        def open(self, tensor: Input) -> Values32:
            if step == "open" and tensor.tensor == "5":
                raise Broken(step)
            return BrokenSource(self.tensors[tensor])

    class BrokenSink(Memory):
        def write(self, job: TensorJob, start: int, data: memoryview) -> None:
            if step == "write" and start:
                raise Broken(step)
            super().write(job, start, data)

        def finish(self, job: TensorJob) -> None:
            if step == "finish" and job.name == "5":
                raise Broken(step)
            super().finish(job)

    store, sink = BrokenStore(), BrokenSink()
    jobs = [make_job(store, f"{i}", 3 * CHUNK, "ties") for i in range(10)]

    def made() -> Iterator[TensorJob]:
        yield from jobs[:5]
        if step == "job":
            raise Broken(step)
        yield from jobs[5:]

    with pytest.raises(Broken, match=step):
        carry_out(made(), store, sink, threads=threads)
    assert len(sink.finished) < 10


def test_threads_of_torch_are_given_back() -> None:
    before = torch.get_num_threads()
    store = Store()
    method = Elementwise(name="fails", function=fails(1, []))
    with pytest.raises(RunError):
        run(runs([make_job(store, "x", 5, method)], store, Memory()))
    assert torch.get_num_threads() == before


def test_an_interrupt_while_waiting_stops_all() -> None:
    """Ctrl-C reaches the thread that waits: the workers end, the rest is not begun."""
    store, tiles = Store(), list[int]()
    method = Elementwise(name="slow", function=fails(-1, tiles))
    jobs = [make_job(store, f"{i}", 10, method) for i in range(5000)]

    def interrupt(progress: Progress) -> None:
        del progress
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carry_out(jobs, store, Memory(), threads=2, progress=interrupt, interval=0.01)
    assert len(tiles) < 5000


# Progress


def test_progress_counts_every_pass() -> None:
    store, sink = Store(), Memory()
    n = 3 * CHUNK
    jobs = [make_job(store, "linear", n), make_job(store, "slerp", n, "slerp"), make_job(store, "empty", 0)]
    seen: list[int] = []
    carry_out(jobs, store, sink, progress=lambda p: seen.append(p.elements), interval=0.001)
    assert seen == sorted(seen)
    assert seen[-1] == 3 * n


def test_progress_is_told_when_there_was_nothing_to_do() -> None:
    seen: list[int] = []
    carry_out([], Store(), Memory(), progress=lambda p: seen.append(p.elements))
    assert seen
    assert set(seen) == {0}


def test_progress_is_told_at_the_end() -> None:
    """Also if the workers end while it is being told something earlier."""
    store, sink = Store(), Memory()
    go_on = threading.Event()
    seen: list[int] = []

    class Held(Memory):
        def write(self, job: TensorJob, start: int, data: memoryview) -> None:
            go_on.wait(DEADLINE)
            super().write(job, start, data)

    def progress(now: Progress) -> None:
        seen.append(now.elements)
        go_on.set()
        deadline = time.monotonic() + DEADLINE
        while workers() and time.monotonic() < deadline:
            time.sleep(0.001)

    sink = Held()
    carry_out([make_job(store, "x", 5)], store, sink, progress=progress, interval=0.01)
    assert seen[-1] == 5


# Races


@pytest.mark.parametrize("repeat", range(3))
def test_two_hundred_tensors_on_four_threads(repeat: int) -> None:
    """All methods and sizes mixed, more threads than a tensor has tiles; the bits are those of one thread."""
    rng = np.random.default_rng(repeat)
    store = Store()
    kinds = [*VALUES, None, "ties", "slerp"]
    jobs = [
        make_job(
            store,
            f"{i}",
            int(rng.choice([1, 3, 200, 5000, CHUNK, 2 * CHUNK + 1], p=[0.2, 0.2, 0.2, 0.2, 0.1, 0.1])),
            kinds[i % 8],
        )
        for i in range(200)
    ]
    many, one = Memory(), Memory()
    carry_out(jobs, store, many, threads=4)
    carry_out(jobs, store, one, threads=1)
    assert sorted(many.finished) == sorted(one.finished) == sorted(job.name for job in jobs)
    assert many.bytes == one.bytes
    for job in jobs:
        assert all(map(math.isfinite, many.tensor(job)[:3].tolist()))


def test_threads_that_change_places_at_every_instruction() -> None:
    """Python switches threads a thousand times more often than usual."""
    store = Store()
    jobs = every_kind(store, (0, 1, 9, CHUNK + 1))
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(5):
            sink = Memory()
            carry_out(jobs, store, sink, threads=8)
            assert sorted(sink.finished) == sorted(job.name for job in jobs)
    finally:
        sys.setswitchinterval(before)
