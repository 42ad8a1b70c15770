"""The canonical form of a recipe: what every way of writing one is reduced to.

    Recipe    a merged model
      Module    a part of it, such as the text decoder
        Slice     a run of its layers
          Source    one model's share of those

`models:` becomes one slice whose sources have no layer range; a recipe without `modules:` has one module
without a name. Where something stood in the file is kept for messages, and plays no part in comparisons.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from meldkit.recipe.refs import ModelRef
from meldkit.recipe.values import Filtered, Value, choices
from meldkit.recipe.write import recipe_to_yaml

#: Ways of merging that only adapters have, and what they do.
ADAPTER_METHODS: Mapping[str, str] = {
    "cat": "The sum of adapters, exactly, as an adapter whose rank is the sum of theirs.",
    "svd": "The sum of adapters, brought to a rank by its largest singular values.",
}


@dataclass(frozen=True, slots=True)
class Setting:
    """A parameter as it was written.

    Attributes:
        value: what was written.
        where: "recipe.yml:12"; "" for Python data.
        entries: the same for each entry of a list of filters.
    """

    value: Value
    where: str = field(default="", compare=False)
    entries: tuple[str, ...] = field(default=(), compare=False)

    def line_for(self, tensor_name: str) -> tuple[str, str | None]:
        """Where the value for a tensor stands, and the filter that chose it; None if none did."""
        found = choices(self.value, tensor_name)
        if not isinstance(self.value, Filtered) or found == (-1,):
            return self.where, None
        return self.entries[found[0]] if self.entries else self.where, self.value.entries[found[0]][0]


Parameters: TypeAlias = Mapping[str, Setting]
"""Parameters of one scope by name, in file order."""


@dataclass(frozen=True, slots=True)
class Source:
    """One model's share of a slice; `layer_range` is half-open and counts from 0, None is all layers."""

    model: ModelRef
    layer_range: tuple[int, int] | None = None
    parameters: Parameters = field(default_factory=dict[str, Setting])
    where: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Slice:
    """A run of output layers; all sources with a layer range have ranges of equal length.

    `base_model` replaces the recipe's own for these layers; None leaves that in force.
    """

    sources: tuple[Source, ...]
    base_model: ModelRef | None = None
    parameters: Parameters = field(default_factory=dict[str, Setting])
    where: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Module:
    """A part of the output model, such as its text decoder; `name` is None in recipes without `modules:`.

    `from_models` says that it was written as `models:`: one slice, all layers of every model.
    """

    name: str | None
    slices: tuple[Slice, ...]
    parameters: Parameters = field(default_factory=dict[str, Setting])
    where: str = field(default="", compare=False)
    from_models: bool = False


@dataclass(frozen=True, slots=True)
class ModelToken:
    """The embedding of one token of one model, given by its text or its id; exactly one is set."""

    model: ModelRef
    token: str | None = None
    token_id: int | None = None


@dataclass(frozen=True, slots=True)
class TokenEntry:
    """Where a token's embedding comes from in models that lack it; None leaves the choice to the default.

    With `force`, models that have the token take this embedding too. `where` is "recipe.yml:12".
    """

    source: ModelRef | ModelToken | Literal["zero"] | None = None
    force: bool = False
    where: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class TokenizerSpec:
    """The tokenizer of the output: every token of all models, the base's tokens, or those of one model.

    Attributes:
        source: whose vocabulary.
        tokens: where embeddings come from, for single tokens.
        pad_to_multiple_of: number of embedding rows is rounded up to a multiple of this.
        where: "recipe.yml:12".
    """

    source: Literal["union", "base"] | ModelRef = "union"
    tokens: Mapping[str, TokenEntry] = field(default_factory=dict[str, TokenEntry])
    pad_to_multiple_of: int | None = None
    where: str = field(default="", compare=False)


#: The `origin` of recipes that a command has made: what they leave out is meant to be left out.
GENERATED = "the recipe of this command"


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole recipe.

    Attributes:
        merge_method: as written; whether it exists is for the planner to say.
        modules: at least one.
        base_model: the model that others are compared with, where the method needs one.
        parameters: those that hold for the whole recipe.
        dtype: type of the output tensors, as torch calls it; None keeps each tensor's own.
        out_dtype: the same, and wins over `dtype`.
        tokenizer: None copies the base's (else the first model's) tokenizer.
        chat_template: "auto", the name of a preset, or Jinja text; None keeps the donor's.
        compat: "mergekit" for mergekit's numerics, else None.
        name: what other recipes of the same file call this merge.
        stages: the recipes that it and its stages merge the results of, by name, each after those that it
            uses itself; they have none of their own.
        warnings: what was accepted although it has no effect, one sentence each, beginning with the place.
        astray: parameters that stand where they have no effect, and the first such place of each.
        origin: name of the file; "" for Python data.
        lines: "recipe.yml:8" for each top-level key.
    """

    merge_method: str
    modules: tuple[Module, ...]
    base_model: ModelRef | None = None
    parameters: Parameters = field(default_factory=dict[str, Setting])
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer: TokenizerSpec | None = None
    chat_template: str | None = None
    compat: str | None = None
    name: str | None = None
    stages: Mapping[str, Recipe] = field(default_factory=dict[str, "Recipe"])
    warnings: tuple[str, ...] = field(default=(), compare=False)
    astray: Mapping[str, str] = field(default_factory=dict[str, str], compare=False)
    origin: str = field(default="", compare=False)
    lines: Mapping[str, str] = field(default_factory=dict[str, str], compare=False)

    def models(self) -> tuple[ModelRef, ...]:
        """Every model whose weights take part, once each: sources in file order, then other bases."""
        return tuple(dict.fromkeys(self._mentions()))

    def stage_of(self, ref: ModelRef) -> Recipe | None:
        """The stage that a reference names; None if it is that of a model."""
        return self.stages.get(ref.path) if ref.revision is None else None

    def stored_models(self) -> list[ModelRef]:
        """Every model whose weights take part, those of stages after its own; stages are none."""
        found = [ref for part in (self, *self.stages.values()) for ref in part.models()]
        return [ref for ref in dict.fromkeys(found) if self.stage_of(ref) is None]

    def _mentions(self) -> Iterator[ModelRef]:
        slices = [part for module in self.modules for part in module.slices]
        for part in slices:
            for source in part.sources:
                yield source.model
        for part in slices:
            if part.base_model is not None:
                yield part.base_model
        if self.base_model is not None:
            yield self.base_model

    def to_yaml(self) -> str:
        """The recipe as YAML in a fixed order and style; reading it back gives an equal recipe."""
        return recipe_to_yaml(self)
