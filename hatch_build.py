"""Compiles meldkit's inner loops when a wheel or an editable install is built.

Without a C compiler the build goes on: everything works, slower.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = "src/meldkit/kernels"
TARGET = f"{FOLDER}/kernels.so"
FLAGS = "-O3 -fPIC -shared -std=gnu11 -ffp-contract=off -fno-math-errno -fno-trapping-math"


class CompileKernels(BuildHookInterface[Any]):
    """Adds the compiled library to the wheel, which then is for this kind of machine only."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it collects files."""
        del version
        compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
        target = Path(self.root, TARGET)
        partial = target.with_suffix(".partial")
        command = [
            *shlex.split(compiler)[:1],
            *FLAGS.split(),
            "-o",
            str(partial),
            *map(str, sorted(Path(self.root, FOLDER).glob("*.c"))),
            "-lm",
        ]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as e:
            reason = e.stderr if isinstance(e, subprocess.CalledProcessError) else e
            print(f"meldkit: no compiled inner loops, merging will be slower: {reason}", file=sys.stderr)
            return
        # Renamed into place: a process that has loaded the old library keeps it.
        partial.replace(target)
        build_data["artifacts"].append(TARGET)
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"
