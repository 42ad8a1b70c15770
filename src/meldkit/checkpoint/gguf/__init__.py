"""GGUF files, the format of llama.cpp, as models to merge."""

from __future__ import annotations

from meldkit.checkpoint.gguf.contents import fetch_contents
from meldkit.checkpoint.gguf.header import read_gguf
from meldkit.checkpoint.gguf.parts import one_model, part_names, without_projectors
from meldkit.checkpoint.gguf.tokenizer import write_generation_config, write_tokenizer

__all__ = [
    "fetch_contents",
    "one_model",
    "part_names",
    "read_gguf",
    "without_projectors",
    "write_generation_config",
    "write_tokenizer",
]
