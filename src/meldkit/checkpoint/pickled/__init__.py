"""Files of `torch.save`, read without running anything that is in them."""

from __future__ import annotations

from meldkit.checkpoint.pickled.read import LOCAL_HEADER_BYTES, local_header, read_pickled

__all__ = ["LOCAL_HEADER_BYTES", "local_header", "read_pickled"]
