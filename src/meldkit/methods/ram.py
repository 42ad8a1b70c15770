"""ram: average task vectors over the models that changed an element."""

from __future__ import annotations

from meldkit import kernels
from meldkit.kernels import Numbers, Rows
from meldkit.methods.base import Base, Elementwise, always
from meldkit.methods.parameter import Parameter

EPSILON = Parameter("epsilon", "A change of at most this much counts as none.", default=1e-5, low=0)


def ram(x: Rows, *, epsilon: float) -> Numbers:
    """Mean of the task vectors, taken at each element over the models that changed it.

        θ = θ_0 + Σ_A τ_i / |A|       A = {i : |τ_i| > ε}

    Paper: Reinforced Agent Merging, https://arxiv.org/abs/2601.13572. ε is absolute: it means something
    only where models leave most elements exactly as they were, as after reinforcement learning in bfloat16.
    """
    return kernels.average_changed(x, epsilon)


METHOD = Elementwise(
    name="ram", function=ram, parameters=(EPSILON,), base=Base.DELTA, paper="2601.13572", fuses=always
)
