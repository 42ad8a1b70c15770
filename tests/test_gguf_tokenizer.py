"""Tokenizers of GGUF files, against those that transformers makes of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gguf_files import LLAMA_KEYS, TEXTS, llama_tensors, tokenizers, write_gguf
from meldkit.api import plan
from meldkit.checkpoint.gguf import write_tokenizer
from meldkit.errors import CheckpointError, FormatError
from meldkit.options import MergeOptions


def byte_level_vocabulary() -> tuple[list[str], list[str]]:
    """Tokens and merges, learned from this file."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([Path(__file__).read_text("utf-8"), *TEXTS], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return list(model["vocab"]), [" ".join(pair) for pair in model["merges"]]


def tokenizer_keys(tokens: list[str], **more: Any) -> dict[str, Any]:
    """Settings of a vocabulary with four tokens added."""
    added = ["<|begin|>", "<|turn|>", "<think>", "</think>"]
    first = len(tokens)
    return {
        "tokenizer.ggml.tokens": tokens + added,
        "tokenizer.ggml.token_type": [1] * first + [3, 3, 4, 4],
        "tokenizer.ggml.bos_token_id": first,
        "tokenizer.ggml.eos_token_id": first + 1,
        "tokenizer.ggml.padding_token_id": first,
        **{f"tokenizer.ggml.{key}": value for key, value in more.items()},
    }


@pytest.fixture(scope="module")
def learned() -> tuple[list[str], list[str]]:
    return byte_level_vocabulary()


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2", "tekken", "gpt-4o"])
def test_byte_level_tokenizer(pre: str, learned: tuple[list[str], list[str]], tmp_path: Path) -> None:
    tokens, merges = learned
    keys = tokenizer_keys(tokens, model="gpt2", pre=pre, merges=merges, add_bos_token=pre == "llama-bpe")
    path = write_gguf(tmp_path / "m.gguf", "llama", LLAMA_KEYS | keys, llama_tensors())
    ours, theirs = tokenizers(path, tmp_path / "out")
    for text in TEXTS:
        assert ours.tokenize(text) == theirs.tokenize(text)
        ids = ours(text)["input_ids"]
        assert ours.decode(ids, skip_special_tokens=True) == text.replace("<|turn|>", "")
        assert (ids[:1] == [ours.bos_token_id]) == (pre == "llama-bpe")
    assert (ours.bos_token, ours.eos_token, ours.pad_token) == ("<|begin|>", "<|turn|>", "<|begin|>")


@pytest.mark.parametrize(
    "pre", ["dbrx", "seed-coder", "bloom", "falcon", "deepseek-coder", "smollm", "olmo", "llama4"]
)
def test_no_text_is_lost(pre: str, learned: tuple[list[str], list[str]], tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    tokens, merges = learned
    keys = tokenizer_keys(tokens, model="gpt2", pre=pre, merges=merges)
    write_tokenizer(write_gguf(tmp_path / "m.gguf", "llama", LLAMA_KEYS | keys, llama_tensors()), tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_digits_stand_alone(learned: tuple[list[str], list[str]], tmp_path: Path) -> None:
    tokens, merges = learned
    keys = tokenizer_keys(tokens, model="gpt2", pre="smollm", merges=merges, eot_token_id=0)
    template = {"tokenizer.chat_template": "{{ messages }}"}
    path = write_gguf(tmp_path / "m.gguf", "llama", LLAMA_KEYS | keys | template, llama_tensors())
    ours, _ = tokenizers(path, tmp_path / "out")
    assert ours.tokenize("12345") == list("12345")
    assert ours.chat_template == "{{ messages }}"
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [len(tokens) + 1, 0]


def test_sentence_pieces(tmp_path: Path) -> None:
    words = " ".join(TEXTS).replace(" ", "\u2581")
    pieces = sorted({words[i : i + n] for n in (2, 3, 4, 5, 6) for i in range(0, len(words) - n, 3)})
    letters = sorted(set(words) | set("abcdefghijklmnopqrstuvwxyz"))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), *pieces, *letters]
    tokens = list(dict.fromkeys(tokens))
    types = [2, 3, 3, *[6] * 256, *[1] * (len(tokens) - 259)]
    keys = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(i) for i in range(len(tokens) - 259)],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    path = write_gguf(tmp_path / "m.gguf", "llama", LLAMA_KEYS | keys, llama_tensors())
    ours, theirs = tokenizers(path, tmp_path / "out")
    for text in [*TEXTS, "Ünknown ☃ letters"]:
        ids = ours(text)["input_ids"]
        assert ids == theirs(text)["input_ids"]
        assert ours.decode(ids, skip_special_tokens=True) == text
        assert ids[0] == 1


def wrote(path: Path, folder: Path) -> Any:
    """The tokenizer that is written of a file."""
    from transformers import AutoTokenizer

    folder.mkdir()
    write_tokenizer(path, folder)
    return AutoTokenizer.from_pretrained(folder)


def test_added_tokens_of_gemma4(tmp_path: Path) -> None:
    """Merges in the order in which they were learned, of pieces in which spaces are letters."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    learned = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    learned.normalizer = normalizers.Replace(" ", "\u2581")
    learned.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{n:02X}>" for n in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    learned.train_from_iterator(TEXTS, trainer)
    model = json.loads(learned.to_str())["model"]
    tokens = [*model["vocab"], "<|turn>"]
    kinds = [3, 3, 3, 2, *[6] * 256, *[1] * (len(tokens) - 261), 3]
    keys = {
        "model": "gemma4",
        "tokens": tokens,
        "token_type": kinds,
        "merges": [" ".join(pair) for pair in model["merges"]],
        "bos_token_id": 2,
        "eos_token_id": 1,
        "add_bos_token": True,
        "add_space_prefix": False,
    }
    whole = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    path = write_gguf(tmp_path / "m.gguf", "llama", LLAMA_KEYS | whole, llama_tensors())
    ours = wrote(path, tmp_path / "out")
    assert ours.convert_tokens_to_ids("<|turn>") == len(tokens) - 1
    for text in [*TEXTS, "Ünknown \u2603 letters"]:
        ids = ours(text)["input_ids"]
        assert ids == [2, *learned.encode(text, add_special_tokens=False).ids]
        assert ours.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("extra", [True, False])
def test_unigrams(extra: bool, tmp_path: Path) -> None:
    """The same pieces as of the tokenizer that learned them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    learned = Tokenizer(models.Unigram())
    learned.pre_tokenizer = pre_tokenizers.Metaspace()
    learned.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    learned.train_from_iterator([text.replace("\r", "") for text in TEXTS], trainer)
    pieces = json.loads(learned.to_str())["model"]["vocab"]
    keys = {
        "model": "t5",
        "tokens": [token for token, _ in pieces],
        "scores": [score for _, score in pieces],
        "token_type": [3, 3, 2, *[1] * (len(pieces) - 3)],
        "eos_token_id": 1,
        "padding_token_id": 0,
        "unknown_token_id": 2,
        "remove_extra_whitespaces": extra,
    }
    whole = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    path = write_gguf(tmp_path / "m.gguf", "llama", LLAMA_KEYS | whole, llama_tensors())
    ours = wrote(path, tmp_path / "out")
    assert (ours.eos_token, ours.pad_token, ours.unk_token) == ("</s>", "<pad>", "<unk>")
    for text in [*TEXTS, "A little text, no more."]:
        plain = re.sub(r"\s+", " ", text).strip()
        expected = learned.encode(plain, add_special_tokens=False).ids
        assert ours(plain)["input_ids"] == [*expected, 1]
        if extra:
            doubled = plain.replace(" ", "   ") + "  "
            assert ours(doubled)["input_ids"] == [*expected, 1]
    assert ours("a  b")["input_ids"] != ours("a b")["input_ids"] or extra


WORDS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]"),
    *(
        "hello",
        "world",
        "na",
        "##ive",
        "##ï",
        "##ve",
        "cafe",
        "##s",
        "12",
        "##3",
        ",",
        "!",
        "'",
        "we",
        "你",
        "好",
    ),
]


@pytest.mark.parametrize("capitals", [True, False])
@pytest.mark.parametrize("told", [True, False])
def test_word_pieces(capitals: bool, told: bool, tmp_path: Path) -> None:
    """The same tokens as of BERT's tokenizer, for one text and for pairs."""
    from transformers import BertTokenizer

    words = WORDS + (["Hello", "World", "##S"] if capitals else [])
    bert = BertTokenizer(vocab={word: i for i, word in enumerate(words)}, do_lower_case=not capitals)
    # llama.cpp marks words, where BERT marks what goes on.
    stored = [
        word if word.startswith("[") else word[2:] if word.startswith("##") else "\u2581" + word
        for word in words
    ]
    keys = {"model": "bert", "tokens": stored, "token_type": [3] * 5 + [1] * (len(words) - 5)}
    keys |= {"seperator_token_id": 3, "padding_token_id": 0, "unknown_token_id": 1, "mask_token_id": 4}
    keys |= {"cls_token_id": 2, "token_type_count": 2}
    if told:
        keys |= {"normalizer.lowercase": not capitals}
    whole = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    path = write_gguf(tmp_path / "m.gguf", "llama", LLAMA_KEYS | whole, llama_tensors())
    ours = wrote(path, tmp_path / "out")
    assert ours.get_vocab() == {word: i for i, word in enumerate(words)}
    assert (ours.cls_token, ours.sep_token, ours.mask_token) == ("[CLS]", "[SEP]", "[MASK]")
    for text in [*TEXTS, "Hello, WORLD!", "hello worlds", "naïve cafés 123", "[MASK] 你好", "we're"]:
        assert ours(text)["input_ids"] == bert(text)["input_ids"], text
        pair = ours(text, "hello")
        assert pair["input_ids"] == bert(text, "hello")["input_ids"]
        both = ours.backend_tokenizer.encode(text, "hello")
        assert both.type_ids == bert(text, "hello")["token_type_ids"]


def test_old_files_of_bert_number_no_special_tokens(tmp_path: Path) -> None:
    words = [*(f"[unused{n}]" for n in range(100)), "[UNK]", "[CLS]", "[SEP]", "\u2581hello"]
    keys = {"tokenizer.ggml.model": "bert", "tokenizer.ggml.tokens": words}
    path = write_gguf(tmp_path / "m.gguf", "llama", LLAMA_KEYS | keys, llama_tensors())
    assert wrote(path, tmp_path / "out")("hello there")["input_ids"] == [101, 103, 100, 102]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tokens": [1, 2]}, "has a tokenizer.ggml.tokens that is not a list of texts"),
        ({"tokens": ["a"], "model": "rwkv"}, "a tokenizer of the kind 'rwkv'"),
        (
            {"tokens": ["a"], "model": "gpt2", "pre": "odd", "merges": ["a a"]},
            "cuts text into words as 'odd'",
        ),
        ({"tokens": ["a"], "model": "gpt2"}, "has no tokenizer.ggml.merges"),
        ({"tokens": ["a"], "model": "gpt2", "merges": ["a b"]}, "merges 'a b', of which not all are tokens"),
        ({"tokens": ["a"], "model": "llama"}, "has neither merges nor a score for each token"),
        ({"tokens": ["a"], "model": "llama", "token_type": [1, 1]}, "has 1 tokens, but 2 types"),
        ({"tokens": ["a"], "model": "t5"}, "has neither merges nor a score for each token"),
        ({"tokens": ["a"], "model": "t5", "scores": [0.0]}, "has no token for what is unknown"),
        (
            {"tokens": ["a"], "model": "t5", "scores": [0.0], "unknown_token_id": 1},
            "has no token for what is unknown",
        ),
        (
            {"tokens": ["a"], "model": "bert", "unknown_token_id": 0, "cls_token_id": 9},
            "has the cls token 9 of 1",
        ),
        (
            {"tokens": ["a"], "model": "llama", "scores": [0.0], "bos_token_id": 7, "unknown_token_id": 0},
            "has the bos token 7 of 1",
        ),
    ],
)
def test_tokenizers_that_cannot_be_written(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    whole = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    path = write_gguf(tmp_path / "m.gguf", "llama", LLAMA_KEYS | whole, llama_tensors())
    with pytest.raises(CheckpointError, match=re.escape(message)):
        write_tokenizer(path, tmp_path)


def test_a_tokenizer_that_cannot_be_written_is_found_when_planning(tmp_path: Path) -> None:
    tokens = ["a", "b", "ab", *(f"<{n}>" for n in range(3, 32))]
    keys = {"model": "gpt2", "tokens": tokens, "merges": ["a b"], "eos_token_id": 3}
    good, odd = (
        write_gguf(
            tmp_path / f"{pre}.gguf",
            "llama",
            LLAMA_KEYS | {f"tokenizer.ggml.{key}": value for key, value in {**keys, "pre": pre}.items()},
            llama_tensors(),
        )
        for pre in ("gpt-2", "odd")
    )

    def recipe(*paths: Path, **more: object) -> dict[str, object]:
        models = [{"model": str(path), "parameters": {"weight": 1}} for path in paths]
        return {"merge_method": "linear", "models": models, **more}

    for paths in ((odd,), (odd, good)):
        with pytest.raises(FormatError, match="cuts text into words as 'odd' does") as error:
            plan(recipe(*paths))
        assert error.value.hint.startswith("merge with --no-copy-tokenizer")
        plan(recipe(*paths), MergeOptions(copy_tokenizer=False))
    # Another model's is not written.
    (warning,) = plan(recipe(good, odd)).warnings
    assert warning.endswith("so its tokens are not compared with those of other models")
    with pytest.raises(FormatError, match="cuts text into words as 'odd' does") as error:
        plan(recipe(good, odd, tokenizer={}))
    assert error.value.hint == (
        "merge the original model instead of this file; or, if the vocabularies are the same, "
        "leave out the tokenizer setting and merge with --no-copy-tokenizer"
    )
