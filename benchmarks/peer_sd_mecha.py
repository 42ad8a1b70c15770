"""Runs one of our recipes with sd-mecha; in its environment: peer_sd_mecha.py RECIPE OUT."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import sd_mecha
import torch
import yaml
from sd_mecha.extensions import merge_methods

WEIGHTS = "model.safetensors"


def graph(recipe: dict[str, Any]) -> Any:
    """The recipe as sd-mecha's graph; the same computation, in float32 as ours."""

    def model(folder: str) -> Any:
        return sd_mecha.model(Path(folder) / WEIGHTS)

    models = [model(entry["model"]) for entry in recipe["models"]]
    # The function of this name at the top level fails on deltas that are themselves computed.
    add = merge_methods.resolve("add_difference")
    match recipe["merge_method"]:
        case "linear":
            return sd_mecha.weighted_sum(*models, alpha=0.5)
        case "slerp":
            return sd_mecha.slerp(*models, alpha=recipe["parameters"]["t"])
        case "task_arithmetic":
            base = model(recipe["base_model"])
            merged = base
            for each in models:
                merged = add(merged, sd_mecha.subtract(each, base), alpha=1.0)
            return merged
        case "ties":
            base = model(recipe["base_model"])
            deltas = [sd_mecha.subtract(each, base) for each in models]
            # vote_sgn elects signs by sums, as the paper does, instead of by majority.
            density = recipe["models"][0]["parameters"]["density"]
            return add(base, sd_mecha.ties_sum(*deltas, k=density, vote_sgn=True), alpha=1.0)
        case other:
            raise SystemExit(f"not written for {other}")


def main() -> None:
    recipe, out = yaml.safe_load(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    out.mkdir()
    sd_mecha.merge(
        graph(recipe), merge_dtype=torch.float32, output_dtype=torch.bfloat16, output=out / WEIGHTS
    )


if __name__ == "__main__":
    main()
