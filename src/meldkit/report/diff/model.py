"""What a comparison of models consists of: numbers, and what they mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, TypeVar

from meldkit.report.diff.difference import Difference, Spectrum, total

#: Two models by their places in `ModelComparison.models`, the smaller one first.
PairKey = tuple[int, int]
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """One tensor in all models that have it, or the rows that they have in common.

    Attributes:
        name: in the first model that has it.
        stack: what the names of its stack's tensors begin with, such as "model.layers."; None outside.
        block: which of the stack's blocks; None outside.
        leaf: what its name has after that; outside, the whole name.
        role: embedding, lm_head, norm, attention, mlp, expert, router, vision or other.
        shape: of what was compared.
        dtypes: by model, safetensors spelling; None in models that lack it.
        shapes: by model; None in models that lack it.
        norms: by model; None where it was not compared.
        num_nonfinite: by model, values that are NaN or Inf.
        pairs: the difference of each two models whose shapes fit.
        spectra: by model, of its change against `ModelComparison.reference`; only of matrices, if asked for.
        rows: how the rows of several vocabularies were brought together: "token", "number", or None.
        whole_numbers: whether its numbers have no fractions in some model; then only equal ones are counted.
    """

    name: str
    stack: str | None
    block: int | None
    leaf: str
    role: str
    shape: tuple[int, ...]
    dtypes: tuple[str | None, ...]
    shapes: tuple[tuple[int, ...] | None, ...]
    norms: tuple[float | None, ...]
    num_nonfinite: tuple[int, ...]
    pairs: Mapping[PairKey, Difference]
    spectra: Mapping[int, Spectrum]
    rows: str | None = None
    whole_numbers: bool = False

    @property
    def numel(self) -> int:
        """Elements of what was compared."""
        return math.prod(self.shape)

    @property
    def compared(self) -> bool:
        """Whether any two models could be compared."""
        return bool(self.pairs)

    def data(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "name": self.name,
            "stack": self.stack,
            "block": self.block,
            "leaf": self.leaf,
            "role": self.role,
            "shape": list(self.shape),
            "dtypes": list(self.dtypes),
            "shapes": [None if shape is None else list(shape) for shape in self.shapes],
            "norms": list(self.norms),
            "nonfinite": list(self.num_nonfinite),
            "rows": self.rows,
            "pairs": [{"first": i, "second": j, **d.data()} for (i, j), d in self.pairs.items()],
            "spectra": [{"model": model, **asdict(s)} for model, s in self.spectra.items()],
        }


class Relation(str, Enum):
    """What two models are to each other."""

    #: All numbers are equal, in tensors that both have.
    IDENTICAL = "identical"
    #: One is the other in a less precise type.
    ROUNDED = "rounded"
    #: One was made from the other, or both from one, and they are still close.
    CLOSE = "close"
    #: They began as one, but have gone far.
    DISTANT = "distant"
    #: They have nothing in common but their shapes.
    UNRELATED = "unrelated"
    #: They do not even have shapes in common.
    INCOMPARABLE = "incomparable"


@dataclass(frozen=True, slots=True)
class ComparedModel:
    """One of the models.

    Attributes:
        name: what findings call it: A, B, …, or "base".
        label: as it was named.
        architecture: from its configuration; empty if it does not say.
        num_tensors, num_parameters: of its own, compared or not.
        dtypes: elements by type of their values, safetensors spelling.
        num_encoded: tensors that are decoded when read: quantised, or changed by an adapter.
        quantised: whether some of them have fewer bits than types of numbers with fractions.
        missing: tensors of other models that it lacks.
        extra: tensors that only it has.
    """

    name: str
    label: str
    architecture: str
    num_tensors: int
    num_parameters: int
    dtypes: Mapping[str, int]
    num_encoded: int
    quantised: bool
    missing: tuple[str, ...]
    extra: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two models, by their places in the list, and what they are to each other.

    Attributes:
        first, second: the models; a base comes before others.
        total: over all compared tensors of numbers with fractions.
        matrices: over those of them that have two or more sizes, which tell relatives from strangers.
        relation: from those.
        num_tensors: how many tensors were compared, of any kind.
        num_equal: how many of them have no difference.
        unfit: names of tensors that both have in shapes that cannot be compared.
    """

    first: int
    second: int
    total: Difference
    matrices: Difference
    relation: Relation
    num_tensors: int
    num_equal: int
    unfit: tuple[str, ...]

    @property
    def key(self) -> PairKey:
        """Its place in `TensorDifference.pairs`."""
        return self.first, self.second

    def data(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "first": self.first,
            "second": self.second,
            "relation": self.relation.value,
            "tensors": self.num_tensors,
            "equal_tensors": self.num_equal,
            "unfit": list(self.unfit),
            **self.total.data(),
            "matrix_cosine": self.matrices.cosine,
        }


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that the numbers mean.

    Attributes:
        kind: a short name that stays the same between versions, such as "unrelated"; see docs/diff.md.
        models: places of the models that it is about.
        text: what was found, one sentence.
        advice: what to do about it, one sentence; may be empty.
        warning: whether it speaks against merging the models as they are.
    """

    kind: str
    models: tuple[int, ...]
    text: str
    advice: str = ""
    warning: bool = False

    def data(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "kind": self.kind,
            "models": list(self.models),
            "text": self.text,
            "advice": self.advice,
            "warning": self.warning,
        }


@dataclass(frozen=True, slots=True)
class ModelComparison:
    """Several models, compared tensor by tensor.

    Attributes:
        models: in the order in which they were named, a base before them.
        base: place of the base, 0; None without one.
        tensors: all of them, in the order of the first model; those that only others have come last.
        pairs: each two models, (0, 1), (0, 2), …, (1, 2), …
        findings: what it means, the most important first.
        notes: what was done to bring the models together, in words.
        spectral: whether spectra were asked for.
        bytes_read: of weights.
        seconds: that reading and measuring took.
    """

    models: tuple[ComparedModel, ...]
    base: int | None
    tensors: tuple[TensorDifference, ...]
    pairs: tuple[Pair, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    spectral: bool
    bytes_read: int
    seconds: float

    @property
    def reference(self) -> int:
        """The model against which changes are measured where one is needed: the base, else the first."""
        return 0

    def pair(self, first: int, second: int) -> Pair:
        """Two models in either order, as they are in `pairs`."""
        wanted = (min(first, second), max(first, second))
        return next(pair for pair in self.pairs if pair.key == wanted)

    def grouped(self, pair: PairKey, key: Callable[[TensorDifference], K | None]) -> dict[K, Difference]:
        """The differences of two models, added up over tensors with the same key; without those of None."""
        found: dict[K, list[Difference]] = {}
        for tensor in self.tensors:
            name = key(tensor)
            if name is not None and pair in tensor.pairs and not tensor.whole_numbers:
                found.setdefault(name, []).append(tensor.pairs[pair])
        return {name: total(parts) for name, parts in found.items()}

    def by_role(self, pair: PairKey) -> dict[str, Difference]:
        """By role, in order of first appearance."""
        return self.grouped(pair, lambda tensor: tensor.role)

    def by_layer(self, pair: PairKey) -> dict[tuple[str, int], Difference]:
        """By stack and block; what stands outside of stacks is not in it."""
        return self.grouped(
            pair,
            lambda t: None if t.stack is None or t.block is None else (t.stack, t.block),
        )

    def data(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "models": [
                {
                    "name": model.name,
                    "model": model.label,
                    "architecture": model.architecture,
                    "tensors": model.num_tensors,
                    "parameters": model.num_parameters,
                    "dtypes": dict(model.dtypes),
                    "decoded_tensors": model.num_encoded,
                    "quantised": model.quantised,
                    "missing": list(model.missing),
                    "extra": list(model.extra),
                }
                for model in self.models
            ],
            "base": self.base,
            "findings": [finding.data() for finding in self.findings],
            "notes": list(self.notes),
            "pairs": [
                {
                    **pair.data(),
                    "roles": {role: d.data() for role, d in self.by_role(pair.key).items()},
                    "layers": [
                        {"stack": stack, "block": block, **d.data()}
                        for (stack, block), d in self.by_layer(pair.key).items()
                    ],
                }
                for pair in self.pairs
            ],
            "tensors": [tensor.data() for tensor in self.tensors],
            "bytes_read": self.bytes_read,
            "seconds": self.seconds,
        }
