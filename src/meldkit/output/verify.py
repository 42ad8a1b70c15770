"""What is looked at before an output is published: the files on the disk, not what should be in them.

No weight is read again. That values are finite was seen while they were written.
"""

from __future__ import annotations

import filecmp
from collections.abc import Collection, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from meldkit.checkpoint import TensorInfo, read_header, read_json
from meldkit.errors import MeldError, RunError
from meldkit.output.fit import check_fit
from meldkit.plan import Plan
from meldkit.plan.tables import embedding_rows
from meldkit.vocab import FAST, GENERATION, tokenizer_of_folder

_INDEX = "model.safetensors.index.json"
#: How settings end that hold numbers of tokens.
_IDS = ("token_id", "token_ids")


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found right in an output, by looking at its files.

    Attributes:
        num_tensors: names, types, shapes and places are what the plan says.
        num_files: weight files; their sizes, headers and, if there are several, their index.
        num_facts: sizes that config.json and the weights both tell, and agree on.
        num_tokens: of the tokenizer, each with a row of the embedding; 0 if it is the donor's as it was.
        num_ids: numbers of tokens that config.json and generation_config.json name, each with a row.
        nonfinite: names of tensors that hold NaN or Inf, which was let through.
    """

    num_tensors: int
    num_files: int
    num_facts: int
    num_tokens: int
    num_ids: int
    nonfinite: tuple[str, ...]


def verify(
    folder: Path, plan: Plan, found: Mapping[str, TensorInfo], nonfinite: Collection[str] = ()
) -> Verification:
    """Look at what lies beside the weights of an output, and whether it belongs to them.

    Args:
        folder: where the files are.
        plan: what they should be.
        found: what `check_weights` found.
        nonfinite: names of tensors in which NaN or Inf was seen while they were written.

    Raises:
        RunError: something is not as it should be.
    """
    num_facts = num_tokens = num_ids = 0
    with _unpublished("run the same command again; the weights are done and are kept"):
        _indices(folder, plan, found)
        if plan.config is not None:
            config = read_json(folder / "config.json")
            if config != plan.config:
                raise RunError(f"{folder / 'config.json'} is not what was written")
            num_facts = check_fit(plan, config, {name: info.shape for name, info in found.items()})
            rows = embedding_rows(replace(plan.checkpoints[plan.donor], tensors=found, config=config))
            num_tokens = _tokenizer(folder, plan, rows)
            num_ids = _ids(folder, plan, rows)
    return Verification(
        num_tensors=len(found),
        num_files=len(plan.files),
        num_facts=num_facts,
        num_tokens=num_tokens,
        num_ids=num_ids,
        nonfinite=tuple(job.name for job in plan.jobs if job.name in nonfinite),
    )


@contextmanager
def _unpublished(hint: str) -> Generator[None]:
    """Whatever readers say of an input's files, these are ours."""
    try:
        yield
    except MeldError as e:
        raise RunError(f"the merge is not published: {e.message}", hint=hint) from e


def check_weights(folder: Path, plan: Plan) -> dict[str, TensorInfo]:
    """The tensors that the weight files of an output hold, by their headers.

    Args:
        folder: where the files are.
        plan: what they should hold.

    Raises:
        RunError: they hold anything else.
    """
    with _unpublished("run the same command again; it starts over"):
        return _weights(folder, plan)


def _weights(folder: Path, plan: Plan) -> dict[str, TensorInfo]:
    """The headers of all weight files, which are the plan's."""
    result: dict[str, TensorInfo] = {}
    stored = [part for job in plan.jobs for part in job.stored]
    for index, file in enumerate(plan.files):
        path = folder / file.name
        header = read_header(path)
        expected = {p.name: (p.dtype, p.shape, p.offset) for p in stored if p.file == index}
        found = {file.folder + t.name: t for t in header.tensors.values()}
        for name, (dtype, shape, offset) in expected.items():
            info = found.get(name)
            if info is None:
                raise RunError(f"{path} lacks tensor '{name}'")
            if (info.dtype, info.shape) != (dtype, shape):
                raise RunError(
                    f"{path} has tensor '{name}' as {info.dtype} {list(info.shape)}, "
                    f"it should be {dtype} {list(shape)}"
                )
            if info.offset != offset:
                raise RunError(f"{path} has tensor '{name}' at byte {info.offset:,}, not {offset:,}")
        if surplus := [name for name in found if name not in expected]:
            raise RunError(f"{path} has a tensor '{surplus[0]}' that does not belong to it")
        result |= found
    return result


def _indices(folder: Path, plan: Plan, found: Mapping[str, TensorInfo]) -> None:
    for part in dict.fromkeys(file.folder for file in plan.files):
        files = {file.name for file in plan.files if file.folder == part}
        path = folder / part / _INDEX
        if len(files) == 1:
            if path.exists():
                raise RunError(f"{path} is there beside the one file of all tensors")
            continue
        own = {
            name: info for name, info in found.items() if info.file.relative_to(folder).as_posix() in files
        }
        index = read_json(path)
        expected = {name.removeprefix(part): info.file.name for name, info in own.items()}
        if index.get("weight_map") != expected:
            raise RunError(f"{path} does not list the tensors that the files hold")
        total = sum(info.nbytes for info in own.values())
        if cast("Any", index.get("metadata")) != {"total_size": total}:
            raise RunError(f"{path} does not give the tensors {total:,} bytes")


def _tokenizer(folder: Path, plan: Plan, rows: int) -> int:
    """Tokens of the tokenizer; those of one that was copied are not counted."""
    path = folder / FAST
    donor = plan.checkpoints[plan.donor]
    if not path.is_file():
        return 0
    if plan.tokenizer is None and donor.gguf is None:
        source = (donor.tokenizer or donor.folder) / FAST
        if not filecmp.cmp(path, source, shallow=False):
            raise RunError(f"{path} is not the tokenizer of '{donor.label}'")
        return 0
    tokenizer = tokenizer_of_folder("output", folder)
    assert tokenizer is not None
    if plan.tokenizer is not None and rows and tokenizer.size > rows:
        token = max(tokenizer.tokens, key=lambda t: tokenizer.tokens[t])
        raise RunError(
            f"{path} has token {token!r} with number {tokenizer.size - 1:,}, the embedding has {rows:,} rows"
        )
    return len(tokenizer.tokens)


def _ids(folder: Path, plan: Plan, rows: int) -> int:
    """Numbers of tokens in the settings; those without a row must be an input's own."""
    path = folder / GENERATION
    settings = {"config.json": plan.config or {}, GENERATION: read_json(path) if path.is_file() else {}}
    count = 0
    for name, content in settings.items():
        for key, number in _numbers(content):
            if rows and number >= rows and (key, number) not in _own_ids(plan):
                raise RunError(f"{folder / name} has {key} {number:,}, but the embedding has {rows:,} rows")
            count += 0 <= number < rows
    return count


def _own_ids(plan: Plan) -> set[tuple[str, int]]:
    """Numbers of tokens in the settings of the inputs."""
    result: set[tuple[str, int]] = set()
    for checkpoint in plan.checkpoints:
        path = checkpoint.folder / GENERATION
        result.update(_numbers(checkpoint.config))
        result.update(_numbers(read_json(path) if path.is_file() else {}))
    return result


def _numbers(settings: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _numbers(cast("Mapping[str, Any]", value))
        elif key.endswith(_IDS):
            values = cast("list[Any]", value if isinstance(value, list) else [value])
            yield from ((key, number) for number in values if type(number) is int)
