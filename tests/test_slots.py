"""Which tensors make which output tensor, and with which parameters: the recipe language, rule by rule."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch

import tiny
from meldkit.checkpoint import open_model
from meldkit.errors import MismatchError, NotSupportedError, RecipeError
from meldkit.plan import Plan, TensorJob, build_plan
from meldkit.recipe import parse_recipe

Q = "model.layers.{}.self_attn.q_proj.weight"
UP = "model.layers.{}.mlp.up_proj.weight"
LINEAR = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a}, {model: b}]\n"
EMBED, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models base, a, b (2 layers) and deep (5 layers) in the current folder."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "a", "b")):
        tiny.decoder(tmp_path / name, seed)
    tiny.decoder(tmp_path / "deep", 9, layers=5)
    return tmp_path


def plan(text: str, **options: Any) -> Plan:
    return build_plan(parse_recipe(dedent(text)), open_model, **options)


def job(made: Plan, name: str) -> TensorJob:
    (found,) = (j for j in made.jobs if j.name == name)
    return found


def names(made: Plan) -> list[str]:
    return [j.name for j in made.jobs]


def inputs(made: Plan, name: str) -> list[str]:
    """`model:tensor` of each input, the base last after a '-'."""
    found = job(made, name)
    label = [c.label for c in made.checkpoints]
    texts = [f"{label[i.checkpoint]}:{i.tensor}" for i in found.inputs]
    return texts + ([f"-{label[found.base.checkpoint]}:{found.base.tensor}"] if found.base else [])


# dtype


def test_without_dtype_each_tensor_keeps_the_bases() -> None:
    tiny.decoder(Path("half"), 3, dtype=torch.float16)
    text = LINEAR.replace("model: b", "model: half")
    assert {j.dtype for j in plan(text).jobs} == {"F32"}
    assert {j.dtype for j in plan(f"base_model: half\n{text}").jobs} == {"F16"}


def test_mixed_dtypes_of_the_base_are_kept_tensor_by_tensor() -> None:
    tiny.decoder(Path("mixed"), 3, dtype=torch.bfloat16, without=(NORM,), extra={NORM: torch.ones(4)})
    made = plan(LINEAR.replace("model: a", "model: mixed"))
    assert job(made, NORM).dtype == "F32"
    assert job(made, EMBED).dtype == "BF16"
    assert made.config is not None
    assert made.config["dtype"] == "bfloat16"  # that of most elements


@pytest.mark.parametrize(
    ("lines", "stored"),
    [
        ("dtype: bfloat16", "BF16"),
        ("out_dtype: float16", "F16"),
        ("dtype: bfloat16\nout_dtype: float16", "F16"),
    ],
)
def test_out_dtype_wins_over_dtype(lines: str, stored: str) -> None:
    tiny.decoder(Path("a"), 1, torch_dtype="float32")
    made = plan(f"merge_method: passthrough\nmodels: [{{model: a}}]\n{lines}")
    assert {j.dtype for j in made.jobs} == {stored}
    assert made.config is not None
    assert made.config["torch_dtype"] == {"BF16": "bfloat16", "F16": "float16"}[stored]
    assert "dtype" not in made.config


def test_integers_are_copied_and_never_cast() -> None:
    ids = {"model.position_ids": torch.arange(4)}
    for name in ("a", "b"):
        tiny.decoder(Path(name), 1, extra=ids)
    made = plan(LINEAR + "dtype: float16")
    assert (job(made, "model.position_ids").dtype, job(made, "model.position_ids").method) == ("I64", None)
    assert made.notes == ("model.position_ids: I64, copied from 'a'",)


def test_integers_are_not_merged_with_numbers() -> None:
    tiny.decoder(Path("b"), 2, without=(NORM,), extra={NORM: torch.ones(4, dtype=torch.int8)})
    with pytest.raises(MismatchError, match=r"'model\.norm\.weight' is F32 in 'a' and I8 in 'b'"):
        plan(LINEAR)


# which tensors


def test_order_is_the_bases_own() -> None:
    assert names(plan(LINEAR)) == list(open_model(parse_recipe(LINEAR).models()[0]))


def test_tensor_that_one_model_lacks_is_copied_and_noted() -> None:
    tiny.decoder(Path("b"), 2, without=(NORM,))
    made = plan(LINEAR)
    assert job(made, NORM).method is None
    assert inputs(made, NORM) == [f"a:{NORM}"]
    assert made.notes == (f"{NORM}: copied from 'a'; missing in 'b'",)


def test_tensor_that_the_first_model_lacks_is_copied_from_the_other() -> None:
    tiny.decoder(Path("b"), 2, extra={"model.extra": torch.ones(3)})
    made = plan(LINEAR)
    assert inputs(made, "model.extra") == ["b:model.extra"]
    assert made.notes == ("model.extra: copied from 'b'; missing in 'a'",)


def test_with_a_base_the_output_has_exactly_its_tensors() -> None:
    tiny.decoder(Path("b"), 2, extra={"model.extra": torch.ones(3)})
    made = plan("base_model: base\n" + LINEAR)
    assert names(made) == list(
        open_model(parse_recipe("merge_method: x\nmodels: [{model: base}]").models()[0])
    )
    assert made.notes == ("model.extra: left out; 'b' has it, 'base' does not",)


def test_tensor_that_only_the_base_has_comes_from_it() -> None:
    tiny.decoder(Path("base"), 0, extra={"vision_tower.proj.weight": torch.ones(3)})
    made = plan("base_model: base\n" + LINEAR.replace("linear", "task_arithmetic"))
    assert inputs(made, "vision_tower.proj.weight") == ["base:vision_tower.proj.weight"]
    assert made.notes == ("vision_tower.proj.weight: copied from 'base'; missing in 'a', 'b'",)


@pytest.mark.parametrize("base", ["", "base_model: a\n"])
def test_in_slices_a_tensor_of_one_source_is_not_dropped_silently(base: str) -> None:
    bias = "model.layers.1.self_attn.q_proj.bias"
    tiny.decoder(Path("b"), 2, extra={bias: torch.ones(4)})
    made = plan(
        base
        + """\
        merge_method: linear
        parameters: {weight: 1}
        slices: [{sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2]}]}]
        """.replace("        ", "")
    )
    if base:
        assert bias not in names(made)
        assert made.notes == (f"{bias}: left out; 'b' has it, 'a' does not",)
    else:
        assert inputs(made, bias) == [f"b:{bias}"]
        assert made.notes == (f"{bias}: copied from 'b'; missing in 'a'",)


def test_tied_head_is_left_out() -> None:
    for name in ("a", "b"):
        tiny.decoder(Path(name), 1, tie_word_embeddings=True)
    made = plan(LINEAR)
    assert HEAD not in names(made)
    assert made.notes == (f"{HEAD}: left out; it is tied to the embedding (tie_word_embeddings)",)


@pytest.mark.parametrize("tied", [{"tie_word_embeddings": True}, {"tie_word_embeddings": None}])
def test_tied_model_gets_no_head_from_others(tied: dict[str, object]) -> None:
    tiny.decoder(Path("a"), 1, without=(HEAD,), **tied)
    if tied["tie_word_embeddings"] is None:
        config = json.loads(Path("a/config.json").read_text())
        del config["tie_word_embeddings"]
        Path("a/config.json").write_text(json.dumps(config))
    made = plan(LINEAR)
    assert HEAD not in names(made)
    assert made.notes == ()
    assert made.warnings == (
        f"{HEAD}: left out; 'b' has a head of its own, but 'a', which the output is like, has its embedding "
        "for one. To keep the head, let the former be base_model, or stand first if there is none",
    )


# bases


def test_base_listed_or_not_gives_the_same_task_vectors() -> None:
    listed = "models: [{model: base}, {model: a}, {model: b}]"
    text = "merge_method: task_arithmetic\nbase_model: base\nparameters: {weight: 1}\n"
    unlisted = plan(text + "models: [{model: a}, {model: b}]")
    both = plan(text + listed)
    assert inputs(unlisted, NORM) == inputs(both, NORM) == [f"a:{NORM}", f"b:{NORM}", f"-base:{NORM}"]
    assert job(both, NORM).values["weight"] == (1.0, 1.0)


def test_base_listed_with_weight_is_a_model_of_linear_and_idle_in_task_arithmetic() -> None:
    models = (
        "base_model: base\n"
        "models: [{model: base, parameters: {weight: 0.5}}, {model: a, parameters: {weight: 1}}]\n"
    )
    made = plan(models + "merge_method: linear")
    assert inputs(made, NORM) == [f"base:{NORM}", f"a:{NORM}"]
    assert job(made, NORM).values["weight"] == (0.5, 1.0)
    made = plan(models + "merge_method: task_arithmetic")
    assert inputs(made, NORM) == [f"a:{NORM}", f"-base:{NORM}"]
    assert made.warnings == (
        "recipe.yml:2: the parameters of base_model 'base' have no effect: "
        "task_arithmetic merges the others' differences from it",
    )


def test_unlisted_base_of_linear_only_donates() -> None:
    made = plan("base_model: base\n" + LINEAR)
    assert inputs(made, NORM) == [f"a:{NORM}", f"b:{NORM}"]
    assert made.checkpoints[made.donor].label == "base"


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_slerp_starts_at_the_base_wherever_it_stands(order: tuple[str, str]) -> None:
    first, second = order
    made = plan(
        "merge_method: slerp\nbase_model: a\nparameters: {t: 0.25}\n"
        f"models: [{{model: {first}}}, {{model: {second}}}]"
    )
    assert inputs(made, NORM) == [f"a:{NORM}", f"b:{NORM}"]


def test_slice_has_a_base_of_its_own() -> None:
    made = plan(
        """\
        merge_method: task_arithmetic
        base_model: base
        parameters: {weight: 1}
        slices:
          - sources: [{model: base, layer_range: [0, 1]}, {model: a, layer_range: [0, 1]}]
          - base_model: b
            sources: [{model: b, layer_range: [1, 2]}, {model: a, layer_range: [1, 2]}]
        """
    )
    assert inputs(made, Q.format(0)) == [f"a:{Q.format(0)}", f"-base:{Q.format(0)}"]
    assert inputs(made, Q.format(1)) == [f"a:{Q.format(1)}", f"-b:{Q.format(1)}"]
    assert inputs(made, EMBED) == [f"a:{EMBED}", f"-base:{EMBED}"]
    assert inputs(made, NORM) == [f"a:{NORM}", f"-b:{NORM}"]


def test_same_model_twice_is_two_inputs() -> None:
    made = plan(
        "merge_method: linear\n"
        "models: [{model: a, parameters: {weight: 1}}, {model: a, parameters: {weight: 3}}]"
    )
    assert inputs(made, NORM) == [f"a:{NORM}", f"a:{NORM}"]
    assert job(made, NORM).values["weight"] == (1.0, 3.0)
    assert len(made.checkpoints) == 1
    folded = plan(
        """\
        merge_method: slerp
        base_model: deep
        parameters: {t: 0.5}
        slices: [{sources: [{model: deep, layer_range: [0, 2]}, {model: deep, layer_range: [3, 5]}]}]
        """
    )
    assert inputs(folded, Q.format(1)) == [f"deep:{Q.format(1)}", f"deep:{Q.format(4)}"]


# slices


def test_frankenmerge_stacks_layers_of_models_of_any_depth() -> None:
    tiny.decoder(
        Path("deep"), 9, layers=5, layer_types=["full"] * 4 + ["sliding"], rope={"factor": [1, 2, 3, 4, 5]}
    )
    tiny.decoder(Path("a"), 1, layer_types=["x", "y"])
    made = plan(
        """\
        merge_method: passthrough
        slices:
          - sources: [{model: deep, layer_range: [0, 3]}]
          - sources: [{model: a, layer_range: [1, 2]}]
          - sources: [{model: deep, layer_range: [2, 5]}]
        """
    )
    sources = [inputs(made, Q.format(i)) for i in range(7)]
    assert sources == [
        [f"{model}:{Q.format(layer)}"]
        for model, layer in (
            ("deep", 0),
            ("deep", 1),
            ("deep", 2),
            ("a", 1),
            ("deep", 2),
            ("deep", 3),
            ("deep", 4),
        )
    ]
    assert made.num_layers == 7
    assert made.config is not None
    assert made.config["num_hidden_layers"] == 7
    assert made.config["layer_types"] == ["full", "full", "full", "y", "full", "full", "sliding"]
    assert len(names(made)) == len(set(names(made))) == 7 * 3 + 3


def test_first_slice_gives_the_embedding_and_the_last_one_the_rest() -> None:
    made = plan(
        """\
        merge_method: passthrough
        slices:
          - {sources: [{model: a, layer_range: [0, 1]}], parameters: {scale: 2}}
          - {sources: [{model: b, layer_range: [1, 2]}], parameters: {scale: 3}}
        """
    )
    assert (inputs(made, EMBED), job(made, EMBED).values) == ([f"a:{EMBED}"], {"scale": (2.0,)})
    for name in (NORM, HEAD):
        assert (inputs(made, name), job(made, name).values) == ([f"b:{name}"], {"scale": (3.0,)})


def test_empty_slice_lends_its_embedding_and_no_layers() -> None:
    made = plan(
        """\
        merge_method: passthrough
        slices:
          - sources: [{model: b, layer_range: [0, 0]}]
          - sources: [{model: a, layer_range: [0, 2]}]
        """
    )
    assert inputs(made, EMBED) == [f"b:{EMBED}"]
    assert inputs(made, Q.format(0)) == [f"a:{Q.format(0)}"]
    assert made.num_layers == 2


def test_layers_beyond_a_model_are_an_error() -> None:
    with pytest.raises(RecipeError) as caught:
        plan("merge_method: passthrough\nslices:\n- sources:\n  - {model: a, layer_range: [0, 3]}")
    assert str(caught.value) == (
        "recipe.yml:4: layer_range [0, 3] of model 'a', which has 2 layers\n"
        "  the end is not included: all layers are [0, 2]"
    )


# gradients, filters, scopes


def test_gradient_runs_over_the_depth_of_each_slice() -> None:
    made = plan(
        """\
        merge_method: slerp
        base_model: deep
        parameters: {t: [{filter: self_attn, value: [0, 1, 0.5]}, {value: 0}]}
        slices:
          - sources: [{model: deep, layer_range: [0, 5]}, {model: deep, layer_range: [0, 5]}]
          - sources: [{model: deep, layer_range: [0, 2]}, {model: deep, layer_range: [3, 5]}]
          - sources: [{model: deep, layer_range: [0, 1]}, {model: deep, layer_range: [4, 5]}]
        """
    )
    got = [job(made, Q.format(i)).values["t"] for i in range(8)]
    # Five layers: 0, ¼, ½, ¾, 1 of the way; then two: its ends; then one: t = 1.
    assert got == [0.0, 0.5, 1.0, 0.75, 0.5, 0.0, 0.5, 0.5]


def test_gradient_of_whole_models_runs_over_all_layers_and_warns_outside_them() -> None:
    made = plan(
        "merge_method: slerp\nbase_model: a\nparameters:\n  t: [0, 1]\nmodels: [{model: a}, {model: b}]"
    )
    assert [job(made, UP.format(i)).values["t"] for i in range(2)] == [0.0, 1.0]
    assert job(made, HEAD).values["t"] == 0.0
    assert made.warnings == (
        "recipe.yml:4: the gradient of 't' also reaches lm_head.weight, model.embed_tokens.weight "
        "and 1 more, which stand outside the layers and take its first value; to leave them out, put it "
        "under a filter such as 'layers', and give the rest a value",
    )


def test_gradients_of_weights_and_of_constants_do_not_warn_where_they_say_the_same() -> None:
    made = plan(
        "merge_method: linear\n"
        "models: [{model: a, parameters: {weight: [1, 1, 1]}}, {model: b, parameters: {weight: 1}}]"
    )
    assert made.warnings == ()


def test_narrow_scopes_come_first_and_filters_that_miss_fall_through() -> None:
    made = plan(
        """\
        merge_method: linear
        modules:
          default:
            parameters: {weight: [{filter: mlp, value: 3}]}
            slices:
              - parameters: {weight: [{filter: input_layernorm, value: 2}]}
                sources:
                  - {model: a, layer_range: [0, 2], parameters: {weight: [{filter: self_attn, value: 1}]}}
                  - {model: b, layer_range: [0, 2]}
        parameters: {weight: 4}
        """
    )

    def weights(name: str) -> Any:
        return job(made, name).values["weight"]

    assert weights(Q.format(0)) == (1.0, 4.0)
    assert weights("model.layers.0.input_layernorm.weight") == (2.0, 2.0)
    assert weights(UP.format(0)) == (3.0, 3.0)
    assert weights(HEAD) == (4.0, 4.0)


def test_per_model_filters_see_the_models_own_names_and_others_the_outputs() -> None:
    text = """\
        merge_method: linear
        parameters: {normalize: [{filter: layers.0., value: false}, {value: true}]}
        slices:
          - sources:
              - model: deep
                layer_range: [3, 4]
                parameters: {weight: [{filter: layers.3., value: 2}, {value: 1}]}
              - model: a
                layer_range: [0, 1]
                parameters: {weight: [{filter: layers.0., value: 5}, {value: 1}]}
        """
    values = job(plan(text), Q.format(0)).values
    assert values == {"weight": (2.0, 5.0), "normalize": False}
    assert job(plan(text), HEAD).values == {"weight": (1.0, 1.0), "normalize": True}


@pytest.mark.parametrize(
    ("pattern", "reached"), [("'*'", 9), ("'re:layers\\.[01]\\.mlp'", 2), ("'glob:*.norm.weight'", 1)]
)
def test_kinds_of_filters(pattern: str, reached: int) -> None:
    made = plan(
        "merge_method: passthrough\n"
        f"models: [{{model: a, parameters: {{scale: [{{filter: {pattern}, value: 2}}]}}}}]"
    )
    assert sum(j.method is not None for j in made.jobs) == reached


# models that do not fit


def test_other_architectures_need_permission() -> None:
    tiny.decoder(Path("b"), 2, architectures=["MistralForCausalLM"])
    with pytest.raises(
        MismatchError, match="model 'b' is a MistralForCausalLM, 'a' is a LlamaForCausalLM"
    ) as caught:
        plan(LINEAR)
    assert "--allow-crimes" in caught.value.hint
    assert names(plan(LINEAR, allow_crimes=True)) == names(plan(LINEAR.replace("b", "a")))
    believed = LINEAR.replace("{model: b}", "{model: {model: b, override_architecture: LlamaForCausalLM}}")
    assert len(plan(believed).jobs) == 9


def test_permission_covers_names_and_nothing_else() -> None:
    tiny.decoder(Path("b"), 2, hidden=8, architectures=["MistralForCausalLM"])
    with pytest.raises(MismatchError) as caught:
        plan(LINEAR, allow_crimes=True)
    assert str(caught.value) == (
        "tensor 'lm_head.weight' has shape [6, 4] in 'a' and [6, 8] in 'b'; 8 more of 9 tensors do not fit: "
        "'model.embed_tokens.weight' [6, 4] and [6, 8], 'model.layers.0.input_layernorm.weight' [4] and [8]"
        ", …\n"
        "  models can be merged only where their tensors have equal shapes"
    )


def test_models_of_different_kinds_and_depths() -> None:
    tiny.stored(Path("b"), {"transformer.wte.weight": torch.ones(6, 4)})
    with pytest.raises(MismatchError, match=r"'b' lacks 9 of 10 tensors, the first is 'lm_head\.weight'"):
        plan(LINEAR)
    with pytest.raises(MismatchError) as caught:
        plan(LINEAR.replace("model: b", "model: deep"))
    assert str(caught.value) == (
        "model 'deep' has 5 blocks model.layers.*, 'a' has 2\n"
        "  use 'slices:' with a layer_range to say which layers to merge"
    )


@pytest.mark.parametrize("name", ["default", "text_decoder"])
def test_the_only_module_may_be_named(name: str) -> None:
    made = plan(f"merge_method: passthrough\nmodules: {{{name}: {{models: [{{model: a}}]}}}}")
    assert len(made.jobs) == 9


# several modules

BLOCK = "model.vision_tower.blocks.{}.w"
PROJECTOR = "model.projector.weight"


@pytest.fixture
def vlms(models: Path) -> None:
    """Models u, v, w: the decoder above with a tower of three blocks and a projector."""
    for seed, name in enumerate("uvw"):
        tower = {BLOCK.format(i): torch.full((2,), float(i)) for i in range(3)} | {PROJECTOR: torch.ones(2)}
        settings = {"vision_config": {"depth": 3, "k": [0, 1, 2]}}
        tiny.decoder(models / name, seed, extra=tower, **settings)


@pytest.mark.usefixtures("vlms")
def test_modules_of_whole_models() -> None:
    made = plan(
        """\
        merge_method: linear
        parameters: {weight: 1}
        modules:
          text_decoder: {models: [{model: u}, {model: v}]}
          vision_tower: {models: [{model: v}, {model: w}], parameters: {weight: 2}}
        """
    )
    assert names(made) == list(made.checkpoints[0])
    assert inputs(made, Q.format(1)) == [f"u:{Q.format(1)}", f"v:{Q.format(1)}"]
    assert inputs(made, BLOCK.format(1)) == [f"v:{BLOCK.format(1)}", f"w:{BLOCK.format(1)}"]
    # What no module names is merged with the text decoder.
    assert inputs(made, PROJECTOR) == [f"u:{PROJECTOR}", f"v:{PROJECTOR}"]
    assert job(made, PROJECTOR).values["weight"] == (1.0, 1.0)
    assert job(made, BLOCK.format(0)).values["weight"] == (2.0, 2.0)


@pytest.mark.usefixtures("vlms")
def test_each_module_has_slices_of_its_own() -> None:
    made = plan(
        """\
        merge_method: passthrough
        modules:
          vision_tower:
            slices:
              - sources: [{model: v, layer_range: [0, 1]}]
              - sources: [{model: w, layer_range: [2, 3]}]
          default:
            slices:
              - sources: [{model: u, layer_range: [0, 2]}]
              - sources: [{model: v, layer_range: [1, 2]}]
        """
    )
    assert [inputs(made, Q.format(i)) for i in range(3)] == [
        [f"u:{Q.format(0)}"],
        [f"u:{Q.format(1)}"],
        [f"v:{Q.format(1)}"],
    ]
    assert [inputs(made, BLOCK.format(i)) for i in range(2)] == [
        [f"v:{BLOCK.format(0)}"],
        [f"w:{BLOCK.format(2)}"],
    ]
    assert BLOCK.format(2) not in names(made)
    assert len(names(made)) == 3 * 3 + 3 + 2 + 1
    assert made.config is not None
    assert made.config["num_hidden_layers"] == 3
    assert made.config["vision_config"] == {"depth": 2, "k": [0, 2]}


@pytest.mark.usefixtures("vlms")
def test_slices_of_the_text_decoder_carry_the_tower() -> None:
    made = plan("merge_method: passthrough\nslices: [{sources: [{model: u, layer_range: [0, 1]}]}]")
    assert [n for n in names(made) if "tower" in n] == [BLOCK.format(i) for i in range(3)]
    assert made.config is not None
    assert made.config["vision_config"] == {"depth": 3, "k": [0, 1, 2]}


@pytest.mark.usefixtures("vlms")
def test_without_a_text_decoder_the_first_module_gets_the_rest() -> None:
    made = plan(
        "merge_method: passthrough\n"
        "modules: {vision_tower: {models: [{model: v}]}, projector: {models: [{model: w}]}}"
    )
    assert inputs(made, BLOCK.format(0)) == [f"v:{BLOCK.format(0)}"]
    assert inputs(made, PROJECTOR) == [f"w:{PROJECTOR}"]
    assert inputs(made, Q.format(0)) == [f"v:{Q.format(0)}"]


@pytest.mark.usefixtures("vlms")
@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ("{tower: {models: [{model: u}]}}", "model 'u' has no part called 'tower'"),
        (
            "{default: {models: [{model: u}]}, text_decoder: {models: [{model: u}]}}",
            "modules 'default' and 'text_decoder' are the same part of the model",
        ),
        (
            "{projector: {slices: [{sources: [{model: u, layer_range: [0, 1]}]}]}}",
            "model 'u' has no single stack of numbered layers in 'projector', so layer_range has no meaning",
        ),
        (
            "{vision_tower: {slices: [{sources: [{model: u, layer_range: [0, 4]}]}]}}",
            r"layer_range \[0, 4\] of model 'u', which has 3 layers",
        ),
        ("{default: {models: [{model: u}, {model: deep}]}}", "model 'deep' has 5 blocks model.layers"),
    ],
)
def test_modules_that_do_not_fit(modules: str, message: str) -> None:
    method = "linear\nparameters: {weight: 1}" if "deep" in modules else "passthrough"
    with pytest.raises((MismatchError, RecipeError), match=message):
        plan(f"merge_method: {method}\nmodules: {modules}")


@pytest.mark.parametrize(
    ("extra", "config", "why"),
    [
        ({"model.embed_tokens_per_layer.weight": torch.ones(6, 4)}, {}, "holds a share of every layer"),
        ({}, {"text_config": {"model_type": "zamba2"}}, "its shared block holds an adapter"),
    ],
)
def test_layers_that_cannot_be_moved(extra: dict[str, Any], config: dict[str, Any], why: str) -> None:
    tiny.decoder(Path("a"), 1, extra=extra, **config)
    text = "merge_method: passthrough\nslices: [{{sources: [{{model: a, layer_range: [{}, 2]}}]}}]"
    with pytest.raises(NotSupportedError, match=f"not supported: other layers of 'a', because .*{why}"):
        plan(text.format(1))
    assert len(names(plan(text.format(0)))) == 9 + len(extra)


def test_layers_after_the_last_one_keep_their_place_after_the_new_last() -> None:
    mtp = "model.layers.{}.eh_proj.weight"
    for name, layers in (("a", 2), ("deep", 5)):
        tiny.decoder(
            Path(name),
            1,
            layers=layers,
            extra={mtp.format(layers): torch.ones(2)},
            num_nextn_predict_layers=1,
        )
    made = plan(
        """\
        merge_method: passthrough
        slices:
          - sources: [{model: a, layer_range: [0, 2]}]
          - sources: [{model: deep, layer_range: [4, 5]}]
        """
    )
    assert inputs(made, mtp.format(3)) == [f"deep:{mtp.format(5)}"]
    assert len(names(made)) == 3 * 3 + 3 + 1
    assert made.config is not None
    assert (made.config["num_hidden_layers"], made.config["num_nextn_predict_layers"]) == (3, 1)
