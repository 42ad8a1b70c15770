"""Quantised checkpoints, read as the numbers that they stand for: see `dequantise`."""

from __future__ import annotations

from meldkit.checkpoint.quantised.model import digest_of_settings, may_be_quantised

__all__ = ["digest_of_settings", "may_be_quantised"]
