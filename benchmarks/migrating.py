"""Runs mergekit's commands and meldkit's with the same files and options, and compares what they write.

    python benchmarks/migrating.py             everything, and writes docs/migrating.md
    python benchmarks/migrating.py --only moe  the rows whose names begin so; writes no page

The models are those of parity.py. Everything lies under .cache/migrating/; mergekit is installed as for
bench.py.
The exit status is 1 if a row is neither the same nor different for the reason that stands with it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import parity
import torch
import yaml
from contestants import OFFLINE, PEERS, ROOT, console
from torch import Tensor

CACHE = ROOT / ".cache" / "migrating"
PAGE = ROOT / "docs" / "migrating.md"
MODELS = CACHE / "llama"
#: Of what is found by a search, such as sums of embeddings, or rounded on the way.
LOOSE = 2e-3
PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class Trial:
    """A command of both programs.

    Attributes:
        name: of the row.
        command: mergekit's, with OUT for what it writes.
        ours: what stands there instead of its first word.
        exercises: what the row tries.
        compare: from both outputs to how they differ, relative; raises ValueError where they are no match.
        bound: of that number.
        reason: why the outputs differ, where they do on purpose.
        most: how far they may for that reason.
        ours_instead: meldkit's whole command, where more than the first word changes.
    """

    name: str
    command: str
    ours: str
    exercises: str
    compare: Callable[[Path, Path], float]
    bound: float = parity.TOLERANCE
    reason: str = ""
    most: float = math.inf
    ours_instead: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """What came of a trial. difference: the largest relative one, if it can be given."""

    trial: Trial
    verdict: str
    difference: float | None = None


def same_tensors(ours: Path, theirs: Path) -> float:
    """The largest relative difference of any tensor."""
    x, y = parity.read(ours), parity.read(theirs)
    if differs := parity.structure(x, y):
        raise ValueError(differs)
    return parity.worst(x, y)[0]


def same_mixture(ours: Path, theirs: Path) -> float:
    """The same of Mixtral: mergekit stores the experts of a layer in one tensor, as `fused: true` does."""
    apart: dict[str, Tensor] = {}
    for name, tensor in parity.read(theirs).items():
        block, _, leaf = name.partition("mlp.")
        inside = f"{block}block_sparse_moe."
        if leaf == "experts.gate_up_proj":
            for number, both in enumerate(tensor):
                apart |= zip_names(f"{inside}experts.{number}", ("w1", "w3"), both.chunk(2))
        elif leaf == "experts.down_proj":
            for number, down in enumerate(tensor):
                apart[f"{inside}experts.{number}.w2.weight"] = down
        else:
            apart[f"{inside}{leaf}" if leaf else name] = tensor
    x = parity.read(ours)
    if differs := parity.structure(x, apart):
        raise ValueError(differs)
    return parity.worst(x, apart)[0]


def zip_names(module: str, leaves: Sequence[str], tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    return {f"{module}.{leaf}.weight": tensor for leaf, tensor in zip(leaves, tensors, strict=True)}


def products(folder: Path) -> dict[str, Tensor]:
    """What an adapter adds to each module."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = parity.read(folder)
    result: dict[str, Tensor] = {}
    for name, a in tensors.items():
        if ".lora_A." not in name:
            continue
        module = name.removeprefix(PREFIX).partition(".lora_A.")[0]
        rank = (config.get("rank_pattern") or {}).get(module, config["r"])
        alpha = (config.get("alpha_pattern") or {}).get(module, config["lora_alpha"])
        result[module] = alpha / rank * tensors[name.replace("lora_A", "lora_B")].double() @ a.double()
    return result


def same_products(ours: Path, theirs: Path) -> float:
    """The largest relative difference of what two adapters add to a module."""
    x, y = products(ours), products(theirs)
    # mergekit stores modules that did not change as well.
    if x.keys() - y.keys() or any(bool(y[name].any()) for name in y.keys() - x.keys()):
        raise ValueError(f"other modules: {sorted(x.keys() ^ y.keys())[:3]}")
    return max(float((x[name] - y[name]).norm() / y[name].norm()) for name in x)


def drawn_layers(ours: Path, theirs: Path) -> float:
    """Whether each layer of both is that of a model, and everything else the same: 0 if so."""
    known = [parity.read(MODELS / name) for name in ("a", "b")]
    for folder in (ours, theirs):
        for name, tensor in parity.read(folder).items():
            if not any(torch.equal(tensor, model[name]) for model in known):
                raise ValueError(f"{name} is that of neither model")
    return 0.0


def file_of(name: str, content: object) -> str:
    """A file for a command to read."""
    path = CACHE / "files" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list):
        path.write_text("---\n".join(yaml.safe_dump(part, sort_keys=False) for part in content))
    else:
        path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


def model(name: str) -> str:
    return str(MODELS / name)


def trials() -> list[Trial]:
    """All rows; files that they need are written."""

    def weighted(*names: str) -> list[dict[str, object]]:
        return [{"model": model(name), "parameters": {"weight": 0.5, "density": 0.6}} for name in names]

    ties = {"merge_method": "ties", "base_model": model("base"), "models": weighted("a", "b")}
    ties |= {"dtype": "float32"}
    stages = [
        {"name": "first", **ties},
        {"name": "second", "merge_method": "linear", "models": weighted("c", "d"), "dtype": "float32"},
        {
            "merge_method": "slerp",
            "base_model": "first",
            "models": [{"model": "first"}, {"model": "second"}],
            "parameters": {"t": 0.3},
            "dtype": "float32",
        },
    ]

    def mixture(gate_mode: str) -> dict[str, object]:
        prompts = [["token5 token6", "token7"], ["token20 token21 token22"]]
        return {
            "base_model": model("base"),
            "gate_mode": gate_mode,
            "dtype": "float32",
            "experts": [
                {"source_model": model(name), "positive_prompts": texts}
                for name, texts in zip(("a", "b"), prompts, strict=True)
            ],
        }

    raw = {
        "merge_method": "linear",
        "models": [
            {"model": f"{model(name)}/model.safetensors", "parameters": {"weight": 0.5}}
            for name in ("a", "b")
        ],
    }
    old = {
        "layer_slices": [
            {"model": model("a"), "start": 0, "end": 3},
            {"model": model("b"), "start": 1, "end": 4, "scale": 0.5},
        ]
    }
    donors = f"{model('base')} {model('wide')}"
    return [
        Trial(
            "yaml",
            f"mergekit-yaml {file_of('ties.yml', ties)} OUT",
            "meldkit merge",
            "a recipe; [165 more](parity.md)",
            same_tensors,
        ),
        Trial(
            "multi",
            f"mergekit-multi {file_of('multi.yml', stages)} --out-path OUT -I OUT-between",
            "meldkit multi",
            "three recipes of one file, the last one of the others",
            same_tensors,
        ),
        *(
            Trial(
                f"moe-{mode}",
                f"mergekit-moe {file_of(f'{mode}.yml', mixture(mode))} OUT",
                "meldkit moe",
                f"two experts as Mixtral, gate_mode {mode}",
                same_mixture,
                bound=LOOSE,
                reason=reason,
                most=most,
            )
            for mode, reason, most in (
                ("cheap_embed", "", 0.0),
                ("hidden", "mergekit reads prompts in bfloat16", 0.05),
                ("hidden_avg", "the same, and its mean takes padding in", 0.5),
            )
        ),
        *(
            Trial(
                f"extract-lora-{rank}",
                f"mergekit-extract-lora --model {model('c')} --base-model {model('base')} --out-path OUT "
                f"--max-rank {rank} --skip-undecomposable",
                "meldkit extract-lora",
                f"an adapter of rank {rank}",
                same_products,
                bound=LOOSE,
            )
            for rank in (4, 32)
        ),
        *(
            Trial(
                f"tokensurgeon-{method}",
                f"mergekit-tokensurgeon {donors} OUT -a {method} -k 8",
                "meldkit tokensurgeon",
                f"another tokenizer; rows of tokens that are new by {method}",
                same_tensors,
                bound=LOOSE,
                reason=reason,
            )
            for method, reason in (
                ("omp", ""),
                ("common_interpolation", ""),
                ("mean", ""),
                ("zero", ""),
                ("landmark_pca", "mergekit turns the wrong way round"),
                ("stb", "mergekit stops with an error of its own"),
            )
        ),
        Trial(
            "layershuffle",
            f"mergekit-layershuffle OUT -m {model('a')} -m {model('b')} -w 0.5 -w 0.5",
            "meldkit layershuffle",
            "layers drawn from two models",
            drawn_layers,
            reason="mergekit stops with an error of its own",
        ),
        Trial(
            "pytorch",
            f"mergekit-pytorch {file_of('raw.yml', raw)} OUT",
            "meldkit pytorch",
            "weight files by themselves",
            same_tensors,
        ),
        Trial(
            "bakllama",
            f"bakllama {file_of('old.yml', old)} OUT",
            "",
            "layers of two models, one run of them scaled",
            same_tensors,
            reason="mergekit stops with an error of its own",
            ours_instead=f"meldkit convert-config {CACHE / 'files' / 'old.yml'} -o OUT.yml "
            "&& meldkit merge OUT.yml OUT",
        ),
        Trial(
            "legacy",
            f"mergekit-legacy OUT --merge {model('a')} --merge {model('b')} --base-model {model('base')} "
            "--density 0.5 --weight 0.7",
            "",
            "ties by options alone",
            same_tensors,
            ours_instead=f"meldkit convert-config --merge {model('a')} --merge {model('b')} --base-model "
            f"{model('base')} --density 0.5 --weight 0.7 -o OUT.yml && meldkit merge OUT.yml OUT",
        ),
    ]


def run(command: str, out: Path, programs: Path) -> str | None:
    """Carry out a command; None, or what it ended with."""
    line = command.replace("OUT", shlex.quote(str(out)))
    env = os.environ | OFFLINE | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", f"set -e; {line}"], env=env, capture_output=True, text=True, check=False
    )
    out.with_name(f"{out.name}.log").write_text(done.stdout + done.stderr)
    if done.returncode == 0:
        return None
    last = [text for text in done.stderr.strip().splitlines() if text.strip()]
    return last[-1][:160] if last else f"exit status {done.returncode}"


def attempt(trial: Trial, mergekit: Path) -> Row:
    """Run both, and compare."""
    first = trial.command.split()[0]
    ours = trial.ours_instead or trial.command.replace(first, trial.ours, 1)
    folders = {name: CACHE / "outputs" / trial.name / name for name in ("meldkit", "mergekit")}
    folders["meldkit"].parent.mkdir(parents=True, exist_ok=True)
    failed = {
        "meldkit": run(ours, folders["meldkit"], Path(sys.executable).parent),
        "mergekit": run(trial.command, folders["mergekit"], mergekit),
    }
    if failed["meldkit"] is not None:
        return Row(trial, f"UNEXPECTED: meldkit: {failed['meldkit']}")
    if failed["mergekit"] is not None and not trial.reason:
        return Row(trial, f"UNEXPECTED: mergekit: {failed['mergekit']}")
    try:
        # Alone, an output is looked at as far as it can be.
        other = folders["mergekit" if failed["mergekit"] is None else "meldkit"]
        difference = trial.compare(folders["meldkit"], other)
    except ValueError as e:
        return Row(trial, f"UNEXPECTED: {e}")
    if failed["mergekit"] is not None:
        return Row(trial, f"works; {trial.reason}")
    if difference <= trial.bound:
        if trial.reason:
            return Row(trial, f"UNEXPECTED: no difference, though {trial.reason}", difference)
        return Row(trial, "the same", difference)
    if trial.reason and difference <= trial.most:
        return Row(trial, f"different: {trial.reason}", difference)
    return Row(trial, "UNEXPECTED: another result", difference)


def shown(command: str) -> str:
    """A command without the places of this machine."""
    return command.replace(f"{CACHE}/files/", "").replace(f"{MODELS}/", "./")


def cells(row: Row) -> tuple[str, ...]:
    trial = row.trial
    first = trial.command.split()[0]
    theirs = shown(trial.command)
    ours = shown(trial.ours_instead) if trial.ours_instead else f"`{first}` → `{trial.ours}`"
    ours = f"`{ours}`" if trial.ours_instead else ours
    difference = "" if row.difference is None else "0" if row.difference == 0 else f"{row.difference:.1e}"
    return f"`{theirs}`", ours, trial.exercises, difference, row.verdict


def markdown(rows: Sequence[Row], about: str) -> str:
    head = ("mergekit's command", "instead", "what it exercises", "largest relative difference", "result")
    table = [head, ("---",) * len(head), *map(cells, rows)]
    commands, lines = (
        ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
        for rows in (COMMANDS, table)
    )
    date = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    return PAGE_TEXT.format(about=about, date=date, commands="\n".join(commands), table="\n".join(lines))


COMMANDS = (
    ("instead of", "write", "more"),
    ("---", "---", "---"),
    ("`mergekit-yaml`", "`meldkit merge`", "[recipes](recipes.md), [differences](differences.md)"),
    (
        "`mergekit-multi`",
        "`meldkit multi`",
        "`-I` may be left out where one recipe uses all others: then nothing is stored "
        "[in between](recipes.md#recipes-that-merge-what-others-give)",
    ),
    ("`mergekit-moe`", "`meldkit moe`", "[more kinds](moe.md), mixtures changed, dense models upcycled"),
    ("`mergekit-extract-lora`", "`meldkit extract-lora`", "[ranks by energy](extract-lora.md), a report"),
    ("`mergekit-tokensurgeon`", "`meldkit tokensurgeon`", "[every method](tokensurgeon.md)"),
    ("`mergekit-layershuffle`", "`meldkit layershuffle`", "[and more of its kind](surgery.md)"),
    ("`mergekit-pytorch`", "`meldkit pytorch`", "a file, or a folder with a record"),
    (
        "`bakllama`, `mergekit-legacy`",
        "`meldkit convert-config`, then `meldkit merge`",
        "[old files](surgery.md)",
    ),
    (
        "`from mergekit.config import …`, `from mergekit.merge import …`",
        "`from meldkit.config import …`, `from meldkit.merge import …`",
        "the names are the same",
    ),
    ("`mergekit-evolve`", "–", "not here: it searches recipes by evaluations"),
)

PAGE_TEXT = """<!-- written by benchmarks/migrating.py -->
# Coming from mergekit

Files and options of mergekit's commands work as they are: replace the command's first word.

{commands}

## Tried

Each row ran both programs on the same tiny float32 models (those of [parity.md](parity.md)) and compared
every tensor; of adapters, what they add to each module: {about}; {date}.

{table}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", metavar="NAME", default="", help="only rows whose names begin so")
    args = parser.parse_args()
    PEERS["mergekit"].install()
    mergekit = PEERS["mergekit"].python.parent
    shutil.rmtree(CACHE, ignore_errors=True)
    CACHE.mkdir(parents=True)
    parity.CACHE = CACHE
    parity.make_models("llama")
    rows: list[Row] = []
    for trial in trials():
        if trial.name.startswith(args.only):
            rows.append(attempt(trial, mergekit))
            _, _, _, difference, verdict = cells(rows[-1])
            style = "bold red" if verdict.startswith("UNEXPECTED") else None
            console.print(
                f"{trial.name:34} {difference:8} {verdict}", style=style, highlight=False, markup=False
            )
    if not rows:
        parser.error(f"no row begins with {args.only!r}")
    if not args.only:
        pythons = {"meldkit": Path(sys.executable), "mergekit": mergekit / "python"}
        about = ", ".join(parity.version(name, python) for name, python in pythons.items())
        PAGE.write_text(markdown(rows, about))
        console.print(f"wrote {PAGE}")
    if any(row.verdict.startswith("UNEXPECTED") for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
