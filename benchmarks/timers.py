"""Runs a merge with timers around what it does, and writes down where the time went.

    python benchmarks/timers.py RESULT.json BEGUN RECIPE OUT

BEGUN is `time.perf_counter()` of whoever started this process. The timers are put around functions of meldkit
from here; the program itself knows nothing of them. Each counts the time of the processor that its thread
used, without that of timers inside it; the time of the clock divides the whole run into stretches.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any

RESULT, BEGUN = Path(sys.argv[1]), float(sys.argv[2])
#: Bytes that are read once more, to tell reading from the conversion that the same function does.
CALIBRATED_BYTES = 1 << 28
PIECE = 1 << 20


class Timers:
    """Processor time by label, over all threads."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()
        self._mine = threading.local()

    def around(self, function: Callable[..., Any], label: str) -> Callable[..., Any]:
        """The function, timed."""

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            inside: list[float] = self._mine.__dict__.setdefault("inside", [])
            inside.append(0.0)
            begin = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                took = time.thread_time() - begin
                own = took - inside.pop()
                if inside:
                    inside[-1] += took
                with self._lock:
                    self.seconds[label] += own

        return timed


class Marks:
    """When things happened first or last, in seconds from the start of the process; and processor time."""

    def __init__(self) -> None:
        self.at: dict[str, float] = {}
        self.cpu: dict[str, float] = {}

    def set(self, name: str) -> None:
        self.at[name] = time.perf_counter() - BEGUN
        self.cpu[name] = time.process_time()

    def before(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The function, which sets a mark when it is first called."""

        @wraps(function)
        def marked(*args: Any, **kwargs: Any) -> Any:
            if name not in self.at:
                self.set(name)
            return function(*args, **kwargs)

        return marked

    def after(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The function, which sets a mark when it has returned."""

        @wraps(function)
        def marked(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            self.set(name)
            return result

        return marked


def patch(owner: Any, name: str, around: Callable[[Callable[..., Any], str], Any], label: str) -> None:
    setattr(owner, name, around(getattr(owner, name), label))


def install(timers: Timers, marks: Marks) -> None:
    """Put timers around the parts of meldkit. A part that is not there any more is an AttributeError."""
    from meldkit import api
    from meldkit.checkpoint import OpenFiles
    from meldkit.engine import fused, jobs, tensor_run
    from meldkit.kernels import library
    from meldkit.output import OutputFolder, Sums

    timed, run = timers.around, import_module("meldkit.engine.run")  # a function has the same name
    for name in ("read_into", "read_floats", "read_bfloat16", "read_runs"):
        patch(OpenFiles, name, timed, "read")
    patch(tensor_run, "subtract_base", timed, "maths")
    for name in ("_merge", "_measure_tile", "advance"):
        patch(tensor_run.TensorRun, name, timed, "maths")
    for name in ("_measure_tile", "_make_tile"):
        patch(fused.FusedRun, name, timed, "maths")
    if library.FUNCTIONS is not None:
        patch(library.FUNCTIONS, "tile", timed, "loops")
    patch(jobs._Measuring, "process", timed, "maths")
    # Nothing else is left of these two when what they call is taken away.
    for name in ("_make_tile", "_write_in_blocks"):
        patch(tensor_run.TensorRun, name, timed, "downcast")
    for name in ("all_finite", "fits"):
        patch(tensor_run, name, timed, "check")
    patch(Sums, "__call__", timed, "check")
    for name in ("write", "_sync"):
        patch(OutputFolder, name, timed, "write")
    patch(run, "_work", timed, "python")
    patch(tensor_run, "read_tile", timed, "python")
    patch(jobs, "read_tile", timed, "python")

    for name in ("plan", "merge"):
        patch(api, name, marks.before, name)
    for runnable in (tensor_run.TensorRun, jobs._Measuring):
        patch(runnable, "process", marks.before, "first tile")
    patch(api, "_run", marks.after, "last tile")
    patch(OutputFolder, "publish", marks.after, "published")


def seconds_per_byte(path: Path) -> float:
    """Processor time of reading a file's bytes, and nothing else, mapped piece by piece as a merge does."""
    import numpy as np

    length = min(CALIBRATED_BYTES, path.stat().st_size)
    begin = time.thread_time()
    with path.open("rb") as file:
        for start in range(0, length, PIECE):
            piece = min(PIECE, length - start)
            with mmap.mmap(file.fileno(), piece, access=mmap.ACCESS_READ, offset=start) as mapped:
                numbers = np.frombuffer(mapped, np.uint8)
                numbers.max()
                del numbers  # what is looked at cannot be unmapped
    return (time.thread_time() - begin) / length


def main() -> None:
    # As meldkit's own main does before anything else.
    gc.disable()
    from meldkit.cli import main as meldkit
    from meldkit.cli.lazy import import_when_used

    import_when_used("torch")
    timers, marks = Timers(), Marks()
    install(timers, marks)
    bytes_read, files = 0, set[Path]()

    from meldkit.checkpoint import OpenFiles

    close = OpenFiles.close

    def closing(self: OpenFiles) -> None:
        nonlocal bytes_read
        bytes_read += self.bytes_read
        files.update(self._descriptors)
        close(self)

    OpenFiles.close = closing
    try:
        meldkit(["merge", *sys.argv[3:]])
    except SystemExit as stop:
        if stop.code:
            raise
    marks.set("left")
    largest = max(files, key=lambda path: path.stat().st_size)
    # Compiled loops read as they go, and convert: what is left of them is the method's.
    seconds, loops = timers.seconds, timers.seconds.pop("loops", 0.0)
    reading = min(bytes_read * seconds_per_byte(largest), seconds["read"] + loops)
    inside = max(0.0, reading - seconds["read"])
    seconds["upcast"] = max(0.0, seconds["read"] - reading)
    seconds["maths"] += loops - inside
    seconds["read"] = reading
    marks.set("calibrated")
    found = {"at": marks.at, "cpu": marks.cpu, "seconds": timers.seconds}
    RESULT.write_text(json.dumps({**found, "cores": len(os.sched_getaffinity(0)), "bytes_read": bytes_read}))


if __name__ == "__main__":
    main()
