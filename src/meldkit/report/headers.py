"""Models that are to be merged, as far as their headers tell; those that cannot be opened say why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from meldkit.checkpoint import DTYPES, Checkpoint, open_model
from meldkit.errors import MeldError
from meldkit.layout import infer_layout
from meldkit.recipe import ModelRef
from meldkit.vocab import compare, read_tokenizer


@dataclass(frozen=True, slots=True)
class Header:
    """What is known of a model without reading a weight.

    Attributes:
        ref: the model.
        checkpoint: its tensors and configuration; None if it could not be opened.
        problem: why it could not.
        dtype: the type that most of its numbers are stored in, as torch calls it; None if unknown.
        num_layers: layers that `layer_range` counts; None if unknown or if there is no one stack of them.
        layers: what the names of the tensors in them begin with; "" likewise.
    """

    ref: ModelRef
    checkpoint: Checkpoint | None = None
    problem: str = ""
    dtype: str | None = None
    num_layers: int | None = None
    layers: str = ""

    @property
    def architecture(self) -> str:
        """The class of transformers that it is for, or its type; empty if unknown."""
        config = self.checkpoint.config if self.checkpoint else {}
        names = config.get("architectures")
        return str(names[0]) if isinstance(names, list) and names else str(config.get("model_type", ""))  # pyright: ignore[reportUnknownArgumentType]


def read_header(ref: ModelRef, cache: Path | None = None) -> Header:
    """Open a model; where that cannot be, the header says why."""
    try:
        checkpoint = open_model(ref, cache=cache, headers_only=True)
        layout = infer_layout(checkpoint, checkpoint.config)
    except MeldError as e:
        return Header(ref, problem=e.message)
    elements: Counter[str] = Counter()
    for info in checkpoint.values():
        if DTYPES[info.dtype].floating and info.encoding is None:
            elements[DTYPES[info.dtype].torch] += info.numel
    dtype = elements.most_common(1)[0][0] if elements else None
    try:
        stack = layout.sliced_stack(checkpoint.label)
    except MeldError:
        return Header(ref, checkpoint, dtype=dtype)
    return Header(ref, checkpoint, dtype=dtype, num_layers=stack.num_blocks, layers=stack.prefix)


def vocabularies_differ(headers: Sequence[Header]) -> bool | None:
    """Whether any two models have tokenizers that differ; None if some model's cannot be looked at."""
    if any(header.checkpoint is None for header in headers):
        return None
    try:
        found = [read_tokenizer(header.checkpoint) for header in headers if header.checkpoint]
    except MeldError:
        return None
    known = [tokenizer for tokenizer in found if tokenizer is not None]
    if any(compare(one, other) for one, other in combinations(known, 2)):
        return True
    return False if len(known) in (0, len(found)) else None
