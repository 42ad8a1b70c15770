"""Mutation testing: puts small faults into the code, one at a time, and sees whether the fast tests notice.

make mutation                                     everything; an hour on two processors
python scripts/mutation.py --area journal         one area, or several
python scripts/mutation.py --only ties.py         the mutants of the files whose path contains this
python scripts/mutation.py --survivors            those that survived the last run, once more

Importing torch and collecting the tests takes longer than most mutants live. Each worker therefore does both
once, in a copy of the sources, and forks for each mutant: the child gives the functions that hold the fault
their new code, and runs the tests that run those lines, the most deadly and quickest first, until one fails.
Faults that act on import, such as those in the declarations of parameters, get an interpreter of their own.

Results go to build/mutation/, and those of a whole run to docs/reliability.json. Survivors that cannot be
noticed, since they mean the same, stand with the reason in scripts/mutation_equivalent.yml.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import reliability_mutation
from mutants import mutants

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "mutation"
RESULTS = ROOT / "docs" / "reliability.json"
SOURCE = "src/meldkit/"
NOTICED = ("killed", "timed out")
#: Area → files that are mutated, and tests that may notice; the first of these look at what is declared.
AREAS: dict[str, tuple[str, str]] = {
    "journal": ("output/journal.py", "journal faults resume"),
    "recipe parameters": (
        "recipe/values.py recipe/resolve.py recipe/model.py recipe/fields.py plan/values.py",
        "recipe_config recipe_errors recipe_fields recipe_filters recipe_laws recipe_values recipe_wild "
        "schema diagnostics explain messages plan plan_values",
    ),
    "methods": (
        "methods/*.py methods/statistics/*.py",
        "docs parameters edges_of_methods methods statistics statistics_held random_methods",
    ),
}


def files_of(area: str) -> list[str]:
    """The files of an area, relative to the sources."""
    found = (p for pattern in AREAS[area][0].split() for p in sorted((ROOT / SOURCE).glob(pattern)))
    return [str(p.relative_to(ROOT / SOURCE)) for p in found]


def _tests(area: str) -> list[str]:
    return [f"tests/test_{name}.py" for name in AREAS[area][1].split()]


def main() -> None:
    """Run what is asked for, and enter it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--area", action="append", choices=list(AREAS))
    parser.add_argument("--only", default="", help="part of a path")
    parser.add_argument("--survivors", action="store_true")
    parser.add_argument("-j", type=int, default=min(os.cpu_count() or 1, 16), help="workers")
    parser.add_argument("--minutes", type=float, default=1e6, help="for each area: a random part of it")
    options = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    areas = options.area or list(AREAS)
    copies = [_copy(BUILD / f"copy{k}") for k in range(options.j)]
    with ThreadPoolExecutor(options.j) as pool:
        list(pool.map(lambda k: _measure(areas[k], copies[k % options.j]), range(len(areas))))
        for area in areas:
            known = _known(area)
            jobs = [
                job
                for job in _jobs(area)
                if options.only in job["file"] and not (options.survivors and _is_settled(job, known))
            ]
            print(f"{area}: {len(jobs)} mutants", file=sys.stderr)
            # In a random order of its own, so that what time allows is a fair sample.
            random.Random(0).shuffle(jobs)
            end = time.time() + 60 * options.minutes
            for k, copy in enumerate(copies):
                (copy / "jobs.json").write_text(json.dumps(jobs[k :: options.j]), "utf-8")
            for done in pool.map(lambda copy, area=area, end=end: _work(area, end, copy), copies):
                known |= {result["name"]: result for result in done}
            _results(area).write_text(json.dumps(known, indent=1, ensure_ascii=False), "utf-8")
    results = {area: (len(_jobs(area)), list(_known(area).values())) for area in AREAS}
    summary = reliability_mutation.summary(results)
    everything = json.loads(RESULTS.read_text("utf-8"))
    RESULTS.write_text(json.dumps({**everything, "mutation": summary}, indent=1) + "\n", "utf-8")
    print(reliability_mutation.section(summary))


def _is_settled(job: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the tests noticed a mutant, or need not."""
    outcome = known.get(job["name"], {}).get("outcome", "")
    equivalent = job["mutant"] in reliability_mutation.equivalent().get(job["file"], {})
    return outcome in NOTICED or (outcome == "survived" and equivalent)


def _results(area: str) -> Path:
    return BUILD / f"{area} results.json"


def _jobs(area: str) -> list[dict[str, Any]]:
    return [
        {**asdict(mutant), "name": f"{path} {mutant.name}", "file": path, "mutant": mutant.name}
        for path in files_of(area)
        for mutant in mutants((ROOT / SOURCE / path).read_text("utf-8"))
    ]


def _known(area: str) -> dict[str, dict[str, Any]]:
    """What became of the mutants that there still are, when they last ran."""
    path, names = _results(area), {job["name"] for job in _jobs(area)}
    found = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return {name: result for name, result in found.items() if name in names}


def _copy(to: Path) -> Path:
    shutil.rmtree(to, ignore_errors=True)
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, stdout=-1)
    kernels = (ROOT / SOURCE / "kernels").glob("*.so")
    for name in {*listed.stdout.decode().split("\n"), *(str(k.relative_to(ROOT)) for k in kernels)}:
        if name and (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    return to


def _run(copy: Path, *args: str, quiet: bool = False) -> None:
    code = [sys.executable, str(Path(__file__).with_name("mutation_worker.py")), *args]
    path = os.pathsep.join((str(copy / "src"), str(copy / "tests")))
    output = subprocess.DEVNULL if quiet else None
    subprocess.run(code, cwd=copy, check=True, env={**os.environ, "PYTHONPATH": path}, stdout=output)


def _measured(area: str) -> dict[str, Path]:
    """By test file, where it stands which tests run which lines, and how long they take."""
    return {test: BUILD / f"{area} {Path(test).stem}.json" for test in _tests(area)}


def _measure(area: str, copy: Path) -> None:
    """Measure what has changed."""
    files = [SOURCE + f for f in files_of(area)]
    for test, kept in _measured(area).items():
        newest = max((ROOT / path).stat().st_mtime for path in (test, *files))
        if not kept.exists() or kept.stat().st_mtime < newest:
            _run(copy, "measure", str(kept), json.dumps(files), test)


def _work(area: str, end: float, copy: Path) -> Iterable[dict[str, Any]]:
    _run(
        copy,
        "work",
        json.dumps(list(map(str, _measured(area).values()))),
        str(end),
        *_tests(area),
        quiet=True,
    )
    return [json.loads(line) for line in (copy / "done.jsonl").read_text("utf-8").splitlines()]


if __name__ == "__main__":
    main()
