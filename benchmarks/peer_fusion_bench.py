"""Runs one of our recipes with FusionBench; in its environment: peer_fusion_bench.py RECIPE OUT."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml
from fusion_bench.method.linear.simple_average_for_causallm import SimpleAverageForCausalLM
from fusion_bench.method.linear.task_arithmetic_for_causallm import TaskArithmeticForCausalLM
from fusion_bench.method.slerp.slerp import SlerpForCausalLM
from fusion_bench.modelpool import CausalLMPool


def algorithm(recipe: dict[str, Any], out: str) -> Any:
    match recipe["merge_method"]:
        case "linear":
            return SimpleAverageForCausalLM(model_save_path=out)
        case "slerp":
            return SlerpForCausalLM(t=recipe["parameters"]["t"], model_save_path=out)
        case "task_arithmetic":
            return TaskArithmeticForCausalLM(scaling_factor=1.0, model_save_path=out)
        case other:
            raise SystemExit(f"not written for {other}")


def main() -> None:
    recipe, out = yaml.safe_load(Path(sys.argv[1]).read_text()), sys.argv[2]
    models = {Path(entry["model"]).name: entry["model"] for entry in recipe["models"]}
    tokenizer = next(iter(models.values()))
    if recipe["merge_method"] == "task_arithmetic":
        models["_pretrained_"] = recipe["base_model"]
    pool = CausalLMPool(models=models, tokenizer=tokenizer, torch_dtype=recipe["dtype"])
    algorithm(recipe, out).run(pool)


if __name__ == "__main__":
    main()
