"""LoRA adapters, laid over a checkpoint tile by tile."""

from __future__ import annotations

from meldkit.checkpoint.adapter.base import base_of, other_base
from meldkit.checkpoint.adapter.factors import Factors, LoneAdapter, open_alone
from meldkit.checkpoint.adapter.open import PREFIX, Adapter, open_adapter
from meldkit.checkpoint.adapter.settings import weights_file

__all__ = [
    "PREFIX",
    "Adapter",
    "Factors",
    "LoneAdapter",
    "base_of",
    "open_adapter",
    "open_alone",
    "other_base",
    "weights_file",
]
