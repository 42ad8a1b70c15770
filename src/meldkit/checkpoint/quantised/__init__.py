"""Quantised checkpoints, read as the numbers that they stand for."""

from __future__ import annotations

from meldkit.checkpoint.quantised.dequantise import dequantised, digest_of_settings

__all__ = ["dequantised", "digest_of_settings"]
