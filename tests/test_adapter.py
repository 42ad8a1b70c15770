"""LoRA adapters over a checkpoint: the values that PEFT merges, and refusal of all that is not plain LoRA."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny
from meldkit.checkpoint import (
    Checkpoint,
    Scratch,
    StoredTensor,
    TensorInfo,
    TileSource,
    open_checkpoint,
    open_files,
    read_header,
)
from meldkit.checkpoint.adapter import AdaptedTensor, LowRank, open_adapter
from meldkit.errors import CheckpointError, MeldError, MismatchError, NotSupportedError

# PEFT calls what transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def train(base: Path, folder: Path, seed: int, **config: Any) -> Path:
    """An adapter whose factors are far from their initial values, saved by PEFT."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ALL_LINEAR} | config
    model = get_peft_model(LlamaForCausalLM.from_pretrained(base), LoraConfig(**settings))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def merged_by_peft(base: Path, *adapters: Path) -> dict[str, Tensor]:
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(base)
    for adapter in adapters:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return dict(model.state_dict())


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


def refusal(folder: Path, kind: type[MeldError] = CheckpointError) -> str:
    with pytest.raises(MeldError) as caught:
        open_checkpoint("base+a", Path("base"), (folder,))
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
}


def assert_equal(checkpoint: Checkpoint, expected: Mapping[str, Tensor], tolerance: float) -> None:
    with open_files() as files:
        for name, info in checkpoint.items():
            value = read(checkpoint.source(files, name), 0, info.numel)
            wanted = expected[name].flatten()
            error = (value - wanted).abs().max() / wanted.abs().max()
            assert error <= (0 if checkpoint.plain(name) else tolerance), name


@pytest.mark.filterwarnings("ignore:.*pattern keys did not match any targeted module:RuntimeWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_that_peft_merges(kind: str, base: Path, tmp_path: Path) -> None:
    adapter = train(base, tmp_path / "a", 2, **KINDS[kind])
    checkpoint = open_checkpoint("base+a", base, (adapter,))
    changed = {name for name in checkpoint if not checkpoint.plain(name)}
    stored = read_header(adapter / "adapter_model.safetensors").tensors
    assert len(changed) == len(stored) / 2
    assert_equal(checkpoint, merged_by_peft(base, adapter), 1e-6)


def test_several_adapters_add_up(base: Path, plain: Path, tmp_path: Path) -> None:
    second = train(base, tmp_path / "b", 3, r=2, target_modules=["q_proj", "down_proj"])
    checkpoint = open_checkpoint("base+a+b", base, (plain, second))
    assert_equal(checkpoint, merged_by_peft(base, plain, second), 1e-6)
    assert len(checkpoint.files()) == 3
    same = open_checkpoint("base+b+a", base, (second, plain))
    assert_equal(checkpoint, merged_by_peft(base, second, plain), 1e-6)
    assert checkpoint.fingerprint != same.fingerprint


def test_adapter_in_half_precision_is_added_in_full(base: Path, plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain, tmp_path / "a")
    rewrite(tmp_path / "a", lambda t: t.update({k: v.bfloat16() for k, v in t.items()}))
    checkpoint = open_checkpoint("base+a", base, (tmp_path / "a",))
    weights = tiny.tensors(base)
    factors = {k: v.double() for k, v in load_file(tmp_path / "a" / "adapter_model.safetensors").items()}
    for name, update in checkpoint.adapters[0].updates.items():
        product = factors[update.b.name] @ factors[update.a.name] * update.scale
        weights[name] = weights[name].double() + product
    assert_equal(checkpoint, weights, 1e-6)


def test_names_as_other_programs_write_them(a: Path) -> None:
    whole = open_checkpoint("base+a", Path("base"), (a,)).adapters[0].updates
    rewrite(a, lambda t: [t.update({k.replace(".weight", ".default.weight"): t.pop(k)}) for k in list(t)])
    assert open_checkpoint("base+a", Path("base"), (a,)).adapters[0].updates.keys() == whole.keys()
    rewrite(a, lambda t: [t.update({k.removeprefix("base_model.model."): t.pop(k)}) for k in list(t)])
    assert open_checkpoint("base+a", Path("base"), (a,)).adapters[0].updates.keys() == whole.keys()


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

    from meldkit.checkpoint.adapter import _own

    expected = patterns.get(get_pattern_key(patterns.keys(), module), 8)
    assert _own(Path("a"), {"rank_pattern": patterns}, "rank_pattern", module, 8) == expected


# ---- tiles


def overlay(folder: Path, rows: int, columns: int, rank: int = 3) -> tuple[TensorInfo, LowRank]:
    torch.manual_seed(0)
    path = folder / "x.safetensors"
    shapes = {"w": (rows, columns), "a": (rank, columns), "b": (rows, rank)}
    save_file({name: torch.randn(shape) for name, shape in shapes.items()}, path)
    infos = read_header(path).tensors
    return infos["w"], LowRank(infos["a"], infos["b"], 0.7)


SIZES = [(300, 700), (7, 70_000), (1, 5), (200_000, 1), (130, 2048), (64, 576), (3, 65_536), (3, 65_537)]


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_tiles_do_not_show(rows: int, columns: int, tmp_path: Path) -> None:
    weight, update = overlay(tmp_path, rows, columns)
    numel = rows * columns
    with open_files() as files:
        source = AdaptedTensor(files, StoredTensor(files, weight), update)
        whole = read(source, 0, numel)
        under = StoredTensor(files, weight).read_all().double()
        a, b = (StoredTensor(files, info).read_all().double() for info in (update.a, update.b))
        torch.testing.assert_close(
            whole.view(rows, columns).double(), under + b @ a * 0.7, rtol=1e-5, atol=1e-5
        )
        for tile in (131_072, 65_536, 10_007):
            parts = [read(source, i, min(numel, i + tile)) for i in range(0, numel, tile)]
            assert torch.equal(torch.cat(parts), whole)

        @settings(max_examples=30, deadline=None)
        @given(st.integers(0, numel), st.integers(0, numel))
        def any_tile(first: int, second: int) -> None:
            start, stop = sorted((first, second))
            assert torch.equal(read(source, start, stop), whole[start:stop])

        any_tile()


def test_a_matrix_without_elements(tmp_path: Path) -> None:
    for rows, columns in ((0, 4), (4, 0)):
        weight, update = overlay(tmp_path, rows, columns)
        with open_files() as files:
            source = AdaptedTensor(files, StoredTensor(files, weight), update)
            assert read(source, 0, 0).numel() == 0


def test_work_is_proportional_to_the_tile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However wide the matrix, no more than half of what is multiplied for usual tiles is in vain."""
    multiplied = 0
    matmul = Tensor.__matmul__

    def counting(left: Tensor, right: Tensor) -> Tensor:
        nonlocal multiplied
        result = matmul(left, right)
        multiplied += result.numel()
        return result

    for rows, columns in ((1000, 576), (400, 2048), (90, 8192), (50, 14_336), (20, 28_672)):
        weight, update = overlay(tmp_path, rows, columns)
        with open_files() as files:
            source = AdaptedTensor(files, StoredTensor(files, weight), update)
            monkeypatch.setattr(Tensor, "__matmul__", counting)
            multiplied, numel = 0, rows * columns
            for start in range(0, numel, 131_072):
                read(source, start, min(numel, start + 131_072))
            monkeypatch.setattr(Tensor, "__matmul__", matmul)
        assert numel <= multiplied <= 2 * numel


# ---- what does not fit

OTHER_BASE = "\n  check that the adapter was trained on this base model"


def test_adapter_of_another_size(a: Path) -> None:
    Path("base").unlink()
    tiny.llama(Path("base"), 0, layers=2, hidden=48)
    assert refusal(a, MismatchError) == (
        "adapter a does not fit 'model.layers.0.mlp.down_proj.weight': lora_A [4, 64] and lora_B [32, 4] "
        "against [48, 96]" + OTHER_BASE
    )


def test_adapter_of_a_deeper_model(a: Path) -> None:
    Path("base").unlink()
    tiny.llama(Path("base"), 0, layers=1)
    assert refusal(a, MismatchError) == (
        "adapter a changes 'model.layers.1.mlp.down_proj.weight', which its base model does not have"
        + OTHER_BASE
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
    assert refusal(a) == (
        f"adapter a: {key} of adapter_config.json has '(', which is not a regular expression"
    )


# ---- what is not plain LoRA


@pytest.mark.parametrize(
    ("changes", "used"),
    [
        ({"use_dora": True}, "use_dora (True)"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out (True)"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save (['lm_head'])"),
        ({"bias": "lora_only"}, "bias ('lora_only')"),
        ({"bias": "all"}, "bias ('all')"),
        ({"lora_bias": True}, "lora_bias (True)"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices ([1, 2])"),
        ({"target_parameters": ["experts"]}, "target_parameters (['experts'])"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication ([[0, 2], [1, 2]])"),
        ({"use_qalora": True}, "use_qalora (True)"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens ([1])"),
    ],
)
def test_other_kinds_are_refused_by_name(a: Path, changes: dict[str, Any], used: str) -> None:
    configure(a, **changes)
    assert refusal(a, NotSupportedError) == f"not supported yet: adapter a uses {used}"


@pytest.mark.parametrize("kind", ["IA3", "LOHA", "PREFIX_TUNING"])
def test_other_types_are_refused_by_name(a: Path, kind: str) -> None:
    configure(a, peft_type=kind)
    assert refusal(a, NotSupportedError) == (
        f"not supported yet: adapter a is of type '{kind}'; only 'LORA' is"
    )


def test_initialisations_that_change_the_base_are_refused(base: Path, tmp_path: Path) -> None:
    """PEFT takes the first factors out of the base when it loads them: W + s·B·A is not their value."""
    adapter = train(base, tmp_path / "a", 5, init_lora_weights="pissa", target_modules=["q_proj"])
    with pytest.raises(NotSupportedError) as caught:
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
    assert f"has init_lora_weights '{init}'" in refusal(a, NotSupportedError)


def test_real_dora_and_embedding_adapters(base: Path, tmp_path: Path) -> None:
    embedding = train(base, tmp_path / "e", 6, target_modules=["embed_tokens"])
    dora = train(base, tmp_path / "d", 6, target_modules=["q_proj"], use_dora=True)
    weights = open_checkpoint("base", base).tensors
    with pytest.raises(
        NotSupportedError, match=r"has tensor '.*embed_tokens.lora_embedding_A', which is not"
    ):
        open_adapter(embedding, weights)
    with pytest.raises(NotSupportedError, match="uses use_dora"):
        open_adapter(dora, weights)
    configure(dora, use_dora=False)
    with pytest.raises(NotSupportedError, match="lora_magnitude_vector"):
        open_adapter(dora, weights)


def test_factors_of_a_convolution_or_of_integers(a: Path) -> None:
    name = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
    tail = " of numbers: lora_A {} [4, 64{}], lora_B F32 [32, 4]"
    rewrite(a, lambda t: t.update({name: t[name].view(4, 64, 1, 1)}))
    assert refusal(a, NotSupportedError).endswith(tail.format("F32", ", 1, 1"))
    rewrite(a, lambda t: t.update({name: t[name].view(4, 64).to(torch.int8)}))
    assert refusal(a, NotSupportedError).endswith(tail.format("I8", ""))


def test_quantised_base(a: Path) -> None:
    content = tiny.tensors(Path("base"))
    name = "model.layers.0.mlp.down_proj.weight"
    save_file(content | {name: content[name].to(torch.int8)}, "q.safetensors")
    with pytest.raises(NotSupportedError) as caught:
        open_checkpoint("q+a", Path("q.safetensors"), (a,))
    assert str(caught.value) == (
        f"not supported yet: adapter a changes '{name}', which is stored as I8\n"
        "  lay it over the base model's original, unquantised weights"
    )


def test_missing_and_broken_files(a: Path) -> None:
    (a / "adapter_model.safetensors").rename(a / "adapter_model.bin")
    assert refusal(a, NotSupportedError) == (
        "not supported yet: adapter a is stored as adapter_model.bin; only .safetensors is read\n"
        "  load it with PEFT and save_pretrained() it once; that writes safetensors"
    )
    (a / "adapter_model.bin").unlink()
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
