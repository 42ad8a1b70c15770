"""How the vocabularies of two tokenizers differ."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from meldkit.vocab.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Difference:
    """What two vocabularies do not have in common.

    Attributes:
        shared: tokens that both have.
        moved: those of them whose numbers differ, with both numbers.
        only_first, only_second: tokens of one of them, with their numbers; in the order of those.
    """

    shared: int
    moved: Mapping[str, tuple[int, int]]
    only_first: Mapping[str, int]
    only_second: Mapping[str, int]

    def __bool__(self) -> bool:
        return bool(self.moved or self.only_first or self.only_second)

    def words(self, first: str, second: str, shown: int = 3) -> Iterator[str]:
        """The difference in words, one sentence for each kind."""
        for name, tokens in ((first, self.only_first), (second, self.only_second)):
            if tokens:
                examples = [f"{token!r} ({number})" for token, number in list(tokens.items())[:shown]]
                yield f"{counted(tokens)} only in '{name}': {_listed(examples, len(tokens))}"
        if self.moved:
            moved = list(self.moved.items())[:shown]
            examples = [f"{token!r} ({one} and {other})" for token, (one, other) in moved]
            yield f"{len(self.moved):,} of {self.shared:,} shared tokens have other numbers: " + _listed(
                examples, len(self.moved)
            )


def counted(tokens: Collection[object]) -> str:
    """How many tokens, such as "1 token" or "1,234 tokens"."""
    return f"{len(tokens):,} token{'s' * (len(tokens) != 1)}"


def _listed(examples: list[str], count: int) -> str:
    return ", ".join(examples) + ", …" * (count > len(examples))


def compare(first: Tokenizer, second: Tokenizer) -> Difference:
    """Compare what numbers two tokenizers give to tokens."""
    if first.content is not None and first.content == second.content:
        return Difference(len(first.tokens), {}, {}, {})
    one, other = first.tokens, second.tokens
    shared = one.keys() & other.keys()
    moved = {
        token: (one[token], other[token]) for token in one if token in shared and one[token] != other[token]
    }
    return Difference(
        shared=len(shared),
        moved=dict(sorted(moved.items(), key=lambda entry: entry[1])),
        only_first=_by_number({token: one[token] for token in one if token not in shared}),
        only_second=_by_number({token: other[token] for token in other if token not in shared}),
    )


def _by_number(tokens: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(tokens.items(), key=lambda entry: entry[1]))
