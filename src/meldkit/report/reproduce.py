"""Running a recorded merge again, and comparing what comes out. Nothing is written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from meldkit import __version__
from meldkit.api import devices_of, plan, read_recipe, tensor_sums
from meldkit.checkpoint import Checkpoint
from meldkit.engine import Device
from meldkit.errors import CheckpointError, MeldError, MismatchError, NotSupportedError, RecipeError
from meldkit.options import MergeOptions
from meldkit.output import (
    RECIPE,
    RECORD,
    commit_of,
    sample_of,
    settings_of,
    surroundings,
    write_side_files,
)
from meldkit.paths import output_path
from meldkit.plan import NUMERIC_VERSION, Plan, stored_inputs
from meldkit.regular import sha256_of
from meldkit.report.located import Located
from meldkit.report.record import read_record
from meldkit.report.verify import Damage

if TYPE_CHECKING:
    from meldkit.api import Status

#: What the record says about where it was made, in words.
_SURROUNDINGS = {
    "torch": "torch",
    "numpy": "numpy",
    "machine": "processor",
    "device": "GPU",
    "torch_kernels": "torch's kernels",
    "meldkit_kernels": "meldkit's compiled kernels",
}


@dataclass(frozen=True, slots=True)
class Reproduction:
    """What came of running a merge again.

    Attributes:
        path: the output whose merge was run again.
        inputs: how the inputs are others than they were, in words; if they are, nothing was run.
        surroundings: what else is not as it was then, in words: versions, kernels, settings of inputs.
        differences: what came out otherwise than it was recorded.
        num_tensors: that were made again.
    """

    path: Path
    inputs: tuple[str, ...]
    surroundings: tuple[str, ...]
    differences: tuple[Damage, ...]
    num_tensors: int

    @property
    def same(self) -> bool:
        """Whether the same bytes came out."""
        return not self.inputs and not self.differences

    def data(self) -> dict[str, Any]:
        """The result as JSON has it."""
        return {
            "path": str(self.path),
            "same": self.same,
            "tensors": self.num_tensors,
            "inputs": list(self.inputs),
            "surroundings": list(self.surroundings),
            "differences": [asdict(difference) for difference in self.differences],
        }


def reproduce(
    folder: str | os.PathLike[str],
    *,
    models: Sequence[Path] = (),
    moved: Mapping[str, str] | None = None,
    plugin: Sequence[str] = (),
    trust_remote_code: bool = False,
    threads: int | None = None,
    cache: str | None = None,
    device: str | None = None,
    progress: Callable[[Status], None] | None = None,
) -> Reproduction:
    """Run the merge that an output records, and compare all that comes out with the record.

    Args:
        folder: the output.
        models: folders in which to look for models that are not where the recipe says.
        moved: where single models are now, by what the recipe calls them.
        plugin: files of the methods that the merge needed.
        trust_remote_code: let code in the models' folders read tokenizers, if the merge did. That a record
            says so does not count: it may come from a stranger.
        threads, cache, device: as in `MergeOptions`.
        progress: as for `merge`.

    Raises:
        MeldError: see `meldkit.errors`.
    """
    path = output_path(folder)
    record = read_record(path)
    if record is None:
        hint = "name a folder that 'meldkit merge' has written"
        if path.is_file():
            hint = "single files have none; 'meldkit merge' and 'meldkit pytorch' write one into folders"
        raise CheckpointError(f"{path} has no record of a merge ({RECORD})", hint=hint)
    if tool := record.get("tool"):
        made = f"was made by 'meldkit {tool}'" if tool != "merge" else "is an adapter made of adapters"
        hint = f"run it again with what {path / RECIPE} says, into another folder, and compare both"
        if tool in ("merge", "moe"):
            hint = f"run meldkit {tool} {path / RECIPE} NEW_FOLDER and compare both, e.g. by 'meldkit diff'"
        raise NotSupportedError(f"{path} {made}, which is not run again here", hint=hint)
    recipe = path / RECIPE
    if not recipe.is_file() or _digest(recipe) != record["files"].get(RECIPE, {}).get("sha256"):
        raise MismatchError(
            f"{recipe} is not the recipe of the merge",
            hint=f"'meldkit verify {path}' says what else was changed",
        )
    options = _options(record, plugin, threads, cache, trust_remote_code=trust_remote_code)
    options = replace(options, device=device)
    wanted = read_recipe(recipe)
    located = Located(wanted, record, models, moved or {})
    try:
        chosen = plan(wanted, options, locate=located)
    except CheckpointError as e:
        hint = "; ".join([*([e.hint] * bool(e.hint)), "--models and --model say where models are now"])
        raise CheckpointError(e.message, hint=hint) from e
    inputs = tuple(_changed_inputs(record, chosen))
    around = (
        *_surroundings(record, plugin, devices_of(options)),
        *(f"settings of {line}" for line in _changed_settings(record, chosen)),
    )
    if inputs:
        return Reproduction(path, inputs, around, (), 0)
    sums = tensor_sums(chosen, options, progress=progress)
    differences = [*_tensors(record, chosen, sums), *_files(record, chosen, options)]
    return Reproduction(path, (), around, tuple(differences), len(sums))


def _options(
    record: Mapping[str, Any],
    plugin: Sequence[str],
    threads: int | None,
    cache: str | None,
    *,
    trust_remote_code: bool,
) -> MergeOptions:
    recorded = dict(record["options"])
    # A record comes with a model, and does not say what is trusted here.
    if recorded.pop("trust_remote_code", False) and not trust_remote_code:
        raise RecipeError(
            "the merge let code in the models' folders read their tokenizers",
            hint="if you trust that code, allow it with --trust-remote-code",
        )
    needed = [str(entry["name"]) for entry in recorded.pop("plugin", ())]
    if len(needed) != len(plugin):
        plugins = f"{len(needed)} plugin{'s' * (len(needed) != 1)}"
        names = " ".join(f"--plugin {name}" for name in needed)
        hint = f"name {'it' if len(needed) == 1 else 'them'}: {names}" if needed else "leave them out"
        raise RecipeError(f"the merge used {plugins}, {len(plugin)} are given", hint=hint)
    return MergeOptions(
        **recorded,
        random_seed=record["seed"],
        plugin=tuple(plugin),
        num_threads=threads,
        transformers_cache=cache,
        trust_remote_code=trust_remote_code,
    )


def is_of_plan(folder: Path, plan: Plan) -> bool:
    """Whether a folder holds what a plan gives, as the record of its merge says. Inputs are looked at; of the
    files in the folder, their sizes."""
    try:
        record = read_record(folder)
    except MeldError:
        return False
    if record is None or record["plan"] != plan.digest() or any(_changed_inputs(record, plan)):
        return False
    files = {folder / name: file["size"] for name, file in (record["weights"] | record["files"]).items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in files.items())


def _changed_inputs(record: Mapping[str, Any], chosen: Plan) -> Iterator[str]:
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
        before, after = model.get("commit"), commit_of(checkpoint.folder)
        if before and after and before != after:
            parts.append(f"is of commit {after[:12]}, it was of {before[:12]}")
        if settings := _other_settings(model, checkpoint):
            parts.append(f"has other settings: {settings}")
        yield f"'{checkpoint.label}' " + ("; ".join(parts) or "has other tensors, shapes or types")
    names = {checkpoint.label for checkpoint in stored_inputs(chosen)}
    yield from (f"'{name}' is not read any more" for name in recorded if name not in names)


def _changed_settings(record: Mapping[str, Any], chosen: Plan) -> Iterator[str]:
    """Which settings of which inputs are not those of the record."""
    recorded = {str(model["model"]): model for model in record["models"]}
    for checkpoint in stored_inputs(chosen):
        model = recorded.get(checkpoint.label, {})
        # Else they are named with what else is other.
        same = model.get("fingerprint") == checkpoint.fingerprint
        if same and (settings := _other_settings(model, checkpoint)):
            yield f"'{checkpoint.label}': {settings}"


def _other_settings(model: Mapping[str, Any], checkpoint: Checkpoint) -> str:
    """Which files beside the weights of an input are not as they were, in words; "" if all are.

    Of a commit of the hub they are, but there may be more or less of them in its cache.
    """
    commit = commit_of(checkpoint.folder)
    if "settings" not in model or (commit and commit == model.get("commit")):
        return ""
    try:
        after = settings_of(checkpoint)
    except OSError as e:
        raise _unreadable(e) from e
    changes: list[str] = []
    for old, new in zip_longest(model["settings"], after, fillvalue=dict[str, str]()):
        for name in sorted({*old, *new}):
            if old.get(name) != new.get(name):
                how = "is gone" if name not in new else "is new" if name not in old else "is another"
                changes.append(f"{name} {how}")
    return ", ".join(changes)


def _unreadable(error: OSError) -> CheckpointError:
    return CheckpointError(f"cannot read {error.filename}: {error.strerror}", hint="check the path")


def _resampled(recorded: Sequence[Mapping[str, Any]], files: Sequence[Path]) -> Iterator[str]:
    """Names of the files of a model of which a sample is not what it was; none if none was taken."""
    try:
        now = list(map(sample_of, files))
    except OSError as e:
        raise _unreadable(e) from e
    for before, path, sample in zip(recorded, files, now, strict=False):
        if before.get("sample") not in (None, sample):
            yield path.name


def _surroundings(
    record: Mapping[str, Any], plugin: Sequence[str], devices: Sequence[Device]
) -> Iterator[str]:
    """What is not as it was when the merge was made."""
    if record["meldkit"] != __version__:
        yield f"meldkit is {__version__}, it was {record['meldkit']}"
    if record["numeric_version"] != NUMERIC_VERSION:
        yield (
            f"meldkit's arithmetic is of version {NUMERIC_VERSION}, it was {record['numeric_version']}: "
            "other bytes are to be expected"
        )
    now = {"device": "none", **surroundings(devices)}
    for key, before in {"device": "none", **record["made_with"]}.items():
        if now.get(key) != before:
            yield f"{_SURROUNDINGS.get(key, key)}: {now.get(key)}, it was {before}"
    for entry, file in zip(record["options"].get("plugin", ()), plugin, strict=True):
        if _digest(Path(file)) != entry["sha256"]:
            yield f"plugin {file} is not the {entry['name']} that it was"


def _tensors(record: Mapping[str, Any], chosen: Plan, sums: Mapping[str, object]) -> Iterator[Damage]:
    recorded: Mapping[str, Any] = record["weights"]
    names = {file.name for file in chosen.files}
    yield from (Damage("missing", n, "", f"{n} is not made any more") for n in recorded if n not in names)
    for index, file in enumerate(chosen.files):
        before = recorded.get(file.name)
        if before is None:
            yield Damage("extra", file.name, "", f"{file.name} was not made before")
            continue
        if hashlib.sha256(file.header).hexdigest() != before["header_sha256"]:
            yield Damage("header", file.name, "", f"{file.name} gets another header than it had")
        left = dict(before["sums"])
        for part in (part for job in chosen.jobs for part in job.stored if part.file == index):
            name = part.name.removeprefix(file.folder)
            # A tensor without elements is never seen.
            now = str(sums.get(part.name, "0" * 32))
            if name not in left:
                text = f"{file.name}: tensor '{name}' was not made before"
                yield Damage("extra", file.name, name, text)
            elif now != left.pop(name):
                yield Damage(
                    "bytes", file.name, name, f"{file.name}: tensor '{name}' comes out with other bytes"
                )
        for name in left:
            yield Damage("missing", file.name, name, f"{file.name}: tensor '{name}' is not made any more")


def _files(record: Mapping[str, Any], chosen: Plan, options: MergeOptions) -> Iterator[Damage]:
    """Differences in what lies beside the weights."""
    with TemporaryDirectory(prefix="meldkit-") as place:
        folder = Path(place)
        write_side_files(
            folder, chosen, with_tokenizer=options.copy_tokenizer, card=False, name="", version=__version__
        )
        now = {p.relative_to(folder).as_posix(): _digest(p) for p in folder.rglob("*") if p.is_file()}
    before = {name: file["sha256"] for name, file in record["files"].items()}
    for name in dict.fromkeys([*before, *now]):
        if name not in now:
            yield Damage("missing", name, "", f"{name} is not written any more")
        elif name not in before:
            yield Damage("extra", name, "", f"{name} was not written before")
        elif now[name] != before[name]:
            yield Damage("content", name, "", f"{name} comes out with another content")


def _digest(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as e:
        raise _unreadable(e) from e
