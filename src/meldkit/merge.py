"""The functions that mergekit's notebooks call, under the same names."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from meldkit.api import MergeResult, Status, check_free, devices_of, merge, plan
from meldkit.config import MergeConfiguration
from meldkit.options import MergeOptions
from meldkit.output import RECORD
from meldkit.paths import output_path

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
    out = output_path(out_path)
    if (out / RECORD).is_file():
        options = replace(options, overwrite=True)
    check_free(out, overwrite=options.overwrite)
    devices_of(options)
    chosen = plan(merge_config.recipe(), options)
    for line in chosen.warnings:
        _log.warning(line)
    with _bar(quiet=options.quiet) as progress:
        result = merge(chosen, out, options, progress=progress)
    if result.verification.nonfinite:
        _log.warning("NaN or Inf in %s", ", ".join(result.verification.nonfinite))
    return result


@contextmanager
def _bar(*, quiet: bool) -> Generator[Callable[[Status], None]]:
    """The bar that transformers draws: in notebooks, and on terminals; nothing into files and pipes."""
    from tqdm.auto import tqdm

    bar: Any = tqdm(desc="merging", unit="B", unit_scale=True, disable=True if quiet else None)
    with bar:

        def update(status: Status) -> None:
            bar.total = status.total
            bar.update(status.done - bar.n)

        yield update
