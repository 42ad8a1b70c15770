"""What becomes of models whose tokenizers differ: they are brought to one vocabulary, or refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from meldkit.checkpoint import TensorInfo
from meldkit.errors import CheckpointError, MeldError, MismatchError
from meldkit.plan.pieces import Model
from meldkit.plan.stage import Composed
from meldkit.plan.tables import Table, lint_rows, num_rows, num_tokens, token_tables, with_tables
from meldkit.recipe import ModelRef, Recipe
from meldkit.regular import sha256_of
from meldkit.vocab import (
    FAST,
    AlignedRows,
    OutputTokenizer,
    RowMap,
    Tokenizer,
    added_beside,
    compare,
    read_tokenizer,
    with_num_tokens,
    without_row,
)

if TYPE_CHECKING:
    from meldkit.plan.alignment import OpenModel


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The vocabulary of the output.

    Attributes:
        models: the input models, each with the output's tokens in its tables.
        tokenizer: what is written; None for the donor's as it is.
        old_sizes: numbers of tokens that the donor's configuration may speak of.
        size: rows of the output's tables; None if they are the donor's.
    """

    models: dict[ModelRef, Model]
    tokenizer: OutputTokenizer | None = None
    old_sizes: Sequence[int] = ()
    size: int | None = None

    def configured(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The donor's configuration with the output's numbers of tokens."""
        translated = dict(config) if self.tokenizer is None else self.tokenizer.translated(config)
        return translated if self.size is None else with_num_tokens(translated, self.old_sizes, self.size)


def settle_vocabulary(
    recipe: Recipe,
    models: dict[ModelRef, Model],
    donor: Model,
    open_model: OpenModel,
    notes: list[str],
    warnings: list[str],
    *,
    allow_crop: bool,
    trust_remote_code: bool,
    copy_tokenizer: bool,
) -> Vocabulary:
    """Bring the models to one vocabulary, as the recipe says.

    Args:
        recipe: its `tokenizer` decides; without one, the vocabularies must be the same.
        models: the input models, in order.
        donor: the one whose tokenizer the output gets if nothing else is said.
        open_model: opens a model whose tokenizer is wanted and which is not merged.
        notes, warnings: are added to.
        allow_crop: without a setting, merge rows by number, cut to as many as all models have.
        trust_remote_code: run a model's own code where its tokenizer needs it.
        copy_tokenizer: the output gets the tokenizer.

    Raises:
        RecipeError: the embedding of a token is to come from where there is none.
        MismatchError: the vocabularies differ and nothing says what to do about it.
        CheckpointError: a tokenizer cannot be read.
    """
    if recipe.tokenizer is not None:
        from meldkit.plan.alignment import Alignment

        alignment = Alignment(recipe, recipe.tokenizer, models, donor, trust_remote_code)
        aligned, output, size = alignment.carried_out(open_model, notes, warnings)
        warnings += [
            f"{key} is {value} in the configuration of '{donor.ref}', but the output has {size:,} rows; "
            "what has none is left out there"
            for key, value in without_row(output.translated(donor.checkpoint.config), size).items()
        ]
        return Vocabulary(aligned, output, num_tokens(donor), size)
    if isinstance(donor.checkpoint, Composed) and (own := donor.checkpoint.vocabulary) is not None:
        return Vocabulary(models, own.tokenizer, own.old_sizes, own.size)
    # Files are copied; what is in a GGUF file has to be understood to be written.
    needed = copy_tokenizer and donor.checkpoint.gguf is not None
    if allow_crop:
        return _cropped(models, donor, warnings, needed=needed)
    size = _check_same(models, donor, warnings, needed=needed)
    return Vocabulary(models if size is None else _evened(models, donor, size, notes))


def _check_same(
    models: Mapping[ModelRef, Model], donor: Model, warnings: list[str], *, needed: bool
) -> int | None:
    """Check that models give the numbers to tokens that the donor gives to them.

    Returns:
        One more than the largest number; None if the donor has no tokenizer that is understood.

    Raises:
        MismatchError: they do not.
    """
    size, differing = _differences(models, donor, warnings, needed=needed)
    if differing:
        raise MismatchError(
            "the models have different vocabularies, so that rows of their embeddings do not belong "
            f"together: {'; '.join(differing)}",
            hint="add to the recipe the two lines\n"
            "    tokenizer:\n"
            "      source: union\n"
            "  to keep the tokens of all models (or 'source: base' for those of the base model only); "
            "--allow-crop merges rows of equal number",
        )
    for model in models.values():
        unknown = num_rows(model) - num_rows(donor)
        if size is not None and unknown > 0 and _if_readable(model, []) is None:
            raise MismatchError(
                f"the embedding of '{model.ref}' has {unknown:,} rows more than that of '{donor.ref}', "
                "and no tokenizer says whether they belong to tokens",
                hint="copy its tokenizer into its folder; --allow-crop cuts these rows off",
            )
    return size


def _differences(
    models: Mapping[ModelRef, Model], donor: Model, warnings: list[str], *, needed: bool
) -> tuple[int | None, list[str]]:
    """One more than the donor's largest number, if it is known; and how others differ, in words.

    Raises:
        CheckpointError: the donor's tokenizer is needed and cannot be read.
    """
    content = _stored(donor)
    others = [m for m in models.values() if m is not donor and (content is None or _stored(m) != content)]
    if content is None and not others and not needed:
        return None, []
    expected = read_tokenizer(donor.checkpoint) if needed else _if_readable(donor, warnings)
    if expected is None:
        return None, []
    warnings += lint_rows(donor, expected)
    differing: list[str] = []
    for model in others:
        # A model without a tokenizer is taken to have the donor's.
        if found := _if_readable(model, warnings):
            warnings += lint_rows(model, found)
            one, other = _with_rows(donor, expected, found), _with_rows(model, found, expected)
            differing += compare(one, other).words(str(donor.ref), str(model.ref))
    return min(expected.size, num_rows(donor) or expected.size), differing


def _with_rows(model: Model, own: Tokenizer, other: Tokenizer) -> Tokenizer:
    """A model's tokenizer without tokens that it has no row for and another lacks: they mix up nothing."""
    rows = num_rows(model)
    if own.size <= rows:
        return own
    kept = {t: number for t, number in own.tokens.items() if number < rows or t in other.tokens}
    return Tokenizer(own.label, None, kept)


def _if_readable(model: Model, warnings: list[str]) -> Tokenizer | None:
    """The tokenizer of a model; None if it has none, or one that is carried along but not understood."""
    try:
        tokenizer = read_tokenizer(model.checkpoint)
        return tokenizer if tokenizer is not None and tokenizer.tokens else None
    except MeldError as e:
        warnings.append(f"{e.message}, so its tokens are not compared with those of other models")
        return None


def _stored(model: Model) -> tuple[str, object] | None:
    """The tokenizer.json of a model and what is added beside it, if that is how its tokenizer is stored."""
    checkpoint = model.checkpoint
    folder = checkpoint.tokenizer or checkpoint.folder
    path = folder / FAST
    if checkpoint.gguf is not None or not path.is_file():
        return None
    try:
        content = sha256_of(path)
    except OSError as e:
        raise CheckpointError(f"cannot read {path}: {e.strerror}") from e
    with suppress(CheckpointError):  # reading the tokenizer will say so
        return content, added_beside(folder)
    return content, None


def _evened(
    models: dict[ModelRef, Model], donor: Model, size: int, notes: list[str]
) -> dict[ModelRef, Model]:
    """Give tables whose padding alone differs as many rows as the donor's, with its own at the end."""
    result = dict(models)
    for ref, model in models.items():
        if num_rows(model) == num_rows(donor):
            continue
        expected = token_tables(donor)
        tables: dict[str, TensorInfo] = {}
        for name, table in token_tables(model).items():
            wanted = expected.get(name)
            fits = wanted is not None and wanted.row_shape == table.row_shape
            if wanted is None or not fits or min(wanted.rows, table.rows) < size:
                continue
            numbers = np.arange(wanted.rows)
            behind = (numbers >= table.rows).astype(np.int16)
            rows = RowMap(np.arange(wanted.rows + 1), behind, numbers)
            tables[name] = table.with_rows(wanted.rows, AlignedRows((table.info, wanted.info), rows))
        if tables:
            result[ref] = with_tables(model, tables, donor.checkpoint.fingerprint)
            notes.append(
                f"the embeddings of '{ref}' have {num_rows(model):,} rows, those of '{donor.ref}' "
                f"{num_rows(donor):,}; the vocabularies are the same, and padding is the latter's"
            )
    return result


def _cropped(models: dict[ModelRef, Model], donor: Model, warnings: list[str], *, needed: bool) -> Vocabulary:
    """Cut every table to the rows that all models have of it."""
    size, differing = _differences(models, donor, warnings, needed=needed)
    if differing:
        warnings.append(
            f"rows of equal number are merged, though not of equal tokens: {'; '.join(differing)}"
        )
    tables = {ref: token_tables(model) for ref, model in models.items()}
    rows: dict[str, int] = {}
    for own in tables.values():
        for name, table in own.items():
            rows[name] = min(rows.get(name, table.rows), table.rows)
    result: dict[ModelRef, Model] = {}
    for ref, model in models.items():
        cut = {n: _cut(table, rows[n]) for n, table in tables[ref].items() if table.rows != rows[n]}
        result[ref] = with_tables(model, cut, "") if cut else model
        if cut:
            warnings.append(
                f"the embeddings of '{ref}' are cut from {num_rows(model):,} to {num_rows(result[ref]):,} "
                "rows" + "; the tokens behind are lost" * (size is None or size > num_rows(result[ref]))
            )
    left = num_rows(result[donor.ref])
    if left == num_rows(donor):
        return Vocabulary(result)
    return Vocabulary(result, None, [num_rows(donor)], left)


def _cut(table: Table, rows: int) -> TensorInfo:
    same = RowMap(np.arange(rows + 1), np.zeros(rows, np.int16), np.arange(rows))
    return table.with_rows(rows, AlignedRows((table.info,), same))
