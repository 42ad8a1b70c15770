"""Into which of a vocabulary's tokens a text is cut that is a token of another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from meldkit.errors import NotSupportedError
from meldkit.vocab.spelling import NO_TEXT, byte_of, byte_tokens, in_letters, in_spelling, meanings
from meldkit.vocab.tokenizer import Tokenizer


def pieces(tokenizer: Tokenizer, wanted: Sequence[str]) -> list[list[int]]:
    """Numbers of the tokens into which texts are cut, each as if it stood within a longer one.

    Args:
        tokenizer: that cuts them.
        wanted: as `meanings` has them.

    Returns:
        For each, numbers in the order of the text; none for what it cannot say.

    Raises:
        NotSupportedError: a tokenizer that only Python code describes.
        MismatchError: one with parts that the tokenizers library does not load.
    """
    if tokenizer.content is None:
        raise NotSupportedError(
            f"the tokenizer of '{tokenizer.label}' has no tokenizer.json, and cannot be given single words",
            hint="another --approximation-method",
        )
    from meldkit.vocab.union import library_errors, loaded

    bare: dict[str, Any] = {**tokenizer.content, "added_tokens": [], "post_processor": None}
    model: Any = loaded(tokenizer.label, bare, None).model
    single = {letter: tokenizer.tokens[token] for letter, token in byte_tokens(tokenizer).items()}
    single |= {m: tokenizer.tokens[token] for token, m in meanings(tokenizer).items() if len(m) == 1}
    stored = tokenizer.model.get("unk_token")
    unknown = tokenizer.model.get("unk_id", None if stored is None else tokenizer.tokens.get(str(stored)))

    def cut(meaning: str) -> list[int]:
        letters = meaning
        if meaning.startswith(NO_TEXT):
            byte = byte_of(meaning[1:])
            letters = byte or in_letters([meaning[1:]])[0]
        text = in_spelling(tokenizer, letters)
        if text is None:
            return [single[letter] for letter in letters if letter in single]
        found: list[int] = []
        with library_errors(tokenizer.label):
            for piece in model.tokenize(text):
                if piece.id != unknown:
                    found.append(int(piece.id))
                    continue
                rest = text[slice(*piece.offsets)]
                rest = rest if text == letters else in_letters([rest])[0]
                found += [single[letter] for letter in rest if letter in single]
        # Some leave out what they do not know.
        return found or [single[letter] for letter in letters if letter in single]

    return [cut(meaning) for meaning in wanted]
