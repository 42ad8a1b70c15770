"""Laws that hold for every recipe: what is written reads back, and damaged text is refused with its place."""

from __future__ import annotations

from collections.abc import Callable

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from meldkit.config import MergeConfiguration
from meldkit.errors import RecipeError
from meldkit.recipe import (
    AdapterRef,
    Filtered,
    Gradient,
    ModelRef,
    ModelToken,
    Module,
    Recipe,
    Setting,
    Slice,
    Source,
    TokenEntry,
    TokenizerSpec,
    Value,
    parse_recipe,
)
from test_recipe_wild import WILD

words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
names = st.text("abcdefgh/._-0123456789eE", min_size=1, max_size=12).map(lambda text: text.strip("/") or "x")
keys = st.sampled_from(["weight", "density", "t", "lambda", "y", "no", "1e5", "scale"])
models = st.builds(
    ModelRef,
    names
    | st.sampled_from(["union", "base", "C:\\x", "a+b", "a@b", "model:x", "null", "~", "1.5", "on", "- x"]),
    st.none() | names,
    st.lists(st.builds(AdapterRef, names, st.none() | names), max_size=2).map(tuple),
    st.none() | names,
)
finite = st.floats(allow_nan=False, allow_infinity=False)


def not_a_number(text: str) -> bool:
    return not any(digit.isdigit() for digit in text)


scalars = finite | st.booleans() | words.filter(not_a_number)


def filtered(values: st.SearchStrategy[Value]) -> st.SearchStrategy[Value]:
    filters = st.none() | st.just("*") | words.filter(lambda text: not text.startswith("re:"))
    return st.lists(st.tuples(filters, values), min_size=1, max_size=3).map(
        lambda entries: Filtered(tuple(entries))
    )


gradients = st.lists(finite, min_size=1, max_size=40).map(lambda points: Gradient(tuple(points)))
values: st.SearchStrategy[Value] = st.recursive(scalars | gradients, filtered, max_leaves=4)
parameters = st.dictionaries(keys, st.builds(Setting, values), max_size=3)
ranges = st.tuples(st.integers(0, 99), st.integers(0, 99)).map(lambda ends: (min(ends), max(ends)))


@st.composite
def slices(draw: Callable[..., object], whole: bool) -> Slice:
    count = draw(st.integers(1, 3))
    length = draw(st.integers(0, 40))
    assert isinstance(count, int)
    sources: list[Source] = []
    for _ in range(count):
        start = draw(st.integers(0, 40))
        layer_range = None if whole else (start, start + length)
        sources.append(Source(draw(models), layer_range, draw(parameters)))
    if whole:
        return Slice(tuple(sources))
    return Slice(tuple(sources), draw(st.none() | models), draw(parameters))


def modules(name: str | None) -> st.SearchStrategy[Module]:
    own = st.just({}) if name is None else parameters
    whole = st.builds(Module, st.just(name), st.tuples(slices(True)), own, from_models=st.just(True))
    parts = st.lists(slices(False), min_size=1, max_size=3).map(tuple)
    return whole | st.builds(Module, st.just(name), parts, own)


token_sources = (
    st.none()
    | st.just("zero")
    | models
    | st.builds(ModelToken, models, token=words)
    | st.builds(ModelToken, models, token_id=st.integers(0, 1 << 20))
)
tokenizers = st.builds(
    TokenizerSpec,
    st.sampled_from(["union", "base"]) | models,
    st.dictionaries(words, st.builds(TokenEntry, token_sources, st.booleans()), max_size=3),
    st.none() | st.integers(1, 1024),
)
recipes = st.builds(
    Recipe,
    names,
    st.tuples(modules(None)) | st.tuples(modules("text"), modules("no")),
    st.none() | models,
    parameters,
    st.sampled_from([None, "bfloat16", "float32"]),
    st.sampled_from([None, "float16"]),
    st.none() | tokenizers,
    st.none() | words.filter(str.strip) | st.just("{% x %}\n  y \n\n"),
    st.sampled_from([None, "mergekit"]),
    st.none() | names,
)


@settings(max_examples=100, deadline=None)
@given(recipes)
def test_any_recipe_reads_back_equal(recipe: Recipe) -> None:
    text = recipe.to_yaml()
    again = parse_recipe(text)
    assert again == recipe
    assert again.to_yaml() == text
    assert again.warnings == ()
    assert MergeConfiguration.model_validate(yaml.safe_load(text)).recipe() == recipe


SCRAPS = (
    *("&a ", "*a", "<<: ", "!!str ", "[", "]", "{", "}", ": ", "- ", "? ", "|", ">", "'", '"', "#", "null"),
    *("\t", "\n", "  ", "---\n", "...\n", "\x85", "\ufeff", "\x00", "1:30", ".inf", "@", "+", "é"),
)
edits = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 8), st.sampled_from(SCRAPS)), min_size=1, max_size=4
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(list(WILD.values())), edits)
def test_damaged_recipe_is_read_or_refused_with_its_place(
    text: str, damage: list[tuple[float, int, str]]
) -> None:
    for position, num_removed, scrap in damage:
        start = int(position * len(text))
        text = text[:start] + scrap + text[start + num_removed :]
    refusal = None
    try:
        recipe = parse_recipe(text)
    except RecipeError as error:
        refusal = str(error)
    else:
        assert parse_recipe(recipe.to_yaml()) == recipe
    assert refusal is None or refusal.startswith("recipe.yml")
