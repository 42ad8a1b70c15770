"""What lands on disk."""

from __future__ import annotations

from meldkit.output.files import RECORD, write_side_files
from meldkit.output.folder import PARTIAL, OutputFolder, check_free

__all__ = ["PARTIAL", "RECORD", "OutputFolder", "check_free", "write_side_files"]
