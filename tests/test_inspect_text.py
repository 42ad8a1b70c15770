"""What `meldkit inspect` prints, word by word, and what it gives as JSON."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import command
import gguf_files
import tiny
import word_tokenizers
from hub_models import put, wide
from hub_server import Hub

CARD = """---
license: apache-2.0
base_model:
- org/base
- org/other
tags: [merge]
---
# A merge
"""


def said(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    done = command.run(capsys, "inspect", *args)
    assert (done.status, done.err) == (0, "")
    assert max(map(len, done.out.splitlines())) <= 80
    return done.out


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_model_with_everything(capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny.llama(Path("m"), 0, vocab=16)
    words = {word: number for number, word in enumerate(["<unk>", "a", "b", "c"])}
    (folder / "tokenizer.json").write_text(json.dumps(word_tokenizers.content(words, ["<s>", "</s>"])))
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": "{{ messages }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "README.md").write_text(CARD)
    assert (
        said(capsys, "m")
        == """\
m: LlamaForCausalLM
  38,176 parameters in 39 tensors: F32
  153 kB in 1 safetensors file
  hidden size 32, intermediate 64, heads 4, key/value heads 2, head size 8,
  context 64, rope theta 10,000, vocabulary 16
  head of its own
  license apache-2.0

modules, as a recipe's 'modules:' names them, and their layers for 'slices:'
  text_decoder  4 layers model.layers.*  39 tensors  38,176 parameters

roles
  mlp        24,576 parameters, 64.4%
  attention  12,288 parameters, 32.2%
  lm_head    512 parameters, 1.3%
  embedding  512 parameters, 1.3%
  norm       288 parameters, 0.8%

tokenizer
  WordLevel: 6 tokens (2 added, 2 special)
  16 rows in the embedding: 10 without a token
  bos <s> (4), eos </s> (5)
  chat template: default

relatives
  merged from  org/base   (README.md)
  merged from  org/other  (README.md)
"""
    )


def test_an_adapter_alone(capsys: pytest.CaptureFixture[str]) -> None:
    modules = [f"model.layers.{n}.{leaf}" for n in range(2) for leaf in ("self_attn.q_proj", "mlp.up_proj")]
    folder = tiny.adapter(Path("lora"), dict.fromkeys(modules, (8, 4)))
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings |= {"base_model_name_or_path": "org/base", "target_modules": ["up_proj", "q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    assert (
        said(capsys, "lora")
        == """\
lora: LORA adapter, rank 2, alpha 4
  96 parameters in 8 tensors: F32
  384 B in 1 safetensors file
  changes q_proj, up_proj

modules, as a recipe's 'modules:' names them, and their layers for 'slices:'
  text_decoder  2 layers model.layers.*  8 tensors  96 parameters

roles
  mlp        48 parameters, 50.0%
  attention  48 parameters, 50.0%

relatives
  adapter for  org/base  (adapter_config.json)
"""
    )


def test_a_gguf_file(capsys: pytest.CaptureFixture[str]) -> None:
    import gguf
    import numpy as np

    tensors: dict[str, np.ndarray] = dict(gguf_files.llama_tensors(hidden=256))  # type: ignore[type-arg]
    kind = gguf.GGMLQuantizationType.Q4_0
    quantised = [name for name in tensors if "ffn_" in name and "norm" not in name]
    for name in quantised:
        tensors[name] = gguf.quants.quantize(tensors[name], kind)
    keys = gguf_files.LLAMA_KEYS | {"embedding_length": 256, "feed_forward_length": 512}
    gguf_files.write_gguf(Path("m.gguf"), "llama", keys, tensors, dict.fromkeys(quantised, kind))
    assert (
        said(capsys, "m.gguf")
        == """\
m.gguf: LlamaForCausalLM
  598,784 parameters in 11 tensors: BF16
  1 MB in 1 gguf file
  quantised (GGUF): 3 tensors as Q4_0
  hidden size 256, intermediate 512, heads 4, key/value heads 2, head size 64,
  context 64, rope theta 500,000, vocabulary 32
  head tied to the embedding, not stored

modules, as a recipe's 'modules:' names them, and their layers for 'slices:'
  text_decoder  1 layer model.layers.*  11 tensors  598,784 parameters

roles
  mlp        393,216 parameters, 65.7%
  attention  196,608 parameters, 32.8%
  embedding  8,192 parameters, 1.4%
  norm       768 parameters, 0.1%
"""
    )


def test_a_quantised_model(capsys: pytest.CaptureFixture[str]) -> None:
    tiny.decoder(Path("m"), hidden=8, dtype=torch.bfloat16)
    weights = tiny.tensors(Path("m"))
    for name in [name for name in weights if "_proj" in name]:
        weights[name] = weights[name].to(torch.float8_e4m3fn)
        weights[f"{name}_scale"] = torch.tensor(1.0)
    config = json.loads(Path("m/config.json").read_text())
    config |= {"quantization_config": {"quant_method": "fp8"}, "tie_word_embeddings": True}
    tiny.stored(Path("q"), weights, config)
    assert (
        said(capsys, "q")
        == """\
q: LlamaForCausalLM
  504 parameters in 9 tensors: BF16
  640 B in 1 safetensors file
  quantised (fp8): 4 tensors as F8_E4M3
  head tied to the embedding, and stored all the same

modules, as a recipe's 'modules:' names them, and their layers for 'slices:'
  text_decoder  2 layers model.layers.*  9 tensors  504 parameters

roles
  mlp        256 parameters, 50.8%
  attention  128 parameters, 25.4%
  lm_head    48 parameters, 9.5%
  embedding  48 parameters, 9.5%
  norm       24 parameters, 4.8%
"""
    )


def test_a_file_of_torch(capsys: pytest.CaptureFixture[str]) -> None:
    tiny.decoder(Path("m"))
    torch.save(tiny.tensors(Path("m")), "w.pth")
    assert (
        said(capsys, "w.pth")
        == """\
w.pth: no config.json
  156 parameters in 9 tensors: F32
  624 B in 1 pth file
  head of its own

modules, as a recipe's 'modules:' names them, and their layers for 'slices:'
  text_decoder  2 layers model.layers.*  9 tensors  156 parameters

roles
  mlp        64 parameters, 41.0%
  attention  32 parameters, 20.5%
  lm_head    24 parameters, 15.4%
  embedding  24 parameters, 15.4%
  norm       12 parameters, 7.7%
"""
    )


def test_a_model_on_the_hub(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    files = wide()
    put(hub, files | {"README.md": CARD.encode()})
    out = said(capsys, "org/name", "--transformers-cache", "hub")
    assert out.splitlines()[:3] == [
        "org/name: LlamaForCausalLM",
        "  4,000,260 parameters in 19 tensors: F32",
        "  16 MB in 4 safetensors files; to download: 16 MB in 4 files",
    ]
    assert "  merged from  org/base   (README.md)" in out
    assert hub.sent < 1e6


def test_json(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    put(hub, wide())
    data = json.loads(command.run(capsys, "inspect", "--json", "org/name", "--transformers-cache", "hub").out)
    assert list(data) == [
        "model",
        "kind",
        "folder",
        "architectures",
        "model_type",
        "num_parameters",
        "num_tensors",
        "bytes",
        "files",
        "bytes_to_download",
        "dtypes",
        "stored",
        "quantisation",
        "settings",
        "head",
        "embedding_rows",
        "modules",
        "stacks",
        "roles",
        "tokenizer",
        "adapter",
        "relatives",
        "license",
        "notes",
    ]
    assert not any(file["here"] for file in data["files"])
    assert sum(file["bytes"] for file in data["files"]) == data["bytes_to_download"]
    verbose = json.loads(
        command.run(capsys, "inspect", "-v", "--json", "org/name", "--transformers-cache", "hub").out
    )
    assert len(verbose.pop("tensors")) == data["num_tensors"]
    assert verbose == data


@pytest.mark.parametrize(
    ("card", "relation"),
    [
        ("base_model: org/base", "base model"),
        ("base_model: org/base\nbase_model_relation: finetune", "fine-tune of"),
        ("base_model: org/base\nbase_model_relation: quantized", "quantised from"),
        ("base_model: [org/base]\nbase_model_relation: merge", "merged from"),
    ],
)
def test_relations_of_cards(card: str, relation: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tiny.decoder(Path("m")) / "README.md").write_text(f"---\n{card}\n---\n")
    assert f"relatives\n  {relation}  org/base  (README.md)\n" in said(capsys, "m")


@pytest.mark.parametrize(
    "card", ["", "---\n", "---\n: [\n---\n", "# base_model: org/base", "---\n- a\n---\n"]
)
def test_cards_without_front_matter(card: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tiny.decoder(Path("m")) / "README.md").write_text(card)
    assert "relatives" not in said(capsys, "m")


def test_what_was_merged_is_a_relative(capsys: pytest.CaptureFixture[str]) -> None:
    tiny.decoder(Path("a"))
    shutil.copytree("a", "b")
    Path("recipe.yml").write_text(
        "merge_method: linear\nmodels: [{model: ./a}, {model: ./b}]\nparameters: {weight: 1}"
    )
    assert command.run(capsys, "merge", "recipe.yml", "out", "--quiet").status == 0
    Path("out/README.md").unlink()
    assert "relatives\n  merged from  ./a  (meldkit.yml)\n  merged from  ./b  (meldkit.yml)\n" in said(
        capsys, "out"
    )


def test_a_tokenizer_that_is_not_tokenizer_json(capsys: pytest.CaptureFixture[str]) -> None:
    (tiny.decoder(Path("m")) / "tokenizer.model").write_bytes(b"pieces")
    Path("m/tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    assert (
        "tokenizer\n  tokenizer.model, which is not looked into; 6 rows in the embedding\n  bos <s>\n"
        "  chat template: none\n"
    ) in said(capsys, "m")


def test_a_damaged_tokenizer_is_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    (tiny.decoder(Path("m")) / "tokenizer.json").write_text("{")
    out = said(capsys, "m")
    assert "notes\n  m/tokenizer.json is not valid JSON (line 1, column 2)\n" in out
