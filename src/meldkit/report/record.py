"""Reads the record of a merge (`meldkit.output.record`), which comes with a model and is checked like it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, NonNegativeInt, ValidationError

from meldkit.checkpoint import read_json, stays_inside
from meldkit.errors import CheckpointError
from meldkit.output import FORMAT, RECORD


def _own(name: str) -> str:
    if not stays_inside(name):
        raise ValueError("leads out of the folder")
    return name


_Name = Annotated[str, AfterValidator(_own)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True)


class _File(_Part):
    size: NonNegativeInt
    sha256: str


class _WeightFile(_Part):
    size: NonNegativeInt
    header_sha256: str
    sums: dict[str, str]


class _InputFile(_Part):
    name: str
    size: NonNegativeInt


class _Input(_Part):
    model: str
    fingerprint: str
    commit: str | None = None
    files: list[_InputFile]


class _Plugin(_Part):
    name: str
    sha256: str


class _Options(_Part):
    model_config = ConfigDict(extra="forbid")

    allow_crimes: bool
    allow_crop: bool
    allow_nonfinite: bool
    copy_tokenizer: bool
    out_shard_size: int
    plugin: list[_Plugin]
    trust_remote_code: bool
    write_model_card: bool


class _Record(_Part):
    meldkit: str
    numeric_version: int
    made_with: dict[str, str]
    plan: str
    seed: int
    options: _Options
    models: list[_Input]
    weights: dict[_Name, _WeightFile]
    files: dict[_Name, _File]


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of the merge that has written a folder; None if there is none.

    Raises:
        CheckpointError: it cannot be read, is not a whole record, or is of a version of meldkit that this one
            does not know.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    found = read_json(path)
    if found.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has the format {found.get('format')!r}, this version of meldkit reads {FORMAT}",
            hint="use the version of meldkit that made the model",
        )
    try:
        _Record.model_validate(found)
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise CheckpointError(
            f"{path} is not a whole record: {place}: {first['msg']}",
            hint="it was damaged or edited; get it again from where the model came from",
        ) from e
    return found
