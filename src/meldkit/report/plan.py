"""What a plan would do, put together for people and programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from meldkit.engine import ON_CPU, Device, Memory, default_threads, memory_of, num_workers, work_of
from meldkit.plan import Plan, Stage, TensorJob, stages_of
from meldkit.plan.pieces import NOT_TOKENS
from meldkit.report.groups import group_tensors
from meldkit.report.probe import Probe, probe


@dataclass(frozen=True, slots=True)
class InputModel:
    """A model that takes part.

    Attributes:
        label: as the recipe names it.
        base: whether others are compared with it.
        donor: whether it gives configuration and tokenizer.
        num_adapters: laid over it.
        num_tensors: it has.
        num_bytes: of them, as they are stored; of a stage, of what is read to compute it once.
        dtypes: of their values, safetensors spelling.
        computed: whether it is a stage, which nobody stores.
    """

    label: str
    base: bool
    donor: bool
    num_adapters: int
    num_tensors: int
    num_bytes: int
    dtypes: tuple[str, ...]
    computed: bool


@dataclass(frozen=True, slots=True)
class Output:
    """What comes out.

    Attributes:
        num_parameters: elements of all tensors.
        num_tensors: tensors.
        num_layers: as the configuration counts them; None if it does not.
        vocabulary: rows of the token embedding; None if there is no such matrix.
        dtypes: elements by type, safetensors spelling.
        num_bytes: of the weight files.
        files: (name, bytes) of each weight file.
    """

    num_parameters: int
    num_tensors: int
    num_layers: int | None
    vocabulary: int | None
    dtypes: Mapping[str, int]
    num_bytes: int
    files: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Place:
    """An accelerator.

    Attributes:
        name: as PyTorch spells it.
        model: what its maker calls it.
    """

    name: str
    model: str


@dataclass(frozen=True, slots=True)
class Cost:
    """What the merge takes.

    Attributes:
        bytes_to_read: of the inputs, each pass counted; adapters not.
        bytes_to_write: of the weight files.
        bytes_to_download: of weight files that are not here yet.
        passes: how often an input is read at most, in the usual case.
        threads: worker threads.
        devices: accelerators that it is computed on; none for the CPU.
        memory: an estimate that is meant to be a little high.
        probe: measured here; None if nothing was.
        seconds: an estimate, if there was a probe.
    """

    bytes_to_read: int
    bytes_to_write: int
    bytes_to_download: int
    passes: int
    threads: int
    devices: tuple[Place, ...]
    memory: Memory
    probe: Probe | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Treatment:
    """How a group of tensors is treated.

    Attributes:
        stack: as in "model.layers.*"; "" outside of the stacks.
        leaf: the rest of their names, with * for the numbers of experts.
        num_blocks: how many blocks have it; 0 outside of the stacks.
        num_tensors: how many there are.
        num_parameters: elements of them.
        dtypes: of the output.
        num_merged: how many the method makes.
        copied_from: labels of the models that the others are copied from, and the blocks that are.
        values: of each parameter the distinct values, in the order of the tensors; tuples have one per model.
    """

    stack: str
    leaf: str
    num_blocks: int
    num_tensors: int
    num_parameters: int
    dtypes: tuple[str, ...]
    num_merged: int
    copied_from: Mapping[str, tuple[int, ...]]
    values: Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class StageSummary:
    """What the plan of a stage would do; as in `PlanSummary`."""

    plan: Plan
    models: tuple[InputModel, ...]
    treatments: tuple[Treatment, ...]

    def data(self) -> dict[str, Any]:
        """Everything as JSON has it."""
        labels = [model.label for model in self.models]
        return {
            "method": self.plan.method.name,
            "models": [asdict(model) for model in self.models],
            "treatments": [asdict(treatment) for treatment in self.treatments],
            "tensors": [_tensor(self.plan, labels, job) for job in self.plan.jobs],
        }


@dataclass(frozen=True, slots=True)
class PlanSummary:
    """A plan, its cost, and its tensors by stack and leaf; `plan` has all of it in detail.

    `stages` are what is computed for it, by name, in the order of the recipe.
    """

    plan: Plan
    stages: Mapping[str, StageSummary]
    models: tuple[InputModel, ...]
    output: Output
    cost: Cost
    treatments: tuple[Treatment, ...]

    def data(self) -> dict[str, Any]:
        """Everything as JSON has it."""
        plan = self.plan
        labels = [model.label for model in self.models]
        return {
            "method": plan.method.name,
            "summary": plan.method.summary,
            "stages": {name: stage.data() for name, stage in self.stages.items()},
            "models": [asdict(model) for model in self.models],
            "output": {
                **asdict(self.output),
                "files": [{"name": name, "num_bytes": size} for name, size in self.output.files],
            },
            "cost": {**asdict(self.cost), "peak_memory": self.cost.memory.peak},
            "treatments": [asdict(treatment) for treatment in self.treatments],
            "tensors": [_tensor(plan, labels, job) for job in plan.jobs],
            "notes": list(plan.notes),
            "warnings": list(plan.warnings),
            "seed": plan.seed,
            "digest": plan.digest(),
        }


def summarise_plan(
    plan: Plan, *, threads: int | None = None, devices: Sequence[Device] = ON_CPU
) -> PlanSummary:
    """Put together what a plan would do.

    Args:
        plan: what would be done.
        threads: worker threads; None for as many as a merge takes by itself.
        devices: that it would be computed on.
    """
    threads = num_workers(devices, threads, default_threads())
    return PlanSummary(
        plan=plan,
        stages={s.label: StageSummary(s.plan, _models(s.plan), _treatments(s.plan)) for s in stages_of(plan)},
        models=_models(plan),
        output=_output(plan),
        cost=_cost(plan, threads, devices),
        treatments=_treatments(plan),
    )


def with_time(summary: PlanSummary) -> PlanSummary:
    """The same with an estimate of the time it takes, for which this machine is measured for under a second.

    Reads some of the inputs, and writes a little to the current folder that is gone afterwards. Nothing is
    measured where inputs are not here, nor for accelerators.
    """
    plan, cost = summary.plan, summary.cost
    works = work_of(plan)
    measured = None if cost.bytes_to_download or cost.devices else probe(plan, works)
    if measured is None:
        return summary
    seconds = measured.estimate(plan, works, cost.threads, default_threads())
    return replace(summary, cost=replace(cost, probe=measured, seconds=seconds))


def _models(plan: Plan) -> tuple[InputModel, ...]:
    return tuple(_model(plan, index) for index in range(len(plan.checkpoints)))


def _model(plan: Plan, index: int) -> InputModel:
    checkpoint = plan.checkpoints[index]
    infos = checkpoint.tensors.values()
    return InputModel(
        label=checkpoint.label,
        base=checkpoint.label == str(plan.recipe.base_model),
        donor=index == plan.donor,
        num_adapters=len(checkpoint.adapters),
        num_tensors=len(checkpoint),
        num_bytes=sum(info.nbytes for info in infos),
        dtypes=tuple(dict.fromkeys(info.dtype for info in infos)),
        computed=isinstance(checkpoint, Stage),
    )


def _output(plan: Plan) -> Output:
    dtypes: Counter[str] = Counter()
    for job in plan.jobs:
        dtypes[job.dtype] += job.numel
    return Output(
        num_parameters=dtypes.total(),
        num_tensors=len(plan.jobs),
        num_layers=plan.num_layers,
        vocabulary=_vocabulary(plan),
        dtypes=dict(dtypes.most_common()),
        num_bytes=plan.bytes_to_write,
        files=tuple((file.name, file.size) for file in plan.files),
    )


def _vocabulary(plan: Plan) -> int | None:
    rows = [
        job.shape[0]
        for job, slot in zip(plan.jobs, plan.slots, strict=True)
        if slot.place.stack is None
        and len(job.shape) == 2
        and slot.place.role == "embedding"
        and not NOT_TOKENS.search(job.name)
    ]
    return max(rows, default=None)


def _cost(plan: Plan, threads: int, devices: Sequence[Device]) -> Cost:
    works = work_of(plan, threads, devices)
    memory = memory_of(plan, works, threads, devices)
    bytes_to_read = sum(work.bytes_to_read for work in works)
    for stage in stages_of(plan):
        own = work_of(stage.plan)
        bytes_to_read += sum(work.bytes_to_read // work.passes * (work.passes - 1) for work in own)
        # It is computed on the CPU, by the threads that read it, in room of its own.
        taken = memory_of(stage.plan, own, threads)
        memory = replace(
            memory, workers=memory.workers + taken.workers, statistics=memory.statistics + taken.statistics
        )
    return Cost(
        bytes_to_read=bytes_to_read,
        bytes_to_write=plan.bytes_to_write,
        bytes_to_download=sum(plan.to_download.values()),
        passes=max((work.passes for work in works), default=0),
        threads=threads,
        devices=tuple(Place(d.name, d.model) for d in devices if not d.in_memory),
        memory=memory,
        probe=None,
        seconds=None,
    )


def _treatments(plan: Plan) -> tuple[Treatment, ...]:
    found: list[Treatment] = []
    for group in group_tensors(plan):
        jobs = [plan.jobs[index] for index in group.members]
        merged = [job for job in jobs if job.method is not None]
        copies: dict[str, dict[int, None]] = {}
        for index, job in zip(group.members, jobs, strict=True):
            if job.method is None:
                blocks = copies.setdefault(plan.checkpoints[job.inputs[0].checkpoint].label, {})
                if (block := plan.slots[index].place.block) is not None:
                    blocks[block] = None
        found.append(
            Treatment(
                stack=group.stack,
                leaf=group.leaf,
                num_blocks=group.num_blocks,
                num_tensors=len(jobs),
                num_parameters=sum(job.numel for job in jobs),
                dtypes=tuple(dict.fromkeys(job.dtype for job in jobs)),
                num_merged=len(merged),
                copied_from={label: tuple(blocks) for label, blocks in copies.items()},
                values={
                    name: tuple(dict.fromkeys(job.values[name] for job in merged))
                    for name in (merged[0].values if merged else ())
                },
            )
        )
    return tuple(found)


def _tensor(plan: Plan, labels: Sequence[str], job: TensorJob) -> dict[str, Any]:
    inputs = [{"model": labels[i.checkpoint], "tensor": i.tensor} for i in job.inputs]
    base = job.base and {"model": labels[job.base.checkpoint], "tensor": job.base.tensor}
    return {
        "name": job.name,
        "dtype": job.dtype,
        "shape": list(job.shape),
        "file": plan.files[job.file].name,
        "method": job.method.name if job.method else None,
        "values": dict(job.values),
        "inputs": inputs,
        "base": base,
    }
