"""`meldkit inspect`: what it says is what recipes can address."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import command
import tiny
from meldkit.layout import find_part
from meldkit.report import inspect


def llava(folder: Path) -> Path:
    """A vision-language model of random weights."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4
    )
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text)).save_pretrained(folder)
    return folder


def test_parts_of_a_vision_language_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspect(llava(tmp_path / "m"))
    layers = {p.name: p.part.stack.num_blocks if p.part.stack else None for p in found.parts}
    assert layers == {"text_decoder": 3, "vision_tower": 2, "multi_modal_projector": None}
    assert sum(p.num_tensors for p in found.parts) == len(found.tensors) == len(tiny.tensors(tmp_path / "m"))
    assert sum(p.num_parameters for p in found.parts) == sum(
        t.numel() for t in tiny.tensors(tmp_path / "m").values()
    )
    for summary in found.parts:
        assert find_part(found.layout, summary.name, "m") == summary.part
    run = command.run(capsys, "inspect", str(tmp_path / "m"))
    assert (run.status, run.err) == (0, "")
    assert "LlavaForConditionalGeneration" in run.out
    for summary in found.parts:
        assert f"  {summary.name} " in run.out
    verbose = command.run(capsys, "inspect", "-v", str(tmp_path / "m")).out
    assert all(name in verbose for name in found.tensors)


def test_adapters_and_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.decoder(Path("m"), hidden=8)
    tiny.adapter(Path("a"), {"model.layers.0.self_attn.q_proj": (8, 8)})
    found = inspect("m+a")
    assert found.num_encoded == 1
    assert found.roles["attention"] == 2 * 64
    assert "1 tensor changed by 1 adapter" in command.run(capsys, "inspect", "m+a").out
    run = command.run(capsys, "inspect", "nowhere")
    assert run.status == 3
    assert "does not exist" in run.err


def test_no_weight_is_read(tmp_path: Path) -> None:
    folder = tiny.decoder(tmp_path / "m")
    path = folder / "model.safetensors"
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    path.write_bytes(data[:header])
    with path.open("r+b") as f:  # the same length, nothing but a hole in place of the weights
        f.truncate(len(data))
    assert len(inspect(folder).tensors) == 9
