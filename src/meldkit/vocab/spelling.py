"""Tokens that stand for the same text in two tokenizers, though they are spelled otherwise.

Byte-level vocabularies (GPT-2's and its successors') write a letter for each byte, "Ġthe"; those of
SentencePiece write texts as they are, with "▁" for a space, "▁the".
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping

from meldkit.vocab.tokenizer import Tokenizer

_SPACE = "\u2581"
#: Stands between tokens; no vocabulary has it in one.
_BETWEEN = "\0"


def _letters() -> dict[int, str]:
    """GPT-2's letter for each byte: itself if it can be printed, else the next one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(0x100 + place) for place, byte in enumerate(others)}


_LETTERS = _letters()


def other_spellings(base: Tokenizer, other: Tokenizer, tokens: Collection[str]) -> Mapping[str, str]:
    """Those of another tokenizer's tokens that stand for the text of one of the base, with that one."""
    ours, theirs = _in_bytes(base), _in_bytes(other)
    if ours is None or theirs is None or ours == theirs:
        return {}
    if ours:
        return {
            token: spelled
            for token, spelled in zip(tokens, _spelled_in_bytes(tokens), strict=True)
            if spelled in base.core
        }
    known = dict(zip(_spelled_in_bytes(base.core), base.core, strict=True))
    return {token: known[token] for token in tokens if token in known}


def _in_bytes(tokenizer: Tokenizer) -> bool | None:
    """Whether tokens are spelled in letters for bytes, or as SentencePiece does; None if in neither way."""
    decoder = json.dumps((tokenizer.content or {}).get("decoder"), ensure_ascii=False)
    if '"ByteLevel"' in decoder:
        return True
    return False if _SPACE in decoder else None


def _spelled_in_bytes(tokens: Iterable[str]) -> list[str]:
    """SentencePiece's tokens as a byte-level vocabulary spells them; all at once, as there are many."""
    joined = _BETWEEN.join(token.replace(_BETWEEN, "") for token in tokens).replace(_SPACE, " ")
    between = _LETTERS[ord(_BETWEEN)]
    return joined.encode("utf-8", "surrogatepass").decode("latin-1").translate(_LETTERS).split(between)
