"""A tokenizer with the tokens of others added to its own.

Tokens keep the numbers that the first tokenizer gives them; new ones follow, those that texts are cut into
before those that are looked for. How texts come to contain a new token depends on the kind of tokenizer:

    BPE         the other tokenizer's merges that make new tokens are appended to the list, so that they apply
                after all merges of the first; a token that two tokens make in the end gets a merge of these
    Unigram     the token gets its own log probability
    WordPiece   the longest token that fits is taken, so that there is nothing else to do
    added       is looked for in texts, with its own flags

What a tokenizer of another kind cuts its texts into is in the vocabulary and can be decoded, but texts may
never be cut into it: such tokens are counted. They are not made added tokens, which would be found in the
middle of words.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from meldkit.errors import MismatchError
from meldkit.vocab.tokenizer import FAST, NO_FLAGS, Token, Tokenizer, of_library

if TYPE_CHECKING:
    from tokenizers.models import BPE

#: The kinds of models that the tokenizers library has.
_KINDS = ("BPE", "Unigram", "WordPiece", "WordLevel")
#: How often tokens that are not made yet are looked at again, after merges were added for others, at most;
#: and the share of the new tokens for which it is worth building the model once more.
_ROUNDS = 4
_WORTH = 1e-3
#: A model without tokens.
_EMPTY: Mapping[str, Any] = {"type": "BPE", "vocab": {}, "merges": []}
#: Stands for a text that goes before.
_LETTER = "e"
#: What becomes of a part of a letter when it is decoded.
_PART = "\ufffd"
#: Tokens of another tokenizer that are looked at, at most.
_SAMPLE = 8192
#: Log probability, beside the lowest one, of pieces that stand in the vocabulary for their number only.
_NEVER = -10.0

Merge = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Unreachable:
    """Tokens that do not occur in the texts that they stand for.

    Attributes:
        count: how many there are.
        tokens: those of them that were looked at.
        exact: whether these are all of them; of many tokens, some are looked at, evenly distributed.
    """

    count: int
    tokens: Sequence[str]
    exact: bool


@dataclass(frozen=True, slots=True)
class Union:
    """A tokenizer and what became of the tokens that were added to it.

    Attributes:
        tokenizer: the new one.
        added: for each other tokenizer, the tokens that it contributed.
        unreachable: for each of them, those of its tokens that texts are not cut into.
    """

    tokenizer: Tokenizer
    added: Mapping[str, Sequence[str]]
    unreachable: Mapping[str, Unreachable]


def unite(
    base: Tokenizer,
    others: Sequence[Tokenizer],
    usable: Mapping[str, int],
    extra: Mapping[str, Mapping[str, bool]],
) -> Union:
    """Add to a tokenizer the tokens that others have and it lacks.

    Args:
        base: keeps its numbers.
        others: in order of precedence.
        usable: for each label, rows of the model's embedding; tokens behind these are left out.
        extra: further tokens to look for in texts, with their flags.

    Raises:
        MismatchError: the base is described by Python code only, and there is something to add.
    """
    numbers = dict(base.tokens)
    following = base.size
    core: dict[str, Tokenizer] = {}
    looked_for: dict[str, tuple[str, Mapping[str, bool]]] = {}
    for other in others:
        limit = usable[other.label]
        lacking = other.core.keys() - numbers.keys() - core.keys()
        for token in sorted(lacking, key=other.core.__getitem__):
            if other.core[token] < limit and not _looked_for(token, other):
                core[token] = other
    for other in others:
        for token in sorted(other.added.values(), key=lambda token: token.id):
            known = token.content in numbers or token.content in core or token.content in looked_for
            if not known and token.id < usable[other.label]:
                if _looked_for(token.content, other):
                    looked_for[token.content] = (other.label, token.flags)
                else:
                    core[token.content] = other
    for content, flags in extra.items():
        if content not in numbers and content not in core and content not in looked_for:
            looked_for[content] = ("", flags)
    # What another model looks for as a marker is one, though the base knows it as a word like others.
    promoted = {
        token.content: token.flags
        for other in reversed(others)
        for token in other.added.values()
        if token.flags.get("special") and token.content in base.core and token.content not in base.added
    }
    if not core and not looked_for and not promoted:
        return Union(base, {}, {})
    if base.content is None:
        raise MismatchError(
            f"the tokenizer of '{base.label}' has no {FAST}, so no tokens can be added to it",
            hint="save it as a fast tokenizer, or choose another 'tokenizer: {source: …}'",
        )
    new = {token: following + place for place, token in enumerate((*core, *looked_for))}
    entries = [Token(content, base.core[content], flags) for content, flags in promoted.items()]
    entries += [Token(content, new[content], flags) for content, (_, flags) in looked_for.items()]
    extended = _Extended(base, new, entries)
    unreachable = extended.make_reachable(core)
    added: dict[str, list[str]] = {}
    for token, other in core.items():
        added.setdefault(other.label, []).append(token)
    for content, (label, _) in looked_for.items():
        if label:
            added.setdefault(label, []).append(content)
    return Union(Tokenizer(base.label, extended.content()), added, unreachable)


def _looked_for(text: str, other: Tokenizer) -> bool:
    """Whether a token of another tokenizer is looked for in texts in the union too.

    Not blanks that are no markers, such as those of Gemma: a text would be cut at them before its spaces are
    made letters, and would not come back as it was.
    """
    token = other.added.get(text)
    return token is not None and (
        bool(token.flags.get("special")) or bool(text.replace("\u2581", " ").strip())
    )


class _Extended:
    """A tokenizer.json with more tokens."""

    def __init__(self, base: Tokenizer, new: Mapping[str, int], entries: Sequence[Token]) -> None:
        self._base = base
        self._new = new
        self._entries = entries
        # Numbers of added tokens that are not in the vocabulary are counted from its end when a file is read.
        self._numbers = {**base.tokens, **new}
        self._merges = _merges(base) if base.kind == "BPE" else []
        self._scores: dict[str, float] = {}

    def make_reachable(self, core: Mapping[str, Tokenizer]) -> dict[str, Unreachable]:
        """Let texts be cut into tokens, given with their tokenizers; by label, those that never are."""
        others = list({id(other): other for other in core.values()}.values())
        waiting: set[str] = set()
        model: Any = None
        if self._base.kind == "BPE":
            for other in others:
                self._append_merges({token for token in core if core[token] is other}, other)
            with library_errors(self._base.label):
                model, waiting = self._join_pairs(list(core))
        elif self._base.kind == "Unigram":
            for other in others:
                # Scores of another kind of vocabulary say nothing; its pieces are there for their numbers.
                if other.kind == "Unigram":
                    pieces = cast("list[Any]", other.model["vocab"])
                    self._scores |= {str(p): float(s) for p, s in pieces if core.get(p) is other}
        tokenizer = loaded(
            self._base.label, self.content() if model is None else self._base.content or {}, model
        )
        return {
            other.label: self._missed(tokenizer, [t for t in core if core[t] is other], waiting, other)
            for other in others
        }

    def _missed(
        self, tokenizer: Any, tokens: Sequence[str], waiting: set[str], other: Tokenizer
    ) -> Unreachable:
        """Which tokens do not occur in the texts that they stand for in their own tokenizer, but do there."""
        looked_at = tokens[:: -(-len(tokens) // _SAMPLE)]
        decoder = loaded(other.label, other.content or {}, _EMPTY).decoder
        missed = set(looked_at)
        # A token may stand for something else at the beginning of a text than within it.
        for before in ((), (_LETTER,)):
            left = [token for token in looked_at if token in missed]
            with library_errors(other.label):
                texts = [token if decoder is None else decoder.decode([*before, token]) for token in left]
            # Of a part of a letter there is no text: what its characters are merged into must do.
            whole = [_PART not in text for text in texts]
            missed -= {
                t for t, is_whole in zip(left, whole, strict=True) if not is_whole and t not in waiting
            }
            missed -= _found(self._base.label, tokenizer, left, texts, self._new)
            if before:
                # Where its own tokenizer does not find it either, the text says nothing.
                theirs = loaded(other.label, other.content or {}, None)
                own = _found(other.label, theirs, left, texts, other.tokens)
                missed -= {token for token in left if token not in own and token not in waiting}
        exact = len(looked_at) == len(tokens)
        count = round(len(missed) * len(tokens) / len(looked_at))
        return Unreachable(count, [token for token in looked_at if token in missed], exact)

    def _append_merges(self, tokens: set[str], other: Tokenizer) -> None:
        if other.kind != "BPE":
            return
        known = set(self._merges)
        self._merges += [
            (left, right)
            for left, right in _merges(other)
            if left + right in tokens
            and left in self._numbers
            and right in self._numbers
            and (left, right) not in known
        ]

    def _join_pairs(self, tokens: list[str]) -> tuple[BPE, set[str]]:
        """Add a merge for each token that its characters are merged into two tokens of.

        Returns:
            The model with these merges, and the tokens that their characters are not merged into.
        """
        model, waiting = self._bpe(), sorted(tokens, key=len)
        for _ in range(_ROUNDS):
            parts = {token: [part.value for part in model.tokenize(token)] for token in waiting}
            waiting = [token for token in waiting if parts[token] != [token]]
            made = [parts[t] for t in waiting if len(parts[t]) == 2 and "".join(parts[t]) == t]
            if len(made) <= _WORTH * len(tokens):
                break
            self._merges += [(left, right) for left, right in made]
            model = self._bpe()
        if self._base.model.get("ignore_merges"):
            model.ignore_merges = True
        return model, set(waiting)

    def _bpe(self) -> BPE:
        from tokenizers.models import BPE

        # Without `ignore_merges`, which finds a token only where it is a whole word.
        keys = ("unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk")
        settings = {key: value for key in keys if (value := self._base.model.get(key))}
        return BPE(vocab=dict(self._numbers), merges=self._merges, **settings)

    def content(self) -> dict[str, Any]:
        """What tokenizer.json says."""
        base = self._base
        assert base.content is not None
        model = dict(base.model)
        if base.kind == "Unigram":
            model["vocab"] = self._pieces()
        else:
            model["vocab"] = self._numbers
        if base.kind == "BPE":
            merges = cast("list[Any]", base.model.get("merges") or [])
            joined = bool(merges) and isinstance(merges[0], str)
            model["merges"] = [f"{a} {b}" if joined else [a, b] for a, b in self._merges]
        stored = cast("list[dict[str, Any]]", base.content.get("added_tokens") or [])
        added = [{**entry, "id": self._numbers[c]} for entry in stored if (c := entry["content"])]
        added += map(_entry, self._entries)
        return {**base.content, "added_tokens": added, "model": model}

    def _pieces(self) -> list[list[Any]]:
        """All pieces in the order of their numbers, each with its log probability."""
        stored = cast("list[Any]", self._base.model["vocab"])
        lowest = min((float(score) for _, score in stored), default=0.0) + _NEVER
        pieces = [list(piece) for piece in stored]
        by_number = {number: token for token, number in self._numbers.items()}
        for number in range(len(stored), max(by_number) + 1):
            token = by_number.get(number, f"<unused {number}>")
            pieces.append([token, self._scores.get(token, lowest)])
        return pieces


def _found(
    label: str, tokenizer: Any, tokens: Sequence[str], texts: Sequence[str], numbers: Mapping[str, int]
) -> set[str]:
    """Those tokens that their texts are cut into."""
    with library_errors(label):
        encoded = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return {token for token, each in zip(tokens, encoded, strict=True) if numbers[token] in each.ids}


def loaded(label: str, content: Mapping[str, Any], model: Any) -> Any:
    """A tokenizer of the tokenizers library; of this model, if it is not None.

    Raises:
        MismatchError: it has parts that the library does not load.
    """
    import tokenizers

    shell: Mapping[str, Any] = content
    if model is not None:
        shell = {**content, "model": _EMPTY, "added_tokens": [], "post_processor": None}
    with library_errors(label):
        loaded = tokenizers.Tokenizer.from_str(json.dumps(shell))
    if model is not None and model is not _EMPTY:
        loaded.model = model
    return loaded


@contextmanager
def library_errors(label: str) -> Generator[None]:
    """Whatever the tokenizers library finds wrong in a tokenizer, as a MismatchError."""
    try:
        yield
    except BaseException as e:
        if not of_library(e):
            raise
        raise _refusal(label, str(e)) from e


def check_loads(tokenizer: Tokenizer) -> None:
    """Raise MismatchError for a tokenizer with parts that the tokenizers library does not load."""
    if tokenizer.content is None:
        return
    if tokenizer.kind not in _KINDS:
        raise _refusal(tokenizer.label, f"its model is of the type {tokenizer.kind!r}")
    loaded(tokenizer.label, tokenizer.content, _EMPTY)


def _refusal(label: str, reason: str) -> MismatchError:
    return MismatchError(
        f"the tokenizer of '{label}' cannot be loaded: {reason}",
        hint=f"repair its {FAST}, or choose another 'tokenizer: {{source: …}}'",
    )


def _entry(token: Token) -> dict[str, Any]:
    return {"id": token.id, "content": token.content, **NO_FLAGS, **token.flags}


def _merges(tokenizer: Tokenizer) -> list[Merge]:
    stored = cast("list[Any]", tokenizer.model.get("merges") or [])
    return list(_pairs(stored))


def _pairs(stored: Sequence[Any]) -> Iterator[Merge]:
    for merge in stored:
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        yield left, right
