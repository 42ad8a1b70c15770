"""LoRA adapters, laid over a checkpoint tile by tile."""

from __future__ import annotations

from meldkit.checkpoint.adapter.base import base_of, other_base
from meldkit.checkpoint.adapter.open import Adapter, open_adapter

__all__ = ["Adapter", "base_of", "open_adapter", "other_base"]
