"""Arrays with dtype and shape in annotations, such as `Float32[Tensor, "m n"]`.

They are for readers and type checkers. A checker that works while the program runs, as the one of the
tests, imports jaxtyping first; nobody else waits for it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING or "jaxtyping" in sys.modules:
    from jaxtyping import Float32, Float64
else:
    Float32 = Float64 = None

__all__ = ["Float32", "Float64"]
