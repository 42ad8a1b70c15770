"""Siblings that are stored differently and fit all the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from meldkit import merge
from meldkit.errors import MismatchError
from meldkit.options import MergeOptions


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def mean(*models: str, **more: Any) -> dict[str, torch.Tensor]:
    """The stored tensors of the models' mean."""
    recipe = {"merge_method": "linear", "parameters": {"weight": 1}, "models": [{"model": m} for m in models]}
    merge(recipe | more, "out", MergeOptions(overwrite=True, quiet=True))
    return tiny.tensors(Path("out"))


@pytest.mark.parametrize("donor", ["tied", "untied"])
def test_tied_with_untied(donor: str) -> None:
    """The output is tied as its donor is; a model without lm_head has its embedding in that place."""
    tiny.decoder(Path("untied"), 1)
    tiny.decoder(Path("tied"), 2, without=("lm_head.weight",), tie_word_embeddings=True)
    a, b = tiny.tensors(Path("tied")), tiny.tensors(Path("untied"))
    other = "untied" if donor == "tied" else "tied"
    merged = mean(donor, other, base_model=donor)
    embedding = "model.embed_tokens.weight"
    assert torch.allclose(merged[embedding], (a[embedding] + b[embedding]) / 2)
    assert ("lm_head.weight" in merged) == (donor == "untied")
    if donor == "untied":
        assert torch.allclose(merged["lm_head.weight"], (a[embedding] + b["lm_head.weight"]) / 2)


def test_three_precisions() -> None:
    """Each is widened exactly; the output has the first one's."""
    for seed, dtype in enumerate((torch.float16, torch.bfloat16, torch.float32)):
        tiny.decoder(Path(str(dtype).removeprefix("torch.")), seed, dtype=dtype)
    names = ("float16", "bfloat16", "float32")
    stored = [tiny.tensors(Path(name)) for name in names]
    for name, tensor in mean(*names).items():
        assert tensor.dtype is torch.float16
        assert torch.equal(tensor, (sum(s[name].float() for s in stored) * torch.tensor(1 / 3)).half()) or (
            torch.allclose(tensor.float(), sum(s[name].double() for s in stored).float() / 3, rtol=1e-3)
        )


@pytest.mark.parametrize("donor", ["a", "b"])
def test_a_buffer_that_only_one_has(donor: str) -> None:
    """Position ids, which newer versions of transformers do not store any more."""
    ids = {"embeddings.position_ids": torch.arange(6)}
    tiny.decoder(Path("a"), 1, extra=ids)
    tiny.decoder(Path("b"), 2)
    merged = mean(donor, "b" if donor == "a" else "a", base_model=donor)
    assert ("embeddings.position_ids" in merged) == (donor == "a")
    assert len(merged) == 9 + (donor == "a")


@pytest.mark.parametrize("donor", ["long", "short"])
def test_names_with_and_without_a_prefix(donor: str) -> None:
    """GPT-2 lies on the Hub without the prefix that its fine-tunes have."""
    tiny.gpt2(Path("long"), 0)
    tiny.gpt2(Path("other"), 1)
    other = tiny.tensors(Path("other"))
    config = json.loads(Path("other/config.json").read_text())
    tiny.stored(Path("short"), {n.removeprefix("transformer."): t for n, t in other.items()}, config)
    long, short = tiny.tensors(Path("long")), tiny.tensors(Path("short"))
    merged = mean(donor, "short" if donor == "long" else "long")
    assert merged.keys() == {"long": long, "short": short}[donor].keys()
    for name, tensor in merged.items():
        bare = name.removeprefix("transformer.")
        torch.testing.assert_close(tensor, (long[f"transformer.{bare}"] + short[bare]) / 2)


def test_names_of_two_generations() -> None:
    """Vision-language models changed the order of their prefixes."""

    def older(name: str) -> str:
        if name.startswith("lm_head."):
            return f"language_model.{name}"
        name = name.removeprefix("model.")
        return name.replace("language_model.", "language_model.model.", 1)

    names = [f"model.language_model.layers.{i}.self_attn.q_proj.weight" for i in range(3)]
    names += [f"model.vision_tower.vision_model.encoder.layers.{i}.self_attn.q_proj.weight" for i in range(3)]
    names += [
        "model.language_model.norm.weight",
        "model.multi_modal_projector.linear_1.weight",
        "lm_head.weight",
    ]
    new = {n: torch.randn(4, 4) for n in names}
    old = {older(n): torch.randn(4, 4) for n in names}
    tiny.stored(Path("new"), new, {"num_hidden_layers": 3})
    tiny.stored(Path("old"), old, {"num_hidden_layers": 3})
    for name, tensor in mean("new", "old").items():
        torch.testing.assert_close(tensor, (new[name] + old[older(name)]) / 2)


def test_models_of_other_kinds_are_refused() -> None:
    tiny.stored(Path("a"), {f"a.{i}.x": torch.ones(2) for i in range(4)}, {})
    tiny.stored(Path("b"), {f"b.{i}.y": torch.ones(2) for i in range(4)}, {})
    with pytest.raises(MismatchError, match="lacks 4 of 8 tensors"):
        mean("a", "b")
