"""ram: average task vectors over the models that changed an element."""

from __future__ import annotations

from meldkit import kernels
from meldkit.methods.base import Base, Elementwise
from meldkit.methods.parameter import Parameter
from meldkit.shapes import Float32, Tensor

EPSILON = Parameter("epsilon", "A change of at most this much counts as none.", default=1e-5, low=0)


def ram(x: Float32[Tensor, "m n"], *, epsilon: float) -> Float32[Tensor, " n"]:
    """Mean of the task vectors, taken at each element over the models that changed it.

        θ = θ_0 + Σ_A τ_i / |A|       A = {i : |τ_i| > ε}

    Paper: Reinforced Agent Merging, https://arxiv.org/abs/2601.13572. ε is absolute: it means something
    only where models leave most elements exactly as they were, as after reinforcement learning in bfloat16.
    """
    total, count = kernels.sum_changed(x, epsilon)
    return total.div_(count.clamp_min_(1))


METHOD = Elementwise(name="ram", function=ram, parameters=(EPSILON,), base=Base.DELTA, paper="2601.13572")
