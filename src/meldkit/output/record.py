"""The record of a merge, meldkit.json: what is needed to make the same weights again, and to know them.

It names inputs as the recipe does, and says nothing else about where they lay.
"""

from __future__ import annotations

import hashlib
import os
import re
import runpy
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from meldkit.checkpoint import Checkpoint
from meldkit.engine import ON_CPU, Device
from meldkit.kernels.library import compiled, processor
from meldkit.output.names import CARD, RECORD, settings_files
from meldkit.output.sums import Sum
from meldkit.plan import NUMERIC_VERSION, Plan, stored_inputs
from meldkit.regular import sha256_of

#: Of what the record says; raised when it says it otherwise.
FORMAT = 1
#: Lies beside the files until they are published.
_JOURNAL = "journal"
_SHA256 = re.compile("[0-9a-f]{64}")
_COMMIT = re.compile("[0-9a-f]{40}")
#: Pieces of a sample, bytes of each, and how many files are sampled at once: a disk that does not hold the
#: files in memory has to look in so many places.
_PIECES, _PIECE, _AT_ONCE = 1024, 512, 8


def record(
    plan: Plan,
    version: str,
    options: Mapping[str, Any],
    sums: Mapping[str, Sum],
    devices: Sequence[Device],
    folder: Path,
) -> dict[str, Any]:
    """The record of a merge whose files lie in a folder.

    Args:
        plan: what was merged.
        version: of meldkit.
        options: those that change what is written.
        sums: of each stored tensor.
        devices: that it was computed on.
        folder: of all files, the record aside.

    Raises:
        OSError: a file cannot be read.
    """
    weights = {file.name: file for file in plan.files}
    others = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / _JOURNAL)
    names = [p.relative_to(folder).as_posix() for p in others]
    return {
        "format": FORMAT,
        "meldkit": version,
        "numeric_version": NUMERIC_VERSION,
        "made_with": {**surroundings(devices), **(plan.tool.made_with if plan.tool else {})},
        "plan": plan.digest(),
        **({} if plan.tool is None else {"tool": plan.tool.name}),
        "seed": plan.seed,
        "options": dict(options),
        "models": [_model(checkpoint) for checkpoint in stored_inputs(plan)],
        "weights": {
            file.name: {
                "size": file.size,
                "header_sha256": hashlib.sha256(file.header).hexdigest(),
                "sums": {
                    part.name.removeprefix(file.folder): str(sums[part.name])
                    for job in plan.jobs
                    for part in job.stored
                    if plan.files[part.file] is file
                },
            }
            for file in plan.files
        },
        "files": {
            name: {"size": path.stat().st_size, "sha256": sha256_of(path)}
            for name, path in zip(names, others, strict=True)
            if name not in weights and name not in (RECORD, CARD)
        },
    }


def surroundings(devices: Sequence[Device] = ON_CPU) -> dict[str, str]:
    """What else bytes may depend on: versions of the libraries that compute, and kinds of processors."""
    return {
        "torch": _version_of_torch(),
        "numpy": np.__version__,
        "machine": processor(),
        # It takes those that suit the processor best, unless it is told otherwise.
        "torch_kernels": os.environ.get("ATEN_CPU_CAPABILITY", "best"),
        "meldkit_kernels": "compiled" if compiled() else "none",
        **({} if devices[0].in_memory else {"device": ", ".join(dict.fromkeys(d.model for d in devices))}),
    }


def _version_of_torch() -> str:
    """`torch.__version__`, read where torch has it from: importing all of torch takes a second.

    The standard library's `importlib.metadata` knows it too, but brings along what reads mails.
    """
    spec = find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return runpy.run_path(str(Path(spec.origin).with_name("version.py")))["__version__"]


def _model(checkpoint: Checkpoint) -> dict[str, Any]:
    """An input: the name that the recipe gives it, and what tells it from others."""
    result: dict[str, Any] = {"model": checkpoint.label, "fingerprint": checkpoint.fingerprint}
    if commits := commits_of(checkpoint):
        result["commits"] = commits
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        result["files"] = list(pool.map(_file, checkpoint.files()))
    result["settings"] = settings_of(checkpoint)
    return result


def settings_of(checkpoint: Checkpoint) -> list[dict[str, str]]:
    """SHA-256 of the files beside the weights of an input, by name: of its folder, and of each adapter's.

    Raises:
        OSError: a file cannot be read.
    """
    return [{name: sha256_of(path) for name, path in files.items()} for files in settings_files(checkpoint)]


def _file(path: Path) -> dict[str, Any]:
    real = Path(os.path.realpath(path))
    result: dict[str, Any] = {"name": path.name, "size": real.stat().st_size, "sample": sample_of(real)}
    # The hub's cache calls large files by their hash.
    if _SHA256.fullmatch(real.name) and real.parent.name == "blobs":
        result["sha256"] = real.name
    return result


def sample_of(path: Path) -> str:
    """SHA-256 of 1024 pieces of a file, spread evenly from its first byte to its last; of all of a small one.

    Another training of the same model changes nearly every value and is seen; a change of a few values may
    lie between the pieces.

    Raises:
        OSError: the file cannot be read.
    """
    hasher = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        last = os.fstat(file.fileno()).st_size - _PIECE
        if last <= _PIECES * _PIECE:
            hasher.update(file.read())
        else:
            for number in range(_PIECES):
                file.seek(number * last // (_PIECES - 1))
                hasher.update(file.read(_PIECE))
    return hasher.hexdigest()


def commits_of(checkpoint: Checkpoint) -> dict[str, str]:
    """Commits of the hub's repositories, by their names, that an input is made of: model and adapters."""
    folders = [checkpoint.folder, *(adapter.folder for adapter in checkpoint.adapters)]
    # A product of adapters has no folder.
    folders += [path.parent for path in checkpoint.files()]
    found: dict[str, str] = {}
    for folder in folders:
        kind, *name = folder.parent.parent.name.split("--", 2)
        in_cache = folder.parent.name == "snapshots" and kind == "models" and _COMMIT.fullmatch(folder.name)
        if in_cache:
            found["/".join(name)] = folder.name
    return found
