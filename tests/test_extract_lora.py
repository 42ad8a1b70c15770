"""Adapters from the difference of two models: they load in PEFT, and are as near as any of their rank."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from torch import Tensor

import tiny
from command import run
from meldkit import merge
from meldkit.composed import decompose
from meldkit.options import MergeOptions

#: PEFT asks transformers for what has another name there by now.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

LIBRARY: Any = transformers
PEFT: Any = peft
LINALG: Any = torch.linalg
IDS = [[3, 14, 15, 9, 2, 6]]
PLAIN = MergeOptions(write_model_card=False, quiet=True)


def logits(model: Any) -> Tensor:
    with torch.inference_mode():
        return model.eval()(torch.tensor(IDS)).logits


def tiny_tokenizer(size: int) -> Any:
    words = {"<unk>": 0, **{f"w{i}": i for i in range(1, size)}}
    return LIBRARY.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")), unk_token="<unk>"
    )


def with_peft(base: str, adapter: str) -> Any:
    model = LIBRARY.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PEFT.PeftModel.from_pretrained(model, adapter)


def finetune(base: str, out: str, change: Callable[[str, Tensor], Tensor | None]) -> dict[str, Tensor]:
    """A copy whose tensors are changed; its tensors."""
    model = LIBRARY.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            delta = change(name, weight)
            if delta is not None:
                weight.add_(delta)
    model.save_pretrained(out)
    return tiny.tensors(Path(out))


def low_rank(rank: int) -> Callable[[str, Tensor], Tensor | None]:
    generator = torch.Generator().manual_seed(1)

    def change(name: str, weight: Tensor) -> Tensor | None:
        if "proj" not in name and "attn" not in name and "mlp" not in name:
            return None
        if weight.dim() == 1:
            return None
        rows, columns = weight.shape
        b = torch.randn(rows, rank, generator=generator)
        return 0.02 * b @ torch.randn(rank, columns, generator=generator)

    return change


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.llama(Path("base"), 0, hidden=48, layers=2)


def extract(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    done = run(
        capsys, "extract-lora", "--model", "tuned", "--base-model", "base", "adapter", "--json", *options
    )
    assert done.status == 0, done.err
    return json.loads(done.out)


@pytest.mark.usefixtures("base")
@pytest.mark.parametrize("options", [(), ("--no-distribute-scale",), ("--exact",)])
def test_change_of_low_rank_is_found(options: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    tuned = finetune("base", "tuned", low_rank(3))
    found = extract(capsys, "--max-rank", "3", *options)
    assert len(found["modules"]) == 14
    assert all(module["error"] < 1e-5 for module in found["modules"])
    config = json.loads(Path("adapter/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["modules_to_save"]) == (3, 3, None)
    torch.testing.assert_close(
        logits(with_peft("base", "adapter")),
        logits(LIBRARY.AutoModelForCausalLM.from_pretrained("tuned")),
        atol=1e-5,
        rtol=1e-5,
    )
    recipe = {"merge_method": "passthrough", "models": [{"model": "base+adapter"}]}
    merge(recipe, "again", MergeOptions(write_model_card=False))
    for name, tensor in tiny.tensors(Path("again")).items():
        torch.testing.assert_close(tensor, tuned[name], atol=1e-6, rtol=1e-5)


@pytest.mark.usefixtures("base")
def test_worked_check(capsys: pytest.CaptureFixture[str]) -> None:
    """Of diag(4, 1) one singular value: A = [2, 0], B = [2, 0], and 1 is left out."""
    name = "model.layers.0.self_attn.q_proj.weight"

    def change(own: str, weight: Tensor) -> Tensor | None:
        if own != name:
            return None
        delta = torch.zeros_like(weight)
        delta[0, 0], delta[1, 1] = 4, 1
        return delta

    finetune("base", "tuned", change)
    found = extract(capsys, "--max-rank", "1")
    (module,) = found["modules"]
    assert (module["rank"], found["unchanged"]) == (1, 20)
    assert module["error"] == pytest.approx(1 / 17**0.5, rel=1e-5)
    factors = (
        tiny.tensors(Path("adapter")) if Path("adapter/model.safetensors").exists() else stored("adapter")
    )
    a, b = (factors[f"base_model.model.{name.removesuffix('.weight')}.lora_{side}.weight"] for side in "AB")
    expected = torch.zeros(48)
    expected[0] = 2
    torch.testing.assert_close(a[0].abs(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(b[:, 0].abs(), expected, atol=1e-5, rtol=1e-5)


def stored(folder: str) -> dict[str, Tensor]:
    opened: Any = safe_open(f"{folder}/adapter_model.safetensors", framework="pt")
    with opened as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping


@pytest.mark.usefixtures("base")
def test_embeddings_and_norms_are_stored(capsys: pytest.CaptureFixture[str]) -> None:
    def change(name: str, weight: Tensor) -> Tensor | None:
        return (
            0.1 * torch.ones_like(weight) if "norm" in name or "embed" in name else low_rank(2)(name, weight)
        )

    finetune("base", "tuned", change)
    found = extract(capsys, "--max-rank", "4")
    assert "model.embed_tokens" in found["saved"]
    config = json.loads(Path("adapter/adapter_config.json").read_text())
    norms = [f"layers.{i}.{place}_layernorm" for i in range(2) for place in ("input", "post_attention")]
    assert sorted(config["modules_to_save"]) == [f"model.{n}" for n in ("embed_tokens", *norms, "norm")]
    tuned = LIBRARY.AutoModelForCausalLM.from_pretrained("tuned")
    torch.testing.assert_close(logits(with_peft("base", "adapter")), logits(tuned), atol=2e-5, rtol=1e-4)
    skipped = extract(capsys, "--max-rank", "4", "--skip-undecomposable", "--overwrite")
    assert skipped["saved"] == ["model.embed_tokens"]
    assert skipped["skipped"] == 5
    assert not any("norm" in name for name in stored("adapter"))


@pytest.mark.usefixtures("base")
def test_embeddings_are_factored(capsys: pytest.CaptureFixture[str]) -> None:
    def change(name: str, weight: Tensor) -> Tensor | None:
        if "embed" not in name:
            return None
        generator = torch.Generator().manual_seed(3)
        return torch.outer(*(torch.randn(n, generator=generator) for n in weight.shape))

    finetune("base", "tuned", change)
    found = extract(capsys, "--max-rank", "2", "--embed-lora")
    assert [module["name"] for module in found["modules"]] == ["model.embed_tokens"]
    tuned = LIBRARY.AutoModelForCausalLM.from_pretrained("tuned")
    torch.testing.assert_close(logits(with_peft("base", "adapter")), logits(tuned), atol=2e-5, rtol=1e-4)


def test_transposed_layers_and_biases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.gpt2(Path("base"), 0)

    def change(name: str, weight: Tensor) -> Tensor | None:
        if name.endswith("c_fc.bias"):
            return 0.1 * torch.ones_like(weight)
        return low_rank(2)(name, weight)

    finetune("base", "tuned", change)
    extract(capsys, "--max-rank", "4")
    config = json.loads(Path("adapter/adapter_config.json").read_text())
    assert config["fan_in_fan_out"]
    assert config["bias"] == "lora_only"
    assert_is_tuned()


@pytest.mark.usefixtures("base")
def test_ranks_follow_what_is_to_be_kept(capsys: pytest.CaptureFixture[str]) -> None:
    spectrum = torch.tensor([8.0, 4, 2, 1, 0.5])
    name = "model.layers.1.mlp.down_proj"

    def change(own: str, weight: Tensor) -> Tensor | None:
        if own.removesuffix(".weight") == name:
            q1, q2 = (LINALG.qr(torch.randn(n, 5)).Q for n in weight.shape)
            return q1 * spectrum @ q2.T
        return low_rank(1)(own, weight)

    finetune("base", "tuned", change)
    found = extract(capsys, "--max-rank", "16", "--keep", "0.98")
    ranks = {module["name"]: module["rank"] for module in found["modules"]}
    # 64 + 16 + 4 of 85.25 are 98.5 %, without the 4 they are 93.8 %.
    assert ranks.pop(name) == 3
    assert set(ranks.values()) == {1}
    config = json.loads(Path("adapter/adapter_config.json").read_text())
    assert config["r"] == 3
    assert config["rank_pattern"] == config["alpha_pattern"] == dict.fromkeys(ranks, 1)
    by_size = extract(
        capsys,
        "--max-rank",
        "16",
        "--sv-epsilon",
        "1.5",
        "--include-regex",
        "layers.1.mlp.down",
        "--overwrite",
    )
    assert [module["rank"] for module in by_size["modules"]] == [3]


@pytest.mark.parametrize("shape", [(600, 900), (900, 600)])
@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0, 2.0])
def test_error_is_that_of_the_exact_decomposition(shape: tuple[int, int], decay: float) -> None:
    """To 1 %, whatever the singular values are like: flat ones, or falling by some power."""
    generator = torch.Generator().manual_seed(4)
    rank, small = 32, min(shape)
    values = torch.arange(1, small + 1).float() ** -decay
    q1, q2 = (LINALG.qr(torch.randn(n, small, generator=generator)).Q for n in shape)
    delta = q1 * values @ q2.T
    made = decompose(delta, rank, exact=False)
    exact = float((values[rank:].double().square().sum() / values.double().square().sum()).sqrt())
    left = float((delta - made.u * made.s @ made.vt).norm() / delta.norm())
    assert exact * (1 - 1e-4) <= left <= 1.01 * exact
    assert made.energy == pytest.approx(float(values.double().square().sum()), rel=1e-5)


@pytest.mark.usefixtures("base")
def test_is_verified_and_the_same_on_one_thread(capsys: pytest.CaptureFixture[str]) -> None:
    finetune("base", "tuned", low_rank(2))
    extract(capsys, "--max-rank", "2")
    assert run(capsys, "verify", "adapter").status == 0
    first = Path("adapter/adapter_model.safetensors").read_bytes()
    extract(capsys, "--max-rank", "2", "--overwrite", "-j", "1")
    assert Path("adapter/adapter_model.safetensors").read_bytes() == first


@pytest.mark.usefixtures("base")
@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (("--max-rank", "0"), 2, "the largest rank is 0"),
        (("--keep", "1.5"), 2, "1.5 of each change cannot be kept"),
        (("--sv-epsilon", "nan"), 2, "--sv-epsilon is nan"),
        (("--sv-epsilon", "-1"), 2, "--sv-epsilon is -1.0"),
        (("-e", "("), 2, "'(' is no regular expression"),
        (("-i", "nothing"), 3, "does not differ from 'base' in any module that is looked at"),
        (("--model", "base"), 3, "'base' does not differ from 'base'"),
        (("--model", "wide"), 3, "is [64] in 'wide', but [48] in the base"),
        (("--model", "deep"), 3, "lacks model.layers.1."),
        (("--model", "other"), 3, "'other' is of model_type mistral, the base 'base' of llama"),
    ],
)
def test_refused(
    options: tuple[str, ...], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    finetune("base", "tuned", low_rank(1))
    tiny.llama(Path("wide"), 0, hidden=64, layers=2)
    tiny.llama(Path("deep"), 0, hidden=48, layers=1)
    of_other_type("tuned", "other")
    done = run(capsys, "extract-lora", "--model", "tuned", "--base-model", "base", "adapter", *options)
    assert message in done.err
    assert done.status == status
    assert not Path("adapter").exists()


def of_other_type(folder: str, out: str) -> None:
    """The same tensors as a model that calls itself otherwise."""
    shutil.copytree(folder, out)
    path = Path(out, "config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "mistral"}))


@pytest.mark.usefixtures("base")
def test_other_types_of_models_are_taken_if_that_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    finetune("base", "first", low_rank(1))
    of_other_type("first", "tuned")
    assert len(extract(capsys, "--allow-crimes")["modules"]) == 14


@pytest.mark.usefixtures("base")
def test_output_is_apart_from_models(capsys: pytest.CaptureFixture[str]) -> None:
    finetune("base", "tuned", low_rank(1))
    extract(capsys, "--max-rank", "1")
    # What would only be found when all modules have been compared.
    options = ("--model", "base+adapter", "--base-model", "base", "--overwrite", "-i", "nothing")
    for out in ("base", "adapter"):
        done = run(capsys, "extract-lora", out, *options)
        assert f"{out} is the folder of the input 'base" in done.err
    Path("loop").symlink_to("loop")
    assert "loop is a link that leads nowhere" in run(capsys, "extract-lora", "loop", *options).err


@pytest.mark.usefixtures("base")
def test_what_fits_no_module_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    finetune("base", "tuned", low_rank(1))
    found = extract(
        *(capsys, "--save-module", "q_prj", "--save-module", "1.self_attn.k_proj"),
        *("-e", "nothing", "-e", r"layers\.0\.", "-i", "proj"),
    )
    assert [text for text in found["warnings"] if text.startswith("--")] == [
        "--save-module q_prj: no module is called so; did you mean 'q_proj'?",
        "--exclude-regex 'nothing' fits no module",
    ]
    assert found["saved"] == ["model.layers.1.self_attn.k_proj"]
    # Those of the first layer, and all that are no projections.
    assert (found["not_looked_at"], len(found["modules"])) == (14, 6)


@pytest.mark.parametrize("kind", ["Mixtral", "Qwen3Moe", "Qwen2Moe"])
def test_experts_in_one_tensor(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They become parameters of their own, and both PEFT and we add to each expert what it has learned."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "moe_intermediate_size": 24}
    sizes |= {"num_local_experts": 3, "num_experts": 3, "num_experts_per_tok": 2}
    sizes |= {"shared_expert_intermediate_size": 24} if kind == "Qwen2Moe" else {}
    config = getattr(LIBRARY, f"{kind}Config")(**sizes)
    model = getattr(LIBRARY, f"{kind}ForCausalLM")(config)
    whole = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    changed = dict(whole)
    for name, tensor in whole.items():
        if tensor.dim() == 3:
            count, rows, columns = tensor.shape
            b = torch.randn(count, rows, 2, generator=generator)
            changed[name] = tensor + 0.05 * b @ torch.randn(count, 2, columns, generator=generator)
        if name.endswith("q_proj.bias"):
            changed[name] = tensor + 0.1
    for folder, tensors in (("base", whole), ("tuned", changed)):
        # As transformers holds them, which is not how it writes them.
        model.load_state_dict(tensors)
        model.config.save_pretrained(folder)
        save_file(tensors, Path(folder, "model.safetensors"), metadata={"format": "pt"})
    found = extract(capsys, "--max-rank", "2")
    leaves = [module["name"].rpartition(".")[2] for module in found["modules"]]
    assert ("q_proj" in leaves) == (kind == "Qwen2Moe")  # which has biases
    assert sorted(leaf for leaf in leaves if leaf != "q_proj") == ["down_proj"] * 2 + ["gate_up_proj"] * 2
    assert all(module["error"] < 1e-5 for module in found["modules"])
    settings = json.loads(Path("adapter/adapter_config.json").read_text())
    assert len(settings["target_parameters"]) == 4
    merge({"merge_method": "passthrough", "models": [{"model": "base+adapter"}]}, "again", PLAIN)
    for name, tensor in tiny.tensors(Path("again")).items():
        torch.testing.assert_close(tensor, changed[name], atol=1e-5, rtol=1e-4)
    model.load_state_dict(whole)
    tuned = PEFT.PeftModel.from_pretrained(model, "adapter")
    ours = logits(tuned)
    fresh = getattr(LIBRARY, f"{kind}ForCausalLM")(config)
    fresh.load_state_dict(changed)
    torch.testing.assert_close(ours, logits(fresh), atol=1e-4, rtol=1e-4)


def assert_is_tuned() -> None:
    """The base with the adapter is the fine-tune: in PEFT, as PEFT merges it, and as we do."""
    expected = logits(LIBRARY.AutoModelForCausalLM.from_pretrained("tuned", dtype=torch.float32))
    with_adapter = with_peft("base", "adapter")
    for found in (logits(with_adapter), logits(with_adapter.merge_and_unload())):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    merge({"merge_method": "passthrough", "models": [{"model": "base+adapter"}]}, "again", PLAIN)
    again = LIBRARY.AutoModelForCausalLM.from_pretrained("again", dtype=torch.float32)
    torch.testing.assert_close(logits(again), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied")
@pytest.mark.parametrize("options", [(), ("--embed-lora",)])
@pytest.mark.parametrize("tied", [False, True])
def test_tied_embeddings_and_layers_without_bias(
    options: tuple[str, ...],
    tied: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    size = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = LIBRARY.Qwen2Config(
        **size, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied
    )
    torch.manual_seed(0)
    LIBRARY.Qwen2ForCausalLM(config).save_pretrained("base")
    # Biases of q, k and v change, others have none.
    finetune("base", "tuned", lambda _, weight: 0.1 * torch.randn_like(weight))
    found = extract(capsys, "--max-rank", "16", *options)
    assert_is_tuned()
    assert ("lm_head.weight" not in tiny.tensors(Path("again"))) == tied
    # Factors of a tied embedding would be merged twice.
    assert ("model.embed_tokens" in found["saved"]) == (tied or not options)
    told = [text for text in found["warnings"] if "the embedding is stored whole" in text]
    assert len(told) == (tied and bool(options))


def test_norms_are_named_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """PEFT takes a name for all modules that end so."""
    monkeypatch.chdir(tmp_path)
    tiny.llama(Path("base"), 0, hidden=16, layers=2)

    def change(name: str, weight: Tensor) -> Tensor | None:
        return 0.1 * torch.ones_like(weight) if name == "model.norm.weight" or "1.mlp.up" in name else None

    finetune("base", "tuned", change)
    extract(capsys, "--max-rank", "2")
    assert json.loads(Path("adapter/adapter_config.json").read_text())["modules_to_save"] == ["model.norm"]
    expected = logits(LIBRARY.AutoModelForCausalLM.from_pretrained("tuned", dtype=torch.float32))
    torch.testing.assert_close(logits(with_peft("base", "adapter")), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("base")
def test_page_with_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    finetune("base", "tuned", low_rank(4))
    extract(capsys, "--max-rank", "2", "--html", "report.html")
    text = Path("report.html").read_text()
    assert "Left out of each change" in text
    assert "model.layers.1.mlp.up_proj" in text


@pytest.mark.usefixtures("base")
def test_new_tokens_come_with_their_tokenizer(capsys: pytest.CaptureFixture[str]) -> None:
    words = tiny_tokenizer(64)
    words.save_pretrained("base")
    model = LIBRARY.AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32)
    words.add_tokens(["<new>"])
    model.resize_token_embeddings(65)
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight.add_(0.01)
    model.save_pretrained("tuned")
    words.save_pretrained("tuned")
    extract(capsys, "--max-rank", "2")
    merge({"merge_method": "passthrough", "models": [{"model": "base+adapter"}]}, "again", PLAIN)
    again = LIBRARY.AutoTokenizer.from_pretrained("again")
    assert again.convert_tokens_to_ids("<new>") == 64
    assert tiny.tensors(Path("again"))["model.embed_tokens.weight"].shape[0] == 65


@pytest.mark.usefixtures("base")
@pytest.mark.parametrize("options", [(), ("--keep", "0.9")])
def test_damaged_models_are_named(options: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    weights = finetune("base", "tuned", low_rank(2))
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name][3, 4] = float("nan")
    tiny.stored(Path("tuned"), weights)
    done = run(capsys, "extract-lora", "--model", "tuned", "--base-model", "base", "adapter", *options)
    assert done.status == 4
    assert f"{name} of tuned/model.safetensors differs from the base's by NaN or Inf" in done.err
    assert not Path("adapter", "adapter_config.json").exists()


# PEFT makes such entries itself where it joins experts, and then warns of them.
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")
def test_routers_of_mixtral(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files call them otherwise than the modules that PEFT replaces."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "num_local_experts": 2}
    LIBRARY.MixtralForCausalLM(LIBRARY.MixtralConfig(**sizes, **heads)).save_pretrained("base")
    generator = torch.Generator().manual_seed(1)
    tuned = finetune("base", "tuned", lambda _, w: 0.1 * torch.randn(w.shape, generator=generator))
    found = extract(capsys, "--max-rank", "32")
    assert found["modules"]
    torch.testing.assert_close(
        logits(with_peft("base", "adapter")),
        logits(LIBRARY.AutoModelForCausalLM.from_pretrained("tuned")),
        atol=1e-4,
        rtol=1e-4,
    )
    recipe = {"merge_method": "passthrough", "models": [{"model": "base+adapter"}]}
    merge(recipe, "again", MergeOptions(write_model_card=False))
    name = next(name for name in tuned if name.endswith("gate.weight"))
    assert torch.equal(tiny.tensors(Path("again"))[name], tuned[name])


@pytest.mark.usefixtures("base")
def test_a_head_that_is_stored_though_it_is_the_embedding(capsys: pytest.CaptureFixture[str]) -> None:
    """Some programs store it again."""
    own = json.loads(Path("base/config.json").read_text())
    Path("base/config.json").write_text(json.dumps(own | {"tie_word_embeddings": True}))
    tiny.stored(Path("base"), {n: t for n, t in tiny.tensors(Path("base")).items() if n != "lm_head.weight"})
    weights = finetune("base", "tuned", lambda name, w: 0.1 * torch.ones_like(w) if "embed" in name else None)
    tiny.stored(Path("tuned"), weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()})
    found = extract(capsys, "--embed-lora")
    assert found["saved"] == ["model.embed_tokens"]
    config = json.loads(Path("adapter/adapter_config.json").read_text())
    assert (config["modules_to_save"], config["ensure_weight_tying"]) == (["model.embed_tokens"], True)


@pytest.mark.usefixtures("base")
def test_what_cannot_be_in_an_adapter_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    tensors = finetune("base", "tuned", low_rank(1))
    for folder, value in (("base", 0.0), ("tuned", 1.0)):
        own = tiny.tensors(Path(folder)) | {"model.layers.0.gate": torch.full((3,), value)}
        own |= {"model.layers.1.mlp.up_proj.bias": torch.ones(96)} if folder == "tuned" else {}
        save_file(own, Path(folder, "model.safetensors"), metadata={"format": "pt"})
    assert len(tensors) > 1
    found = extract(capsys, "--max-rank", "2")
    assert any("model.layers.0.gate: changed by the fine-tune" in text for text in found["warnings"])
    assert any("model.layers.1.mlp.up_proj.bias: left out: the base has none" in t for t in found["warnings"])
