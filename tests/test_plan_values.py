"""Parameters of output tensors: each by its own look-up, shared where equal; and what is odd about them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meldkit.errors import RecipeError
from meldkit.layout import Place, Stack
from meldkit.methods import METHODS
from meldkit.plan.slots import Entry, Input, Slot
from meldkit.plan.values import SharedValues, decide, lint_names, lint_values, where_of
from meldkit.recipe import Recipe, parse_recipe, recipe_from_data, resolve

BLOCKS = Stack("model.layers.", 3)
LABELS = ("a", "b")
NAMES = ["lm_head.weight", "model.embed.weight", "model.norm.weight"]
INSIDE = [f"model.layers.{i}.{leaf}.weight" for i in range(3) for leaf in ("mlp.up", "attn.q")]


def slots_of(recipe: Recipe, names: list[str] | None = None, models: int = 2) -> list[Slot]:
    """Output tensors into which every model of the recipe goes."""
    (module,) = recipe.modules
    scopes = (
        ("slice", module.slices[0].parameters),
        ("module", module.parameters),
        ("recipe", recipe.parameters),
    )
    found: list[Slot] = []
    for name in [*NAMES, *INSIDE] if names is None else names:
        block = int(name.split(".")[2]) if name in INSIDE else None
        place = Place(None if block is None else BLOCKS, block, name)
        inputs = [Input(i, name) for i in range(models)]
        entries = tuple(
            Entry(source, given) for source, given in zip(module.slices[0].sources, inputs, strict=True)
        )
        t = 0.0 if block is None else block / 2
        found.append(Slot(name, place, t, inputs[0], entries, None, (), scopes))
    return found


def linear(*weights: Any, method: str = "linear", **parameters: Any) -> Recipe:
    """Two models with weights of their own, None for none."""
    models = [
        {"model": label} | ({} if weight is None else {"parameters": {"weight": weight}})
        for label, weight in zip(LABELS, weights or (None, None), strict=True)
    ]
    return recipe_from_data({"merge_method": method, "models": models, "parameters": parameters})


NUMBERS = st.sampled_from([0.25, 0.5, 1.0, 2.0]) | st.lists(
    st.sampled_from([0.5, 1.0]), min_size=1, max_size=3
)
FILTERED = st.lists(
    st.fixed_dictionaries({"filter": st.sampled_from(["mlp", "attn", "norm", "0", "*"]), "value": NUMBERS}),
    min_size=1,
    max_size=3,
)
FLAGS = st.booleans() | st.lists(
    st.fixed_dictionaries({"filter": st.sampled_from(["mlp", "*"]), "value": st.booleans()}), min_size=1
)


@settings(deadline=None)
@given(st.none() | NUMBERS | FILTERED, NUMBERS, FILTERED, FLAGS)
def test_values_are_those_of_a_look_up_for_each_tensor(own: Any, other: Any, common: Any, flag: Any) -> None:
    """And equal values are one object, however many tensors have them."""
    recipe = linear(own, other, weight=[*common, {"value": 0.25}], normalize=flag)
    shared = SharedValues(METHODS["linear"], LABELS, recipe)
    objects: dict[str, set[int]] = {}
    slots = slots_of(recipe)
    for slot in [*slots, *slots]:
        values = shared(slot)

        def looked_up(name: str, *scopes: Any, slot: Slot = slot) -> Any:
            found = resolve(name, slot.name, slot.t, (*scopes, *slot.scopes))
            return None if found is None else found.value

        weights = [looked_up("weight", ("source", entry.source.parameters)) for entry in slot.entries]
        normalize = looked_up("normalize")
        assert values == {"weight": tuple(weights), "normalize": True if normalize is None else normalize}
        objects.setdefault(repr(values) + str(slot.t), set()).add(id(values))
    assert all(len(same) == 1 for same in objects.values())


def test_plain_numbers_are_decided_once() -> None:
    recipe = linear(0.5, 0.25, normalize=False)
    shared = SharedValues(METHODS["linear"], LABELS, recipe)
    assert len({id(shared(slot)) for slot in slots_of(recipe)}) == 1


def test_compat_is_what_the_recipe_says() -> None:
    for compat in (None, "mergekit"):
        data = {"merge_method": "karcher", "models": [{"model": "a"}, {"model": "b"}]}
        recipe = recipe_from_data(data | ({"compat": compat} if compat else {}))
        values = SharedValues(METHODS["karcher"], LABELS, recipe)(slots_of(recipe)[0])
        assert values["compat"] is (compat is not None)


@pytest.mark.parametrize(
    ("method", "name", "value", "hint"),
    [
        ("ties", "density", 50, "it is a share: 50 % is 0.5"),
        ("ties", "density", 100, "it is a share: 100 % is 1"),
        ("ties", "density", 2.5, "it is a share: 2.5 % is 0.025"),
        ("ties", "density", 2, ""),
        ("ties", "density", 1.5, ""),
        ("ties", "density", 101, ""),
        ("ties", "density", -1, ""),
        ("sce", "select_topk", 10, "it is a share: 10 % is 0.1"),
        # From 0 and without an end, or with another end, it is no share.
        ("ram", "epsilon", -3, ""),
        ("ties", "lambda", "0,5", "write 0.5"),
        ("ties", "weight", "50%", "write 0.5"),
        ("ties", "weight", " 12,5 % ", "write 0.125"),
        ("ties", "weight", "1,000,5", ""),
        ("ties", "weight", "half", ""),
        ("ties", "normalize", "0,5", ""),
        ("ties", "normalize", 0.5, ""),
        ("ties", "elect", "0,5", ""),
        ("ties", "elect", True, ""),
    ],
)
def test_what_may_have_been_meant(method: str, name: str, value: Any, hint: str) -> None:
    recipe = recipe_from_data(
        {
            "merge_method": method,
            "base_model": "z",
            "models": [{"model": "a"}, {"model": "b"}],
            "parameters": {name: value},
        }
    )
    (parameter,) = (p for p in METHODS[method].parameters if p.name == name)
    with pytest.raises(RecipeError) as caught:
        decide(parameter, slots_of(recipe)[0], None, LABELS, recipe)
    assert caught.value.hint == hint


def test_value_that_decides_and_where_it_stands() -> None:
    recipe = parse_recipe(
        "merge_method: linear\n"
        "models:\n"
        "- model: a\n"
        "  parameters: {weight: [{filter: mlp, value: 1}]}\n"
        "- model: b\n"
        "parameters:\n"
        "  weight: 2\n",
        "r",
    )
    weight, normalize = METHODS["linear"].parameters
    (mlp,), (norm,) = (slots_of(recipe, [name]) for name in (INSIDE[0], NAMES[2]))
    for slot, model, value, where in (
        (mlp, 0, 1.0, "r:4"),
        (norm, 0, 2.0, "r:7"),
        (mlp, 1, 2.0, "r:7"),
        (norm, 1, 2.0, "r:7"),
    ):
        decided, found = decide(weight, slot, slot.entries[model], LABELS, recipe)
        assert found is not None
        assert (decided, found.where, where_of("weight", slot, model)) == (value, where, where)
    assert decide(normalize, mlp, None, LABELS, recipe) == (True, None)
    # Of the tensor as a whole first: it is there that the recipe's own stand.
    assert where_of("weight", mlp) == "r:7"
    assert where_of("normalize", mlp) == ""


def test_parameter_of_one_model_only_is_found_there() -> None:
    recipe = linear(None, 1)
    recipe_slot = slots_of(recipe)[0]
    assert where_of("weight", recipe_slot) == recipe_slot.entries[1].source.parameters["weight"].where
    assert where_of("weight", recipe_slot, 0) == ""


MISSING = "merge_method: {}\nbase_model: z\nmodels:\n- model: a\n{}- model: b\n{}"


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (
            MISSING.format("linear", "  parameters: {weight: 1}\n", ""),
            "weight",
            "r:6: parameter 'weight' is missing for tensor 'lm_head.weight' of model 'b'\n"
            "  give it under the model's own 'parameters:', or the slice's or the recipe's 'parameters:'; if "
            "it has filters, end them with a plain 'value:'",
        ),
        (
            MISSING.format("slerp", "  parameters: {t: 0.5}\n", ""),
            "t",
            "r:1: parameter 't' is missing for tensor 'lm_head.weight'\n"
            "  r:5: it stands under a model, where it has no effect; move it to the slice's or the recipe's "
            "'parameters:'",
        ),
        (
            MISSING.format("slerp", "  parameters: {t: 0.5}\n", "  parameters: {t: 0.5}\n"),
            "t",
            "r:1: parameter 't' is missing for tensor 'lm_head.weight'\n"
            "  r:5: it stands under a model, where it has no effect; move it to the slice's or the recipe's "
            "'parameters:'",
        ),
        (
            MISSING.format("slerp", "", "t: 0.5\n"),
            "t",
            "r:1: parameter 't' is missing for tensor 'lm_head.weight'\n"
            "  r:6: here it has no effect; indent it, below the slice's or the recipe's 'parameters:'",
        ),
        (
            MISSING.format("slerp", "", ""),
            "t",
            "r:1: parameter 't' is missing for tensor 'lm_head.weight'\n"
            "  give it under the slice's or the recipe's 'parameters:'; if it has filters, end them with a "
            "plain 'value:'",
        ),
    ],
)
def test_missing_parameter(text: str, name: str, message: str) -> None:
    recipe = parse_recipe(text, "r")
    (parameter,) = (p for p in METHODS[recipe.merge_method].parameters if p.name == name)
    slot = slots_of(recipe)[0]
    entry = slot.entries[1] if parameter.per_model else None
    with pytest.raises(RecipeError) as caught:
        decide(parameter, slot, entry, LABELS, recipe)
    assert str(caught.value) == message


def test_values_that_make_no_sense_together_name_the_tensor() -> None:
    recipe = recipe_from_data(
        {
            "merge_method": "della",
            "base_model": "z",
            "models": [{"model": "a"}, {"model": "b"}],
            "parameters": {
                "weight": 1,
                "density": [{"filter": "mlp", "value": 0.3}, {"value": 0.5}],
                "epsilon": 0.4,
            },
        }
    )
    shared = SharedValues(METHODS["della"], LABELS, recipe)
    slots = slots_of(recipe)
    assert shared(slots[0])["density"] == (0.5, 0.5)
    (mlp,) = (slot for slot in slots if slot.name == INSIDE[0])
    with pytest.raises(RecipeError, match=f"tensor '{INSIDE[0]}': density 0.3 with epsilon 0.4"):
        shared(mlp)


# what is odd


def names_of(method: str, text: str) -> list[str]:
    return list(lint_names(parse_recipe(text, "r"), METHODS[method]))


def test_parameters_that_have_no_effect() -> None:
    """Names that only mergekit knows are no errors."""
    parameters = "parameters: {t: 1, density: 0.5, max_iter: 3, int8_mask: true}\n"
    text = MISSING.format("slerp", "  parameters: {t: 0.5}\n", parameters)
    assert names_of("slerp", text) == [
        "r:5: 't' has no effect under a model: it is one value for the whole tensor; write it under the "
        "recipe's or the slice's 'parameters:'",
        "r:7: 'density' has no effect: slerp does not use it; ties, dare_linear, dare_ties would",
        "r:7: 'max_iter' has no effect: slerp does not use it; karcher would",
        "r:7: 'int8_mask' has no effect: slerp does not use it",
    ]


@pytest.mark.parametrize(
    ("method", "name", "hint"),
    [("slerp", "tt", "did you mean 't'?"), ("linear", "wieght", "did you mean 'weight'?")],
)
def test_parameter_that_no_method_knows(method: str, name: str, hint: str) -> None:
    with pytest.raises(RecipeError, match=f"r:6: unknown parameter '{name}'") as caught:
        names_of(method, MISSING.format(method, "", f"parameters: {{{name}: 1}}\n"))
    assert caught.value.hint.startswith(hint)


@pytest.mark.parametrize(("method", "idle"), [("ties", True), ("nuslerp", True), ("linear", False)])
def test_parameters_of_the_base(method: str, idle: bool) -> None:
    """It is no model to merge where task vectors are taken from it."""
    for base, has_effect in (("b", False), ("a", True), ("z", True)):
        text = (
            f"merge_method: {method}\nbase_model: {base}\nmodels:\n- model: a\n"
            "- {model: b, parameters: {weight: 1}}\n"
        )
        warnings = [w for w in names_of(method, text) if "base_model" in w]
        want = (
            f"r:5: the parameters of base_model 'b' have no effect: {method} merges the others' differences "
            "from it"
        )
        assert warnings == ([want] if idle and not has_effect else [])


def odd(text: str, method: str, names: list[str] | None = None) -> list[str]:
    recipe = parse_recipe(text, "r")
    return list(lint_values(METHODS[method], slots_of(recipe, names)))


def filtered(chosen: str, more: str = "{value: 1}") -> str:
    return (
        f"merge_method: linear\nmodels:\n- model: a\n- model: b\nparameters:\n  weight:\n"
        f"  - {{filter: '{chosen}', value: 1}}\n  - {more}\n"
    )


DEEPEST = f"names are like '{INSIDE[0]}'"
PATTERN = "to have it taken for a pattern, begin it with 're:' or 'glob:'"


@pytest.mark.parametrize(
    ("chosen", "advice"),
    [
        ("mlp", None),
        ("re:mlp", None),
        ("glob:*.mlp.*", None),
        ("*", None),
        ("mpl", "did you mean 'mlp'?"),
        ("nrom", "did you mean 'norm'?"),
        ("layers.*.mlp", PATTERN),
        ("layers.[01].mlp", PATTERN),
        ("^model", PATTERN),
        ("re:^mlp", DEEPEST),
        ("glob:mlp", DEEPEST),
        ("model.layers.mlp", DEEPEST),
        ("mlp.uq", DEEPEST),
        ("vision", DEEPEST),
    ],
)
def test_filter_that_matches_nothing(chosen: str, advice: str | None) -> None:
    want = [] if advice is None else [f"r:6: filter '{chosen}' of 'weight' matches no tensor; {advice}"]
    assert odd(filtered(chosen), "linear") == want


def test_filter_that_is_never_looked_at() -> None:
    assert odd(filtered("*", "{filter: mlp, value: 2}"), "linear") == [
        "r:6: filter 'mlp' of 'weight' is never looked at, because an entry without a filter stands before "
        "it; move that one to the end"
    ]


def test_filters_of_parameters_that_the_method_does_not_know_are_others_business() -> None:
    text = filtered("mlp").replace("weight:", "density:")
    assert odd(text, "linear") == []
    both = text + "  weight: [{filter: nowhere, value: 1}, {value: 1}]\n"
    assert odd(both, "linear") == [f"r:9: filter 'nowhere' of 'weight' matches no tensor; {DEEPEST}"]


def test_filter_where_no_tensor_is_merged_matches_nothing() -> None:
    recipe = parse_recipe(filtered("mlp"), "r")
    slots = [replace(slot, entries=()) for slot in slots_of(recipe)]
    (warning,) = lint_values(METHODS["linear"], slots)
    assert warning.startswith("r:6: filter 'mlp' of 'weight' matches no tensor; ")


GRADIENT = "merge_method: {}\nmodels:\n- model: a\n- model: b\nparameters:\n  {}: [0, 1]\n"


@pytest.mark.parametrize("num_outside", [0, 1, 2, 3])
@pytest.mark.parametrize(("method", "name"), [("slerp", "t"), ("linear", "weight")])
def test_gradient_that_reaches_beyond_the_layers(method: str, name: str, num_outside: int) -> None:
    """Each tensor is named once, however many models it is of; two by name, and how many more."""
    warnings = odd(GRADIENT.format(method, name), method, [*INSIDE, *NAMES[:num_outside]])
    if not num_outside:
        assert warnings == []
        return
    named = {1: NAMES[0], 2: f"{NAMES[0]}, {NAMES[1]}", 3: f"{NAMES[0]}, {NAMES[1]} and 1 more"}
    assert warnings == [
        f"r:6: the gradient of '{name}' also reaches {named[num_outside]}, which stand outside the layers "
        "and take its first value; to leave them out, put it under a filter such as 'layers', and give the "
        "rest a value"
    ]


def test_gradients_that_do_not_reach_beyond_the_layers() -> None:
    inside = (
        "merge_method: linear\nmodels:\n- model: a\n- model: b\nparameters:\n  weight:\n"
        "  - {{filter: {}, value: [0, 1]}}\n  - {{value: {}}}\n"
    )
    assert odd(inside.format("layers", "1"), "linear") == []
    assert odd(inside.format("layers", "[1, 1]"), "linear") == []
    assert len(odd(inside.format("norm", "1"), "linear")) == 1
    assert len(odd(inside.format("layers", "[0, 1]"), "linear")) == 1


def test_gradient_of_a_narrow_scope_hides_the_wide_one() -> None:
    text = (
        "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 1}}\n"
        "- {model: b, parameters: {weight: 1}}\nparameters:\n  weight: [0, 1]\n"
    )
    assert odd(text, "linear") == []
    assert len(odd(text.replace(", parameters: {weight: 1}", "", 1), "linear")) == 1
