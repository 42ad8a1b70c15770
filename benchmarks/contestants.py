"""Who takes part: meldkit, the floor, and other programs that merge whole checkpoints.

Each of the others is installed from PyPI into an environment of its own under .cache/bench/, on first use.
MELDKIT_BENCH_MERGEKIT=/path/to/mergekit-yaml points at another mergekit.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from cases import Case
from checkpoints import Shape, paths
from measure import package_version
from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "bench"
OFFLINE = {"HF_HUB_OFFLINE": "1"}
FLOOR, MELDKIT, MERGEKIT = "floor", "meldkit", "mergekit"

console = Console(width=None if sys.stdout.isatty() else 140)


@dataclass(frozen=True, slots=True)
class Peer:
    """Another program.

    `script` of this folder calls its API; None: it has a command line that reads our recipes. `methods` are
    those it can do; None: all. `also` are packages that the script needs besides. `merges_shards` says
    whether it reads models of several files.
    """

    name: str
    version: str
    script: str | None = None
    methods: frozenset[str] | None = None
    merges_shards: bool = False
    also: tuple[str, ...] = ()
    note: str = ""

    @property
    def env(self) -> Path:
        return CACHE / f"{self.name}-venv"

    @property
    def python(self) -> Path:
        if self.name == MERGEKIT and (given := os.environ.get("MELDKIT_BENCH_MERGEKIT")):
            if not Path(given).is_file():
                raise SystemExit(f"MELDKIT_BENCH_MERGEKIT={given} is not a file")
            return Path(given).with_name("python")
        return self.env / "bin" / "python"

    @property
    def installed(self) -> bool:
        return self.python.parent.parent != self.env or (self.env / "complete").exists()

    def install(self) -> None:
        """Make its environment, if there is none yet."""
        if self.installed:
            return
        packages = ["torch==2.13.0", f"{self.name}=={self.version}", *self.also]
        console.print(f"installing {' '.join(packages)} into {self.env}")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(self.env)], check=True)
        subprocess.run([str(self.python), "-m", "pip", "install", "-qq", *packages], check=True)
        (self.env / "complete").touch()

    def can(self, case: Case, shape: Shape, models: Path) -> bool:
        """Whether it can do this merge of models of this shape."""
        able = self.methods is None or case.name in self.methods
        return able and (self.merges_shards or len(paths(models, shape, "base")) == 1)

    def versions(self) -> str:
        return f"{package_version(self.python, self.name)} (torch {package_version(self.python, 'torch')})"


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            MERGEKIT,
            "0.1.5",
            merges_shards=True,
            note="`mergekit-yaml RECIPE OUT --lazy-unpickle --copy-tokenizer`",
        ),
        Peer(
            "sd-mecha",
            "1.1.8",
            "peer_sd_mecha.py",
            frozenset({"linear", "slerp", "task_arithmetic", "ties"}),
            note="its Python API; it reads and writes single safetensors files",
        ),
        Peer(
            "fusion-bench",
            "0.2.33",
            "peer_fusion_bench.py",
            frozenset({"linear", "slerp", "task_arithmetic"}),
            merges_shards=True,
            note="its Python API, which loads the models with transformers and computes in their dtype",
        ),
        Peer(
            "mermod",
            "0.1.0",
            "peer_mermod.py",
            frozenset({"dare_linear", "dare_ties"}),
            also=("pyyaml",),
            note="its Python API, 16 tensors at a time",
        ),
    )
}
CONTESTANTS = (FLOOR, MELDKIT, *PEERS)

#: Programs that were looked at and do not take part, and why.
NOT_MEASURED = {
    "peft 0.21": "its weighted adapters combine LoRA adapters, not checkpoints",
    "crdt-merge 0.11.0": "its command for models ends with an error of its own before it reads any",
    "mergekitty 0.3.1": "a fork of mergekit, pinned to torch 2.10",
    "mergenetic 0.1.1": "searches recipes and calls mergekit to merge; needs vLLM",
    "ckptkit 0.3.0": "its `merge` adds a LoRA adapter to its base",
    "mergelib 0.0.1a0": "Fisher merging alone, which needs training data",
}


def meldkit_program() -> str:
    return str(Path(sys.executable).with_name("meldkit"))


def command(contestant: str, case: Case, shape: Shape, models: Path, recipe: Path, out: Path) -> list[str]:
    """What to run; `out` does not exist yet."""
    if contestant == MELDKIT:
        return [meldkit_program(), "merge", str(recipe), str(out)]
    if contestant == FLOOR:
        return ["sh", "-c", floor(case, shape, models, out)]
    peer = PEERS[contestant]
    if peer.script is not None:
        return [str(peer.python), str(Path(__file__).with_name(peer.script)), str(recipe), str(out)]
    program = str(peer.python.with_name("mergekit-yaml"))
    return [program, str(recipe), str(out), "--lazy-unpickle", "--copy-tokenizer"]


def floor(case: Case, shape: Shape, models: Path, out: Path) -> str:
    """Reading all inputs, as often as the method must, and copying one of them.

    File by file, so that what is read again or copied is still in the page cache where models are larger.
    """
    lines = [shlex.join(["mkdir", str(out)])]
    for same in zip(*(paths(models, shape, name) for name in case.inputs), strict=True):
        read = [str(path) for path in same for _ in range(case.passes)]
        lines.append(f"{shlex.join(['cat', *read])} > /dev/null")
        lines.append(shlex.join(["cp", str(same[0]), str(out)]))
    return " && ".join(lines)
