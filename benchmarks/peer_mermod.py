"""Runs one of our recipes with mermod; in its environment: peer_mermod.py RECIPE OUT."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import yaml
from mermod import merge

WEIGHTS = "model.safetensors"


def main() -> None:
    recipe, out = yaml.safe_load(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    density = recipe["models"][0]["parameters"]["density"]
    out.mkdir()
    merge(
        sd_base_path=Path(recipe["base_model"]) / WEIGHTS,
        sd_merged_paths={
            Path(entry["model"]).name: Path(entry["model"]) / WEIGHTS for entry in recipe["models"]
        },
        method="dare",
        sparsity=1 - density,
        use_ties=recipe["merge_method"] == "dare_ties",
        lambda_param=1 / density,  # which is what DARE rescales by
        weight_batch_size=16,
        weight_batches_custom=[],
        sd_output_path=out,
        seed_dict=None,
        merge_device=torch.device("cpu"),
        use_progress_bar=False,
    )


if __name__ == "__main__":
    main()
