"""Recipes in the variety that is found in the wild, and what they must mean."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import yaml

from meldkit.config import MergeConfiguration
from meldkit.recipe import (
    AdapterRef,
    Filtered,
    Gradient,
    ModelRef,
    ModelToken,
    Parameters,
    Recipe,
    Slice,
    TokenEntry,
    TokenizerSpec,
    parse_recipe,
    parse_recipes,
    recipe_from_data,
)

GOLDEN = Path(__file__).parent / "golden" / "recipe_wild.txt"

# Each recipe follows a line `#### name`.
CASES = (case.split("\n", 1) for case in GOLDEN.read_text(encoding="utf-8").split("#### ")[1:])
WILD: dict[str, str] = dict(CASES)


def wild(name: str) -> Recipe:
    return parse_recipe(WILD[name])


@pytest.mark.parametrize("name", WILD)
def test_reads_and_reads_back(name: str) -> None:
    text = WILD[name]
    recipe = parse_recipe(text)
    again = parse_recipe(recipe.to_yaml())
    assert again == recipe
    assert again.to_yaml() == recipe.to_yaml()
    assert again.warnings == ()


@pytest.mark.parametrize("name", WILD)
def test_python_data_means_the_same(name: str) -> None:
    text = WILD[name]
    data = yaml.safe_load(text)
    recipe = parse_recipe(text)
    assert recipe_from_data(data) == recipe
    config = MergeConfiguration.model_validate(data)
    assert config.recipe() == recipe
    assert config.to_yaml() == recipe.to_yaml()
    assert config.referenced_models() == list(recipe.models())
    assert MergeConfiguration.model_validate(config.model_dump()).recipe() == recipe
    assert (
        MergeConfiguration.model_validate_json(config.model_dump_json(exclude_none=True)).recipe() == recipe
    )


@pytest.mark.parametrize("name", WILD)
def test_every_place_is_a_line_that_says_so(name: str) -> None:
    lines = WILD[name].splitlines()
    recipe = wild(name)

    def line(where: str) -> str:
        origin, number = where.rsplit(":", 1)
        assert origin == "recipe.yml"
        return lines[int(number) - 1]

    for key, where in recipe.lines.items():
        assert key in line(where)
    scopes: list[Parameters] = [recipe.parameters]
    for module in recipe.modules:
        scopes.append(module.parameters)
        for part in module.slices:
            scopes.append(part.parameters)
            for source in part.sources:
                scopes.append(source.parameters)
                assert line(source.where)
    for parameters in scopes:
        for key, setting in parameters.items():
            assert key in line(setting.where)
    for warning in recipe.warnings:
        where, message = warning.split(": ", 1)
        assert message.split("'")[1] in line(where)


def only_slice(recipe: Recipe) -> Slice:
    (module,) = recipe.modules
    (part,) = module.slices
    return part


def test_slerp() -> None:
    recipe = wild("slerp with a gradient per kind of block")
    part = only_slice(recipe)
    assert recipe.modules[0].name is None
    assert not recipe.modules[0].from_models
    assert [source.layer_range for source in part.sources] == [(0, 40), (0, 40)]
    value = recipe.parameters["t"].value
    assert isinstance(value, Filtered)
    assert value.entries[0] == ("self_attn", Gradient((0.0, 0.5, 0.3, 0.7, 1.0)))
    assert value.entries[2] == (None, 0.5)
    assert recipe.dtype == "float16"
    assert recipe.parameters["t"].where == "recipe.yml:10"


def test_models_form_is_one_slice_without_ranges() -> None:
    recipe = wild("dare_ties with the base listed bare")
    part = only_slice(recipe)
    assert recipe.modules[0].from_models
    assert [source.layer_range for source in part.sources] == [None, None, None]
    assert part.sources[0].model == recipe.base_model
    assert part.sources[0].parameters == {}


def test_order_of_models() -> None:
    ties = wild("ties with densities that change over depth")
    assert [str(model) for model in ties.models()][-1] == "org/llama-13b"
    franken = wild("frankenmerge")
    assert [str(model) for model in franken.models()] == ["org/a", "org/b"]
    sliced = wild("slice with a base of its own, and duplicates")
    assert [str(model) for model in sliced.models()] == ["org/b", "org/c", "org/a"]
    assert len(sliced.modules[0].slices[1].sources) == 2


def test_adapters() -> None:
    first, second = only_slice(wild("linear of adapters at revisions")).sources
    assert first.model == ModelRef("org/base", "v1.0", (AdapterRef("org/lora-a", "refs/pr/3"),))
    assert second.model == ModelRef("org/base", None, (AdapterRef("./loras/b"),))
    assert second.parameters["weight"].value == 0.5


def test_windows_paths() -> None:
    assert [model.path for model in wild("Windows paths").models()] == [r"C:\models\a", "D:/models/b"]


def test_merge_keys() -> None:
    recipe = wild("anchors, aliases and merge keys")
    weights = [source.parameters["weight"] for source in only_slice(recipe).sources]
    assert [weight.value for weight in weights] == [0.5, 0.25, 0.5]
    densities = [source.parameters["density"] for source in only_slice(recipe).sources]
    assert {density.where for density in densities} == {"recipe.yml:5"}
    assert recipe.parameters["rescale"].value is True
    assert recipe.parameters["epsilon"].value == 1e-10


def test_modules() -> None:
    (default,) = wild("modules as saved configurations have them").modules
    assert default.name == "default"
    assert default.parameters["t"].value == 0.3
    vision = wild("modules of a vision model")
    assert [module.name for module in vision.modules] == ["text_decoder", "vision_tower"]


def test_tokenizers() -> None:
    spec = wild("tokenizer with explicit tokens").tokenizer
    assert spec is not None
    assert spec.source == "union"
    assert spec.pad_to_multiple_of == 32
    assert list(spec.tokens) == ["<|im_start|>", "<|im_end|>", "<pad>", "no"]
    assert spec.tokens["<|im_start|>"] == TokenEntry(ModelRef("b"))
    assert spec.tokens["<|im_end|>"] == TokenEntry(ModelToken(ModelRef("b"), token="</s>"), force=True)
    assert spec.tokens["<pad>"] == TokenEntry("zero")
    assert spec.tokens["no"] == TokenEntry(ModelToken(ModelRef("a", "r"), token_id=17))
    assert wild("tokenizer left to the default").tokenizer == TokenizerSpec("union")
    assert wild("model_stock").tokenizer == TokenizerSpec("union")
    assert wild("tokenizer of a model").tokenizer == TokenizerSpec(ModelRef("./union"))


def test_mapping_form() -> None:
    first = only_slice(wild("model in the mapping form, empty parameters")).sources[0].model
    assert first == ModelRef("./c++@home/a", None, (AdapterRef("org/l", "main"),), "LlamaForCausalLM")


def test_warnings_in_file_order() -> None:
    recipe = wild("parameters at levels where they do nothing")
    assert [warning.split(" here")[0] for warning in recipe.warnings] == [
        "recipe.yml:5: 'weight'",
        "recipe.yml:6: 'density'",
        "recipe.yml:7: 'normalize'",
        "recipe.yml:8: 'int8_mask'",
        "recipe.yml:9: 'embed_slerp'",
        "recipe.yml:10: 'dtype'",
    ]
    assert list(recipe.parameters) == ["weight"]


def test_types() -> None:
    recipe = wild("compat and auto types")
    assert (recipe.dtype, recipe.out_dtype, recipe.compat) == ("bfloat16", None, "mergekit")


def test_canonical_text() -> None:
    assert wild("ties with densities that change over depth").to_yaml() == textwrap.dedent(
        """\
        merge_method: ties
        base_model: org/llama-13b
        models:
          - model: org/orca-13b
            parameters:
              density: [1.0, 0.7, 0.1]
              weight: 1.0
          - model: org/platypus-13b
            parameters:
              density: 0.5
              weight: [0.0, 0.3, 0.7, 1.0]
          - model: org/wizard-13b
            parameters:
              density: 0.33
              weight:
                - filter: mlp
                  value: 0.5
                - value: 0.0
        parameters:
          normalize: true
          int8_mask: true
        dtype: float16
        """
    )


def test_several_documents() -> None:
    text = textwrap.dedent(
        """
        name: first
        merge_method: linear
        models: [{model: org/a}, {model: org/b}]
        ---
        name: second
        merge_method: slerp
        base_model: org/c
        models: [{model: first}, {model: org/c}]
        ---
        merge_method: passthrough
        models: [{model: second}]
        """
    )
    recipes = parse_recipes(text)
    assert [recipe.name for recipe in recipes] == ["first", "second", None]
    assert parse_recipes("---\n".join(recipe.to_yaml() for recipe in recipes)) == recipes
