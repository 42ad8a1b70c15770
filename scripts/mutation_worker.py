"""What runs tests on mutants for mutation.py, in a copy of the sources.

python mutation_worker.py measure OUT FILES TEST…    which tests run which lines of the files
python mutation_worker.py work MEASURED END TEST…    runs the mutants of jobs.json, writes done.jsonl
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import signal
import sys
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import coverage
import hypothesis
import pytest
from hypothesis import strategies as st

SOURCE = "src/meldkit/"
#: Tests that take longer are left out: mutants are many.
LONGEST = 5.0
#: Seconds of tests for one mutant, as measured; the rest is left out, which can only make more survive.
BUDGET = 60.0
KILLED, SURVIVED, TIMEOUT, UNFIT, BROKEN = 1, 0, -signal.SIGPROF, 4, 5
OUTCOMES = {KILLED: "killed", SURVIVED: "survived", TIMEOUT: "timed out"}
ARGUMENTS = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--assert=plain"]
ARGUMENTS += ["-W", "ignore::pytest.PytestAssertRewriteWarning", "-W", "ignore::pytest.PytestConfigWarning"]
#: Imported once, before anything forks.
HEAVY = ["torch", "safetensors.torch", "pydantic", "yaml", "rich.console", "rich.markdown", "huggingface_hub"]
HEAVY += ["tokenizers", "jinja2", "jaxtyping", "beartype", "numpy", "click", "jsonschema"]

Job = dict[str, Any]


class Measuring:
    """A pytest plugin: the lines that each test runs, and its time."""

    def __init__(self, files: Sequence[str]) -> None:
        self.files = files
        self.coverage = coverage.Coverage(include=files, data_file=None, config_file=False)
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []

    def pytest_collection_finish(self) -> None:
        """What is done on import counts for no test, also where the first test would do it."""
        for file in self.files:
            importlib.import_module(file.removeprefix("src/").removesuffix(".py").replace("/", "."))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Lines count for the test that runs."""
        began = time.monotonic()
        self.coverage.switch_context(item.nodeid)
        result = yield
        self.coverage.switch_context("")
        self.seconds[item.nodeid] = time.monotonic() - began
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Tests that fail without a mutant would kill every mutant."""
        if report.failed:
            self.failed.append(report.nodeid)


def measure(out: str, files: Sequence[str], tests: Sequence[str]) -> None:
    """Write test → seconds, and file → line → tests."""
    plugin = Measuring(files)
    plugin.coverage.start()
    status = pytest.main([*ARGUMENTS, f"--basetemp={out}.scratch", *tests], plugins=[plugin])
    plugin.coverage.stop()
    data = plugin.coverage.get_data()
    lines = {
        os.path.relpath(file): {
            n: [t for t in tests if t] for n, tests in data.contexts_by_lineno(file).items()
        }
        for file in data.measured_files()
    }
    if plugin.failed:
        sys.exit("these tests fail without a mutant:\n" + "\n".join(plugin.failed))
    if status or not plugin.seconds:
        sys.exit(f"{' '.join(tests)} cannot be run: pytest ended with {status}")
    Path(out).write_text(json.dumps({"seconds": plugin.seconds, "lines": lines}), "utf-8")


class Worker:
    """A pytest plugin: collects, and then runs mutants in place of the tests."""

    def __init__(self, end: float, first: str, jobs: Sequence[Job]) -> None:
        self.end = end
        self.first = first
        self.jobs = jobs
        self.seconds: dict[str, float] = {}
        #: File → line → tests that run it.
        self.lines: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        #: File → test → how many mutants it killed.
        self.deadly: dict[str, Counter[str]] = defaultdict(Counter)
        self.items: dict[str, pytest.Item] = {}
        self.unfit: list[Job] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self, session: pytest.Session) -> None:
        """Before anything of meldkit is imported: a child goes on, and what it cannot do is done here."""
        warm()
        pid = os.fork()
        if not pid:
            return
        if os.waitpid(pid, 0)[1]:
            sys.exit("the worker failed")
        unfit, deadly = json.loads(Path("unfit.json").read_text("utf-8"))
        self.deadly.update({file: Counter(found) for file, found in deadly.items()})
        for job in unfit:
            if time.time() > self.end:
                break
            tests = self.tests(job)
            self.judge(job, lambda tests=tests: self._afresh(session, tests))
        os._exit(0)

    def _afresh(self, session: pytest.Session, tests: Sequence[str]) -> int:
        """Collect and run; that there is nothing to collect any more is a failure, too."""
        if not tests:
            return SURVIVED
        files = dict.fromkeys(test.split("::")[0] for test in tests)
        Path(STARTED, "killer").write_text("import", "utf-8")
        try:
            items = {item.nodeid: item for item in session.perform_collect(list(files), genitems=True)}
            chosen = [items[test] for test in tests]
        except BaseException:  # noqa: BLE001 - whatever a mutant may raise when it is imported
            return KILLED
        Path(STARTED, "killer").unlink()
        return run(chosen, self.seconds)

    def pytest_runtestloop(self, session: pytest.Session) -> None:
        """Run the mutants that act when a function is called, in place of the tests."""
        status = 1
        try:
            self._in_functions({item.nodeid: item for item in session.items})
            Path("unfit.json").write_text(json.dumps([self.unfit, self.deadly]), "utf-8")
            status = 0
        except BaseException:  # noqa: BLE001 - a child, which pytest must not end in its own way
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(status)

    def _in_functions(self, items: dict[str, pytest.Item]) -> None:
        self.items = items
        functions: dict[tuple[str, str], list[FunctionType]] = defaultdict(list)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some objects of torch warn when they are looked at
            for f in gc.get_objects():
                if type(f) is FunctionType and "/src/meldkit/" in f.__code__.co_filename:
                    functions[os.path.relpath(f.__code__.co_filename), f.__qualname__].append(f)
        gc.freeze()
        for job in self.jobs:
            if time.time() > self.end:
                return
            path = SOURCE + job["file"]
            here = functions[path, job["function"]]
            self.judge(job, lambda job=job, here=here: self._in_place(job, here))

    def _in_place(self, job: Job, functions: Sequence[FunctionType]) -> int:
        codes = [c for q, c in _codes(compile(job["text"], job["file"], "exec")) if q == job["function"]]
        if not self._that_run(job) or not functions or not codes:
            return UNFIT
        for f in functions:
            same = [c for c in codes if c.co_firstlineno == f.__code__.co_firstlineno] or codes
            if len(same) != 1:
                return UNFIT
            try:
                f.__code__ = same[0]
            except ValueError:  # it closes over other variables than before
                return UNFIT
        return run([self.items[test] for test in self.tests(job)], self.seconds)

    def _that_run(self, job: Job) -> set[str]:
        """The tests that run the lines of a mutant; none if these are run on import."""
        lines = self.lines[SOURCE + job["file"]]
        first, last = job["lines"]
        return {t for n in range(first, last + 1) for t in lines[str(n)]} if job["function"] else set()

    def tests(self, job: Job) -> list[str]:
        """The tests for a mutant, the most promising first."""
        deadly = self.deadly[job["file"]]
        order = sorted(self._that_run(job), key=lambda t: (self.seconds[t] / (1 + deadly[t]), t))
        if not order:  # on import: those that look at declarations, those that run something of the file, all
            here = {t for tests in self.lines[SOURCE + job["file"]].values() for t in tests}
            order = sorted(
                self.seconds,
                key=lambda t: (-deadly[t], not t.startswith(self.first), t not in here, self.seconds[t], t),
            )
        total, kept = 0.0, list[str]()
        for test in order:
            if self.seconds[test] <= LONGEST and total + self.seconds[test] <= BUDGET:
                total += self.seconds[test]
                kept.append(test)
        return kept

    def judge(self, job: Job, child: Callable[[], int]) -> None:
        """Run a mutant in a child of its own, and note what became of it."""
        path = Path("src/meldkit", job["file"])
        original = path.read_text("utf-8")
        # Python takes a file of the same second and length for the same file.
        for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):
            compiled.unlink()
        path.write_text(job["text"], "utf-8")
        Path("killer").unlink(missing_ok=True)
        began = time.monotonic()
        status = in_child(child, 2 * BUDGET + 60)
        path.write_text(original, "utf-8")
        if status == BROKEN:
            raise RuntimeError(f"could not run the tests on {job['name']}")
        if status == UNFIT:
            self.unfit.append(job)
            return
        killer = Path("killer").read_text("utf-8") if Path("killer").exists() else ""
        self.deadly[job["file"]][killer] += status != SURVIVED
        result = {k: job[k] for k in ("name", "file", "mutant", "lines")}
        result |= {"outcome": OUTCOMES.get(status, "killed"), "killer": killer if status != SURVIVED else ""}
        result |= {"seconds": round(time.monotonic() - began, 2)}
        if status == SURVIVED:
            print(f"survived: {job['name']}", file=sys.__stderr__, flush=True)
        with Path("done.jsonl").open("a", encoding="utf-8") as file:
            print(json.dumps(result), file=file)


def _codes(code: CodeType, scope: str = "") -> Iterator[tuple[str, CodeType]]:
    """Code of functions outside of functions, by qualified names."""
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            name = f"{scope}{inner.co_name}"
            yield name, inner
            if not inner.co_flags & 2:  # CO_NEWLOCALS: a function's; a class body has none
                yield from _codes(inner, f"{name}.")


def in_child(function: Callable[[], int], limit: float) -> int:
    """The exit status of a forked child that calls this; it and what it started end with the limit."""
    pid = os.fork()
    if not pid:
        os.setsid()
        sink = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(sink, stream)
        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        # A loop that has lost its end may write, or grow.
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 28, 1 << 28))
        resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
        status = BROKEN
        try:
            status = function()
        finally:
            os._exit(status)
    end = time.monotonic() + limit
    status = TIMEOUT
    while True:
        done, wait = os.waitpid(pid, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(wait)
            break
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            break
        time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    return status


class Deadly:
    """A pytest plugin of children: the first failure ends it, and so does a test that does not."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Begin to count the time of processors; the signal's default ends the process."""
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        # The first of several tests may do what they all need.
        signal.setitimer(signal.ITIMER_PROF, 15 + 5 * self.seconds[nodeid])
        Path(STARTED, "killer").write_text(nodeid, "utf-8")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Enough is seen."""
        if report.failed:
            os._exit(KILLED)


STARTED = Path.cwd()


def run(items: Sequence[pytest.Item], seconds: dict[str, float]) -> int:
    """Run collected tests."""
    if items:
        items[0].config.pluginmanager.register(Deadly(seconds))
    for i, item in enumerate(items):
        following = items[i + 1] if i + 1 < len(items) else None
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
    return SURVIVED


def work(measured: Sequence[str], end: float, tests: Sequence[str]) -> None:
    """Run the mutants of jobs.json."""
    Path("done.jsonl").write_text("", "utf-8")
    worker = Worker(end, tests[0], json.loads(Path("jobs.json").read_text("utf-8")))
    for path in measured:
        found = json.loads(Path(path).read_text("utf-8"))
        worker.seconds |= found["seconds"]
        for file, lines in found["lines"].items():
            for line, names in lines.items():
                worker.lines[file][line] += names
    pytest.main([*ARGUMENTS, "--basetemp=scratch", *tests], plugins=[worker])
    sys.exit("pytest ended before the mutants")


@hypothesis.given(st.text(), st.floats(), st.data())
def warm(text: str, number: float, data: st.DataObject) -> None:
    """What hypothesis does once is done before anything forks."""
    del text, number, data


def main() -> None:
    """As in the head of this file."""
    for name in HEAVY:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    hypothesis.settings.register_profile(
        "mutation",
        derandomize=True,
        database=None,
        deadline=None,
        max_examples=25,
        phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
    )
    hypothesis.settings.load_profile("mutation")
    if sys.argv[1] == "measure":
        measure(sys.argv[2], json.loads(sys.argv[3]), sys.argv[4:])
    else:
        work(json.loads(sys.argv[2]), float(sys.argv[3]), sys.argv[4:])


if __name__ == "__main__":
    main()
