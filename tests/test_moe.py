"""Mixtures of experts: they load in transformers, compute what they should, and route as was asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers

import tiny
from command import run
from meldkit.errors import MeldError, MismatchError, NotSupportedError, RecipeError
from meldkit.tools.moe.config import load_mixture

WORDS = ["<s>", "</s>", "<unk>", "code", "python", "loop", "poem", "rose", "love", "sum", "prime", "root"]
SIZES: dict[str, Any] = {
    "vocab_size": 24,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
LIBRARY: Any = transformers
PROMPTS = ["python loop", "poem rose love", "sum prime root", "code"]


def dense(folder: Path, kind: str, seed: int, **changed: Any) -> Path:
    """A dense model of random weights, with a tokenizer of a few words."""
    torch.manual_seed(seed)
    config = getattr(LIBRARY, f"{kind}Config")(**(SIZES | changed))
    model = getattr(LIBRARY, f"{kind}ForCausalLM")(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("norm.weight", "bias")):  # not what they begin with
                weight.add_(0.1 * torch.randn_like(weight))
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = LIBRARY.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(folder)
    return folder


def logits(folder: Path | str, ids: list[int]) -> torch.Tensor:
    model, loading = LIBRARY.AutoModelForCausalLM.from_pretrained(
        str(folder), dtype=torch.float32, output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    with torch.inference_mode():
        return model.eval()(input_ids=torch.tensor([ids])).logits[0]


@pytest.fixture
def make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Any]:
    """Runs the command on a configuration given as data; its JSON."""
    monkeypatch.chdir(tmp_path)

    def made(config: dict[str, Any], *options: str, out: str = "out") -> dict[str, Any]:
        Path("moe.yml").write_text(yaml.safe_dump(config, sort_keys=False))
        done = run(capsys, "moe", "moe.yml", out, "--json", *options)
        assert done.status == 0, done.err
        return json.loads(done.out)

    return made


def experts(*models: str, **more: Any) -> list[dict[str, Any]]:
    return [
        {"source_model": model, "positive_prompts": [PROMPTS[i % len(PROMPTS)]], **more}
        for i, model in enumerate(models)
    ]


IDS = [0, 4, 5, 9, 11, 3, 7]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("Llama", {}),
        ("Mistral", {"sliding_window": 3}),
        ("Llama", {"tie_word_embeddings": True}),
        ("Phi3", {}),
        ("Gemma", {"head_dim": 8}),
        ("Qwen3", {"head_dim": 8}),
    ],
)
def test_equal_experts_are_the_dense_model(
    kind: str, changed: dict[str, Any], fused: bool, make: Callable[..., Any]
) -> None:
    dense(Path("base"), kind, 0, **changed)
    config = {"base_model": "base", "gate_mode": "random", "experts": [{"source_model": "base"}] * 4}
    found = make({**config, "fused": fused})
    assert any("all experts are the same" in warning for warning in found["warnings"])
    torch.testing.assert_close(logits("out", IDS), logits("base", IDS), atol=2e-5, rtol=1e-4)
    names = tiny.tensors(Path("out"))
    assert any(name.endswith("experts.gate_up_proj") for name in names) is fused


@pytest.mark.parametrize(
    ("kind", "architecture"), [("Qwen2", ""), ("Llama", "qwen"), ("Llama", "glm4"), ("Qwen3", "glm4")]
)
def test_shared_experts_are_added(kind: str, architecture: str, make: Callable[..., Any]) -> None:
    """Of the same weights twice, with the output of each halved: the dense model again."""
    changed = {"head_dim": 8} if kind == "Qwen3" else {}
    dense(Path("base"), kind, 0, **changed)
    gated = architecture in ("", "qwen")
    shared: dict[str, Any] = {"source_model": "base", "residual_scale": 1.0 if gated else 0.5}
    config = {
        "base_model": "base",
        "gate_mode": "random",
        "experts": [{"source_model": "base", "residual_scale": 0.5}] * 4,
        "shared_experts": [shared],
        **({"architecture": architecture} if architecture else {}),
    }
    make(config)
    if gated:
        # A gate of zeros lets one half through.
        weights = tiny.tensors(Path("out"))
        gates = [name for name in weights if name.endswith("shared_expert_gate.weight")]
        assert len(gates) == 2
        tiny.stored(Path("out"), weights | {name: torch.zeros_like(weights[name]) for name in gates})
    torch.testing.assert_close(logits("out", IDS), logits("base", IDS), atol=2e-5, rtol=1e-4)


def test_experts_are_those_of_their_models(make: Callable[..., Any]) -> None:
    for seed, name in enumerate(("base", "a", "b")):
        dense(Path(name), "Llama", seed)
    config = {"base_model": "base", "experts": experts("a", "b"), "experts_per_token": 1}
    found = make(config)
    merged = tiny.tensors(Path("out"))
    for number, name in enumerate("ab"):
        source = tiny.tensors(Path(name))
        for leaf, other in (("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")):
            for layer in range(2):
                own = merged[f"model.layers.{layer}.block_sparse_moe.experts.{number}.{leaf}.weight"]
                assert torch.equal(own, source[f"model.layers.{layer}.mlp.{other}.weight"])
    base = tiny.tensors(Path("base"))
    assert all(torch.equal(merged[n], base[n]) for n in base if ".mlp." not in n)
    assert found["experts"] == ["a", "b"]
    model = LIBRARY.AutoModelForCausalLM.from_pretrained("out")
    assert model.generate(torch.tensor([IDS]), max_new_tokens=5, do_sample=False).shape == (1, 12)


@pytest.mark.parametrize(
    ("mode", "layers"), [("hidden", 2), ("hidden_last", 2), ("hidden_avg", 2), ("hidden", 12)]
)
def test_gates_are_hidden_states(mode: str, layers: int, make: Callable[..., Any]) -> None:
    """By a reference that reads one prompt at a time. In files, layer 10 comes before layer 2."""
    for seed, name in enumerate(("base", "a")):
        dense(Path(name), "Llama", seed, num_hidden_layers=layers)
    config = {
        "base_model": "base",
        "gate_mode": mode,
        "experts": [
            {"source_model": "a", "positive_prompts": PROMPTS[:3]},
            {"source_model": "base", "positive_prompts": PROMPTS[3:], "negative_prompts": PROMPTS[:2]},
        ],
    }
    make(config)
    model = LIBRARY.AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32).eval()

    def state(prompt: str) -> np.ndarray:
        ids = [0, *(WORDS.index(word) for word in prompt.split())]
        with torch.inference_mode():
            states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[:-1]
        rows = torch.stack(states)[:, 0]
        return (rows.mean(1) if mode == "hidden_avg" else rows[:, -1]).numpy()

    def mean(prompts: list[str]) -> np.ndarray:
        return np.mean([state(prompt) for prompt in prompts], axis=0)

    wanted = np.stack([mean(PROMPTS[:3]), mean(PROMPTS[3:]) - mean(PROMPTS[:2])], axis=1)
    wanted /= np.linalg.norm(wanted, axis=-1, keepdims=True)
    merged = tiny.tensors(Path("out"))
    for layer in range(layers):
        gate = merged[f"model.layers.{layer}.block_sparse_moe.gate.weight"].numpy()
        np.testing.assert_allclose(gate, wanted[layer], atol=2e-6)


def deepseek(**changed: Any) -> dict[str, Any]:
    """Sizes of a small DeepSeek-V3."""
    return {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 0,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 4,
        "num_key_value_heads": 4,
        **changed,
    }


def test_gates_of_a_mixture_whose_first_layer_is_dense(make: Callable[..., Any]) -> None:
    """A new expert's gate is what its own layer gets, not the one before it."""
    dense(Path("base"), "DeepseekV3", 0, num_hidden_layers=3, **deepseek(first_k_dense_replace=1))
    more = [{"source_model": "base", "expert": "all"}]
    more += [{"source_model": "base", "expert": 0, "positive_prompts": [PROMPTS[0]]}]
    make({"base_model": "base", "experts": more})
    model = LIBRARY.AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32).eval()
    ids = [0, *(WORDS.index(word) for word in PROMPTS[0].split())]
    with torch.inference_mode():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    merged = tiny.tensors(Path("out"))
    for layer in (1, 2):
        gate = merged[f"model.layers.{layer}.mlp.gate.weight"]
        assert len(gate) == 5
        cosine = torch.nn.functional.cosine_similarity(gate[4], states[layer][0, -1], dim=0)
        assert cosine.item() == pytest.approx(1, abs=1e-5)


def test_groups_of_experts_stay_equal(make: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    dense(Path("base"), "DeepseekV3", 0, **deepseek(n_group=2))
    two = {"base_model": "base", "experts": [{"source_model": "base", "expert": [0, 1]}]}
    Path("moe.yml").write_text(yaml.safe_dump(two))
    done = run(capsys, "moe", "moe.yml", "out")
    assert done.status == 3
    assert "2 experts do not make the 2 equal groups of 'base' (n_group)" in done.err
    make({"base_model": "base", "experts": [{"source_model": "base", "expert": [3, 2, 1, 0]}]})


def test_cheap_embeddings_route_as_computed_by_hand(make: Callable[..., Any]) -> None:
    """Embeddings that stand upright on each other: each prompt goes to its own expert, in every layer."""
    for seed, name in enumerate(("base", "a", "b")):
        dense(Path(name), "Llama", seed)
    weights = tiny.tensors(Path("base"))
    embedding = torch.zeros(24, 16)
    for word, axis in (("code", 0), ("python", 1), ("poem", 2), ("rose", 3)):
        embedding[WORDS.index(word), axis] = 2.0
    tiny.stored(Path("base"), weights | {"model.embed_tokens.weight": embedding})
    config = {
        "base_model": "base",
        "gate_mode": "cheap_embed",
        "experts_per_token": 1,
        "experts": [
            {"source_model": "a", "positive_prompts": ["code python"]},
            {"source_model": "b", "positive_prompts": ["poem", "rose"]},
        ],
    }
    found = make(config)
    gate = tiny.tensors(Path("out"))["model.layers.1.block_sparse_moe.gate.weight"]
    half = 0.5**0.5
    expected = torch.zeros(2, 16)
    expected[0, :2] = half
    expected[1, 2:4] = half
    torch.testing.assert_close(gate, expected)
    assert [(r["prompt"], r["first"], r["shares"]) for r in found["routing"]] == [
        ("code python", [0, 0], [1.0, 0.0]),
        ("poem", [1, 1], [0.0, 1.0]),
        ("rose", [1, 1], [0.0, 1.0]),
    ]
    assert not any("gate" in warning for warning in found["warnings"])


def test_page_shows_where_prompts_go(make: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    for seed, name in enumerate(("base", "a", "b")):
        dense(Path(name), "Llama", seed)
    config = {"base_model": "base", "experts": experts("a", "b")}
    found = make(config, "--plan", "--html", "report.html")
    text = Path("report.html").read_text()
    assert "The expert that a layer likes best" in text
    assert all(prompt in text for prompt in PROMPTS[:2])
    assert len(found["routing"]) == 2
    assert not Path("out").exists()
    assert run(capsys, "moe", "moe.yml", "--plan").status == 0
    assert "Missing argument 'OUT'" in run(capsys, "moe", "moe.yml").err
    assert "'meldkit moe' reads such files" in run(capsys, "plan", "moe.yml").err


@pytest.mark.parametrize("shared", [0, 1])
def test_deepseek_kind_has_the_names_of_its_code(shared: int, make: Callable[..., Any]) -> None:
    """transformers has none for it; on the Hub, modeling_deepseek.py of deepseek-moe-16b-base has."""
    for seed, name in enumerate(("base", "a", "b", "c")):
        dense(Path(name), "Llama", seed)
    config: dict[str, Any] = {
        "base_model": "base",
        "architecture": "deepseek",
        "gate_mode": "random",
        "experts": experts("a", "b"),
    }
    make(config | ({"shared_experts": [{"source_model": "c"}]} if shared else {}))
    merged, settings = tiny.tensors(Path("out")), json.loads(Path("out/config.json").read_text())
    layer = "model.layers.1.mlp."
    names = {f"{layer}experts.{e}.{leaf}_proj.weight" for e in range(2) for leaf in ("gate", "up", "down")}
    names |= {f"{layer}shared_experts.{leaf}_proj.weight" for leaf in ("gate", "up", "down") if shared}
    assert {name for name in merged if name.startswith(layer)} == names | {f"{layer}gate.weight"}
    assert (settings["model_type"], settings["architectures"]) == ("deepseek", ["DeepseekForCausalLM"])
    assert settings["n_routed_experts"] == 2
    assert (settings["n_shared_experts"] or 0) == shared
    for name, source in (("experts.1", "b"), *((("shared_experts", "c"),) if shared else ())):
        expected = tiny.tensors(Path(source))[f"{layer}up_proj.weight"]
        assert torch.equal(merged[f"{layer}{name}.up_proj.weight"], expected)


def test_gates_that_are_alike_are_warned_of(make: Callable[..., Any]) -> None:
    for seed, name in enumerate(("base", "a", "b")):
        dense(Path(name), "Llama", seed)
    config = {
        "base_model": "base",
        "experts": [
            {"source_model": "a", "positive_prompts": ["code", "python"]},
            {"source_model": "b", "positive_prompts": ["python", "code"]},
        ],
    }
    warnings = " ".join(make(config)["warnings"])
    assert "the gates of all layers are hard to tell apart" in warnings
    assert "experts 0 and 1 have nearly the same gate in all layers" in warnings


def test_noise_and_scale(make: Callable[..., Any]) -> None:
    dense(Path("base"), "Llama", 0, intermediate_size=2000)
    entry = {"source_model": "base", "noise_scale": 0.1, "residual_scale": 0.5}
    make({"base_model": "base", "gate_mode": "uniform_random", "experts": [entry, dict(entry)]})
    merged, base = tiny.tensors(Path("out")), tiny.tensors(Path("base"))
    first, second = (
        {leaf: merged[f"model.layers.0.block_sparse_moe.experts.{e}.{leaf}.weight"] for leaf in ("w1", "w2")}
        for e in range(2)
    )
    for leaf, other, scale in (("w1", "gate_proj", 1.0), ("w2", "down_proj", 0.5)):
        noise = first[leaf] / scale - base[f"model.layers.0.mlp.{other}.weight"]
        assert noise.std().item() == pytest.approx(0.1, rel=0.02)
        assert abs(noise.mean().item()) < 0.005
        assert not torch.equal(first[leaf], second[leaf])
    bound = merged["model.layers.0.block_sparse_moe.gate.weight"].abs().max().item()
    assert 0.15 < bound <= 0.25


def test_same_bytes_again(make: Callable[..., Any]) -> None:
    dense(Path("base"), "Llama", 0)
    config = {
        "base_model": "base",
        "gate_mode": "random",
        "experts": [{"source_model": "base", "noise_scale": 0.1}] * 2,
    }
    one, other = (make(config, out=out)["plan"] for out in ("one", "other"))
    assert one == other
    assert Path("one/model.safetensors").read_bytes() == Path("other/model.safetensors").read_bytes()
    make(config, "--random-seed", "1", out="third")
    expert = "model.layers.0.block_sparse_moe.experts.0.w1.weight"
    assert not torch.equal(tiny.tensors(Path("third"))[expert], tiny.tensors(Path("one"))[expert])


def test_everything_has_the_types_of_the_base(make: Callable[..., Any]) -> None:
    """Whatever those of the experts are; and the code of a dense model makes no mixture."""
    for seed, name in enumerate(("base", "a")):
        dense(Path(name), "Llama", seed)
    weights = {name: tensor.bfloat16() for name, tensor in tiny.tensors(Path("base")).items()}
    tiny.stored(Path("base"), weights)
    config = json.loads(Path("base/config.json").read_text())
    code = {"auto_map": {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}}
    Path("base/config.json").write_text(json.dumps(config | code))
    for fused in (False, True):
        out = f"out-{fused}"
        make(
            {"base_model": "base", "gate_mode": "random", "experts": experts("a", "base"), "fused": fused},
            out=out,
        )
        assert {tensor.dtype for tensor in tiny.tensors(Path(out)).values()} == {torch.bfloat16}
        assert "auto_map" not in json.loads(Path(out, "config.json").read_text())
    own = tiny.tensors(Path("out-False"))["model.layers.1.block_sparse_moe.experts.0.w2.weight"]
    assert torch.equal(own, tiny.tensors(Path("a"))["model.layers.1.mlp.down_proj.weight"].bfloat16())
    make(
        {"base_model": "base", "gate_mode": "random", "experts": experts("a", "base"), "dtype": "float32"},
        out="wide",
    )
    wide = tiny.tensors(Path("wide"))["model.layers.1.block_sparse_moe.experts.0.w2.weight"]
    assert torch.equal(wide, tiny.tensors(Path("a"))["model.layers.1.mlp.down_proj.weight"])


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Qwen3"])
def test_upcycled(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where a kind of mixture has a shared expert, that adds nothing."""
    monkeypatch.chdir(tmp_path)
    dense(Path("base"), kind, 0)
    done = run(capsys, "moe", "--upcycle", "4", "base", "out", "--experts-per-token", "3")
    assert done.status == 0, done.err
    assert "all experts are the same" in done.err
    config = json.loads(Path("out/config.json").read_text())
    count = config.get("num_local_experts", config.get("num_experts"))
    assert (count, config["num_experts_per_tok"]) == (4, 3)
    torch.testing.assert_close(logits("out", IDS), logits("base", IDS), atol=2e-5, rtol=1e-4)
    mixture, _ = load_mixture(Path("out/meldkit.yml"))
    assert len(mixture.experts) == 4
    parted = run(capsys, "moe", "--upcycle", "2", "base", "parted", "--noise-scale", "0.01")
    assert parted.status == 0
    assert "all experts are the same" not in parted.err
    # The recorded file gives the same noise.
    again = run(capsys, "moe", "parted/meldkit.yml", "again", "--noise-scale", "1")
    assert again.status == 0
    assert "--noise-scale has no effect without --upcycle" in again.err
    assert Path("again/model.safetensors").read_bytes() == Path("parted/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("base", "--upcycle", "1"), "--upcycle is 1; a mixture has 2 experts or more"),
        (("base", "--upcycle", "2", "--experts-per-token", "0"), "--experts-per-token is 0"),
        (("base", "--upcycle", "2", "--noise-scale", "-1"), "--noise-scale is -1"),
        (("base", "--upcycle", "2", "--noise-scale", "nan"), "--noise-scale is nan"),
        (("mixture", "--upcycle", "2"), "mixture is a mixture of 2 experts already"),
        (("moe.yml", "--upcycle", "2"), "moe.yml is no model"),
        (("base",), "add --upcycle with their number"),
    ],
)
def test_what_cannot_be_upcycled(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    dense(Path("base"), "Llama", 0)
    dense(Path("mixture"), "Mixtral", 0, num_local_experts=2)
    Path("moe.yml").write_text(yaml.safe_dump({"base_model": "base", "experts": experts("base")}))
    first, *options = arguments
    done = run(capsys, "moe", first, "out", *options)
    assert done.status == 2
    assert message in done.err
    assert not Path("out").exists()


@pytest.mark.parametrize("fused", [False, True])
def test_experts_are_added_to_a_mixture_and_dropped(fused: bool, make: Callable[..., Any]) -> None:
    for seed, name in enumerate(("base", "a", "b")):
        dense(Path(name), "Llama", seed)
    make({"base_model": "base", "experts": experts("a", "b"), "fused": fused}, out="two")
    more = [{"source_model": "two", "expert": "all"}, *experts("base")]
    found = make({"base_model": "two", "experts": more}, out="three")
    assert found["experts"] == ["two, expert 0", "two, expert 1", "base"]
    three, two = tiny.tensors(Path("three")), tiny.tensors(Path("two"))
    assert set(three) >= {name for name in two if "experts" not in name}
    config = json.loads(Path("three/config.json").read_text())
    assert (config["num_local_experts"], config["model_type"]) == (3, "mixtral")
    gate = next(name for name in three if name.startswith("model.layers.1.") and name.endswith("gate.weight"))
    assert torch.equal(three[gate][:2], two[gate])
    assert three[gate][2].norm().item() == pytest.approx(1, abs=1e-4)
    every = [{"source_model": "three", "expert": "all"}]
    make({"base_model": "three", "experts_per_token": 1, "experts": every}, out="one")
    assert json.loads(Path("one/config.json").read_text())["num_experts_per_tok"] == 1
    assert config["num_experts_per_tok"] == 2
    make({"base_model": "three", "experts": [{"source_model": "three", "expert": [0, 1]}]}, out="again")
    again = tiny.tensors(Path("again"))
    assert again.keys() == two.keys()
    assert all(torch.equal(again[name], two[name]) for name in two)


@pytest.mark.parametrize("kind", ["Olmoe", "Qwen2Moe", "DeepseekV3", "Mixtral"])
def test_experts_of_other_mixtures_are_chosen(kind: str, make: Callable[..., Any]) -> None:
    """Of four experts the last two, in either order of taking them: what only these two can compute."""
    more: dict[str, Any] = {
        "Olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
        "Qwen2Moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
        "DeepseekV3": deepseek(),
        "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    }[kind]
    dense(Path("base"), kind, 0, **more)
    make({"base_model": "base", "experts": [{"source_model": "base", "expert": [2, 3]}]})
    model = LIBRARY.AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("gate.weight") and weight.shape[0] == 4:
                # Nothing goes to the first two.
                weight[:2] = -weight[2:] * 0 - 100 * weight[2:].sum(0)
    merged = LIBRARY.AutoModelForCausalLM.from_pretrained("out", dtype=torch.float32)
    config = merged.config
    assert 2 in (getattr(config, k, None) for k in ("num_local_experts", "num_experts", "n_routed_experts"))
    state = merged.state_dict()
    source = LIBRARY.AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32).state_dict()
    for name, tensor in state.items():
        own = source[name]
        assert torch.equal(tensor, own if own.shape == tensor.shape else own[2:]), name


def test_result_is_verified_and_says_how_it_was_made(
    make: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, name in enumerate(("base", "a", "b")):
        dense(Path(name), "Llama", seed)
    make({"base_model": "base", "experts": experts("a", "b")})
    assert run(capsys, "verify", "out").status == 0
    assert "`meldkit moe`: 2 experts" in Path("out/README.md").read_text()
    again = run(capsys, "reproduce", "out")
    assert (again.status, again.err) == (0, "")
    record = json.loads(Path("out/meldkit.json").read_text())
    assert [model["model"] for model in record["models"]] == ["base", "a", "b"]
    Path("base/tokenizer.json").write_text("{}")
    damaged = run(capsys, "reproduce", "out")
    assert damaged.status == 4
    assert "settings of 'base' are not what they were: tokenizer.json is another" in " ".join(
        damaged.err.split()
    )


BAD: dict[str, tuple[dict[str, Any], type[MeldError], str]] = {
    "prompts missing": (
        {"experts": [{"source_model": "a"}, {"source_model": "base"}]},
        RecipeError,
        "expert 'a' has no positive_prompts",
    ),
    "same prompts": (
        {"experts": [{"source_model": m, "positive_prompts": ["code"]} for m in ("a", "base")]},
        RecipeError,
        "all experts have the same prompts",
    ),
    "too few experts": (
        {"experts": experts("a", "base"), "experts_per_token": 3},
        RecipeError,
        "experts_per_token is 3, but there are 2 experts",
    ),
    "other sizes": (
        {"experts": experts("a", "wide")},
        MismatchError,
        "is [16, 32], that of the base 'base' [16, 24]",
    ),
    "other depth": ({"experts": experts("a", "flat")}, MismatchError, "it lacks model.layers.1"),
    "deeper": (
        {"experts": experts("a", "deep")},
        MismatchError,
        "'deep' has 3 layers, the base 'base' has 2",
    ),
    "another activation": (
        {"experts": experts("a", "gelu")},
        MismatchError,
        "expert 'gelu' has hidden_act gelu, the base 'base' has silu",
    ),
    "another kind of model": (
        {"experts": experts("a", "qwen")},
        MismatchError,
        "mixtral: not from models of type 'qwen2', as 'qwen' is",
    ),
    "noise below 0": (
        {"experts": [{"source_model": "a", "positive_prompts": ["x"], "noise_scale": -1}, *experts("base")]},
        RecipeError,
        "'noise_scale' is -1",
    ),
    "unknown gates": ({"experts": experts("a"), "gate_mode": "hiden"}, RecipeError, "did you mean 'hidden'?"),
    "unknown architecture": (
        {"experts": experts("a", "base"), "architecture": "mixtrall"},
        RecipeError,
        "unknown architecture 'mixtrall'",
    ),
    "architecture that does not fit": (
        {"experts": experts("a", "base"), "architecture": "qwen3"},
        MismatchError,
        "qwen3 moe: not from models of type 'llama', as 'base' is, but qwen3",
    ),
    "no shared expert": (
        {"experts": experts("a", "base"), "architecture": "glm4"},
        MismatchError,
        "glm4 moe: 'shared_experts' has 0 entries, it takes 1",
    ),
    "experts of a dense model": (
        {"experts": [{"source_model": "a", "expert": 0}, *experts("base")]},
        MismatchError,
        "'a' is dense and has no experts to choose from",
    ),
    "unknown key": (
        {"experts": [{"source_model": "a", "positive_prompt": "x"}]},
        RecipeError,
        "did you mean 'positive_prompts'?",
    ),
    "kind of a base that is a mixture": (
        {
            "base_model": "mixture",
            "architecture": "qwen",
            "experts": [{"source_model": "mixture", "expert": 0}],
        },
        NotSupportedError,
        "whose kind and storage stay as they are",
    ),
    "no such kind of model": (
        {"base_model": "gpt", "experts": [{"source_model": "gpt", "positive_prompts": ["a"]}]},
        MismatchError,
        "no feed-forward layers of gate_proj",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    others: dict[str, dict[str, Any]] = {
        "wide": {"intermediate_size": 32},
        "flat": {"num_hidden_layers": 1},
        "deep": {"num_hidden_layers": 3},
        "gelu": {"hidden_act": "gelu"},
    }
    for model in ("base", "a", *others):
        dense(Path(model), "Llama", 0, **others.get(model, {}))
    dense(Path("qwen"), "Qwen2", 0)
    tiny.gpt2(Path("gpt"), 0)
    dense(Path("mixture"), "Mixtral", 0, num_local_experts=2)
    config, error, message = BAD[name]
    Path("moe.yml").write_text(yaml.safe_dump({"base_model": "base"} | config))
    done = run(capsys, "moe", "moe.yml", "out")
    assert message in done.err
    assert done.status == error.exit_status
    assert not Path("out").exists()


@pytest.mark.parametrize("more", [("--plan",), ("--overwrite",)])
def test_inputs_are_not_written_to(
    more: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "a")):
        dense(Path(name), "Llama", seed)
    Path("moe.yml").write_text(yaml.safe_dump({"base_model": "base", "experts": experts("a", "base")}))
    done = run(capsys, "moe", "moe.yml", "a", *more)
    assert done.status == 2
    assert "a is the folder of the input 'a'" in done.err


def test_biases_have_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from meldkit.checkpoint import open_model
    from meldkit.recipe import ModelRef
    from meldkit.tools.moe.dense import read_dense

    monkeypatch.chdir(tmp_path)
    dense(Path("biased"), "Llama", 0, mlp_bias=True)
    with pytest.raises(NotSupportedError, match=r"mlp\.\w+_proj\.bias, for which mixtures have no place"):
        read_dense(open_model(ModelRef("biased")))
