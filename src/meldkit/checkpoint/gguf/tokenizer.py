"""The tokenizer of a GGUF file, and how it ends texts, written as Hugging Face's files.

A file holds the vocabulary, and merges or scores; how text is cut before merging it names only.
Source: https://github.com/ggml-org/llama.cpp (src/llama-vocab.cpp).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from meldkit.checkpoint.gguf.contents import Contents, bad
from meldkit.checkpoint.gguf.cuts import CUTS
from meldkit.checkpoint.gguf.parts import read_model
from meldkit.checkpoint.gguf.settings import token_ids
from meldkit.checkpoint.json_file import shown, write_json
from meldkit.errors import FormatError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5
_SPACE = "\u2581"
#: What a role of BERT's special tokens is also called, and its usual number.
_BERT_ROLES = {"cls": ("bos", 101), "seperator": ("eos", 102), "unknown": ("unknown", 100)}
_HINT = "merge with --no-copy-tokenizer, and copy the original model's tokenizer into the output folder"


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

    def number(self, role: str) -> Any:
        """The number of the special token of a role, or None."""
        number = self.get(f"{role}_token_id")
        # Files of BERT may say the one or the other; where they say none, it is the usual one.
        if number is None and self.get("model") == "bert" and role in _BERT_ROLES:
            also, usual = _BERT_ROLES[role]
            return self.get(f"{also}_token_id", usual)
        return number

    def token(self, role: str) -> str | None:
        """The special token of a role, or None."""
        number = self.number(role)
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
        FormatError: a kind of tokenizer that is not known.
    """
    contents = read_model(path, texts=True)
    if "tokenizer.ggml.tokens" not in contents.settings:
        return
    vocabulary = _vocabulary(contents)
    kind = vocabulary.get("model")
    if kind not in _KINDS:
        raise FormatError(f"not supported: {path} has a tokenizer of the kind {shown(kind)}", hint=_HINT)
    tokenizer = _KINDS[kind](vocabulary)
    _add_tokens(vocabulary, tokenizer)
    _add_template(vocabulary, tokenizer)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), "utf-8")
    write_json(folder / "tokenizer_config.json", _config(vocabulary))


def write_generation_config(path: Path, folder: Path) -> None:
    """Write generation_config.json: the special tokens, among them each that ends a text or a turn.

    Args:
        path: the GGUF file.
        folder: where to.

    Raises:
        CheckpointError: a damaged file.
    """
    contents = read_model(path)
    config: dict[str, Any] = dict(token_ids(contents))
    end, turn = config.get("eos_token_id"), contents.settings.get("tokenizer.ggml.eot_token_id")
    if type(turn) is int and end is not None and turn != end:
        config["eos_token_id"] = [end, turn]
    if config:
        write_json(folder / "generation_config.json", config)


def _vocabulary(contents: Contents) -> _Vocabulary:
    tokens = contents.settings["tokenizer.ggml.tokens"]
    if not isinstance(tokens, list) or not tokens:
        raise bad(contents.path, "has a tokenizer.ggml.tokens that is not a list of texts")
    texts = cast("list[str]", tokens)
    types = contents.settings.get("tokenizer.ggml.token_type")
    numbers = [_NORMAL] * len(texts) if types is None else _numbers(types)
    if len(numbers) != len(texts):
        raise bad(contents.path, f"has {len(texts):,} tokens, but {len(numbers):,} types of tokens")
    kind = contents.settings.get("tokenizer.ggml.model")
    if kind in ("llama", "gemma4"):
        # llama.cpp writes the spaces of added tokens as such.
        kinds = zip(texts, numbers, strict=True)
        texts = [text.replace(" ", _SPACE) if kind == _USER_DEFINED else text for text, kind in kinds]
    if kind == "bert":
        texts = [_word_piece(text, kind) for text, kind in zip(texts, numbers, strict=True)]
    return _Vocabulary(contents, texts, numbers)


def _word_piece(token: str, kind: int) -> str:
    """What BERT calls a token: llama.cpp marks those that begin a word, BERT those that do not."""
    if kind == _CONTROL or re.fullmatch(r"\[.+\]", token):
        return token
    return token.removeprefix(_SPACE) if token.startswith(_SPACE) else f"##{token}"


def _numbers(value: object) -> list[Any]:
    return list(cast("tuple[Any, ...]", value)) if isinstance(value, tuple) else []


def _byte_level(vocabulary: _Vocabulary) -> Tokenizer:
    """Pairs of bytes are merged, inside of words."""
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    name = vocabulary.get("pre", "default")
    cut = CUTS.get(name) if isinstance(name, str) else None
    if cut is None:
        raise FormatError(
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
    return tokenizer


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


def _unigrams(vocabulary: _Vocabulary) -> Tokenizer:
    """The most probable pieces, by their scores; spaces are letters."""
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import Unigram

    scores = _scores(vocabulary)
    typed = (number for number, kind in enumerate(vocabulary.types) if kind == _UNKNOWN)
    unknown = next(typed, vocabulary.number("unknown"))
    if type(unknown) is not int or not 0 <= unknown < len(scores):
        raise bad(vocabulary.contents.path, "has no token for what is unknown", _HINT)
    tokenizer = Tokenizer(Unigram(list(zip(vocabulary.tokens, scores, strict=True)), unknown, False))
    steps: list[Any] = []
    table = _numbers(vocabulary.get("precompiled_charsmap"))
    if table:
        steps.append(normalizers.Precompiled(bytes(n & 0xFF for n in table)))
    scheme = "always" if vocabulary.get("add_space_prefix", True) else "never"
    collapses = vocabulary.get("remove_extra_whitespaces", True)
    if collapses:
        steps += [normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), _SPACE)]
    elif scheme == "always":
        # Metaspace adds none where there is one already.
        steps += [normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
    if steps:
        tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, scheme, split=bool(collapses))
    tokenizer.decoder = decoders.Metaspace(_SPACE, scheme)
    return tokenizer


def _word_pieces(vocabulary: _Vocabulary) -> Tokenizer:
    """The longest piece first; BERT's."""
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import WordPiece

    unknown = vocabulary.token("unknown") or "[UNK]"
    lower = vocabulary.get("normalizer.lowercase")
    if not isinstance(lower, bool):
        # Older files do not say; but a vocabulary without capital letters is one for small letters.
        kinds = zip(vocabulary.tokens, vocabulary.types, strict=True)
        words = (token for token, kind in kinds if kind == _NORMAL and not re.fullmatch(r"\[.+\]", token))
        lower = not any(re.search("[A-Z]", word) for word in words)
    tokenizer = Tokenizer(WordPiece(vocabulary.numbers, unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(
        strip_accents=vocabulary.get("normalizer.strip_accents"), lowercase=lower
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _scores(vocabulary: _Vocabulary) -> list[Any]:
    scores = _numbers(vocabulary.get("scores"))
    if len(scores) != len(vocabulary.tokens):
        raise bad(vocabulary.contents.path, "has neither merges nor a score for each token")
    return scores


def _merges_of_scores(vocabulary: _Vocabulary, numbers: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every pair of tokens that make a third one, the best of these first."""
    scores = _scores(vocabulary)

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


def _add_template(vocabulary: _Vocabulary, tokenizer: Tokenizer) -> None:
    """Have texts begin and end with special tokens, where they do."""
    from tokenizers.processors import TemplateProcessing

    kind, pre = vocabulary.get("model"), vocabulary.get("pre", "default")
    begins = kind in ("llama", "gemma4") or (kind == "gpt2" and CUTS[pre].begins)
    wanted = {
        "bos": vocabulary.get("add_bos_token", begins),
        "eos": vocabulary.get("add_eos_token", kind == "t5"),
    }
    if kind == "bert":
        wanted = {"cls": True, "seperator": True}
    tokens = {
        role: token for role, w in wanted.items() if w and (token := vocabulary.token(role)) is not None
    }
    for role, token in tokens.items():
        if not re.fullmatch(r"[^\s:$][^\s:]*", token):
            raise bad(vocabulary.contents.path, f"has {shown(token)} as the {role} token", _HINT)
    if not tokens:
        return
    first, last = (tokens.get(role) for role in wanted)

    def template(text: str, number: int) -> str:
        around = (first and f"{first}:{number}", f"{text}:{number}", last and f"{last}:{number}")
        return " ".join(filter(None, around))

    # Only the first text of a pair begins with BERT's first token.
    second = template("$B", 1).removeprefix(f"{first}:1 ") if kind == "bert" else template("$B", 1)
    tokenizer.post_processor = TemplateProcessing(
        single=template("$A", 0),
        pair=f"{template('$A', 0)} {second}",
        special_tokens=[(token, vocabulary.number(role)) for role, token in tokens.items()],
    )


def _config(vocabulary: _Vocabulary) -> dict[str, Any]:
    settings = vocabulary.contents.settings
    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    roles |= {"sep": "seperator", "cls": "cls", "mask": "mask"}  # llama.cpp spells it so
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


_KINDS: dict[Any, Callable[[_Vocabulary], Tokenizer]] = {
    "gpt2": _byte_level,
    "llama": _sentence_pieces,
    "gemma4": _sentence_pieces,
    "t5": _unigrams,
    "bert": _word_pieces,
}
