"""The bytes that merges gave when they were last looked at; `test_golden_bytes.py` compares.

As a program it writes them anew, which needs a higher `NUMERIC_VERSION` if they are others:

    python tests/golden_bytes.py
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import same_bytes
import tiny
from meldkit import merge
from meldkit.methods import METHODS
from meldkit.options import MergeOptions
from meldkit.output.record import surroundings
from meldkit.plan import NUMERIC_VERSION

PATH = Path(__file__).parent / "golden" / "bytes.json"
#: Of these, sums are torch's, whose order follows the width of the processor's registers.
_SUMMED_BY_TORCH = ("nuslerp, rows", "model_stock, rows")
CASES = [name for name in (*METHODS, *same_bytes.VARIANTS) if name not in _SUMMED_BY_TORCH]
FUSED, UNFUSED = (
    "products are not rounded before they are added",
    "products are rounded before they are added",
)


def write_models(folder: Path) -> None:
    """Models whose values are drawn as whole numbers, so that they are the same everywhere."""
    base = [_between(0, i, shape) for i, shape in enumerate(same_bytes.SHAPES.values())]
    for model, name in enumerate(same_bytes.NAMES):
        weights: dict[str, torch.Tensor] = {}
        for i, (tensor, shape) in enumerate(same_bytes.SHAPES.items()):
            change = _between(model, i, shape) * np.float32(0 if name == "base" else 2**-8)
            weights[tensor] = torch.from_numpy(base[i] + change).bfloat16().float()
        tiny.stored(folder / name, weights, same_bytes.CONFIG)


def _between(model: int, tensor: int, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers from −1 to 1."""
    raw = np.random.Philox(key=100 * model + tensor).random_raw(math.prod(shape))
    return ((raw >> np.uint64(40)).astype(np.float32) * np.float32(2**-23) - np.float32(1)).reshape(shape)


def arithmetic() -> str:
    """How this processor's kernels of PyTorch add a product, on which some methods' last bits depend."""
    x = torch.full((64,), 1 + 2**-12)
    fused = torch.add(torch.full((64,), -1.0), x, alpha=1 + 2**-12)
    return FUSED if bool((fused == 2**-11 + 2**-24).all()) else UNFUSED


def digests(folder: Path) -> dict[str, str]:
    """Of each case, after models were written into the folder."""
    write_models(folder)
    return {name: digest(name, folder) for name in CASES}


def digest(name: str, folder: Path) -> str:
    """SHA-256 of the data of a case's weight file, its header aside.

    Args:
        name: of the case.
        folder: where the models are, and the output goes.
    """
    recipe = same_bytes.case_of(name).recipe(folder)
    merge(recipe, folder / "out", MergeOptions(num_threads=1, write_model_card=False, overwrite=True))
    data = (folder / "out" / "model.safetensors").read_bytes()
    return hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()


def read() -> dict[str, Any]:
    """What the file holds."""
    return json.loads(PATH.read_text())


def in_process_of_its_own(**variables: str) -> dict[str, Any]:
    """`arithmetic` and `digests` with other kernels of PyTorch."""
    done = subprocess.run(
        [sys.executable, __file__, "--print"],
        env={**os.environ, **variables},
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout)


def main() -> None:
    """Write the file, or print what these surroundings give."""
    with tempfile.TemporaryDirectory() as folder:
        own = {"arithmetic": arithmetic(), "digests": digests(Path(folder))}
    if sys.argv[1:] == ["--print"]:
        print(json.dumps(own))
        return
    runs = (own, in_process_of_its_own(ATEN_CPU_CAPABILITY="default"))
    new = {
        "numeric_version": NUMERIC_VERSION,
        "made_with": surroundings(),
        "digests": {run["arithmetic"]: run["digests"] for run in runs},
    }
    if PATH.exists():
        old = read()
        if old["digests"] != new["digests"] and old["numeric_version"] == NUMERIC_VERSION:
            sys.exit(f"other bytes, but NUMERIC_VERSION is {NUMERIC_VERSION} as before; raise it first")
    PATH.write_text(json.dumps(new, indent=1, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
