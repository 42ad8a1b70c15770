"""What lands on disk."""

from __future__ import annotations

from meldkit.output.files import write_record, write_side_files
from meldkit.output.fit import check_fit
from meldkit.output.folder import PARTIAL, OutputFolder, check_free
from meldkit.output.record import FORMAT, RECIPE, RECORD, surroundings
from meldkit.output.sums import Sum, Sums, sum_of, tensor_sum
from meldkit.output.verify import Verification

__all__ = [
    "FORMAT",
    "PARTIAL",
    "RECIPE",
    "RECORD",
    "OutputFolder",
    "Sum",
    "Sums",
    "Verification",
    "check_fit",
    "check_free",
    "sum_of",
    "surroundings",
    "tensor_sum",
    "write_record",
    "write_side_files",
]
