"""Arrays with dtype and shape in annotations, such as `Float32[Tensor, "m n"]`.

They are for readers and type checkers. A checker that works while the program runs, as the one of the
tests, imports jaxtyping first; nobody else waits for it, nor for torch before the first tensor is made.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING or "jaxtyping" in sys.modules:
    from jaxtyping import Float32, Float64
    from torch import Tensor
else:
    Float32 = Float64 = Tensor = None

__all__ = ["Float32", "Float64", "Tensor"]
