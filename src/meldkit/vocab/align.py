"""Which rows of which models' embeddings make the rows of the output's vocabulary.

A model that has a token keeps its own row for it. In one that lacks it, the first that answers wins:

    what the recipe says for the token
    the row of the only model that has it
    the base model's row
    the mean of the rows of the models that have it
    zeros, if no model has it

Numbers without a token, in holes of a vocabulary and behind its end, are for the caller to fill.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np

from meldkit.vocab.rows import RowMap

#: For `Explicit`: the row of zeros.
ZERO = -1


@dataclass(frozen=True, slots=True)
class Explicit:
    """Where the recipe takes a token's row from.

    Attributes:
        token: number in the output.
        model: whose row, or ZERO.
        row: of that model.
        force: whether models that have the token take it too.
    """

    token: int
    model: int
    row: int
    force: bool


def own_rows(
    tokens: Mapping[str, int], vocabulary: Mapping[str, int], size: int, num_rows: int
) -> np.ndarray:
    """For each number of the output's vocabulary the row of a model's table, int64; −1 where it has none.

    Args:
        tokens: the output's tokens and their numbers, below `size`.
        vocabulary: the model's.
        size: of the output's vocabulary.
        num_rows: of the model's table.
    """
    count = len(tokens)
    numbers = np.fromiter(tokens.values(), np.int64, count)
    found = np.fromiter(map(vocabulary.get, tokens, repeat(-1)), np.int64, count)
    found[found >= num_rows] = -1
    rows = np.full(size, -1, np.int64)
    rows[numbers] = found
    return rows


def align(own: Sequence[np.ndarray], base: int | None, explicit: Sequence[Explicit]) -> list[RowMap]:
    """The rows of each model's table in the output's vocabulary.

    Args:
        own: for each model, its rows by number in the output (`own_rows`).
        base: which of them is the base model, if any is.
        explicit: what the recipe says of single tokens.

    Returns:
        For each model a map whose tables are the models.
    """
    rows = np.stack(own)
    has = rows >= 0
    counts = has.sum(0)
    # For tokens that a model lacks: one entry, or as many as there are models with the token.
    default = np.where(counts > 0, has.argmax(0), ZERO)
    averaged = counts > 1
    if base is not None:
        default[has[base]] = base
        averaged &= ~has[base]
    default_row = np.where(default >= 0, np.take_along_axis(rows, default.clip(0)[None], 0)[0], 0)
    forced = np.zeros(rows.shape[1], bool)
    for entry in explicit:
        default[entry.token], default_row[entry.token] = entry.model, entry.row
        averaged[entry.token] = False
        forced[entry.token] = entry.force
    fallback = _Fallback(has, rows, default, default_row, averaged)
    return [fallback.map_of(model, has[model] & ~forced) for model in range(len(rows))]


@dataclass(frozen=True, slots=True)
class _Fallback:
    """What each number of the output's vocabulary takes in models that lack the token.

    Attributes:
        has: bool `[models, numbers]`, which models have the token.
        rows: int64, where.
        tables: the model whose row is taken, or ZERO.
        sources: which row of it.
        averaged: whether it is the mean of all models that have it instead.
    """

    has: np.ndarray
    rows: np.ndarray
    tables: np.ndarray
    sources: np.ndarray
    averaged: np.ndarray

    def map_of(self, model: int, kept: np.ndarray) -> RowMap:
        """The rows of a model's table, which keeps its own where `kept`."""
        tables = np.where(kept, model, self.tables)
        sources = np.where(kept, self.rows[model], self.sources)
        several = self.averaged & ~kept
        counts = np.where(several, self.has.sum(0), tables >= 0)
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        of_number = np.repeat(np.arange(len(counts)), counts)
        all_tables, all_rows = tables[of_number].astype(np.int16), sources[of_number]
        # The models that have an averaged token follow each other in the order of the recipe.
        chosen = np.flatnonzero(several)
        owners: np.ndarray = self.has[:, chosen]
        of_chosen, of_model = np.transpose(owners).nonzero()
        places = several[of_number]
        all_tables[places], all_rows[places] = of_model, self.rows[of_model, chosen[of_chosen]]
        return RowMap(starts, all_tables, all_rows)
