"""How the vocabularies of several models differ."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from meldkit.checkpoint import open_model
from meldkit.errors import MismatchError
from meldkit.plan import embedding_rows
from meldkit.recipe import ModelRef
from meldkit.vocab import (
    ChatTemplates,
    Difference,
    Tokenizer,
    compare,
    read_templates,
    special_tokens,
    tokenizer_files,
    tokenizer_of_folder,
)


@dataclass(frozen=True, slots=True)
class TokenizerSummary:
    """The tokenizer of one model.

    Attributes:
        label: the model.
        tokenizer: its tokens.
        rows: of its embedding; None for a folder without weights.
        special: special tokens by what they are for: bos, eos, pad, unk, sep, cls, mask.
        templates: its chat templates.
    """

    label: str
    tokenizer: Tokenizer
    rows: int | None
    special: Mapping[str, str]
    templates: ChatTemplates


@dataclass(frozen=True, slots=True)
class PairDifference:
    """How two of the models differ; `first` and `second` are their places in the list."""

    first: int
    second: int
    tokens: Difference
    special: Mapping[str, tuple[str | None, str | None]]
    same_template: bool


@dataclass(frozen=True, slots=True)
class TokenizerComparison:
    """Several tokenizers and the differences of each pair, in the order in which they were given."""

    models: Sequence[TokenizerSummary]
    differences: Sequence[PairDifference]


def compare_tokenizers(
    models: Sequence[str | os.PathLike[str]], *, cache: Path | None = None, trust_remote_code: bool = False
) -> TokenizerComparison:
    """Compare the tokenizers of models; reads no weights.

    Args:
        models: as recipes name them, or folders that hold a tokenizer only.
        cache: where downloads are kept; None for the hub's own cache.
        trust_remote_code: run a model's own code where its tokenizer cannot be read otherwise.

    Raises:
        MismatchError: one of them has no tokenizer.
        CheckpointError: there is no such model, or it is damaged.
    """
    found = [_summary(os.fspath(model), cache, trust_remote_code) for model in models]
    return TokenizerComparison(found, [_pair(found, i, j) for i, j in combinations(range(len(found)), 2)])


def _summary(model: str, cache: Path | None, trust_remote_code: bool) -> TokenizerSummary:
    local = Path(model).expanduser()
    if local.is_dir() and not any(any(local.glob(weights)) for weights in ("*.safetensors", "*.bin")):
        return _read(model, local, None, trust_remote_code)
    checkpoint = open_model(ModelRef.parse(model), cache=cache, headers_only=True)
    with tokenizer_files(checkpoint) as folder:
        return _read(model, folder, embedding_rows(checkpoint), trust_remote_code)


def _read(model: str, folder: Path, rows: int | None, trust_remote_code: bool) -> TokenizerSummary:
    tokenizer = tokenizer_of_folder(model, folder, trust_remote_code)
    if tokenizer is None:
        raise MismatchError(f"'{model}' has no tokenizer", hint="name models or folders that have one")
    return TokenizerSummary(model, tokenizer, rows, special_tokens(folder), read_templates(folder))


def _pair(models: Sequence[TokenizerSummary], first: int, second: int) -> PairDifference:
    one, other = models[first], models[second]
    roles = [r for r in {**one.special, **other.special} if one.special.get(r) != other.special.get(r)]
    return PairDifference(
        first,
        second,
        compare(one.tokenizer, other.tokenizer),
        {role: (one.special.get(role), other.special.get(role)) for role in roles},
        one.templates == other.templates,
    )
