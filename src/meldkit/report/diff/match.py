"""Which tensors of several models belong together, and which rows of their embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from meldkit.checkpoint import Checkpoint, TensorInfo, as_named_by
from meldkit.checkpoint.experts import as_stored_by
from meldkit.errors import CheckpointError, MeldError
from meldkit.layout import Place, infer_layout
from meldkit.plan.pieces import Model
from meldkit.plan.tables import Table, token_tables
from meldkit.recipe import ModelRef
from meldkit.regular import sha256_of
from meldkit.vocab import FAST, AlignedRows, RowMap, Tokenizer, added_beside, compare, read_tokenizer


@dataclass(frozen=True, slots=True)
class Match:
    """One tensor in the models that have it.

    Attributes:
        name: in the first of them.
        place: where it stands there.
        infos: by model, as it is compared; None in models that lack it.
        shapes: by model, as it is stored.
        rows: how rows of different vocabularies were brought together: "token", "number", or None.
    """

    name: str
    place: Place
    infos: tuple[TensorInfo | None, ...]
    shapes: tuple[tuple[int, ...] | None, ...]
    rows: str | None


def match(checkpoints: Sequence[Checkpoint], notes: list[str]) -> list[Match]:
    """Bring models to the names and the vocabulary of the first.

    Args:
        checkpoints: the models.
        notes: is told what was done for that.

    Returns:
        All tensors, in the order of the first model; those that only others have come last.
    """
    models = _in_one_layout(checkpoints, notes)
    aligned, kinds = _in_one_vocabulary(models, notes)
    names: dict[str, Place] = {}
    for model in models:
        names |= {name: place for name, place in model.layout.places.items() if name not in names}
    result: list[Match] = []
    for name, place in names.items():
        stored = [model.stored_name(name) for model in models]
        own = [
            None if found is None else model.checkpoint[found]
            for model, found in zip(models, stored, strict=True)
        ]
        result.append(
            Match(
                name,
                place,
                tuple(
                    None if found is None else tables.get(found, info)
                    for tables, found, info in zip(aligned, stored, own, strict=True)
                ),
                tuple(None if info is None else info.shape for info in own),
                next((kinds[found] for found in stored if found in kinds), None),
            )
        )
    return result


def _in_one_layout(checkpoints: Sequence[Checkpoint], notes: list[str]) -> list[Model]:
    """Every model under the first one's names and with its experts stored alike, as a merge reads them."""
    first = checkpoints[0]
    models: list[Model] = []
    for index, checkpoint in enumerate(checkpoints):
        named = as_named_by(checkpoint.tensors, first.tensors)
        if named is not checkpoint.tensors:
            own, name = next(p for p in zip(checkpoint.tensors, named, strict=True) if p[0] != p[1])
            notes.append(
                f"the tensors of '{checkpoint.label}' go by the names of '{first.label}': {own} is {name}, …"
            )
        tensors = as_stored_by(named, first.tensors)
        if tensors is not named:
            notes.append(f"the experts of '{checkpoint.label}' are read as '{first.label}' stores them")
        changed = replace(checkpoint, tensors=tensors)
        layout = infer_layout(changed, changed.config)
        models.append(Model(index, ModelRef(checkpoint.label), changed, layout))
    return models


def _in_one_vocabulary(
    models: Sequence[Model], notes: list[str]
) -> tuple[list[dict[str, TensorInfo]], dict[str, str]]:
    """Tables of tokens, cut to the rows that all models have.

    Returns:
        For each model its tables that must be read otherwise than they are stored; and by the names of tables
        how their rows were brought together.
    """
    changed: list[dict[str, TensorInfo]] = [{} for _ in models]
    kinds: dict[str, str] = {}
    try:
        tables = [token_tables(model) for model in models]
    except MeldError as e:
        notes.append(f"{e.message}, so rows of different vocabularies are not brought together")
        return changed, kinds
    by_token = _rows_by_token(models, tables, notes)
    cut: dict[int, None] = {}
    for name in dict.fromkeys(name for own in tables for name in own):
        have = [i for i, own in enumerate(tables) if name in own]
        counts = {tables[i][name].rows for i in have}
        if by_token is None and len(counts) < 2:
            continue
        kinds[name] = "number" if by_token is None else "token"
        cut[min(counts)] = None
        for i in have:
            rows = np.arange(min(counts)) if by_token is None else by_token[i]
            changed[i][name] = _with_rows(tables[i][name], rows)
    if by_token is None:
        notes += [f"embeddings have different numbers of rows: the first {n:,} are compared" for n in cut]
    return changed, kinds


def _with_rows(table: Table, rows: np.ndarray) -> TensorInfo:
    row_map = RowMap(np.arange(len(rows) + 1), np.zeros(len(rows), np.int16), rows)
    return table.with_rows(len(rows), AlignedRows((table.info,), row_map))


def _rows_by_token(
    models: Sequence[Model], tables: Sequence[Mapping[str, Table]], notes: list[str]
) -> list[np.ndarray] | None:
    """For each model the rows of the tokens that all have, int64; None if equal numbers are equal tokens."""
    tokenizers = _tokenizers(models, notes)
    if not all(tables) or tokenizers is None or not any(compare(tokenizers[0], t) for t in tokenizers[1:]):
        return None
    usable = [
        {token for token, number in t.tokens.items() if number < min(x.rows for x in own.values())}
        for t, own in zip(tokenizers, tables, strict=True)
    ]
    shared = usable[0].intersection(*usable[1:])
    # Adding tokens moves none of those that were there; their numbers tell the same story as their names.
    if all(t.tokens[token] == tokenizers[0].tokens[token] for t in tokenizers[1:] for token in shared):
        sizes = {len(t.tokens) for t in tokenizers}
        if len(shared) == min(sizes):
            return None
    order = sorted(shared, key=tokenizers[0].tokens.__getitem__)
    notes.append(
        f"the vocabularies differ: the rows of the {len(order):,} tokens that all models have are compared"
    )
    return [np.fromiter((t.tokens[token] for token in order), np.int64, len(order)) for t in tokenizers]


def _tokenizers(models: Sequence[Model], notes: list[str]) -> list[Tokenizer] | None:
    """The tokenizer of each model; None if they are the same files, or some cannot be read."""
    stored = [_stored(model.checkpoint) for model in models]
    if all(content is not None and content == stored[0] for content in stored):
        return None
    found: list[Tokenizer] = []
    for model in models:
        try:
            tokenizer = read_tokenizer(model.checkpoint)
        except MeldError as e:
            notes.append(f"{e.message}, so rows of embeddings are compared by number")
            return None
        if tokenizer is None or not tokenizer.tokens:
            # Only worth a word where there are embeddings of tokens.
            return None
        found.append(tokenizer)
    return found


def _stored(checkpoint: Checkpoint) -> object:
    """What a model's tokenizer is stored as: equal if it is the same one."""
    if checkpoint.gguf is not None:
        return checkpoint.gguf
    folder = checkpoint.tokenizer or checkpoint.folder
    try:
        return sha256_of(folder / FAST), added_beside(folder)
    except (OSError, CheckpointError):
        return None
