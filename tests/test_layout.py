"""Layouts inferred from the names of real models, and what config.json says after their depth changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import tiny
from meldkit.checkpoint import open_checkpoint
from meldkit.errors import MismatchError
from meldkit.layout import Layout, Origin, Stack, find_part, infer_layout, with_depth
from meldkit.layout.quirks import SPELLINGS

TINY: dict[str, Any] = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16}
HEADS: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 2}


def stacks(layout: Layout) -> dict[str, int]:
    return {stack.prefix: stack.num_blocks for stack in layout.stacks}


def check(names: list[str], layout: Layout) -> None:
    """Every name is in its place, exactly once, and is spelled again from it."""
    assert list(layout.places) == names
    spelled: list[str] = []
    for place in layout.places.values():
        if place.stack is None:
            assert place.block is None
            spelled.append(place.leaf)
        else:
            assert place.stack in layout.stacks
            assert place.block is not None
            assert 0 <= place.block < place.stack.num_blocks
            spelled.append(place.stack.name(place.block, place.leaf))
    assert spelled == names


def infer(names: list[str], config: Mapping[str, Any] | None = None) -> Layout:
    layout = infer_layout(names, config or {})
    check(names, layout)
    return layout


@cache
def model(kind: str) -> tuple[list[str], dict[str, Any]]:
    """Tensor names and configuration of a real architecture; no weight is made."""
    import transformers as t

    makers: dict[str, Callable[[], Any]] = {
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(num_hidden_layers=4, **TINY, **HEADS)),
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(vocab_size=32, n_embd=16, n_layer=3, n_head=2)),
        "gpt2 inside": lambda: t.GPT2Model(t.GPT2Config(vocab_size=32, n_embd=16, n_layer=3, n_head=2)),
        "bert": lambda: t.BertModel(t.BertConfig(num_hidden_layers=3, num_attention_heads=2, **TINY)),
        "classifier": lambda: t.BertForSequenceClassification(
            t.BertConfig(num_hidden_layers=3, num_attention_heads=2, **TINY)
        ),
        "t5": lambda: t.T5ForConditionalGeneration(
            t.T5Config(
                vocab_size=32, d_model=16, d_kv=4, d_ff=16, num_heads=2, num_layers=3, num_decoder_layers=2
            )
        ),
        "neox": lambda: t.GPTNeoXForCausalLM(
            t.GPTNeoXConfig(num_hidden_layers=2, num_attention_heads=2, **TINY)
        ),
        "opt": lambda: t.OPTForCausalLM(
            t.OPTConfig(
                vocab_size=32,
                hidden_size=16,
                ffn_dim=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                word_embed_proj_dim=16,
            )
        ),
        "mamba": lambda: t.MambaForCausalLM(
            t.MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2)
        ),
    }
    with torch.device("meta"):
        made = makers[kind]()
    return list(made.state_dict()), made.config.to_dict()


REAL = {
    "llama": {"model.layers.": 4},
    "gpt2": {"transformer.h.": 3},
    "gpt2 inside": {"h.": 3},
    "bert": {"encoder.layer.": 3},
    "classifier": {"bert.encoder.layer.": 3},
    "t5": {"encoder.block.": 3, "decoder.block.": 2},
    "neox": {"gpt_neox.layers.": 2},
    "opt": {"model.decoder.layers.": 2},
    "mamba": {"backbone.layers.": 2},
}


@pytest.mark.parametrize("configured", [True, False])
@pytest.mark.parametrize("kind", REAL)
def test_real_models(kind: str, configured: bool) -> None:
    names, config = model(kind)
    layout = infer(names, config if configured else None)
    assert stacks(layout) == REAL[kind]
    assert layout.depths == (frozenset(REAL[kind].values()) if configured else frozenset())
    if len(REAL[kind]) == 1:
        assert {layout.sliced_stack("m").prefix: layout.sliced_stack("m").num_blocks} == REAL[kind]


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2, tiny.bert])
def test_models_on_disk(make: Callable[[Path, int], Path], tmp_path: Path) -> None:
    checkpoint = open_checkpoint("m", make(tmp_path / "m", 0))
    layout = infer(list(checkpoint), checkpoint.config)
    assert len(layout.stacks) == 1
    outside = [name for name, place in layout.places.items() if place.stack is None]
    assert not [name for name in outside if "layer." in name or ".h." in name or "layers." in name]


def test_the_decoder_of_an_encoder_decoder_model() -> None:
    names, config = model("t5")
    for settings_of in (config, {}, {"num_layers": 2}):
        assert infer(names, settings_of).sliced_stack("org/t5") == Stack("decoder.block.", 2)


def test_several_stacks_are_never_chosen_from() -> None:
    names = [f"model.{side}.layers.{i}.w" for side in ("left", "right") for i in range(2)]
    with pytest.raises(MismatchError) as caught:
        infer(names).sliced_stack("org/m")
    assert str(caught.value) == (
        "model 'org/m' has several stacks of layers: model.left.layers.* (2), model.right.layers.* (2)\n"
        "  layer_range needs a single one; merge whole models with 'models:' instead"
    )


def test_no_stack() -> None:
    with pytest.raises(MismatchError) as caught:
        infer(["embed.weight", "head.0.weight"]).sliced_stack("m")
    assert str(caught.value) == (
        "model 'm' has no stack of numbered layers, so layer_range has no meaning\n"
        "  merge whole models with 'models:' instead"
    )


def test_t5_whose_inner_numbers_equal_the_depth() -> None:
    names = [
        f"{side}.block.{i}.layer.{j}.w" for side in ("encoder", "decoder") for i in range(2) for j in range(2)
    ]
    for config in ({"num_layers": 2, "num_decoder_layers": 2}, {}):
        assert stacks(infer(names, config)) == {"encoder.block.": 2, "decoder.block.": 2}


def moe(layers: int, experts: int) -> list[str]:
    return [
        "model.embed_tokens.weight",
        *(
            name
            for i in range(layers)
            for name in (
                f"model.layers.{i}.self_attn.q_proj.weight",
                f"model.layers.{i}.block_sparse_moe.gate.weight",
                *(f"model.layers.{i}.block_sparse_moe.experts.{j}.w1.weight" for j in range(experts)),
            )
        ),
        "lm_head.weight",
    ]


@pytest.mark.parametrize("config", [{"num_hidden_layers": 4}, {}, {"num_hidden_layers": 8}])
@pytest.mark.parametrize("experts", [2, 4, 8])
def test_experts_are_inside_blocks(experts: int, config: dict[str, Any]) -> None:
    layout = infer(moe(4, experts), config)
    assert stacks(layout) == {"model.layers.": 4}
    place = layout.places["model.layers.2.block_sparse_moe.experts.1.w1.weight"]
    assert (place.block, place.leaf) == (2, "block_sparse_moe.experts.1.w1.weight")
    assert place.role == "expert"


def test_single_layers() -> None:
    names = [name for name in model("llama")[0] if ".layers." not in name or ".layers.0." in name]
    assert stacks(infer(names, {"num_hidden_layers": 1})) == {"model.layers.": 1}
    assert stacks(infer(names)) == {}
    assert stacks(infer(moe(1, 4), {"num_hidden_layers": 1})) == {"model.layers.": 1}
    # Nothing says that the one layer is one of a stack; its experts are not taken for layers instead.
    assert stacks(infer(moe(1, 4))) == {}


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("configured", [True, False])
def test_modules_of_a_pipeline_are_not_layers(layers: int, configured: bool) -> None:
    names = [
        "0.auto_model.embeddings.word_embeddings.weight",
        *(f"0.auto_model.encoder.layer.{i}.attention.self.query.weight" for i in range(layers)),
        "1.linear.weight",
        "1.linear.bias",
    ]
    layout = infer(names, {"num_hidden_layers": layers} if configured else {})
    expected = {"0.auto_model.encoder.layer.": layers} if layers > 1 or configured else {}
    assert stacks(layout) == expected


def test_numbers_that_are_not_blocks() -> None:
    names = [
        *(f"model.layers.{i}.w" for i in range(3)),
        "classifier.0.weight",
        "classifier.2.weight",
        "gap.1.weight",
        "gap.2.weight",
        "zeros.00.weight",
        "zeros.01.weight",
        "huge." + "9" * 5000 + ".weight",
        "digits.٠.weight",
        "digits.١.weight",
        "sign.-1.w",
        "list.0",
        "list.1",
        "",
        ".",
        "..",
    ]
    layout = infer(names, {"num_hidden_layers": 3})
    assert stacks(layout) == {"model.layers.": 3}
    assert all(place.stack is None for name, place in layout.places.items() if "layers" not in name)


def test_towers_are_left_aside() -> None:
    names = [f"model.layers.{i}.w" for i in range(4)] + [f"visual.blocks.{i}.w" for i in range(6)]
    for config in (
        {},
        {"num_hidden_layers": 9},
        {"text_config": {"num_hidden_layers": 4}, "vision_config": {"depth": 6}},
        {"vision_config": {"num_hidden_layers": 4}, "num_hidden_layers": 6},
    ):
        layout = infer(names, config)
        assert stacks(layout) == {"model.layers.": 4, "visual.blocks.": 6}
        assert layout.sliced_stack("m") == Stack("model.layers.", 4)
    assert infer(names[4:]).sliced_stack("a tower alone") == Stack("visual.blocks.", 6)


def test_config_chooses_among_stacks() -> None:
    names = [f"model.layers.{i}.w" for i in range(4)] + [f"model.adapters.{i}.w" for i in range(6)]
    for config in ({"num_hidden_layers": 4}, {"num_hidden_layers": 4, "vision_config": {"depth": 6}}):
        assert infer(names, config).sliced_stack("m") == Stack("model.layers.", 4)
    for config in ({}, {"num_hidden_layers": 9}, {"num_hidden_layers": 4, "text_config": {"n_layer": 6}}):
        with pytest.raises(MismatchError, match="several stacks"):
            infer(names, config).sliced_stack("m")


@pytest.mark.parametrize("key", ["num_nextn_predict_layers", "num_mtp_layers"])
def test_layers_that_predict_further_tokens_follow_the_stack(key: str) -> None:
    names = [f"model.layers.{i}.w" for i in range(5)] + ["model.layers.4.eh_proj.weight", "lm_head.weight"]
    layout = infer(names, {"num_hidden_layers": 4, key: 1})
    stack, tail = Stack("model.layers.", 4), Stack("model.layers.", 1, 4)
    assert layout.stacks == (stack, tail)
    assert layout.sliced_stack("m") == stack
    assert layout.tail(stack) == tail
    place = layout.places["model.layers.4.eh_proj.weight"]
    assert (place.stack, place.block, place.leaf) == (tail, 0, "eh_proj.weight")
    # Counted as layers, or not mentioned at all, they are layers as others.
    for config in ({"num_hidden_layers": 5, key: 1}, {"num_hidden_layers": 4}, {}):
        assert infer(names, config).stacks == (Stack("model.layers.", 5),)


GENERATIONS = [
    # The text decoder's layers, then other stacks; older and newer names of the same models are among them.
    ("language_model.model.layers.", "vision_tower.vision_model.encoder.layers."),
    ("model.language_model.layers.", "model.vision_tower.vision_model.encoder.layers."),
    ("model.layers.", "visual.blocks."),
    ("model.language_model.layers.", "model.visual.blocks.", "model.visual.deepstack_merger_list."),
    ("model.text_model.layers.", "model.vision_model.encoder.layers."),
    (
        "language_model.model.layers.",
        "vision_model.transformer.layers.",
        "vision_model.global_transformer.layers.",
    ),
    (
        "thinker.model.layers.",
        "thinker.visual.blocks.",
        "thinker.audio_tower.layers.",
        "talker.model.layers.",
    ),
    ("language_model.model.decoder.layers.", "qformer.encoder.layer.", "vision_model.encoder.layers."),
    ("text_decoder.bert.encoder.layer.", "vision_model.encoder.layers."),
    ("text_model.encoder.layers.", "vision_model.encoder.layers."),
    ("model.decoder.layers.", "model.encoder.layers."),
    ("decoder.transformer.h.", "encoder.encoder.layer."),
    ("model.layers.", "model.mtp.layers.", "mtp.layers."),
    ("backbone.layers.", "backbone.embeddings.codebooks."),
]


@pytest.mark.parametrize("prefixes", GENERATIONS, ids=lambda prefixes: prefixes[0] + prefixes[1])
@pytest.mark.parametrize("backwards", [False, True])
def test_the_text_decoder_is_told_by_its_name(prefixes: tuple[str, ...], backwards: bool) -> None:
    names = [f"{prefix}{i}.attn.weight" for prefix in prefixes for i in range(3)]
    layout = infer(names[::-1] if backwards else names)
    assert stacks(layout) == dict.fromkeys(reversed(prefixes) if backwards else prefixes, 3)
    assert layout.sliced_stack("m") == layout.text_stack == Stack(prefixes[0], 3)


VLM = [
    "model.visual.patch_embed.proj.weight",
    *(f"model.visual.blocks.{i}.attn.qkv.weight" for i in range(3)),
    *(f"model.visual.deepstack_merger_list.{i}.norm.weight" for i in range(2)),
    "model.projector.linear.weight",
    "model.language_model.embed_tokens.weight",
    *(f"model.language_model.layers.{i}.self_attn.q_proj.weight" for i in range(4)),
    "model.language_model.norm.weight",
    "lm_head.weight",
]
DEPTHS = {"text_config": {"num_hidden_layers": 4}, "vision_config": {"depth": 3}}


def test_blocks_that_are_spread_over_several_lists() -> None:
    families = ("attentions", "layer_norm1", "ffns")
    names = [f"transformer.{family}.{i}.weight" for family in families for i in range(3)]
    layout = infer([*names, "transformer.embeddings.weight"])
    stack = Stack("transformer.", 3)
    assert layout.sliced_stack("m") == stack
    assert stack.name(7, layout.places[names[4]].leaf) == "transformer.layer_norm1.7.weight"
    assert infer([name.removeprefix("transformer.") for name in names]).sliced_stack("m") == Stack("", 3)


def test_parts() -> None:
    layout = infer(VLM, DEPTHS)
    text = find_part(layout, None, "m")
    assert (text.root, text.stack) == (None, Stack("model.language_model.layers.", 4))
    for name in ("default", "text_decoder", "language_model"):
        assert find_part(layout, name, "m") == text
    tower = find_part(layout, "visual", "m")
    assert (tower.root, tower.stack) == ("model.visual.", Stack("model.visual.blocks.", 3))
    assert find_part(layout, "vision_tower", "m") == tower
    assert find_part(layout, "projector", "m").stack is None
    with pytest.raises(MismatchError) as caught:
        find_part(layout, "visual_tower", "m")
    assert str(caught.value) == (
        "model 'm' has no part called 'visual_tower'; did you mean 'visual'?\n"
        "  its parts are text_decoder, visual, projector"
    )
    with pytest.raises(MismatchError, match="no part called 'audio_tower'"):
        find_part(layout, "audio_tower", "m")


def test_parts_of_an_encoder_decoder_model() -> None:
    layout = infer(*model("t5"))
    assert find_part(layout, "encoder", "m").stack == Stack("encoder.block.", 3)
    assert find_part(layout, "encoder", "m").root == "encoder."
    assert find_part(layout, "decoder", "m") == find_part(layout, None, "m")


def test_config_that_disagrees_or_makes_no_sense() -> None:
    names, _ = model("llama")
    for depth in (5, 0, -1, True, "4", None, [4], {"n": 4}, 4.0):
        layout = infer(names, {"num_hidden_layers": depth, "text_config": 7, "encoder": None})
        assert layout.sliced_stack("m") == Stack("model.layers.", 4)


components = st.sampled_from(
    ["model", "layers", "h", "experts", "0", "1", "2", "3", "w", "00", "", "-1", "10"]
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(components, min_size=1, max_size=6).map(".".join), unique=True, max_size=30),
    st.dictionaries(st.sampled_from(["num_hidden_layers", "n_layer", "num_layers"]), st.integers(0, 4)),
)
def test_every_name_is_spelled_again_from_its_place(names: list[str], config: dict[str, int]) -> None:
    layout = infer(names, config)
    for stack in layout.stacks:
        blocks = {place.block for place in layout.places.values() if place.stack == stack}
        assert blocks <= set(range(stack.num_blocks))


ROLES = {
    "llama": {
        "model.embed_tokens.weight": "embedding",
        "model.layers.0.self_attn.q_proj.weight": "attention",
        "model.layers.0.mlp.gate_proj.weight": "mlp",
        "model.layers.0.input_layernorm.weight": "norm",
        "model.norm.weight": "norm",
        "lm_head.weight": "lm_head",
    },
    "gpt2": {
        "transformer.wte.weight": "embedding",
        "transformer.wpe.weight": "embedding",
        "transformer.h.0.ln_1.weight": "norm",
        "transformer.h.0.attn.c_attn.weight": "attention",
        "transformer.h.0.mlp.c_fc.weight": "mlp",
        "transformer.ln_f.weight": "norm",
    },
    "bert": {
        "embeddings.word_embeddings.weight": "embedding",
        "embeddings.LayerNorm.weight": "embedding",
        "encoder.layer.0.attention.self.query.weight": "attention",
        "encoder.layer.0.attention.output.LayerNorm.weight": "norm",
        "encoder.layer.0.output.dense.weight": "mlp",
        "pooler.dense.weight": "other",
    },
    "t5": {
        "shared.weight": "embedding",
        "encoder.block.0.layer.0.SelfAttention.q.weight": "attention",
        "encoder.block.0.layer.0.layer_norm.weight": "norm",
        "encoder.block.0.layer.1.DenseReluDense.wi.weight": "mlp",
        "encoder.final_layer_norm.weight": "norm",
    },
}


@pytest.mark.parametrize("kind", ROLES)
def test_roles(kind: str) -> None:
    layout = infer(*model(kind))
    assert {name: layout.places[name].role for name in ROLES[kind]} == ROLES[kind]


def test_roles_of_experts_routers_and_vision() -> None:
    layout = infer(
        [*moe(4, 2), "model.visual.patch_embed.proj.weight", "model.layers.0.mlp.router.weight"],
        {"num_hidden_layers": 4},
    )
    assert layout.places["model.layers.0.block_sparse_moe.gate.weight"].role == "router"
    assert layout.places["model.layers.0.mlp.router.weight"].role == "router"
    assert layout.places["model.visual.patch_embed.proj.weight"].role == "vision"


# ---- depth


def deepened(
    config: dict[str, Any],
    depth: int,
    origins: list[tuple[dict[str, Any], int]],
    prefix: str = "model.layers.",
    text: bool = True,
) -> dict[str, Any]:
    """The configuration after its stack of `depth` was replaced by these layers of other models."""
    made = [Origin(c, c.get("num_hidden_layers", depth), layer) for c, layer in origins]
    return with_depth(config, Stack(prefix, depth), made, text=text)


def test_depth_and_layer_types_of_a_real_configuration() -> None:
    from transformers import Qwen2Config

    config = Qwen2Config(
        num_hidden_layers=4, use_sliding_window=True, max_window_layers=2, eos_token_id=[1, 2, 3, 4], **TINY
    ).to_dict()
    kinds = config["layer_types"]
    assert len(set(kinds)) == 2
    taken = [0, 3, 3, 1, 2, 0]
    result = deepened(config, 4, [(config, layer) for layer in taken])
    changed = {key for key in config if result[key] != config[key]}
    assert changed == {"num_hidden_layers", "layer_types"}
    assert result["num_hidden_layers"] == 6
    assert result["layer_types"] == [kinds[layer] for layer in taken]
    assert Qwen2Config(**result).num_hidden_layers == 6


def test_depth_inside_text_config() -> None:
    from transformers import Gemma3Config

    text = {"num_hidden_layers": 6, "sliding_window_pattern": 3}
    config = Gemma3Config(text_config=text, vision_config={"num_hidden_layers": 2}).to_dict()
    result = deepened(config, 6, [(config, layer) for layer in (2, 2, 0)])
    assert result["text_config"]["num_hidden_layers"] == 3
    assert result["text_config"]["layer_types"] == ["full_attention", "full_attention", "sliding_attention"]
    assert result["vision_config"] == config["vision_config"]


@pytest.mark.parametrize(
    "config", [{"model_type": "x"}, {"text_config": {"model_type": "x"}, "vision_config": {}}]
)
def test_depth_that_a_configuration_leaves_to_a_default(config: dict[str, Any]) -> None:
    """As that of LLaVA-1.5 does: the model would be built as deep as before."""
    result = deepened(config, 4, [(config, layer) for layer in (0, 1, 2, 1, 2, 3)])
    assert result.get("text_config", result)["num_hidden_layers"] == 6
    assert deepened(config, 4, [(config, layer) for layer in (3, 2, 1, 0)]) == config


NONSENSE = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 5) | st.sampled_from(["", "ab", "M*"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["0", "1", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = sorted(
    {spelling.key for spelling in SPELLINGS} | {"layer_types", "linear_attn_config", "mlp_only_layers"}
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), NONSENSE), st.dictionaries(st.sampled_from(KEYS), NONSENSE))
@example({"kv_source_layers": [0, 4]}, {})
def test_nonsense_in_configurations_is_left_alone_or_refused(
    ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    ours, theirs = ({"num_hidden_layers": 2} | settings_of for settings_of in (ours, theirs))
    try:
        result = deepened(ours, 2, [(theirs, 1), (ours, 0), (theirs, 0)])
    except MismatchError:
        return
    assert result["num_hidden_layers"] == 3


def test_a_period_in_one_model_and_a_list_in_the_other() -> None:
    period = {"num_hidden_layers": 2, "sliding_window_pattern": 2}
    listed = {"num_hidden_layers": 2, "layer_types": ["full_attention", "linear_attention"]}
    taken = [(period, 0), (listed, 1), (period, 1), (listed, 0)]
    kinds = ["sliding_attention", "linear_attention", "full_attention", "full_attention"]
    for ours in (period, listed):
        assert deepened(ours, 2, taken) == ours | {"num_hidden_layers": 4, "layer_types": kinds}


def test_each_layer_brings_the_entry_of_its_own_model() -> None:
    ours = {"num_hidden_layers": 2, "layer_types": ["a0", "a1"], "text_config": {"n_layer": 2, "k": [1, 2]}}
    other = {
        "num_hidden_layers": 3,
        "layer_types": ["b0", "b1", "b2"],
        "text_config": {"n_layer": 3, "k": [3, 4, 5]},
    }
    result = deepened(ours, 2, [(other, 2), (ours, 0), (other, 1)])
    assert result == {
        "num_hidden_layers": 3,
        "layer_types": ["b2", "a0", "b1"],
        "text_config": {"n_layer": 3, "k": [5, 1, 4]},
    }
    assert ours["layer_types"] == ["a0", "a1"]


@pytest.mark.parametrize("other", [{}, {"layer_types": None}, {"layer_types": 3}, {"layer_types": "ab"}])
def test_a_model_without_the_list_is_built_like_the_donor(other: dict[str, Any]) -> None:
    ours = {"num_hidden_layers": 2, "layer_types": ["a0", "a1"]}
    assert deepened(ours, 2, [(other, 1), (ours, 0)])["layer_types"] == ["a1", "a0"]
    with pytest.raises(MismatchError) as caught:
        deepened(ours, 2, [(ours, 0), (other, 2)])
    assert str(caught.value) == (
        "'layer_types' of config.json has 2 entries, none for layer 2\n"
        "  the models' configurations describe their layers differently; correct one of them"
    )


def test_sections_that_the_other_model_lacks() -> None:
    ours = {"text_config": {"num_hidden_layers": 2, "layer_types": ["a0", "a1"]}}
    for other in ({}, {"text_config": None}, {"text_config": [1]}):
        result = deepened(ours, 2, [(other, 1)])
        assert result["text_config"] == {"num_hidden_layers": 1, "layer_types": ["a1"]}


def test_lists_that_are_as_long_by_chance() -> None:
    config = {
        "num_hidden_layers": 1,
        "architectures": ["LlamaForCausalLM"],
        "eos_token_id": [2],
        "forced_token_ids": [3],
        "layer_types": ["full"],
        "rope_scaling": {"mrope_section": [16]},
        "id2label": {"0": "a"},
    }
    result = deepened(config, 1, [(config, 0)] * 3)
    assert result == config | {"num_hidden_layers": 3, "layer_types": ["full"] * 3}


def test_numbers_that_equal_the_depth_by_chance() -> None:
    config = {"num_hidden_layers": 4, "num_attention_heads": 4, "n_layer": True, "vision": {"depth": 4}}
    assert deepened(config, 4, [(config, 0)]) == config | {"num_hidden_layers": 1}
    shallow = {"num_hidden_layers": 1, "n_layer": True}
    assert deepened(shallow, 1, [(shallow, 0)] * 2) == {"num_hidden_layers": 2, "n_layer": True}


def test_the_section_that_describes_the_stack() -> None:
    config = {
        "num_hidden_layers": 4,
        "text_config": {"num_hidden_layers": 4, "k": [1, 2, 3, 4]},
        "vision_config": {"depth": 4, "k": [1, 2, 3, 4]},
        "encoder": {"num_layers": 4},
    }
    text = deepened(config, 4, [(config, 3)], "model.language_model.layers.")
    assert text == config | {"num_hidden_layers": 1, "text_config": {"num_hidden_layers": 1, "k": [4]}}
    other = {"gpt_cfg": {"n_layer": 4}, "audio_cfg": {"n_layer": 4}}
    assert deepened(other, 4, [(other, 0)]) == other | {"gpt_cfg": {"n_layer": 1}}
    tower = deepened(config, 4, [(config, 3)], "model.visual.blocks.", text=False)
    assert tower == config | {"vision_config": {"depth": 1, "k": [4]}}


@pytest.mark.parametrize(
    ("config", "prefix", "changed"),
    [
        ({"num_layers": 2, "num_decoder_layers": 2}, "decoder.block.", "num_decoder_layers"),
        ({"num_layers": 2, "num_decoder_layers": 2}, "encoder.block.", "num_layers"),
        (
            {"encoder_layers": 2, "decoder_layers": 2, "num_hidden_layers": 2},
            "model.decoder.layers.",
            "decoder_layers",
        ),
        ({"num_hidden_layers": 2}, "model.decoder.layers.", "num_hidden_layers"),
    ],
)
def test_keys_of_encoder_and_decoder(config: dict[str, Any], prefix: str, changed: str) -> None:
    text = "decoder" in prefix
    assert deepened(config, 2, [(config, 0)] * 3, prefix, text) == config | {changed: 3}


SPELLED: list[tuple[dict[str, Any], list[int], dict[str, Any]]] = [
    # A configuration of four layers, the layers of the new model, what changes.
    ({"first_k_dense_replace": 1}, [0, 0, 1, 2, 3], {"first_k_dense_replace": 2}),
    ({"first_k_dense_replace": 9}, [0, 1, 2, 3, 3], {}),
    ({"max_window_layers": 2}, [3, 0, 1], {}),
    ({"max_window_layers": 2, "use_sliding_window": True}, [0, 0, 3], {}),
    ({"num_kv_shared_layers": 2}, [0, 2, 3, 3], {"num_kv_shared_layers": 3}),
    ({"mlp_only_layers": [1], "decoder_sparse_step": 1}, [1, 0, 1], {"mlp_only_layers": [0, 2]}),
    (
        {"mlp_only_layers": [], "decoder_sparse_step": 2},
        [0, 0, 1],
        {"mlp_only_layers": [0, 1], "decoder_sparse_step": 1},
    ),
    ({"attn_layer_indices": [2]}, [2, 0, 2], {"attn_layer_indices": [0, 2]}),
    (
        {"linear_attn_config": {"full_attn_layers": [4], "kda_layers": [1, 2, 3], "head_dim": 8}},
        [3, 0],
        {"linear_attn_config": {"full_attn_layers": [1], "kda_layers": [2], "head_dim": 8}},
    ),
    ({"sliding_window_pattern": 2}, [0, 1, 2, 3, 0, 1], {}),
    (
        {"sliding_window_pattern": 2},
        [0, 1, 1],
        {"layer_types": ["sliding_attention", "full_attention", "full_attention"]},
    ),
    ({"model_type": "gemma2"}, [0, 1, 0], {}),
    ({"model_type": "gemma2"}, [1, 0], {"layer_types": ["full_attention", "sliding_attention"]}),
    ({"no_rope_layer_interval": 4, "no_rope_layers": []}, [3, 0], {"no_rope_layers": [0, 1]}),
    ({"per_layer_config": {"1": {"k": 2}}}, [1, 0, 1], {"per_layer_config": {"0": {"k": 2}, "2": {"k": 2}}}),
    ({"kv_source_layers": [0, 0, 2, 2]}, [2, 3, 0, 1], {}),
    ({"hybrid_override_pattern": "M*-E"}, [3, 0, 0], {"hybrid_override_pattern": "EMM"}),
    ({"block_types": ["r", "r", "a"]}, [0, 1, 2, 0], {}),
    ({"block_types": ["r", "r", "a"]}, [2, 3], {"block_types": ["a", "r"]}),
    ({"attention_types": [[["g", "l"], 2]]}, [1, 1, 0], {"attention_types": [[["l", "l", "g"], 1]]}),
    ({"attn_layer_period": 2, "attn_layer_offset": 1}, [0, 3, 2, 1], {}),
    (
        {"moe_layer_start_index": 1, "moe_layer_end_index": -1, "moe_layer_interval": 1},
        [0, 0, 3],
        {"moe_layer_start_index": 2, "moe_layer_end_index": 2},
    ),
]


@pytest.mark.parametrize(("config", "taken", "changes"), SPELLED)
def test_every_way_to_say_what_a_layer_is(
    config: dict[str, Any], taken: list[int], changes: dict[str, Any]
) -> None:
    config = {"num_hidden_layers": 4} | config
    expected = config | changes | {"num_hidden_layers": len(taken)}
    assert deepened(config, 4, [(config, layer) for layer in taken]) == expected


@pytest.mark.parametrize(
    ("config", "taken"),
    [
        ({"first_k_dense_replace": 1}, [1, 0]),
        ({"num_kv_shared_layers": 1}, [3, 0]),
        ({"attn_layer_period": 2, "attn_layer_offset": 1}, [0, 0]),
        ({"moe_layer_start_index": 1}, [1, 0, 1]),
        ({"kv_source_layers": [0, 1, 1, 3]}, [1, 2, 2, 0]),
    ],
)
def test_layers_that_no_setting_describes(config: dict[str, Any], taken: list[int]) -> None:
    config = {"num_hidden_layers": 4} | config
    with pytest.raises(MismatchError, match="cannot describe these") as caught:
        deepened(config, 4, [(config, layer) for layer in taken])
    assert "keep to it" in caught.value.hint
