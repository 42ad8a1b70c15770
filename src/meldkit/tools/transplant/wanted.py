"""What is asked of a transplantation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

from meldkit.errors import RecipeError
from meldkit.recipe import ModelRef
from meldkit.recipe.write import to_yaml_text
from meldkit.tools.transplant.names import METHODS, PLACES, SUBWORD_METHODS, WEIGHT_SCHEMES

#: Options of some methods only, and theirs.
_OF_METHODS = {
    "k": ("--k", ("omp", "common_interpolation", "stb", "mp_rope")),
    "weight_scheme": ("--weight-scheme", ("common_interpolation",)),
    "cosine": ("--cosine-similarity", ("common_interpolation",)),
    "subword": ("--subword-method", ("subword",)),
}


@dataclass(frozen=True, slots=True)
class Transplant:
    """What is wanted.

    Attributes:
        model: gets another tokenizer.
        donor: gives it.
        method: how rows of tokens that the model lacks are made; a name in `names.METHODS`.
        k: tokens that such a row is made of, for omp, common_interpolation, stb and mp_rope.
        weight_scheme, cosine: of common_interpolation.
        subword: of subword: "mean", "sum", "weighted_mean" or "first_last".
        prefix_match, byte_match: in which tables tokens match by what they begin with, or bytes letters.
        magikarp: leave tokens aside that seem untrained.
        noise, scale: new rows are (x + noise · N(0, 1)) · scale.
        batch_size: rows at once; None for as many as there is room for.
        pad_to_multiple_of: add rows until there are a multiple of so many.
    """

    model: ModelRef
    donor: ModelRef
    method: str = "omp"
    k: int = 64
    weight_scheme: str = "distance_proportional"
    cosine: bool = False
    subword: str = "mean"
    prefix_match: str = "no"
    byte_match: str = "no"
    magikarp: bool = False
    noise: float = 0.0
    scale: float = 1.0
    batch_size: int | None = None
    pad_to_multiple_of: int = 1

    @classmethod
    def of(cls, model: str, donor: str, **others: Any) -> Transplant:
        """The same, with models as recipes name them."""
        return cls(ModelRef.parse(model), ModelRef.parse(donor), **others)

    def text(self) -> str:
        """The same as YAML."""
        return to_yaml_text(asdict(self) | {"model": self.model.to_value(), "donor": self.donor.to_value()})


def check(wanted: Transplant) -> None:
    """Raise RecipeError for numbers and names that make no sense."""
    for value, known, option in (
        (wanted.method, METHODS, "--approximation-method"),
        (wanted.weight_scheme, WEIGHT_SCHEMES, "--weight-scheme"),
        (wanted.subword, SUBWORD_METHODS, "--subword-method"),
        (wanted.prefix_match, PLACES, "--prefix-match"),
        (wanted.byte_match, PLACES, "--byte-match"),
    ):
        if value not in known:
            raise RecipeError(f"{option} is '{value}'", hint=f"one of {', '.join(known)}")
    if wanted.k < 1:
        raise RecipeError(f"--k is {wanted.k}", hint="it is 1 or more; 64 is usual")
    if wanted.pad_to_multiple_of < 1:
        raise RecipeError(f"--pad-to-multiple-of is {wanted.pad_to_multiple_of}", hint="such as 64")


def idle(wanted: Transplant) -> Iterator[str]:
    """Warnings about options that the method does not look at."""
    usual = {field.name: field.default for field in fields(Transplant)}
    for name, (option, methods) in _OF_METHODS.items():
        if wanted.method not in methods and getattr(wanted, name) != usual[name]:
            yield f"{option} has no effect with {wanted.method}, only with {', '.join(methods)}"
