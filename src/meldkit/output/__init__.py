"""What lands on disk."""

from __future__ import annotations

from meldkit.output.files import write_record, write_side_files
from meldkit.output.fit import check_fit, facts
from meldkit.output.folder import PARTIAL, OutputFolder, check_free
from meldkit.output.inputs import check_folder
from meldkit.output.names import CARD, RECIPE, RECORD, may_be_read
from meldkit.output.own import check_links, check_names
from meldkit.output.record import FORMAT, commits_of, sample_of, settings_of, surroundings
from meldkit.output.replace import sync_path
from meldkit.output.space import check_space, lacking
from meldkit.output.sums import Sum, Sums, sum_of, tensor_sum
from meldkit.output.verify import Verification

__all__ = [
    "CARD",
    "FORMAT",
    "PARTIAL",
    "RECIPE",
    "RECORD",
    "OutputFolder",
    "Sum",
    "Sums",
    "Verification",
    "check_fit",
    "check_folder",
    "check_free",
    "check_links",
    "check_names",
    "check_space",
    "commits_of",
    "facts",
    "lacking",
    "may_be_read",
    "sample_of",
    "settings_of",
    "sum_of",
    "surroundings",
    "sync_path",
    "tensor_sum",
    "write_record",
    "write_side_files",
]
