"""A model with its tokenizer: the one that gets another, and the one that gives it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from meldkit.checkpoint import Checkpoint, Locate, open_model
from meldkit.errors import MismatchError
from meldkit.layout import infer_layout
from meldkit.options import MergeOptions
from meldkit.plan.pieces import Model
from meldkit.plan.tables import Table, token_tables
from meldkit.recipe import ModelRef
from meldkit.tools.transplant.approximate import Heads
from meldkit.vocab import Tokenizer, read_tokenizer, special_tokens, tokenizer_files

#: Rows that tables of one vocabulary may differ by.
_PADDING = 1024


@dataclass(frozen=True)
class Side:
    """A model with its tokenizer."""

    ref: ModelRef
    checkpoint: Checkpoint
    tokenizer: Tokenizer

    @cached_property
    def model(self) -> Model:
        """As planning sees it."""
        return Model(0, self.ref, self.checkpoint, infer_layout(self.checkpoint, self.checkpoint.config))

    @cached_property
    def tables(self) -> dict[str, Table]:
        """Those with a row per token of texts, but for heads that are stored and tied."""
        tied = self.model.tied_heads()
        known = {name: table for name, table in token_tables(self.model).items() if name not in tied}
        # Models of several kinds have tables of other vocabularies, such as that of sounds.
        most = max((table.rows for table in known.values()), default=0)
        return {name: table for name, table in known.items() if most - table.rows <= _PADDING}

    def is_embedding(self, name: str) -> bool:
        """Whether a table is read, and not a head."""
        return self.model.layout.places[name].role == "embedding"

    @cached_property
    def embedding(self) -> tuple[str, Table] | None:
        """The first embedding."""
        return next((pair for pair in self._matrices() if self.is_embedding(pair[0])), None)

    @cached_property
    def head(self) -> tuple[str, Table] | None:
        """The first head that is not the embedding."""
        return next((pair for pair in self._matrices() if not self.is_embedding(pair[0])), None)

    def _matrices(self) -> Iterator[tuple[str, Table]]:
        return ((name, table) for name, table in self.tables.items() if len(table.row_shape) == 1)

    def roles(self) -> Mapping[str, str]:
        """Special tokens by what they are for, such as "bos"."""
        with tokenizer_files(self.checkpoint) as folder:
            return special_tokens(folder)

    def heads(self) -> Heads:
        """How its rows are cut into heads, as far as its configuration says."""
        config: Any = self.checkpoint.config.get("text_config") or self.checkpoint.config
        rope: Any = config.get("rope_parameters") or {}
        count = config.get("num_attention_heads") or config.get("n_head") or 1
        return Heads(int(count), float(config.get("rope_theta") or rope.get("rope_theta") or 10000.0))


def open_side(ref: ModelRef, cache: Path | None, options: MergeOptions, locate: Locate | None) -> Side:
    """Open a model, which may have been moved.

    Raises:
        MismatchError: it has no tokenizer or no embedding.
        MeldError: as for `open_model`.
    """
    checkpoint = open_model(ref, cache=cache, locate=locate)
    tokenizer = read_tokenizer(checkpoint, trust_remote_code=options.trust_remote_code)
    if tokenizer is None:
        raise MismatchError(
            f"'{ref}' has no tokenizer", hint="copy its tokenizer into its folder; rows are matched by tokens"
        )
    side = Side(ref, checkpoint, tokenizer)
    if side.embedding is None:
        raise MismatchError(
            f"'{ref}' has no embedding with a row per token",
            hint="'meldkit inspect' shows what it is made of",
        )
    return side
