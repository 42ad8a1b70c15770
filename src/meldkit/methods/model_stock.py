"""model_stock: move from the base to the average as far as the models agree."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import torch

from meldkit import kernels
from meldkit.kernels import Numbers, Rows, Tile, sum_rows
from meldkit.kernels.elsewhere import row_products
from meldkit.methods.base import Base, Measured, Whole
from meldkit.methods.parameter import COMPAT, Parameter
from meldkit.methods.statistics import Gram, Statistic

#: A product of lengths is taken to be at least this much.
_MIN_PRODUCT = 1e-6


def measure(whole: Whole, *, filter_wise: bool, **_: object) -> Statistic | None:
    """The Gram matrix; with `filter_wise` each row has its own, which a tile of whole rows gives."""
    return None if filter_wise else Gram(whole.num_models, whole.numel)


def fuses(*, filter_wise: bool, **_: object) -> bool:
    """Where whole tensors count."""
    return not filter_wise


def by_rows(*, filter_wise: bool, **_: object) -> bool:
    """Angles of rows need whole rows."""
    return filter_wise


def model_stock(
    x: Rows,
    gram: np.ndarray | None,
    *,
    filter_wise: bool,
    compat: bool,
    num_columns: int = 0,
) -> Numbers:
    """Average of the models, drawn back towards the base where their task vectors point apart.

        c = mean over pairs of cos(τ_i, τ_j)
        t = N c / (1 + (N − 1) c)             clamped to [0, 1]
        θ = θ_0 + t · mean_i τ_i

    Paper: Model Stock, https://arxiv.org/abs/2403.19522. Angles are those of whole tensors, with
    `filter_wise` of rows. mergekit does not clamp t, which then leads away from the average for c < 0 and
    diverges towards c = −1/(N − 1); `compat: mergekit` does the same. Products of lengths are taken to be at
    least 1e-6, as in mergekit: of smaller changes, cosines are too small.
    """
    m = len(x)
    if not filter_wise:
        assert gram is not None
        t = _drawn_back(gram, compat=compat)
        return kernels.combine(x, [1.0] * m, t / m)
    assert not isinstance(x, Tile)
    pairs = list(combinations(range(m), 2))
    rows = x.view(m, -1, num_columns)
    squares = [row_products(row, row) for row in rows]
    total = torch.zeros_like(squares[0])
    for i, j in pairs:
        product = (squares[i] * squares[j]).sqrt_().clamp_min_(_MIN_PRODUCT)
        total.add_(row_products(rows[i], rows[j]).div_(product).clamp_(-1, 1))
    cosine = total.div_(len(pairs))
    t = _ratio(cosine if compat else cosine.clamp_(0, 1), m).float().to(x.device)
    return sum_rows(x).view(-1, num_columns).mul_(t.div_(m).unsqueeze(1)).view(-1)


def _drawn_back(gram: np.ndarray, *, compat: bool) -> float:
    """t from the mean cosine between whole tensors."""
    m = len(gram)
    norms = np.sqrt(np.diag(gram))
    cosines = [
        max(-1.0, min(1.0, float(gram[i, j]) / max(float(norms[i] * norms[j]), _MIN_PRODUCT)))
        for i, j in combinations(range(m), 2)
    ]
    cosine = math.fsum(cosines) / len(cosines)
    return _ratio(cosine if compat else max(0.0, min(1.0, cosine)), m)


def _ratio(cosine: Any, m: int) -> Any:
    """t from mean cosines: of the whole tensor, or of rows as a float64 tensor."""
    return m * cosine / (1 + (m - 1) * cosine)


METHOD = Measured(
    name="model_stock",
    function=model_stock,
    measure=measure,
    parameters=(
        Parameter("filter_wise", "Measure angles per row instead of per tensor.", default=False, kind=bool),
        COMPAT,
    ),
    base=Base.DELTA,
    num_models=(2, None),
    paper="2403.19522",
    by_rows=by_rows,
    fuses=fuses,
)
