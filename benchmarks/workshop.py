"""Times the tools beside merging on models of 1.1 B parameters, and a tokenizer of 148,000 tokens.

    python benchmarks/workshop.py                    everything, some minutes; prints a table
    python benchmarks/workshop.py --only tokensurgeon

The models are those of bench.py and lie with them under .cache/bench/.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from checkpoints import BASE, SIZES, tokenizer_files, weight_file
from contestants import CACHE, OFFLINE, console, meldkit_program
from measure import Cost, run
from race import Place

HIDDEN = 2048
#: Tokens of both vocabularies, and of each.
SHARED, OWN, DONORS = 20_000, 12_000, 128_000
WORK = CACHE / "workshop"


def timed(name: str, *args: str | Path) -> Cost:
    """Run a command of meldkit, and say what it cost."""
    cost = run([meldkit_program(), *map(str, args)], OFFLINE)
    console.print(
        f"{name:46} {cost.seconds:8.1f} s {cost.rss_mb:8,.0f} MB  others used {cost.other_cores:.1f} cores",
        highlight=False,
    )
    return cost


def extract_lora() -> None:
    """An adapter of rank 32 from a fine-tune of 1.1 B parameters whose changes have no low rank."""
    place = Place("full", CACHE)
    place.provide([BASE, "sibling-1"])
    models = [str(place.models / name) for name in ("sibling-1", BASE)]
    out = WORK / "adapter"
    given = ["--model", models[0], "--base-model", models[1], "--max-rank", "32"]
    timed("extract-lora, 1.1 B, rank 32", "extract-lora", *given, out)


def stages() -> None:
    """Three elementwise stages over models of 1.1 B parameters, at once and one by one."""
    place = Place("full", CACHE)
    place.provide([BASE, "sibling-1", "sibling-2", "sibling-3"], outputs=3)
    names = [str(place.models / name) for name in (BASE, "sibling-1", "sibling-2", "sibling-3")]

    def mean(name: str | None, *models: str) -> dict[str, Any]:
        own: dict[str, Any] = {"name": name} if name else {}
        entries = [{"model": model, "parameters": {"weight": 0.5}} for model in models]
        return {**own, "merge_method": "linear", "models": entries, "dtype": "bfloat16"}

    recipes = [mean("one", *names[:2]), mean("other", *names[2:]), mean(None, "one", "other")]
    file = WORK / "stages.yml"
    file.write_text("---\n".join(yaml.safe_dump(recipe) for recipe in recipes))
    timed("three stages, 1.1 B, nothing in between", "multi", file, WORK / "virtual")
    timed("the same, stored", "multi", file, WORK / "stored", "-I", WORK / "between")


def tokensurgeon() -> None:
    """128,000 tokens that a model lacks, of 2048 numbers each, out of 20,000 shared ones; k = 64."""
    shared = [f"s{i}" for i in range(SHARED)]
    embedding_model(WORK / "model", [*shared, *(f"m{i}" for i in range(OWN))])
    embedding_model(WORK / "donor", [*shared, *(f"d{i}" for i in range(DONORS))])
    models = [WORK / "model", WORK / "donor"]
    timed("tokensurgeon, 128,000 tokens", "tokensurgeon", *models, WORK / "transplanted")


def embedding_model(folder: Path, tokens: list[str]) -> None:
    """A model of no layers with these tokens; rows lie near a plane of few dimensions, as trained ones do."""
    import numpy as np
    import torch

    folder.mkdir(parents=True)
    generator = np.random.default_rng(len(tokens))
    plane = generator.standard_normal((64, HIDDEN), dtype=np.float32)
    file = weight_file("model.safetensors", {"model.embed_tokens.weight": (len(tokens), HIDDEN)})
    with (folder / file.name).open("wb") as out:
        out.write(file.head)
        for start in range(0, len(tokens), 4000):
            count = min(4000, len(tokens) - start)
            rows = generator.standard_normal((count, 64), dtype=np.float32) @ plane / 8
            rows += generator.standard_normal((count, HIDDEN), dtype=np.float32)
            out.write(torch.from_numpy(rows * 0.02).bfloat16().view(torch.uint8).numpy().tobytes())
    config = SIZES["tiny"].config() | {
        "vocab_size": len(tokens),
        "hidden_size": HIDDEN,
        "num_hidden_layers": 0,
    }
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    for name, content in tokenizer_files(3).items():
        if name == "tokenizer.json":
            content["added_tokens"] = []
            content["model"] |= {"vocab": {t: i for i, t in enumerate(tokens)}, "unk_token": tokens[0]}
        (folder / name).write_text(json.dumps(content))


TIMED: dict[str, Callable[[], None]] = {
    "extract-lora": extract_lora,
    "stages": stages,
    "tokensurgeon": tokensurgeon,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=list(TIMED), help="one of these")
    args = parser.parse_args()
    if sys.platform != "linux":
        raise SystemExit("this benchmark reads /proc and needs Linux")
    for name, function in TIMED.items():
        if args.only in (None, name):
            shutil.rmtree(WORK, ignore_errors=True)
            WORK.mkdir(parents=True)
            function()
    shutil.rmtree(WORK)


if __name__ == "__main__":
    main()
