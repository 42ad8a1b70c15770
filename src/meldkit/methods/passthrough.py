"""passthrough: one model's tensors as they are, or scaled."""

from __future__ import annotations

from collections.abc import Sequence

from meldkit import kernels
from meldkit.kernels import Numbers, Rows
from meldkit.methods.base import Elementwise, always
from meldkit.methods.parameter import Parameter


def passthrough(x: Rows, *, scale: Sequence[float | None]) -> Numbers:
    """The single input's tensors, unchanged or multiplied by `scale`; stacks layers of several models.

        θ = scale · θ_1

    A scale of 0 on `o_proj` and `down_proj` makes an inserted duplicate layer an identity.
    """
    (factor,) = scale
    return x[0] if factor is None else kernels.combine(x, [factor])


def is_copy(*, scale: Sequence[float | None]) -> bool:
    """No scale, or 1: the tensor stays as it is."""
    return scale[0] is None or scale[0] == 1


METHOD = Elementwise(
    name="passthrough",
    function=passthrough,
    parameters=(Parameter("scale", "Factor on the tensor.", default=None, per_model=True),),
    num_models=(1, 1),
    is_copy=is_copy,
    shows_nonfinite=True,
    fuses=always,
)
