"""Merges that are killed at random moments: what they leave, how they go on, and what they end in."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import command
import tiny
import word_tokenizers
from gguf_files import LLAMA_KEYS, llama_tensors, write_gguf
from meldkit.output.journal import read_journal
from meldkit.output.replace import JOURNAL, aside
from meldkit.paths import PARTIAL

HERE = Path(__file__).parent
_TASK = {"base_model": "base", "models": [{"model": "a"}, {"model": "b"}]}
_USUAL = {"weight": 0.6, "density": 0.5}
#: Every speed class, adapters, other tokenizers, other formats, and a model that is put together from layers.
RECIPES: dict[str, dict[str, Any]] = {
    "elementwise": {"merge_method": "task_arithmetic", **_TASK, "parameters": {"weight": 0.6}},
    "elementwise in bfloat16": {
        "merge_method": "linear",
        "models": [{"model": "half"}, {"model": "a"}],
        "parameters": {"weight": 1},
        "dtype": "bfloat16",
    },
    "spanned": {
        "merge_method": "slerp",
        "base_model": "a",
        "models": [{"model": "a"}, {"model": "b"}],
        "parameters": {"t": 0.3},
    },
    "measured": {"merge_method": "ties", **_TASK, "parameters": _USUAL},
    "measured at random": {"merge_method": "dare_ties", **_TASK, "parameters": _USUAL},
    "measured in rows": {"merge_method": "della", **_TASK, "parameters": {**_USUAL, "epsilon": 0.1}},
    "measured over the model": {"merge_method": "sce", **_TASK, "parameters": {"select_topk": 0.3}},
    "adapter": {
        "merge_method": "ties",
        **_TASK,
        "models": [{"model": "a+lora"}, {"model": "b"}],
        "parameters": _USUAL,
    },
    "tokenizers": {
        "merge_method": "linear",
        "models": [{"model": "words"}, {"model": "others"}],
        "parameters": {"weight": 1},
        "tokenizer": {"source": "union"},
    },
    "layers": {
        "merge_method": "passthrough",
        "slices": [{"sources": [{"model": m, "layer_range": r}]} for m, r in (("a", [0, 5]), ("b", [2, 6]))],
    },
    "GGUF": {
        "merge_method": "linear",
        "models": [{"model": "whole"}, {"model": "parts"}],
        "parameters": {"weight": 1},
    },
    "quantised": {
        "merge_method": "linear",
        "models": [{"model": "codes"}, {"model": "a"}],
        "parameters": {"weight": 1},
        "dtype": "float32",
    },
    "8-bit floats": {
        "merge_method": "slerp",
        "base_model": "wide",
        "models": [{"model": "wide"}, {"model": "broad"}],
        "parameters": {"t": 0.3},
        "dtype": "bfloat16",
        "out_dtype": "float8_e4m3fn",
    },
}
RECIPES["stages"] = {
    "merge_method": "ties",
    "base_model": "base",
    "models": [{"model": {**RECIPES["spanned"], "dtype": "float32"}}, {"model": "b"}],
    "parameters": _USUAL,
}
#: Where a merge was when it was killed, by what it left: nothing, no finished tensor, some, files on
#: their way, or a folder beside the one that it replaces.
PHASES = ("plan", "begun", "apply", "publish", "replace")


def make_models(folder: Path, *, hidden: int = 192, layers: int = 6) -> None:
    """The models of the recipes, and the recipes, `NAME.yml`."""
    size = {"layers": layers, "hidden": hidden}
    for seed, name in enumerate(("base", "a", "b")):
        tiny.decoder(folder / name, seed, vocab=500, **size)
    tiny.decoder(folder / "half", 5, vocab=500, dtype=torch.bfloat16, **size)
    modules = {f"model.layers.{i}.self_attn.q_proj": (hidden, hidden) for i in range(layers)}
    tiny.adapter(folder / "lora", modules, rank=8)
    for seed, name in enumerate(("words", "others")):
        words = {"<unk>": 0} | {f"w{i + 100 * seed}": i + 1 for i in range(400)}
        tokenizer = word_tokenizers.content(words)
        tiny.decoder(folder / name, seed, vocab=401, **size)
        (folder / name / "tokenizer.json").write_text(json.dumps(tokenizer))
    for seed, (name, each) in enumerate((("whole", 0), ("parts", 3))):
        (folder / name).mkdir()
        keys = {**LLAMA_KEYS, "embedding_length": 256, "feed_forward_length": 512}
        write_gguf(folder / name / "m.gguf", "llama", keys, llama_tensors(seed, 256), each=each)
    quantised(tiny.decoder(folder / "codes", 3, vocab=500, **size))
    for seed, name in enumerate(("wide", "broad")):
        tiny.decoder(folder / name, seed, vocab=500, layers=layers, hidden=256)
    for name, recipe in RECIPES.items():
        (folder / f"{name}.yml").write_text(json.dumps(recipe))


def quantised(folder: Path) -> None:
    """Turn the matrices of a model's layers into 8-bit floats with a scale for each row."""
    weights = tiny.tensors(folder)
    for name in [name for name in weights if "_proj" in name]:
        scale = weights[name].abs().amax(1, keepdim=True) / 448
        weights[name + "_scale"] = scale
        weights[name] = (weights[name] / scale).to(torch.float8_e4m3fn)
    codes = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False}
    group = {"targets": ["Linear"], "weights": codes, "input_activations": None}
    settings = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": settings}
    tiny.stored(folder, weights, config)


def shim(folder: Path) -> Path:
    """The library that makes system calls fail or last."""
    library = folder / "fault_shim.so"
    source = HERE / "fault_shim.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


def hashes(folder: Path) -> dict[str, str]:
    """Every file below a folder, without what is in progress."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and PARTIAL not in p.parts
    }


@dataclass
class Tally:
    """What came of the kills.

    Attributes:
        killed: how many processes were killed, by phase.
        merges: that were finished after all, with the bytes of undisturbed ones.
        continued: runs that took over finished tensors and said how many.
        reused, tensors: of these runs, tensors taken over and all.
        wrong: sentences about whatever was not as it should be.
    """

    killed: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PHASES, 0))
    merges: int = 0
    continued: int = 0
    reused: int = 0
    tensors: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        """Processes that were killed."""
        return sum(self.killed.values())


@dataclass(frozen=True)
class Undisturbed:
    """A merge that nobody kills.

    Attributes:
        out: what it wrote.
        files: their hashes.
        seconds: that it took.
    """

    out: Path
    files: dict[str, str]
    seconds: float


@dataclass(frozen=True)
class Bench:
    """Where merges are killed.

    Attributes:
        folder: everything is in it.
        library: see `shim`.
        delay: microseconds that each access to a file of an output takes longer.
    """

    folder: Path
    library: Path
    delay: int

    @property
    def models(self) -> Path:
        """Folder of models and recipes."""
        return self.folder / "models"

    def start(self, name: str, out: Path, *more: str) -> subprocess.Popen[str]:
        """A merge, made slow."""
        environment = os.environ | {
            "LD_PRELOAD": str(self.library),
            "FAULT_PREFIX": str(out.parent),
            "FAULT_DELAY": str(self.delay),
        }
        options = ["--out-shard-size", "1MB", *more]
        return command.start(self.models, "merge", f"{name}.yml", out, *options, env=environment)

    def undisturbed(self, name: str) -> Undisturbed:
        """The merge of a recipe."""
        out = self.folder / "undisturbed" / name / "out"
        started = time.monotonic()
        process = self.start(name, out, "-j", "2")
        _, err = process.communicate()
        assert process.returncode == 0, err
        return Undisturbed(out, hashes(out), time.monotonic() - started)


class Case:
    """A merge in a folder of its own, which is killed again and again.

    Args:
        bench: where.
        place: a folder that is not there.
        name: of the recipe.
        undisturbed: what it should end in.
        earlier: a model that it replaces.
        threads: of the merge.
    """

    def __init__(
        self,
        bench: Bench,
        place: Path,
        name: str,
        undisturbed: Undisturbed,
        earlier: Undisturbed | None,
        threads: int,
    ) -> None:
        self.bench, self.name, self.undisturbed = bench, name, undisturbed
        self.out = place / "out"
        self.new, self.overwrite = undisturbed.files, earlier is not None
        self.old: dict[str, str] = {}
        self._options = ["-j", str(threads), *["--overwrite"] * self.overwrite]
        if earlier is not None:
            shutil.copytree(earlier.out, self.out)
            (self.out / "notes.txt").write_text("mine")
            (self.out / "folder").mkdir()
            (self.out / "folder" / "config.json").write_text("mine")
            self.old = hashes(self.out)

    def _again(self) -> subprocess.Popen[str]:
        return self.bench.start(self.name, self.out, *self._options)

    def kill(self, chance: random.Random, tally: Tally) -> bool:
        """Start the merge and kill it somewhere; False if it was finished before."""
        process = self._again()
        late = chance.random() < 0.4
        seconds = self.undisturbed.seconds
        deadline = time.monotonic() + (3 * seconds if late else chance.uniform(0.3, 1.0) * seconds)
        while process.poll() is None and time.monotonic() < deadline:
            if late and self._publishing():
                time.sleep(chance.uniform(0, 1.2))
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode != -signal.SIGKILL:
            return False
        tally.killed[self._phase()] += 1
        self._look(tally)
        return True

    def _publishing(self) -> bool:
        return bool(read_journal(self.out / PARTIAL / JOURNAL).publish)

    def _phase(self) -> str:
        if aside(self.out).exists():
            return "replace"
        entries = read_journal(self.out / PARTIAL / JOURNAL)
        if entries.publish:
            return "publish"
        return "apply" if entries.done else "begun" if entries.plan else "plan"

    def _look(self, tally: Tally) -> None:
        """Nothing looks like a model, but a whole one: the new, or what was there before."""
        found = hashes(self.out) if self.out.exists() else {}
        notes = {name for name in self.old if name == "notes.txt" or name.startswith("folder")}
        whole = [{k: v for k, v in model.items() if k not in notes} for model in (self.new, self.old)]
        model = {k: v for k, v in found.items() if k not in notes}
        if self.overwrite and model not in whole:
            tally.wrong.append(f"{self.name}: neither the old model nor the new: {sorted(found)}")
        if not self.overwrite and "config.json" in found and found != self.new:
            tally.wrong.append(f"{self.name}: looks like a model: {sorted(found)}")
        for name in notes:
            if not any((folder / name).exists() for folder in (self.out, aside(self.out))):
                tally.wrong.append(f"{self.name}: {name} is gone")

    def finish(self, tally: Tally) -> None:
        """Run the merge to its end, and compare."""
        if self._complete():
            # Not killed soon enough; it was finished then.
            tally.merges += 1
            return
        known = self._known()
        process = self._again()
        out, err = process.communicate()
        if process.returncode or "Traceback" in err:
            tally.wrong.append(f"{self.name}: status {process.returncode}: {err}")
            return
        total = int(out.partition("merged ")[2].split()[0])
        if known:
            said = f"continued: {known} of {total} tensors were already done\n"
            tally.wrong.extend([f"{self.name}: not {said!r} but {out!r}"] * (not out.startswith(said)))
            tally.continued, tally.reused, tally.tensors = (
                tally.continued + 1,
                tally.reused + known,
                tally.tensors + total,
            )
        kept = {k: v for k, v in self.old.items() if k == "notes.txt" or k.startswith("folder")}
        if hashes(self.out) != {**self.new, **kept}:
            tally.wrong.append(f"{self.name}: other files than those of an undisturbed merge")
        left = sorted(p.name for p in (*self.out.parent.iterdir(), *self.out.iterdir()))
        if PARTIAL in left or aside(self.out).name in left:
            tally.wrong.append(f"{self.name}: left behind: {left}")
        tally.merges += 1

    def _known(self) -> int:
        """Tensors that the next run can reuse."""
        places = (aside(self.out) / PARTIAL / JOURNAL, self.out / PARTIAL / JOURNAL)
        return len(read_journal(next((p for p in places if p.exists()), places[1])).done)

    def _complete(self) -> bool:
        kept = {k: v for k, v in self.old.items() if k == "notes.txt" or k.startswith("folder")}
        places = (self.out / PARTIAL, aside(self.out))
        return not any(p.exists() for p in places) and hashes(self.out) == {**self.new, **kept}


def kill_merges(
    folder: Path,
    kills: int,
    seed: int,
    *,
    delay: int = 20_000,
    chain: int = 4,
    at_once: int = 3,
    minutes: float = 60,
) -> Tally:
    """Kill merges of all recipes in turn, every other one replacing a model.

    Args:
        folder: an empty one.
        kills: that many, at least.
        seed: of the moments.
        delay: see `Bench`.
        chain: kills of a merge before it is let finish.
        at_once: merges that run beside each other.
        minutes: after that, no other merge is begun.
    """
    until = time.monotonic() + 60 * minutes
    folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(folder, shim(folder), delay)
    make_models(bench.models)
    inputs = hashes(bench.models)
    names, tally = list(RECIPES), Tally()
    with ThreadPoolExecutor(at_once) as pool:
        undisturbed = dict(zip(names, pool.map(bench.undisturbed, names), strict=True))

        def attack(number: int) -> None:
            if tally.kills >= kills or tally.wrong or time.monotonic() > until:
                return
            turn, place = divmod(number, len(names))
            name, chance = names[place], random.Random(f"{seed} {number}")
            earlier = undisturbed[names[place - 1]] if (turn + place) % 2 else None
            case = Case(bench, folder / f"{number}", name, undisturbed[name], earlier, 1 + number // 2 % 2)
            for _ in range(chain):
                if not case.kill(chance, tally):
                    break
            case.finish(tally)
            shutil.rmtree(case.out.parent)
            print(f"{tally.kills} kills: {tally.killed}, {tally.merges} merges", flush=True)

        list(pool.map(attack, range(kills)))
    if hashes(bench.models) != inputs:
        tally.wrong.append("inputs were changed")
    return tally
