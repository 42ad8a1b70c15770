"""The recipes that both programs run: every method, with the settings and the forms that people use.

Models are called base, a, b, c and wide; `parity.py` says what they are. A recipe whose result differs on
purpose, or that mergekit cannot run, carries the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FOLDER = "MODELS"  # stands for the folder of a family's models in a recipe
OPPOSITE = "t outside 0 to 1 is clamped where task vectors point apart"
TIES = "elements that tie with the last one kept are all kept; mergekit keeps arbitrary ones of them"
BF16 = "mergekit computes in bfloat16, meldkit in float32 with one rounding"
FLOAT16 = "sums that differ in the last bit of float32 round to neighbouring float16 numbers"
ONE_KEPT = "at least one element of each task vector is kept; mergekit keeps none here"
BOUNDS = "probabilities of keeping an element must lie between 0 and 1"
IMPORTANCE = (
    "mergekit's float32 divergences are off by 10⁻⁴: elements at the threshold fall on the other side"
)
BF16_BOUND = 2.0**-6  # two spacings of bf16 at the largest element


@dataclass(frozen=True, slots=True)
class Case:
    """A recipe and what is to be expected of it.

    name: of the row.  family: of the models.  exercises: what it is there for.  recipe: without paths.
    reason: why the outputs differ, or why one of the programs gives none.  bound: the largest relative
    difference that the reason explains.  share: of the elements that differ, at most; below 1 it may also
    be none, by chance.  random: masks are drawn, so that only their statistics can agree.  outcome: the
    verdict that the reason explains.
    """

    name: str
    family: str
    exercises: str
    recipe: dict[str, Any]
    reason: str = ""
    bound: float = float("inf")
    share: float = 1.0
    random: bool = False
    outcome: str = "expected difference"

    @property
    def method(self) -> str:
        return str(self.recipe["merge_method"])


def path(model: str) -> str:
    return f"{FOLDER}/{model}"


def entry(model: str, parameters: Mapping[str, Any] | float | None = None) -> dict[str, Any]:
    """One of `models`; a number is its weight."""
    if parameters is None:
        return {"model": path(model)}
    if isinstance(parameters, (int, float)):
        parameters = {"weight": parameters}
    return {"model": path(model)} | given(parameters)


def given(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The key `parameters`, if there are any."""
    named = {name.rstrip("_"): value for name, value in parameters.items()}
    return {"parameters": named} if named else {}


def merge(
    method: str,
    models: Mapping[str, Mapping[str, Any] | float | None],
    base: str | None = "base",
    dtype: str | None = "float32",
    **rest: Any,
) -> dict[str, Any]:
    """A recipe of the form `models`; `rest` are parameters of the recipe (`lambda_` for lambda)."""
    recipe: dict[str, Any] = {"merge_method": method}
    recipe |= {"base_model": path(base)} if base else {}
    recipe["models"] = [entry(model, parameters) for model, parameters in models.items()]
    recipe |= given(rest)
    return recipe | ({"dtype": dtype} if dtype else {})


def part(
    start: int, end: int, models: Mapping[str, Mapping[str, Any] | float | None], **parameters: Any
) -> dict[str, Any]:
    """One of `slices`: the same layers of all its models."""
    sources = [entry(m, own) | {"layer_range": [start, end]} for m, own in models.items()]
    return {"sources": sources} | given(parameters)


def stack(method: str, *slices: dict[str, Any], base: str | None = None, **rest: Any) -> dict[str, Any]:
    """A recipe of the form `slices`; `rest` are parameters of the recipe."""
    recipe: dict[str, Any] = {"merge_method": method}
    recipe |= {"base_model": path(base)} if base else {}
    recipe["slices"] = list(slices)
    return recipe | given(rest) | {"dtype": "float32"}


def by_name(default: Any, **filters: Any) -> list[dict[str, Any]]:
    """A parameter by substrings of tensor names, and for all others."""
    return [{"filter": name, "value": value} for name, value in filters.items()] + [{"value": default}]


def pair(weight_a: float = 0.6, weight_b: float = 0.7, **both: Any) -> dict[str, dict[str, Any]]:
    """Models a and b with their weights and the same further parameters."""
    return {"a": {"weight": weight_a, **both}, "b": {"weight": weight_b, **both}}


PAIR = {"a": None, "b": None}
THREE = {"a": None, "b": None, "c": None}

LINEAR = [
    Case("linear", "llama", "average of two", merge("linear", pair(0.5, 0.5), None)),
    Case("linear-sum", "llama", "normalize: false", merge("linear", pair(), None, normalize=False)),
    Case(
        "linear-negative",
        "llama",
        "a negative weight",
        merge("linear", {"a": 1.5, "b": -0.3, "c": 0.2}, None),
    ),
    Case(
        "linear-scopes",
        "llama",
        "weight for all, and for one model",
        merge("linear", {"a": None, "b": 0.9}, None, weight=0.3),
    ),
    Case("linear-base", "llama", "the base is one of the models", merge("linear", {"base": 0.2, **pair()})),
    Case(
        "linear-base-apart",
        "llama",
        "base_model is not among the models",
        merge("linear", pair()),
        "it adds the base to the models, then misses its weight; meldkit only takes config.json from it",
        outcome="mergekit fails",
    ),
    Case(
        "linear-gradient",
        "llama",
        "weights by layer",
        merge("linear", {"a": {"weight": [0.1, 0.5, 1]}, "b": {"weight": [1, 0.2]}}, None),
    ),
    Case(
        "linear-filters",
        "llama",
        "filters, one with a gradient",
        merge(
            "linear",
            {"a": {"weight": by_name(0.5, self_attn=0.8, mlp=[0.1, 0.9])}, "b": {"weight": 0.4}},
            None,
        ),
    ),
    Case(
        "linear-filter-first",
        "llama",
        "the first filter that matches counts; 1 is in many names",
        merge(
            "linear",
            {"a": {"weight": by_name(0.5, q_proj=0.9, self_attn=0.1, **{"1": 0.3})}, "b": {"weight": 1}},
            None,
        ),
    ),
    Case(
        "linear-slices",
        "llama",
        "slices with parameters of their own; gradients begin anew",
        stack(
            "linear",
            part(0, 2, {"a": 0.3, "b": {"weight": [0.2, 0.8]}}),
            part(2, 4, {"a": None, "b": None}, weight=[0.4, 0.6]),
            normalize=False,
        ),
    ),
    Case(
        "linear-slice-normalize",
        "llama",
        "a parameter of one slice and of the recipe",
        stack(
            "linear",
            part(0, 3, {"a": 0.3, "b": 0.4}),
            part(3, 4, {"a": 0.3, "b": 0.4}, normalize=True),
            normalize=False,
        ),
    ),
    Case(
        "linear-one-layer",
        "llama",
        "a gradient in a slice of one layer",
        stack("linear", part(0, 1, {"a": {"weight": [0.1, 0.9]}, "b": 0.5}), part(1, 4, {"a": 1, "b": 1})),
    ),
    Case(
        "linear-modules",
        "llama",
        "modules: default",
        {"merge_method": "linear", "dtype": "float32"}
        | {"modules": {"default": {"models": [entry("a", 0.25), entry("b", 0.5)]}}},
    ),
    Case("linear-no-dtype", "llama", "no dtype", merge("linear", pair(), None, None)),
    Case(
        "linear-out-dtype",
        "llama",
        "computed in float32, written as float16",
        merge("linear", pair(), None) | {"out_dtype": "float16"},
        FLOAT16,
        bound=2.0**-10,
        share=1e-3,
    ),
    Case(
        "linear-bfloat16",
        "llama",
        "dtype: bfloat16",
        merge("linear", pair(), None, "bfloat16"),
        BF16,
        BF16_BOUND,
    ),
    Case(
        "linear-zero-sum",
        "llama",
        "weights that sum to 0",
        merge("linear", pair(1, -1), None),
        "weights that sum to 0 have no average; mergekit divides by 0",
        outcome="meldkit refuses",
    ),
    Case(
        "linear-twice",
        "llama",
        "the same model twice",
        merge("linear", {"a": 0.5}, None) | {"models": [entry("a", 0.5), entry("a", 0.5), entry("b", 0.5)]},
        "it takes each model once; in meldkit both entries count",
        outcome="mergekit fails",
    ),
    Case(
        "linear-qwen2",
        "qwen2",
        "biases, tied embeddings",
        merge("linear", {"a": 0.3, "b": 0.5, "c": 1}, None),
    ),
    Case(
        "linear-gpt2",
        "gpt2",
        "filters and a gradient on other names",
        merge("linear", {"a": {"weight": by_name(0.5, attn=[0, 1], mlp=0.2)}, "b": 0.5}, None),
    ),
]

PASSTHROUGH = [
    Case("passthrough", "llama", "a copy", merge("passthrough", {"a": None}, None)),
    Case("passthrough-scale", "llama", "scale", merge("passthrough", {"a": {"scale": 0.5}}, None)),
    Case(
        "passthrough-stack",
        "llama",
        "overlapping layers of two models",
        stack("passthrough", part(0, 3, {"a": None}), part(1, 4, {"b": None})),
    ),
    Case(
        "passthrough-repeat",
        "llama",
        "layers of one model, repeated and in another order",
        stack("passthrough", *(part(i, i + 1, {"a": None}) for i in (0, 2, 1, 1, 3))),
    ),
    Case(
        "passthrough-identity",
        "llama",
        "inserted layers that do nothing: filtered scales of a source",
        stack(
            "passthrough",
            part(0, 4, {"a": None}),
            part(2, 4, {"a": {"scale": by_name(1.0, o_proj=0.0, down_proj=0.0)}}),
        ),
    ),
    Case(
        "passthrough-filter-number",
        "llama",
        "a filter by layer number, which a source takes by its own numbers",
        stack(
            "passthrough",
            part(0, 2, {"a": None}),
            part(1, 4, {"b": {"scale": by_name(1.0, **{"layers.2.": 0.5})}}),
        ),
    ),
    Case(
        "passthrough-slice-scale",
        "llama",
        "scale of a slice, by layer, and of the recipe",
        stack(
            "passthrough",
            part(0, 4, {"a": None}, scale=[0.5, 1.5]),
            part(0, 2, {"b": None}),
            scale=2,
        ),
    ),
    Case(
        "passthrough-qwen2",
        "qwen2",
        "layers of two models, tied embeddings",
        stack("passthrough", part(0, 3, {"a": None}), part(2, 4, {"c": None})),
        "it leaves config.json's list of layer types as short as it was, which transformers refuses",
        outcome="mergekit fails",
    ),
    Case(
        "passthrough-half",
        "qwen2",
        "half of the layers each",
        stack("passthrough", part(0, 2, {"a": None}), part(2, 4, {"c": None})),
    ),
    Case(
        "passthrough-none",
        "llama",
        "a slice of no layers",
        stack("passthrough", part(0, 0, {"b": None}), part(0, 4, {"a": None})),
    ),
    Case(
        "passthrough-gpt2",
        "gpt2",
        "layers of three models",
        stack("passthrough", part(0, 2, {"a": None}), part(0, 3, {"b": None}), part(2, 3, {"c": None})),
    ),
]

TASK_ARITHMETIC = [
    Case("task_arithmetic", "llama", "two models", merge("task_arithmetic", pair())),
    Case(
        "task_arithmetic-normalize",
        "llama",
        "normalize, lambda",
        merge("task_arithmetic", {**pair(), "c": 0.4}, normalize=True, lambda_=0.7),
    ),
    Case(
        "task_arithmetic-negative",
        "llama",
        "a negative weight, int8_mask",
        merge("task_arithmetic", pair(1, -0.5), int8_mask=True),
    ),
    Case(
        "task_arithmetic-base",
        "llama",
        "the base is one of the models",
        merge("task_arithmetic", {"base": None, **pair()}),
    ),
    Case(
        "task_arithmetic-lambda",
        "llama",
        "lambda by name and layer, weights by layer",
        merge(
            "task_arithmetic",
            {"a": {"weight": [0, 1]}, "b": {"weight": [1, 0.5, 0]}},
            lambda_=by_name(1, mlp=[0.5, 1.5]),
        ),
    ),
    Case(
        "task_arithmetic-source-lambda",
        "llama",
        "a parameter of the recipe, given to a model: no effect",
        merge("task_arithmetic", {"a": {"weight": 0.5, "lambda": 0.1}, "b": 0.5}),
    ),
    Case(
        "task_arithmetic-slices",
        "llama",
        "slices that list the base",
        stack(
            "task_arithmetic",
            part(0, 1, {"base": None, **pair()}),
            part(1, 4, {"base": None, **pair(0.2, 0.9)}, lambda_=0.5),
            base="base",
        ),
    ),
    Case(
        "task_arithmetic-zero-sum",
        "llama",
        "normalize with weights that sum to 0",
        merge("task_arithmetic", pair(1, -1), normalize=True),
        "weights that sum to 0 have no average; mergekit does not divide",
        outcome="meldkit refuses",
    ),
    Case("task_arithmetic-qwen2", "qwen2", "biases, tied embeddings", merge("task_arithmetic", pair())),
    Case(
        "task_arithmetic-bfloat16",
        "qwen2",
        "dtype: bfloat16",
        merge("task_arithmetic", pair(), dtype="bfloat16"),
        BF16,
        BF16_BOUND,
    ),
    Case("task_arithmetic-gpt2", "gpt2", "biases, tied embeddings", merge("task_arithmetic", pair())),
]

T_BY_LAYER = by_name(0.5, self_attn=[0, 0.5, 0.3, 0.7, 1], mlp=[1, 0.5, 0.7, 0.3, 0])

SLERP = [
    Case("slerp", "llama", "an arc", merge("slerp", {"a": None}, t=0.4)),
    Case("slerp-line", "llama", "nearly parallel tensors", merge("slerp", {"c": None}, t=0.4)),
    Case("slerp-start", "llama", "t = 0", merge("slerp", {"base": None, "a": None}, t=0)),
    Case("slerp-end", "llama", "t = 1", merge("slerp", {"a": None, "base": None}, t=1)),
    Case("slerp-beyond", "llama", "t = 1.3", merge("slerp", {"a": None}, t=1.3)),
    Case("slerp-two", "llama", "neither is the ancestor", merge("slerp", PAIR, "b", t=0.3)),
    Case(
        "slerp-slices",
        "llama",
        "t by name and layer, one slice",
        stack("slerp", part(0, 4, {"base": None, "a": None}), base="base", t=T_BY_LAYER),
    ),
    Case(
        "slerp-embed",
        "llama",
        "embed_slerp: no effect",
        merge("slerp", {"base": None, "a": None}, t=0.5, embed_slerp=True),
    ),
    Case(
        "slerp-qwen2", "qwen2", "t by name and layer", merge("slerp", {"base": None, "b": None}, t=T_BY_LAYER)
    ),
    Case("slerp-gpt2", "gpt2", "t by layer", merge("slerp", {"a": None}, t=[0.2, 0.8])),
]

NUSLERP = [
    Case("nuslerp", "llama", "whole tensors", merge("nuslerp", pair(0.3, 0.7), None)),
    Case("nuslerp-base", "llama", "task vectors", merge("nuslerp", pair(2, 1))),
    Case(
        "nuslerp-rows",
        "llama",
        "nuslerp_flatten: false",
        merge("nuslerp", pair(), None, nuslerp_flatten=False),
    ),
    Case(
        "nuslerp-rows-base",
        "llama",
        "nuslerp_flatten: false, task vectors",
        merge("nuslerp", pair(), nuslerp_flatten=False),
    ),
    Case(
        "nuslerp-row-wise",
        "llama",
        "nuslerp_row_wise",
        merge("nuslerp", pair(), None, nuslerp_flatten=False, nuslerp_row_wise=True),
    ),
    Case(
        "nuslerp-row-wise-base",
        "qwen2",
        "nuslerp_row_wise, task vectors",
        merge("nuslerp", pair(), nuslerp_flatten=False, nuslerp_row_wise=True),
    ),
    Case(
        "nuslerp-listed", "llama", "the base is one of the models", merge("nuslerp", {"base": None, **pair()})
    ),
    Case("nuslerp-negative", "llama", "a negative weight", merge("nuslerp", pair(1.5, -0.5), None)),
    Case(
        "nuslerp-zero",
        "llama",
        "weights of 0 in the attention",
        merge("nuslerp", {m: {"weight": by_name(0.5, self_attn=0)} for m in "ab"}, None),
    ),
    Case(
        "nuslerp-gpt2",
        "gpt2",
        "rows, weights by layer",
        merge("nuslerp", {"a": {"weight": [0, 1]}, "b": {"weight": [1, 0.2]}}, None, nuslerp_flatten=False),
    ),
]

MULTISLERP = [
    Case("multislerp", "llama", "three models", merge("multislerp", {**pair(), "c": 0.5}, None)),
    Case("multislerp-base", "llama", "task vectors", merge("multislerp", pair())),
    Case(
        "multislerp-sum",
        "llama",
        "normalize_weights: false",
        merge("multislerp", pair(0.3, 0.4), None, normalize_weights=False),
    ),
    Case("multislerp-eps", "llama", "eps", merge("multislerp", pair(), eps=1e-4)),
    Case(
        "multislerp-qwen2",
        "qwen2",
        "weights by name and layer",
        merge("multislerp", {"a": {"weight": by_name(0.4, mlp=[0.1, 0.9])}, "b": 0.5, "c": 0.6}, None),
    ),
    Case("multislerp-gpt2", "gpt2", "task vectors", merge("multislerp", {**pair(), "c": 0.2})),
]

KARCHER = [
    Case("karcher", "llama", "two models", merge("karcher", PAIR, None)),
    Case("karcher-three", "llama", "three models", merge("karcher", {"base": None, **THREE}, None)),
    Case("karcher-iterations", "llama", "max_iter: 1", merge("karcher", THREE, None, max_iter=1)),
    Case("karcher-tol", "qwen2", "max_iter, tol", merge("karcher", THREE, None, max_iter=100, tol=1e-9)),
    Case("karcher-base", "llama", "base_model is not among the models", merge("karcher", PAIR)),
    Case(
        "karcher-weights",
        "llama",
        "weights",
        merge("karcher", pair(0.2, 0.8), None),
        "weights are honoured; mergekit ignores them",
    ),
    Case(
        "karcher-compat",
        "llama",
        "weights, compat: mergekit",
        merge("karcher", pair(0.2, 0.8), None) | {"compat": "mergekit"},
    ),
    Case("karcher-gpt2", "gpt2", "three models", merge("karcher", THREE, None)),
]

TRIMMED = [
    Case("ties", "llama", "density 0.5", merge("ties", pair(density=0.5))),
    Case(
        "ties-densities",
        "llama",
        "a density for each model, lambda",
        merge(
            "ties",
            {"a": {"weight": 0.4, "density": 0.2}, "b": {"weight": 1, "density": 0.7}},
            lambda_=0.8,
        ),
    ),
    Case("ties-sum", "llama", "normalize: false", merge("ties", pair(density=0.3), normalize=False)),
    Case(
        "ties-negative",
        "llama",
        "a negative weight, int8_mask",
        merge("ties", pair(1, -0.4, density=0.6), int8_mask=True),
    ),
    Case("ties-all", "llama", "density 1, three models", merge("ties", {**pair(), "c": 0.5}, density=1.0)),
    Case("ties-few", "llama", "less than one element per vector", merge("ties", pair(density=0.004))),
    Case("ties-rescale", "llama", "rescale", merge("ties", pair(density=0.4), rescale=True)),
    Case(
        "ties-filters",
        "llama",
        "density by name, weight by layer",
        merge(
            "ties",
            {
                "a": {"density": by_name(0.5, mlp=0.2, norm=1), "weight": [0.2, 1]},
                "b": {"density": 0.6, "weight": 1},
            },
        ),
    ),
    Case(
        "ties-base",
        "llama",
        "the base is one of the models, global parameters",
        merge("ties", {"base": None, **PAIR}, weight=0.5, density=0.5),
    ),
    Case(
        "ties-tied",
        "llama",
        "task vectors with many equal elements",
        merge("ties", {**pair(), "c": 1}, density=0.2),
        TIES,
    ),
    Case(
        "ties-slices",
        "llama",
        "density by layer in a slice, weight and normalize for slices",
        stack(
            "ties",
            part(0, 3, {"base": None, "a": {"density": [0.2, 0.6]}, "b": {"density": 0.5}}, weight=0.5),
            part(3, 4, {"base": None, **PAIR}, weight=0.8, density=0.3, normalize=False),
            base="base",
        ),
    ),
    Case(
        "ties-slice-base",
        "llama",
        "another base_model in one slice",
        stack(
            "ties",
            part(0, 2, {"base": None, **PAIR}),
            part(2, 4, {"a": None, "base": None, "b": None}) | {"base_model": path("a")},
            base="base",
            weight=0.5,
            density=0.4,
        ),
    ),
    Case("ties-none", "llama", "density 0", merge("ties", pair(density=0))),
    Case("ties-qwen2", "qwen2", "biases, tied embeddings", merge("ties", pair(density=0.5))),
    Case("ties-gpt2", "gpt2", "biases, tied embeddings", merge("ties", pair(density=0.5))),
    Case("breadcrumbs", "llama", "density 0.9", merge("breadcrumbs", pair(density=0.6))),
    Case("breadcrumbs-gamma", "llama", "gamma 0.2", merge("breadcrumbs", pair(density=0.5, gamma=0.2))),
    Case("breadcrumbs-gamma-0", "llama", "gamma 0", merge("breadcrumbs", pair(density=0.5, gamma=0))),
    Case(
        "breadcrumbs-overlap",
        "llama",
        "density + gamma > 1",
        merge("breadcrumbs", pair(density=0.7, gamma=0.5)),
    ),
    Case(
        "breadcrumbs-all",
        "llama",
        "density 1: gamma has no effect",
        merge("breadcrumbs", pair(density=1, gamma=0.3)),
    ),
    Case(
        "breadcrumbs-rescale",
        "qwen2",
        "rescale, normalize, lambda",
        merge("breadcrumbs", pair(density=0.5, gamma=0.1), rescale=True, normalize=True, lambda_=0.5),
    ),
    Case("breadcrumbs-none", "llama", "density 0", merge("breadcrumbs", pair(density=0))),
    Case(
        "breadcrumbs-few",
        "llama",
        "less than one element per vector",
        merge("breadcrumbs", pair(density=0.004)),
        ONE_KEPT,
    ),
    Case("breadcrumbs-gpt2", "gpt2", "gamma 0.05", merge("breadcrumbs", pair(density=0.4, gamma=0.05))),
    Case("breadcrumbs_ties", "llama", "gamma 0.1", merge("breadcrumbs_ties", pair(density=0.5, gamma=0.1))),
    Case(
        "breadcrumbs_ties-negative",
        "llama",
        "a negative weight, normalize",
        merge("breadcrumbs_ties", pair(1, -0.5, density=0.6, gamma=0.02), normalize=True),
    ),
    Case(
        "breadcrumbs_ties-qwen2",
        "qwen2",
        "rescale",
        merge("breadcrumbs_ties", pair(density=0.5, gamma=0.1), rescale=True),
    ),
]

DROPPED = [
    Case("dare_linear", "llama", "density 1", merge("dare_linear", pair(density=1))),
    Case("dare_linear-half", "llama", "density 0.5", merge("dare_linear", pair(density=0.5)), random=True),
    Case(
        "dare_linear-raw",
        "llama",
        "rescale: false, normalize",
        merge("dare_linear", pair(density=0.3), rescale=False, normalize=True),
        random=True,
    ),
    Case(
        "dare_linear-qwen2",
        "qwen2",
        "lambda",
        merge("dare_linear", pair(density=0.7), lambda_=0.5),
        random=True,
    ),
    Case("dare_linear-none", "llama", "density 0", merge("dare_linear", pair(density=0))),
    Case(
        "dare_linear-one",
        "llama",
        "one model, weight by layer",
        merge("dare_linear", {"a": {"weight": [0, 1], "density": 0.2}}),
        random=True,
    ),
    Case("dare_ties", "llama", "density 1", merge("dare_ties", pair(1, -0.5, density=1), normalize=True)),
    Case(
        "dare_ties-half",
        "llama",
        "density 0.5, int8_mask",
        merge("dare_ties", pair(density=0.5), int8_mask=True),
        random=True,
    ),
    Case(
        "dare_ties-gpt2",
        "gpt2",
        "density 0.3, normalize",
        merge("dare_ties", pair(density=0.3), normalize=True),
        random=True,
    ),
    Case("della", "llama", "density 1", merge("della", pair(density=1, epsilon=0.1), lambda_=1.1)),
    Case("della-half", "llama", "density 0.5", merge("della", pair(density=0.5, epsilon=0.15)), random=True),
    Case("della-flat", "llama", "epsilon 0", merge("della", pair(density=0.4, epsilon=0)), random=True),
    Case(
        "della-steep",
        "qwen2",
        "epsilon 0.35, normalize: false",
        merge("della", pair(density=0.5, epsilon=0.35), normalize=False),
        random=True,
    ),
    Case(
        "della-bounds",
        "llama",
        "density - epsilon < 0",
        merge("della", pair(density=0.1, epsilon=0.15)),
        BOUNDS,
        outcome="both refuse",
    ),
    Case("della_linear", "llama", "density 1", merge("della_linear", pair(density=1))),
    Case(
        "della_linear-half",
        "llama",
        "density 0.5",
        merge("della_linear", pair(density=0.5, epsilon=0.3)),
        random=True,
    ),
    Case(
        "della_linear-raw",
        "gpt2",
        "rescale: false",
        merge("della_linear", pair(density=0.6, epsilon=0.2), rescale=False),
        random=True,
    ),
]

SCE = [
    Case("sce", "llama", "two models", merge("sce", PAIR)),
    Case("sce-topk", "llama", "select_topk 0.3", merge("sce", PAIR, select_topk=0.3)),
    Case(
        "sce-few",
        "llama",
        "select_topk 0.05, three models",
        merge("sce", THREE, select_topk=0.05, int8_mask=True),
    ),
    Case("sce-layers", "qwen2", "select_topk by layer", merge("sce", PAIR, select_topk=[0.1, 0.9])),
    Case(
        "sce-tiny",
        "llama",
        "tiny task vectors",
        merge("sce", {"c": None, "d": None}),
        "energies below 1e-6 still count; in mergekit all models then weigh the same",
    ),
    Case(
        "sce-compat",
        "llama",
        "tiny task vectors, compat: mergekit",
        merge("sce", {"c": None, "d": None}) | {"compat": "mergekit"},
    ),
    Case("sce-gpt2", "gpt2", "select_topk 0.5", merge("sce", PAIR, select_topk=0.5)),
]

RAM = [
    Case("ram", "llama", "three models", merge("ram", THREE)),
    Case("ram-epsilon", "llama", "epsilon 0.01", merge("ram", PAIR, epsilon=0.01)),
    Case("ram-qwen2", "qwen2", "epsilon by name", merge("ram", THREE, epsilon=by_name(1e-5, mlp=0.02))),
    Case("ram-text", "llama", "a number that YAML takes for text", merge("ram", PAIR, epsilon="1e-2")),
    Case("ram-gpt2", "gpt2", "two models", merge("ram", PAIR)),
    Case("ramplus_tl", "llama", "three models", merge("ramplus_tl", THREE)),
    Case("ramplus_tl-strong", "llama", "r, alpha", merge("ramplus_tl", PAIR, r=0.5, alpha=1.0)),
    Case("ramplus_tl-epsilon", "qwen2", "epsilon 0.01", merge("ramplus_tl", THREE, epsilon=0.01, alpha=2.0)),
    Case("ramplus_tl-gpt2", "gpt2", "two models", merge("ramplus_tl", PAIR)),
]

OTHERS = [
    Case("model_stock", "llama", "two models", merge("model_stock", PAIR)),
    Case("model_stock-rows", "llama", "filter_wise", merge("model_stock", PAIR, filter_wise=True)),
    Case(
        "model_stock-apart",
        "llama",
        "task vectors that point apart",
        merge("model_stock", {"a": None, "c": None}),
        OPPOSITE,
    ),
    Case(
        "model_stock-compat",
        "llama",
        "the same, compat: mergekit",
        merge("model_stock", {"a": None, "c": None}) | {"compat": "mergekit"},
    ),
    Case(
        "model_stock-rows-compat",
        "llama",
        "filter_wise, three models, compat: mergekit",
        merge("model_stock", THREE, filter_wise=True) | {"compat": "mergekit"},
    ),
    Case("model_stock-qwen2", "qwen2", "two models", merge("model_stock", {"base": None, **PAIR})),
    Case("model_stock-gpt2", "gpt2", "filter_wise", merge("model_stock", PAIR, filter_wise=True)),
    Case("nearswap", "llama", "t 0.01", merge("nearswap", {"a": None}, t=0.01)),
    Case(
        "nearswap-small",
        "llama",
        "t 0.0001, the base listed",
        merge("nearswap", {"base": None, "c": None}, t=1e-4),
    ),
    Case(
        "nearswap-filters",
        "qwen2",
        "t by name and layer",
        merge("nearswap", {"b": None}, t=by_name(0.01, mlp=[0.001, 0.1])),
    ),
    Case("nearswap-gpt2", "gpt2", "t 0.05", merge("nearswap", {"a": None}, t=0.05)),
    Case(
        "arcee_fusion", "llama", "a large change", merge("arcee_fusion", {"a": None}), IMPORTANCE, share=1e-3
    ),
    Case(
        "arcee_fusion-base",
        "llama",
        "the base is one of the models",
        merge("arcee_fusion", {"base": None, "b": None}),
        IMPORTANCE,
        share=1e-3,
    ),
    Case(
        "arcee_fusion-qwen2",
        "qwen2",
        "biases, tied embeddings",
        merge("arcee_fusion", {"b": None}),
        IMPORTANCE,
        share=1e-3,
    ),
    Case(
        "arcee_fusion-gpt2",
        "gpt2",
        "biases, tied embeddings",
        merge("arcee_fusion", {"a": None}),
        IMPORTANCE,
        share=1e-3,
    ),
]

WIDE = {"a": 0.4, "wide": 0.6}
CHOSEN_TOKENS = {
    "pad_to_multiple_of": 16,
    "tokens": {
        "token5": {"source": path("a"), "force": True},
        "new1": {"source": {"kind": "model_token", "model": path("a"), "token": "token7"}},
    },
}

TOKENIZERS = [
    Case(
        "tokenizer-same",
        "llama",
        "tokenizer_source: union, of equal vocabularies",
        merge("linear", pair(), None) | {"tokenizer_source": "union"},
    ),
    Case(
        "tokenizer-same-base",
        "llama",
        "tokenizer: {source: base}, of equal vocabularies",
        merge("ties", pair(density=0.5)) | {"tokenizer": {"source": "base"}},
    ),
    Case(
        "tokenizer-same-pad",
        "qwen2",
        "pad_to_multiple_of, of equal vocabularies",
        merge("linear", pair(), None) | {"tokenizer": {"source": "base", "pad_to_multiple_of": 48}},
    ),
    Case(
        "tokenizer-union",
        "llama",
        "tokenizer_source: union",
        merge("linear", WIDE, None) | {"tokenizer_source": "union"},
    ),
    Case(
        "tokenizer-union-wide-first",
        "llama",
        "union, the larger vocabulary first",
        merge("linear", {"wide": 0.6, "b": 0.4}, None) | {"tokenizer_source": "union"},
    ),
    Case(
        "tokenizer-union-base",
        "llama",
        "union with a base that is merged too",
        merge("linear", {"base": 0.1, **WIDE}) | {"tokenizer_source": "union"},
    ),
    Case(
        "tokenizer-union-slerp",
        "llama",
        "union, a spanned method",
        merge("slerp", {"base": None, "wide": None}, t=[0.2, 0.7]) | {"tokenizer_source": "union"},
    ),
    Case(
        "tokenizer-union-ties",
        "llama",
        "union, a measured method",
        merge("ties", {"a": {"weight": 0.5, "density": 0.6}, "wide": {"weight": 0.4, "density": 0.7}})
        | {"tokenizer_source": "union"},
    ),
    Case(
        "tokenizer-union-gpt2",
        "gpt2",
        "union, tied embeddings",
        merge("linear", WIDE, None) | {"tokenizer": {}},
    ),
    Case(
        "tokenizer-base",
        "llama",
        "tokenizer: {source: base}",
        merge("linear", {"base": 0.1, **WIDE}) | {"tokenizer": {"source": "base"}},
    ),
    Case(
        "tokenizer-base-qwen2",
        "qwen2",
        "the base's, tied embeddings",
        merge("task_arithmetic", WIDE) | {"tokenizer_source": "base"},
    ),
    Case(
        "tokenizer-model",
        "llama",
        "the tokenizer of one model, task vectors",
        merge("task_arithmetic", WIDE) | {"tokenizer": {"source": path("wide")}},
    ),
    Case(
        "tokenizer-tokens",
        "llama",
        "rows of chosen tokens, pad_to_multiple_of",
        merge("linear", {"base": 0.1, **WIDE}) | {"tokenizer": {"source": "union"} | CHOSEN_TOKENS},
    ),
    Case(
        "tokenizer-token-id",
        "llama",
        "a row by its number, zeros, a token that is new",
        merge("linear", WIDE, None)
        | {
            "tokenizer": {
                "source": "union",
                "tokens": {
                    "new2": {"source": {"kind": "model_token", "model": path("wide"), "token_id": 9}},
                    "new3": {"source": {"kind": "zero"}},
                    "fresh": {"source": {"kind": "model_token", "model": path("a"), "token_id": 11}},
                },
            }
        },
    ),
]

CASES = [
    *LINEAR,
    *PASSTHROUGH,
    *TASK_ARITHMETIC,
    *SLERP,
    *NUSLERP,
    *MULTISLERP,
    *KARCHER,
    *TRIMMED,
    *DROPPED,
    *SCE,
    *RAM,
    *OTHERS,
    *TOKENIZERS,
]
