"""The tokenizer that the output gets: whose files, with which changes, and what else follows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from meldkit.checkpoint import read_json, write_json
from meldkit.vocab.tokenizer import CONFIG, FAST, NO_FLAGS, OTHERS, Token, Tokenizer, special_tokens

GENERATION = "generation_config.json"
_NUM_TOKENS = "vocab_size"
#: How settings end that hold numbers of tokens.
_IDS = (
    *("token_id", "token_ids", "tokens_ids", "token_index"),
    *("suppress_tokens", "bad_words_ids", "force_words_ids"),
)
#: What transformers takes from config.json where there is no generation_config.json.
_OF_GENERATION = (
    *("bos_token_id", "eos_token_id", "pad_token_id"),
    *("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id"),
)
#: What belongs to a tokenizer, by the beginnings of its names.
FILES = (
    "tokenizer",
    "special_tokens_map",
    "added_tokens",
    "vocab",
    "merges",
    "spiece",
    "sentencepiece",
    "tekken",
    *("source.spm", "target.spm", "bpe.codes"),
    # What models' own code reads, and that code.
    *("qwen.tiktoken", "tiktoken", "tokenization_"),
    "chat_template",
    "additional_chat_templates",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputTokenizer:
    """A tokenizer to be written, and the settings that speak of its numbers.

    Attributes:
        source: the tokenizer whose files are taken.
        folder: where they lie.
        gguf: the GGUF file that it is in, if it is in one.
        changed: the tokenizer with what is changed in it; None if nothing is.
        donor: the tokenizer whose numbers the output's configuration has before it is translated; None if
            these are the source's.
        settings: configuration of the model that the source belongs to.
        generation: its generation_config.json.
    """

    source: Tokenizer
    folder: Path
    gguf: Path | None = None
    changed: Tokenizer | None = None
    donor: Tokenizer | None = None
    settings: Mapping[str, Any]
    generation: Mapping[str, Any]

    @property
    def tokenizer(self) -> Tokenizer:
        """As it is written."""
        return self.changed or self.source

    def translated(self, config: Mapping[str, Any], own: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """A configuration whose numbers of tokens are the output's; those without a token become None.

        Args:
            config: of the donor.
            own: the same of the source's model, whose word on a key counts for more.
        """
        donor = self.donor
        if donor is None:
            return dict(config)
        own = self.settings if own is None else own
        names = {number: token for token, number in donor.tokens.items()}
        roles = self._roles()

        def translate(number: int) -> int | None:
            # Negative ones stand for no token.
            return number if number < 0 else self.tokenizer.tokens.get(names.get(number, ""))

        def translated_section(section: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
            result: dict[str, Any] = {}
            for key, value in section.items():
                inner = theirs.get(key)
                if isinstance(value, dict):
                    inner = cast("dict[str, Any]", inner if isinstance(inner, dict) else {})
                    result[key] = translated_section(cast("dict[str, Any]", value), inner)
                elif not _is_id(key, value):
                    result[key] = value
                elif inner is not None:
                    # Settings that were never adapted to a tokenizer name tokens that there are not.
                    known = type(inner) is not int or inner < self.tokenizer.size or key not in roles
                    result[key] = inner if known else roles[key]
                else:
                    result[key] = _each(value, translate)
                    if result[key] is None:
                        result[key] = roles.get(key)
            return result

        result = translated_section(config, own)
        # What only the source's model says, such as a token for padding, comes with its tokens.
        return result | {
            key: own[key] for key in _OF_GENERATION if key not in result and _numbers(own.get(key))
        }

    def _roles(self) -> dict[str, int]:
        """Numbers of special tokens by the keys that configurations have for them."""
        special = special_tokens(self.folder) if self.gguf is None else {}
        tokens = self.tokenizer.tokens
        return {f"{role}_token_id": tokens[token] for role, token in special.items() if token in tokens}


def _is_id(key: str, value: object) -> bool:
    """Whether a setting is the number of a token, or several of them."""
    return key.endswith(_IDS) and _numbers(value)


def _numbers(value: Any) -> bool:
    """Whether it is a whole number, or a list of such and of lists of such."""
    if not isinstance(value, list):
        return type(value) is int
    many = cast("list[Any]", value)
    return bool(many) and all(map(_numbers, many))


def _each(value: Any, translate: Callable[[int], int | None]) -> Any:
    """Numbers translated; None for what has none left, and for a word of which a token is missing."""
    if not isinstance(value, list):
        return translate(value)
    found: list[Any] = []
    for each in cast("list[Any]", value):
        translated = _each(each, translate)
        whole = not isinstance(each, list) or len(translated or ()) == len(cast("list[Any]", each))
        if translated is not None and whole:
            found.append(translated)
    return found or None


def without_row(config: Mapping[str, Any], size: int) -> dict[str, Any]:
    """Settings that are numbers of tokens behind the last of so many rows, by name; those of sections too."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= without_row(cast("dict[str, Any]", value), size)
        elif _is_id(key, value) and _each(value, lambda number: number if number < size else None) != value:
            found[key] = value
    return found


def with_num_tokens(config: Mapping[str, Any], sizes: Sequence[int], size: int) -> dict[str, Any]:
    """A configuration whose numbers of tokens are `size` where they were one of `sizes`.

    Tokens behind the last row become None: no model could be loaded with them. A configuration that does not
    say how many tokens the texts have, and so relies on a default, does so afterwards.
    """
    result = _resized(config, sizes, size)
    text = result.get("text_config")
    inner = cast("dict[str, Any]", text) if isinstance(text, dict) else result
    if _NUM_TOKENS not in inner and _NUM_TOKENS not in result:
        inner[_NUM_TOKENS] = size
    return result


def _resized(config: Mapping[str, Any], sizes: Sequence[int], size: int) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            result[key] = _resized(cast("dict[str, Any]", value), sizes, size)
        elif _is_id(key, value):
            result[key] = _each(value, lambda number: number if number < size else None)
        else:
            wanted = key.startswith(_NUM_TOKENS) and type(value) is int and value in sizes
            result[key] = size if wanted else value
    return result


def write_output_tokenizer(output: OutputTokenizer, folder: Path) -> None:
    """Put the tokenizer's files into a folder that has none."""
    if output.gguf is not None:
        from meldkit.checkpoint.gguf import write_tokenizer

        write_tokenizer(output.gguf, folder)
    else:
        copy_tokenizer(output.folder, folder)
    if output.changed is not None:
        _write_changed(output.changed, output.source, folder)


def write_generation_settings(
    output: OutputTokenizer | None, ends: Sequence[int], config: Mapping[str, Any], folder: Path
) -> None:
    """Bring the numbers of tokens in a folder's generation_config.json up to date.

    Args:
        output: the tokenizer that the donor's numbers are translated to, if it is another one.
        ends: further tokens that end a text.
        config: the output's config.json, which says what ends one if there is no generation_config.json.
        folder: where the donor's generation_config.json is, if it has one.
    """
    path = folder / GENERATION
    stored = read_json(path) if path.is_file() else None
    settings = stored
    if settings is not None and output is not None:
        settings = output.translated(settings, {**output.settings, **output.generation})
        text: object = config.get("text_config")
        inner: Mapping[str, Any] = cast("dict[str, Any]", text) if isinstance(text, dict) else {}
        size: object = inner.get(_NUM_TOKENS, config.get(_NUM_TOKENS))
        if type(size) is int:
            settings = _resized(settings, (), size)
    if ends:
        if settings is None:
            text = config.get("text_config")
            sections = (cast("dict[str, Any]", text) if isinstance(text, dict) else {}, config)
            found = {
                key: section.get(key) for section in sections for key in _OF_GENERATION if key in section
            }
            settings = {key: value for key, value in found.items() if value is not None}
        settings = dict(settings)
        said = settings.get("eos_token_id", config.get("eos_token_id"))
        known = cast("list[Any]", said) if isinstance(said, list) else [] if said is None else [said]
        settings["eos_token_id"] = list(dict.fromkeys([*known, *ends]))
    if settings is not None and settings != stored:
        write_json(path, settings)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the files and folders of a tokenizer."""
    for path in sorted(source.iterdir()):
        if path.name.startswith(FILES):
            if path.is_dir():
                shutil.copytree(path, folder / path.name, dirs_exist_ok=True)
            else:
                shutil.copyfile(path, folder / path.name)


def _write_changed(changed: Tokenizer, source: Tokenizer, folder: Path) -> None:
    assert changed.content is not None
    text = json.dumps(changed.content, ensure_ascii=False, separators=(",", ":"))
    (folder / FAST).write_bytes(text.encode("utf-8", "backslashreplace"))
    # The other forms of the vocabulary lack the new tokens, and some readers prefer them.
    for name in OTHERS:
        (folder / name).unlink(missing_ok=True)
    path = folder / CONFIG
    if not path.is_file():
        return
    config = read_json(path)
    entries = config.get("added_tokens_decoder")
    new = [token for content, token in changed.added.items() if content not in source.added]
    if isinstance(entries, dict) and new:
        config["added_tokens_decoder"] = {
            **entries,
            **{str(token.id): _decoder_entry(token) for token in new},
        }
        write_json(path, config)


def _decoder_entry(token: Token) -> dict[str, Any]:
    return {"content": token.content, **NO_FLAGS, **token.flags}
