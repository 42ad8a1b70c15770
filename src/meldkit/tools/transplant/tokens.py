"""Which tokens of a donor's vocabulary a model has, and which of a model's tokens are trained."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from meldkit.shapes import Float32, Tensor
from meldkit.tools.transplant.rows import lengths
from meldkit.vocab import NO_TEXT, Tokenizer, byte_tokens, bytes_of, meanings

#: A letter that stands for a space or a line break; prefixes of nothing else say too little.
_BLANK = "ĠĊĉčĀ"
#: How vocabularies call tokens that they keep for later: in brackets.
_UNUSED = re.compile(r"[<\[]\|?\W*(\w*(unused|reserved|extra_id)\w*|(pad|dummy)_?\d+)\W*\|?[>\]]", re.I)
#: What special tokens are for; where one is for several things, the first of these counts.
_ROLES = ("eos", "bos", "sep", "cls", "mask", "pad", "unk")
#: Share of the tokens that are taken for untrained by how short their rows are, or how like the unused ones'.
_QUANTILE = 0.01
#: Cosines up to this are none.
_LEAST_COSINE = 0.5


@dataclass(frozen=True, slots=True)
class Match:
    """The donor's tokens, by number, with the numbers of the model's that take their places.

    Attributes:
        exact: those that stand for the same.
        byte: single bytes that one vocabulary has as letters and the other as bytes.
        prefix: the longest token that the donor's begins with.
        missing: numbers of tokens that match none, rising.
    """

    exact: dict[int, int] = field(default_factory=dict[int, int])
    byte: dict[int, int] = field(default_factory=dict[int, int])
    prefix: dict[int, int] = field(default_factory=dict[int, int])
    missing: list[int] = field(default_factory=list[int])

    @property
    def all(self) -> dict[int, int]:
        """All that match, in whatever way."""
        return self.exact | self.byte | self.prefix


@dataclass(frozen=True)
class Vocabularies:
    """Two tokenizers whose tokens are compared by what they stand for.

    Special tokens are compared by their texts; those that are in one only, by what they are for.

    Attributes:
        model, donor: the tokenizers.
        roles: special tokens of both, by what they are for: ("bos", text) and so on.
    """

    model: Tokenizer
    donor: Tokenizer
    roles: tuple[Mapping[str, str], Mapping[str, str]]

    def match(
        self,
        rows: tuple[int, int],
        *,
        byte: bool = False,
        prefix: bool = False,
        untrained: np.ndarray | None = None,
    ) -> Match:
        """Match the donor's tokens.

        Args:
            rows: how many the model's and the donor's table have. Tokens that match none and have no row in
                the donor's are left out.
            byte, prefix: whether these match too.
            untrained: of the model's rows, those that none of the donor's tokens shall have: bool.
        """

        def usable(number: int) -> bool:
            return number < rows[0] and not (
                untrained is not None and number < len(untrained) and untrained[number]
            )

        known = {
            meaning: self.model.tokens[token]
            for token, meaning in reversed(meanings(self.model).items())
            if usable(self.model.tokens[token])
        }
        found = Match()
        bytes_known = {m: n for m, n in (self._bytes() if byte else {}).items() if usable(n)}
        alike = {token: number for token, number in self._alike().items() if usable(number)}
        for token, meaning in meanings(self.donor).items():
            number = self.donor.tokens[token]
            own = known.get(meaning, alike.get(token))
            if own is not None:
                found.exact[number] = own
            elif meaning in bytes_known:
                found.byte[number] = bytes_known[meaning]
            elif prefix and (first := next((p for p in _prefixes(meaning) if p in known), None)) is not None:
                found.prefix[number] = known[first]
            elif number < rows[1]:
                found.missing.append(number)
        found.missing.sort()
        return found

    def _alike(self) -> dict[str, int]:
        """The donor's tokens whose meaning the model's have not, with numbers of those for the same.

        Vocabularies differ in what they take for special. What is looked for in texts as it is, is the same
        token where its text is the same; else, what it is for decides.
        """
        ours, theirs = self.roles
        tokens = self.model.tokens
        result: dict[str, int] = {}
        for role in _ROLES:
            token = theirs.get(role)
            if token is not None and ours.get(role) in tokens:
                result.setdefault(token, tokens[ours[role]])
        for token in self.donor.tokens:
            if token in tokens and (token in self.model.added or token in self.donor.added):
                result[token] = tokens[token]
        return result

    def _bytes(self) -> dict[str, int]:
        """Meanings of the donor's tokens for single bytes, with numbers of the model's."""
        result = {letter: self.model.tokens[token] for letter, token in byte_tokens(self.model).items()}
        by_letter = {meaning: self.model.tokens[token] for token, meaning in meanings(self.model).items()}
        for letter, token in byte_tokens(self.donor).items():
            if letter in by_letter:
                result[NO_TEXT + token] = by_letter[letter]
        return result


def _prefixes(meaning: str) -> Iterator[str]:
    """What a token begins with, the longest first, cut between characters; nothing that is blank."""
    if meaning.startswith(NO_TEXT):
        return
    try:
        stored = bytes_of(meaning)
    except UnicodeEncodeError:
        stored = None
    for stop in range(len(meaning) - 1, 0, -1):
        if not meaning[:stop].strip(_BLANK):
            return
        # A byte 10xxxxxx goes on with a character.
        if stored is None or stored[stop] & 0xC0 != 0x80:
            yield meaning[:stop]


#: All rows of a table, block by block: float32 `[some, columns]`.
Blocks = Callable[[], Iterable[Tensor]]


def untrained(tokenizer: Tokenizer, rows: int, embedding: Blocks, head: Blocks | None) -> np.ndarray:
    """Which tokens seem to have been trained little or not at all (Land and Bartolo: arXiv:2405.05417).

    That are rows of no token and of tokens that are called unused; rows whose cosine with the mean of these
    is among the largest; and, if there is a head, embeddings that are among the shortest.

    Args:
        tokenizer: of the model.
        rows: of its tables.
        embedding: its rows.
        head: rows of its head; None if that is the embedding.

    Returns:
        bool `[rows]`.
    """
    unused = np.ones(rows, bool)
    used = [n for token, n in tokenizer.tokens.items() if n < rows and not _UNUSED.fullmatch(token)]
    unused[used] = False
    result = np.array(unused)
    if head is not None:
        own = np.concatenate([lengths(block).numpy() for block in embedding()])
        result |= own < np.quantile(own, _QUANTILE)
    for table in (embedding, head) if unused.any() else ():
        if table is None:
            continue
        middle = _mean(table, unused)
        cosines = np.concatenate([_cosines(block, middle) for block in table()])
        result |= cosines > max(float(np.quantile(cosines, 1 - _QUANTILE)), _LEAST_COSINE)
    return result


def _mean(table: Blocks, chosen: np.ndarray) -> Float32[Tensor, " columns"]:
    """Of some rows."""
    total, first = torch.zeros(()), 0
    for block in table():
        total = total + block[torch.from_numpy(chosen[first : first + len(block)])].sum(0)
        first += len(block)
    return total / int(chosen.sum())


def _cosines(block: Float32[Tensor, "n columns"], middle: Float32[Tensor, " columns"]) -> np.ndarray:
    both = lengths(block) * lengths(middle)
    return ((block @ middle) / both.clamp_min(1e-12)).numpy()
