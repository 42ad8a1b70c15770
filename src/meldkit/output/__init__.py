"""What lands on disk."""

from __future__ import annotations

from meldkit.output.files import RECORD, write_side_files
from meldkit.output.fit import check_fit
from meldkit.output.folder import PARTIAL, OutputFolder, check_free
from meldkit.output.verify import Verification

__all__ = [
    "PARTIAL",
    "RECORD",
    "OutputFolder",
    "Verification",
    "check_fit",
    "check_free",
    "write_side_files",
]
