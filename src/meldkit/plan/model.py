"""What a plan consists of. Nothing in it is left to be decided."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meldkit.checkpoint import DTYPES, Checkpoint
from meldkit.layout.infer import DEPTH_KEYS
from meldkit.methods import Method, Noise, Values, Whole, source_of
from meldkit.plan.slots import Input, Slot
from meldkit.recipe import Recipe
from meldkit.vocab import ChatTemplates, OutputTokenizer

#: Raised whenever the same plan would give other bytes than before; older partial work is not reused.
NUMERIC_VERSION = 6


@dataclass(frozen=True, slots=True)
class TensorJob:
    """How one output tensor comes to be.

    Attributes:
        name: of the output tensor.
        dtype: of the output, safetensors spelling.
        shape: of the output and of every input.
        method: None copies the only input.
        values: the method's parameters; per-model ones have one entry per input.
        inputs: models to merge, in order.
        base: where task vectors start, for methods that use them.
        file: index into `Plan.files`.
        offset: first byte in that file.
        scales: the tensor that holds the scales of a quantised one, as a job without inputs of its own; the
            sizes of a block are the quotients of the last two sizes of both, without remainder.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    method: Method | None
    values: Values
    inputs: tuple[Input, ...]
    base: Input | None
    file: int
    offset: int
    scales: TensorJob | None = None

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the output tensor."""
        return self.numel * DTYPES[self.dtype].itemsize

    @property
    def stored(self) -> tuple[TensorJob, ...]:
        """What the weight files hold: the tensor, and its scales if it has any."""
        return (self,) if self.scales is None else (self, self.scales)

    @property
    def block(self) -> tuple[int, int]:
        """Height and width of what has a scale in common; of a tensor with scales."""
        assert self.scales is not None
        return self.shape[-2] // self.scales.shape[-2], self.shape[-1] // self.scales.shape[-1]

    @property
    def all_inputs(self) -> tuple[Input, ...]:
        """The inputs, after the base if there is one: the order in which they are read."""
        return self.inputs if self.base is None else (self.base, *self.inputs)

    @property
    def whole(self) -> Whole:
        """The tensor as the method may know it before a merge; its random numbers are not the merge's."""
        return Whole(len(self.inputs), self.shape, Noise(0, self.name))

    @property
    def num_passes(self) -> int:
        """How often the inputs are read, in the usual case."""
        if self.method is None:
            return 1
        measured = [
            self.method.statistic(self.whole, self.values),
            self.method.model_statistic(self.whole, self.values),
        ]
        return 1 + sum(statistic.passes for statistic in measured if statistic is not None)


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One weight file.

    Attributes:
        name: with that of the folder that it lies in, if it is one of a part.
        header: its bytes before the first tensor.
        size: in bytes.
        folder: with which names of its tensors begin, though not in the file itself: "2_Dense/".
    """

    name: str
    header: bytes
    size: int
    folder: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """The program that has made a plan, where that is not a merge.

    Attributes:
        name: of the command, such as "moe".
        text: what it was asked for, as YAML.
        summary: what it does, in a sentence.
        files: more files beside the weights: names and texts.
        made_with: what else the plan may depend on, such as versions.
    """

    name: str
    text: str
    summary: str
    files: Mapping[str, str] = field(default_factory=dict[str, str])
    made_with: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a merge will do.

    Attributes:
        recipe: what was asked for.
        method: the recipe's method.
        checkpoints: inputs, in the order in which the recipe names them.
        donor: index of the checkpoint that gives configuration, tokenizer and tensor order.
        jobs: one per output tensor, in the order of the output.
        slots: of the jobs, in the same order: what the recipe says about each.
        files: weight files; jobs tile them without holes.
        config: config.json of the output; None if the donor has none.
        tokenizer: of the output; None for the donor's as it is.
        templates: chat templates of the output; None for those that come with the tokenizer.
        ends: numbers of tokens that end a text besides those that the donor's settings name.
        notes: what is treated otherwise than by the method, in words.
        warnings: what the user should look at.
        seed: of random methods.
        tool: that has made the plan; None for a merge.
    """

    recipe: Recipe
    method: Method
    checkpoints: tuple[Checkpoint, ...]
    donor: int
    jobs: tuple[TensorJob, ...]
    slots: tuple[Slot, ...]
    files: tuple[OutputFile, ...]
    config: Mapping[str, Any] | None
    tokenizer: OutputTokenizer | None
    templates: ChatTemplates | None
    ends: tuple[int, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    seed: int
    tool: Tool | None = None

    @property
    def bytes_to_write(self) -> int:
        """Size of the weight files."""
        return sum(file.size for file in self.files)

    @property
    def bytes_to_read(self) -> int:
        """Bytes of stored tensors read, each pass counted; adapters not."""

        tensors = [checkpoint.tensors for checkpoint in self.checkpoints]
        passes = self.passes()
        return sum(
            num * sum(tensors[i.checkpoint][i.tensor].nbytes for i in job.all_inputs)
            for num, job in zip(passes, self.jobs, strict=True)
        )

    def passes(self) -> list[int]:
        """How often the inputs of each job are read, in the usual case."""
        # Jobs of equal values share them, see `SharedValues`.
        known: dict[tuple[int, int, tuple[int, ...]], int] = {}
        result: list[int] = []
        for job in self.jobs:
            key = (id(job.values), len(job.inputs), job.shape)
            if key not in known:
                known[key] = job.num_passes
            result.append(known[key])
        return result

    @property
    def to_download(self) -> Mapping[Path, int]:
        """Weight files that are not here yet but for their heads, with their sizes in bytes."""
        return {path: size for checkpoint in self.checkpoints for path, size in checkpoint.absent.items()}

    @property
    def num_parameters(self) -> int:
        """Elements of all output tensors; scales are none."""
        return sum(job.numel for job in self.jobs)

    @property
    def num_layers(self) -> int | None:
        """Depth of the output as its configuration tells it; None if it does not."""
        found = (value for key in DEPTH_KEYS if isinstance(value := (self.config or {}).get(key), int))
        return next(found, None)

    def digest(self) -> str:
        """Hex hash of all that decides the output's weights: two equal plans give equal bytes."""
        content: dict[str, Any] = {
            "numeric_version": NUMERIC_VERSION,
            "seed": self.seed,
            "checkpoints": [c.fingerprint for c in self.checkpoints],
            "files": [(f.name, f.size, hashlib.sha256(f.header).hexdigest()) for f in self.files],
            "jobs": [
                (
                    job.name,
                    job.method.name if job.method else None,
                    {k: job.values[k] for k in sorted(job.values)},
                    [(i.checkpoint, i.tensor) for i in job.all_inputs],
                    job.base is not None,
                    [(part.file, part.offset) for part in job.stored],
                )
                for job in self.jobs
            ],
        }
        methods = {job.method.name: job.method for job in self.jobs if job.method is not None}
        if sources := {name: source for name in sorted(methods) if (source := source_of(methods[name]))}:
            content["methods"] = sources
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()
