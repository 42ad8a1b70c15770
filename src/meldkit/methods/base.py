"""What a merge method is: declared parameters, a shape, and pure functions on tensors.

Shape suffixes used throughout this package: `m` models (the base not counted), `n` elements of a
tile of one flattened tensor. Tiles are float32; a method may overwrite the tile it is given.

The shape of a method says how much of a tensor it must see at once, which is what decides how
often the data is read and how much memory that takes:

    elementwise   a tile                                                  one pass
    spanned       the m×m Gram matrix, giving coefficients c: Σ c_i x_i   a pass to measure, one to apply
    measured      declared statistics, then a tile                        passes to measure, one to apply

A tile is a run of elements; where a method says so, of whole rows.

A method whose base policy is a delta policy sees task vectors (model − base) in place of weights,
in measuring and in applying, and returns a task vector; the engine subtracts the base and adds it back.
"""

from __future__ import annotations

import enum
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from meldkit import kernels
from meldkit.kernels import Numbers, Rows
from meldkit.methods.noise import Noise
from meldkit.methods.parameter import Parameter, Values
from meldkit.methods.statistics import CHUNK, Gram, Statistic
from meldkit.shapes import Float32, Float64, Tensor


class Base(enum.Enum):
    """What `base_model` means to a method."""

    #: Only donates config.json and tokenizer; listed, it is a model like any other.
    DONOR = "optional, donates configuration and tokenizer"
    #: One of the models, the last one if it is not listed among them.
    MEMBER = "optional, is one of the models"
    #: One of the two inputs, always the first one.
    ENDPOINT = "required, the start of the path"
    #: Task vectors are taken from it; it is not itself a model to merge.
    DELTA = "required, task vectors are taken from it"
    #: The same where it is given; without it, whole weights are merged.
    OPTIONAL_DELTA = "optional; if given, task vectors are taken from it"

    @property
    def required(self) -> bool:
        """Whether there must be one."""
        return self in (Base.ENDPOINT, Base.DELTA)

    @property
    def delta(self) -> bool:
        """Whether a given base is subtracted from the models."""
        return self in (Base.DELTA, Base.OPTIONAL_DELTA)


@dataclass(frozen=True, slots=True)
class Whole:
    """What a method may know about a whole tensor before it sees an element.

    Attributes:
        num_models: m.
        shape: of the tensor.
        noise: its random numbers.
        of_model: what was measured over all tensors together, for methods that want it.
    """

    num_models: int
    shape: tuple[int, ...]
    noise: Noise
    of_model: Any = None

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def num_columns(self) -> int:
        """Elements of a row, the last dimension; a tensor of one dimension or none is a single row."""
        return self.shape[-1] if self.shape else 1


@dataclass(frozen=True, slots=True)
class TileNoise:
    """The random numbers of a tile's elements."""

    noise: Noise
    start: int
    n: int

    def keep(self, model: int, density: float) -> np.ndarray:
        """Which elements of a model's tile to keep: bool `[n]`."""
        return self.noise.keep(model, self.start, self.n, density)

    def keep_bits(self, model: int, density: float) -> np.ndarray:
        """The same as bits: uint8 `[n / 8]`, the highest bit of a byte first."""
        return self.noise.keep_bits(model, self.start, self.n, density)


def always(**_: object) -> bool:
    """Whatever the parameters are."""
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A merge method as declared by its file.

    Attributes:
        name: YAML name, file name and test id.
        function: the mathematics; its docstring is the documentation (`meldkit methods NAME`).
        parameters: declared parameters.
        base: what `base_model` means.
        num_models: fewest and most models, the base not counted unless it is one; None = no limit.
        paper: arXiv identifier or empty.
        check_values: raises ValueError where parameters, valid one by one, make no sense together.
        is_copy: whether, with these parameters, the result is the only input itself.
        by_rows: whether, with these parameters, tiles must consist of whole rows (`Whole.num_columns`).
        measure_model: what must be measured over all tensors together, `measure_model(whole, **parameters)`
            where `whole` is all of them one after the other; the parameters must then be the same for all.
        model_parameters: names of the parameters that `measure_model` looks at.
        random: whether `function` draws numbers: it is then also given `noise`, a `TileNoise`.
        shows_nonfinite: whether NaN or Inf in any input gives NaN or Inf in the result, whatever the
            parameters: inputs need not be looked at then.
        positional: whether `function` is also given `start`, the tile's first element.
        fuses: whether, with these parameters, `function` and what is measured do with tiles only what
            `meldkit.kernels` offers, and so work with those that are not there yet (`kernels.Tile`).
        takes_arrays: whether they ask for the numbers of such tiles as arrays: tiles are smaller then.
    """

    name: str
    function: Callable[..., Any]
    parameters: tuple[Parameter, ...] = ()
    base: Base = Base.DONOR
    num_models: tuple[int, int | None] = (1, None)
    paper: str = ""
    check_values: Callable[..., object] | None = None
    is_copy: Callable[..., bool] | None = None
    by_rows: Callable[..., bool] | None = None
    measure_model: Callable[..., Statistic | None] | None = None
    model_parameters: tuple[str, ...] = ()
    random: bool = False
    shows_nonfinite: bool = False
    positional: bool = False
    fuses: Callable[..., bool] | None = None
    takes_arrays: bool = False

    shape: str = field(default="elementwise", init=False)

    @property
    def summary(self) -> str:
        """First line of the documentation; "" if there is none, as methods of others may have it."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    def arguments(self, values: Values) -> dict[str, Any]:
        """The resolved parameters by the names of the Python arguments."""
        return {p.argument: values[p.name] for p in self.parameters}

    def check(self, values: Values) -> None:
        """Check the parameters of one tensor together.

        Raises:
            ValueError: they make no sense together; the message names them.
        """
        if self.check_values is not None:
            self.check_values(**self.arguments(values))

    def copies(self, values: Values) -> bool:
        """Whether the result is the only input itself, so that its bytes can be copied."""
        return self.is_copy is not None and self.is_copy(**self.arguments(values))

    def grain(self, whole: Whole, values: Values) -> int:
        """Starts and lengths of tiles, in elements, are multiples of this; the last one may be shorter."""
        return whole.num_columns if self._wants_rows(values) else CHUNK

    def _wants_rows(self, values: Values) -> bool:
        return self.by_rows is not None and self.by_rows(**self.arguments(values))

    def works_on_tiles(self, values: Values) -> bool:
        """Whether, with these parameters, tiles may be such as are not there yet."""
        return self.fuses is not None and self.fuses(**self.arguments(values))

    def model_statistic(self, whole: Whole, values: Values) -> Statistic | None:
        """What must be measured over all tensors together before any is merged; None if nothing."""
        return None if self.measure_model is None else self.measure_model(whole, **self.arguments(values))

    def statistic(self, whole: Whole, values: Values) -> Statistic | None:
        """What must be measured over the whole tensor before a tile can be merged; None if nothing.

        Args:
            whole: the tensor.
            values: resolved parameters.
        """
        del whole, values

    def apply(self, x: Rows, values: Values, measured: Any, whole: Whole, start: int) -> Numbers:
        """Merge one tile.

        Args:
            x: weights, or task vectors under a delta policy; may be overwritten.
            values: resolved parameters.
            measured: result of `statistic`, None if there is none.
            whole: the tensor that the tile is part of.
            start: first element of the tile.

        Returns:
            The merged tile, possibly a view of `x`.
        """
        arguments = self.arguments(values)
        if self.random:
            arguments["noise"] = TileNoise(whole.noise, start, x.shape[1])
        if self.positional:
            arguments["start"] = start
        if self._wants_rows(values):
            arguments["num_columns"] = whole.num_columns
        return self._merge(x, measured, arguments)

    def _merge(self, x: Rows, measured: Any, arguments: dict[str, Any]) -> Numbers:
        raise NotImplementedError  # pragma: no cover - every shape below implements it


@dataclass(frozen=True, slots=True, kw_only=True)
class Elementwise(Method):
    """`function(x, **parameters)` on tiles."""

    def _merge(self, x: Rows, measured: Any, arguments: dict[str, Any]) -> Numbers:
        del measured
        return self.function(x, **arguments)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spanned(Method):
    """`function(gram, **parameters)` gives the coefficients c of the merged vector Σ c_i x_i."""

    fuses: Callable[..., bool] = field(default=always, init=False)

    shape: str = field(default="spanned", init=False)

    def statistic(self, whole: Whole, values: Values) -> Statistic:
        def coefficients(gram: Float64[np.ndarray, "m m"]) -> Sequence[float]:
            return self.function(gram, **self.arguments(values))

        return Gram(whole.num_models, whole.numel, coefficients)

    def _merge(self, x: Rows, measured: Any, arguments: dict[str, Any]) -> Numbers:
        del arguments
        return kernels.combine(x, measured)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured(Method):
    """`function(x, measured, **parameters)` on tiles, after `measure(whole, **parameters)`."""

    measure: Callable[..., Statistic | None]

    shape: str = field(default="measured", init=False)

    def statistic(self, whole: Whole, values: Values) -> Statistic | None:
        return self.measure(whole, **self.arguments(values))

    def _merge(self, x: Rows, measured: Any, arguments: dict[str, Any]) -> Numbers:
        return self.function(x, measured, **arguments)


def subtract_base(x: Float32[Tensor, "m n"], base: Float32[Tensor, " n"]) -> None:
    """Turn weights into task vectors, in place."""
    torch.sub(x, base, out=x)
