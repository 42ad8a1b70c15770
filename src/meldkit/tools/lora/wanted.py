"""What is asked of an extraction."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from meldkit.errors import RecipeError, nearest
from meldkit.recipe import ModelRef
from meldkit.recipe.write import to_yaml_text


@dataclass(frozen=True, slots=True)
class Extraction:
    """What to extract.

    Attributes:
        model: the fine-tuned model.
        base: what it was trained from.
        max_rank: largest rank of a matrix.
        epsilon: singular values up to this are left out; 0 leaves out none.
        keep: share of the square of each change that is kept, if fewer singular values do; None for all.
        distribute_scale: whether both factors carry the root of the singular values; else A carries them.
        embed_lora: factor the change of embeddings too; else they are stored as they are.
        save: names of modules, or their last parts, that are stored as they are.
        exclude, include: regular expressions of modules.
        skip_others: leave out what cannot be factored, such as norms; else it is stored as it is.
        exact: find all singular values, whatever that takes; None for small matrices only.
        dtype: of the factors, as torch calls it.
    """

    model: ModelRef
    base: ModelRef
    max_rank: int = 128
    epsilon: float = 0.0
    keep: float | None = None
    distribute_scale: bool = True
    embed_lora: bool = False
    save: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    skip_others: bool = False
    exact: bool | None = None
    dtype: str = "float32"

    @classmethod
    def of(cls, model: str, base: str, **others: Any) -> Extraction:
        """The same, with models as recipes name them."""
        return cls(ModelRef.parse(model), ModelRef.parse(base), **others)

    def text(self) -> str:
        """The same as YAML."""
        models = {"model": self.model.to_value(), "base": self.base.to_value()}
        lists = {name: list(getattr(self, name)) for name in ("save", "exclude", "include")}
        return to_yaml_text(asdict(self) | models | lists)

    def chooses(self, module: str) -> bool:
        """Whether a module is looked at."""
        if self.include and not any(re.search(text, module) for text in self.include):
            return False
        return not any(re.search(text, module) for text in self.exclude)

    def saves(self, module: str) -> bool:
        """Whether a module is to be stored as it is, if it has changed."""
        return any(_ends(module, text) for text in self.save)


def _ends(module: str, text: str) -> bool:
    return f".{module}".endswith(f".{text}")


def check(wanted: Extraction) -> None:
    """Raise RecipeError for numbers and expressions that make no sense."""
    if wanted.max_rank < 1:
        raise RecipeError(f"the largest rank is {wanted.max_rank}", hint="it is 1 or more, such as 32")
    if wanted.keep is not None and not 0 < wanted.keep <= 1:
        raise RecipeError(f"{wanted.keep} of each change cannot be kept", hint="--keep is a share up to 1")
    if not 0 <= wanted.epsilon < math.inf:
        raise RecipeError(
            f"--sv-epsilon is {wanted.epsilon}",
            hint="singular values up to this are left out: 0, which leaves out none, or more",
        )
    for text in (*wanted.include, *wanted.exclude):
        _check_expression(text)


def _check_expression(text: str) -> None:
    try:
        re.compile(text)
    except re.error as e:
        raise RecipeError(
            f"'{text}' is no regular expression: {e}", hint="it is searched for in the names of modules"
        ) from None


def unmatched(wanted: Extraction, modules: Sequence[str]) -> Iterator[str]:
    """Warnings about names and expressions that fit none of a model's modules."""
    for text in wanted.save:
        if not any(_ends(module, text) for module in modules):
            near = nearest(text, dict.fromkeys([*(m.rpartition(".")[2] for m in modules), *modules]))
            yield f"--save-module {text}: no module is called so" + (
                f"; did you mean '{near}'?" if near else ""
            )
    for option, texts in (("include", wanted.include), ("exclude", wanted.exclude)):
        for text in texts:
            if not any(re.search(text, module) for module in modules):
                yield f"--{option}-regex '{text}' fits no module"
