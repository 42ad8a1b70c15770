"""Adapters merged into an adapter: what comes out adds to a model what it should, in PEFT too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny
from command import run
from meldkit import merge, plan
from meldkit.errors import CheckpointError, FormatError, MismatchError, RecipeError
from meldkit.options import MergeOptions

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

LIBRARY: Any = transformers
PEFT: Any = peft
LINALG: Any = torch.linalg
PLAIN = MergeOptions(write_model_card=False, quiet=True)
IDS = torch.tensor([[3, 14, 15, 9, 2, 6]])


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.llama(Path("base"), 0, hidden=16, layers=2)


def adapter(
    name: str, seed: int, *, targets: Sequence[str] = ("q_proj", "v_proj"), rank: int = 2, **more: Any
) -> None:
    """As PEFT saves it, with random factors."""
    torch.manual_seed(seed)
    model = LIBRARY.AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32)
    config = PEFT.LoraConfig(r=rank, lora_alpha=2 * rank + 1, target_modules=list(targets), **more)
    tuned = PEFT.get_peft_model(model, config)
    for key, value in tuned.named_parameters():
        if "lora_" in key:
            value.data = torch.randn_like(value) * 0.3
        elif value.requires_grad:
            value.data += 0.1 * torch.randn_like(value)
    tuned.save_pretrained(name, save_embedding_layers="embed_tokens" in targets)


def deltas(name: str) -> dict[str, Tensor]:
    """What an adapter adds to each weight, from its files."""
    config = json.loads(Path(name, "adapter_config.json").read_text())
    tensors = load_file(Path(name, "adapter_model.safetensors"))
    result: dict[str, Tensor] = {}
    for key, a in tensors.items():
        if "lora_A" not in key and "embedding_A" not in key:
            continue
        module = key.removeprefix("base_model.model.").rpartition(".lora_")[0]
        b = tensors[key.replace("lora_A", "lora_B").replace("embedding_A", "embedding_B")]
        rank = config["rank_pattern"].get(module, config["r"])
        alpha = config["alpha_pattern"].get(module, config["lora_alpha"])
        scale = alpha / (rank**0.5 if config["use_rslora"] else rank)
        assert len(a) == rank
        result[module] = scale * b.double() @ a.double()
    return result


def recipe(method: str, weights: Mapping[str, float], **parameters: Any) -> dict[str, Any]:
    models = [{"model": name, "parameters": {"weight": weight}} for name, weight in weights.items()]
    return {"merge_method": method, "models": models, "parameters": parameters}


def logits(adapter_folder: str) -> Tensor:
    model = LIBRARY.AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32)
    with torch.inference_mode():
        return PEFT.PeftModel.from_pretrained(model, adapter_folder).eval()(IDS).logits


@pytest.mark.parametrize(("method", "total"), [("linear", 1.5), ("cat", 1.0)])
def test_sums_are_exact(method: str, total: float) -> None:
    """Of the products, whatever ranks, scales and modules the adapters have."""
    adapter("a", 1)
    adapter("b", 2, targets=("q_proj", "down_proj"), rank=3, use_rslora=True)
    merge(recipe(method, {"a": 2.0, "b": -0.5}), "out", PLAIN)
    a, b, out = deltas("a"), deltas("b"), deltas("out")
    assert out.keys() == a.keys() | b.keys()
    for module, found in out.items():
        expected = (2 * a.get(module, torch.tensor(0)) - 0.5 * b.get(module, torch.tensor(0))) / total
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    config = json.loads(Path("out/adapter_config.json").read_text())
    assert (config["r"], config["base_model_name_or_path"]) == (5, "base")


def test_averaging_factors_is_another_thing() -> None:
    """A = [1, 0], B = [1, 0] and A = [0, 1], B = [0, 1]: the sum is the identity, not a matrix of ones."""
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}
    settings |= {
        "base_model_name_or_path": "base",
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": False,
    }
    prefix = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    for name, one in (("a", [1.0, 0]), ("b", [0.0, 1])):
        Path(name).mkdir()
        x = torch.tensor([one])
        save_file(
            {f"{prefix}A.weight": x, f"{prefix}B.weight": x.T.clone()},
            Path(name, "adapter_model.safetensors"),
        )
        Path(name, "adapter_config.json").write_text(json.dumps(settings))
    for method in ("cat", "svd"):
        parameters = {"rank": 2} if method == "svd" else {}
        merge(recipe(method, {"a": 1, "b": 1}, **parameters), method, PLAIN)
        (found,) = deltas(method).values()
        torch.testing.assert_close(found.float(), torch.eye(2), atol=1e-6, rtol=0)


def test_loads_in_peft_and_over_the_base() -> None:
    adapter("a", 1)
    adapter("b", 2, targets=("q_proj", "up_proj", "o_proj"), rank=4)
    merge(recipe("linear", {"a": 0.3, "b": 0.7}), "out", PLAIN)
    merge({"merge_method": "passthrough", "models": [{"model": "base+out"}]}, "whole", PLAIN)
    whole = recipe("linear", {"base+a": 0.3, "base+b": 0.7})
    merge(whole, "expected", PLAIN)
    expected = tiny.tensors(Path("expected"))
    for name, tensor in tiny.tensors(Path("whole")).items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=1e-5)
    model = LIBRARY.AutoModelForCausalLM.from_pretrained("expected", dtype=torch.float32)
    with torch.inference_mode():
        torch.testing.assert_close(logits("out"), model.eval()(IDS).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_svd_is_the_nearest_of_its_rank(rank: int) -> None:
    adapter("a", 1)
    adapter("b", 2, rank=1)
    merge(recipe("svd", {"a": 1.0, "b": 2.0}, rank=rank), "out", PLAIN)
    a, b, out = deltas("a"), deltas("b"), deltas("out")
    for module, found in out.items():
        u, s, vt = LINALG.svd(a[module] + 2 * b[module], full_matrices=False)
        nearest = (u[:, :rank] * s[:rank]) @ vt[:rank]
        torch.testing.assert_close(found, nearest, atol=1e-5, rtol=1e-4)


def test_methods_of_task_vectors() -> None:
    """ties of products is ties of models that were nothing before."""
    adapter("a", 1)
    adapter("b", 2)
    parameters = {"density": 0.5}
    merge(recipe("ties", {"a": 1.0, "b": 0.5}, rank=16, **parameters), "out", PLAIN)
    names = {f"{module}.weight": shape for module, shape in ((m, d.shape) for m, d in deltas("a").items())}
    for name in ("a", "b"):
        own = {f"{module}.weight": delta.float().contiguous() for module, delta in deltas(name).items()}
        tiny.stored(Path(f"{name}-products"), own)
    tiny.stored(Path("nothing"), {name: torch.zeros(shape) for name, shape in names.items()})
    merge(
        recipe("ties", {"a-products": 1.0, "b-products": 0.5}, **parameters) | {"base_model": "nothing"},
        "expected",
        PLAIN,
    )
    expected = tiny.tensors(Path("expected"))
    for module, found in deltas("out").items():
        torch.testing.assert_close(found.float(), expected[f"{module}.weight"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "task_arithmetic", "della", "sce"])
def test_further_methods(method: str) -> None:
    adapter("a", 1)
    adapter("b", 2)
    parameters = {} if method in ("task_arithmetic", "sce") else {"density": 0.5}
    for out, threads in (("out", 1), ("again", 2)):
        options = MergeOptions(write_model_card=False, quiet=True, random_seed=3, num_threads=threads)
        merge(recipe(method, {"a": 1.0, "b": 0.5}, **parameters), out, options)
    for module, found in deltas("out").items():
        assert found.abs().sum() > 0
        assert torch.equal(found, deltas("again")[module])
    assert logits("out").isfinite().all()


def test_weights_may_depend_on_the_layer() -> None:
    adapter("a", 1)
    adapter("b", 2)
    text = recipe("linear", {"a": 1.0}, normalize=False)
    text["models"].append(
        {"model": "b", "parameters": {"weight": [{"filter": "v_proj", "value": [0, 2]}, {"value": 0.5}]}}
    )
    merge(text, "out", PLAIN)
    a, b, out = deltas("a"), deltas("b"), deltas("out")
    for module, found in out.items():
        share = 0.5 if "q_proj" in module else 0.0 if "layers.0" in module else 2.0
        torch.testing.assert_close(found, a[module] + share * b[module], atol=1e-6, rtol=1e-5)


def test_embeddings_and_saved_modules() -> None:
    for name, seed in (("a", 1), ("b", 2)):
        adapter(name, seed, targets=("q_proj", "embed_tokens"), modules_to_save=["lm_head"])
    merge(recipe("linear", {"a": 0.25, "b": 0.75}), "out", PLAIN)
    files = [load_file(Path(name, "adapter_model.safetensors")) for name in ("a", "b", "out")]
    key = "base_model.model.lm_head.weight"
    torch.testing.assert_close(files[2][key], 0.25 * files[0][key] + 0.75 * files[1][key])
    a, b, out = deltas("a"), deltas("b"), deltas("out")
    assert "model.embed_tokens" in out
    for module, found in out.items():
        torch.testing.assert_close(found, 0.25 * a[module] + 0.75 * b[module], atol=1e-6, rtol=1e-5)
    assert logits("out").isfinite().all()


def test_a_base_model_makes_it_a_merge_of_models() -> None:
    """As before: an adapter alone is laid over the model that it names."""
    adapter("a", 1)
    adapter("b", 2)
    merge(recipe("task_arithmetic", {"a": 1.0, "b": 1.0}) | {"base_model": "base"}, "out", PLAIN)
    assert Path("out/config.json").exists()
    merge({"merge_method": "passthrough", "models": [{"model": "a"}]}, "baked", PLAIN)
    assert Path("baked/config.json").exists()


@pytest.mark.parametrize(
    ("theirs", "dtype"), [("bfloat16", None), ("float32", "bfloat16"), ("float16", "float32")]
)
def test_types(theirs: str, dtype: str | None) -> None:
    """What only one adapter changes is cast too, and not relabelled."""
    adapter("a", 1, targets=("q_proj",))
    adapter("b", 2, targets=("v_proj",))
    tensors = load_file("b/adapter_model.safetensors")
    save_file({k: t.to(getattr(torch, theirs)) for k, t in tensors.items()}, "b/adapter_model.safetensors")
    text = recipe("cat", {"a": 1.0, "b": 2.0}) | ({"dtype": dtype} if dtype else {})
    merge(text, "out", PLAIN)
    kinds = {t.dtype for t in load_file("out/adapter_model.safetensors").values()}
    assert kinds == {getattr(torch, dtype or "float32")}
    parts = {"q_proj": (1.0, deltas("a")), "v_proj": (2.0, deltas("b"))}
    for module, found in deltas("out").items():
        share, own = parts[module.rpartition(".")[2]]
        torch.testing.assert_close(found, share * own[module], atol=2e-2, rtol=2e-2)


def test_other_ways_of_merging_are_other_plans() -> None:
    """Work that was begun with cat is no beginning of svd, though names and shapes are the same."""
    adapter("a", 1)
    adapter("b", 2)
    digests = {
        plan(recipe(method, {"a": 1, "b": 1}, **parameters)).digest()
        for method, parameters in (("cat", {}), ("svd", {"rank": 4}), ("linear", {}), ("linear", {"rank": 4}))
    }
    assert len(digests) == 4


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    for seed, name in enumerate("ab", start=1):
        adapter(name, seed)
        settings = Path(name, "adapter_config.json")
        known = json.loads(settings.read_text()) | {"base_model_name_or_path": "someone/base"}
        settings.write_text(json.dumps(known))
    Path("recipe.yml").write_text(
        "merge_method: svd\nparameters: {rank: 2}\ndtype: bfloat16\nmodels:\n"
        "  - {model: a, parameters: {weight: 1}}\n  - {model: b, parameters: {weight: 0.5}}\n"
    )
    done = run(capsys, "plan", "recipe.yml")
    assert done.status == 0, done.err
    assert done.out.startswith("an adapter of rank 2 of 2 adapters: by svd, its largest singular values\n")
    done = run(capsys, "merge", "recipe.yml", "out", "--json")
    assert done.status == 0, done.err
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "meldkit.json",
        "meldkit.yml",
    ]
    assert {t.dtype for t in load_file("out/adapter_model.safetensors").values()} == {torch.bfloat16}
    assert run(capsys, "verify", "out").status == 0
    card = Path("out/README.md").read_text()
    assert "library_name: peft\n" in card
    assert "someone/base" in card


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (recipe("cat", {"base": 1}), RecipeError, "'cat' merges adapters, and not all models are"),
        (recipe("svd", {"a": 1, "base+b": 1}), RecipeError, "'svd' merges adapters"),
        (recipe("cat", {"a": 1, "b": 1}, rank=4), RecipeError, "ranks add up"),
        (recipe("svd", {"a": 1, "b": 1}, rank=0), RecipeError, "rank is 0"),
        (recipe("linear", {"a": 1, "dora": 1}), FormatError, "DoRA"),
        (recipe("linear", {"a": 1, "wider": 1}), MismatchError, "trained on different models"),
        (
            recipe("svd", {"a": 1, "head": 1}),
            FormatError,
            "adapter 'head' brings .* as a whole, which 'a' has not",
        ),
        (recipe("cat", {"a": 1}) | {"base_model": "base"}, RecipeError, "and base_model names one: 'base'"),
        (recipe("cat", {"base": 1}) | {"base_model": "base"}, RecipeError, "and not all models are"),
        (recipe("magnitude", {"a": 1, "b": 1}), RecipeError, "unknown merge_method.*\n.* cat, svd"),
        (recipe("linear", {"bare": 1}), CheckpointError, "but no adapter_config.json"),
        (recipe("svd", {"a": 1, "experts": 1}), FormatError, "target_parameters"),
        (recipe("linear", {"a": 1, "b": -1}), RecipeError, "sum to 0"),
        (
            {"merge_method": "linear", "models": [{"model": "base"}, {"model": recipe("cat", {"a": 1})}]},
            RecipeError,
            r"'inline-1' gives an adapter \(cat\), not a model",
        ),
    ],
)
def test_refused(text: dict[str, Any], error: type[Exception], message: str) -> None:
    adapter("a", 1)
    adapter("b", 2)
    adapter("dora", 3, use_dora=True)
    adapter("head", 4, modules_to_save=["lm_head"])
    adapter("experts", 4)
    shutil.copytree("a", "bare")
    Path("bare/adapter_config.json").unlink()
    path = Path("experts/adapter_config.json")
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"target_parameters": ["mlp.experts.down_proj"]})
    )
    tiny.llama(Path("base"), 0, hidden=24, layers=2)
    adapter("wider", 5)
    with pytest.raises(error, match=message):
        plan(text)


@pytest.mark.parametrize(
    ("method", "rank", "kept", "lossy"),
    [
        *(("svd", None, 3, True), ("svd", 4, 4, True), ("svd", 5, 5, False), ("svd", 99, 5, False)),
        *(("task_arithmetic", None, 5, False), ("linear", 4, 4, True)),
        *(("ties", None, 5, True), ("ties", 8, 8, False)),
    ],
)
def test_loss_is_told_where_something_can_be_lost(
    method: str, rank: int | None, kept: int, lossy: bool
) -> None:
    """Sums of ranks 2 and 3 have rank 5 at most; what else is made of matrices of 16 × 8 may have rank 8."""
    adapter("a", 1, targets=["v_proj"])
    adapter("b", 2, targets=["v_proj"], rank=3)
    chosen = plan(recipe(method, {"a": 1.0, "b": 0.5}, **({} if rank is None else {"rank": rank})))
    assert any("the rest is lost" in text for text in chosen.warnings) == lossy
    assert {min(job.shape) for job in chosen.jobs} == {kept}


def test_line_of_a_base_that_is_too_much() -> None:
    adapter("a", 1)
    Path("recipe.yml").write_text("base_model: base\nmodels: [{model: a}]\nmerge_method: cat\n")
    with pytest.raises(RecipeError, match=r"^recipe.yml:1: .*\n.*leave out base_model"):
        plan("recipe.yml")


def test_what_was_made_of_adapters_is_run_again(capsys: pytest.CaptureFixture[str]) -> None:
    adapter("a", 1)
    merge(recipe("cat", {"a": 1}), "out", PLAIN)
    Path("a").rename("b")
    done = run(capsys, "reproduce", "out", "--model", "a=b")
    assert (done.status, done.out) == (0, "out comes out the same: 8 tensors, every byte\n")


def test_error_of_averaged_factors_is_large() -> None:
    """What the mean of A and of B by themselves would have given is nowhere near."""
    adapter("a", 1)
    adapter("b", 2)
    merge(recipe("linear", {"a": 1, "b": 1}), "out", PLAIN)
    a, b = (load_file(Path(name, "adapter_model.safetensors")) for name in ("a", "b"))
    key = next(key for key in a if "lora_A" in key)
    other = key.replace("lora_A", "lora_B")
    averaged = ((b[other] + a[other]) / 2 @ ((a[key] + b[key]) / 2)).double() * 2.5
    module = key.removeprefix("base_model.model.").rpartition(".lora_")[0]
    exact = (deltas("a")[module] + deltas("b")[module]) / 2
    assert np.linalg.norm(averaged - exact) > 0.3 * np.linalg.norm(exact)
    torch.testing.assert_close(deltas("out")[module], exact, atol=1e-6, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.*lora_bias=True", "ignore:Adapter 'default'.* invalid shape")
def test_biases_are_averaged_where_all_have_them() -> None:
    """Those that were trained beside factors; changes of biases are refused."""
    size = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = LIBRARY.Qwen2Config(**size, num_attention_heads=4, num_key_value_heads=2)
    LIBRARY.Qwen2ForCausalLM(config).save_pretrained("base")
    for seed, name in enumerate("ab", start=1):
        adapter(name, seed, bias="lora_only")
    adapter("changes", 3, lora_bias=True)
    merge(recipe("linear", {"a": 1, "b": 3}), "out", PLAIN)
    a, b, out = (load_file(Path(name, "adapter_model.safetensors")) for name in ("a", "b", "out"))
    biases = [name for name in out if name.endswith("bias")]
    assert len(biases) == 2
    for name in biases:
        torch.testing.assert_close(out[name], 0.25 * a[name] + 0.75 * b[name])
    merge({"merge_method": "passthrough", "models": [{"model": "base+out"}]}, "model", PLAIN)
    merged = LIBRARY.AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32)
    torch.testing.assert_close(merged.eval()(IDS).logits, logits("out"), atol=1e-5, rtol=1e-5)
    with pytest.raises(FormatError, match=r"adapter 'a' brings .*bias as a whole; only linear"):
        plan(recipe("cat", {"a": 1, "b": 1}))
    with pytest.raises(FormatError, match=r"changes has '.*lora_B.bias'"):
        plan(recipe("linear", {"a": 1, "changes": 1}))
