"""Runs one program and says what it cost, and describes the machine it ran on. Linux only.

A child's ru_maxrss starts from the resident size of the process that spawned it (the kernel carries the mark
over exec), so whoever imports this module stays small: it never imports torch.
"""

from __future__ import annotations

import os
import platform
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MB = 1e6
SAMPLE_SECONDS = 0.05
LAST_LINES = 30  # of a failed program's output


class ProgramFailed(RuntimeError):
    """The measured program ended with a status other than zero; the message carries its last lines."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run of a program cost.

    `rss_mb` is the largest resident set of the program or of a child of it; pages of mapped files count.
    `anonymous_mb` is the largest part seen that belonged to no file (sampled; of the program itself).
    `sync_seconds` is how long os.sync() took afterwards: the writing that the program left to the kernel.
    `other_cores` is how many cores, on average, worked for anything else meanwhile: a measure of noise.
    """

    seconds: float
    rss_mb: float
    anonymous_mb: float
    cpu_seconds: float
    sync_seconds: float
    other_cores: float

    @property
    def durable_seconds(self) -> float:
        """Until the output was on the disk, out of reach of a power failure."""
        return self.seconds + self.sync_seconds


def busy_seconds() -> float:
    """Time that all cores together spent working (or were taken away by the hypervisor) since boot."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


class AnonymousMemory(threading.Thread):
    """Samples RssAnon of a process until it ends."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.status = Path(f"/proc/{pid}/status")
        self.ended = threading.Event()
        self.peak_mb = 0.0

    def run(self) -> None:
        while not self.ended.wait(SAMPLE_SECONDS):
            try:
                lines = self.status.read_text().splitlines()
            except (FileNotFoundError, ProcessLookupError):
                return
            for line in lines:
                if line.startswith("RssAnon:"):
                    self.peak_mb = max(self.peak_mb, int(line.split()[1]) * 1024 / MB)


def run(command: Sequence[str], env: Mapping[str, str]) -> Cost:
    """Run `command` to its end. Raises ProgramFailed with its output when it fails."""
    with tempfile.TemporaryFile() as output:
        busy = busy_seconds()
        begin = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # As users have it: modules that were compiled once are not compiled again.
            env={**os.environ, **env, "PYTHONDONTWRITEBYTECODE": ""},
        )
        memory = AnonymousMemory(process.pid)
        memory.start()
        try:
            _pid, status, usage = os.wait4(process.pid, 0)
        except KeyboardInterrupt:
            process.kill()
            raise
        seconds = time.perf_counter() - begin
        busy = busy_seconds() - busy
        process.returncode = os.waitstatus_to_exitcode(status)
        memory.ended.set()
        memory.join()
        if process.returncode != 0:
            output.seek(0)
            lines = output.read().decode(errors="replace").replace("\r", "\n").splitlines()
            last = "\n".join(f"    {line}" for line in lines[-LAST_LINES:])
            raise ProgramFailed(f"{' '.join(command)}\nended with status {process.returncode}:\n{last}")
    begin = time.perf_counter()
    os.sync()
    cpu_seconds = usage.ru_utime + usage.ru_stime
    return Cost(
        seconds=seconds,
        rss_mb=usage.ru_maxrss * 1024 / MB,
        anonymous_mb=memory.peak_mb,
        cpu_seconds=cpu_seconds,
        sync_seconds=time.perf_counter() - begin,
        other_cores=max(0.0, (busy - cpu_seconds) / seconds),
    )


def read_through(files: Sequence[Path]) -> None:
    """Read `files` once, so that they are in the page cache."""
    buffer = bytearray(1 << 22)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def forget(files: Sequence[Path]) -> None:
    """Take `files` out of the page cache, so that the next program has to read them from the disk.

    Only these: the programs themselves and their libraries stay, as on a machine that is in use.

    Raises:
        RuntimeError: the kernel kept more than a hundredth of one of them.
    """
    os.sync()  # what is still to be written cannot be dropped
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
        found = tool_version(["fincore", "--bytes", "--noheadings", "--output", "RES", str(path)])
        if int(found) > path.stat().st_size / 100:
            raise RuntimeError(f"{int(found) / MB:,.0f} MB of {path} stay in the page cache; who holds it?")


def first_value(path: str, key: str) -> str:
    """The value of the first `key : value` line of a /proc file."""
    for line in Path(path).read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return "unknown"


def disk(folder: Path) -> str:
    """The filesystem that holds `folder`, and the kind of device under it."""
    device = folder.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    filesystem, source = "unknown filesystem", "unknown device"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == number:
            filesystem, source = after.split()[:2]
    block = Path(f"/sys/dev/block/{number}")
    queues = [path for path in (block / "queue", block.resolve().parent / "queue") if path.exists()]
    if not queues:
        return f"{filesystem} on {source}"
    if Path(source).name.startswith(("vd", "xvd")):
        kind = "virtual disk"  # what a hypervisor says about rotation means nothing
    else:
        kind = "rotating disk" if (queues[0] / "rotational").read_text().strip() == "1" else "solid state"
    return f"{filesystem} on {source} ({kind})"


def tool_version(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()


def package_version(python: Path, package: str) -> str:
    return tool_version(
        [str(python), "-c", f"from importlib.metadata import version; print(version({package!r}))"]
    )


def machine(folder: Path) -> dict[str, str]:
    """What a reader needs to know about this machine to place the numbers."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "CPU": f"{first_value('/proc/cpuinfo', 'model name')}, {len(os.sched_getaffinity(0))} cores",
        "RAM": f"{memory_gib:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}",
        "disk": disk(folder),
        "cp and cat": tool_version(["cp", "--version"]),
        "Python": platform.python_version(),
    }
