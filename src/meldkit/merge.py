"""The functions that mergekit's notebooks call, under the same names."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

from meldkit.api import MergeResult, merge
from meldkit.config import MergeConfiguration
from meldkit.options import MergeOptions
from meldkit.output import RECORD

__all__ = ["MergeOptions", "run_merge"]

_log = logging.getLogger("meldkit")


def run_merge(
    merge_config: MergeConfiguration,
    out_path: str | os.PathLike[str],
    options: MergeOptions | None = None,
    config_source: str | None = None,
) -> MergeResult:
    """Merge as a configuration says.

    Running a notebook cell again replaces the merge that it made before; any other folder is left alone
    unless `options.overwrite` is set.

    Args:
        merge_config: the recipe.
        out_path: folder to write.
        options: how to run.
        config_source: the recipe's text; accepted, but model card and record hold the canonical recipe.

    Raises:
        MeldError: see `meldkit.errors`.
    """
    del config_source
    options = options or MergeOptions()
    for line in options.idle():
        _log.info(line)
    if (Path(out_path) / RECORD).is_file():
        options = replace(options, overwrite=True)
    recipe = merge_config.recipe()
    result = merge(recipe, out_path, options)
    for line in result.plan.warnings:
        _log.warning(line)
    return result
