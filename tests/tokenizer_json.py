"""From tokens and their ranks to the parts of a tokenizer.json."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN_PATTERN = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{_REST}"
LLAMA3_PATTERN = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}{_REST}"


def _letters() -> list[str]:
    """GPT-2's letter for each byte: itself if that can be printed."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(256 + others.index(byte)) if byte in others else chr(byte) for byte in range(256)]


LETTERS = _letters()


def spelled(token: bytes) -> str:
    return "".join(LETTERS[byte] for byte in token)


def read_ranks(content: bytes) -> dict[bytes, int]:
    """Tokens by the order in which they were learned, of a file in tiktoken's format."""
    lines = (line.split() for line in content.splitlines())
    return {b64decode(token): int(rank) for token, rank in lines}


def learned_merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The pair of which each token was made: what is left of its bytes before the last merge."""
    merges: list[tuple[bytes, bytes]] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            pairs = [ranks.get(a + b, len(ranks)) for a, b in pairwise(parts)]
            best = pairs.index(min(pairs))
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    return merges


def possible_merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Every pair of tokens that make a third one, in its order."""
    merges: list[tuple[bytes, bytes]] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        pairs = [(token[:i], token[i:]) for i in range(1, len(token))]
        known = [pair for pair in pairs if pair[0] in ranks and pair[1] in ranks]
        merges += sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return merges


def bpe(vocabulary: Mapping[str, int], merges: Iterable[str | list[str]], **more: Any) -> dict[str, Any]:
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
    }
    return model | more | {"vocab": vocabulary, "merges": list(merges)}


def byte_level(*, prefix: bool = False, trim: bool = True, regex: bool = False) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": trim, "use_regex": regex}


def cut_by(pattern: str, byte_level: Mapping[str, Any]) -> dict[str, Any]:
    """Words are what the expression matches; they are spelled in letters for bytes."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, byte_level]}


def begins_with(token: str, number: int) -> dict[str, Any]:
    """A text begins with a token."""

    def piece(kind: str, name: str, text: int) -> dict[str, Any]:
        return {kind: {"id": name, "type_id": text}}

    first = [piece("SpecialToken", token, 0), piece("Sequence", "A", 0)]
    return {
        "type": "TemplateProcessing",
        "single": first,
        "pair": [*first, piece("SpecialToken", token, 1), piece("Sequence", "B", 1)],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }


def added_tokens(tokens: Sequence[str], first: int, *, special: int) -> list[dict[str, Any]]:
    """Entries of added tokens, of which some are special and the later ones are not."""
    return [
        {
            "id": first + i,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": i < special,
        }
        for i, token in enumerate(tokens)
    ]


def write_tokenizer(path: Path, added: list[dict[str, Any]], **parts: Any) -> None:
    """Write tokenizer.json."""
    head = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None}
    write_json(path / "tokenizer.json", head | parts)


def write_config(path: Path, kind: str, added: list[dict[str, Any]], **more: Any) -> None:
    """Write tokenizer_config.json."""
    decoder = {str(t["id"]): {key: value for key, value in t.items() if key != "id"} for t in added}
    write_json(
        path / "tokenizer_config.json",
        {"added_tokens_decoder": decoder, "clean_up_tokenization_spaces": False}
        | more
        | {"tokenizer_class": kind},
    )


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), "utf-8")
