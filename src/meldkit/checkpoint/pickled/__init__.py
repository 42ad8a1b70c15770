"""Files of `torch.save`, read without running anything that is in them."""

from __future__ import annotations

from meldkit.checkpoint.pickled.read import SUFFIXES, read_pickled

__all__ = ["SUFFIXES", "read_pickled"]
