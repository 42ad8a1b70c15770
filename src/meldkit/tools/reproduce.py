"""Running a recorded merge again, and comparing what comes out. Nothing is written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from meldkit import __version__
from meldkit.api import devices_of, tensor_sums
from meldkit.checkpoint import open_model
from meldkit.errors import CheckpointError, MeldError, MismatchError, RecipeError, RunError
from meldkit.options import MergeOptions
from meldkit.output import RECIPE, RECORD, surroundings, write_side_files
from meldkit.paths import output_path
from meldkit.plan import NUMERIC_VERSION, Plan
from meldkit.recipe import ModelRef
from meldkit.regular import sha256_of
from meldkit.report.changed import changed_inputs, changed_settings, other_settings, unreadable
from meldkit.report.record import read_record
from meldkit.report.verify import Damage
from meldkit.tools.located import Located
from meldkit.tools.recorded import Steps, read_wanted

if TYPE_CHECKING:
    from meldkit.api import Status
    from meldkit.engine import Device

#: What the record says about where it was made, in words.
_SURROUNDINGS = {
    "torch": "torch",
    "numpy": "numpy",
    "machine": "processor",
    "device": "GPU",
    "torch_kernels": "torch's kernels",
    "meldkit_kernels": "meldkit's compiled kernels",
    "hidden_states": "type of hidden states",
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


@dataclass(frozen=True, slots=True)
class Rerun:
    """A recorded merge about to be run again.

    Attributes:
        path: the output that records it.
        record: the same, as it is in the folder.
        plan: what is to be carried out.
        options: for that.
        inputs, surroundings: as in `Reproduction`.
    """

    path: Path
    record: Mapping[str, Any]
    plan: Plan
    options: MergeOptions
    inputs: tuple[str, ...]
    surroundings: tuple[str, ...]


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
    rerun = plan_rerun(
        folder,
        models=models,
        moved=moved,
        plugin=plugin,
        trust_remote_code=trust_remote_code,
        threads=threads,
        cache=cache,
        device=device,
    )
    return carry_out(rerun, progress=progress)


def plan_rerun(
    folder: str | os.PathLike[str],
    *,
    models: Sequence[Path] = (),
    moved: Mapping[str, str] | None = None,
    plugin: Sequence[str] = (),
    trust_remote_code: bool = False,
    threads: int | None = None,
    cache: str | None = None,
    device: str | None = None,
    steps: Steps | None = None,
) -> Rerun:
    """Plan the merge that an output records, and compare its inputs with the record.

    Args:
        steps: called with how many steps of planning are done, of how many, and what is next.
        others: as for `reproduce`.

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
    file = path / RECIPE
    if not file.is_file() or _digest(file) != record["files"].get(RECIPE, {}).get("sha256"):
        raise MismatchError(
            f"{file} is not the recipe of the merge",
            hint=f"'meldkit verify {path}' says what else was changed",
        )
    options = _options(record, plugin, threads, cache, trust_remote_code=trust_remote_code)
    options = replace(options, device=device)
    wanted = read_wanted(path, record.get("tool", "merge"))
    located = Located(wanted.refs, record, models, moved or {})
    try:
        chosen = wanted.plan(options, located, steps)
    except CheckpointError as e:
        hint = "; ".join([*([e.hint] * bool(e.hint)), "--models and --model say where models are now"])
        raise CheckpointError(e.message, hint=hint) from e
    except RunError as e:
        # Planning runs a model for some, and may fail by what is not as it was.
        changes = list(_other_settings(wanted.refs, located, record, options))
        raise RunError(e.message, hint="; ".join([*([e.hint] * bool(e.hint)), *changes])) from e
    around = (
        *_surroundings(record, chosen, plugin, devices_of(options)),
        *(f"settings of {line}" for line in changed_settings(record, chosen)),
    )
    return Rerun(path, record, chosen, options, tuple(changed_inputs(record, chosen)), around)


def carry_out(rerun: Rerun, *, progress: Callable[[Status], None] | None = None) -> Reproduction:
    """Run a merge again if its inputs are what they were, and compare all that comes out with the record.

    Raises:
        MeldError: see `meldkit.errors`.
    """
    if rerun.inputs:
        return Reproduction(rerun.path, rerun.inputs, rerun.surroundings, (), 0)
    sums = tensor_sums(rerun.plan, rerun.options, progress=progress)
    differences = [
        *_tensors(rerun.record, rerun.plan, sums),
        *_files(rerun.record, rerun.plan, rerun.options),
    ]
    return Reproduction(rerun.path, (), rerun.surroundings, tuple(differences), len(sums))


def _other_settings(
    refs: Sequence[ModelRef], located: Located, record: Mapping[str, Any], options: MergeOptions
) -> Iterator[str]:
    """Which settings of which models are not those of the record, before there is a plan."""
    cache = Path(options.transformers_cache) if options.transformers_cache else None
    recorded = {str(model["model"]): model for model in record["models"]}
    for ref in refs:
        with suppress(MeldError):
            model = open_model(ref, cache=cache, locate=located)
            if changes := other_settings(recorded.get(model.label, {}), model):
                yield f"settings of '{ref}' are not what they were: {changes}"


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


def _surroundings(
    record: Mapping[str, Any], chosen: Plan, plugin: Sequence[str], devices: Sequence[Device]
) -> Iterator[str]:
    """What is not as it was when the merge was made."""
    if record["meldkit"] != __version__:
        yield f"meldkit is {__version__}, it was {record['meldkit']}"
    if record["numeric_version"] != NUMERIC_VERSION:
        yield (
            f"meldkit's arithmetic is of version {NUMERIC_VERSION}, it was {record['numeric_version']}: "
            "other bytes are to be expected"
        )
    now = {"device": "none", **surroundings(devices), **(chosen.tool.made_with if chosen.tool else {})}
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
        raise unreadable(e) from e
