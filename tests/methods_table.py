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
        base: whether task vectors are taken from a base.
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
    base: bool
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
        parameters=lambda m: st.fixed_dictionaries(
            {
                "weight": weights(m),
                "density": per_model(density, m),
                "normalize": st.booleans(),
                "lambda_": lambda_,
                "rescale": st.booleans(),
            }
        ),
        base=True,
        identity=same,
        consensus=with_(weight=0.5, density=1.0, normalize=True, lambda_=1.0),
        translated=same,
        neutral=with_(lambda_=0.0),
    ),
}
