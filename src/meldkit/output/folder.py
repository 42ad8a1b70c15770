"""The output folder as a transaction: nothing in it looks like a model until all of it is there.

    OUT/.meldkit-partial/             weight files being filled, and
    OUT/.meldkit-partial/journal      what has been done, see `meldkit.output.journal`

A model that is replaced stays until then, see `meldkit.output.replace`.
The journal gets a tensor's name only after the tensor's bytes have been synced, so that it can be
believed whatever happened. The same plan continues where the journal ends; another plan starts over. What
the disk lost or changed meanwhile is told by the sums of tensors, and made again.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from threading import Event, Lock, Thread

from meldkit.errors import CheckpointError, OutputError, RunError
from meldkit.output.failures import AGAIN, failures
from meldkit.output.inputs import check_apart, identity, stamps
from meldkit.output.journal import Entries, Journal, read_journal
from meldkit.output.names import describes_model
from meldkit.output.own import check_links, check_own
from meldkit.output.replace import (
    JOURNAL,
    aside,
    exchanged,
    finish,
    remove,
    replace_model,
    replaced,
    sync_path,
    take_back,
)
from meldkit.output.space import check_space, lacking
from meldkit.output.sums import Sum, Sums, intact
from meldkit.output.verify import Verification, check_weights, verify
from meldkit.output.weight_file import WeightFile
from meldkit.paths import PARTIAL
from meldkit.plan import OutputFile, Plan, TensorJob

#: Seconds between syncs. Writing back while computing leaves little to wait for at the end.
_SYNC_INTERVAL = 0.5
#: Files synced at the same time.
_SYNCS = 8


def check_free(path: Path, *, overwrite: bool = False) -> None:
    """Check that a folder may be written to; touches nothing.

    Args:
        path: the folder; it need not exist.
        overwrite: whether what is in it may be replaced.

    Raises:
        OutputError: it is a file, cannot be reached, or holds something else than an unfinished merge;
            or what lies where our own folders would be is not ours.
    """
    try:
        check_links(path)
        if path.exists() and not path.is_dir():
            raise OutputError(f"{path} is a file", hint="name a folder")
        check_own(path)
        names = sorted(p.name for p in path.iterdir()) if path.exists() else []
    except OSError as e:
        raise OutputError(f"cannot use {path} as output folder: {e.strerror}") from e
    # Files that an interrupted merge has already moved to their places are its own.
    moved = read_journal(path / PARTIAL / JOURNAL).publish
    waiting = [path / PARTIAL, aside(path)] if moved else []
    own = {PARTIAL, *(name for name in moved if not any((folder / name).exists() for folder in waiting))}
    others = [name for name in names if name not in own]
    if others and not overwrite:
        raise OutputError(
            f"{path} is not empty: it has {', '.join(others[:3])}{' …' * (len(others) > 3)}",
            hint="name a new folder, or add --overwrite to replace what is there",
        )


class OutputFolder:
    """Takes merged tensors into weight files; a `Sink` of the engine.

    Args:
        path: the folder to fill; created if absent.
        plan: what will be written.
        overwrite: replace a model that is already there.

    Attributes:
        path, partial: the folder, and where everything is until it is complete.
        sums: must observe everything that is made.
        finished: names of the tensors that an interrupted run has left whole.
        num_damaged: how many it has left whose bytes are not what they were.
        nonfinite: names of tensors that hold NaN or Inf.
        discarded: whether finished tensors for another plan were thrown away.

    Raises:
        OutputError: the folder holds something else, is part of an input, or cannot be written.
        RunError: not enough space on the disk.
    """

    def __init__(self, path: Path, plan: Plan, *, overwrite: bool = False) -> None:
        self.path = path
        self.partial = path / PARTIAL
        self._plan = plan
        check_free(path, overwrite=overwrite)
        check_apart(path, plan)
        self._stamps = stamps(plan)
        key = identity(plan, self._stamps)
        check_space({path: lacking(path, plan)})
        self.sums = Sums()
        self._unsynced: list[str] = []
        self._weights: list[WeightFile] = []
        self._lock = Lock()
        self._closing = Event()
        self._sync_error: OSError | RunError | None = None
        with ExitStack() as undo, failures(self.partial, usage=True):
            self._journal = Journal(self.partial / JOURNAL, path)
            undo.callback(self._close_files)
            undo.callback(self._leave)
            # Another merge may have finished meanwhile.
            check_free(path, overwrite=overwrite)
            self._recover(key)
            entries, self.discarded = self._resume(key, overwrite)
            #: Of what is stored of each finished tensor, of this run or another.
            self._finished = intact(self.partial, plan, entries.done)
            self.finished = frozenset(self._finished)
            self.num_damaged = len(entries.done) - len(self.finished)
            self.nonfinite = set(entries.nonfinite)
            for file in plan.files:
                self._weights.append(self._open_file(file))
            undo.pop_all()
        self._syncer = Thread(target=self._sync_regularly, name="sync", daemon=True)
        self._syncer.start()

    def _recover(self, key: str) -> None:
        """Finish, or undo, what an earlier run did beside the folder to replace a model."""
        if exchanged(self.path):
            earlier = Journal(aside(self.path) / PARTIAL / JOURNAL, self.path)
            try:
                entries = read_journal(earlier.path)
                finish(self.path, entries.publish)
                # The weights of the complete model are what is reused. They stay its own, too.
                for file in self._plan.files if entries.plan == key else ():
                    if not self._file(file).exists():
                        self._file(file).parent.mkdir(parents=True, exist_ok=True)
                        with suppress(OSError):  # then they are made again
                            self._file(file).hardlink_to(self.path / file.name)
                earlier.cut(entries.length)
                earlier.publish([])
                earlier.move(self._journal.path)
            except BaseException:
                earlier.close()
                raise
            self._journal.close()
            self._journal = earlier
        take_back(self.path)

    def _leave(self) -> None:
        """Remove a journal that was created for nothing, and its folder."""
        with suppress(OSError):
            if self._journal.in_place() and not self._journal.path.stat().st_size:
                self._journal.path.unlink()
                self.partial.rmdir()

    def _resume(self, key: str, overwrite: bool) -> tuple[Entries, bool]:
        """Take over what an earlier run has left, or clear it away: (what is kept, anything lost)."""
        entries = read_journal(self.partial / JOURNAL)
        usable = entries.plan == key
        if usable:
            self._take_back(entries)
            paths = [(self._file(f), f.size) for f in self._plan.files]
            usable = all(path.is_file() and path.stat().st_size == size for path, size in paths)
        elif not overwrite and any((self.path / name).exists() for name in entries.publish):
            raise OutputError(
                f"{self.path} holds a nearly finished merge of another recipe or other inputs",
                hint="run that one again to finish it, name a new folder, or add --overwrite",
            )
        if usable and entries.publish:
            # From here on, what is in the folder is not this merge's.
            self._journal.cut(entries.length)
            self._journal.publish([])
            entries = read_journal(self._journal.path)
        # Files beside the weights are written anew, as the options of this run say.
        kept = {JOURNAL, *(Path(file.name).parts[0] for file in self._plan.files if usable)}
        for path in self.partial.iterdir():
            if path.name not in kept:
                remove(path)
        if usable:
            self._journal.cut(entries.length)
            names = {job.name for job in self._plan.jobs}
            done = {name: sums for name, sums in entries.done.items() if name in names}
            return replace(entries, done=done, nonfinite=entries.nonfinite & names), False
        self._journal.restart(key)
        return Entries(), bool(entries.done)

    def _take_back(self, entries: Entries) -> None:
        """Undo the moves of a publication that was interrupted."""
        for name in entries.publish:
            if (self.path / name).exists() and not (self.partial / name).exists():
                (self.path / name).rename(self.partial / name)

    def _file(self, file: OutputFile) -> Path:
        return self.partial / file.name

    def _open_file(self, file: OutputFile) -> WeightFile:
        self._file(file).parent.mkdir(exist_ok=True, parents=True)
        weights = WeightFile(self._file(file), file.size)
        try:
            weights.write(0, memoryview(file.header))
        except OSError:
            weights.close()
            raise
        return weights

    def write(self, job: TensorJob, start: int, data: memoryview) -> None:
        """Take the bytes of a run of elements that begins at element `start`."""
        itemsize = job.nbytes // job.numel
        with failures(self.partial):
            if self._sync_error is not None:
                raise self._sync_error
            self._weights[job.file].write(job.offset + start * itemsize, data)

    def let_through(self, job: TensorJob) -> None:
        """The tensor holds NaN or Inf."""
        with self._lock:
            self.nonfinite.add(job.name)

    def finish(self, job: TensorJob) -> None:
        """All bytes of the tensor have been written; it enters the journal with the next sync."""
        with self._lock:
            self._finished[job.name] = self.sums.of_job(job)
            self._unsynced.append(job.name)

    def stored_sums(self) -> dict[str, Sum]:
        """The sums of all tensors that the weight files hold.

        Raises:
            RunError: not every one is finished.
        """
        self._check_complete()
        return {
            part.name: each
            for job in self._plan.jobs
            for part, each in zip(job.stored, self._finished[job.name], strict=True)
        }

    def _sync_regularly(self) -> None:
        while not self._closing.wait(_SYNC_INTERVAL):
            try:
                self._sync()
            except (OSError, RunError) as e:  # noqa: PERF203 - one every half second
                self._sync_error = e
                return

    def _sync(self) -> None:
        with self._lock:
            names, self._unsynced = self._unsynced, []
            nonfinite = self.nonfinite & set(names)
            sums = {name: tuple(map(str, self._finished[name])) for name in names}
        self._journal.check()
        if names:
            for weights in self._weights:
                weights.sync()
            self._journal.done(sums, nonfinite)

    def close(self) -> None:
        """Make what is finished durable and let go of the files; the partial work stays.

        Raises:
            RunError: the disk did not take it.
        """
        try:
            self.settle()
        finally:
            self._close_files()

    def settle(self) -> None:
        """Make what is finished durable; nothing more is written.

        Raises:
            RunError: the disk did not take it, or the folder is not there any more.
        """
        if self._closing.is_set():
            return
        self._closing.set()
        self._syncer.join()
        with failures(self.partial):
            if self._sync_error is not None:
                raise self._sync_error
            self._sync()

    def _close_files(self) -> None:
        while self._weights:
            self._weights.pop().close()
        self._journal.close()

    def publish(self) -> Verification:
        """Check that everything is there and right, and move it to its place, config.json last.

        Raises:
            RunError: a file is not what the plan says it should be, or cannot be moved.
            CheckpointError: an input is not what it was when the merge began.
        """
        try:
            verification = self.verify()
            with failures(self.path):
                self._move()
        finally:
            self._close_files()
        return verification

    def verify(self) -> Verification:
        """Check that everything is there and right; nothing more is written.

        Raises:
            RunError: a file is not what the plan says it should be.
            CheckpointError: an input is not what it was when the merge began.
        """
        self.settle()
        self.check_inputs()
        return self._verify()

    def check_inputs(self) -> None:
        """Refuse a model of which part may be made of one content of a file, and part of another."""
        for path, stamp in stamps(self._plan).items():
            if not stamp.same_bytes(self._stamps[path]):
                raise CheckpointError(
                    f"{path} changed while it was read", hint="run the same command again; it starts over"
                )

    def _move(self) -> None:
        new = sorted(p.name for p in self.partial.iterdir() if p.name != JOURNAL)
        # Together: each waits for the same commit of the file system's own journal.
        with ThreadPoolExecutor(_SYNCS) as pool:
            list(pool.map(sync_path, self.partial.rglob("*")))
        self._journal.publish(new)
        earlier = any(p.is_file() and describes_model(p.name) for p in self.path.iterdir())
        if earlier and replace_model(self.path, new):
            (aside(self.path) / PARTIAL / JOURNAL).unlink()
            take_back(self.path)
            return
        for old in replaced(self.path, new):
            remove(old)
        # A folder without config.json is not a model to any reader.
        for name in sorted(new, key=lambda n: n == "config.json"):
            source, target = self.partial / name, self.path / name
            if target.is_dir() or source.is_dir():
                remove(target)
            source.rename(target)
        sync_path(self.path)
        (self.partial / JOURNAL).unlink()
        self.partial.rmdir()

    def _check_complete(self) -> None:
        done = read_journal(self.partial / JOURNAL).done
        missing = [job.name for job in self._plan.jobs if job.name not in done]
        if missing:
            raise RunError(
                f"{len(missing)} tensors were not written, the first is '{missing[0]}'", hint=AGAIN
            )

    def _verify(self) -> Verification:
        self._check_complete()
        try:
            found = check_weights(self.partial, self._plan)
        except RunError:
            # Who knows what else was done to the files.
            self._journal.cut(0)
            raise
        return verify(self.partial, self._plan, found, self.nonfinite)
