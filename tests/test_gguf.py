"""GGUF files as models: their numbers against the gguf package, and files that are not what they say."""

from __future__ import annotations

import json
import math
import struct
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tiny
from gguf_files import LLAMA_KEYS, all_values, llama_tensors, refusal, values, write_gguf
from meldkit.api import merge
from meldkit.checkpoint import Scratch, TensorInfo, open_checkpoint, open_files
from meldkit.checkpoint.gguf import read_gguf
from meldkit.checkpoint.gguf.blocks import KINDS
from meldkit.errors import FormatError, MeldError
from meldkit.options import MergeOptions


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "m.gguf", "llama", LLAMA_KEYS, llama_tensors())


# ---- numbers


def raw_blocks(kind: gguf.GGMLQuantizationType, shape: tuple[int, ...], seed: int) -> np.ndarray[Any, Any]:
    """Bytes of a tensor of a kind: quantised numbers, or any bytes with scales that are finite."""
    rng = np.random.default_rng(seed)
    block, nbytes = gguf.GGML_QUANT_SIZES[kind]
    if rng.integers(2):
        try:
            return gguf.quants.quantize(rng.standard_normal(shape, dtype=np.float32), kind).view(np.uint8)
        except NotImplementedError:
            pass
    for _ in range(100):
        raw = rng.integers(0, 256, (*shape[:-1], shape[-1] // block, nbytes), dtype=np.uint8)
        # Any two bytes may be a float16: without the upper exponents none of them is infinite.
        raw &= 0xBF if rng.integers(2) else 0xFF
        raw = raw.reshape(*shape[:-1], -1)
        with np.errstate(all="ignore"):
            if np.isfinite(gguf.quants.dequantize(raw, kind)).all():
                return raw
    return np.zeros_like(raw)


def test_kinds_are_those_of_the_gguf_package() -> None:
    for kind in KINDS.values():
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind.number)] == (kind.block, kind.nbytes)
        assert gguf.GGMLQuantizationType(kind.number).name == kind.name


@pytest.mark.parametrize("name", [kind.name for kind in KINDS.values()])
def test_numbers_are_those_of_the_gguf_package(name: str, tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType[name]
    block = gguf.GGML_QUANT_SIZES[kind][0]
    tensors, kinds = llama_tensors(hidden=256), {}
    for seed, leaf in enumerate(("ffn_gate", "ffn_up", "attn_v")):
        raw = raw_blocks(kind, (24, 2 * max(block, 16)), seed)
        tensors[f"blk.0.{leaf}.weight"], kinds[f"blk.0.{leaf}.weight"] = raw, kind
    path = write_gguf(tmp_path / "m.gguf", "llama", LLAMA_KEYS | {"embedding_length": 256}, tensors, kinds)
    header = read_gguf(path)
    for ours, theirs in (
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("self_attn.v_proj", "attn_v"),
    ):
        info = header.tensors[f"model.layers.0.{ours}.weight"]
        expected = torch.from_numpy(gguf.quants.dequantize(tensors[f"blk.0.{theirs}.weight"], kind))
        assert info.dtype == {"F32": "F32", "F16": "F16"}.get(name, "BF16")
        assert info.shape == (24, 2 * max(block, 16))
        assert torch.equal(values(info), expected.view(info.shape))
        assert (info.encoding is None) == (name in ("F32", "F16", "BF16"))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of many kinds of numbers."""
    rng = np.random.default_rng(1)
    tensors, kinds = llama_tensors(hidden=256), {}
    for i, (name, array) in enumerate(tensors.items()):
        if array.ndim == 2:
            kind = gguf.GGMLQuantizationType[("Q4_K", "Q6_K", "Q8_0", "Q5_1", "IQ3_S")[i % 5]]
            tensors[name], kinds[name] = raw_blocks(kind, array.shape, int(rng.integers(99))), kind
    path = tmp_path_factory.mktemp("mixed") / "m.gguf"
    return write_gguf(path, "llama", LLAMA_KEYS | {"embedding_length": 256}, tensors, kinds)


@pytest.fixture(scope="module")
def whole(mixed: Path) -> dict[str, tuple[TensorInfo, Tensor]]:
    return {name: (info, values(info).flatten()) for name, info in read_gguf(mixed).tensors.items()}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_tiles_do_not_show(whole: dict[str, tuple[TensorInfo, Tensor]], data: st.DataObject) -> None:
    info, expected = whole[data.draw(st.sampled_from(list(whole)))]
    start = data.draw(st.integers(0, info.numel - 1))
    stop = data.draw(st.integers(start + 1, info.numel))
    out = torch.empty(stop - start)
    with open_files() as files:
        info.open(files).read(start, stop, out, Scratch())
    assert torch.equal(out, expected[start:stop])


def test_one_element_type_for_all_tensors(tmp_path: Path) -> None:
    tensors = llama_tensors()
    halves = {name: a.astype(np.float16) if a.ndim == 2 else a for name, a in tensors.items()}
    path = write_gguf(tmp_path / "m.gguf", "llama", LLAMA_KEYS, halves)
    header = read_gguf(path)
    assert {info.dtype for info in header.tensors.values()} == {"F16"}
    assert header.config["torch_dtype"] == "float16"
    norm = values(header.tensors["model.norm.weight"])
    assert torch.equal(norm, torch.from_numpy(tensors["output_norm.weight"]))


def test_mistral_is_told_by_its_name(tmp_path: Path) -> None:
    for title, expected in (("Mistral 7B", "MistralForCausalLM"), ("Zephyr", "LlamaForCausalLM")):
        keys = LLAMA_KEYS | {"general.name": title}
        path = write_gguf(tmp_path / f"{title}.gguf", "llama", keys, llama_tensors())
        assert read_gguf(path).config["architectures"] == [expected]


def test_opening_reads_no_weights(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.preadv", None)
    read_gguf(small)


def test_digest_follows_header_and_size(small: Path) -> None:
    before = read_gguf(small).digest
    assert read_gguf(small).digest == before
    with small.open("ab") as f:
        f.write(bytes(32))
    assert read_gguf(small).digest != before


# ---- merging


def test_merge_with_a_sibling(small: Path, tmp_path: Path) -> None:
    own = all_values(small)
    config = read_gguf(small).config
    rng = torch.Generator().manual_seed(3)
    sibling = {name: torch.randn(t.shape, generator=rng) for name, t in own.items()}
    tiny.stored(tmp_path / "sibling", sibling, dict(config))
    models = [
        {"model": str(small), "parameters": {"weight": 0.25}},
        {"model": str(tmp_path / "sibling"), "parameters": {"weight": 0.75}},
    ]
    merge({"merge_method": "linear", "models": models}, tmp_path / "out")
    merged = tiny.tensors(tmp_path / "out")
    assert merged.keys() == own.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, 0.25 * own[name] + 0.75 * sibling[name], rtol=1e-6, atol=1e-7)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written.pop("torch_dtype") == "float32"
    assert written.items() <= config.items()


def test_output_of_a_file_alone_is_a_model(small: Path, tmp_path: Path) -> None:
    keys = LLAMA_KEYS | {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ["a", "b", "ab", "<end>"],
        "tokenizer.ggml.token_type": [1, 1, 1, 3],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": 3,
    }
    folder = tmp_path / "m"
    folder.mkdir()
    write_gguf(folder / "model.gguf", "llama", keys, llama_tensors())
    # What else lies there says nothing about the file.
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    merge({"merge_method": "passthrough", "models": [{"model": str(folder)}]}, tmp_path / "out")
    written = {path.name: path.read_text() for path in (tmp_path / "out").glob("*.json")}
    assert json.loads(written["config.json"])["num_hidden_layers"] == 1
    assert json.loads(written["tokenizer.json"])["model"]["vocab"] == {"a": 0, "b": 1, "ab": 2, "<end>": 3}
    assert json.loads(written["tokenizer_config.json"])["eos_token"] == "<end>"
    assert json.loads(written["generation_config.json"]) == {"eos_token_id": 3}
    options = MergeOptions(copy_tokenizer=False)
    merge({"merge_method": "passthrough", "models": [{"model": str(small)}]}, tmp_path / "bare", options)
    assert not (tmp_path / "bare" / "tokenizer.json").exists()


def test_adapter_over_a_file(small: Path, tmp_path: Path) -> None:
    tiny.adapter(tmp_path / "lora", {"model.layers.0.self_attn.q_proj": (64, 64)})
    name = "model.layers.0.self_attn.q_proj.weight"
    with open_files() as files:
        plain = open_checkpoint("m", small)
        adapted = open_checkpoint("m", small, (tmp_path / "lora",))
        out = torch.empty(2, 64 * 64)
        for row, checkpoint in zip(out, (plain, adapted), strict=True):
            checkpoint.source(files, name).read(0, 64 * 64, row, Scratch())
    from safetensors.torch import load_file

    factors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    b, a = (factors[f"base_model.model.model.layers.0.self_attn.q_proj.lora_{s}.weight"] for s in "BA")
    torch.testing.assert_close(out[1] - out[0], 2 * (b @ a).flatten(), rtol=1e-4, atol=1e-5)


# ---- bad input


def changed(path: Path, old: bytes, new: bytes) -> None:
    raw = path.read_bytes()
    assert raw.count(old) == 1
    path.write_bytes(raw.replace(old, new))


def table_row(name: str, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    """A row of the tensor table."""
    head = struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", len(dims))
    return head + struct.pack(f"<{len(dims)}Q", *dims) + struct.pack("<IQ", kind, offset)


def test_no_gguf(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    for raw in (b"", b"GG", b"PK\x03\x04 and more"):
        path.write_bytes(raw)
        assert "is not a GGUF file" in refusal(path)
    assert "is not a file" in refusal(tmp_path)
    assert "No such file" in refusal(tmp_path / "missing.gguf")


@pytest.mark.parametrize(
    ("version", "message"), [(1, "has version 1"), (9, "has version 9"), (3 << 24, "is big-endian")]
)
def test_version(small: Path, version: int, message: str) -> None:
    raw = small.read_bytes()
    small.write_bytes(raw[:4] + struct.pack("<I", version) + raw[8:])
    assert message in refusal(small)


@pytest.mark.parametrize(("at", "what"), [(8, "tensors"), (16, "settings")])
def test_lying_counts(small: Path, at: int, what: str) -> None:
    raw = small.read_bytes()
    small.write_bytes(raw[:at] + struct.pack("<Q", 2**62) + raw[at + 8 :])
    assert f"says that it has 4,611,686,018,427,387,904 {what}" in refusal(small)


def test_lying_length_of_a_key(small: Path) -> None:
    raw = small.read_bytes()
    small.write_bytes(raw[:24] + struct.pack("<Q", 2**40) + raw[32:])
    assert "says that the key of a setting has 1,099,511,627,776 bytes" in refusal(small)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (table_row("token_embd.weight", (64, 32), 99, 0), "unknown type 99"),
        (table_row("token_embd.weight", (64, 32), 0, 8), "no multiple of 32"),
        (table_row("token_embd.weight", (64, 32), 0, 2**60), "unnamed bytes before"),
        (table_row("token_embd.weight", (64, 1 << 40), 0, 0), "is truncated: tensor 'token_embd.weight'"),
        (table_row("token_embd.weight", (64, 64), 0, 0), "has overlapping tensors"),
        (table_row("token_embd.weight", (1 << 40, 1 << 40), 0, 0), "the shape"),
        (table_row("token_embd.weight", (0, 32), 0, 0), "the shape"),
        (table_row("token_embd.weight", (1 << 7, 1 << 4), 12, 0), "no whole blocks of Q4_K"),
        (table_row("token_embd.weighs", (64, 32), 0, 0), "token_embd.weighs"),
    ],
)
def test_lying_table(small: Path, row: bytes, message: str) -> None:
    changed(small, table_row("token_embd.weight", (64, 32), 0, 0), row)
    assert message in refusal(small)


def test_a_tensor_twice(small: Path) -> None:
    old = table_row("blk.0.ffn_gate.weight", (64, 128), 0, 0)[:-12]
    raw = small.read_bytes()
    assert raw.count(old) == 1
    small.write_bytes(raw.replace(b"blk.0.ffn_gate.weight", b"blk.0.attn_q.weight__"))
    assert "attn_q.weight__" in refusal(small)


def test_truncated(small: Path) -> None:
    raw = small.read_bytes()
    small.write_bytes(raw[:-4])
    assert "is truncated: tensor 'output_norm.weight' ends at byte" in refusal(small)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_beginning_is_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("cut")
    raw = write_gguf(folder / "m.gguf", "llama", LLAMA_KEYS, llama_tensors()).read_bytes()
    (folder / "m.gguf").write_bytes(raw[: data.draw(st.integers(0, len(raw) - 4))])
    refusal(folder / "m.gguf")


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_no_damage_goes_unreported(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A damaged header is refused in words, or is still that of a model."""
    folder = tmp_path_factory.mktemp("damaged")
    path = write_gguf(folder / "m.gguf", "llama", LLAMA_KEYS, llama_tensors())
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, 1500))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        header = read_gguf(path)
    except MeldError:
        return
    for info in header.tensors.values():
        values(info)


def test_unknown_architecture(small: Path) -> None:
    changed(small, b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0lambd")
    message = refusal(small)
    assert "is of the architecture 'lambd'" in message


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"attention.head_count": 5}, "does not fit 5 heads"),
        ({"attention.head_count": 0}, "has the setting llama.attention.head_count: 0"),
        ({"block_count": "two"}, "has the setting llama.block_count: 'two'"),
        ({"attention.layer_norm_rms_epsilon": math.nan}, "layer_norm_rms_epsilon: nan"),
        ({"attention.head_count_kv": [2, 0]}, "has a llama.attention.head_count_kv for each layer"),
        ({"general.alignment": 24}, "has a general.alignment of 24"),
    ],
)
def test_settings_that_make_no_sense(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", "llama", LLAMA_KEYS | keys, llama_tensors())
    assert message in refusal(path)


def test_other_scaling_of_positions_than_llamas(tmp_path: Path) -> None:
    tensors = llama_tensors() | {"rope_freqs.weight": np.linspace(1, 3, 8, dtype=np.float32)}
    path = write_gguf(tmp_path / "m.gguf", "llama", LLAMA_KEYS, tensors)
    assert "in a way that config.json has no words for" in refusal(path)


def test_rare_numbers_without_the_gguf_package(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(FormatError, match="IQ3_S are decoded by the gguf package") as caught:
        read_gguf(mixed)
    assert caught.value.hint == "pip install 'meldkit[gguf]'"
