"""Merge two skills into one small language model and measure how much of each is left.

Each recipe in ``recipes/`` is run by the ``meldkit`` command in ``.cache/demo/``, where ``base``, ``skill_a``
and ``skill_b`` lie side by side. The base, the two adapted models and the merges then answer the same
held-out prompts greedily and are scored by exact match. The exit status is 1 if a number misses what is
promised below.

    pip install -e ".[examples]"
    python examples/demo.py
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from chat import ask, load_tokenizer
from fetch_base import CACHE, FetchError, fetch_base
from peft import PeftModel
from rich.console import Console
from rich.table import Table
from skills import SKILLS, draw, score
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

EXAMPLES = Path(__file__).resolve().parent
WORK = CACHE / "demo"
MELDKIT = Path(sys.executable).with_name("meldkit")
RECIPES = ("gradient_slerp", "linear", "ties")
TESTS = {skill: draw(skill, "test", 64) for skill in SKILLS}

LEAST_GAIN = 40  # points that each adapter adds to the base on its own skill
LEAST_KEPT = 0.8  # part of either gain that the best merge keeps

Scores = dict[str, dict[str, float]]  # model → skill → percent


def main() -> None:
    """Run the demo."""
    logging.disable_progress_bar()
    console = Console()
    start = time.perf_counter()

    shutil.copytree(fetch_base(), WORK / "base", dirs_exist_ok=True)
    shutil.copytree(EXAMPLES / "adapters", WORK, dirs_exist_ok=True)
    seconds = {recipe: merge(recipe) for recipe in RECIPES}

    replies: dict[str, dict[str, list[str]]] = {}
    for name, model, tokenizer_folder in models():
        console.print(f"asking {name} ...", style="dim")
        tokenizer = load_tokenizer(tokenizer_folder)
        replies[name] = {
            skill: ask(model, tokenizer, [test.prompt for test in tests]) for skill, tests in TESTS.items()
        }
    scores = {
        name: {skill: score(of_model[skill], tests) for skill, tests in TESTS.items()}
        for name, of_model in replies.items()
    }
    best = max(RECIPES, key=lambda recipe: min(kept(scores, recipe, skill) for skill in SKILLS))

    console.print(table(scores, seconds))
    for skill, tests in TESTS.items():
        print(f"{best} is asked: {tests[0].prompt}\n{best} replies:  {replies[best][skill][0]}\n")
    console.print(f"{time.perf_counter() - start:.0f} s in all", style="dim")
    if missed := broken_promises(scores, best):
        sys.exit("\n".join(missed))


def merge(recipe: str) -> float:
    """Run one recipe in the work folder and return the wall time of the whole process in seconds."""
    command = [MELDKIT, "merge", EXAMPLES / "recipes" / f"{recipe}.yml", recipe, "--overwrite"]
    start = time.perf_counter()
    if subprocess.run(command, cwd=WORK, check=False).returncode != 0:
        sys.exit(f"error: meldkit could not run the recipe {recipe}; its message is above")
    return time.perf_counter() - start


def models() -> Iterator[tuple[str, PreTrainedModel, Path]]:
    """Yield every model of the table, one at a time, with the folder that holds its tokenizer."""
    base = WORK / "base"
    yield "base", load_model(base), base
    for skill in SKILLS:
        yield skill, PeftModel.from_pretrained(load_model(base), WORK / skill).merge_and_unload(), base
    for recipe in RECIPES:
        yield recipe, load_model(WORK / recipe), WORK / recipe


def load_model(folder: Path) -> PreTrainedModel:
    """Load a model for computing in float32, the type CPUs are fast at."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def gain(scores: Scores, model: str, skill: str) -> float:
    """Points that a model is ahead of the base."""
    return scores[model][skill] - scores["base"][skill]


def kept(scores: Scores, recipe: str, skill: str) -> float:
    """The part of an adapter's gain on its own skill that a merge still has."""
    of_adapter = gain(scores, skill, skill)
    return gain(scores, recipe, skill) / of_adapter if of_adapter > 0 else 0.0


def table(scores: Scores, seconds: dict[str, float]) -> Table:
    """All models' scores and, for merges, the kept gains and the merge's wall time."""
    result = Table(title="exact matches on held-out prompts, in percent")
    result.add_column("model")
    for title in ("A: record", "B: reverse", "gain A kept", "gain B kept", "merge time"):
        result.add_column(title, justify="right")
    for name, of_model in scores.items():
        cells = [f"{points:.1f}" for points in of_model.values()]
        if name in seconds:
            cells += [f"{kept(scores, name, skill):.0%}" for skill in SKILLS]
            cells.append(f"{seconds[name]:.1f} s")
        result.add_row(name, *cells)
    return result


def broken_promises(scores: Scores, best: str) -> list[str]:
    """One line for each number that is worse than promised."""
    missed = [
        f"{skill} gains {gain(scores, skill, skill):.1f} points on its own skill, promised are {LEAST_GAIN}"
        for skill in SKILLS
        if gain(scores, skill, skill) < LEAST_GAIN
    ]
    missed += [
        f"{best} keeps {kept(scores, best, skill):.0%} of {skill}'s gain, promised are {LEAST_KEPT:.0%}"
        for skill in SKILLS
        if kept(scores, best, skill) < LEAST_KEPT
    ]
    return missed


if __name__ == "__main__":
    try:
        main()
    except FetchError as error:
        sys.exit(f"error: {error}")
