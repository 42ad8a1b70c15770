"""Models whose tokenizers are in the formats that transformers reads: small, sound, and different."""

from __future__ import annotations

import io
import json
from base64 import b64encode
from pathlib import Path

import word_tokenizers

_SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def _model(name: str, rows: int, tokenizer_class: str = "", **settings: object) -> Path:
    """A model without tokenizer.json."""
    folder = word_tokenizers.model(Path(name), None, seed=ord(name), rows=rows)
    if tokenizer_class:
        content = {"tokenizer_class": tokenizer_class, **_SPECIAL, **settings}
        (folder / "tokenizer_config.json").write_text(json.dumps(content))
    return folder


def pairs(tokenizer_class: str = "GPT2Tokenizer", **settings: object) -> None:
    """vocab.json and merges.txt, with more settings in tokenizer_config.json."""
    for name in "ab":
        tokens = [*"helo wrd", "\u0120", "he", "ll", "hell", name * 3, "<s>", "</s>", "<unk>"]
        folder = _model(name, len(tokens), tokenizer_class, **settings)
        (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
        (folder / "merges.txt").write_text("#version: 0.2\nh e\nl l\nhe ll\n")


def sentences() -> None:
    """tokenizer.model of SentencePiece."""
    import sentencepiece

    for name in "ab":
        lines = ["hello world this is a text", "hold the door", f"{name} letters of {name * 3}", "others"]
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines * 5),
            model_writer=model,
            vocab_size=40,
            model_type="bpe",
            hard_vocab_limit=False,
            minloglevel=2,
        )
        (_model(name, 40, "LlamaTokenizer") / "tokenizer.model").write_bytes(model.getvalue())


def tekken() -> None:
    """tekken.json of Mistral."""
    for name in "ab":
        texts = [*(bytes([i]) for i in range(256)), b"he", b"ll", b"hell", name.encode() * 2]
        special = ["<unk>", "<s>", "</s>"]
        content = {
            "config": {
                "pattern": r"[a-z]+|\s+",
                "num_vocab_tokens": len(texts),
                "default_vocab_size": len(texts) + len(special),
                "default_num_special_tokens": len(special),
                "version": "v3",
            },
            "vocab": [
                {"rank": rank, "token_bytes": b64encode(text).decode(), "token_str": None}
                for rank, text in enumerate(texts)
            ],
            "special_tokens": [
                {"rank": rank, "token_str": text, "is_control": True} for rank, text in enumerate(special)
            ],
        }
        (_model(name, len(texts) + len(special)) / "tekken.json").write_text(json.dumps(content))
