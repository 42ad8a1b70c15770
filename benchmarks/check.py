"""Compares two merges of the same inputs, tensor by tensor, and prints what it found as one line of JSON.

    python benchmarks/check.py OURS THEIRS INPUT… [--density D]

Both outputs are bf16, yet one program may round to bf16 between steps and the other once at the end. So two
elements *agree* when they differ by no more than one bf16 spacing of what went into the sum: the largest
operand (input or output) plus the deltas, taken from the last input. Where a method keeps the k largest
deltas, elements at the threshold are often exactly tied in bf16 and the choice among them is arbitrary;
disagreements there are counted apart, as *tied*, and so are those where an elected sign hangs on a sum of
deltas that is zero up to rounding.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import safe_open

SPACING = 2.0**-7  # largest relative distance between neighbouring bf16 numbers
PIECE = 1 << 22


def tensors(stack: ExitStack, folder: Path) -> dict[str, Callable[[], torch.Tensor]]:
    """Name → reader of every tensor in the safetensors files of `folder`, open as long as `stack` is."""
    readers: dict[str, Callable[[], torch.Tensor]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        file: Any = stack.enter_context(safe_open(path, "pt"))  # pyright: ignore[reportUnknownVariableType]
        readers |= {name: partial(file.get_tensor, name) for name in cast("list[str]", file.keys())}
    return readers


def kth_magnitude(delta: torch.Tensor, density: float) -> float:
    """The magnitude of the last delta that is kept when the share `density` is."""
    kept = int(density * delta.numel())
    if kept == 0:
        return float("inf")
    magnitudes = delta.abs().flatten().numpy()
    return float(np.partition(magnitudes, magnitudes.size - kept)[magnitudes.size - kept])


def tied(deltas: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    """Where trimming or electing a sign is undecided up to one bf16 rounding.

    deltas [models, n], thresholds [models], both fp32; returns bool [n].
    """
    magnitudes, edge = deltas.abs(), thresholds[:, None]
    at_edge = ((magnitudes - edge).abs() <= SPACING * edge).any(0)
    kept = torch.where(magnitudes >= edge * (1 - SPACING), deltas, 0)
    no_majority = kept.sum(0).abs() <= SPACING * kept.abs().sum(0)
    return at_edge | no_majority


def compare(ours: Path, theirs: Path, inputs: list[Path], density: float | None) -> dict[str, object]:
    """Walk both outputs. The last of `inputs` is what deltas are taken from."""
    counts = {"elements": 0, "bit_equal": 0, "tied": 0, "disagree": 0}
    worst, worst_tensor = 0.0, ""
    with ExitStack() as stack:
        a, b, *models = (tensors(stack, path) for path in (ours, theirs, *inputs))
        if a.keys() != b.keys():
            raise SystemExit(
                f"the outputs hold different tensors: {', '.join(sorted(a.keys() ^ b.keys())[:5])}"
            )
        for name in sorted(a):
            x, y = a[name](), b[name]()
            if (x.dtype, x.shape) != (y.dtype, y.shape):
                raise SystemExit(f"{name}: {x.dtype} {tuple(x.shape)} against {y.dtype} {tuple(y.shape)}")
            x, y, sources = x.flatten(), y.flatten(), [model[name]().flatten() for model in models]
            thresholds = None
            if density is not None:
                base = sources[-1].float()
                kept = [kth_magnitude(source.float() - base, density) for source in sources[:-1]]
                thresholds = torch.tensor(kept)
            largest_difference, largest = 0.0, 0.0
            for start in range(0, x.numel(), PIECE):
                part = slice(start, start + PIECE)
                p, q = x[part].float(), y[part].float()
                values = torch.stack([source[part].float() for source in sources])
                deltas = values[:-1] - values[-1]
                scale = torch.cat([values, p[None], q[None]]).abs().amax(0) + deltas.abs().sum(0)
                difference = (p - q).abs()
                apart = ~(difference <= SPACING * scale)  # NaN counts as apart
                if thresholds is not None:
                    undecided = apart & tied(deltas, thresholds)
                    counts["tied"] += int(undecided.sum())
                    apart &= ~undecided
                counts["elements"] += p.numel()
                counts["bit_equal"] += int((x[part].view(torch.int16) == y[part].view(torch.int16)).sum())
                counts["disagree"] += int(apart.sum())
                largest_difference = max(largest_difference, float(difference.max()))
                largest = max(largest, float(q.abs().max()))
            relative = largest_difference / largest if largest else 0.0
            if not relative <= worst:
                worst, worst_tensor = relative, name
    return {**counts, "largest_relative_difference": worst, "largest_in": worst_tensor}


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare two merges of the same inputs.")
    parser.add_argument("ours", type=Path)
    parser.add_argument("theirs", type=Path)
    parser.add_argument("inputs", type=Path, nargs="+", help="the models merged, the base last")
    parser.add_argument("--density", type=float, help="share of deltas that the method keeps by magnitude")
    args = parser.parse_args()
    print(json.dumps(compare(args.ours, args.theirs, args.inputs, args.density)))


if __name__ == "__main__":
    main()
