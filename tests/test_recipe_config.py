"""The notebook face: MergeConfiguration as a pydantic model, and what importing it costs."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

import meldkit.recipe
from meldkit.config import MergeConfiguration
from meldkit.errors import RecipeError
from meldkit.recipe import ModelRef, parse_recipe

TEXT = """\
merge_method: slerp
base_model: org/a
slices:
  - sources:
      - {model: org/a, layer_range: [0, 4]}
      - {model: org/b@r+l, layer_range: [0, 4]}
parameters:
  t: [{filter: mlp, value: [0, 1]}, {value: 0.5}]
dtype: bf16
tokenizer_source: base
"""


def configuration() -> MergeConfiguration:
    return MergeConfiguration.model_validate(yaml.safe_load(TEXT))


def test_attributes_are_canonical() -> None:
    config = configuration()
    assert config.base_model == ModelRef("org/a")
    assert config.dtype == "bfloat16"
    assert config.slices is not None
    assert config.slices[0].sources[1].layer_range == (0, 4)
    assert [str(model) for model in config.referenced_models()] == ["org/a", "org/b@r+l"]


def test_dump_is_plain_data() -> None:
    config = configuration()
    assert yaml.safe_load(yaml.safe_dump(config.model_dump(exclude_none=True))) == {
        "merge_method": "slerp",
        "base_model": "org/a",
        "slices": [
            {
                "sources": [
                    {"model": "org/a", "layer_range": [0, 4], "parameters": {}},
                    {"model": "org/b@r+l", "layer_range": [0, 4], "parameters": {}},
                ],
                "parameters": {},
            }
        ],
        "parameters": {"t": [{"filter": "mlp", "value": [0, 1]}, {"value": 0.5}]},
        "dtype": "bfloat16",
        "tokenizer_source": "base",
    }
    assert MergeConfiguration.model_validate(config.model_dump()) == config
    assert MergeConfiguration(**config.model_dump()) == config


def test_yaml_means_the_same() -> None:
    config = configuration()
    assert parse_recipe(config.to_yaml()) == config.recipe() == parse_recipe(TEXT)


def test_schema_names_every_key() -> None:
    schema = MergeConfiguration.model_json_schema()
    json.dumps(schema)
    unused = [key for key in MergeConfiguration.unused if key not in MergeConfiguration.model_fields]
    assert list(schema["properties"]) == [*MergeConfiguration.model_fields, *unused]
    assert schema["required"] == ["merge_method"]
    assert schema["additionalProperties"] is False


def test_errors_speak_plainly() -> None:
    with pytest.raises(ValidationError) as caught:
        MergeConfiguration.model_validate({"merge_method": "linear", "models": [{"modle": "a"}]})
    (error,) = caught.value.errors()
    assert error["loc"] == ("models", 0)
    assert "unknown key 'modle' in an entry of 'models'" in error["msg"]
    assert "did you mean 'model'?" in error["msg"]


def test_contradictions_are_found_at_once() -> None:
    data = yaml.safe_load(TEXT)
    data["slices"][0]["sources"][1]["layer_range"] = [0, 3]
    with pytest.raises(
        ValidationError, match=r"slices\[0\]\.sources\[1\]\.layer_range: layer_range \[0, 3\] has 3"
    ):
        MergeConfiguration.model_validate(data)
    with pytest.raises(RecipeError, match="cannot stand together"):
        configuration().model_copy(update={"models": []}).recipe()


def test_cannot_be_changed_in_place() -> None:
    config = configuration()
    with pytest.raises(ValidationError):
        config.merge_method = "linear"


def test_copies_and_pickles() -> None:
    config, recipe = configuration(), parse_recipe(TEXT)
    assert copy.deepcopy(config) == config
    assert pickle.loads(pickle.dumps(config)).recipe() == config.recipe()
    assert pickle.loads(pickle.dumps(recipe)) == copy.deepcopy(recipe) == recipe
    assert pickle.loads(pickle.dumps(recipe)).lines == recipe.lines


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("bfloat16", "bfloat16"),
        ("torch.bfloat16", "bfloat16"),
        ("BF16", "bfloat16"),
        ("half", "float16"),
        ("fp16", "float16"),
        ("float32", "float32"),
        ("fp32", "float32"),
        ("float64", "float64"),
        ("float8_e4m3fn", "float8_e4m3fn"),
        ("auto", None),
        (None, None),
    ],
)
def test_types(written: str | None, name: str | None) -> None:
    config = MergeConfiguration.model_validate(
        {"merge_method": "linear", "models": [{"model": "a"}], "dtype": written, "out_dtype": written}
    )
    assert config.dtype == name
    assert config.out_dtype == name


def test_public_names_exist() -> None:
    assert meldkit.recipe.__all__ == sorted(meldkit.recipe.__all__)
    for name in meldkit.recipe.__all__:
        assert hasattr(meldkit.recipe, name)


def test_imports_nothing_heavy(tmp_path: Path) -> None:
    program = (
        "import sys, meldkit.recipe; print('pydantic' in sys.modules)\n"
        "import meldkit.config; print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.split("\n")[:2] == ["False", "[]"]
