"""Tiny models as transformers saves them, and as llama.cpp's conversion would have written them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from torch import Tensor

import tiny
from gguf_conversion import Arrays, llama_cpp_keys, llama_cpp_tensors
from gguf_files import write_gguf
from gguf_samples import SAMPLES, Sample


@dataclass
class Made:
    """A model.

    Attributes:
        key: of the sample.
        folder: where it lies, as `hf` and `m.gguf`.
    """

    key: str
    folder: Path

    def __post_init__(self) -> None:
        self.config = self.sample.configuration()
        model = self.sample.model(self.config)
        model.save_pretrained(self.folder / "hf")
        self.outputs: Tensor = self.sample.outputs(model)
        self.file = self.written()

    @property
    def sample(self) -> Sample:
        return SAMPLES[self.key]

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """By Hugging Face's names."""
        return tiny.tensors(self.folder / "hf")

    @cached_property
    def keys(self) -> dict[str, Any]:
        """Settings of the file."""
        return llama_cpp_keys(self.sample, self.config, self.weights)

    @cached_property
    def tensors(self) -> Arrays:
        """By llama.cpp's names."""
        return self.converted(self.weights)

    def converted(self, weights: Mapping[str, Tensor]) -> Arrays:
        """What llama.cpp makes of weights."""
        return llama_cpp_tensors(self.sample, self.config, weights)

    def written(
        self,
        name: str = "m.gguf",
        *,
        keys: Mapping[str, Any] | None = None,
        tensors: Mapping[str, np.ndarray[Any, Any]] | None = None,
        kinds: Mapping[str, gguf.GGMLQuantizationType] | None = None,
    ) -> Path:
        """A file of the model, or one that differs in its settings or tensors."""
        tensors = self.tensors if tensors is None else tensors
        return write_gguf(
            self.folder / name, self.sample.architecture, self.keys | (keys or {}), tensors, kinds
        )


def maker(factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """Makes samples by name, each once."""
    made: dict[str, Made] = {}

    def build(key: str) -> Made:
        if key not in made:
            made[key] = Made(key, factory.mktemp(key))
        return made[key]

    return build
