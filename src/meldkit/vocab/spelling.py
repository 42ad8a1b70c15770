"""Tokens that stand for the same text in two tokenizers, though they are spelled otherwise.

Byte-level vocabularies (GPT-2's and its successors') write a letter for each byte, "Ġthe"; those of
SentencePiece write texts as they are, with "▁" for a space, "▁the"; WordPiece's mark what goes on within a
word, "##ing".
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping

from meldkit.vocab.tokenizer import Tokenizer

_SPACE = "\u2581"
#: Stands between tokens; no vocabulary has it in one.
_BETWEEN = "\0"
#: Before what is no text, in `meanings`.
NO_TEXT = _BETWEEN
#: How SentencePiece writes a single byte.
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
#: How WordPiece begins what goes on within a word.
_WITHIN = "##"


def _letters() -> dict[int, str]:
    """GPT-2's letter for each byte: itself if it can be printed, else the next one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(0x100 + place) for place, byte in enumerate(others)}


_LETTERS = _letters()
_FROM_LETTERS = {ord(letter): chr(byte) for byte, letter in _LETTERS.items()}


def other_spellings(base: Tokenizer, other: Tokenizer, tokens: Collection[str]) -> Mapping[str, str]:
    """Those of another tokenizer's tokens that stand for the text of one of the base, with that one."""
    ours, theirs = _in_bytes(base), _in_bytes(other)
    if ours is None or theirs is None or ours == theirs:
        return {}
    if ours:
        return {
            token: spelled
            for token, spelled in zip(tokens, in_letters(tokens), strict=True)
            if spelled in base.core
        }
    known = dict(zip(in_letters(base.core), base.core, strict=True))
    return {token: known[token] for token in tokens if token in known}


def meanings(tokenizer: Tokenizer) -> dict[str, str]:
    """What each token stands for: bytes, in GPT-2's letters; with `NO_TEXT` before what is none.

    That are special tokens, and SentencePiece's single bytes, which it uses for characters that it lacks.
    """
    letters = _in_bytes(tokenizer)
    words = tokenizer.kind == "WordPiece"
    texts: dict[str, str] = {}
    result: dict[str, str] = {}
    for token in tokenizer.tokens:
        added = tokenizer.added.get(token)
        if (added is not None and added.flags.get("special")) or (not letters and _BYTE.fullmatch(token)):
            result[token] = NO_TEXT + token
        elif added is not None and token not in tokenizer.core:
            texts[token] = token
        elif words:
            texts[token] = token.removeprefix(_WITHIN) if token.startswith(_WITHIN) else f" {token}"
        elif letters is False:
            texts[token] = token
        else:
            result[token] = token
    if texts:
        result |= dict(zip(texts, in_letters(texts.values()), strict=True))
    return result


def byte_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """SentencePiece's tokens for single bytes, by the letter of the byte."""
    if _in_bytes(tokenizer):
        return {}
    found = ((token, byte_of(token)) for token in tokenizer.tokens)
    return {letter: token for token, letter in found if letter is not None}


def byte_of(token: str) -> str | None:
    """The letter of the byte that a token of SentencePiece is; None if it is none."""
    match = _BYTE.fullmatch(token)
    return None if match is None else _LETTERS.get(int(match[1], 16), chr(int(match[1], 16)))


def bytes_of(meaning: str) -> bytes:
    """The bytes that letters stand for."""
    return meaning.translate(_FROM_LETTERS).encode("latin-1")


def in_spelling(tokenizer: Tokenizer, meaning: str) -> str | None:
    """Bytes in letters as the tokenizer's vocabulary would spell them; None if it cannot."""
    words = tokenizer.kind == "WordPiece"
    if not words and _in_bytes(tokenizer) is not False:
        return meaning
    try:
        text = bytes_of(meaning).decode()
    except UnicodeError:
        return None
    return text.strip() if words else text.replace(" ", _SPACE)


def _in_bytes(tokenizer: Tokenizer) -> bool | None:
    """Whether tokens are spelled in letters for bytes, or as SentencePiece does; None if in neither way."""
    decoder = json.dumps((tokenizer.content or {}).get("decoder"), ensure_ascii=False)
    if '"ByteLevel"' in decoder:
        return True
    return False if _SPACE in decoder else None


def in_letters(tokens: Iterable[str]) -> list[str]:
    """Texts, or tokens of SentencePiece, as byte-level vocabularies spell them; many of them at once."""
    joined = _BETWEEN.join(token.replace(_BETWEEN, "") for token in tokens).replace(_SPACE, " ")
    between = _LETTERS[ord(_BETWEEN)]
    return joined.encode("utf-8", "surrogatepass").decode("latin-1").translate(_LETTERS).split(between)
