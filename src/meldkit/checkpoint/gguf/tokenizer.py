"""The tokenizer of a GGUF file, and how it ends texts, written as Hugging Face's files.

A file holds the vocabulary, and merges or scores; how text is cut before merging it names only. The names
and what they stand for are llama.cpp's, the expressions those of the models' own tokenizer.json.
Source: https://github.com/ggml-org/llama.cpp (src/llama-vocab.cpp).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from meldkit.checkpoint.gguf.contents import Contents, bad, read_contents
from meldkit.checkpoint.gguf.settings import token_ids
from meldkit.checkpoint.json_file import shown
from meldkit.errors import NotSupportedError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5
_SPACE = "\u2581"
_HINT = "merge with --no-copy-tokenizer, and copy the original model's tokenizer into the output folder"


@dataclass(frozen=True, slots=True)
class _Cut:
    """How text is cut into words before pairs of their bytes are merged.

    Attributes:
        patterns: one after the other; each match becomes a word. GPT-2's own if there is none.
        digits: whether digits stand alone.
        whole_words: whether a word of the vocabulary is taken as it is, whatever the merges say.
        begins: whether a text begins with the BOS token if the file does not say.
    """

    patterns: tuple[str, ...] = ()
    digits: bool = False
    whole_words: bool = False
    begins: bool = False


_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_START = r"[^\r\n\p{L}\p{N}]?"
_PATHS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"

_GPT2 = _Cut()
_DIGITS = _Cut(digits=True)
_LLAMA3 = _Cut(
    ("|".join((_ENDINGS, _LETTERS, r"\p{N}{1,3}", _SYMBOLS, _SPACES)),), whole_words=True, begins=True
)
_QWEN2 = _Cut(("|".join((_ENDINGS, _LETTERS, r"\p{N}", _SYMBOLS, _SPACES)),))
_DBRX = _Cut(_LLAMA3.patterns)
_TEKKEN = _Cut(
    ("|".join((f"{_START}{_UPPER}*{_LOWER}+", f"{_START}{_UPPER}+{_LOWER}*", r"\p{N}", _PATHS, _SPACES)),),
    whole_words=True,
)
_GPT4O = _Cut(
    (
        "|".join(
            (
                f"{_START}{_UPPER}*{_LOWER}+{_ENDINGS}?",
                f"{_START}{_UPPER}+{_LOWER}*{_ENDINGS}?",
                r"\p{N}{1,3}",
                _PATHS,
                _SPACES,
            )
        ),
    ),
)
_SEED = _Cut(("|".join((_ENDINGS, _LETTERS, r"\p{N}", r" ?[^\s\p{L}\p{N}\r\n]+", _SPACES)),))
_BLOOM = _Cut((r" ?[^(\s|.,!?…。，、।۔،)]+",))
_FALCON = _Cut(
    (
        r"[\p{P}$+<=>^~|`]+",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"[0-9][0-9][0-9]",
    )
)
_DEEPSEEK_CODER = _Cut((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥\u0800-一가-\ud7ff]+", r"\p{N}"))

#: By tokenizer.ggml.pre.
_CUTS: dict[str, _Cut] = {
    **dict.fromkeys(("default", "gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4"), _GPT2),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS
    ),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "lfm2"), _LLAMA3),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen", "megrez", "hunyuan"), _QWEN2),
    **dict.fromkeys(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), _DBRX),
    "tekken": _TEKKEN,
    **dict.fromkeys(("gpt-4o", "llama4"), _GPT4O),
    "seed-coder": _SEED,
    **dict.fromkeys(("bloom", "poro-chat", "gpt3-finnish"), _BLOOM),
    "falcon": _FALCON,
    "deepseek-coder": _DEEPSEEK_CODER,
}


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """The tokens of a file, checked.

    Attributes:
        contents: of the file.
        tokens: by number.
        types: llama.cpp's, one for each token.
    """

    contents: Contents
    tokens: Sequence[str]
    types: Sequence[int]

    def get(self, key: str, default: Any = None) -> Any:
        return self.contents.settings.get(f"tokenizer.ggml.{key}", default)

    def token(self, role: str) -> str | None:
        """The special token of a role, or None."""
        number = self.get(f"{role}_token_id")
        if number is None:
            return None
        if type(number) is not int or not 0 <= number < len(self.tokens):
            raise bad(self.contents.path, f"has the {role} token {shown(number)} of {len(self.tokens):,}")
        return self.tokens[number]

    @property
    def numbers(self) -> dict[str, int]:
        """Tokens that are in use; the first one of equal ones counts."""
        result: dict[str, int] = {}
        for number, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True)):
            if kind != _UNUSED:
                result.setdefault(token, number)
        return result


def write_tokenizer(path: Path, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json; nothing for a file that has no vocabulary.

    Args:
        path: the GGUF file.
        folder: where to.

    Raises:
        CheckpointError: a damaged file.
        NotSupportedError: a kind of tokenizer that is not known.
    """
    contents = read_contents(path, texts=True)
    if "tokenizer.ggml.tokens" not in contents.settings:
        return
    vocabulary = _vocabulary(contents)
    kind = vocabulary.get("model")
    if kind == "gpt2":
        tokenizer, begins = _byte_level(vocabulary)
    elif kind == "llama":
        tokenizer, begins = _sentence_pieces(vocabulary), True
    else:
        raise NotSupportedError(
            f"not supported: {path} has a tokenizer of the kind {shown(kind)}", hint=_HINT
        )
    _add_tokens(vocabulary, tokenizer)
    _add_template(vocabulary, tokenizer, begins)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), "utf-8")
    _write_json(folder / "tokenizer_config.json", _config(vocabulary))


def write_generation_config(path: Path, folder: Path) -> None:
    """Write generation_config.json: the special tokens, among them each that ends a text or a turn.

    Args:
        path: the GGUF file.
        folder: where to.

    Raises:
        CheckpointError: a damaged file.
    """
    contents = read_contents(path)
    config: dict[str, Any] = dict(token_ids(contents))
    end, turn = config.get("eos_token_id"), contents.settings.get("tokenizer.ggml.eot_token_id")
    if type(turn) is int and end is not None and turn != end:
        config["eos_token_id"] = [end, turn]
    if config:
        _write_json(folder / "generation_config.json", config)


def _vocabulary(contents: Contents) -> _Vocabulary:
    tokens = contents.settings["tokenizer.ggml.tokens"]
    if not isinstance(tokens, list) or not tokens:
        raise bad(contents.path, "has a tokenizer.ggml.tokens that is not a list of texts")
    texts = cast("list[str]", tokens)
    types = contents.settings.get("tokenizer.ggml.token_type")
    numbers = [_NORMAL] * len(texts) if types is None else _numbers(types)
    if len(numbers) != len(texts):
        raise bad(contents.path, f"has {len(texts):,} tokens, but {len(numbers):,} types of tokens")
    if contents.settings.get("tokenizer.ggml.model") == "llama":
        # llama.cpp writes the spaces of added tokens as such.
        kinds = zip(texts, numbers, strict=True)
        texts = [text.replace(" ", _SPACE) if kind == _USER_DEFINED else text for text, kind in kinds]
    return _Vocabulary(contents, texts, numbers)


def _numbers(value: object) -> list[Any]:
    return list(cast("tuple[Any, ...]", value)) if isinstance(value, tuple) else []


def _byte_level(vocabulary: _Vocabulary) -> tuple[Tokenizer, bool]:
    """Pairs of bytes are merged, inside of words; and whether a text begins with BOS by default."""
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    name = vocabulary.get("pre", "default")
    cut = _CUTS.get(name) if isinstance(name, str) else None
    if cut is None:
        raise NotSupportedError(
            f"not supported: {vocabulary.contents.path} cuts text into words as {shown(name)} does, "
            "which is not known",
            hint=_HINT,
        )
    merges = vocabulary.get("merges")
    if not isinstance(merges, list):
        raise bad(vocabulary.contents.path, "has no tokenizer.ggml.merges")
    numbers = vocabulary.numbers
    pairs = [_pair(vocabulary, merge, numbers) for merge in cast("list[str]", merges)]
    tokenizer = Tokenizer(BPE(numbers, pairs, ignore_merges=cut.whole_words))
    steps: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in cut.patterns]
    if cut.digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not cut.patterns))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, cut.begins


def _pair(vocabulary: _Vocabulary, merge: str, numbers: Mapping[str, int]) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    if left not in numbers or right not in numbers or left + right not in numbers:
        raise bad(vocabulary.contents.path, f"merges {shown(merge)}, of which not all are tokens")
    return left, right


def _sentence_pieces(vocabulary: _Vocabulary) -> Tokenizer:
    """Pieces are merged, whatever gives the best one first; spaces are letters."""
    from tokenizers import Tokenizer, decoders, normalizers
    from tokenizers.models import BPE

    numbers = vocabulary.numbers
    merges = vocabulary.get("merges")
    if isinstance(merges, list):
        pairs = [_pair(vocabulary, merge, numbers) for merge in cast("list[str]", merges)]
    else:
        pairs = _merges_of_scores(vocabulary, numbers)
    unknown = next((token for token, n in numbers.items() if vocabulary.types[n] == _UNKNOWN), None)
    tokenizer = Tokenizer(BPE(numbers, pairs, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    space = normalizers.Replace(" ", _SPACE)
    steps: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if vocabulary.get("add_space_prefix", True):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), space])
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = space
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _merges_of_scores(vocabulary: _Vocabulary, numbers: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every pair of tokens that make a third one, the best of these first."""
    scores = _numbers(vocabulary.get("scores"))
    if len(scores) != len(vocabulary.tokens):
        raise bad(vocabulary.contents.path, "has neither merges nor a score for each token")

    def rank(token: str) -> tuple[int, float, int]:
        number = numbers[token]
        # Added tokens come before all that were learned, the longest first, whatever their scores.
        if vocabulary.types[number] == _USER_DEFINED:
            return 0, -len(token), number
        return 1, -scores[number], number

    merged = [token for token, n in numbers.items() if vocabulary.types[n] in (_NORMAL, _USER_DEFINED)]
    merges: list[tuple[str, str]] = []
    for token in sorted(merged, key=rank):
        parts = [(token[:i], token[i:]) for i in range(1, len(token))]
        merges += sorted(
            (pair for pair in parts if pair[0] in numbers and pair[1] in numbers),
            key=lambda pair: (numbers[pair[0]], numbers[pair[1]]),
        )
    return merges


def _add_tokens(vocabulary: _Vocabulary, tokenizer: Tokenizer) -> None:
    """Tokens that are found in a text before anything else is done with it."""
    from tokenizers import AddedToken

    kinds = list(zip(vocabulary.tokens, vocabulary.types, strict=True))
    for wanted, special in ((_USER_DEFINED, False), (_CONTROL, True)):
        tokens = [
            AddedToken(token, special=special, normalized=False) for token, kind in kinds if kind == wanted
        ]
        if special:
            tokenizer.add_special_tokens(tokens)
        else:
            tokenizer.add_tokens(tokens)


def _add_template(vocabulary: _Vocabulary, tokenizer: Tokenizer, begins: bool) -> None:
    """Have texts begin with BOS and end with EOS, where they do."""
    from tokenizers.processors import TemplateProcessing

    wanted = {"bos": vocabulary.get("add_bos_token", begins), "eos": vocabulary.get("add_eos_token", False)}
    tokens = {
        role: token for role, w in wanted.items() if w and (token := vocabulary.token(role)) is not None
    }
    for role, token in tokens.items():
        if not re.fullmatch(r"[^\s:$][^\s:]*", token):
            raise bad(vocabulary.contents.path, f"has {shown(token)} as the {role} token", _HINT)
    if not tokens:
        return

    def template(text: str, number: int) -> str:
        around = {role: f"{token}:{number}" for role, token in tokens.items()}
        return " ".join(filter(None, (around.get("bos"), f"{text}:{number}", around.get("eos"))))

    tokenizer.post_processor = TemplateProcessing(
        single=template("$A", 0),
        pair=f"{template('$A', 0)} {template('$B', 1)}",
        special_tokens=[(token, vocabulary.get(f"{role}_token_id")) for role, token in tokens.items()],
    )


def _config(vocabulary: _Vocabulary) -> dict[str, Any]:
    settings = vocabulary.contents.settings
    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for ours, theirs in roles.items():
        token = vocabulary.token(theirs)
        if token is not None:
            config[f"{ours}_token"] = token
    length = settings.get(f"{settings.get('general.architecture')}.context_length")
    if type(length) is int:
        config["model_max_length"] = length
    config["clean_up_tokenization_spaces"] = False
    template = settings.get("tokenizer.chat_template")
    if isinstance(template, str):
        config["chat_template"] = template
    return config


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", "utf-8")
