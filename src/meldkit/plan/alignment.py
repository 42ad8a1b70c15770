"""Models with different tokenizers, brought to the vocabulary that a recipe asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from meldkit.checkpoint import Checkpoint, TensorInfo, check_links, read_json
from meldkit.errors import FormatError, MismatchError, RecipeError
from meldkit.plan.pieces import Model, at
from meldkit.plan.tables import (
    SHOWN,
    Table,
    lint_nameless,
    lint_rows,
    named,
    num_rows,
    token_tables,
    with_tables,
)
from meldkit.recipe import ModelRef, ModelToken, Recipe, TokenEntry, TokenizerSpec
from meldkit.vocab import (
    GENERATION,
    AlignedRows,
    MeanRow,
    OutputTokenizer,
    RowMap,
    Tokenizer,
    counted,
    is_unicode,
    other_spellings,
    read_tokenizer,
    tokenizer_of_folder,
)
from meldkit.vocab.align import ZERO, Explicit, align, own_rows
from meldkit.vocab.union import check_loads, unite

#: Rows that no embedding has; a few hundred thousand are usual.
_MAX_ROWS = 1 << 24

OpenModel = Callable[[ModelRef], Checkpoint]


class Alignment:
    """Brings the tables of models to one vocabulary; arguments as of `settle_vocabulary`."""

    def __init__(
        self,
        recipe: Recipe,
        spec: TokenizerSpec,
        models: dict[ModelRef, Model],
        donor: Model,
        trust_remote_code: bool,
    ) -> None:
        self._base = recipe.base_model
        self._spec = spec
        self._models = models
        self._donor = donor
        self._trust = trust_remote_code
        self._tokenizers: dict[ModelRef, Tokenizer] = {}

    def carried_out(
        self, open_model: OpenModel, notes: list[str], warnings: list[str]
    ) -> tuple[dict[ModelRef, Model], OutputTokenizer, int]:
        """The models in the new vocabulary, the tokenizer to write, and the number of rows of its tables."""
        self._read(notes, warnings)
        source, output = self._source(open_model)
        others = [t for t in self._tokenizers.values() if t is not source and self._spec.source == "union"]
        usable = {str(ref): num_rows(model) for ref, model in self._models.items()}
        listed = self._listed()
        notes += [
            f"{at(self._spec.tokens[token].where)}{token!r} is added to the vocabulary, and looked for in "
            "texts as it is"
            for token in listed
            if all(token not in t.tokens for t in (source, *self._tokenizers.values()))
        ]
        union = unite(source, others, usable, listed)
        for label, tokens in union.added.items():
            notes.append(f"{counted(tokens)} of '{label}' added to the vocabulary of '{source.label}'")
            other = next(t for t in others if t.label == label)
            if alike := other_spellings(source, other, tokens):
                token, ours = next(iter(alike.items()))
                notes.append(
                    f"{len(alike):,} of these stand for texts that '{source.label}' has under another "
                    f"spelling, as {token!r} for {ours!r}: tokens are matched by spelling"
                )
            missed = union.unreachable.get(label)
            if missed is not None and missed.count:
                warnings.append(
                    f"{'' if missed.exact else 'about '}{missed.count:,} of the {len(tokens):,} tokens that "
                    f"'{label}' adds will not occur in texts, because the tokenizer of '{source.label}' cuts "
                    f"these otherwise: {named(missed.tokens, missed.count)}"
                )
        # What is lacking has no row there: `lint_rows` has said so, but not what becomes of it.
        warnings += [
            f"{counted(lost)} of '{other.label}' left out of the union, for want of a row in its embedding: "
            + named(lost)
            for other in others
            if (lost := [token for token in other.tokens if token not in union.tokenizer.tokens])
        ]
        if union.tokenizer is not source:
            output = replace(output, changed=union.tokenizer)
        models, rows = self._aligned(union.tokenizer, keeps_numbers=output.donor is None, notes=notes)
        return models, output, rows

    def _read(self, notes: list[str], warnings: list[str]) -> None:
        """Read the tokenizer of each model."""
        donor = self._tokenizer_of(self._donor.checkpoint)
        if donor is None:
            raise MismatchError(
                f"{at(self._spec.where)}'{self._donor.ref}' has no tokenizer",
                hint="copy the model's tokenizer into its folder, or leave out the tokenizer setting",
            )
        for ref, model in self._models.items():
            own = donor
            if model is not self._donor:
                found = self._tokenizer_of(model.checkpoint)
                if found is None:
                    notes.append(f"'{ref}' has no tokenizer; it is taken to have that of '{self._donor.ref}'")
                    warnings += lint_nameless(model, self._donor)
                own = found or replace(donor, label=str(ref))
            _check_tokens(own)
            warnings += lint_rows(model, own)
            self._tokenizers[ref] = own

    def _tokenizer_of(self, checkpoint: Checkpoint) -> Tokenizer | None:
        try:
            return read_tokenizer(checkpoint, trust_remote_code=self._trust)
        except FormatError as e:
            raise FormatError(
                e.message,
                hint="merge the original model instead of this file; or, if the vocabularies are the same, "
                "leave out the tokenizer setting and merge with --no-copy-tokenizer",
            ) from e

    def _source(self, open_model: OpenModel) -> tuple[Tokenizer, OutputTokenizer]:
        """The tokenizer that the output's is made from."""
        wanted = self._spec.source
        ref = wanted if isinstance(wanted, ModelRef) else self._donor.ref
        local, is_folder = Path(ref.path), False
        with suppress(OSError, RuntimeError):  # too long, or `~nobody`: whoever opens it says so
            local = local.expanduser()
            is_folder = local.is_dir()
        if ref not in self._models and is_folder and not ref.adapters:
            # It need not hold a model.
            check_links(str(ref), local)
            tokenizer, folder, gguf = tokenizer_of_folder(str(ref), local, self._trust), local, None
            settings = _json(local / "config.json")
        else:
            checkpoint = self._models[ref].checkpoint if ref in self._models else open_model(ref)
            folder, gguf = checkpoint.tokenizer or checkpoint.folder, checkpoint.gguf
            settings = checkpoint.config
            tokenizer = self._tokenizers.get(ref) or self._tokenizer_of(checkpoint)
        if tokenizer is None:
            raise RecipeError(
                f"{at(self._spec.where)}'{ref}' has no tokenizer", hint="name a model that has one"
            )
        _check_tokens(tokenizer)
        check_loads(tokenizer)
        output = OutputTokenizer(
            source=tokenizer,
            folder=folder,
            gguf=gguf,
            donor=None if ref == self._donor.ref else self._tokenizers[self._donor.ref],
            settings=settings,
            generation=_json(folder / GENERATION),
        )
        return tokenizer, output

    def _listed(self) -> dict[str, Mapping[str, bool]]:
        """The tokens that the recipe lists, with the flags of the first model that has them."""
        result: dict[str, Mapping[str, bool]] = {}
        none: Mapping[str, bool] = {}
        for token, entry in self._spec.tokens.items():
            if not token:
                raise RecipeError(f"{at(entry.where)}a token is empty", hint="leave it out")
            owners = (t.added[token].flags for t in self._tokenizers.values() if token in t.added)
            result[token] = next(owners, none)
        return result

    def _aligned(
        self, tokenizer: Tokenizer, *, keeps_numbers: bool, notes: list[str]
    ) -> tuple[dict[ModelRef, Model], int]:
        multiple = self._spec.pad_to_multiple_of or 1
        padded = -(-tokenizer.size // multiple) * multiple
        if padded > _MAX_ROWS:
            raise RecipeError(
                f"{at(self._spec.where)}pad_to_multiple_of is {multiple:,}, which makes {padded:,} rows",
                hint="64 or 128 is usual",
            )
        tables = {ref: token_tables(model) for ref, model in self._models.items()}
        names = list(dict.fromkeys(name for own in tables.values() for name in own))
        if not names:
            raise MismatchError(
                f"{at(self._spec.where)}'{self._donor.ref}' has no embedding with a row per token",
                hint="leave out the tokenizer setting",
            )
        aligned: dict[ModelRef, dict[str, TensorInfo]] = {ref: {} for ref in self._models}
        digests: dict[ModelRef, list[str]] = {ref: [] for ref in self._models}
        maps: dict[tuple[tuple[ModelRef, int], ...], list[RowMap]] = {}
        for name in names:
            owners: dict[ModelRef, Table] = {}
            for ref, model in self._models.items():
                stored = model.stored_name(name)
                if stored is not None and stored in tables[ref]:
                    owners[ref] = tables[ref][stored]
            _check_columns(name, owners)
            key = tuple((ref, table.rows) for ref, table in owners.items())
            if key not in maps:
                maps[key] = self._maps(dict(key), tokenizer, keeps_numbers=keeps_numbers)
            for place, (ref, rows) in enumerate(zip(owners, maps[key], strict=True)):
                # A model that is tied has no table of this name; its embedding stands for one, but not with
                # the rows that embeddings get. The donor's ties are the output's.
                if name in tables[ref] or ref != self._donor.ref:
                    made = _in_rows(tuple(owners.values()), place, rows, padded)
                    aligned[ref][name] = replace(made, name=name)
                    digests[ref].append(rows.digest)
        # What only others have is left out or copied, and a head that is stored though it is tied left out.
        unwanted = self._donor.tied_heads()
        kept = [name for name in names if name in self._donor.checkpoint and name not in unwanted]
        notes.append(
            f"{', '.join(kept[:SHOWN])}{', …' * (len(kept) > SHOWN)}: a row for each of "
            f"{len(tokenizer.tokens):,} tokens, {padded:,} rows"
        )
        together = [model.checkpoint.fingerprint for model in self._models.values()]
        models = {
            ref: with_tables(model, aligned[ref], f"{digests[ref]} {together}")
            for ref, model in self._models.items()
        }
        return models, padded

    def _maps(
        self, owners: Mapping[ModelRef, int], tokenizer: Tokenizer, *, keeps_numbers: bool
    ) -> list[RowMap]:
        """The rows of the tables of these models, which have so many rows."""
        refs = list(owners)
        size = tokenizer.size
        own = [own_rows(tokenizer.tokens, self._tokenizers[ref].tokens, size, owners[ref]) for ref in refs]
        if keeps_numbers and self._donor.ref in owners:
            # Numbers without a token keep what the donor has there.
            numbers = np.arange(min(size, owners[self._donor.ref]))
            used = np.zeros(size, bool)
            used[np.fromiter(tokenizer.tokens.values(), np.int64)] = True
            holes = numbers[~used[: len(numbers)]]
            own[refs.index(self._donor.ref)][holes] = holes
        base = refs.index(self._base) if self._base is not None and self._base in owners else None
        explicit = [
            entry
            for token, said in self._spec.tokens.items()
            if (entry := self._explicit(token, said, tokenizer.tokens[token], owners, own)) is not None
        ]
        return align(own, base, explicit)

    def _explicit(
        self,
        token: str,
        entry: TokenEntry,
        number: int,
        owners: Mapping[ModelRef, int],
        own: Sequence[np.ndarray],
    ) -> Explicit | None:
        """What the recipe says of a token's row.

        Raises:
            RecipeError: there is no such row.
        """
        where = f"{at(entry.where)}token {token!r}"
        refs = list(owners)
        source = entry.source
        if source == "zero":
            return Explicit(number, ZERO, 0, entry.force)
        if source is None:
            if entry.force:
                raise RecipeError(
                    f"{where} has force, but no source", hint="say where its embedding comes from"
                )
            if all(rows[number] < 0 for rows in own):
                raise RecipeError(
                    f"{where} is in no model's vocabulary",
                    hint="correct its spelling, or say where its embedding comes from: "
                    "'source: {kind: zero}' or 'source: {kind: model_token, model: …, token: …}'",
                )
            return None
        ref = source.model if isinstance(source, ModelToken) else source
        if ref not in owners:
            raise RecipeError(
                f"{where}: its embedding is to come from '{ref}', which is not merged",
                hint="choose one of " + ", ".join(f"'{known}'" for known in refs),
            )
        model = refs.index(ref)
        if not isinstance(source, ModelToken):
            row = int(own[model][number])
        elif source.token_id is not None:
            row = source.token_id if 0 <= source.token_id < owners[ref] else -1
        else:
            row = self._tokenizers[ref].tokens.get(source.token or "", -1)
            row = row if row < owners[ref] else -1
        if row < 0:
            wanted = token
            if isinstance(source, ModelToken):
                wanted = source.token if source.token is not None else source.token_id
            raise RecipeError(
                f"{where}: '{ref}' has no row for {wanted!r}",
                hint=f"its embedding has {owners[ref]:,} rows; see 'meldkit tokenizers' for what it has",
            )
        return Explicit(number, model, row, entry.force)


def _json(path: Path) -> Mapping[str, object]:
    return read_json(path) if path.is_file() else {}


def _check_tokens(tokenizer: Tokenizer) -> None:
    """Raise MismatchError if two tokens have one number, or one is no text or its number that of no row."""
    tokens = tokenizer.tokens
    if not is_unicode("".join(tokens)):
        token = next(token for token in tokens if not is_unicode(token))
        raise MismatchError(
            f"the tokenizer of '{tokenizer.label}' has the token {token!r} with half of a surrogate pair, "
            "which is no character",
            hint="repair the model's tokenizer: nothing can load it",
        )
    for token, number in tokens.items():
        if not 0 <= number < _MAX_ROWS:
            raise MismatchError(
                f"the tokenizer of '{tokenizer.label}' gives the number {number:,} to {token!r}",
                hint="no embedding has such a row; repair the model's tokenizer",
            )
    if len(set(tokens.values())) == len(tokens):
        return
    number, _ = Counter(tokens.values()).most_common(1)[0]
    one, other, *_ = (token for token, own in tokens.items() if own == number)
    raise MismatchError(
        f"the tokenizer of '{tokenizer.label}' gives the number {number} to {one!r} and to {other!r}",
        hint="their rows cannot be told apart; repair the model's tokenizer",
    )


def _check_columns(name: str, owners: Mapping[ModelRef, Table]) -> None:
    """Raise MismatchError unless rows of these tables can stand in each other's place."""
    first, *others = owners.items()
    for ref, table in others:
        if table.row_shape != first[1].row_shape:
            raise MismatchError(
                f"tensor '{name}' has shape {list(first[1].info.shape)} in '{first[0]}' "
                f"and {list(table.info.shape)} in '{ref}'",
                hint="tokenizers can be brought together only where rows are equally long",
            )


def _in_rows(tables: tuple[Table, ...], own: int, rows: RowMap, padded: int) -> TensorInfo:
    """The table of one model in a new vocabulary.

    Rows of padding are the mean of those of tokens. What the model's table has behind the tokens of its
    configuration, which are no tokens of texts (Mllama), comes last.
    """
    table = tables[own]
    size = len(rows)
    unchanged = (
        size == padded == table.rows == len(rows.rows)
        and bool((rows.tables == own).all())
        and bool((rows.rows == np.arange(size)).all())
    )
    if unchanged:
        return table.info
    aligned = table.with_rows(size, AlignedRows(tuple(each.info for each in tables), rows))
    total = padded + table.surplus
    if size == total:
        return aligned
    mean = table.with_rows(1, MeanRow(aligned))
    numbers = np.arange(total)
    parts = np.where(numbers < size, 0, np.where(numbers < padded, 1, 2)).astype(np.int16)
    behind = numbers - padded + table.rows - table.surplus
    sources = np.where(parts == 0, numbers, np.where(parts == 1, 0, behind))
    pieces = RowMap(np.arange(total + 1), parts, sources)
    return table.with_rows(total, AlignedRows((aligned, mean, table.info), pieces))
