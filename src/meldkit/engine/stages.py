"""Stages: what a recipe gives, computed tile by tile when another reads it.

Nothing of it is stored. What a method measures of a tensor is measured when its first element is wanted, by
all threads that want some of it together; tiles are computed again for each pass of those who read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Condition, Lock, local
from typing import Any
from weakref import WeakValueDictionary

from meldkit.checkpoint import OpenFiles, Scratch, TensorInfo, TileSource
from meldkit.engine.buffers import TILE, Buffers
from meldkit.engine.ends import Nowhere, PlanInputs
from meldkit.engine.fused import FusedRun, fused_sources
from meldkit.engine.jobs import measure_model
from meldkit.engine.run import default_threads, run
from meldkit.engine.tensor_run import TensorRun
from meldkit.plan import Plan, Stage, TensorJob, stages_of
from meldkit.shapes import Float32, Tensor


@dataclass(frozen=True, slots=True)
class Computed:
    """How a tensor of a stage is read: it is computed.

    Attributes:
        plan: of the stage.
        job: that makes the tensor.
        files: that are read for it, except the first.
        digest: of the plan, which tells it from others.
    """

    plan: Plan = field(compare=False, repr=False)
    job: TensorJob = field(compare=False, repr=False)
    files: tuple[Path, ...] = field(compare=False)
    digest: str
    name: str

    def open(self, files: OpenFiles, info: TensorInfo) -> TileSource:
        del info
        return StageTensor(_running(files, self.plan, self.digest), self.job)


def as_stage(label: str, plan: Plan) -> Stage:
    """The result of a plan as a checkpoint.

    Args:
        label: what messages call it.
        plan: the plan.
    """
    donor = plan.checkpoints[plan.donor]
    digest = plan.digest()
    return Stage(
        label=label,
        folder=donor.folder,
        tensors={job.name: _info(plan, job, digest) for job in plan.jobs},
        config={key: value for key, value in (plan.config or {}).items() if key != "quantization_config"},
        tokenizer=donor.tokenizer,
        adapters=donor.adapters,
        fingerprint=digest,
        parts=donor.parts,
        notes=tuple(f"'{label}': {note}" for note in plan.notes),
        warnings=tuple(f"'{label}': {warning}" for warning in plan.warnings),
        absent=plan.to_download,
        gguf=donor.gguf,
        plan=plan,
    )


def _info(plan: Plan, job: TensorJob, digest: str) -> TensorInfo:
    infos = [plan.checkpoints[i.checkpoint][i.tensor] for i in job.all_inputs]
    if job.method is None and job.scales is None and infos[0].dtype == job.dtype:
        return replace(infos[0], name=job.name)  # nothing is to be computed
    files = list(dict.fromkeys(path for info in infos for path in info.files))
    # Nothing is rounded: 8-bit floats stand for what they would have been without.
    return TensorInfo(
        name=job.name,
        dtype=job.dtype if job.scales is None else "BF16",
        shape=job.shape,
        file=files[0],
        offset=0,
        nbytes=sum(info.nbytes for info in infos),
        encoding=Computed(plan, job, tuple(files[1:]), digest, job.name),
    )


def let_through(plan: Plan, files: OpenFiles) -> None:
    """Have the stages of a plan let NaN and Inf through, while these files are open."""
    for stage in stages_of(plan):
        _running(files, stage.plan, stage.plan.digest()).allow_nonfinite = True


def _running(files: OpenFiles, plan: Plan, digest: str) -> _Running:
    """The stage as it is while these files are open."""
    return files.kept(("stage", digest), lambda: _Running(plan, files))


class _Running:
    """What has been made of a stage so far."""

    def __init__(self, plan: Plan, files: OpenFiles) -> None:
        self.allow_nonfinite = False
        self.buffers = _Buffers()
        self._plan = plan
        self._inputs = PlanInputs(plan, files)
        # Of those that somebody is reading: what was measured of others is not needed any more.
        self._tensors = WeakValueDictionary[str, _Tensor]()
        self._lock = Lock()
        self._of_model: list[Any] = []

    def tensor(self, job: TensorJob) -> _Tensor:
        with self._lock:
            if not self._of_model:
                self._of_model.append(self._measure_model())
            made = self._tensors.get(job.name)
            if made is None:
                # Values are not rounded to the stage's type.
                unrounded = replace(job, dtype="F32", scales=None)
                sources = fused_sources(unrounded, self._inputs)
                options: Mapping[str, Any] = {
                    "seed": self._plan.seed,
                    "of_model": self._of_model[0],
                    "allow_nonfinite": self.allow_nonfinite,
                }
                self._tensors[job.name] = made = _Tensor(
                    FusedRun(sources, unrounded, self._inputs, Nowhere(), **options)
                    if sources
                    else TensorRun(unrounded, self._inputs, Nowhere(), **options)
                )
            return made

    def _measure_model(self) -> Any:
        def run_all(tensors: Any, *, with_torch: bool = True) -> None:
            run(tensors, threads=default_threads(), with_torch=with_torch)

        return measure_model(
            self._plan.jobs, self._inputs, run_all, seed=self._plan.seed, size_of=lambda _: TILE
        )


class _Buffers(local):
    """Of each thread: those of its tiles are in use while it reads a stage for them."""

    def __init__(self) -> None:
        self.own = Buffers()


class _Tensor:
    """A tensor of a stage, measured by all who want some of it."""

    def __init__(self, made: TensorRun) -> None:
        self._run = made
        self._changed = Condition()
        self._error: BaseException | None = None

    def measured(self, buffers: Buffers) -> TensorRun:
        """The tensor, once everything is known of it that its elements depend on."""
        made = self._run
        while not made.writing:
            with self._changed:
                if self._error is not None:
                    raise self._error
                if made.writing:
                    break
                if not made.spans:
                    self._changed.wait()
                    continue
                span = made.spans.popleft()
                made.outstanding += 1
            try:
                made.process(*span, buffers)
                with self._changed:
                    made.outstanding -= 1
                    if not made.spans and not made.outstanding:
                        made.advance()
                        self._changed.notify_all()
            except BaseException as e:  # others wait for this span
                with self._changed:
                    self._error = e
                    self._changed.notify_all()
                raise
        return made


class StageTensor:
    """The elements of a tensor of a stage."""

    def __init__(self, stage: _Running, job: TensorJob) -> None:
        self._stage = stage
        self._job = job
        self._tensor: _Tensor | None = None

    def read(self, start: int, stop: int, out: Float32[Tensor, " n"], scratch: Scratch) -> None:
        """Compute elements [start, stop), and put them into `out`."""
        del scratch
        buffers = self._stage.buffers.own
        if self._tensor is None:
            self._tensor = self._stage.tensor(self._job)
        self._tensor.measured(buffers).fill(start, stop, out, buffers)
