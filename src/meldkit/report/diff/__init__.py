"""How the weights of models differ."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import cast

from meldkit.api import Status
from meldkit.checkpoint import Checkpoint, OpenFiles, TensorInfo, open_files, open_model
from meldkit.engine import Progress, default_threads, run
from meldkit.errors import RecipeError
from meldkit.recipe import ModelRef
from meldkit.report.diff.difference import Difference, Spectrum, TaskDifference, total
from meldkit.report.diff.findings import findings_of, number, share
from meldkit.report.diff.match import Match, match
from meldkit.report.diff.measure import Group, IntegerMeasurement, Measurement
from meldkit.report.diff.model import (
    ComparedModel,
    Finding,
    ModelComparison,
    Pair,
    PairKey,
    Relation,
    TensorDifference,
)
from meldkit.report.diff.thresholds import THRESHOLDS, Threshold, relation_of

__all__ = [
    "THRESHOLDS",
    "ComparedModel",
    "Difference",
    "Finding",
    "ModelComparison",
    "Pair",
    "PairKey",
    "Relation",
    "Spectrum",
    "TaskDifference",
    "TensorDifference",
    "Threshold",
    "diff",
    "number",
    "share",
    "total",
]

ModelLike = str | os.PathLike[str] | ModelRef
#: Stored bytes per element below which a decoded tensor counts as quantised; 16-bit types have 2.
_QUANTISED = 1.5


def diff(
    models: Sequence[ModelLike],
    base: ModelLike | None = None,
    *,
    spectral: bool = False,
    threads: int | None = None,
    cache: Path | None = None,
    progress: Callable[[Status], None] | None = None,
) -> ModelComparison:
    """Compare the weights of models, each read once (with a base, or for spectra, once more from the cache).

    Values are compared as merges see them: decoded, with adapters, as float32. Sums do not depend on the
    number of threads.

    Args:
        models: two or more, as recipes name them; one is enough with a base.
        base: what they were made from; their task vectors are compared as well. It may be among the models.
        spectral: find out how many directions matrices changed in, which takes several times as long.
        threads: worker threads; one per processor if not given.
        cache: where downloads are kept; None for the hub's own cache.
        progress: called about ten times a second.

    Raises:
        RecipeError: there is nothing to compare.
        CheckpointError: there is no such model, or it is damaged.
    """
    refs = [ModelRef.from_value(model) for model in models]
    if base is not None:
        refs = [ModelRef.from_value(base), *(ref for ref in refs if ref != ModelRef.from_value(base))]
    if len(refs) < 2:
        raise RecipeError(
            "a single model has nothing that it could be compared with",
            hint="name two models or more, or one and --base",
        )
    checkpoints = [open_model(ref, cache=cache) for ref in refs]
    started = time.perf_counter()
    notes = [note for checkpoint in checkpoints for note in (*checkpoint.warnings, *checkpoint.notes)]
    matches = match(checkpoints, notes)
    groups = [list(_groups(m, based=base is not None)) for m in matches]
    with open_files() as files:
        files.read_ahead(dict.fromkeys(path for c in checkpoints for path in c.files()))
        measured = _measure(groups, files, spectral, threads or default_threads(), progress)
        bytes_read = files.bytes_read
    tensors = tuple(_tensor(m, found, len(checkpoints)) for m, found in zip(matches, measured, strict=True))
    names = ["base"] * (base is not None) + [_letters(i) for i in range(len(refs) - (base is not None))]
    compared = tuple(
        _model(i, name, checkpoint, tensors)
        for i, (name, checkpoint) in enumerate(zip(names, checkpoints, strict=True))
    )
    pairs = tuple(_pair(i, j, compared, tensors) for i, j in combinations(range(len(compared)), 2))
    place = None if base is None else 0
    return ModelComparison(
        models=compared,
        base=place,
        tensors=tensors,
        pairs=pairs,
        findings=findings_of(compared, place, tensors, pairs),
        notes=tuple(dict.fromkeys(notes)),
        spectral=spectral,
        bytes_read=bytes_read,
        seconds=time.perf_counter() - started,
    )


def _groups(found: Match, *, based: bool) -> Iterator[Group]:
    """The models that have the tensor, by its shape, where there are two or more."""
    by_shape: dict[tuple[int, ...], dict[int, TensorInfo]] = {}
    for model, info in enumerate(found.infos):
        if info is not None:
            by_shape.setdefault(info.shape, {})[model] = info
    for same in by_shape.values():
        if len(same) > 1:
            yield Group(found.name, tuple(same), tuple(same.values()), based and 0 in same)


Measured = Measurement | IntegerMeasurement


def _measure(
    groups: Sequence[Sequence[Group]],
    files: OpenFiles,
    spectral: bool,
    threads: int,
    progress: Callable[[Status], None] | None,
) -> list[list[Measured]]:
    """Measure all groups in one run."""
    done: list[list[Measured]] = [[] for _ in groups]

    def opened() -> Iterator[Measured]:
        for found, results in zip(groups, done, strict=True):
            for group in found:
                if group.floating:
                    measurement = Measurement(group, files, spectral=spectral)
                else:
                    measurement = IntegerMeasurement(group, files)
                results.append(measurement)
                yield measurement

    work = [
        (group.job.numel * group.num_passes(spectral=spectral), sum(info.nbytes for info in group.infos))
        for found in groups
        for group in found
    ]
    elements, nbytes = (sum(column) for column in zip(*work, strict=True)) if work else (0, 0)

    def report(state: Progress) -> None:
        if progress is not None and elements:
            progress(Status(int(min(state.elements / elements, 1) * nbytes), nbytes, state.tensor))

    run(opened(), threads=threads, progress=report)
    return done


def _tensor(found: Match, measured: Sequence[Measured], num_models: int) -> TensorDifference:
    norms: dict[int, float] = {}
    nonfinite: dict[int, int] = {}
    pairs: dict[PairKey, Difference] = {}
    spectra: dict[int, Spectrum] = {}
    for part in measured:
        norms |= part.norms
        nonfinite |= dict(zip(part.group.models, part.num_nonfinite, strict=True))
        pairs |= part.pairs
        spectra |= part.spectra
    shapes = [part.group.shape for part in measured] + [
        info.shape for info in found.infos if info is not None
    ]
    place = found.place
    return TensorDifference(
        name=found.name,
        stack=place.stack.prefix if place.stack else None,
        block=None if place.block is None or place.stack is None else place.stack.first + place.block,
        leaf=place.leaf,
        role=place.role,
        shape=shapes[0],
        dtypes=tuple(None if info is None else info.dtype for info in found.infos),
        shapes=found.shapes,
        norms=tuple(norms.get(model) for model in range(num_models)),
        num_nonfinite=tuple(nonfinite.get(model, 0) for model in range(num_models)),
        pairs=dict(sorted(pairs.items())),
        spectra=dict(sorted(spectra.items())),
        rows=found.rows,
        whole_numbers=any(info is not None and not info.floating for info in found.infos),
    )


def _letters(index: int) -> str:
    """A, B, …, Z, A1, B1, …"""
    turn, letter = divmod(index, 26)
    return chr(ord("A") + letter) + str(turn or "")


def _model(
    index: int, name: str, checkpoint: Checkpoint, tensors: Sequence[TensorDifference]
) -> ComparedModel:
    dtypes: Counter[str] = Counter()
    for info in checkpoint.values():
        dtypes[info.dtype] += info.numel
    encoded = [info for info in checkpoint.values() if info.encoding is not None]
    small = [info for info in encoded if info.floating and info.nbytes < _QUANTISED * info.numel]
    stated = checkpoint.config.get("architectures")
    known = [str(name) for name in cast("list[object]", stated)] if isinstance(stated, list) else []
    return ComparedModel(
        name=name,
        label=checkpoint.label,
        architecture=next(iter(known), str(checkpoint.config.get("model_type", ""))),
        num_tensors=len(checkpoint),
        num_parameters=sum(dtypes.values()),
        dtypes=dict(dtypes.most_common()),
        num_encoded=len(encoded),
        quantised=bool(small),
        missing=tuple(t.name for t in tensors if t.shapes[index] is None),
        extra=tuple(
            t.name
            for t in tensors
            if t.shapes[index] is not None and sum(shape is not None for shape in t.shapes) == 1
        ),
    )


def _pair(
    first: int, second: int, models: Sequence[ComparedModel], tensors: Sequence[TensorDifference]
) -> Pair:
    key = first, second
    found = [tensor for tensor in tensors if key in tensor.pairs]
    numbers = [tensor for tensor in found if not tensor.whole_numbers]
    together = total(tensor.pairs[key] for tensor in numbers)
    matrices = total(tensor.pairs[key] for tensor in numbers if len(tensor.shape) > 1)
    num_equal = sum(tensor.pairs[key].equal for tensor in found)
    return Pair(
        first=first,
        second=second,
        total=together,
        matrices=matrices,
        relation=relation_of(
            together,
            matrices,
            equal=num_equal == len(found) and not any(sum(t.num_nonfinite) for t in found),
            num_tensors=len(found),
            smaller=min(models[m].num_parameters for m in key),
        ),
        num_tensors=len(found),
        num_equal=num_equal,
        unfit=tuple(
            tensor.name
            for tensor in tensors
            if key not in tensor.pairs
            and tensor.shapes[first] is not None
            and tensor.shapes[second] is not None
        ),
    )
