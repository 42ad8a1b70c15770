"""The tokenizer of a model, as the content of a tokenizer.json, whatever files it is stored in."""

from __future__ import annotations

import json
import tempfile
import textwrap
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from meldkit.checkpoint import Checkpoint, read_json, shown
from meldkit.errors import CheckpointError
from meldkit.vocab.paths import without_paths

FAST = "tokenizer.json"
CONFIG = "tokenizer_config.json"
_ADDED = "added_tokens.json"
#: What an added token is where nothing else is said.
NO_FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
#: Files that hold a vocabulary in other forms.
OTHERS = (
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    _ADDED,
)
_SPECIAL = "special_tokens_map.json"
#: Tokens that a tokenizer may have; the largest known have some hundred thousand.
_MOST = 2**24
#: Tokens that tokenizer_config.json names by what they are for, in the order in which transformers adds them.
_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
#: Lists of further ones.
_MORE_SPECIAL = ("additional_special_tokens", "extra_special_tokens")
#: Letters of another program's message that ours repeats.
_REASON = 200
_HINT = "the tokenizer is needed to bring the rows of embeddings together"


@dataclass(frozen=True, slots=True)
class Token:
    """A token that is looked for in texts as it is, before they are cut into words.

    Attributes:
        content: its text.
        id: its number.
        flags: `special`, `normalized`, `single_word`, `lstrip`, `rstrip`; false where not given.
    """

    content: str
    id: int
    flags: Mapping[str, bool]


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """What a tokenizer is made of.

    Attributes:
        label: the model as the recipe names it.
        content: what tokenizer.json says or would say; None for one that only Python code describes.
        vocabulary: numbers of all tokens, where there is no content.
    """

    label: str
    content: Mapping[str, Any] | None
    vocabulary: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def kind(self) -> str:
        """BPE, Unigram, WordPiece, WordLevel; or that there is no tokenizer.json."""
        return str(self.model.get("type")) if self.content is not None else "Python"

    @property
    def model(self) -> Mapping[str, Any]:
        """The section of the content that holds the vocabulary."""
        model = (self.content or {}).get("model")
        return cast("Mapping[str, Any]", model) if isinstance(model, dict) else {}

    @cached_property
    def core(self) -> Mapping[str, int]:
        """Tokens that texts are cut into; other tokens are found by looking for them."""
        if self.content is None:
            return self.vocabulary
        vocabulary = self.model.get("vocab")
        if isinstance(vocabulary, list):
            with suppress(TypeError, LookupError):
                pieces = cast("list[Any]", vocabulary)
                return {str(piece[0]): number for number, piece in enumerate(pieces)}
        elif isinstance(vocabulary, dict):
            numbers = cast("dict[str, int]", vocabulary)
            if all(type(number) is int for number in numbers.values()):
                return numbers
        raise CheckpointError(
            f"the tokenizer of '{self.label}' has no vocabulary in its {FAST}", hint="download it again"
        )

    @cached_property
    def added(self) -> Mapping[str, Token]:
        """Tokens that are looked for in texts, by what they are.

        One that is in the vocabulary too has its number there. Others are numbered on by the tokenizers
        library, in their order and from the end of the vocabulary on, whatever the file says.
        """
        result: dict[str, Token] = {}
        following = len(self.core)
        for content, _, flags in self._entries():
            number = self.core.get(content, result[content].id if content in result else following)
            following = max(following, number + 1)
            result[content] = Token(content, number, flags)
        return result

    @property
    def renumbered(self) -> Mapping[str, tuple[int, int]]:
        """Added tokens that have another number than the file says, with what it says and the number."""
        said = {content: number for content, number, _ in self._entries()}
        return {c: (n, self.added[c].id) for c, n in said.items() if n != self.added[c].id}

    def _entries(self) -> Iterator[tuple[str, int, dict[str, bool]]]:
        """Text, number and flags of the added tokens, as they are stored."""
        stored: Any = (self.content or {}).get("added_tokens") or []
        entries = cast("list[Any]", stored if isinstance(stored, list) else [stored])
        for entry in entries:
            fields = cast("dict[str, Any]", entry if isinstance(entry, dict) else {})
            content, number = fields.get("content"), fields.get("id")
            if not isinstance(content, str) or type(number) is not int:
                raise CheckpointError(
                    f"the tokenizer of '{self.label}' has an added token without content or id",
                    hint="download it again",
                )
            # The tokenizers library looks for no empty ones.
            if content:
                yield (
                    content,
                    number,
                    {key: value for key, value in fields.items() if isinstance(value, bool)},
                )

    @cached_property
    def tokens(self) -> Mapping[str, int]:
        """The number of every token."""
        return {**self.core, **{token.content: token.id for token in self.added.values()}}

    @cached_property
    def size(self) -> int:
        """One more than the largest number."""
        return max(self.tokens.values(), default=-1) + 1


@contextmanager
def tokenizer_files(checkpoint: Checkpoint) -> Generator[Path]:
    """The folder with the files of a model's tokenizer, inside the block; a GGUF file's are made for it."""
    if checkpoint.gguf is None:
        yield checkpoint.tokenizer or checkpoint.folder
        return
    from meldkit.checkpoint.gguf import write_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(checkpoint.gguf, Path(folder))
        yield Path(folder)


def read_tokenizer(checkpoint: Checkpoint, *, trust_remote_code: bool = False) -> Tokenizer | None:
    """The tokenizer of a model; None if it has none.

    Args:
        checkpoint: the model.
        trust_remote_code: let transformers run the model's own code where there is no tokenizer.json.

    Raises:
        CheckpointError: it cannot be read.
    """
    with tokenizer_files(checkpoint) as folder:
        return tokenizer_of_folder(checkpoint.label, folder, trust_remote_code)


def tokenizer_of_folder(label: str, folder: Path, trust_remote_code: bool = False) -> Tokenizer | None:
    """The tokenizer whose files lie in a folder; None if there are none. As `read_tokenizer`."""
    if (folder / FAST).is_file():
        known = Tokenizer(label, read_json(folder / FAST))
        numbered, others = added_beside(folder)
        known = _with_added(known, numbered.values())
        following = max(len(known.core), max((token.id for token in known.added.values()), default=-1) + 1)
        missing = [text for text in others if text not in known.tokens]
        known = _with_added(
            known, (_entry(text, following + place, special=True) for place, text in enumerate(missing))
        )
        _check_numbers(label, known.tokens)
        return known
    if any((folder / name).is_file() for name in OTHERS) or any(folder.glob("*.tiktoken")):
        return _through_transformers(label, folder, trust_remote_code)
    return None


def _check_numbers(label: str, tokens: Mapping[str, int]) -> None:
    """Refuse numbers that are no numbers of rows: what counts up to them would not come to an end."""
    token = max(tokens, key=tokens.__getitem__, default="")
    if token and (number := tokens[token]) >= _MOST:
        raise CheckpointError(
            f"the tokenizer of '{label}' gives the number {number:,} to {shown(token)}", hint=_HINT
        )


def _with_added(tokenizer: Tokenizer, entries: Iterable[Mapping[str, Any]]) -> Tokenizer:
    """A tokenizer with those of these added tokens that it lacks."""
    more = [entry for entry in entries if entry["content"] not in tokenizer.tokens]
    if not more:
        return tokenizer
    content = tokenizer.content or {}
    return Tokenizer(
        tokenizer.label, {**content, "added_tokens": [*(content.get("added_tokens") or []), *more]}
    )


def _entry(text: str, number: int, **flags: bool) -> dict[str, Any]:
    return {"id": number, "content": text, **NO_FLAGS, **flags}


def added_beside(folder: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Added tokens that the files beside a tokenizer.json declare.

    Returns:
        Those with a number, by text, as entries of a tokenizer.json, in the order of their numbers. And
        special tokens that are named only, which transformers adds if they are not in the vocabulary.
    """
    config = _json(folder / CONFIG)
    decoder = config.get("added_tokens_decoder")
    found: list[dict[str, Any]] = []
    if isinstance(decoder, dict):
        for number, entry in cast("dict[str, Any]", decoder).items():
            fields = cast("dict[str, Any]", entry if isinstance(entry, dict) else {})
            text = fields.get("content")
            if number.isdecimal() and isinstance(text, str):
                flags = {key: value for key, value in fields.items() if isinstance(value, bool)}
                found.append(_entry(text, int(number), **flags))
    else:
        # Older files; where there is a list in the other one, it counts alone.
        config = {**_json(folder / _SPECIAL), **config}
        special = set(_roles(config).values())
        found = [
            _entry(text, number, special=text in special, normalized=text not in special)
            for text, number in _json(folder / _ADDED).items()
            if type(number) is int
        ]
    found.sort(key=lambda entry: entry["id"])
    named = list(_roles(config).values())
    for key in _MORE_SPECIAL:
        listed: object = config.get(key)
        tokens = cast("list[object]", listed) if isinstance(listed, list) else []
        named += [text for token in tokens if (text := _text(token)) is not None]
    return {entry["content"]: entry for entry in found}, list(dict.fromkeys(named))


def _through_transformers(label: str, folder: Path, trust_remote_code: bool) -> Tokenizer:
    import transformers

    auto: Any = transformers.AutoTokenizer
    settings = {} if trust_remote_code else {name: _json(folder / name) for name in (CONFIG, _SPECIAL)}
    try:
        with without_paths(folder, settings) as place:
            loaded: Any = auto.from_pretrained(
                str(place), trust_remote_code=trust_remote_code, local_files_only=True
            )
        backend: Any = getattr(loaded, "backend_tokenizer", None)
        tokens: dict[str, int] = dict(loaded.get_vocab())
        _check_numbers(label, tokens)
        if backend is not None:
            return Tokenizer(label, json.loads(backend.to_str()))
        return Tokenizer(label, None, tokens)
    except CheckpointError:
        raise
    # Tokenizers of strangers raise whatever they like, ImportError for a missing package among it.
    except BaseException as e:
        if not of_library(e):
            raise
        reason = textwrap.shorten(str(e), _REASON, placeholder=" …") or type(e).__name__
        raise CheckpointError(
            f"the tokenizer of '{label}' in {folder} cannot be read: {reason}",
            hint=f"{_HINT}; save it as {FAST}, with save_pretrained of transformers for example, "
            "or let code in the model's folder read it with --trust-remote-code",
        ) from e


def of_library(error: BaseException) -> bool:
    """Whether an error is one of a library that reads tokenizers: a panic of Rust's is no Exception."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def special_tokens(folder: Path) -> dict[str, str]:
    """Tokens that a tokenizer's settings name by what they are for: bos, eos, unk, sep, pad, cls, mask."""
    return _roles(_json(folder / CONFIG))


def _roles(config: Mapping[str, Any]) -> dict[str, str]:
    texts = {role: _text(config.get(f"{role}_token")) for role in _ROLES}
    return {role: text for role, text in texts.items() if text is not None}


def _text(token: object) -> str | None:
    """A token that is given by its text, or as an entry with flags."""
    content = cast("dict[str, object]", token).get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) and content else None


def _json(path: Path) -> Mapping[str, Any]:
    return read_json(path) if path.is_file() else {}
