"""Tokenizers of GGUF files, against those that transformers makes of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gguf_files import LLAMA_KEYS, TEXTS, llama_tensors, tokenizers, write_gguf
from meldkit.checkpoint.gguf import write_tokenizer
from meldkit.errors import CheckpointError, NotSupportedError


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
        (
            {"tokens": ["a"], "model": "llama", "scores": [0.0], "bos_token_id": 7, "unknown_token_id": 0},
            "has the bos token 7 of 1",
        ),
    ],
)
def test_tokenizers_that_cannot_be_written(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    whole = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    path = write_gguf(tmp_path / "m.gguf", "llama", LLAMA_KEYS | whole, llama_tensors())
    with pytest.raises((CheckpointError, NotSupportedError), match=re.escape(message)):
        write_tokenizer(path, tmp_path)
