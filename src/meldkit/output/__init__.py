"""What lands on disk."""

from __future__ import annotations

from meldkit.output.files import RECORD, write_side_files
from meldkit.output.folder import PARTIAL, OutputFolder

__all__ = ["PARTIAL", "RECORD", "OutputFolder", "write_side_files"]
