"""Models of many kinds with other vocabularies: the tensors with an entry per token follow, and no others."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
import word_tokenizers as words
import zoo
from meldkit import merge
from meldkit.merge import MergeOptions

#: Ways in which models hold their vocabulary: tied or not, with biases, per layer, shared, in towers.
KINDS = [
    zoo.Kind(mapping, model_type)
    for mapping, types in {
        "causal": (
            "ctrl llama gpt2 opt bloom phi gptj codegen gemma3n_text gemma4_text deepseek_v3 mamba xlnet"
        ),
        "seq2seq": "t5 mt5 bart pegasus marian",
        "masked": ("bert modernbert albert fnet rembert distilbert xlm electra mpnet roberta deberta-v2"),
        "image": "llava gemma3 qwen2_5_vl mllama paligemma florence2",
    }.items()
    for model_type in types.split()
]
MORE = 7


def with_vocabulary(config: Any, size: int) -> Any:
    """The configuration with another number of tokens, wherever it speaks of it."""
    config = copy.deepcopy(config)
    old = config.get_text_config().vocab_size
    sections = [config]
    while sections:
        section = sections.pop()
        for key, value in list(vars(section).items()):
            if key.startswith("vocab_size") and value == old:
                setattr(section, key, size)
            elif hasattr(value, "to_dict"):
                sections.append(value)
    return config


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_tables_follow_the_vocabulary(kind: zoo.Kind, tmp_path: Path) -> None:
    import transformers

    config = zoo.config_of(kind)
    model_class = getattr(transformers, kind.class_name)
    size = config.get_text_config().vocab_size
    numbers = {f"w{i}": i for i in range(size)}
    turned = {f"w{size - 1 - i}": i for i in range(size)} | {f"new{i}": size + i for i in range(MORE)}
    paths = [tmp_path / "one", tmp_path / "other"]
    for seed, (path, vocabulary) in enumerate(zip(paths, (numbers, turned), strict=True)):
        torch.manual_seed(seed)
        model_class(with_vocabulary(config, len(vocabulary))).save_pretrained(path)
        (path / "tokenizer.json").write_text(json.dumps(words.content(vocabulary)))
    one, other = map(tiny.tensors, paths)
    recipe = {
        "merge_method": "linear",
        "models": [{"model": str(path), "parameters": {"weight": 0.5}} for path in paths],
        "tokenizer": {"source": "union"},
    }
    out = merge(recipe, tmp_path / "out", MergeOptions(write_model_card=False)).path
    merged = tiny.tensors(out)
    assert merged.keys() == one.keys()
    tables = {name for name in one if one[name].shape != other[name].shape}
    assert tables
    for name, tensor in merged.items():
        x, y = one[name], other[name]
        if not x.is_floating_point():
            continue
        if name in tables:
            # Rows behind the last token, as Mllama has them, are no token's.
            axis = next(i for i in range(x.dim()) if x.shape[i] != y.shape[i])
            x, y, tensor = (values.transpose(0, axis) for values in (x, y, tensor))
            x, y = torch.cat([x[:size], y[size : size + MORE]]), y[: size + MORE].clone()
            y[:size] = y[:size].flip(0)
            tensor = tensor[: size + MORE]
        assert torch.allclose(tensor.float(), (x.float() + y.float()) / 2, atol=1e-6), name
    model, problems = zoo.reload(model_class, out)
    assert not problems
    assert model.config.get_text_config().vocab_size == size + MORE
    assert all(torch.isfinite(values).all() for values in zoo.forward(model))
