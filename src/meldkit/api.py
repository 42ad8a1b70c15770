"""What programs call: plan a recipe, merge it, list the methods."""

from __future__ import annotations

import atexit
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from meldkit import __version__
from meldkit.checkpoint import Checkpoint, Locate, OpenFiles, open_files, open_model, with_adapters
from meldkit.engine import (
    Device,
    Nowhere,
    PlanInputs,
    Progress,
    Sink,
    as_stage,
    default_threads,
    find_devices,
    let_through,
    num_workers,
    run_jobs,
)
from meldkit.errors import CheckpointError, NotSupportedError, RunError, nearest
from meldkit.methods import METHODS, Method, describe, get_method, load_plugin
from meldkit.options import MergeOptions
from meldkit.output import (
    OutputFolder,
    Sum,
    Sums,
    Verification,
    check_fit,
    check_free,
    write_record,
    write_side_files,
)
from meldkit.paths import output_path
from meldkit.plan import Plan, Stage, adapter_folders, build_plan, check_gives_model, stored_inputs
from meldkit.recipe import ADAPTER_METHODS, ModelRef, Recipe, load_recipe, recipe_from_data
from meldkit.regular import sha256_of

__all__ = [
    "ADAPTER_METHODS",
    "MergeResult",
    "RecipeLike",
    "Status",
    "Verification",
    "check_free",
    "describe",
    "devices_of",
    "get_method",
    "load_plugins",
    "merge",
    "methods",
    "plan",
    "read_recipe",
    "tensor_sums",
]

RecipeLike = Recipe | str | os.PathLike[str] | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class MergeResult:
    """What a merge did.

    Attributes:
        path: the merged model's folder.
        plan: what was carried out.
        seconds: wall time from opening the inputs to the published folder.
        bytes_read: bytes of weights read.
        bytes_written: bytes of weights written.
        num_resumed: tensors taken over from an interrupted run.
        num_damaged: tensors that it had finished and whose bytes were not what they had been: made again.
        discarded: whether partial work for another plan was thrown away.
        verification: what was checked before the folder was published.
    """

    path: Path
    plan: Plan
    seconds: float
    bytes_read: int
    bytes_written: int
    num_resumed: int
    num_damaged: int
    discarded: bool
    verification: Verification


@dataclass(frozen=True, slots=True)
class Status:
    """How far a merge has come, for progress displays.

    Attributes:
        done, total: bytes of output, each pass over a tensor counted.
        tensor: the one that was worked on last.
    """

    done: int
    total: int
    tensor: str


def read_recipe(recipe: RecipeLike) -> Recipe:
    """A recipe from a file, from data as YAML gives it, or as it is."""
    if isinstance(recipe, Recipe):
        return recipe
    return recipe_from_data(recipe) if isinstance(recipe, Mapping) else load_recipe(recipe)


def plan(
    recipe: RecipeLike,
    options: MergeOptions | None = None,
    *,
    headers_only: bool = False,
    locate: Locate | None = None,
) -> Plan:
    """Decide everything about a merge without reading a weight.

    Where all models are adapters alone, an adapter is planned: see `meldkit.composed.adapters`.

    Args:
        recipe: path of a YAML file, a mapping, or a `Recipe`.
        options: as for `merge`.
        headers_only: of the weights of models on the hub, fetch only headers; see `Plan.to_download`.
        locate: where models are now that lay elsewhere; they keep the names that the recipe gives them.

    Raises:
        RecipeError: the recipe cannot be carried out.
        InputError: checkpoints are damaged or do not fit together.
    """
    options = options or MergeOptions()
    if not options.safe_serialization:
        raise NotSupportedError(
            "not supported: only safetensors files are written", hint="leave out --no-safe-serialization"
        )
    load_plugins(options.plugin)
    cache = Path(options.transformers_cache) if options.transformers_cache else None

    wanted = read_recipe(recipe)
    if (folders := adapter_folders(wanted, cache, locate)) is not None:
        from meldkit.composed import plan_adapters

        return plan_adapters(wanted, folders, options)
    stages: dict[str, Stage] = {}

    def planned(current: Recipe) -> Plan:
        merged = current.models()

        def open_input(ref: ModelRef) -> Checkpoint:
            # Of a model that only gives its tokenizer, no weight is ever read.
            unread = headers_only or ref not in merged
            if (stage := wanted.stage_of(ref)) is not None:
                check_gives_model(ref.path, stage)
                if ref.path not in stages:
                    stages[ref.path] = _as_stage(ref.path, planned(stage))
                return with_adapters(stages[ref.path], ref, cache=cache, headers_only=unread, locate=locate)
            try:
                return open_model(ref, cache=cache, headers_only=unread, locate=locate)
            except CheckpointError as e:
                if (meant := nearest(ref.path, wanted.stages)) is None:
                    raise
                raise CheckpointError(e.message, hint=f"did you mean the recipe '{meant}'? {e.hint}") from e

        return build_plan(
            current,
            open_input,
            shard_size=options.shard_bytes(),
            allow_crimes=options.allow_crimes,
            allow_crop=options.allow_crop or options.unsafe_truncate_embeddings,
            trust_remote_code=options.trust_remote_code,
            copy_tokenizer=options.copy_tokenizer,
            seed=options.random_seed or 0,
        )

    return planned(wanted)


def _as_stage(name: str, made: Plan) -> Stage:
    """What a recipe gives as an input of another. The files beside its weights lie in a folder of their own
    where they are not those of its donor."""
    stage = as_stage(name, made)
    if made.tokenizer is None and made.templates is None and not made.ends:
        return stage
    folder = Path(mkdtemp(prefix="meldkit-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    # What numbers its tokens, even if the output gets no tokenizer.
    write_side_files(folder, made, with_tokenizer=True, card=False, name=name, version=__version__)
    return replace(stage, folder=folder, tokenizer=None, gguf=None)


def devices_of(options: MergeOptions) -> tuple[Device, ...]:
    """What a merge would be computed on.

    Raises:
        RecipeError: there is no such device.
    """
    return find_devices(options.wanted_device(), all_of_kind=options.all_devices())


def merge(
    recipe: RecipeLike | Plan,
    out: str | os.PathLike[str],
    options: MergeOptions | None = None,
    *,
    progress: Callable[[Status], None] | None = None,
) -> MergeResult:
    """Merge models into a new folder, or continue where an interrupted merge stopped.

    Args:
        recipe: path of a YAML file, a mapping, a `Recipe`, or a plan made earlier.
        out: folder to write.
        options: how to run.
        progress: called about ten times a second.

    Raises:
        MeldError: see `meldkit.errors`; nothing that looks like a model is left behind.
    """
    options = options or MergeOptions()
    started = time.perf_counter()
    # First of all, because planning may take a while.
    out = output_path(out)
    check_free(out, overwrite=options.overwrite)
    devices = devices_of(options)
    chosen = _with_weights(
        recipe if isinstance(recipe, Plan) else plan(recipe, options, headers_only=True), options
    )
    if chosen.config is not None:
        check_fit(chosen, chosen.config, {job.name: job.shape for job in chosen.jobs})

    def publish(folder: OutputFolder) -> Verification:
        write_side_files(
            folder.partial,
            chosen,
            with_tokenizer=options.copy_tokenizer,
            card=options.write_model_card,
            name=folder.path.resolve().name,
            version=__version__,
        )
        write_record(folder.partial, chosen, __version__, _recorded(options), folder.stored_sums(), devices)
        return folder.publish()

    folder = OutputFolder(out, chosen, overwrite=options.overwrite)
    return merge_into(folder, chosen, options, publish, devices=devices, progress=progress, started=started)


def merge_into(
    folder: OutputFolder,
    chosen: Plan,
    options: MergeOptions,
    publish: Callable[[OutputFolder], Verification],
    *,
    devices: Sequence[Device],
    progress: Callable[[Status], None] | None,
    started: float,
) -> MergeResult:
    """Fill an output folder with merged weights, or go on with that, and publish it.

    Args:
        folder: of the weight files; it is closed in the end.
        chosen: the plan, whose models are downloaded.
        options, progress: as for `merge`.
        publish: called when all weights are on the disk; it checks them.
        devices: that it is computed on.
        started: when the work began, by `time.perf_counter`.

    Raises:
        MeldError: as for `merge`.
    """
    try:
        with open_files() as files:
            files.read_ahead(dict.fromkeys(path for c in stored_inputs(chosen) for path in c.files()))
            # What an earlier run was allowed to let through, this one may not be.
            finished = folder.finished if options.allow_nonfinite else folder.finished - folder.nonfinite
            _run(chosen, folder, finished, files, options, progress, folder.sums, devices)
            bytes_read = files.bytes_read
        folder.settle()
        folder.check_inputs()
        verification = publish(folder)
    finally:
        folder.close()
    return MergeResult(
        path=folder.path,
        plan=chosen,
        seconds=time.perf_counter() - started,
        bytes_read=bytes_read,
        bytes_written=chosen.bytes_to_write,
        num_resumed=len(folder.finished),
        num_damaged=folder.num_damaged,
        discarded=folder.discarded,
        verification=verification,
    )


def _with_weights(chosen: Plan, options: MergeOptions) -> Plan:
    """The same plan with every model downloaded. What would fail has failed before."""
    if not chosen.to_download:
        return chosen
    whole = plan(chosen.recipe, options)
    if whole.digest() != chosen.digest():
        raise RunError(
            "what was downloaded is not what was planned",
            hint="a model changed on the hub meanwhile, or the plan was made with other options; plan again",
        )
    return whole


def tensor_sums(
    chosen: Plan,
    options: MergeOptions | None = None,
    *,
    progress: Callable[[Status], None] | None = None,
) -> Mapping[str, Sum]:
    """Carry out a plan without writing anything.

    Args:
        chosen: the plan; its models must be downloaded.
        options, progress: as for `merge`.

    Returns:
        The sum of the bytes of each tensor that weight files would hold.

    Raises:
        MeldError: see `meldkit.errors`.
    """
    options = options or MergeOptions()
    sums = Sums()
    with open_files() as files:
        _run(chosen, Nowhere(), frozenset(), files, options, progress, sums, devices_of(options))
    return sums.of_tensors


def _recorded(options: MergeOptions) -> dict[str, Any]:
    """The options that change what is written. Of plugins, names and content; not where they lie."""
    names = ("allow_crimes", "trust_remote_code", "copy_tokenizer", "allow_nonfinite", "write_model_card")
    plugins = [Path(path) for path in options.plugin]
    return {
        **{name: getattr(options, name) for name in names},
        "allow_crop": options.allow_crop or options.unsafe_truncate_embeddings,
        "out_shard_size": options.shard_bytes(),
        "plugin": [{"name": path.name, "sha256": sha256_of(path)} for path in plugins],
    }


def _run(
    chosen: Plan,
    sink: Sink,
    finished: frozenset[str],
    files: OpenFiles,
    options: MergeOptions,
    progress: Callable[[Status], None] | None,
    sums: Sums,
    devices: Sequence[Device],
) -> None:
    total = sum(
        num * job.numel
        for num, job in zip(chosen.passes(), chosen.jobs, strict=True)
        if job.name not in finished
    )
    scale = chosen.bytes_to_write / max(1, chosen.num_parameters)

    def report(state: Progress) -> None:
        if progress is not None:
            # Passes that could not be foreseen must not take the bar past its end.
            progress(Status(int(min(state.elements, total) * scale), int(total * scale), state.tensor))

    if options.allow_nonfinite:
        let_through(chosen, files)
    run_jobs(
        chosen.jobs,
        PlanInputs(chosen, files),
        sink,
        finished=finished,
        seed=chosen.seed,
        allow_nonfinite=options.allow_nonfinite,
        threads=num_workers(devices, options.num_threads, default_threads()),
        devices=devices,
        progress=report,
        observe=sums,
    )


def load_plugins(paths: Iterable[str | os.PathLike[str]]) -> None:
    """Make the methods that Python files declare known; the files are run."""
    for path in paths:
        load_plugin(Path(path))


def methods() -> tuple[Method, ...]:
    """Every merge method, in the order in which they are listed."""
    return tuple(METHODS.values())
