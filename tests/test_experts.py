"""Mixtures of experts that two programs stored differently: the same values, under each other's names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

import tiny
from meldkit.api import merge
from meldkit.checkpoint import Scratch, TensorInfo, open_checkpoint, open_files, read_all
from meldkit.checkpoint.experts import as_stored_by
from meldkit.checkpoint.rearranged import transposed
from meldkit.errors import CheckpointError

E, I, H = 3, 4, 6  # noqa: E741 - experts, sizes between their layers, size of the model
BLOCK = "model.layers.{}."

#: Every form: a function from the experts' matrices (gate, up, down of each) to the tensors of a layer.
Matrices = list[tuple[Tensor, Tensor, Tensor]]


def one_by_one(m: Matrices, names: tuple[str, str, str], module: str = "mlp.") -> dict[str, Tensor]:
    return {
        f"{module}experts.{e}.{name}.weight": matrix
        for e, matrices in enumerate(m)
        for name, matrix in zip(names, matrices, strict=True)
    }


def gate_up(m: Matrices) -> Tensor:
    return torch.stack([torch.cat([gate, up]) for gate, up, _ in m])


def stack(m: Matrices, which: int) -> Tensor:
    return torch.stack([matrices[which] for matrices in m])


def turned(tensor: Tensor) -> Tensor:
    return tensor.transpose(1, 2).contiguous()


FORMS: dict[str, Any] = {
    "qwen": lambda m: one_by_one(m, ("gate_proj", "up_proj", "down_proj")),
    "mixtral": lambda m: one_by_one(m, ("w1", "w3", "w2"), "block_sparse_moe."),
    "fc": lambda m: one_by_one(m, ("fc1", "fc3", "fc2")),
    "half fused": lambda m: {
        f"mlp.experts.{e}.{name}.weight": matrix
        for e, (gate, up, down) in enumerate(m)
        for name, matrix in (("gate_up_proj", torch.cat([gate, up])), ("down_proj", down))
    },
    "fused": lambda m: {"mlp.experts.gate_up_proj": gate_up(m), "mlp.experts.down_proj": stack(m, 2)},
    "transposed": lambda m: {
        "mlp.experts.gate_up_proj": turned(gate_up(m)),
        "mlp.experts.down_proj": turned(stack(m, 2)),
    },
    "granite": lambda m: {
        "block_sparse_moe.input_linear.weight": gate_up(m),
        "block_sparse_moe.output_linear.weight": stack(m, 2),
    },
    "stacked": lambda m: {
        f"moe.{name}_proj.weight": stack(m, i) for i, name in enumerate(("gate", "up", "down"))
    },
    "stacked, transposed": lambda m: {
        f"mlp.experts.{name}_proj": turned(stack(m, i)) for i, name in enumerate(("gate", "up", "down"))
    },
}
ROUTERS = {
    "mixtral": "block_sparse_moe.gate.weight",
    "granite": "block_sparse_moe.router.layer.weight",
    "stacked": "moe.gate.weight",
}


def matrices(seed: int, dtype: torch.dtype = torch.float32) -> Matrices:
    torch.manual_seed(seed)
    shapes = ((I, H), (I, H), (H, I))
    return [tuple(torch.randn(s).to(dtype) for s in shapes) for _ in range(E)]  # type: ignore[misc]


def layer(form: str, block: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The tensors of a layer; the same values in every form."""
    tensors = FORMS[form](matrices(block, dtype))
    tensors[ROUTERS.get(form, "mlp.gate.weight")] = torch.arange(E * H).view(E, H).to(dtype)
    tensors["input_layernorm.weight"] = torch.full((H,), float(block)).to(dtype)
    return {BLOCK.format(block) + name: tensor for name, tensor in tensors.items()}


def written(
    folder: Path, form: str, *, layers: int = 2, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """A model of that form, in a folder; returns its tensors."""
    tensors = {"model.embed_tokens.weight": torch.ones(5, H).to(dtype)}
    for block in range(layers):
        tensors |= layer(form, block, dtype)
    tiny.stored(folder, tensors, {})
    return tensors


def values(tensors: Mapping[str, TensorInfo]) -> dict[str, Tensor]:
    with open_files() as files:
        return {name: read_all(files, info) for name, info in tensors.items()}


def equal(found: Mapping[str, TensorInfo], expected: Mapping[str, Tensor]) -> None:
    read = values(found)
    assert read.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].name == name
        assert found[name].shape == tuple(tensor.shape), name
        assert torch.equal(read[name], tensor.float()), name


@pytest.mark.parametrize("ours", FORMS)
@pytest.mark.parametrize("theirs", FORMS)
def test_every_form_from_every_other(ours: str, theirs: str, tmp_path: Path) -> None:
    written(tmp_path / "a", ours)
    expected = written(tmp_path / "b", theirs)
    a, b = (open_checkpoint(name, tmp_path / name).tensors for name in ("a", "b"))
    found = as_stored_by(a, b)
    equal(found, expected)
    if ours == theirs:
        assert found is a
    assert all(set(info.files) == {tmp_path / "a" / "model.safetensors"} for info in found.values())


def test_what_can_be_read_as_it_lies_is(tmp_path: Path) -> None:
    written(tmp_path / "a", "fused", dtype=torch.bfloat16)
    for theirs in ("qwen", "mixtral", "half fused", "granite"):
        written(tmp_path / theirs, theirs, dtype=torch.bfloat16)
        a, b = (open_checkpoint(name, tmp_path / name).tensors for name in ("a", theirs))
        found = as_stored_by(a, b)
        assert all(info.encoding is None for info in found.values())
        assert sum(info.nbytes for info in found.values()) == sum(info.nbytes for info in a.values())


def test_bytes_are_counted_whatever_the_form(tmp_path: Path) -> None:
    written(tmp_path / "a", "qwen", dtype=torch.bfloat16)
    for theirs in ("fused", "transposed", "stacked"):
        written(tmp_path / theirs, theirs)
        a, b = (open_checkpoint(name, tmp_path / name).tensors for name in ("a", theirs))
        found = as_stored_by(a, b)
        assert sum(info.nbytes for info in found.values()) == sum(info.nbytes for info in a.values())
        assert {info.dtype for info in found.values()} == {"BF16"}


@pytest.mark.parametrize(("ours", "theirs"), [("qwen", "transposed"), ("transposed", "qwen")])
def test_every_byte_is_read_once(ours: str, theirs: str, tmp_path: Path) -> None:
    written(tmp_path / "a", ours, dtype=torch.bfloat16)
    written(tmp_path / "b", theirs)
    a, b = (open_checkpoint(name, tmp_path / name).tensors for name in ("a", "b"))
    found = as_stored_by(a, b)
    with open_files() as files:
        for name in b:  # as a merge goes through them
            read_all(files, found[name])
        assert files.bytes_read == sum(info.nbytes for info in a.values())


@settings(max_examples=30, deadline=None)
@given(ours=st.sampled_from(list(FORMS)), theirs=st.sampled_from(list(FORMS)), data=st.data())
def test_tiles_do_not_show(
    ours: str, theirs: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("tiles")
    written(folder / "a", ours, layers=1)
    expected = written(folder / "b", theirs, layers=1)
    a, b = (open_checkpoint(name, folder / name).tensors for name in ("a", "b"))
    with open_files() as files:
        for name, info in as_stored_by(a, b).items():
            start = data.draw(st.integers(0, info.numel))
            stop = data.draw(st.integers(start, info.numel))
            out = torch.full((stop - start,), torch.nan)
            info.open(files).read(start, stop, out, Scratch())
            assert torch.equal(out, expected[name].flatten()[start:stop])


def test_models_of_different_depth(tmp_path: Path) -> None:
    written(tmp_path / "a", "mixtral", layers=3)
    written(tmp_path / "b", "fused", layers=1)
    expected = written(tmp_path / "c", "fused", layers=3)
    a, b = (open_checkpoint(name, tmp_path / name).tensors for name in ("a", "b"))
    equal(as_stored_by(a, b), expected)


def test_quantised_inputs_keep_their_values(tmp_path: Path) -> None:
    """Encodings lie below: here a turned matrix stands for any of them."""
    written(tmp_path / "a", "qwen")
    expected = written(tmp_path / "b", "fused")
    a, b = (open_checkpoint(name, tmp_path / name).tensors for name in ("a", "b"))
    encoded = {
        name: transposed(replace(transposed(info), encoding=None)) if len(info.shape) == 2 else info
        for name, info in a.items()
    }
    wrong = values(encoded)
    found = as_stored_by(encoded, b)
    read = values(found)
    for name, tensor in expected.items():
        assert found[name].shape == tuple(tensor.shape)
    prefix = BLOCK.format(0) + "mlp.experts."
    assert torch.equal(read[prefix + "gate_up_proj"][1, :I], wrong[prefix + "1.gate_proj.weight"])
    assert torch.equal(read[prefix + "gate_up_proj"][1, I:], wrong[prefix + "1.up_proj.weight"])


def ungated(folder: Path, *, single: bool, inner: int = I, turn: bool = False) -> dict[str, Tensor]:
    """Experts without a gate, as in Nemotron-H."""
    torch.manual_seed(0)
    up, down = torch.randn(E, inner, H), torch.randn(E, H, inner)
    tensors = {"backbone.layers.0.mixer.gate.weight": torch.ones(E, H)}
    prefix = "backbone.layers.0.mixer.experts."
    for name, tensor in (("up_proj", up), ("down_proj", down)):
        if single:
            tensors |= {f"{prefix}{e}.{name}.weight": tensor[e].clone() for e in range(E)}
        else:
            tensors[prefix + name] = turned(tensor) if turn else tensor
    tiny.stored(folder, tensors, {})
    return tensors


@pytest.mark.parametrize("turn", [False, True])
def test_experts_without_a_gate(turn: bool, tmp_path: Path) -> None:
    single = ungated(tmp_path / "a", single=True)
    fused = ungated(tmp_path / "b", single=False, turn=turn)
    a, b = (open_checkpoint(name, tmp_path / name).tensors for name in ("a", "b"))
    equal(as_stored_by(a, b), fused)
    equal(as_stored_by(b, a), single)


def test_square_matrices_are_taken_as_they_are(tmp_path: Path) -> None:
    single = ungated(tmp_path / "a", single=True, inner=H)
    fused = ungated(tmp_path / "b", single=False, inner=H)
    a, b = (open_checkpoint(name, tmp_path / name).tensors for name in ("a", "b"))
    equal(as_stored_by(a, b), fused)
    equal(as_stored_by(b, a), single)


def test_missing_expert(tmp_path: Path) -> None:
    tensors = written(tmp_path / "a", "qwen")
    del tensors[BLOCK.format(1) + "mlp.experts.1.up_proj.weight"]
    tiny.stored(tmp_path / "a", tensors, {})
    written(tmp_path / "b", "fused")
    a, b = (open_checkpoint(name, tmp_path / name).tensors for name in ("a", "b"))
    with pytest.raises(CheckpointError) as caught:
        as_stored_by(a, b)
    assert str(caught.value) == (
        f"{tmp_path}/a/model.safetensors and what belongs to it lack "
        "'model.layers.1.mlp.experts.1.up_proj.weight', one of 3 experts\n"
        "  download the missing shard, or check how the model was written"
    )


def test_experts_of_different_shapes(tmp_path: Path) -> None:
    tensors = written(tmp_path / "a", "qwen")
    tensors[BLOCK.format(1) + "mlp.experts.1.up_proj.weight"] = torch.zeros(I, H + 1)
    tiny.stored(tmp_path / "a", tensors, {})
    written(tmp_path / "b", "fused")
    a, b = (open_checkpoint(name, tmp_path / name).tensors for name in ("a", "b"))
    with pytest.raises(
        CheckpointError, match=r"'model.layers.1.mlp.experts.gate_up_proj' have different shapes"
    ):
        as_stored_by(a, b)


def test_what_is_not_known_stays(tmp_path: Path) -> None:
    fused = written(tmp_path / "b", "fused")
    b = open_checkpoint("b", tmp_path / "b").tensors
    prefix = BLOCK.format(0) + "mlp.experts."
    unknown: dict[str, dict[str, Tensor]] = {
        "dense": {"model.layers.0.mlp.up_proj.weight": torch.ones(I, H)},
        # Gates and ups alternate where there are biases.
        "biased": fused | {prefix + "gate_up_proj_bias": torch.ones(E, 2 * I)},
        "half": {prefix + "gate_up_proj": torch.ones(E, 2 * I, H)},
        "odd": {
            prefix + "gate_up_proj": torch.ones(E, 2 * I + 1, H),
            prefix + "down_proj": torch.ones(E, H, I),
        },
        "elsewhere": {f"other.{name}": tensor for name, tensor in layer("qwen", 0).items()},
        "no number": {"mlp.experts.0.w1.weight": torch.ones(I, H)},
        "huge number": {prefix + "9" * 5000 + ".w1.weight": torch.ones(I, H)},
    }
    for name, tensors in unknown.items():
        tiny.stored(tmp_path / name, tensors, {})
        a = open_checkpoint(name, tmp_path / name).tensors
        assert as_stored_by(a, b) is a
        assert as_stored_by(b, a) is b


@pytest.mark.parametrize("ours", FORMS)
@pytest.mark.parametrize("theirs", FORMS)
def test_there_and_back_again(ours: str, theirs: str, tmp_path: Path) -> None:
    """Not only the values are those from before: so are the places that they are read from."""
    written(tmp_path / "a", ours, dtype=torch.bfloat16)
    written(tmp_path / "b", theirs)
    a, b = (open_checkpoint(name, tmp_path / name).tensors for name in ("a", "b"))
    assert as_stored_by(as_stored_by(a, b), a) == a


# ---- adapters of single experts

ALONE = ("qwen", "mixtral", "fc")


@pytest.mark.parametrize("names", ALONE)
@pytest.mark.parametrize("form", [form for form in FORMS if form != "half fused"])
def test_adapters_of_single_experts(form: str, names: str, tmp_path: Path) -> None:
    """Each of them changes the rows that are its expert's, wherever those lie."""
    written(tmp_path / "base", form)
    changed = "model.layers.1."
    single = {name: tensor for name, tensor in layer(names, 1).items() if "experts.2." in name}
    if form in ALONE and form != names:
        return
    adapter = tiny.adapter(
        tmp_path / "lora", {name.removesuffix(".weight"): tuple(t.shape) for name, t in single.items()}
    )
    factors = load_file(adapter / "adapter_model.safetensors")
    gate, up, down = (
        factors[f"base_model.model.{name.replace('weight', 'lora_B.weight')}"]
        @ factors[f"base_model.model.{name.replace('weight', 'lora_A.weight')}"]
        * 2
        for name in single
    )
    plain = matrices(1)
    plain[2] = (plain[2][0] + gate, plain[2][1] + up, plain[2][2] + down)
    expected = tiny.tensors(tmp_path / "base")
    expected |= {changed + name: tensor for name, tensor in FORMS[form](plain).items()}
    checkpoint = open_checkpoint("m", tmp_path / "base", (adapter,))
    for name, value in values(checkpoint).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-6)
    assert checkpoint.keys() == expected.keys()
    assert all(name.startswith(changed) for name in checkpoint.adapters[0].tensors)
    under = open_checkpoint("m", tmp_path / "base")
    assert all(checkpoint[name] == info for name, info in under.items() if not name.startswith(changed))


def test_adapters_of_some_matrices_of_some_experts(tmp_path: Path) -> None:
    written(tmp_path / "base", "fused")
    adapter = tiny.adapter(tmp_path / "lora", {"model.layers.0.mlp.experts.1.down_proj": (H, I)})
    checkpoint = open_checkpoint("m", tmp_path / "base", (adapter,))
    name = "model.layers.0.mlp.experts.down_proj"
    assert list(checkpoint.adapters[0].tensors) == [name]
    difference = values(checkpoint)[name] - tiny.tensors(tmp_path / "base")[name]
    assert [bool(d.any()) for d in difference] == [False, True, False]
    assert checkpoint.plain("model.layers.0.mlp.experts.gate_up_proj")


# ---- as transformers writes them


def models(kind: str, folder: Path, seed: int) -> tuple[Path, Path]:
    """A model as the Hub has it, and as transformers holds it in memory."""
    import transformers

    torch.manual_seed(seed)
    sizes = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    more: dict[str, Any] = {
        "Mixtral": {"intermediate_size": 24, "num_local_experts": 4, "num_key_value_heads": 1},
        "Qwen3Moe": {"moe_intermediate_size": 12, "num_experts": 4, "num_key_value_heads": 1, "head_dim": 8},
        "Phimoe": {"intermediate_size": 24, "num_local_experts": 4, "num_key_value_heads": 1},
    }
    config = getattr(transformers, f"{kind}Config")(**sizes, **more[kind])
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    model.save_pretrained(folder / "hub")
    model.save_pretrained(folder / "memory", save_original_format=False)
    return folder / "hub", folder / "memory"


@pytest.mark.parametrize("kind", ["Mixtral", "Qwen3Moe", "Phimoe"])
def test_as_transformers_writes_them(kind: str, tmp_path: Path) -> None:
    hub, memory = models(kind, tmp_path, 0)
    a, b = open_checkpoint("a", hub).tensors, open_checkpoint("b", memory).tensors
    assert a.keys() != b.keys()
    equal(as_stored_by(a, b), tiny.tensors(memory))
    equal(as_stored_by(b, a), tiny.tensors(hub))


@pytest.mark.parametrize("donor", ["hub", "memory"])
def test_merges_are_the_same_whichever_is_the_donor(
    donor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    models("Mixtral", Path("a"), 0)
    models("Mixtral", Path("b"), 1)
    other = {"hub": "memory", "memory": "hub"}[donor]

    def merged(first: str, second: str, out: str) -> dict[str, Tensor]:
        data = {
            "merge_method": "ties",
            "base_model": first,
            "parameters": {"density": 0.4, "weight": 0.7},
            "models": [{"model": second}],
        }
        result = merge(data, out)
        assert any("are read as" in note for note in result.plan.notes) == (out == "mixed")
        return tiny.tensors(Path(out))

    expected = merged(f"a/{donor}", f"b/{donor}", "same")
    found = merged(f"a/{donor}", f"b/{other}", "mixed")
    assert found.keys() == expected.keys() == tiny.tensors(Path("a") / donor).keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
