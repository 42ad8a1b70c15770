"""The tensors of a model that have an entry per token: embeddings, heads, and what belongs to them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from meldkit.checkpoint import Checkpoint, Encoding, TensorInfo
from meldkit.errors import MismatchError
from meldkit.layout import infer_layout
from meldkit.plan.pieces import NOT_TOKENS, Model
from meldkit.recipe import ModelRef
from meldkit.vocab import Tokenizer, counted

#: Heads and what else may have an entry per token, besides embeddings.
_TABLE = re.compile(
    r"lm_head|lm_loss|embed_out|output_projection|shared_head|predictions\.(bias|decoder)|pred_layer|vocab"
    r"|final_logits_bias|(^|\.)heads?\.|(^|\.)decoder\.(weight|bias)$",
    re.I,
)
#: Rows behind those of the tokens that an embedding may have: Mllama has 8.
_MAX_SURPLUS = 256
#: A tokenizer belongs to another model if more than this share of its tokens has no row.
_MAX_WITHOUT_ROW = 0.5
#: Tokens that a message names.
SHOWN = 3


@dataclass(frozen=True, slots=True)
class Table:
    """A tensor that has an entry per token.

    Attributes:
        info: the tensor.
        axis: which of its sizes counts tokens; those before it are 1.
        surplus: entries behind the number of tokens that the configuration speaks of.
    """

    info: TensorInfo
    axis: int
    surplus: int

    @property
    def rows(self) -> int:
        """How many entries it has."""
        return self.info.shape[self.axis]

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Sizes of an entry."""
        return self.info.shape[self.axis + 1 :]

    def with_rows(self, rows: int, encoding: Encoding) -> TensorInfo:
        """The tensor with other entries."""
        shape = (*self.info.shape[: self.axis], rows, *self.row_shape)
        return replace(self.info, shape=shape, encoding=encoding)


def token_tables(model: Model) -> dict[str, Table]:
    """Those tensors by name, in the model's order.

    What a configuration calls the number of tokens is rarely the size of anything else. Where it is, names
    decide.

    Raises:
        MismatchError: a tensor has an entry per token along another size than its first.
    """
    config = model.checkpoint.config
    declared = set(_declared(model))
    lengths = {model.checkpoint[name].shape[1] for name in model.token_embeddings()}
    surely = declared - lengths - set(_other_sizes_in(config))
    sizes = set(num_tokens(model))
    result: dict[str, Table] = {}
    for name, place in model.layout.places.items():
        info = model.checkpoint[name]
        shape = info.shape if info.floating else ()
        axis = 1 if shape[:1] == (1,) and len(shape) > 1 else 0
        named = bool(_TABLE.search(name))
        outside = place.stack is None and not NOT_TOKENS.search(name)
        if not shape or shape[axis] not in sizes:
            if shape[1:] and set(shape[1:]) & surely and (named or outside):
                raise MismatchError(
                    f"tensor '{name}' of '{model.ref}', {list(shape)}, has its tokens along another size "
                    "than its first",
                    hint="only rows can be brought to another vocabulary; leave out the tokenizer setting if "
                    "the vocabularies are the same, else save the models without their heads (AutoModel and "
                    "save_pretrained of transformers) and merge those",
                )
            continue
        embedding = place.role == "embedding" and len(shape) > 1 and not NOT_TOKENS.search(name)
        if named or embedding or (outside and len(shape) > 1 and shape[axis] in surely):
            behind = (shape[axis] - size for size in declared)
            surplus = min((n for n in behind if 0 <= n <= _MAX_SURPLUS), default=0)
            result[name] = Table(info, axis, surplus)
    return result


def num_tokens(model: Model) -> list[int]:
    """How many entries such a tensor may have, the embedding's first."""
    declared = _declared(model)
    embeddings = [model.checkpoint[name].shape[0] for name in model.token_embeddings()]
    # Other embeddings, of what is hashed or of how they are turned into others, have rows of their own.
    near = [n for n in embeddings if any(0 <= n - size <= _MAX_SURPLUS for size in declared)]
    embeddings = near or embeddings
    return list(dict.fromkeys((*sorted(embeddings, reverse=True), *declared)))


def _declared(model: Model) -> list[int]:
    """Numbers of tokens of texts that the configuration speaks of.

    Where models have tokens of sounds or pictures too, these have embeddings and numbers of their own, and
    there are fewer of them: of texts are those that the largest such embedding has.
    """
    declared = list(dict.fromkeys(_sizes_in(model.checkpoint.config)))
    embeddings = [model.checkpoint[name].shape[0] for name in model.token_embeddings()]
    most = max(
        (n for n in embeddings if any(0 <= n - size <= _MAX_SURPLUS for size in declared)), default=None
    )
    return declared if most is None else [size for size in declared if 0 <= most - size <= _MAX_SURPLUS]


def _sizes_in(config: Mapping[str, Any]) -> Iterator[int]:
    """Numbers of tokens that a configuration speaks of."""
    for key, value in config.items():
        if key.startswith("vocab_size") and type(value) is int:
            yield value
        elif isinstance(value, dict):
            yield from _sizes_in(value)  # pyright: ignore[reportUnknownArgumentType]


def _other_sizes_in(config: Mapping[str, Any]) -> Iterator[int]:
    """All other numbers in it that may be sizes."""
    for key, value in config.items():
        if type(value) is int and "vocab_size" not in key and not key.endswith("_id"):
            yield value
        elif isinstance(value, dict):
            yield from _other_sizes_in(value)  # pyright: ignore[reportUnknownArgumentType]


def num_rows(model: Model) -> int:
    """Rows of the embedding; 0 if there is none."""
    return next(iter(num_tokens(model)), 0)


def embedding_rows(checkpoint: Checkpoint) -> int:
    """Rows of a model's embedding; 0 if there is none."""
    return num_rows(
        Model(0, ModelRef(checkpoint.label), checkpoint, infer_layout(checkpoint, checkpoint.config))
    )


def with_tables(model: Model, tables: Mapping[str, TensorInfo], identity: str) -> Model:
    """The model with other tables, which follow from its own and from what `identity` stands for."""
    checkpoint = model.checkpoint
    shapes = [(name, info.shape) for name, info in tables.items()]
    fingerprint = hashlib.sha256(f"{checkpoint.fingerprint} {shapes} {identity}".encode()).hexdigest()
    changed = replace(checkpoint, tensors={**checkpoint.tensors, **tables}, fingerprint=fingerprint)
    return replace(model, checkpoint=changed)


def lint_rows(model: Model, tokenizer: Tokenizer) -> Iterator[str]:
    """Warnings about tokens that the embedding has no row for, and about such as have two numbers.

    Raises:
        MismatchError: most tokens have no row.
    """
    if renumbered := tokenizer.renumbered:
        token, (said, number) = next(iter(renumbered.items()))
        yield (
            f"the tokenizer of '{model.ref}' gives {token!r} the number {said}, but whatever reads it takes "
            f"{number}, because added tokens are numbered on without holes; so does this merge"
            + f" ({len(renumbered) - 1:,} more such)"
            * (len(renumbered) > 1)
        )
    rows = num_rows(model)
    tokens = {token: number for token, number in tokenizer.tokens.items() if number >= rows}
    if not tokens or not rows:
        return
    count = len(tokenizer.tokens)
    if len(tokens) > _MAX_WITHOUT_ROW * count:
        raise MismatchError(
            f"the tokenizer of '{model.ref}' has {count:,} tokens, its embedding {rows:,} rows",
            hint="the tokenizer is that of another model; copy the right one into the model's folder",
        )
    names = [f"{token!r} ({number})" for token, number in list(tokens.items())[:SHOWN]]
    yield (
        f"{counted(tokens)} of '{model.ref}' without a row in its embedding of {rows:,} rows: "
        + ", ".join(names)
        + ", …" * (len(tokens) > SHOWN)
    )


def lint_nameless(model: Model, donor: Model) -> Iterator[str]:
    """A warning about rows of a model without a tokenizer that the tokenizer of the donor cannot speak of."""
    surplus = num_rows(model) - num_rows(donor)
    if surplus > 0:
        yield (
            f"'{model.ref}' has no tokenizer, and {surplus:,} rows more than '{donor.ref}': they are lost; "
            "if they belong to tokens, copy its tokenizer into its folder"
        )


def named(tokens: Sequence[str], count: int | None = None) -> str:
    """Some of so many tokens for a message, of all that are given if nothing else is said."""
    return ", ".join(map(repr, tokens[:SHOWN])) + ", …" * ((count or len(tokens)) > SHOWN)
