"""LoRA adapters over a checkpoint: the values that PEFT merges, found under other names, and bad adapters."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny
from deadline import within
from meldkit import merge
from meldkit.checkpoint import (
    Checkpoint,
    Scratch,
    TensorInfo,
    TileSource,
    open_checkpoint,
    open_files,
    open_model,
    read_all,
    read_header,
)
from meldkit.checkpoint.adapter.names import Names
from meldkit.checkpoint.adapter.overlay import Dora, LowRank, Overlay, Rows
from meldkit.checkpoint.adapter.settings import Settings
from meldkit.checkpoint.json_file import shown
from meldkit.engine import TILE
from meldkit.errors import CheckpointError, FormatError, MeldError, MismatchError
from meldkit.recipe import ModelRef

# PEFT calls what transformers has renamed, and tells of what it does for us.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft.*"),
]

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def randomised(model: Any, seed: int) -> Any:
    """Every parameter that training would change, far from its initial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
                if "magnitude" in name:
                    parameter.abs_().add_(0.5)
    return model


def train(base: Path, folder: Path, seed: int, loader: str = "LlamaForCausalLM", **config: Any) -> Path:
    """An adapter as after a training, saved by PEFT."""
    import transformers
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ALL_LINEAR} | config
    model = getattr(transformers, loader).from_pretrained(base)
    randomised(get_peft_model(model, LoraConfig(**settings)), seed).save_pretrained(folder)
    return folder


def merged_by_peft(base: Path, *adapters: Path, loader: str = "LlamaForCausalLM") -> dict[str, Tensor]:
    """What PEFT makes of a model and its adapters, as transformers stores it."""
    import transformers
    from peft import PeftModel

    model = getattr(transformers, loader).from_pretrained(base)
    for adapter in adapters:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    merged = adapters[-1].with_name(adapters[-1].name + "-merged")
    model.save_pretrained(merged)
    return tiny.tensors(merged)


def read(source: TileSource, start: int, stop: int) -> Tensor:
    out = torch.full((stop - start,), torch.nan)
    source.read(start, stop, out, Scratch())
    return out


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.llama(tmp_path_factory.mktemp("base") / "base", 0, layers=2)


@pytest.fixture(scope="module")
def plain(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(base, tmp_path_factory.mktemp("plain") / "a", 1)


@pytest.fixture
def a(base: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the plain adapter to damage, as the relative path "a"; its base is "base"."""
    shutil.copytree(plain, tmp_path / "a")
    (tmp_path / "base").symlink_to(base)
    monkeypatch.chdir(tmp_path)
    return Path("a")


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = folder / "adapter_model.safetensors"
    content = load_file(path)
    change(content)
    save_file(content, path)


def refusal(folder: Path, kind: type[MeldError] = CheckpointError, base: Path = Path("base")) -> str:
    with pytest.raises(MeldError) as caught:
        open_checkpoint("base+a", base, (folder,))
    assert type(caught.value) is kind
    return str(caught.value)


# ---- values

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one module": {"target_modules": ["v_proj"]},
    "rslora": {"use_rslora": True, "r": 5},
    "fractional alpha": {"lora_alpha": 2.5},
    "negative alpha": {"lora_alpha": -3},
    "rank one": {"r": 1},
    "patterns": {
        "rank_pattern": {"q_proj": 2, r"model\.layers\.1\.mlp\..*": 7, "k_proj|o_proj": 3},
        "alpha_pattern": {r"layers\.0\.self_attn\.q_proj": 32, "down_proj": 0.5, "^v_proj": 99},
    },
    "patterns and rslora": {"use_rslora": True, "rank_pattern": {"up_proj": 9}, "alpha_pattern": {"proj": 1}},
    "first pattern counts": {"rank_pattern": {".*q_proj": 3, "q_proj": 6, "layers.0.self_attn.k_proj": 2}},
    "anchored patterns": {"rank_pattern": {"^model.layers.0.self_attn.q_proj": 3, "self_attn.q_proj$": 6}},
    "lm_head": {"target_modules": ["lm_head", "q_proj"]},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "mica": {"init_lora_weights": "mica"},
    "dora": {"use_dora": True},
    "dora and rslora": {"use_dora": True, "use_rslora": True, "rank_pattern": {"up_proj": 9}},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "embedding, dora": {"target_modules": ["embed_tokens", "lm_head"], "use_dora": True},
    "saved modules": {"modules_to_save": ["lm_head", "embed_tokens"]},
    "saved norms": {"modules_to_save": ["norm", "input_layernorm"], "target_modules": ["q_proj"]},
    "saved block": {"modules_to_save": ["layers.1.mlp"], "target_modules": ["q_proj"]},
    "tokens": {"trainable_token_indices": [63, 1, 5]},
    "tokens of a module": {"trainable_token_indices": {"embed_tokens": [0, 7], "lm_head": [2]}},
    "parameters of linear layers": {
        "target_modules": [],
        "target_parameters": ["q_proj.weight", "layers.1.mlp.up_proj.weight"],
        "rank_pattern": {r".*q_proj\.weight": 2},
    },
}


def values(checkpoint: Checkpoint) -> dict[str, Tensor]:
    with open_files() as files:
        return {name: read_all(files, info) for name, info in checkpoint.items()}


def assert_equal(checkpoint: Checkpoint, expected: Mapping[str, Tensor], tolerance: float) -> None:
    assert checkpoint.keys() == expected.keys()
    with open_files() as files:
        for name, info in checkpoint.items():
            value = read(checkpoint.source(files, name), 0, info.numel)
            wanted = expected[name].flatten()
            assert info.shape == expected[name].shape
            bound = 0 if checkpoint.plain(name) else tolerance * wanted.abs().max()
            assert (value - wanted).abs().max() <= bound, name


@pytest.mark.filterwarnings("ignore:.*pattern keys did not match any targeted module:RuntimeWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_that_peft_merges(kind: str, base: Path, tmp_path: Path) -> None:
    adapter = train(base, tmp_path / "a", 2, **KINDS[kind])
    checkpoint = open_checkpoint("base+a", base, (adapter,))
    assert checkpoint.adapters[0].tensors
    assert_equal(checkpoint, merged_by_peft(base, adapter), 1e-6)


def test_several_adapters_add_up(base: Path, plain: Path, tmp_path: Path) -> None:
    second = train(base, tmp_path / "b", 3, r=2, target_modules=["q_proj", "down_proj"])
    checkpoint = open_checkpoint("base+a+b", base, (plain, second))
    assert_equal(checkpoint, merged_by_peft(base, plain, second), 1e-6)
    assert len(checkpoint.files()) == 3
    same = open_checkpoint("base+b+a", base, (second, plain))
    assert_equal(checkpoint, merged_by_peft(base, second, plain), 1e-6)
    assert checkpoint.fingerprint != same.fingerprint


def change_of(info: TensorInfo) -> LowRank:
    assert isinstance(info.encoding, Overlay)
    assert isinstance(info.encoding.change, LowRank)
    return info.encoding.change


def test_adapter_in_half_precision_is_added_in_full(base: Path, plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain, tmp_path / "a")
    rewrite(tmp_path / "a", lambda t: t.update({k: v.bfloat16() for k, v in t.items()}))
    checkpoint = open_checkpoint("base+a", base, (tmp_path / "a",))
    weights = tiny.tensors(base)
    factors = {k: v.double() for k, v in load_file(tmp_path / "a" / "adapter_model.safetensors").items()}
    for name, info in checkpoint.adapters[0].tensors.items():
        update = change_of(info)
        product = factors[update.b.name] @ factors[update.a.name] * update.scale
        weights[name] = weights[name].double() + product
    assert_equal(checkpoint, weights, 1e-6)


def test_names_as_other_programs_write_them(a: Path) -> None:
    whole = open_checkpoint("base+a", Path("base"), (a,)).adapters[0].tensors
    rewrite(a, lambda t: [t.update({k.replace(".weight", ".default.weight"): t.pop(k)}) for k in list(t)])
    assert open_checkpoint("base+a", Path("base"), (a,)).adapters[0].tensors.keys() == whole.keys()
    rewrite(a, lambda t: [t.update({k.removeprefix("base_model.model."): t.pop(k)}) for k in list(t)])
    assert open_checkpoint("base+a", Path("base"), (a,)).adapters[0].tensors.keys() == whole.keys()


def test_saved_modules_as_other_programs_write_them(base: Path, tmp_path: Path) -> None:
    adapter = train(base, tmp_path / "a", 2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    expected = values(open_checkpoint("base+a", base, (adapter,)))
    name = "base_model.model.lm_head."
    rewrite(adapter, lambda t: t.update({name + "modules_to_save.default.weight": t.pop(name + "weight")}))
    rewrite(adapter, lambda t: t.update({name + "original_module.weight": torch.zeros(64, 32)}))
    for name, value in values(open_checkpoint("base+a", base, (adapter,))).items():
        assert torch.equal(value, expected[name])


def test_an_adapter_that_is_pickled(a: Path) -> None:
    path = a / "adapter_model.safetensors"
    torch.save(load_file(path), a / "adapter_model.bin")
    expected = values(open_checkpoint("base+a", Path("base"), (a,)))
    path.unlink()
    pickled = open_checkpoint("base+a", Path("base"), (a,))
    assert pickled.files() == [Path("base/model.safetensors"), a / "adapter_model.bin"]
    for name, value in values(pickled).items():
        assert torch.equal(value, expected[name])


def test_over_an_encoded_base(base: Path, plain: Path, tmp_path: Path) -> None:
    """Here weights that were saved as views: columns one after the other."""
    folder = tmp_path / "views"
    folder.mkdir()
    weights = {name: t.T.contiguous().T if t.ndim == 2 else t for name, t in tiny.tensors(base).items()}
    torch.save(weights, folder / "pytorch_model.bin")
    under = open_checkpoint("views", folder)
    checkpoint = open_checkpoint("views+a", folder, (plain,))
    name = "model.layers.1.mlp.down_proj.weight"
    assert not under.plain(name)
    assert set(checkpoint.files()) == {folder / "pytorch_model.bin", plain / "adapter_model.safetensors"}
    assert_equal(checkpoint, merged_by_peft(base, plain), 1e-6)


def test_fingerprint_covers_the_scale(a: Path) -> None:
    fingerprints = {open_checkpoint("base+a", Path("base"), (a,)).fingerprint}
    configure(a, lora_alpha=9)
    fingerprints.add(open_checkpoint("base+a", Path("base"), (a,)).fingerprint)
    configure(a, use_rslora=True)
    fingerprints.add(open_checkpoint("base+a", Path("base"), (a,)).fingerprint)
    assert len(fingerprints) == 3


@pytest.mark.parametrize(
    ("patterns", "module"),
    [
        ({"q_proj": 2}, "model.layers.0.self_attn.q_proj"),
        ({"proj": 2}, "model.layers.0.self_attn.q_proj"),
        ({"layers.0": 2}, "model.layers.0.self_attn.q_proj"),
        ({"self_attn": 2, "attn.q_proj": 3, "self_attn.q_proj": 4}, "model.layers.0.self_attn.q_proj"),
        ({"^q_proj": 2, "^model.*q_proj": 3}, "model.layers.0.self_attn.q_proj"),
        ({"k_proj|q_proj": 2}, "model.layers.0.self_attn.q_proj"),
        ({"layers.1.self_attn.q_proj": 2}, "model.layers.11.self_attn.q_proj"),
        ({r"layers\.\d+\..*": 2}, "model.layers.11.self_attn.q_proj"),
        ({"model.layers.0.self_attn.q_proj": 2}, "model.layers.0.self_attn.q_proj"),
        ({"q_proj$": 2}, "model.layers.0.self_attn.q_proj"),
        ({"q": 2}, "q"),
        ({}, "q"),
    ],
)
def test_patterns_match_as_in_peft(patterns: dict[str, int], module: str) -> None:
    from peft.utils.other import get_pattern_key

    expected = patterns.get(get_pattern_key(patterns.keys(), module), 8)
    assert Settings(Path("a"), {"rank_pattern": patterns}).own("rank_pattern", module, 8) == expected


# ---- other architectures


def made(folder: Path, model: str, config: str, **settings: Any) -> Path:
    """A small model of any class of transformers, of random weights."""
    import transformers

    torch.manual_seed(0)
    built = getattr(transformers, model)(getattr(transformers, config)(**settings))
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    built.save_pretrained(folder)
    return folder


SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "tied": ("LlamaForCausalLM", "LlamaConfig", {**SMALL, "tie_word_embeddings": True}),
    "biased": ("LlamaForCausalLM", "LlamaConfig", {**SMALL, "attention_bias": True}),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32},
    ),
    "bert": ("BertModel", "BertConfig", {**SMALL, "pad_token_id": 0}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**SMALL, "num_local_experts": 3}),
    "qwen moe": (
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        {**SMALL, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8},
    ),
    "gpt-oss": (
        "GptOssForCausalLM",
        "GptOssConfig",
        {
            **SMALL,
            "intermediate_size": 32,
            "num_local_experts": 3,
            "num_experts_per_tok": 2,
            "head_dim": 8,
            "layer_types": ["full_attention"] * 2,
        },
    ),
    "convnext": (
        "ConvNextModel",
        "ConvNextConfig",
        {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": 32},
    ),
    "whisper": (
        "WhisperModel",
        "WhisperConfig",
        {
            "vocab_size": 64,
            "d_model": 32,
            "num_mel_bins": 8,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "max_source_positions": 16,
            "max_target_positions": 16,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        },
    ),
    "llava": (
        "LlavaForConditionalGeneration",
        "LlavaConfig",
        {
            "text_config": {**SMALL, "model_type": "llama"},
            "vision_config": {
                **{k: v for k, v in SMALL.items() if k not in ("vocab_size", "num_key_value_heads")},
                "model_type": "clip_vision_model",
                "image_size": 16,
                "patch_size": 8,
            },
            "image_token_index": 63,
        },
    ),
}

CONV1D = ["c_attn", "c_proj", "c_fc"]
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
#: The model, the class under which it is trained if that is another one, and the adapter.
ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Conv1D": ("gpt2", "", {"target_modules": CONV1D, "fan_in_fan_out": True}),
    "Conv1D, DoRA": ("gpt2", "", {"target_modules": CONV1D, "fan_in_fan_out": True, "use_dora": True}),
    "Conv1D and biases": ("gpt2", "", {"target_modules": CONV1D, "fan_in_fan_out": True, "bias": "all"}),
    "Conv1D and own biases": (
        "gpt2",
        "",
        {"target_modules": ["c_fc"], "fan_in_fan_out": True, "bias": "lora_only"},
    ),
    "biases of factors": ("biased", "", {"target_modules": ["q_proj", "k_proj"], "lora_bias": True}),
    "encoder": ("bert", "", {"target_modules": ["query", "dense"], "bias": "lora_only"}),
    "encoder under a head": ("bert", "BertForMaskedLM", {"target_modules": ["query", "output.dense"]}),
    "embeddings": ("bert", "", {"target_modules": ["word_embeddings", "position_embeddings", "value"]}),
    "Mixtral's experts": ("mixtral", "", {"target_modules": ["q_proj"], "target_parameters": EXPERTS}),
    "Mixtral's old names": ("mixtral", "", {"target_modules": ["q_proj", "w1", "w2", "w3", "gate"]}),
    "one parameter": (
        "mixtral",
        "",
        {"target_modules": [], "target_parameters": EXPERTS[1:], "use_rslora": True},
    ),
    "router": ("mixtral", "", {"target_modules": [], "target_parameters": ["gate.weight"]}),
    "Qwen's experts": (
        "qwen moe",
        "",
        {
            "target_modules": ["v_proj"],
            "target_parameters": EXPERTS,
            "rank_pattern": {"experts.gate_up_proj": 3, "v_proj": 2},
            "alpha_pattern": {"down_proj": 5},
        },
    ),
    "transposed experts": ("gpt-oss", "", {"target_modules": ["q_proj"], "target_parameters": EXPERTS}),
    "transposed square experts": ("gpt-oss", "", {"target_modules": [], "target_parameters": EXPERTS[1:]}),
    "biases of experts": (
        "gpt-oss",
        "",
        {
            "target_modules": [],
            "target_parameters": [*EXPERTS, "experts.gate_up_proj_bias", "experts.down_proj_bias"],
        },
    ),
    "convolutions": (
        "convnext",
        "",
        {"target_modules": ["patch_embeddings", "downsampling_layer.1", "pwconv1"]},
    ),
    "convolutions, DoRA": ("convnext", "", {"target_modules": ["patch_embeddings"], "use_dora": True}),
    "convolutions in one dimension": ("whisper", "", {"target_modules": ["conv1", "conv2", "k_proj"]}),
    "language and vision": (
        "llava",
        "",
        {
            "target_modules": ["q_proj", "fc1", "linear_2"],
            "modules_to_save": ["multi_modal_projector.linear_1"],
        },
    ),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes each of `MODELS` once."""
    folder = tmp_path_factory.mktemp("models")

    def get(name: str) -> Path:
        path = folder / name
        if not path.exists():
            model, config, settings = MODELS[name]
            made(path, model, config, **settings)
        return path

    return get


@pytest.mark.filterwarnings("ignore:.*pattern keys did not match any targeted module:RuntimeWarning")
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_values_of_other_architectures(kind: str, models: Callable[[str], Path], tmp_path: Path) -> None:
    name, loader, config = ARCHITECTURES[kind]
    base = models(name)
    adapter = train(base, tmp_path / "a", 2, loader or MODELS[name][0], **config)
    checkpoint = open_checkpoint("base+a", base, (adapter,))
    expected = merged_by_peft(base, adapter, loader=loader or MODELS[name][0])
    if loader:
        expected = {n.removeprefix("bert."): t for n, t in expected.items() if n.startswith("bert.")} | {
            n: t for n, t in tiny.tensors(base).items() if n.startswith("pooler.")
        }
    assert_equal(checkpoint, expected, 1e-6)


def test_conv1d_is_known_by_its_model(models: Callable[[str], Path], tmp_path: Path) -> None:
    """PEFT stores fan_in_fan_out as the last layer has it, here that of lm_head."""
    base = models("gpt2")
    adapter = train(base, tmp_path / "a", 2, "GPT2LMHeadModel", target_modules=["c_proj", "lm_head"])
    assert json.loads((adapter / "adapter_config.json").read_text())["fan_in_fan_out"] is False
    checkpoint = open_checkpoint("base+a", base, (adapter,))
    expected = merged_by_peft(base, adapter, loader="GPT2LMHeadModel")
    with open_files() as files:
        for name in (n for n in checkpoint if "c_proj.weight" in n):
            value = read_all(files, checkpoint[name])
            torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-6)


def test_convolutions_in_groups_are_refused(models: Callable[[str], Path], tmp_path: Path) -> None:
    adapter = train(models("convnext"), tmp_path / "a", 2, "ConvNextModel", r=16, target_modules=["dwconv"])
    assert "which is a convolution in groups" in refusal(adapter, FormatError, models("convnext"))


def test_attention_of_torch_is_refused(tmp_path: Path) -> None:
    """PEFT adds the product of its output projection twice, in training as in merging."""
    from peft import LoraConfig, get_peft_model

    model = torch.nn.Sequential(torch.nn.MultiheadAttention(8, 2))
    tiny.stored(tmp_path / "m", {name: tensor.clone() for name, tensor in model.state_dict().items()})
    get_peft_model(model, LoraConfig(r=2, target_modules=["0"])).save_pretrained(tmp_path / "a")
    message = refusal(tmp_path / "a", FormatError, tmp_path / "m")
    assert "changes '0', which is a torch.nn.MultiheadAttention" in message


def test_experts_of_an_old_peft(models: Callable[[str], Path], tmp_path: Path) -> None:
    """PEFT 0.18 took each parameter for [experts, in, out], so A and B have changed places."""
    base = models("qwen moe")
    config: dict[str, Any] = {"target_modules": [], "target_parameters": EXPERTS}
    adapter = train(base, tmp_path / "a", 2, "Qwen3MoeForCausalLM", **config)
    expected = values(open_checkpoint("base+a", base, (adapter,)))

    def exchange(tensors: dict[str, Tensor]) -> None:
        old = dict(tensors)
        for name, value in old.items():
            a, b = (name.replace("lora_A", side).replace("lora_B", side) for side in ("lora_A", "lora_B"))
            if name == a:
                experts, rank = 3, 4
                tensors[b] = (
                    value.view(experts, rank, -1).permute(2, 1, 0).reshape(-1, rank * experts).clone()
                )
                columns = old[b].view(-1, rank, experts).permute(2, 1, 0)
                tensors[a] = columns.reshape(experts * rank, -1).clone()

    rewrite(adapter, exchange)
    configure(adapter, peft_version="0.18.0")
    for name, value in values(open_checkpoint("base+a", base, (adapter,))).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-6)


# ---- what a model gets besides changed weights


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(10)[None]).logits


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["lm_head", "q_proj"]},
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["embed_tokens", "lm_head"], "use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"trainable_token_indices": [3, 60]},
        {"target_modules": ["q_proj"]},
        {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
    ],
    ids=str,
)
def test_a_tied_model_computes_what_it_computed_under_the_adapter(
    config: dict[str, Any], models: Callable[[str], Path], tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    base = models("tied")
    adapter = train(base, tmp_path / "a", 2, **config)
    expected = logits(PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), adapter))
    checkpoint = open_checkpoint("base+a", base, (adapter,))
    tied = "ensure_weight_tying" in config or not any(
        "embed" in str(v) or "lm_head" in str(v) for v in config.values()
    )
    assert checkpoint.config["tie_word_embeddings"] is tied
    assert ("lm_head.weight" in checkpoint) is not tied
    apart = (
        f"adapter {adapter}: lm_head.weight comes apart from model.embed_tokens.weight, to which it was tied"
    )
    assert checkpoint.notes == (() if tied else (apart,))
    merge({"merge_method": "passthrough", "models": [{"model": f"{base}+{adapter}"}]}, tmp_path / "m")
    merged = LlamaForCausalLM.from_pretrained(tmp_path / "m")
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_tokens_that_were_added(
    tied: bool, base: Path, models: Callable[[str], Path], tmp_path: Path
) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import LlamaForCausalLM

    base = models("tied") if tied else base
    model = LlamaForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(70)
    saved = None if tied else ["embed_tokens", "lm_head"]
    peft = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=saved))
    randomised(peft, 1).save_pretrained(tmp_path / "a")
    checkpoint = open_checkpoint("base+a", base, (tmp_path / "a",))
    assert checkpoint.config["vocab_size"] == 70
    assert checkpoint["model.embed_tokens.weight"].shape == (70, 32)
    assert ("lm_head.weight" in checkpoint) is not tied
    grown = ["model.embed_tokens.weight"] if tied else ["lm_head.weight", "model.embed_tokens.weight"]
    assert sorted(checkpoint.notes) == [
        f"adapter {tmp_path / 'a'}: {name} has 70 tokens, instead of 64" for name in grown
    ]
    model = LlamaForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(70)
    merged = PeftModel.from_pretrained(model, tmp_path / "a").merge_and_unload().state_dict()
    for name, value in values(checkpoint).items():
        torch.testing.assert_close(value, merged[name], rtol=1e-6, atol=1e-6)


def test_only_one_of_head_and_embedding_grew(base: Path, tmp_path: Path) -> None:
    adapter = train(base, tmp_path / "a", 2, modules_to_save=["embed_tokens", "lm_head"])
    name = "base_model.model.lm_head.weight"
    rewrite(adapter, lambda t: t.update({name: torch.cat([t[name], t[name][:1]])}))
    message = refusal(adapter, MismatchError, base)
    assert "'model.embed_tokens.weight' 64" in message
    assert "'lm_head.weight' 65" in message


def test_a_new_head(models: Callable[[str], Path], tmp_path: Path) -> None:
    config: dict[str, Any] = {"target_modules": ["query"], "task_type": "SEQ_CLS"}
    adapter = train(models("bert"), tmp_path / "a", 2, "BertForSequenceClassification", **config)
    checkpoint = open_checkpoint("base+a", models("bert"), (adapter,))
    expected = merged_by_peft(models("bert"), adapter, loader="BertForSequenceClassification")
    assert_equal(checkpoint, {n.removeprefix("bert."): t for n, t in expected.items()}, 1e-6)
    assert [n for n in checkpoint if "classifier" in n] == ["classifier.bias", "classifier.weight"]


def test_a_tensor_of_another_dtype_keeps_that_of_the_model(base: Path, tmp_path: Path) -> None:
    half = {name: tensor.bfloat16() for name, tensor in tiny.tensors(base).items()}
    folder = tiny.stored(tmp_path / "half", half)
    adapter = train(base, tmp_path / "a", 2, modules_to_save=["lm_head"])
    checkpoint = open_checkpoint("half+a", folder, (adapter,))
    stored = load_file(adapter / "adapter_model.safetensors")["base_model.model.lm_head.weight"]
    assert checkpoint["lm_head.weight"].dtype == "BF16"
    assert not checkpoint.plain("lm_head.weight")
    assert torch.equal(values(checkpoint)["lm_head.weight"], stored)
    assert adapter / "adapter_model.safetensors" in checkpoint.files()


# ---- names


STORED = [
    "language_model.lm_head.weight",
    "language_model.model.embed_tokens.weight",
    "language_model.model.layers.0.self_attn.q_proj.weight",
    "language_model.model.layers.1.self_attn.q_proj.weight",
    "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight",
    "vision_tower.vision_model.pooler.dense.weight",
    "encoder.layer.0.attention.self.query.weight",
    "a.x.h.0.w.weight",
    "b.x.h.0.w.weight",
    "model.layers.0.block_sparse_moe.gate.weight",
    "model.layers.1.mlp.gate.weight",
]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("language_model.lm_head.weight", 0),
        ("lm_head.weight", 0),
        ("model.language_model.embed_tokens.weight", 1),
        ("model.language_model.layers.0.self_attn.q_proj.weight", 2),
        ("model.layers.0.self_attn.q_proj.weight", 2),
        ("model.layers.1.self_attn.q_proj.weight", 3),
        ("model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight", 4),
        ("model.vision_tower.encoder.layers.0.self_attn.q_proj.weight", 4),
        ("bert.encoder.layer.0.attention.self.query.weight", 6),
        ("bert.encoder.layer.1.attention.self.query.weight", None),
        ("model.layers.2.self_attn.q_proj.weight", None),
        ("cls.predictions.transform.dense.weight", None),
        ("dense.weight", 5),
        ("decoder.layer.0.attention.self.query.weight", None),
        ("h.1.w.weight", None),
        ("a.h.0.w.weight", 7),
        ("model.layers.0.mlp.gate.weight", 9),
        ("model.layers.1.block_sparse_moe.gate.weight", 10),
    ],
)
def test_names_are_found_by_their_ends(wanted: str, found: int | None) -> None:
    assert Names(STORED).find(wanted) == (None if found is None else STORED[found])


@pytest.mark.parametrize("wanted", ["x.h.0.w.weight", "h.0.w.weight", "model.x.h.0.w.weight"])
def test_names_that_several_tensors_have(wanted: str) -> None:
    with pytest.raises(MismatchError) as caught:
        Names(STORED).find(wanted)
    assert caught.value.message == f"'{wanted}' may mean 'a.x.h.0.w.weight' or 'b.x.h.0.w.weight'"


@pytest.mark.parametrize("remove", ["model.", ""])
def test_a_base_without_a_prefix(remove: str, base: Path, plain: Path, tmp_path: Path) -> None:
    weights = {f"x.{n}".removeprefix(f"x.{remove}"): t for n, t in tiny.tensors(base).items()}
    folder = tiny.stored(tmp_path / "bare", weights)
    changed = open_checkpoint("bare+a", folder, (plain,)).adapters[0].tensors
    expected = open_checkpoint("base+a", base, (plain,)).adapters[0].tensors
    assert len(changed) == len(expected)


# ---- an adapter in the place of a model


def test_an_adapter_names_its_base(a: Path, tmp_path: Path) -> None:
    expected = open_checkpoint("base+a", Path("base"), (a,))
    for name in (str(tmp_path / "base"), "base", "../base"):
        configure(a, base_model_name_or_path=name)
        checkpoint = open_model(ModelRef.parse("a"))
        assert checkpoint.folder.resolve() == Path("base").resolve()
        assert checkpoint.label == "a"
        assert checkpoint.adapters[0].folder == a
        assert checkpoint.adapters[0].tensors.keys() == expected.adapters[0].tensors.keys()


def test_an_adapter_of_an_adapter(a: Path) -> None:
    shutil.copytree(a, "b")
    configure(a, base_model_name_or_path="base")
    configure(Path("b"), base_model_name_or_path="a", lora_alpha=2)
    shutil.copytree(a, "c")
    checkpoint = open_model(ModelRef.parse("b+c"))
    assert [adapter.folder for adapter in checkpoint.adapters] == [Path("a"), Path("b"), Path("c")]
    assert not checkpoint.warnings


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "model 'a': a is a LoRA adapter that names no base model"),
        ("a", "model 'a': a is a LoRA adapter that is its own base model"),
        ("./no/such", "model 'a': a is a LoRA adapter whose base model './no/such' was not found: model "),
    ],
)
def test_an_adapter_without_its_base(a: Path, name: str | None, message: str) -> None:
    configure(a, base_model_name_or_path=name)
    with pytest.raises(CheckpointError) as caught:
        open_model(ModelRef.parse("a"))
    assert caught.value.message.startswith(message)
    assert caught.value.hint == "write it as BASE_MODEL+a"


# ---- tiles


Change = LowRank | Dora | Rows


def overlay(folder: Path, kind: str, rows: int, columns: int, rank: int = 3) -> tuple[TensorInfo, Tensor]:
    """A matrix under an adapter, and what it must be."""
    torch.manual_seed(0)
    path = folder / "x.safetensors"
    m = 4 if kind == "experts" else 1
    shape = (m, rows, columns) if kind == "experts" else (rows, columns)
    transposed = kind in ("transposed", "column dora")
    into, out = (rows, columns) if transposed else (columns, rows)
    shapes = {"w": shape, "a": (m * rank, into), "b": (out, rank * m), "m": (out,), "r": (5, columns)}
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    save_file(tensors, path)
    infos = read_header(path).tensors
    w, a, b, magnitude, new = (tensors[name].double() for name in "wabmr")
    if kind == "rows":
        indices = tuple(int(i) for i in torch.randint(rows, (5,)))
        for i, row in zip(indices, new, strict=True):
            w[i] = row
        return replace(infos["w"], encoding=Overlay(infos["w"], Rows(infos["r"], indices))), w
    product = LowRank(infos["a"], infos["b"], 0.7, transposed, m)
    factors = a.view(m, rank, into), b.view(out, rank, m)
    delta = torch.einsum("mri,orm->moi", *factors).view(*shape[:-2], out, into) * 0.7
    w += delta.mT if transposed else delta
    if "dora" not in kind:
        return replace(infos["w"], encoding=Overlay(infos["w"], product)), w
    norms = w.norm(dim=0) if transposed else w.norm(dim=1, keepdim=True)
    w *= (magnitude if transposed else magnitude[:, None]) / norms
    return replace(infos["w"], encoding=Overlay(infos["w"], Dora(product, infos["m"]))), w


SIZES = [(300, 700), (7, 70_000), (1, 5), (200_000, 1), (130, 2048), (64, 576), (3, 65_536), (3, 65_537)]
OVERLAYS = ("low rank", "transposed", "row dora", "column dora", "rows", "experts")


@pytest.mark.parametrize("kind", OVERLAYS)
@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_tiles_do_not_show(kind: str, rows: int, columns: int, tmp_path: Path) -> None:
    info, expected = overlay(tmp_path, kind, rows, columns)
    numel = info.numel
    with open_files() as files:
        source = info.open(files)
        whole = read(source, 0, numel)
        torch.testing.assert_close(whole.view(info.shape).double(), expected, rtol=1e-5, atol=1e-5)
        for tile in (131_072, 65_536, 30_011):
            parts = [read(source, i, min(numel, i + tile)) for i in range(0, numel, tile)]
            assert torch.equal(torch.cat(parts), whole)

        @settings(max_examples=10, deadline=None)
        @given(st.integers(0, numel), st.integers(0, numel))
        def any_tile(first: int, second: int) -> None:
            start, stop = sorted((first, second))
            assert torch.equal(read(source, start, stop), whole[start:stop])

        any_tile()


@pytest.mark.parametrize("kind", OVERLAYS)
def test_a_matrix_without_elements(kind: str, tmp_path: Path) -> None:
    shapes = [(4, 0)] if kind == "rows" else [(0, 4), (4, 0)]
    for rows, columns in shapes:
        info, _ = overlay(tmp_path, kind, rows, columns)
        with open_files() as files:
            assert read(info.open(files), 0, 0).numel() == 0


def test_channels_without_a_direction_stay_zero(tmp_path: Path) -> None:
    tensors = {"w": torch.zeros(3, 5), "a": torch.zeros(2, 5), "b": torch.zeros(3, 2), "m": torch.ones(5)}
    tensors["w"][1, 1:] = 2.0
    save_file(tensors, tmp_path / "x.safetensors")
    infos = read_header(tmp_path / "x.safetensors").tensors
    product = LowRank(infos["a"], infos["b"], 1.0)
    changes = [
        Dora(product, replace(infos["m"], shape=(3,), nbytes=12)),
        Dora(
            LowRank(replace(infos["a"], shape=(2, 3)), replace(infos["a"], shape=(5, 2)), 1.0, True),
            infos["m"],
        ),
    ]
    with open_files() as files:
        for change in changes:
            value = read_all(files, replace(infos["w"], encoding=Overlay(infos["w"], change)))
            assert value[0].tolist() == value[2].tolist() == [0.0] * 5
            assert (value[1, 1:] > 0).all()
            assert value[1, 0] == 0


def test_work_is_proportional_to_the_tile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However wide the matrix, no more than a third of what is multiplied for tiles is in vain."""
    multiplied = 0
    addmm = Tensor.addmm_

    def counting(to: Tensor, left: Tensor, right: Tensor) -> Tensor:
        nonlocal multiplied
        multiplied += to.numel()
        return addmm(to, left, right)

    monkeypatch.setattr(Tensor, "addmm_", counting)
    for rows, columns in ((1000, 576), (400, 2048), (250, 5632), (180, 8192), (100, 14_336), (50, 28_672)):
        for kind in ("low rank", "row dora"):
            info, _ = overlay(tmp_path, kind, rows, columns)
            with open_files() as files:
                source = info.open(files)
                multiplied, numel = 0, rows * columns
                for start in range(0, numel, TILE):
                    read(source, start, min(numel, start + TILE))
            assert numel <= multiplied <= 1.5 * numel


# ---- what does not fit

OTHER_BASE = "\n  check that the adapter was trained on this base model"


def test_adapter_of_another_size(a: Path) -> None:
    Path("base").unlink()
    tiny.llama(Path("base"), 0, layers=2, hidden=48)
    assert refusal(a, MismatchError) == (
        "adapter a does not fit 'model.layers.0.mlp.down_proj.weight': lora_A [4, 64] and lora_B [32, 4] "
        "against [48, 96]" + OTHER_BASE
    )


def test_a_saved_module_of_another_size(a: Path) -> None:
    rewrite(a, lambda t: t.update({"base_model.model.model.norm.weight": torch.ones(3)}))
    assert refusal(a, MismatchError) == (
        "adapter a replaces 'model.norm.weight' by [3] against [32]" + OTHER_BASE
    )


def test_a_whole_tensor_that_the_base_lacks(a: Path) -> None:
    rewrite(a, lambda t: t.update({"base_model.model.model.norm.bias": torch.ones(32)}))
    assert refusal(a, MismatchError) == (
        "adapter a changes 'model.norm.bias' [32], which its base model does not have"
        + OTHER_BASE
        + "; it has 'model.norm.weight' [32]"
    )


@pytest.mark.parametrize("indices", [None, 5, [1, 64], [1, -1], [1, True], {"wte": [1, 2]}])
def test_tokens_that_are_no_rows(a: Path, indices: object) -> None:
    name = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    rewrite(a, lambda t: t.update({name: torch.ones(2, 32)}))
    configure(a, trainable_token_indices=indices)
    assert "which are not rows of 'model.embed_tokens.weight' with its 64" in refusal(a)
    configure(a, trainable_token_indices=[1, 2, 3])
    assert "trainable_tokens_delta [2, 32] against [3, 32]" in refusal(a, MismatchError)


def test_bias_of_factors_without_a_bias(a: Path) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias"
    rewrite(a, lambda t: t.update({name: torch.ones(32)}))
    assert "changes 'model.layers.0.self_attn.q_proj.bias' [32], which its" in refusal(a, MismatchError)


def test_parameters_that_cannot_be_told_apart(models: Callable[[str], Path], tmp_path: Path) -> None:
    config: dict[str, Any] = {"target_modules": [], "target_parameters": EXPERTS}
    adapter = train(models("qwen moe"), tmp_path / "a", 2, "Qwen3MoeForCausalLM", **config)
    configure(adapter, target_parameters=EXPERTS[:1])
    message = refusal(adapter, FormatError, models("qwen moe"))
    assert "factors for 2 of the parameters gate_up_proj of 'model.layers.0.mlp.experts'" in message


def test_adapter_of_a_deeper_model(a: Path) -> None:
    Path("base").unlink()
    tiny.llama(Path("base"), 0, layers=1)
    assert refusal(a, MismatchError) == (
        "adapter a changes 'model.layers.1.mlp.down_proj.weight' [32, 64], which its base model does not have"
        + OTHER_BASE
        + "; it has 'model.layers.0.mlp.down_proj.weight' [32, 64]"
    )


def test_transposed_factors(a: Path) -> None:
    rewrite(a, lambda t: t.update({k: v.T.contiguous() for k, v in t.items()}))
    assert refusal(a, MismatchError).startswith(
        "adapter a does not fit 'model.layers.0.mlp.down_proj.weight'"
    )


def test_only_one_factor(a: Path) -> None:
    rewrite(a, lambda t: t.pop("base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"))
    assert refusal(a) == (
        "adapter a has only lora_A for 'model.layers.0.self_attn.q_proj'\n"
        "  download the adapter again, or check how it was written"
    )


def test_the_same_factor_twice(a: Path) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A"
    rewrite(a, lambda t: t.update({f"{name}.default.weight": t[f"{name}.weight"].clone()}))
    assert refusal(a) == "adapter a has two lora_A for 'model.layers.0.self_attn.q_proj'"


def test_the_same_weight_under_two_names(a: Path) -> None:
    begin = "base_model.model.model."
    copies = {name.removeprefix(begin): 1 for name in load_file(a / "adapter_model.safetensors")}
    rewrite(a, lambda t: t.update({f"x.model.{name}": t[begin + name].clone() for name in copies}))
    assert refusal(a) == (
        "adapter a changes 'model.layers.0.mlp.down_proj.weight' under two names\n"
        "  download the adapter again, or check how it was written"
    )


def test_no_tensors(a: Path) -> None:
    rewrite(a, dict.clear)
    assert refusal(a) == "adapter a changes nothing: it has no tensors"


def test_rank_mismatch(a: Path) -> None:
    configure(a, r=16)
    assert refusal(a) == (
        "adapter a: adapter_config.json gives 'model.layers.0.mlp.down_proj' the rank 16, "
        "its lora_A has 4 rows\n"
        "  configuration and weights are of different adapters"
    )


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"r": None}, "the rank None and lora_alpha 8"),
        ({"r": 0}, "the rank 0 and lora_alpha 8"),
        ({"r": True}, "the rank True and lora_alpha 8"),
        ({"r": 4.0}, "the rank 4.0 and lora_alpha 8"),
        ({"r": "4"}, "the rank '4' and lora_alpha 8"),
        ({"r": {"q": 4}}, "the rank {'q': 4} and lora_alpha 8"),
        ({"lora_alpha": None}, "the rank 4 and lora_alpha None"),
        ({"lora_alpha": "8"}, "the rank 4 and lora_alpha '8'"),
        ({"lora_alpha": False}, "the rank 4 and lora_alpha False"),
        ({"lora_alpha": float("nan")}, "the rank 4 and lora_alpha nan"),
        ({"lora_alpha": float("inf")}, "the rank 4 and lora_alpha inf"),
        ({"lora_alpha": 10**400}, "the rank 4 and lora_alpha 1000"),
        ({"rank_pattern": {"down_proj": "x"}}, "the rank 'x' and lora_alpha 8"),
        ({"alpha_pattern": {"down_proj": None}}, "the rank 4 and lora_alpha None"),
    ],
)
def test_rank_and_alpha_that_are_no_numbers(a: Path, changes: dict[str, Any], shown: str) -> None:
    configure(a, **changes)
    message = refusal(a)
    assert message.startswith(f"adapter a: adapter_config.json gives 'model.layers.0.mlp.down_proj' {shown}")
    assert message.endswith("\n  r must be a positive integer and lora_alpha a number")


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
def test_broken_patterns(a: Path, key: str) -> None:
    configure(a, **{key: [1]})
    assert refusal(a) == f"adapter a: {key} of adapter_config.json is not a mapping"
    configure(a, **{key: {"(": 4}})
    assert refusal(a).startswith(
        f"adapter a: {key} of adapter_config.json has '(', which is not a valid regular expression: missing )"
    )
    pattern = r"((\w|[a-z_.0-9])+(\1|x)*)+y{2}"
    configure(a, **{key: {pattern: 4}})
    said = "takes too long to be looked for in 'model.layers.0.mlp.down_proj'"
    assert f"has {shown(pattern)}, which {said}" in within(20, lambda: refusal(a))


CARD = (
    "---\nlicense: mit\nbase_model:\n- org/Ancestor-7B\n- x/Other\ntags: [a]\n---\n# base_model: me/nobody\n"
)


@pytest.mark.parametrize(
    ("named", "folder", "fits"),
    [
        ("org/Llama-7B", "llama-7b", True),
        ("org/Llama-7B", "Llama-7B-Chat", False),
        ("/home/me/Llama-7B/", "Llama-7B", True),
        ("C:\\models\\Llama-7B", "Llama-7B", True),
        ("../Llama-7B", "Llama-7B", True),
        ("/x/models--org--Llama-7B/snapshots/0123", "Llama-7B", True),
        ("org/Llama--7B", "hub/models--org--Llama--7B/snapshots/0123", True),
        ("org/Llama", "hub/models--org--Llama--7B/snapshots/0123", False),
        ("unsloth/llama-7b-unsloth-bnb-4bit", "hub/models--org--Llama-7B/snapshots/0123", True),
        ("org/Llama-7B", "Llama-7B-GPTQ", True),
        ("org/Parent-7B", "mine", True),
        ("org/Ancestor-7B", "mine", True),
        ("x/other", "mine", True),
        ("me/nobody", "mine", False),
        ("", "mine", True),
        ("..", "mine", True),
        (None, "mine", True),
    ],
)
def test_adapters_of_another_base_earn_a_warning(
    named: str | None, folder: str, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base = tiny.decoder(Path(folder), _name_or_path="org/Parent-7B")
    (base / "README.md").write_text(CARD)
    adapter = tiny.adapter(Path("lora"), {"model.layers.0.self_attn.q_proj": (4, 4)})
    configure(adapter, base_model_name_or_path=named)
    expected = (
        f"model 'm+lora': adapter lora was trained on {named!r}, says its adapter_config.json; "
        f"it is laid over {folder}, which may be another model",
    )
    assert open_checkpoint("m+lora", base, (adapter,)).warnings == (() if fits else expected)


def test_adapters_over_a_file_of_their_base(tmp_path: Path) -> None:
    base = tiny.decoder(tmp_path / "m")
    file = (base / "model.safetensors").rename(tmp_path / "Llama-7B.Q4_K_M.safetensors")
    adapter = tiny.adapter(tmp_path / "lora", {"model.layers.0.self_attn.q_proj": (4, 4)})
    for named, fits in (("org/Llama-7B", True), ("org/Llama-8B", False)):
        configure(adapter, base_model_name_or_path=named)
        assert bool(open_checkpoint("m+lora", file, (adapter,)).warnings) is not fits


# ---- what is not plain LoRA


@pytest.mark.parametrize(
    ("changes", "used"),
    [
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication ([[0, 2], [1, 2]])"),
        ({"use_qalora": True}, "use_qalora (True)"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens ([1])"),
    ],
)
def test_other_kinds_are_refused_by_name(a: Path, changes: dict[str, Any], used: str) -> None:
    configure(a, **changes)
    message = refusal(a, FormatError)
    assert message.startswith(f"not supported yet: adapter a uses {used}\n")


@pytest.mark.parametrize("kind", ["IA3", "LOHA", "LOKR", "ADALORA", "OFT", "PREFIX_TUNING"])
def test_other_types_are_refused_by_name(a: Path, kind: str) -> None:
    configure(a, peft_type=kind)
    assert refusal(a, FormatError) == (
        f"not supported yet: adapter a is of type '{kind}'; only 'LORA' is\n"
        "  merge it into its base model with PEFT, and name the result instead"
    )


def test_initialisations_that_change_the_base_are_refused(base: Path, tmp_path: Path) -> None:
    """PEFT takes the first factors out of the base when it loads them: W + s·B·A is not their value."""
    adapter = train(base, tmp_path / "a", 5, init_lora_weights="pissa", target_modules=["q_proj"])
    with pytest.raises(FormatError) as caught:
        open_checkpoint("base+a", base, (adapter,))
    assert str(caught.value) == (
        f"not supported yet: adapter {adapter} has init_lora_weights 'pissa', "
        "which changes the base model too\n"
        "  save it with PEFT's path_initial_model_for_weight_conversion: that makes it a plain LoRA"
    )
    name = "model.layers.0.self_attn.q_proj.weight"
    with_peft = merged_by_peft(base, adapter)[name]
    configure(adapter, init_lora_weights=True)
    checkpoint = open_checkpoint("base+a", base, (adapter,))
    with open_files() as files:
        without = read(checkpoint.source(files, name), 0, with_peft.numel())
    assert (with_peft.flatten() - without).abs().max() > 0.01


@pytest.mark.parametrize("init", ["pissa_niter_4", "olora", "OLoRA", "corda", "loftq", "lora_ga"])
def test_their_names(a: Path, init: str) -> None:
    configure(a, init_lora_weights=init)
    assert f"has init_lora_weights '{init}'" in refusal(a, FormatError)


def test_factors_that_are_no_matrices_of_numbers(a: Path) -> None:
    name = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
    begin = "adapter a has other factors than matrices of numbers for 'model.layers.0.mlp.down_proj': lora_A "
    rewrite(a, lambda t: t.update({name: t[name].to(torch.int8)}))
    assert refusal(a).startswith(begin + "I8 [4, 64], lora_B F32 [32, 4]\n")
    rewrite(a, lambda t: t.update({name: t[name].float().view(-1)}))
    assert refusal(a).startswith(begin + "F32 [256], lora_B F32 [32, 4]\n")
    rewrite(a, lambda t: t.update({name: t[name].view(4, 64, 1, 1)}))
    assert "lora_A [4, 64, 1, 1] and lora_B [32, 4] against [32, 64]" in refusal(a, MismatchError)


def test_magnitudes_and_their_setting_belong_together(base: Path, tmp_path: Path) -> None:
    adapter = train(base, tmp_path / "d", 6, target_modules=["q_proj"], use_dora=True)
    configure(adapter, use_dora=False)
    assert "has a lora_magnitude_vector for 'model.layers.0.self_attn.q_proj', but use_dora is False" in (
        refusal(adapter, base=base)
    )
    configure(adapter, use_dora=True)
    rewrite(adapter, lambda t: [t.pop(k) for k in list(t) if "magnitude" in k])
    assert "has no lora_magnitude_vector for" in refusal(adapter, base=base)


def test_unknown_parts(a: Path) -> None:
    rewrite(a, lambda t: t.update({"base_model.model.model.norm.lora_diag": torch.ones(3)}))
    assert refusal(a, FormatError) == (
        "not supported yet: adapter a has tensor 'model.norm.lora_diag', which is no part of LoRA or DoRA"
    )


def test_quantised_base(a: Path) -> None:
    content = tiny.tensors(Path("base"))
    name = "model.layers.0.mlp.down_proj.weight"
    save_file(content | {name: content[name].to(torch.int8)}, "q.safetensors")
    with pytest.raises(FormatError) as caught:
        open_checkpoint("q+a", Path("q.safetensors"), (a,))
    assert str(caught.value) == (
        f"not supported yet: adapter a changes '{name}', which is stored as I8\n"
        "  lay it over the base model's original, unquantised weights"
    )


def test_missing_and_broken_files(a: Path) -> None:
    (a / "adapter_model.safetensors").unlink()
    assert refusal(a) == (
        "cannot read a/adapter_model.safetensors: No such file or directory\n"
        "  check the path, or download the file again"
    )
    config = a / "adapter_config.json"
    for content, what in (
        (b"", "is not valid JSON (line 1, column 1)"),
        (b"[]", "is not a mapping"),
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"r": \xff}', "is not text in UTF-8 (byte 6)"),
    ):
        config.write_bytes(content)
        assert refusal(a) == f"a/adapter_config.json {what}\n  repair the file or download it again"
    config.unlink()
    assert refusal(a) == (
        "adapter a has no adapter_config.json\n"
        "  what stands after a '+' must be a LoRA adapter in PEFT's format"
    )
    config.mkdir()
    assert refusal(a) == "cannot read a/adapter_config.json: Is a directory"


def test_model_in_the_place_of_an_adapter(a: Path) -> None:
    assert a.exists()
    assert refusal(Path("base")).startswith("adapter base has no adapter_config.json\n")


def test_lying_header(a: Path) -> None:
    path = a / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert refusal(a).startswith("a/adapter_model.safetensors is truncated")


def test_tokens_of_an_adapter_come_with_its_tokenizer(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    monkeypatch.chdir(tmp_path)
    model = LlamaForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(70)
    saved = ["embed_tokens", "lm_head"]
    peft = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=saved))
    peft.save_pretrained("a")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        Path("a", name).write_text("{}")
    merge({"merge_method": "passthrough", "models": [{"model": f"{base}+a"}]}, "out")
    assert json.loads(Path("out/config.json").read_text())["vocab_size"] == 70
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= {
        p.name for p in Path("out").iterdir()
    }
    assert not any(p.name.startswith("adapter") for p in Path("out").iterdir())


@pytest.mark.parametrize("order", list(permutations(("embedding", "head", "tokens"))))
def test_order_in_the_file_does_not_matter_where_a_head_comes_apart(
    order: tuple[str, ...], tmp_path: Path
) -> None:
    base = tiny.decoder(
        tmp_path / "base",
        0,
        hidden=4,
        layers=1,
        vocab=6,
        without=("lm_head.weight",),
        vocab_size=6,
        tie_word_embeddings=True,
    )
    embedding, head = "base_model.model.model.embed_tokens", "base_model.model.lm_head"
    tensors = {
        "embedding": {
            f"{embedding}.lora_embedding_A": torch.ones(1, 6),
            f"{embedding}.lora_embedding_B": torch.ones(4, 1),
        },
        "head": {f"{head}.modules_to_save.weight": torch.full((6, 4), 7.0)},
        "tokens": {f"{embedding}.token_adapter.trainable_tokens_delta": torch.full((1, 4), 9.0)},
    }
    folder = tmp_path / "adapter"
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "modules_to_save": ["lm_head"]}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"trainable_token_indices": [2]}))
    torch.save({k: v for part in order for k, v in tensors[part].items()}, folder / "adapter_model.bin")
    checkpoint = open_checkpoint("m", base, (folder,))
    with open_files() as files:
        values = {name: read_all(files, checkpoint[name]) for name in checkpoint}
    wanted = tiny.tensors(base)["model.embed_tokens.weight"] + 1
    wanted[2] = 9
    assert torch.equal(values["model.embed_tokens.weight"], wanted)
    assert torch.equal(values["lm_head.weight"], torch.full((6, 4), 7.0))
    assert checkpoint.config["tie_word_embeddings"] is False


def test_a_resized_embedding_that_was_trained_under_a_tied_head(tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    base = tiny.llama(tmp_path / "base", 0, layers=1, hidden=16)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))

    def resized() -> Any:
        model = AutoModelForCausalLM.from_pretrained(base)
        model.resize_token_embeddings(66, mean_resizing=False)
        return model

    settings = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    model = get_peft_model(resized(), settings)
    torch.nn.init.normal_(model.base_model.model.model.embed_tokens.weight)
    model.save_pretrained(tmp_path / "lora", save_embedding_layers=True)
    loaded = PeftModel.from_pretrained(resized(), tmp_path / "lora").base_model.model
    checkpoint = open_checkpoint("m", base, (tmp_path / "lora",))
    assert checkpoint.config["vocab_size"] == 66
    assert checkpoint.config["tie_word_embeddings"] is False
    with open_files() as files:
        for name, expected in (
            ("model.embed_tokens.weight", loaded.model.embed_tokens.weight),
            ("lm_head.weight", loaded.lm_head.weight),
        ):
            assert torch.equal(read_all(files, checkpoint[name]), expected.detach())
