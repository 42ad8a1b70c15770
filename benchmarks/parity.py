"""Runs the same recipes through mergekit's and meldkit's command lines and compares every tensor they write.

    python benchmarks/parity.py                   everything, and writes docs/parity.md
    python benchmarks/parity.py --only ties       the recipes whose names begin so; writes no page
    python benchmarks/parity.py --keep            leaves the outputs under .cache/parity/outputs

    parity_recipes.py   the recipes, and why some results differ on purpose

The models are tiny float32 ones of random weights, saved by transformers. Everything lies under
.cache/parity/; mergekit is installed as for bench.py. The exit status is 1 if
anything differs that no reason is given for.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from checkpoints import tokenizer_files
from contestants import OFFLINE, PEERS, ROOT, console
from measure import package_version
from parity_recipes import CASES, FOLDER, Case
from safetensors import safe_open
from torch import Tensor

CACHE = ROOT / ".cache" / "parity"
PAGE = ROOT / "docs" / "parity.md"
TOLERANCE = 1e-6
SIGMAS = 5.0  # of a mean of nothing but chance; one in two million exceeds it
SEED = 20260301
VOCAB, WIDE_VOCAB = 64, 70
STD = 0.1  # of the weights; task vectors are up to a half of it, so that angles are wide
GRID = 2.0**-20  # of the base's weights, so that task vectors on STEP's grid are exact in float32
STEP = 2.0**-12
REFUSED = "exit status 2"  # meldkit's answer to a recipe that cannot be run
SEEDED = ("--random-seed", "0")  # to write the same page again; the two draw different masks
MODELS = ("base", "a", "b", "c", "d", "wide")

# Runs many recipes in one process, because mergekit takes seconds to start. Reads a list of
# [command line, output] and writes a line of JSON per recipe: null, or the error.
DRIVER = """
import contextlib, importlib, json, sys, traceback
module, name, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
main, report = getattr(importlib.import_module(module), name), sys.stdout
for arguments in json.load(sys.stdin):
    error, sys.argv = None, [name, *arguments]
    with contextlib.redirect_stdout(sys.stderr):
        print("==", *arguments)
        try:
            main(**options)
        except SystemExit as stop:
            error = f"exit status {stop.code}" if stop.code else None
        except Exception as problem:
            traceback.print_exc()
            error = f"{type(problem).__name__}: {problem}"
    print(json.dumps(error), file=report, flush=True)
"""


@dataclass(frozen=True, slots=True)
class Row:
    """What came of one recipe. difference: the largest relative one of any tensor, if it can be given."""

    case: Case
    verdict: str  # one of VERDICTS
    difference: float | None = None
    note: str = ""


VERDICTS = {
    "same": "the same to within 10⁻⁶",
    "statistics": "random masks, the same statistics",
    "expected difference": "different for a known reason",
    "both refuse": "refused by both",
    "meldkit refuses": "refused by meldkit for a known reason",
    "mergekit fails": "that mergekit fails on",
    "UNEXPECTED": "unexpectedly different",
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", metavar="NAME", default="", help="only recipes whose names begin so")
    parser.add_argument("--keep", action="store_true", help="keep the recipes and outputs")
    args = parser.parse_args()
    if not any(case.name.startswith(args.only) for case in CASES):
        parser.error(f"no recipe begins with {args.only!r}")
    return args


def new_model(family: str, vocab: int) -> Any:
    """A model of the family, with weights that are still to be set."""
    from transformers import (  # takes seconds
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    if family == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocab,
                n_embd=32,
                n_layer=3,
                n_head=4,
                n_positions=48,
                bos_token_id=1,
                eos_token_id=2,
            )
        )
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 80,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    shape |= {"vocab_size": vocab, "num_key_value_heads": 2, "max_position_embeddings": 64}
    if family == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**shape, tie_word_embeddings=True, bos_token_id=1))
    return LlamaForCausalLM(LlamaConfig(**shape))


def weights(base: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Every model's version of one tensor; base is fp32 and on the grid.

    a and b are changed at three elements of four, in directions 40 degrees apart, and by exactly opposite
    small amounts at one of twenty. c and d are changed slightly, by few different amounts, at few elements.
    """

    def noise(std: float, density: float) -> Tensor:
        kept = torch.rand(base.shape, generator=generator) < density
        return torch.randn(base.shape, generator=generator) * std * kept

    def steps(density: float) -> Tensor:
        amounts = torch.randint(-3, 4, base.shape, generator=generator) * STEP
        return amounts * (torch.rand(base.shape, generator=generator) < density)

    a = noise(0.5 * STD, 0.75)
    b = (0.5 * a + noise(0.2 * STD, 1)) * (torch.rand(base.shape, generator=generator) < 0.75)
    opposite = torch.rand(base.shape, generator=generator) < 0.05
    amount = torch.randint(1, 4096, base.shape, generator=generator) * GRID
    a, b = torch.where(opposite, amount, a), torch.where(opposite, -amount, b)
    return {"base": base, "a": base + a, "b": base + b, "c": base + steps(0.4), "d": base + steps(0.6)}


def vary(family: str, num_wide: int) -> dict[str, dict[str, Tensor]]:
    """Model → name → weights of all models of a family; `wide` is a with more rows of embeddings."""
    generator = torch.Generator().manual_seed(SEED)
    models: dict[str, dict[str, Tensor]] = {model: {} for model in MODELS}
    for name, like in sorted(dict(new_model(family, VOCAB).named_parameters()).items()):
        drawn = torch.randn(like.shape, generator=generator) * STD + ("norm.weight" in name)
        base = (drawn / GRID).round() * GRID
        for model, tensor in weights(base, generator).items():
            models[model][name] = tensor
        rows = torch.randn(num_wide, like.shape[-1], generator=generator) * STD
        grows = like.dim() == 2 and like.shape[0] == VOCAB
        a = models["a"][name]
        models["wide"][name] = torch.cat([a.flip(0), rows]) if grows else a * 1.25
    return models


def write_tokenizer(folder: Path, vocab: int, wide: bool) -> None:
    """A word-level tokenizer; the wide one has new words, and old words under other numbers."""
    for name, content in tokenizer_files(VOCAB).items():
        if wide and name == "tokenizer.json":
            old = list(content["model"]["vocab"])
            words = old[:3] + old[:2:-1] + [f"new{i}" for i in range(vocab - VOCAB)]
            content["model"]["vocab"] = {word: i for i, word in enumerate(words)}
        (folder / name).write_text(json.dumps(content) + "\n")


def make_models(family: str) -> None:
    """Write a family's models anew."""
    folder = CACHE / family
    shutil.rmtree(folder, ignore_errors=True)
    for model, tensors in vary(family, WIDE_VOCAB - VOCAB).items():
        wide = model == "wide"
        vocab = WIDE_VOCAB if wide else VOCAB
        network = new_model(family, vocab)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.copy_(tensors[name])
        network.save_pretrained(folder / model)
        write_tokenizer(folder / model, vocab, wide)


def write_recipe(case: Case) -> Path:
    """The recipe as a file, with the paths of the models."""
    file = CACHE / "outputs" / case.name / "recipe.yml"
    file.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(case.recipe, sort_keys=False)
    file.write_text(text.replace(f"{FOLDER}/", f"{CACHE / case.family}/"))
    return file


def run_all(
    program: str, python: Path, entry: tuple[str, str, dict[str, Any]], jobs: Sequence[list[str]]
) -> list[str | None]:
    """Run every command line in one process; returns None or the error of each."""
    module, function, options = entry
    command = [str(python), "-c", DRIVER, module, function, json.dumps(options)]
    errors: list[str | None] = []
    log = CACHE / "outputs" / f"{program}.log"
    with (
        log.open("w") as messages,
        console.status(program) as status,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=messages, text=True,
            env=os.environ | OFFLINE,
        ) as process,
    ):  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(jobs))
        process.stdin.close()
        for line in process.stdout:
            errors.append(json.loads(line))
            status.update(f"{program}: {len(errors)} of {len(jobs)} recipes")
    if len(errors) != len(jobs):
        raise SystemExit(f"{program} ended after {len(errors)} of {len(jobs)} recipes; see {log}")
    return errors


def read(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a model folder."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with cast("Any", safe_open(file, "pt")) as opened:
            names = cast("list[str]", opened.keys())
            tensors |= {name: opened.get_tensor(name) for name in names}
    return tensors


def numbers(folder: Path) -> dict[str, int]:
    """The number of each token of a model's tokenizer."""
    content = json.loads((folder / "tokenizer.json").read_text())
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    return content["model"]["vocab"] | added


def renumbered(tensors: dict[str, Tensor], own: dict[str, int], wanted: dict[str, int]) -> dict[str, Tensor]:
    """Tables with the rows of tokens at other places: mergekit numbers new tokens in any order."""
    if own == wanted or own.keys() != wanted.keys():
        return tensors
    size = len(own)
    order = torch.empty(size, dtype=torch.long)
    order[[wanted[token] for token in own]] = torch.tensor(list(own.values()))
    tables = ("embed_tokens.weight", "lm_head.weight", "wte.weight")
    return {
        name: torch.cat([x[order], x[size:]]) if name.endswith(tables) else x for name, x in tensors.items()
    }


def structure(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> str:
    """In what names, shapes and dtypes differ; empty if in nothing."""
    if extra := sorted(ours.keys() - theirs.keys()):
        return f"only in meldkit's output: {', '.join(extra[:3])} ({len(extra)})"
    if extra := sorted(theirs.keys() - ours.keys()):
        return f"only in mergekit's output: {', '.join(extra[:3])} ({len(extra)})"
    for name, x in ours.items():
        y = theirs[name]
        if (x.shape, x.dtype) != (y.shape, y.dtype):
            return f"{name}: {x.dtype} {tuple(x.shape)}, in mergekit {y.dtype} {tuple(y.shape)}"
    return ""


def worst(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> tuple[float, str]:
    """The largest max|x - y| / max|y| of any tensor, and which tensor that is."""
    result = (0.0, "")
    for name, x in ours.items():
        y = theirs[name].double()
        difference, size = (x.double() - y).abs().max().item(), y.abs().max().item()
        relative = 0.0 if difference == 0 else difference / size if size else float("inf")
        if not relative <= result[0]:  # NaN too
            result = (relative, name)
    return result


def sigmas(differences: Tensor) -> float:
    """How far a sum of independent differences of mean 0 is from 0, in standard deviations."""
    size = differences.square().sum().sqrt().item()
    return abs(differences.sum().item()) / size if size else 0.0


def statistics(
    ours: dict[str, Tensor], theirs: dict[str, Tensor], base: dict[str, Tensor]
) -> tuple[float, str]:
    """How many standard deviations lie between the laws of two random merges, and a text about it.

    Both draw each element's mask independently from the same law, if they agree. So differences of any
    function of the elements are symmetric around 0: whether it changed, by how much, and its square.
    """
    flat = [torch.cat([m[name].double().flatten() for name in base]) for m in (ours, theirs, base)]
    x, y = flat[0] - flat[2], flat[1] - flat[2]
    changed = [(delta != 0).double() for delta in (x, y)]
    scores = {
        "share": sigmas(changed[0] - changed[1]),
        "mean": sigmas(x - y),
        "magnitude": sigmas(x.abs() - y.abs()),
        "norm": sigmas(x.square() - y.square()),
    }
    share, norm = (
        [100 * c.mean().item() for c in changed],
        [delta.square().sum().sqrt().item() for delta in (x, y)],
    )
    name = max(scores, key=lambda key: scores[key])
    return scores[name], (
        f"changed {share[0]:.1f} % of the elements (mergekit {share[1]:.1f} %), norm of the change "
        f"{norm[0]:.3f} ({norm[1]:.3f}); at most {scores[name]:.1f} σ apart ({name})"
    )


def judge(case: Case, ours_error: str | None, theirs_error: str | None) -> Row:
    """Compare the two outputs of a case."""
    if ours_error not in (None, REFUSED):
        return Row(case, "UNEXPECTED", note=f"meldkit: {ours_error}")
    if ours_error is not None and theirs_error is not None:
        return explained(case, "both refuse", f"both fail: {ours_error}; {theirs_error}")
    if theirs_error is not None:
        return explained(case, "mergekit fails", f"mergekit: {theirs_error.splitlines()[0][:160]}")
    if ours_error is not None:
        return explained(case, "meldkit refuses", f"meldkit: {ours_error}")
    folder = CACHE / "outputs" / case.name
    ours, theirs = read(folder / "meldkit"), read(folder / "mergekit")
    theirs = renumbered(theirs, numbers(folder / "mergekit"), numbers(folder / "meldkit"))
    if differs := structure(ours, theirs):
        return Row(case, "UNEXPECTED", note=differs)
    if case.random:
        score, text = statistics(ours, theirs, read(CACHE / case.family / "base"))
        return Row(case, "statistics" if score <= SIGMAS else "UNEXPECTED", note=text)
    return judge_values(case, ours, theirs)


def explained(case: Case, verdict: str, text: str) -> Row:
    """`verdict` if the case has a reason for just that, which is the note then."""
    if case.reason and case.outcome == verdict:
        return Row(case, verdict, note=case.reason)
    return Row(case, "UNEXPECTED", note=text)


def judge_values(case: Case, ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> Row:
    """Compare tensors of the same names, shapes and dtypes."""
    difference, name = worst(ours, theirs)
    if difference <= TOLERANCE:
        if case.reason and case.share == 1:
            text = f"no difference, though there is a reason: {case.reason}"
            return Row(case, "UNEXPECTED", difference, text)
        return Row(case, "same", difference)
    num = sum(int((x != theirs[name]).sum()) for name, x in ours.items())
    numel = sum(x.numel() for x in ours.values())
    known = case.reason and case.outcome == "expected difference"
    if known and difference <= case.bound and num <= case.share * numel:
        counted = f" ({num} of {numel} elements)" if case.share < 1 else ""
        return Row(case, "expected difference", difference, case.reason + counted)
    return Row(case, "UNEXPECTED", difference, f"in {name}; {num} of {numel} elements differ")


def compare(cases: Sequence[Case], mergekit: Path) -> list[Row]:
    """Run both programs on all cases, and compare."""
    for family in sorted({case.family for case in cases}):
        make_models(family)
    recipes = [write_recipe(case) for case in cases]
    ours = run_all(
        "meldkit",
        Path(sys.executable),
        ("meldkit.cli", "main", {}),
        [["merge", str(recipe), str(recipe.with_name("meldkit")), *SEEDED] for recipe in recipes],
    )
    theirs = run_all(
        "mergekit",
        mergekit.with_name("python"),
        ("mergekit.scripts.run_yaml", "main", {"standalone_mode": False}),
        [[str(recipe), str(recipe.with_name("mergekit")), *SEEDED] for recipe in recipes],
    )
    return [judge(case, x, y) for case, x, y in zip(cases, ours, theirs, strict=True)]


def summary(rows: Sequence[Row]) -> str:
    counts = Counter(row.verdict for row in rows)
    return f"{len(rows)} recipes: " + ", ".join(
        f"{counts[verdict]} {text}"
        for verdict, text in VERDICTS.items()
        if counts[verdict] or verdict == "UNEXPECTED"
    )


def cells(row: Row) -> tuple[str, ...]:
    difference = "" if row.difference is None else "0" if row.difference == 0 else f"{row.difference:.1e}"
    note = row.note if row.verdict in ("same", "statistics") else f"{row.verdict}: {row.note}"
    return row.case.name, row.case.method, row.case.family, row.case.exercises, difference, note


def version(program: str, python: Path) -> str:
    """The version of a program, and of what it computes with."""
    parts = [f"{name} {package_version(python, name)}" for name in (program, "torch", "transformers")]
    return f"{parts[0]} ({', '.join(parts[1:])})"


def markdown(rows: Sequence[Row], about: str) -> str:
    """The page; `about` says which versions ran."""
    date = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    head = ("recipe", "method", "model", "what it exercises", "max relative difference", "note")
    table = [head, ("---",) * len(head), *(cells(row) for row in rows)]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table]
    return PAGE_TEXT.format(about=about, date=date, summary=summary(rows), table="\n".join(lines))


PAGE_TEXT = """<!-- written by benchmarks/parity.py -->
# Parity with mergekit

The same recipes, run by `mergekit-yaml` and by `meldkit merge`: {about}; {date}.

**{summary}.**

Each recipe merges tiny float32 models of random weights that transformers saved: a Llama, a Qwen2 (biases on
q, k and v, tied embeddings) and a GPT-2 (transposed weights under other names, tied embeddings). Beside the
base there are `a` and `b`, far from the base and equal to it at a quarter of the elements; `c` and `d`, near
the base, with many task vector elements that are equal or zero; and `wide`, with a vocabulary of its own.

Compared are the names, shapes and dtypes of all tensors, and their values: the difference given is
max |meldkit − mergekit| / max |mergekit| of the tensor where that is largest. Where masks are random they
cannot be the same. There the share of elements that changed, and the mean, magnitude and square of the change
must agree within {sigmas:g} standard deviations of what two draws from one law differ by. Deliberate
differences are explained in [differences.md](differences.md).

{table}
""".replace("{sigmas:g}", f"{SIGMAS:g}")


def main() -> None:
    args = parse_args()
    cases = [case for case in CASES if case.name.startswith(args.only)]
    PEERS["mergekit"].install()
    mergekit = PEERS["mergekit"].python.with_name("mergekit-yaml")
    shutil.rmtree(CACHE / "outputs", ignore_errors=True)
    rows = compare(cases, mergekit)
    for row in rows:
        name, _, family, _, difference, note = cells(row)
        style = {"UNEXPECTED": "bold red", "same": None}.get(row.verdict, "dim")
        line = f"{name:30} {family:6} {difference:8} {note}"
        console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)
    console.print(summary(rows))
    if not args.only:
        pythons = {"meldkit": Path(sys.executable), "mergekit": mergekit.with_name("python")}
        about = ", ".join(version(name, python) for name, python in pythons.items())
        PAGE.write_text(markdown(rows, about))
        console.print(f"wrote {PAGE}")
    if not args.keep:
        shutil.rmtree(CACHE / "outputs")
    if any(row.verdict == "UNEXPECTED" for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
