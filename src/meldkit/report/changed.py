"""Whether the inputs of a recorded merge are what they were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from meldkit.checkpoint import Checkpoint
from meldkit.errors import CheckpointError, MeldError
from meldkit.output import commits_of, sample_of, settings_of
from meldkit.plan import Plan, stored_inputs
from meldkit.report.record import read_record


def is_of_plan(folder: Path, plan: Plan) -> bool:
    """Whether a folder holds what a plan gives, as the record of its merge says. Inputs are looked at; of the
    files in the folder, their sizes."""
    try:
        record = read_record(folder)
    except MeldError:
        return False
    if record is None or record["plan"] != plan.digest() or any(changed_inputs(record, plan)):
        return False
    files = {folder / name: file["size"] for name, file in (record["weights"] | record["files"]).items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in files.items())


def changed_inputs(record: Mapping[str, Any], chosen: Plan) -> Iterator[str]:
    """In which respects the inputs are not those of the record."""
    recorded = {str(model["model"]): model for model in record["models"]}
    for checkpoint in stored_inputs(chosen):
        model = recorded.get(checkpoint.label)
        if model is None:
            yield f"'{checkpoint.label}' is no model of the merge"
            continue
        if model["fingerprint"] == checkpoint.fingerprint:
            if other := list(_resampled(model["files"], checkpoint.files())):
                yield f"'{checkpoint.label}' has other bytes in {', '.join(other)} than it had"
            continue
        sizes = {str(file["name"]): int(file["size"]) for file in model["files"]}
        now = {file.name: file.stat().st_size for file in checkpoint.files()}
        parts = [f"lacks {name}" for name in sizes if name not in now]
        parts += [f"has a file {name} that it had not" for name in now if name not in sizes]
        parts += [
            f"has {name} of {now[name]:,} bytes, it had {size:,}"
            for name, size in sizes.items()
            if name in now and now[name] != size
        ]
        before, after = model.get("commits", {}), commits_of(checkpoint)
        for name in before.keys() & after.keys():
            if before[name] != after[name]:
                of = f" of {name}" * (name != checkpoint.label)
                parts.append(f"is of commit {after[name][:12]}{of}, it was of {before[name][:12]}")
        if settings := other_settings(model, checkpoint):
            parts.append(f"has other settings: {settings}")
        yield f"'{checkpoint.label}' " + ("; ".join(parts) or "has other tensors, shapes or types")
    names = {checkpoint.label for checkpoint in stored_inputs(chosen)}
    yield from (f"'{name}' is not read any more" for name in recorded if name not in names)


def changed_settings(record: Mapping[str, Any], chosen: Plan) -> Iterator[str]:
    """Which settings of which inputs are not those of the record."""
    recorded = {str(model["model"]): model for model in record["models"]}
    for checkpoint in stored_inputs(chosen):
        model = recorded.get(checkpoint.label, {})
        # Else they are named with what else is other.
        same = model.get("fingerprint") == checkpoint.fingerprint
        if same and (settings := other_settings(model, checkpoint)):
            yield f"'{checkpoint.label}': {settings}"


def other_settings(model: Mapping[str, Any], checkpoint: Checkpoint) -> str:
    """Which files beside the weights of an input are not as they were, in words; "" if all are.

    Of a commit of the hub they are, but there may be more or less of them in its cache.
    """
    commits = commits_of(checkpoint)
    if "settings" not in model or (commits and commits == model.get("commits")):
        return ""
    try:
        after = settings_of(checkpoint)
    except OSError as e:
        raise unreadable(e) from e
    changes: list[str] = []
    for old, new in zip_longest(model["settings"], after, fillvalue=dict[str, str]()):
        for name in sorted({*old, *new}):
            if old.get(name) != new.get(name):
                how = "is gone" if name not in new else "is new" if name not in old else "is another"
                changes.append(f"{name} {how}")
    return ", ".join(changes)


def unreadable(error: OSError) -> CheckpointError:
    """The error about a file that was there when it was looked for."""
    return CheckpointError(f"cannot read {error.filename}: {error.strerror}", hint="check the path")


def _resampled(recorded: Sequence[Mapping[str, Any]], files: Sequence[Path]) -> Iterator[str]:
    """Names of the files of a model of which a sample is not what it was; none if none was taken."""
    try:
        now = list(map(sample_of, files))
    except OSError as e:
        raise unreadable(e) from e
    for before, path, sample in zip(recorded, files, now, strict=False):
        if before.get("sample") not in (None, sample):
            yield path.name
