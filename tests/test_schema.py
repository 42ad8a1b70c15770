"""The JSON Schema of recipes against what reads them: one accepts what the other accepts."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from meldkit.errors import MeldError
from meldkit.methods import METHODS, Method, Parameter, get_method
from meldkit.plan.pieces import cast_sources
from meldkit.plan.templates import check_setting
from meldkit.plan.values import lint_names
from meldkit.recipe import Filtered, Gradient, Recipe, Value, recipe_from_data
from meldkit.report.schema import STORED, recipe_schema, to_text
from test_recipe_errors import cases
from test_recipe_wild import WILD

ROOT = Path(__file__).parent.parent
SCHEMA = recipe_schema(METHODS.values())
VALIDATOR = Draft202012Validator(SCHEMA)

#: What a schema cannot see: messages of those who read recipes about data that the schema accepts.
UNSEEN = (
    "of the same slice",
    "is not a range of layers",
    "takes (exactly|at least)",
    "needs a base_model",
    "is not among the sources",
    "is not a valid regular expression|is too large",
    "filters are nested more than",
    "is not finite",
    "cannot stand in YAML",
    "template",
    # A number written as text has no range.
    r"^[^:]*: ?\w+: .* is not valid; it must be",
)


def read(data: Any) -> Recipe:
    """What can be said of a recipe without a model.

    Raises:
        MeldError: something is wrong with it.
    """
    recipe = recipe_from_data(data)
    method = get_method(recipe.merge_method)
    check_setting(recipe)
    for module in recipe.modules:
        for part in module.slices:
            cast_sources(method, part, recipe, whole_models=module.from_models)
    list(lint_names(recipe, method))
    own = {p.name: p for p in method.parameters if not p.of_recipe}
    for parameters, of_model in scopes(recipe):
        for name, setting in parameters.items():
            if name in own and (own[name].per_model or not of_model):
                for scalar in scalars(setting.value):
                    check(own[name], scalar)
    return recipe


def check(parameter: Parameter, scalar: object) -> None:
    try:
        parameter.check(scalar)
    except ValueError as e:
        raise MeldError(f": {e}") from e
    # mergekit takes true for 1, and meldkit does; nobody means it.
    aliased = any(scalar is alias for alias in parameter.aliases)
    if parameter.kind is not bool and isinstance(scalar, bool) != aliased:
        raise MeldError("another kind of value is meant")


def scopes(recipe: Recipe) -> Iterator[tuple[Any, bool]]:
    yield recipe.parameters, False
    for module in recipe.modules:
        yield module.parameters, False
        for part in module.slices:
            yield part.parameters, False
            for source in part.sources:
                yield source.parameters, True


def scalars(value: Value) -> Iterator[object]:
    if isinstance(value, Filtered):
        for _, inner in value.entries:
            yield from scalars(inner)
    elif isinstance(value, Gradient):
        yield from value.points
    else:
        yield value


def compare(data: Any) -> bool:
    """Whether both accept the data; fails where only one does, without a reason."""
    said = [e.message for e in VALIDATOR.iter_errors(data)]
    problem = ""
    try:
        read(data)
    except MeldError as e:
        problem = str(e)
    if problem:
        assert said or any(re.search(unseen, problem) for unseen in UNSEEN), (data, problem)
    else:
        assert not said, (data, said)
    return not said and not problem


def as_json(text: str) -> Any:
    """A YAML text as JSON would have it; None if it is none."""
    try:
        return json.loads(json.dumps(yaml.safe_load(text), allow_nan=False))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return None


EXAMPLES = sorted((ROOT / "examples" / "recipes").glob("*.yml"))


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    references = set(re.findall(r'"\$ref": "#/\$defs/([^"]+)"', json.dumps(SCHEMA)))
    assert references == set(SCHEMA["$defs"])


def test_the_stored_schema_is_current() -> None:
    # The tables of other tests may have declared more methods.
    ours = [m for m in METHODS.values() if m.function.__module__.startswith("meldkit.")]
    assert STORED.read_text("utf-8") == to_text(recipe_schema(ours))


@pytest.mark.parametrize("name", WILD)
def test_recipes_in_the_wild(name: str) -> None:
    compare(as_json(WILD[name]))


def test_most_recipes_in_the_wild_are_valid() -> None:
    invalid = [name for name, text in WILD.items() if not VALIDATOR.is_valid(as_json(text))]
    assert invalid == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_examples(path: Path) -> None:
    assert compare(as_json(path.read_text()))


def test_recipes_of_the_documentation() -> None:
    found = [
        block
        for page in (ROOT / "docs").rglob("*.md")
        for block in re.findall(r"```yaml\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
        if "merge_method:" in block
    ]
    assert len(found) > 25
    for block in found:
        for document in block.split("\n---\n"):
            assert VALIDATOR.is_valid(as_json(document)), document


def test_broken_recipes() -> None:
    """Of the recipes that earn a message, the schema refuses all that it can see."""
    seen = 0
    for _, text, message in cases():
        data = as_json(text)
        # A key that stands twice is gone before the schema sees the data.
        if data is not None and "a second time" not in message:
            assert not compare(data), data
            seen += not VALIDATOR.is_valid(data)
    assert seen > 45


SEEDS = [as_json(text) for text in WILD.values()] + [as_json(p.read_text()) for p in EXAMPLES]
KEYS = sorted({key for text in WILD.values() for key in re.findall(r"(\w+):", text)})
WORDS = (
    "a org/b a@r a@ a+b@c + @ 1e-5 7 bf16 torch.float16 BFloat16 auto union base zero chatml {{x}} l1 model "
    "ties slerp linear tie * re:[ glob:*.w mergekit"
)
SCALARS = st.sampled_from([None, True, False, 0, 1, -1, 0.5, 2, 1e-5, "", " ", *WORDS.split()])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=5,
)


def paths(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    entries = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in entries:
        yield from paths(value, (*path, key))


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """A recipe in which something was removed, replaced, added, or moved from another place or recipe."""
    data = copy.deepcopy(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(paths(data))))
        if draw(st.booleans()):
            other = draw(st.sampled_from(SEEDS))
            new = other
            for step in draw(st.sampled_from(list(paths(other)))):
                new = new[step]
        else:
            new = draw(VALUES)
        if not path:
            continue
        holder = data
        for step in path[:-1]:
            holder = holder[step]
        kind = draw(st.sampled_from(["replace", "remove", "add"]))
        if kind == "replace":
            holder[path[-1]] = copy.deepcopy(new)
        elif kind == "remove":
            del holder[path[-1]]
        elif isinstance(holder, dict):
            holder[draw(st.sampled_from(KEYS))] = copy.deepcopy(new)
        else:
            holder.append(copy.deepcopy(new))
    return data


@settings(max_examples=300, deadline=None)
@given(mutated())
@example({"merge_method": "ties", "models": [{"model": "a", "parameters": {"weight": 1, "density": 2}}]})
@example({"merge_method": "linear", "models": [{"model": "a", "density": {"model": {"merge_method": "x"}}}]})
def test_schema_and_reader_agree(data: Any) -> None:
    compare(data)


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda m: m.name)
def test_parameters_of_a_method(method: Method) -> None:
    head: dict[str, Any] = {"merge_method": method.name, "base_model": "base", "models": [{"model": "a"}]}
    for p in method.parameters:
        if p.of_recipe:
            continue
        inside = [*p.choices] or ([True, False] if p.kind is bool else [max(p.low, 0.0), min(p.high, 1.0)])
        outside = [["x"], {}] if p.kind is not str else [["no such word"]]
        outside += [p.low - 1] * (p.low > float("-inf")) + [p.high + 1] * (p.high < float("inf"))
        for value in inside:
            for form in (
                value,
                [value],
                {"value": value},
                [{"filter": "mlp", "value": [value]}, {"value": value}],
            ):
                assert VALIDATOR.is_valid({**head, "parameters": {p.name: form}})
        for value in outside:
            assert not VALIDATOR.is_valid({**head, "parameters": {p.name: value}})
            data = {**head, "models": [{"model": "a", "parameters": {p.name: value}}]}
            assert VALIDATOR.is_valid(data) is (not p.per_model and value not in ({},))


def test_meaning_and_default_of_parameters_are_the_methods() -> None:
    for method in METHODS.values():
        for p in method.parameters:
            if not p.of_recipe:
                said = SCHEMA["$defs"][method.name]["properties"][p.name]
                assert said["description"].startswith(p.doc)
                assert said.get("default") == (None if p.required else p.default)


def test_keys_without_effect_are_deprecated() -> None:
    for key in ("weight", "int8_mask"):
        reason = "No effect here; write it under 'parameters:'."
        assert SCHEMA["properties"][key] == {
            "deprecated": True,
            "description": reason,
            "deprecationMessage": reason,
        }
    assert SCHEMA["$defs"]["unused-parameter"]["deprecated"] is True


def test_completion_of_the_schema_needs_no_torch() -> None:
    code = "import sys, meldkit.recipe.forms; assert not {'torch', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
