"""Every ordered pair of real tokenizers, merged: rows by the rule, texts there and back, models that load."""

from __future__ import annotations

import json
import re
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch

import real_tokenizers as real
import tiny
from meldkit import merge
from meldkit.merge import MergeOptions
from test_vocabulary import EMBEDDING, HEAD

SOURCES = ("union", "base", "model")
#: Of the tokenizers of one kind, the most widely used.
NAMES = tuple(
    n for n in real.NAMES if n not in ("gpt2_files", "qwen3", "mistral_v1", "minilm_vocab", "xlm_roberta")
)
#: Some of each kind with each other, small ones first.
FAST = (
    ("gpt2", "smollm2", "union"),
    ("smollm2", "gpt2", "model"),
    ("minilm", "gpt2", "union"),
    ("llama2", "minilm", "union"),
    ("mon", "llama2", "union"),
    ("llama2", "gpt2", "base"),
)


def cases() -> list[Any]:
    """The fast ones as they are, all others marked slow."""
    every = [(one, other, source) for one, other in permutations(NAMES, 2) for source in SOURCES]
    rest = [pytest.param(*case, marks=pytest.mark.slow) for case in every if case not in FAST]
    return [*FAST, *rest]


@cache
def loaded(name: str) -> Any:
    """A tokenizer as transformers has it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(real.folder(name)))


def as_before(found: str, before: str, unknown: str | None) -> bool:
    """Whether a text came back as it did from the base alone; what the base did not know, anything may be."""
    parts = [before] if unknown is None else before.split(unknown)
    return re.fullmatch(".+?".join(map(re.escape, parts)), found, re.DOTALL) is not None


@cache
def back(name: str, text: str) -> str:
    """What a tokenizer keeps of a text."""
    return loaded(name).decode(loaded(name).encode(text, add_special_tokens=False))


@pytest.mark.parametrize(("one", "other", "source"), cases())
def test_pair(one: str, other: str, source: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    paths = [real.tiny_model(name, tmp_path / name, seed=seed) for seed, name in enumerate((one, other))]
    recipe = {
        "merge_method": "linear",
        "base_model": str(paths[0]),
        "models": [
            {"model": str(path), "parameters": {"weight": weight}}
            for path, weight in zip(paths, (0.75, 0.25), strict=True)
        ],
        "tokenizer": {"source": str(paths[1]) if source == "model" else source, "pad_to_multiple_of": 16},
    }
    result = merge(recipe, tmp_path / "out", MergeOptions(write_model_card=False))
    out = result.path
    tokenizer = AutoTokenizer.from_pretrained(str(out))
    known, new = [loaded(name).get_vocab() for name in (one, other)], tokenizer.get_vocab()
    kept = known[1] if source == "model" else known[0]
    assert {token: new[token] for token in kept} == kept
    assert new.keys() == (known[0].keys() | known[1].keys() if source == "union" else kept.keys())
    assert len(set(new.values())) == len(new)

    tables = [tiny.tensors(path) for path in paths]
    merged = tiny.tensors(out)
    config = json.loads((out / "config.json").read_text())
    size = -(-(max(new.values()) + 1) // 16) * 16
    for name in (EMBEDDING, HEAD):
        assert merged[name].shape[0] == config["vocab_size"] == size
        # Of two models, one that lacks a token takes the row of the other, which is the only one or the base.
        own = [table[name] for table in tables]
        rows = [
            torch.stack([own[m][known[m][t]] if t in known[m] else own[1 - m][known[1 - m][t]] for t in new])
            for m in range(2)
        ]
        wanted = 0.75 * rows[0] + 0.25 * rows[1]
        assert torch.allclose(merged[name][list(new.values())], wanted, atol=1e-6)

    model = AutoModelForCausalLM.from_pretrained(str(out))
    assert model.get_input_embeddings().weight.shape[0] == size
    reader = other if source == "model" else one
    for text in real.SAMPLES.values():
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert max(ids, default=0) < size
        assert as_before(tokenizer.decode(ids), back(reader, text), loaded(reader).unk_token)
    ids = torch.tensor([tokenizer.encode(real.SAMPLES["latin"])])
    assert torch.isfinite(model(ids).logits).all()
