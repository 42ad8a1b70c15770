"""The tokenizer of a model, as the content of a tokenizer.json, whatever files it is stored in."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from meldkit.checkpoint import Checkpoint, read_json
from meldkit.checkpoint.gguf import write_tokenizer
from meldkit.errors import CheckpointError

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
#: Tokens that tokenizer_config.json names by what they are for.
_ROLES = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")
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
        """Tokens that are looked for in texts, by what they are."""
        result: dict[str, Token] = {}
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
            flags = {key: value for key, value in fields.items() if isinstance(value, bool)}
            # A token that is in the vocabulary too has its number there.
            result[content] = Token(content, self.core.get(content, number), flags)
        return result

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
        content = read_json(folder / FAST)
        known = Tokenizer(label, content)
        beside = added_beside(folder)
        more = [entry for text, entry in beside.items() if text not in known.tokens]
        if not more:
            return known
        return Tokenizer(label, {**content, "added_tokens": [*(content.get("added_tokens") or []), *more]})
    if any((folder / name).is_file() for name in OTHERS) or any(folder.glob("*.tiktoken")):
        return _through_transformers(label, folder, trust_remote_code)
    return None


def added_beside(folder: Path) -> dict[str, dict[str, Any]]:
    """Added tokens that the files beside a tokenizer.json declare, as entries of it, by text."""
    result: dict[str, dict[str, Any]] = {}
    path = folder / _ADDED
    numbers: Mapping[str, Any] = read_json(path) if path.is_file() else {}
    for text, number in numbers.items():
        if type(number) is int:
            result[text] = {"id": number, "content": text, **NO_FLAGS}
    path = folder / CONFIG
    decoder: object = (read_json(path) if path.is_file() else {}).get("added_tokens_decoder")
    for number, entry in (cast("dict[str, Any]", decoder) if isinstance(decoder, dict) else {}).items():
        fields = cast("dict[str, Any]", entry if isinstance(entry, dict) else {})
        text = fields.get("content")
        if number.isdecimal() and isinstance(text, str):
            flags = {key: value for key, value in fields.items() if isinstance(value, bool)}
            result[text] = {"id": int(number), "content": text, **NO_FLAGS, **flags}
    return result


def _through_transformers(label: str, folder: Path, trust_remote_code: bool) -> Tokenizer:
    import transformers

    auto: Any = transformers.AutoTokenizer
    try:
        loaded: Any = auto.from_pretrained(
            str(folder), trust_remote_code=trust_remote_code, local_files_only=True
        )
        backend: Any = getattr(loaded, "backend_tokenizer", None)
        if backend is not None:
            return Tokenizer(label, json.loads(backend.to_str()))
        return Tokenizer(label, None, dict(loaded.get_vocab()))
    # Tokenizers of strangers raise whatever they like, ImportError for a missing package among it.
    except Exception as e:
        reason = next(iter(str(e).splitlines()), type(e).__name__)
        raise CheckpointError(
            f"the tokenizer of '{label}' in {folder} cannot be read: {reason}",
            hint=f"{_HINT}; save it as {FAST}, with save_pretrained of transformers for example, "
            "or let code in the model's folder read it with --trust-remote-code",
        ) from e


def special_tokens(folder: Path) -> dict[str, str]:
    """Tokens that a tokenizer's settings name by what they are for: bos, eos, pad, unk, sep, cls, mask."""
    path = folder / CONFIG
    config = read_json(path) if path.is_file() else {}
    result: dict[str, str] = {}
    for role in _ROLES:
        token: object = config.get(f"{role}_token")
        content = cast("dict[str, object]", token).get("content") if isinstance(token, dict) else token
        if isinstance(content, str):
            result[role] = content
    return result
