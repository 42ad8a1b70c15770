"""What models are made of."""

from __future__ import annotations

from meldkit.report.inspect import Inspection, PartSummary, inspect

__all__ = ["Inspection", "PartSummary", "inspect"]
