"""Everything in the output folder that is not weights."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from meldkit.checkpoint import write_json
from meldkit.engine import Device
from meldkit.errors import RunError
from meldkit.output.card import model_card
from meldkit.output.names import CARD, RECIPE, RECORD, carried
from meldkit.output.record import record
from meldkit.output.sums import Sum
from meldkit.plan import Plan
from meldkit.vocab import (
    copy_tokenizer,
    write_generation_settings,
    write_output_tokenizer,
    write_templates,
)


def write_side_files(
    folder: Path, plan: Plan, *, with_tokenizer: bool = True, card: bool = True, name: str, version: str
) -> None:
    """Write configuration, index, tokenizer, card and recipe.

    Args:
        folder: where the weight files are.
        plan: what was merged.
        with_tokenizer: write tokenizer and chat template.
        card: write README.md.
        name: of the new model, for the card.
        version: of meldkit, for the card.

    Raises:
        RunError: a file cannot be read or written.
    """
    with _unwritten(folder):
        _write_side_files(folder, plan, with_tokenizer=with_tokenizer)
        if card:
            _write_text(folder / CARD, model_card(plan, name, version))


def write_record(
    folder: Path,
    plan: Plan,
    version: str,
    options: Mapping[str, Any],
    sums: Mapping[str, Sum],
    devices: Sequence[Device],
) -> None:
    """Write the record, which tells of every other file; see `meldkit.output.record`.

    Raises:
        RunError: a file cannot be read or written.
    """
    with _unwritten(folder):
        write_json(folder / RECORD, record(plan, version, options, sums, devices, folder))


@contextmanager
def _unwritten(folder: Path) -> Generator[None]:
    try:
        yield
    except OSError as e:
        raise RunError(
            f"cannot copy or write {e.filename or folder}: {e.strerror}",
            hint="the weights are done; run the same command again to continue",
        ) from e


def _write_side_files(folder: Path, plan: Plan, *, with_tokenizer: bool) -> None:
    donor = plan.checkpoints[plan.donor]
    as_it_is = with_tokenizer and plan.tokenizer is None
    if donor.gguf is not None:
        from meldkit.checkpoint.gguf import write_generation_config, write_tokenizer

        write_generation_config(donor.gguf, folder)
        if as_it_is:
            write_tokenizer(donor.gguf, folder)
    else:
        for path in carried(donor.folder, copy_tokenizer=as_it_is, merged=donor.parts):
            target = folder / path.relative_to(donor.folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    if as_it_is and donor.tokenizer is not None:
        copy_tokenizer(donor.tokenizer, folder)
    if with_tokenizer and plan.tokenizer is not None:
        write_output_tokenizer(plan.tokenizer, folder)
    if with_tokenizer and plan.templates is not None:
        write_templates(plan.templates, folder)
    write_generation_settings(plan.tokenizer, plan.ends, plan.config or {}, folder)
    if plan.config is not None:
        write_json(folder / "config.json", plan.config)
    for part in dict.fromkeys(file.folder for file in plan.files):
        files = [index for index, file in enumerate(plan.files) if file.folder == part]
        if len(files) > 1:
            write_json(folder / part / "model.safetensors.index.json", _index(plan, files))
    for name, text in plan.tool.files.items() if plan.tool else ():
        _write_text(folder / name, text)
    _write_text(folder / RECIPE, plan.tool.text if plan.tool else plan.recipe.to_yaml())


def _write_text(path: Path, text: str) -> None:
    # Names of folders may have bytes in them that are no text.
    path.write_bytes(text.encode("utf-8", "backslashreplace"))


def _index(plan: Plan, files: Collection[int]) -> dict[str, Any]:
    """The index of some weight files, which lie in the same folder."""
    stored = [(part, plan.files[part.file]) for job in plan.jobs for part in job.stored if part.file in files]
    return {
        "metadata": {"total_size": sum(part.nbytes for part, _ in stored)},
        "weight_map": {
            part.name.removeprefix(file.folder): file.name.removeprefix(file.folder) for part, file in stored
        },
    }
