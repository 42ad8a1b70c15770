"""Tokenizers of a few words, and models that have a row for each of these."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import tiny

HIDDEN = 4


def content(words: Mapping[str, int], added: Sequence[str] = (), first: int | None = None) -> dict[str, Any]:
    """A tokenizer.json that cuts texts at spaces; added tokens follow the words."""
    start = max(words.values(), default=-1) + 1 if first is None else first
    return {
        "version": "1.0",
        "added_tokens": [
            {
                "id": start + place,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": place % 2 == 1,
                "normalized": False,
                "special": True,
            }
            for place, token in enumerate(added)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": dict(words), "unk_token": next(iter(words), "")},
    }


def model(
    folder: Path,
    tokenizer: Mapping[str, Any] | None,
    *,
    seed: int = 0,
    rows: int | None = None,
    tied: bool = False,
    settings: Mapping[str, object] | None = None,
    **config: object,
) -> Path:
    """A small Llama with that tokenizer, and as many rows as it has tokens if nothing else is said."""
    numbers: list[int] = []
    if tokenizer is not None:
        numbers = [*tokenizer["model"]["vocab"].values(), *(t["id"] for t in tokenizer["added_tokens"])]
    size = max(numbers, default=-1) + 1 if rows is None else rows
    without = ("lm_head.weight",) if tied else ()
    tiny.decoder(
        folder,
        seed,
        hidden=HIDDEN,
        layers=1,
        vocab=size,
        without=without,
        **{"vocab_size": size, "tie_word_embeddings": tied, "eos_token_id": 1, **config},
    )
    if tokenizer is not None:
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        loader = {"tokenizer_class": "PreTrainedTokenizerFast", **(settings or {})}
        (folder / "tokenizer_config.json").write_text(json.dumps(loader))
    return folder


def numbers(folder: Path) -> dict[str, int]:
    """Every token of a folder's tokenizer, as the tokenizers library numbers it."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab(with_added_tokens=True)


def row_of(folder: Path, name: str, number: int) -> torch.Tensor:
    """A row of a table."""
    return tiny.tensors(folder)[name][number]
