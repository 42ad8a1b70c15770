"""What della and della_linear share: dropping at random, the smaller the likelier, and rescaling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from meldkit import kernels
from meldkit.kernels import Numbers, Rows, draws, ranks
from meldkit.methods._kept import Kept, KeptL1, keep
from meldkit.methods._task_vectors import DENSITY, LAMBDA, WEIGHT, merge_task_vectors
from meldkit.methods.base import TileNoise, Whole
from meldkit.methods.noise import all_or_nothing
from meldkit.methods.parameter import Parameter
from meldkit.methods.statistics import Statistic

EPSILON = Parameter(
    "epsilon",
    "Half the distance between the probabilities of keeping a row's largest and smallest elements.",
    default=0.15,
    per_model=True,
    low=0,
    high=1,
)
RESCALE = Parameter(
    "rescale",
    "How what is dropped is made up for: l1 restores each task vector's L1 norm, keep_probability divides "
    "each element by its own probability as the paper does, none does not; true is l1, false is none.",
    default="l1",
    kind=str,
    choices=("l1", "keep_probability", "none"),
    aliases={True: "l1", False: "none"},
)
PARAMETERS = (
    WEIGHT,
    replace(DENSITY, start=0.7, reason="the authors' scripts drop 0.3"),
    EPSILON,
    LAMBDA,
    RESCALE,
)

_LEVELS = 1 << 16


def check_window(*, density: Sequence[float], epsilon: Sequence[float], **_: object) -> None:
    """The probabilities density ± epsilon must lie inside (0, 1), unless all or nothing is kept."""
    for d, e in zip(density, epsilon, strict=True):
        if 0 < d < 1 and not 0 < d - e <= d + e < 1:
            raise ValueError(
                f"density {d:g} with epsilon {e:g}: probabilities {d - e:g} to {d + e:g} leave the range "
                "from 0 to 1; take a smaller epsilon"
            )


def measure(
    whole: Whole, *, density: Sequence[float], epsilon: Sequence[float], rescale: str, **_: object
) -> Statistic | None:
    """The L1 ratios, where they are asked for and something is dropped."""
    if rescale != "l1" or min(density) >= 1:
        return None

    def drawn(x: Rows, start: int) -> np.ndarray:
        return draw(x, TileNoise(whole.noise, start, x.shape[1]), density, epsilon, whole.num_columns)

    return KeptL1(drawn, whole.num_models, whole.numel, whole.num_columns)


def draw(
    x: Rows,
    noise: TileNoise,
    density: Sequence[float],
    epsilon: Sequence[float],
    num_columns: int,
) -> np.ndarray:
    """Bits of the elements to keep: uint8 `[m, n / 8]`, the highest bit of a byte first.

    Args:
        x: task vectors, whole rows.
        noise: of the tile.
        density: mean probability of keeping, per model.
        epsilon: half the width of the window of probabilities, per model.
        num_columns: elements of a row.
    """
    bits: list[np.ndarray] = []
    for model, (row, d, e) in enumerate(zip(kernels.numbers(x), density, epsilon, strict=True)):
        if d <= 0 or d >= 1:
            bits.append(all_or_nothing(noise.n, d >= 1))
        else:
            rows, levels = row.reshape(-1, num_columns), levels_by_rank(num_columns, d, e)
            bits.append(ranks.below(rows, levels, noise.noise.key(model), noise.start))
    return np.stack(bits)


def levels_by_rank(num_columns: int, density: float, epsilon: float) -> np.ndarray:
    """The probability of keeping the element of each rank, in units of 1/65536: uint16 `[num_columns]`.

    An element of rank r (from 0, by magnitude, ties by position) in a row of n has probability
    density − ε + 2 ε r / (n − 1); in a row of one, density.

    Args:
        num_columns: elements of a row.
        density: strictly between 0 and 1.
        epsilon: small enough for probabilities strictly between 0 and 1.
    """
    relative = np.linspace(0, 1, num_columns) if num_columns > 1 else np.full(1, 0.5)
    probabilities = density - epsilon + 2 * epsilon * relative
    return np.rint(probabilities * _LEVELS).clip(1, _LEVELS - 1).astype(np.uint16)


def merge_della(
    x: Rows,
    kept: Kept | None,
    noise: TileNoise,
    *,
    elect: str | None,
    weight: Sequence[float],
    density: Sequence[float],
    epsilon: Sequence[float],
    normalize: bool,
    lambda_: float,
    rescale: str,
    num_columns: int,
) -> Numbers:
    """Drop, rescale, and merge with or without sign election."""
    if rescale == "keep_probability":
        found = zip(list(x), kernels.numbers(x), density, epsilon, strict=True)
        for model, (row, numbers, d, e) in enumerate(found):
            if 0 < d < 1:
                levels = ranks.by_rank(numbers.reshape(-1, num_columns), levels_by_rank(num_columns, d, e))
                kernels.keep_bits(row, draws.below(noise.noise.key(model), noise.start, levels))
                kernels.divide(row, levels)
            elif d <= 0:
                kernels.keep_bits(row, all_or_nothing(noise.n, False))
    elif kept is not None:
        kept.drop(x, noise.start)
    elif min(density) < 1:
        keep(x, draw(x, noise, density, epsilon, num_columns))
    ratios = None if kept is None else kept.ratios
    return merge_task_vectors(x, weight, ratios, elect=elect, normalize=normalize, lambda_=lambda_)
