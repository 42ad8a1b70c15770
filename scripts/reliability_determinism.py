"""The same merge, run in many ways: which of them change a byte. For docs/reliability.json.

python scripts/reliability_determinism.py     takes some minutes; writes the key "determinism"
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import torch  # noqa: E402

import killed  # noqa: E402
import same_bytes  # noqa: E402
from meldkit.methods import METHODS  # noqa: E402
from meldkit.output import surroundings  # noqa: E402
from test_same_bytes import SURROUNDINGS  # noqa: E402

RESULTS = ROOT / "docs" / "reliability.json"
#: What may change bytes: kernels for other processors. Read by torch and by oneMKL's and glibc's choosers.
OTHER = {
    "torch's kernels without vector instructions": {"ATEN_CPU_CAPABILITY": "default"},
    "torch's kernels for AVX2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "torch's kernels for AVX-512": {"ATEN_CPU_CAPABILITY": "avx512"},
}


def measure(progress: bool = True) -> dict[str, Any]:
    """The matrix: way → method → how many of the tensors have the same bytes as in the usual way."""
    torch.set_num_threads(1)
    with TemporaryDirectory(prefix="meldkit-") as place:
        folder = Path(place)
        models = folder / "models"
        same_bytes.write_models(models)
        cases = {name: same_bytes.usual(name) for name in METHODS}
        out = folder / "out"
        usual = {n: same_bytes.streamed(c, models / "whole", out) for n, c in cases.items()}
        ways = {**same_bytes.WAYS, "without compiled kernels": same_bytes.without_kernels}
        sums: dict[str, Mapping[str, same_bytes.Sums]] = {}
        for way, run in ways.items():
            if progress:
                print(way, file=sys.stderr)
            sums[way] = {name: run(case, models, out) for name, case in cases.items()}
        kinds = folder / "kinds"
        killed.make_models(kinds)
        same_kinds: dict[str, dict[str, bool]] = {way: {} for way in same_bytes.RUNS}
        for name in killed.RECIPES:
            if progress:
                print(name, file=sys.stderr)
            case = same_bytes.Kind(name)
            want = same_bytes.streamed(case, kinds, out)
            for way, run_kind in same_bytes.RUNS.items():
                same_kinds[way][name] = run_kind(case, kinds, out) == want
        kernels: dict[str, str] = {}
        for way, variables in {**SURROUNDINGS, **OTHER}.items():
            if progress:
                print(way, file=sys.stderr)
            answer = _child(folder, models, variables)
            sums[way], kernels[way] = answer["sums"], answer["kernels"]
    return {
        "made_with": surroundings(),
        "tensors": len(same_bytes.SHAPES),
        "kernels": {way: kernels[way] for way in OTHER},
        "must_be_same": [*same_bytes.WAYS, *SURROUNDINGS],
        "may_differ": ["without compiled kernels", *OTHER],
        "same_tensors": {
            way: {
                name: sum(got[name][tensor] == usual[name][tensor] for tensor in same_bytes.SHAPES)
                for name in METHODS
            }
            for way, got in sums.items()
        },
        "same_kinds": same_kinds,
    }


def _child(folder: Path, models: Path, variables: Mapping[str, str]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, same_bytes.__file__, models, *METHODS],
        cwd=folder,
        env={**os.environ, **variables},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout)


def section(result: Mapping[str, Any]) -> str:
    """The part of docs/reliability.md, in Markdown.

    Args:
        result: what `measure` gave.
    """
    num, same = result["tensors"], result["same_tensors"]

    def row(way: str) -> str:
        found = same[way]
        other = [f"{name} ({num - n} of {num} tensors)" for name, n in found.items() if n < num]
        return (
            f"| {way} | {sum(n == num for n in found.values())} of {len(found)} | {', '.join(other) or '–'} |"
        )

    head = "| run | methods with the same bytes | others |\n|---|---|---|\n"
    must = "\n".join(map(row, result["must_be_same"]))
    may = "\n".join(map(row, result["may_differ"]))
    made = result["made_with"]
    kinds = "\n".join(
        f"| {way} | {sum(found.values())} of {len(found)} "
        f"| {', '.join(name for name, same in found.items() if not same) or '–'} |"
        for way, found in result["same_kinds"].items()
    )
    names = ", ".join(next(iter(result["same_kinds"].values())))
    return f"""\
## The same bytes

Every merge method, on models of {num} tensors, compared with a run on one thread with the usual tiles
(torch {made["torch"]}, numpy {made["numpy"]}, {made["machine"]}, kernels of torch: {made["torch_kernels"]}).

{head}{must}

The same for merges of these kinds, which are those that were killed: {names}.

| run | kinds with the same bytes | others |
|---|---|---|
{kinds}

What [may change bytes](reproduce.md#what-may-differ), and in which methods it did:

{head}{may}
"""


def main() -> None:
    """Measure, and enter the result."""
    everything = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    everything["determinism"] = measure()
    RESULTS.write_text(json.dumps(everything, indent=1) + "\n")
    print(section(everything["determinism"]))


if __name__ == "__main__":
    main()
