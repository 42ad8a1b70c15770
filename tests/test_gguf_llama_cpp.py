"""GGUF files that llama.cpp's own program wrote, and its real vocabularies with what it makes of texts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import llama_cpp
import real_tokenizers
from gguf_files import TEXTS, all_values
from gguf_made import Made
from gguf_samples import SAMPLES
from meldkit.api import merge
from meldkit.checkpoint.gguf import write_tokenizer

pytestmark = pytest.mark.slow

#: The program forgets the norms of queries and keys that it has stacked.
UNCONVERTED = {"stablelm-norms"}

VOCABULARIES = (
    "bert-bge",
    "command-r",
    "deepseek-coder",
    "deepseek-llm",
    "falcon",
    "gemma-4",
    "gpt-2",
    "llama-bpe",
    "llama-spm",
    "mpt",
    "phi-3",
    "qwen2",
    "qwen35",
    "refact",
    "starcoder",
)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    root = tmp_path_factory.mktemp("models")
    made: dict[str, Made] = {}
    for key in (key for key in SAMPLES if key not in UNCONVERTED):
        (root / key).mkdir()
        made[key] = Made(key, root / key)
        for path in (root / key / "hf").iterdir():
            shutil.move(path, root / key)
    llama_cpp.convert(root / key for key in made)
    return made


@pytest.mark.parametrize("key", [key for key in SAMPLES if key not in UNCONVERTED])
def test_converted_model(key: str, converted: dict[str, Made], tmp_path: Path) -> None:
    """Its tensors are those of the model, and so is what it computes after a merge."""
    import transformers
    from safetensors.torch import load_file

    made = converted[key]
    file = made.folder / "llama_cpp.gguf"

    expected = load_file(made.folder / "model.safetensors")
    found = all_values(file)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape, name
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=2e-7, msg=name)
    merge({"merge_method": "passthrough", "models": [{"model": str(file)}]}, tmp_path / "out")
    model, loading = getattr(transformers, made.sample.auto).from_pretrained(
        tmp_path / "out", output_loading_info=True, dtype=torch.float32, **made.sample.options
    )
    assert not any(loading.values()), loading
    torch.testing.assert_close(made.sample.outputs(model), made.outputs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", VOCABULARIES)
def test_real_vocabulary(name: str, tmp_path: Path) -> None:
    """Texts become the tokens that llama.cpp says the original tokenizer makes of them."""
    from tokenizers import Tokenizer

    file = llama_cpp.source() / "models" / f"ggml-vocab-{name}.gguf"
    write_tokenizer(file, tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    texts = Path(f"{file}.inp").read_text("utf-8").split("\n__ggml_vocab_test__\n")
    lines = Path(f"{file}.out").read_text("utf-8").split("\n")
    assert len(texts) > 40
    for text, line in zip(texts, lines, strict=False):
        assert tokenizer.encode(text, add_special_tokens=False).ids == [int(n) for n in line.split()], text


def test_real_unigrams(tmp_path: Path) -> None:
    """The vocabulary of XLM-RoBERTa, for which llama.cpp has no texts."""
    from transformers import AutoTokenizer

    write_tokenizer(llama_cpp.source() / "models" / "ggml-vocab-nomic-bert-moe.gguf", tmp_path)
    ours = AutoTokenizer.from_pretrained(tmp_path)
    theirs = AutoTokenizer.from_pretrained(real_tokenizers.folder("xlm_roberta"))
    assert (ours.bos_token, ours.eos_token, ours.mask_token) == ("<s>", "</s>", "<mask>")
    for text in [*TEXTS, *real_tokenizers.SAMPLES.values()]:
        assert ours(text)["input_ids"] == theirs(text)["input_ids"], text
