"""The table of methods: which laws each one obeys. `test_methods.py` is parametrised by it.

A new method needs a row here and an oracle in `oracles.py`, and every law is tried on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

import oracles
from oracles import Answer, Parameters

#: Parameters to parameters; a law that holds only for some parameters, or changes them, says how.
Change = Callable[[Parameters], Parameters]


def same(parameters: Parameters) -> Parameters:
    """The law holds for all parameters, and they stay as they are."""
    return parameters


def with_(**changed: Any) -> Change:
    """The law holds when these parameters have these values; per-model ones are given once for all."""

    def change(parameters: Parameters) -> Parameters:
        values = {
            key: [value] * len(parameters[key]) if isinstance(parameters[key], list) else value
            for key, value in changed.items()
        }
        return {**parameters, **values}

    return change


def times(name: str, factor: float) -> Change:
    """The law holds when this parameter, a length, is multiplied too."""
    return lambda parameters: {**parameters, name: factor * parameters[name]}


def reordered(parameters: Parameters, order: Sequence[int]) -> Parameters:
    """Per-model parameters in another order of the models."""
    return {k: [v[i] for i in order] if isinstance(v, list) else v for k, v in parameters.items()}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method and its laws. None where a law does not hold.

    Attributes:
        oracle: the method in float64.
        parameters: how to draw valid parameters for m models.
        num_models: fewest and most models to draw, the base not counted.
        base: whether task vectors are taken from a base; None: with and without one.
        context: what else the oracle is told: "shape", "seed", "tensor".
        identity: all inputs the same, the base too: the result is that tensor.
        consensus: all models the same, the base another: the result is the model.
        permuted: models in another order with their parameters: the same result.
        scaled: inputs times 2: the result times 2, to the bit.
        odd: inputs times −1: the result times −1, to the bit.
        translated: inputs plus a constant: the result plus that constant.
        neutral: parameters that give the base, or the first model if there is none, whatever the others are.
    """

    oracle: Callable[..., Answer]
    parameters: Callable[[int], st.SearchStrategy[Parameters]]
    num_models: tuple[int, int] = (1, 4)
    base: bool | None
    context: tuple[str, ...] = ()
    identity: Change | None = None
    consensus: Change | None = None
    permuted: Callable[[Parameters, Sequence[int]], Parameters] | None = reordered
    scaled: Change | None = same
    odd: Change | None = None
    translated: Change | None = None
    neutral: Change | None = None


def between(low: float, high: float) -> st.SearchStrategy[float]:
    """Numbers as people write them: with four decimals."""
    return st.floats(low, high).map(lambda value: round(value, 4))


weight = st.sampled_from([1.0, 0.5, 0.25, 0.3, 2.0, 0.0, -0.5]) | between(-2, 2)
share = st.sampled_from([1.0, 0.5, 0.3]) | between(0.01, 2)
density = st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]) | between(0, 1)
lambda_ = st.sampled_from([1.0, 0.5, 0.0, -1.0]) | between(-2, 2)
gamma = st.sampled_from([0.0, 0.01, 0.2, 1.0]) | between(0, 1)
change = st.sampled_from([0.0, 1e-5, 0.03, 0.0625, 0.1])
position = st.sampled_from([0.0, 0.25, 0.5, 1.0]) | between(0, 1) | between(-0.5, 1.5)


def per_model(values: st.SearchStrategy[float], m: int) -> st.SearchStrategy[list[float]]:
    """One value per model."""
    return st.lists(values, min_size=m, max_size=m)


def weights(m: int) -> st.SearchStrategy[list[float]]:
    """Weights of any sign whose sum is not lost in rounding errors."""
    signed = per_model(weight, m).filter(
        lambda w: abs(sum(w)) > 0.1 * sum(map(abs, w)) and abs(sum(w)) > 1e-3
    )
    return signed | per_model(share, m)


def window(m: int) -> st.SearchStrategy[Parameters]:
    """Densities, and half widths that keep probabilities strictly between 0 and 1."""

    def both(pairs: list[tuple[float, float]]) -> Parameters:
        room = [min(d, 1 - d) if 0 < d < 1 else 1.0 for d, _ in pairs]
        return {
            "density": [d for d, _ in pairs],
            "epsilon": [round(0.99 * r * share, 6) for r, (_, share) in zip(room, pairs, strict=True)],
        }

    shares = st.sampled_from([0.0, 0.5, 1.0]) | between(0, 1)
    return st.lists(st.tuples(density, shares), min_size=m, max_size=m).map(both)


def family(m: int, **more: st.SearchStrategy[Any]) -> st.SearchStrategy[Parameters]:
    """Parameters of methods on sparsified task vectors."""
    return st.fixed_dictionaries(
        {"weight": weights(m), "normalize": st.booleans(), "lambda_": lambda_, **more}
    )


def dare(m: int) -> st.SearchStrategy[Parameters]:
    """Of dare_linear and dare_ties."""
    rescale = st.sampled_from(["l1", "inverse_density", "none"])
    return family(m, density=per_model(density, m), rescale=rescale)


def della(m: int) -> st.SearchStrategy[Parameters]:
    """Of della and della_linear."""
    rescale = st.sampled_from(["l1", "keep_probability", "none"])
    return st.tuples(family(m, rescale=rescale), window(m)).map(lambda both: {**both[0], **both[1]})


def breadcrumbs(m: int) -> st.SearchStrategy[Parameters]:
    """Of breadcrumbs and breadcrumbs_ties."""
    return family(m, density=per_model(density, m), gamma=per_model(gamma, m), rescale=st.booleans())


TABLE: dict[str, Row] = {
    "linear": Row(
        oracle=oracles.linear,
        parameters=lambda m: st.fixed_dictionaries({"weight": weights(m), "normalize": st.booleans()}),
        base=False,
        identity=with_(normalize=True),
        odd=same,
        translated=with_(normalize=True),
    ),
    "passthrough": Row(
        oracle=oracles.passthrough,
        parameters=lambda m: st.fixed_dictionaries({"scale": per_model(weight, m)}),
        num_models=(1, 1),
        base=False,
        identity=with_(scale=1.0),
        odd=same,
        neutral=with_(scale=1.0),
    ),
    "slerp": Row(
        oracle=oracles.slerp,
        parameters=lambda _: st.fixed_dictionaries({"t": position}),
        num_models=(2, 2),
        base=False,
        identity=same,
        permuted=lambda parameters, order: {
            "t": parameters["t"] if list(order) == [0, 1] else 1 - parameters["t"]
        },
        odd=same,
        neutral=with_(t=0.0),
    ),
    "task_arithmetic": Row(
        oracle=oracles.task_arithmetic,
        parameters=lambda m: st.fixed_dictionaries(
            {"weight": weights(m), "normalize": st.booleans(), "lambda_": lambda_}
        ),
        base=True,
        identity=same,
        consensus=with_(normalize=True, lambda_=1.0),
        odd=same,
        translated=same,
        neutral=with_(lambda_=0.0),
    ),
    "ties": Row(
        oracle=oracles.ties,
        parameters=lambda m: family(
            m,
            density=per_model(density, m),
            rescale=st.booleans(),
            elect=st.sampled_from(["weighted", "unweighted"]),
            trim_scope=st.sampled_from(["tensor", "model"]),
        ),
        base=True,
        identity=same,
        consensus=with_(weight=0.5, density=1.0, normalize=True, lambda_=1.0),
        translated=same,
        neutral=with_(lambda_=0.0),
    ),
    "dare_linear": Row(
        oracle=oracles.dare_linear,
        parameters=dare,
        base=True,
        context=("seed", "tensor"),
        identity=same,
        consensus=with_(density=1.0, normalize=True, lambda_=1.0),
        permuted=None,  # each position has its own mask
        odd=same,
        translated=same,
        neutral=with_(lambda_=0.0),
    ),
    "dare_ties": Row(
        oracle=oracles.dare_ties,
        parameters=dare,
        base=True,
        context=("seed", "tensor"),
        identity=same,
        consensus=with_(weight=0.5, density=1.0, normalize=True, lambda_=1.0),
        permuted=None,
        translated=same,
        neutral=with_(lambda_=0.0),
    ),
    "della": Row(
        oracle=oracles.della,
        parameters=della,
        base=True,
        context=("seed", "tensor", "shape"),
        identity=same,
        consensus=with_(weight=0.5, density=1.0, normalize=True, lambda_=1.0),
        permuted=None,
        translated=same,
        neutral=with_(lambda_=0.0),
    ),
    "della_linear": Row(
        oracle=oracles.della_linear,
        parameters=della,
        base=True,
        context=("seed", "tensor", "shape"),
        identity=same,
        consensus=with_(density=1.0, normalize=True, lambda_=1.0),
        permuted=None,
        odd=same,
        translated=same,
        neutral=with_(lambda_=0.0),
    ),
    "breadcrumbs": Row(
        oracle=oracles.breadcrumbs,
        parameters=breadcrumbs,
        base=True,
        identity=same,
        consensus=with_(density=1.0, normalize=True, lambda_=1.0),
        odd=same,
        translated=same,
        neutral=with_(lambda_=0.0),
    ),
    "breadcrumbs_ties": Row(
        oracle=oracles.breadcrumbs_ties,
        parameters=breadcrumbs,
        base=True,
        identity=same,
        consensus=with_(weight=0.5, density=1.0, normalize=True, lambda_=1.0),
        translated=same,
        neutral=with_(lambda_=0.0),
    ),
    "nuslerp": Row(
        oracle=oracles.nuslerp,
        parameters=lambda m: st.fixed_dictionaries(
            {"weight": weights(m), "nuslerp_flatten": st.booleans(), "nuslerp_row_wise": st.booleans()}
        ),
        num_models=(2, 2),
        base=None,
        context=("shape",),
        identity=same,
        consensus=same,
        odd=same,
    ),
    "multislerp": Row(
        oracle=oracles.multislerp,
        parameters=lambda m: st.fixed_dictionaries(
            {
                "weight": weights(m),
                "normalize_weights": st.booleans(),
                "eps": st.sampled_from([0.0, 1e-8, 1e-6, 1e-3]),
            }
        ),
        base=None,
        identity=with_(normalize_weights=True),
        consensus=with_(normalize_weights=True),
        scaled=times("eps", 2),
        odd=same,
    ),
    "karcher": Row(
        oracle=oracles.karcher,
        parameters=lambda m: st.fixed_dictionaries(
            {
                # With weights of both signs, those that have a direction may sum to 0.
                "weight": per_model(share | st.just(0.0), m).filter(any),
                "max_iter": st.sampled_from([0, 1, 10, 50]),
                "tol": st.sampled_from([1e-5, 1e-9, 1e-2]),
                "compat": st.booleans(),
            }
        ),
        base=False,
        identity=same,
        odd=same,
    ),
    "sce": Row(
        oracle=oracles.sce,
        parameters=lambda _: st.fixed_dictionaries(
            {"select_topk": density, "fuse": st.sampled_from(["selected", "all"]), "compat": st.booleans()}
        ),
        base=True,
        identity=same,
        consensus=with_(select_topk=1.0),
        translated=same,
        neutral=with_(select_topk=0.0, fuse="selected"),
    ),
    "ram": Row(
        oracle=oracles.ram,
        parameters=lambda _: st.fixed_dictionaries({"epsilon": change}),
        base=True,
        identity=same,
        consensus=with_(epsilon=0.0),
        scaled=times("epsilon", 2),
        odd=same,
        translated=same,
        neutral=with_(epsilon=1e9),
    ),
    "ramplus_tl": Row(
        oracle=oracles.ramplus_tl,
        parameters=lambda _: st.fixed_dictionaries(
            {"epsilon": change, "r": between(-1, 1), "alpha": st.sampled_from([0.2, 0.0]) | between(0, 3)}
        ),
        base=True,
        identity=same,
        consensus=with_(epsilon=0.0),
        scaled=times("epsilon", 2),
        odd=same,
        translated=same,
        neutral=with_(epsilon=1e9),
    ),
    "model_stock": Row(
        oracle=oracles.model_stock,
        parameters=lambda _: st.fixed_dictionaries({"filter_wise": st.booleans(), "compat": st.just(False)}),
        num_models=(2, 4),
        base=True,
        context=("shape",),
        identity=same,
        odd=same,
        translated=same,
    ),
    "nearswap": Row(
        oracle=oracles.nearswap,
        parameters=lambda _: st.fixed_dictionaries(
            {"t": st.sampled_from([0.0, 0.02, 0.0625, 10.0]) | between(0, 1)}
        ),
        num_models=(1, 1),
        base=True,
        identity=same,
        consensus=with_(t=1e9),
        scaled=times("t", 2),
        odd=same,
        translated=same,
        neutral=with_(t=0.0),
    ),
    "arcee_fusion": Row(
        oracle=oracles.arcee_fusion,
        parameters=lambda _: st.just({}),
        num_models=(2, 2),
        base=False,
        context=("shape",),
        identity=same,
        permuted=None,
        scaled=None,
        translated=same,
    ),
}
