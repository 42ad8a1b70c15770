"""The memory of whole merges, as the system counts it: bounded, and the same for all sizes of models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import command

#: Sizes of a tensor, stored as bfloat16: 13 MB.
_SIZE = 2560
_MB = 2**20
#: Runs a command and prints its exit status and its largest resident size. Small itself, as the system begins
#: to count a process with what the one that started it had.
_LAUNCHER = """
import os, sys
process = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(process, 0)
print(status, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""
#: By shape of method: recipe, and MB that it may take on two threads beyond what a merge of nothing takes.
SHAPES: dict[str, tuple[dict[str, Any], int]] = {
    "elementwise": ({"merge_method": "linear", "parameters": {"weight": 1}}, 32),
    "spanned": ({"merge_method": "multislerp", "parameters": {"weight": 1}}, 32),
    "measured": (
        {"merge_method": "ties", "base_model": "base", "parameters": {"weight": 1, "density": 0.5}},
        42,
    ),
    "measured by rows": (
        {"merge_method": "della", "base_model": "base", "parameters": {"weight": 1, "density": 0.5}},
        54,
    ),
}
_SLOW = ("spanned", "measured by rows")
NAMES = [pytest.param(name, marks=[pytest.mark.slow] if name in _SLOW else []) for name in SHAPES]


def write_models(folder: Path, num_tensors: int, size: int) -> None:
    """Models base, x and y of equal tensors, in bfloat16."""
    generator = np.random.default_rng(0)
    base = generator.standard_normal((size, size), np.float32)
    for name in ("base", "x", "y"):
        change = 0 if name == "base" else 0.05 * generator.standard_normal((size, size), np.float32)
        data = ((base + change).view(np.uint32) >> 16).astype("<u2").tobytes()
        header = json.dumps(
            {
                f"model.layers.{i}.mlp.up_proj.weight": {
                    "dtype": "BF16",
                    "shape": [size, size],
                    "data_offsets": [i * len(data), (i + 1) * len(data)],
                }
                for i in range(num_tensors)
            }
        ).encode()
        path = folder / name / "model.safetensors"
        path.parent.mkdir(parents=True)
        with path.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for _ in range(num_tensors):
                file.write(data)
        config = {"model_type": "llama", "num_hidden_layers": num_tensors}
        (folder / name / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of models of nothing to speak of, of 50 MB and of 200 MB."""
    folder = tmp_path_factory.mktemp("models")
    write_models(folder / "0", 1, 8)
    write_models(folder / "50", 4, _SIZE)
    write_models(folder / "200", 16, _SIZE)
    return folder


def peak(name: str, folder: Path) -> float:
    """MB that the command `merge` takes for models in that folder, on two threads."""
    recipe = {**SHAPES[name][0], "models": [{"model": "x"}, {"model": "y"}], "dtype": "bfloat16"}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    done = subprocess.run(
        [
            *(sys.executable, "-I", "-S", "-c", _LAUNCHER, command.SCRIPT),
            *("merge", "recipe.json", "out", "--overwrite", "-j", "2"),
        ],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )
    status, nbytes = map(int, done.stdout.splitlines()[-1].split())
    assert status == 0, done.stderr
    return nbytes / _MB


@pytest.mark.parametrize("name", NAMES)
def test_memory_does_not_grow_with_the_model(name: str, models: Path) -> None:
    nothing = peak(name, models / "0")
    # Which buffers are full at the same time differs from run to run: the most of several is what it takes.
    small, large = (max(peak(name, models / size) for _ in range(5)) for size in ("50", "200"))
    assert large - nothing <= SHAPES[name][1]
    assert large <= 1.1 * small + 8
