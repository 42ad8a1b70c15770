"""Files of `torch.save`, read without running anything that is in them."""

from __future__ import annotations

from meldkit.checkpoint.pickled.read import LOCAL_HEADER_BYTES, local_header, read_pickled
from meldkit.checkpoint.weights import PICKLED as SUFFIXES

__all__ = ["LOCAL_HEADER_BYTES", "SUFFIXES", "local_header", "read_pickled"]
