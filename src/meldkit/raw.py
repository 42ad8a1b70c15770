"""Merging the weights of any PyTorch program: files of tensors, with no config.json or tokenizer.

The output is what its name says: a .safetensors file; a file of torch.save (.pt, .pth, .bin, .ckpt), which
keeps what else the base (else the first) model's file holds; or, without an ending, a folder as
`meldkit.api.merge` writes.
"""

from __future__ import annotations

import copy
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from meldkit import api
from meldkit.checkpoint import DTYPES, Checkpoint, open_model, read_header
from meldkit.checkpoint.json_file import shown
from meldkit.checkpoint.pickled.state_dict import Weights, at, find_weights, is_average, is_training_state
from meldkit.checkpoint.weights import PICKLED
from meldkit.errors import CheckpointError, NotSupportedError, OutputError, RunError
from meldkit.options import MergeOptions
from meldkit.output import PARTIAL, OutputFolder, check_links, check_names, sync_path
from meldkit.paths import output_path
from meldkit.plan import Plan, build_plan
from meldkit.recipe import ModelRef
from meldkit.shapes import Tensor

#: Larger than any file: the output is not cut into several.
_ONE_FILE = 2**62
_SAFETENSORS = ".safetensors"
#: What a file is called that is of some format; versions, as in `merged-v0.3`, begin with a digit.
_ENDING = re.compile(r"\.[A-Za-z]\w*")
#: The name that torch gives to what it does not load.
_GLOBAL = re.compile(r"GLOBAL (\S+)")


def plan_raw(recipe: api.RecipeLike, out: Path, options: MergeOptions | None = None) -> Plan:
    """Decide everything about a merge of weight files without reading a weight.

    Args:
        recipe: path of a YAML file, a mapping, or a `Recipe`, whose models are weight files.
        out: where the result will go.
        options: as for `merge_raw`.

    Raises:
        RecipeError: the recipe cannot be carried out.
        OutputError: the output would be a file of another format than is written.
        InputError: files are damaged or do not fit together.
    """
    options = options or MergeOptions()
    if not options.safe_serialization and not _is_file(out):
        raise NotSupportedError(
            "not supported: folders get safetensors files only", hint="name a file such as OUT.pt instead"
        )
    api.load_plugins(options.plugin)
    cache = Path(options.transformers_cache) if options.transformers_cache else None

    def opened(ref: ModelRef) -> Checkpoint:
        checkpoint = open_model(ref, cache=cache, alone=True)
        # No model's folder, but a file of weights.
        return replace(checkpoint, config={}, parts=(), folder=next(iter(checkpoint.values())).file)

    return build_plan(
        api.read_recipe(recipe),
        opened,
        shard_size=_ONE_FILE if _is_file(out) else options.shard_bytes(),
        allow_crimes=options.allow_crimes,
        seed=options.random_seed or 0,
    )


def merge_raw(
    recipe: api.RecipeLike | Plan,
    out: str | os.PathLike[str],
    options: MergeOptions | None = None,
    *,
    progress: Callable[[api.Status], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> api.MergeResult:
    """Merge weight files into a file or a folder, or continue where an interrupted merge stopped.

    Args:
        recipe: as for `plan_raw`, or a plan made by it.
        out: what to write.
        options: how to run.
        progress: called about ten times a second.
        note: called with sentences about what is kept and left out besides the weights.

    Raises:
        MeldError: see `meldkit.errors`; nothing is there under the name of the output until it is complete.
    """
    started = time.perf_counter()
    out = output_path(out)
    options = options or MergeOptions()
    check_out(out, overwrite=options.overwrite)
    devices = api.devices_of(options)
    plan = recipe if isinstance(recipe, Plan) else plan_raw(recipe, out, options)
    if not _is_file(out):
        return api.merge(plan, out, options, progress=progress)
    _check_apart(out, plan)
    frame = None if out.suffix == _SAFETENSORS else _Frame.open(plan.checkpoints[plan.donor])
    for line in frame.notes if frame is not None else ():
        if note is not None:
            note(line)
    # Weights go into a folder of their own first, where whatever is interrupted can be continued: they stay
    # unpublished there until the output is complete.
    work = _work(out)
    folder = OutputFolder(work, plan, overwrite=True)

    def publish(folder: OutputFolder) -> api.Verification:
        found = folder.verify()
        merged = folder.partial / plan.files[0].name
        new = work / _new(out)
        finished = merged if frame is None else frame.save(merged, new)
        finished.replace(out)
        sync_path(out.resolve().parent)
        return found

    try:
        result = api.merge_into(
            folder, plan, options, publish, devices=devices, progress=progress, started=started
        )
        shutil.rmtree(work)
        size = out.stat().st_size
    except OSError as e:
        raise RunError(
            f"cannot write {out}: {e.strerror}",
            hint="run the same command again; it continues where it stopped",
        ) from e
    return replace(result, path=out, bytes_written=size)


def check_out(out: Path, *, overwrite: bool = False) -> None:
    """Check that the output may be written; touches nothing.

    Raises:
        OutputError: there is something already, it cannot be reached, or its format is not written.
    """
    try:
        if not _is_file(out):
            api.check_free(out, overwrite=overwrite)
            return
        check_links(out)
        if out.exists() and not overwrite:
            raise OutputError(f"{out} exists", hint="name a new file, or add --overwrite to replace it")
        # In the end it is removed with all that is in it.
        check_names(_work(out), out, (PARTIAL, _new(out)))
        api.check_free(_work(out), overwrite=True)
    except OSError as e:
        raise OutputError(f"cannot use {out} as output: {e.strerror}") from e


def _work(out: Path) -> Path:
    """The folder beside an output file that holds its weights until it is complete."""
    return out.with_name(f".{out.name}.meldkit")


def _new(out: Path) -> str:
    """What a file in that folder is called that takes the output's place."""
    return f"{out.stem}.new{out.suffix}"


def _is_file(out: Path) -> bool:
    """Whether the output is a file, as opposed to a folder.

    Raises:
        OutputError: it would be a file of another format.
    """
    if not _ENDING.fullmatch(out.suffix) or out.is_dir():
        return False
    known = (_SAFETENSORS, *PICKLED)
    if out.suffix not in known:
        raise OutputError(
            f"{out} ends in {out.suffix}, which is no format that is written",
            hint=f"name a file that ends in {', '.join(known)}, or a folder: "
            "a name without ending, or one that is there",
        )
    return True


def _check_apart(out: Path, plan: Plan) -> None:
    for checkpoint in plan.checkpoints:
        if out.resolve() in {path.resolve() for path in checkpoint.files()}:
            raise OutputError(
                f"{out} is the input '{checkpoint.label}'", hint="inputs are never changed; name another file"
            )


@dataclass(frozen=True, slots=True)
class _Frame:
    """What a file holds around its weights, and where among it they are.

    Attributes:
        content: all that it holds, without the state of training.
        weights: where they are.
        notes: sentences about what else there is.
    """

    content: Any
    weights: Weights
    notes: tuple[str, ...] = ()

    @classmethod
    def open(cls, donor: Checkpoint) -> _Frame:
        """The content of the donor's file; nothing at all if it is not a single file of torch.save.

        Raises:
            CheckpointError: it holds what torch does not load from a file of unknown origin.
        """
        path = next(iter(donor.values())).file
        if path.suffix not in PICKLED or donor.files() != [path]:
            return cls({}, Weights((), {}))
        try:
            try:
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # files of the time before zip archives cannot be mapped
                content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as e:  # torch raises whatever the pickle's own errors are
            named = _GLOBAL.search(str(e))
            raise CheckpointError(
                f"{path} holds more than weights, and torch does not load it"
                + (f": it names {shown(named[1])}" if named else ""),
                hint="write to a .safetensors file or a folder, which take the weights alone",
            ) from e
        weights = find_weights(content, torch.Tensor)
        left_out: list[str] = []
        kept: list[str] = []
        content = _without_training_state(content, weights.path, left_out, kept)
        notes = [f"left out, as it is about training: {', '.join(left_out)}"] if left_out else []
        notes += [f"kept as it is in {path}: {', '.join(kept)}"] if kept else []
        return cls(content, weights, tuple(notes))

    def save(self, merged: Path, target: Path) -> Path:
        """Write the content with other weights.

        Args:
            merged: safetensors file of the weights.
            target: file to write.
        """
        tensors = _mapped(merged)
        old = self.weights.of(self.content)
        new = {name: _like(tensor, old.get(name)) for name, tensor in tensors.items()}
        _tie(new, old)
        inner = at(self.content, self.weights.path)
        for name, (*path, last) in self.weights.keys.items():
            if name not in new:
                del at(inner, tuple(path))[last]
        for name, tensor in new.items():
            *path, last = self.weights.keys.get(name, (self.weights.wrapper + name,))
            at(inner, tuple(path))[last] = tensor
        try:
            torch.save(self.content, target)
        except RuntimeError as e:
            raise RunError(
                f"cannot write {target}: {str(e).splitlines()[0]}",
                hint="free some space and run the same command again; what was merged is kept",
            ) from e
        with target.open("rb+") as f:
            os.fsync(f.fileno())
        return target


def _mapped(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, each a piece of the file that is mapped into memory for itself."""
    tensors: dict[str, Tensor] = {}
    for name, info in read_header(path).tensors.items():
        dtype = getattr(torch, DTYPES[info.dtype].torch)
        if info.nbytes:
            raw = np.memmap(path, np.uint8, "c", info.offset, (info.nbytes,))
            tensors[name] = torch.from_numpy(raw).view(dtype).view(info.shape)
        else:
            tensors[name] = torch.empty(info.shape, dtype=dtype)
    return tensors


def _like(tensor: Tensor, old: Tensor | None) -> Tensor:
    """The tensor as a parameter, or with gradients, where the old one was."""
    if isinstance(old, torch.nn.Parameter):
        return torch.nn.Parameter(tensor, requires_grad=old.requires_grad)
    return tensor.requires_grad_() if old is not None and old.requires_grad else tensor


def _tie(new: dict[str, Tensor], old: Mapping[str, Tensor]) -> None:
    """Make names one tensor again that were one, where merging has left them equal."""
    first: dict[Any, str] = {}
    for name, tensor in old.items():
        if tensor.numel():
            place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            twin = first.setdefault(place, name)
            # Slices may have left one out.
            both = twin in new and name in new
            if twin != name and both and torch.equal(new[twin], new[name]):
                new[name] = new[twin]


def _without_training_state(
    content: Mapping[Any, Any], path: tuple[Any, ...], left_out: list[str], kept: list[str]
) -> Any:
    """A copy of the mappings on the way to the weights, and of all that hold weights.

    Args:
        content: a mapping.
        path: keys that lead on to the weights; empty if it holds them itself.
        left_out, kept: get the keys that are not on the way.
    """
    result: Any = copy.copy(content)
    for key, value in content.items():
        if path and key == path[0]:
            result[key] = _without_training_state(value, path[1:], left_out, kept)
        elif (is_training_state(key) or is_average(key)) and (path or not isinstance(value, torch.Tensor)):
            left_out.append(str(key))
            del result[key]
        elif path:
            kept.append(str(key))
        elif isinstance(value, Mapping):
            result[key] = _without_training_state(cast("Mapping[Any, Any]", value), (), left_out, kept)
    return result
