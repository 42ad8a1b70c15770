"""From the dialect to the canonical Recipe: one form for `models:`, `slices:` and `modules:`, and the checks
that need to see more than one field at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from meldkit.errors import RecipeError
from meldkit.recipe.model import (
    Module,
    Parameters,
    Recipe,
    Setting,
    Slice,
    Source,
    TokenEntry,
    TokenizerSpec,
)
from meldkit.recipe.problem import DataPath
from meldkit.recipe.source import Document
from meldkit.recipe.values import Filtered, Value

if TYPE_CHECKING:
    from meldkit.recipe.sections import (
        Configuration,
        InputModel,
        OutputModule,
        OutputSlice,
        Section,
        SliceSource,
    )

# Settings of the whole recipe that are often written among the parameters, where mergekit never looks.
_NOT_PARAMETERS = ("dtype", "out_dtype")


def to_recipe(config: Configuration, document: Document) -> Recipe:
    """The canonical form of a configuration.

    Args:
        config: validated field by field.
        document: the data it was read from, for the places of things.

    Raises:
        RecipeError: fields that contradict each other; the message begins with the place.
    """
    return _Canonical(document).recipe(config)


class _Canonical:
    def __init__(self, document: Document) -> None:
        self.document = document
        self.warnings: list[tuple[int, str]] = []
        self.astray: dict[str, str] = {}

    def recipe(self, config: Configuration) -> Recipe:
        self.note_unused(config, ())
        tokenizer = self.tokenizer(config)
        self.only_one((), models=config.models, slices=config.slices, modules=config.modules)
        if config.modules is not None:
            modules = [self.module(name, part, ("modules", name)) for name, part in config.modules.items()]
        else:
            slices, from_models = self.layers(config, ())
            modules = [Module(None, slices, {}, self.document.where(()), from_models)]
        top = [path[0] for path in self.document.lines if len(path) == 1]
        return Recipe(
            merge_method=config.merge_method,
            modules=tuple(modules),
            base_model=config.base_model,
            parameters=self.parameters(config.parameters, ()),
            dtype=config.dtype,
            out_dtype=config.out_dtype,
            tokenizer=tokenizer,
            chat_template=config.chat_template,
            compat=config.compat,
            name=config.name,
            warnings=tuple(message for _, message in sorted(self.warnings, key=lambda each: each[0])),
            astray=self.astray,
            origin=self.document.origin,
            lines={str(key): self.document.where((key,)) for key in top},
        )

    def module(self, name: str, part: OutputModule, path: DataPath) -> Module:
        self.note_unused(part, path)
        self.only_one(path, models=part.models, slices=part.slices)
        slices, from_models = self.layers(part, path)
        parameters = self.parameters(part.parameters, path)
        return Module(name, slices, parameters, self.document.where(path), from_models)

    def layers(self, part: Configuration | OutputModule, path: DataPath) -> tuple[tuple[Slice, ...], bool]:
        """The slices of a part, and whether it was written as `models:`."""
        if part.models is not None:
            path = (*path, "models")
            sources = [self.source(model, (*path, index)) for index, model in enumerate(part.models)]
            return (Slice(tuple(sources), None, {}, self.document.where(path)),), True
        path = (*path, "slices")
        return tuple(self.slice(each, (*path, index)) for index, each in enumerate(part.slices or ())), False

    def slice(self, part: OutputSlice, path: DataPath) -> Slice:
        self.note_unused(part, path)
        sources = [
            self.source(source, (*path, "sources", index)) for index, source in enumerate(part.sources)
        ]
        self.equal_lengths(part, path)
        parameters = self.parameters(part.parameters, path)
        return Slice(tuple(sources), part.base_model, parameters, self.document.where(path))

    def source(self, part: InputModel | SliceSource, path: DataPath) -> Source:
        self.note_unused(part, path)
        parameters = self.parameters(part.parameters, path)
        return Source(part.model, part.layers(), parameters, self.document.where(path))

    def parameters(self, values: Mapping[str, Value], path: DataPath) -> Parameters:
        settings: dict[str, Setting] = {}
        for key, value in values.items():
            place = (*path, "parameters", key)
            if key in _NOT_PARAMETERS:
                self.warn(place, f"'{key}' here has no effect; write it at the top level of the recipe")
            else:
                settings[key] = Setting(value, self.document.where(place), self._entries(value, place))
        return settings

    def _entries(self, value: Value, place: DataPath) -> tuple[str, ...]:
        """Where each of a list of filters stands; nothing if there is no list, or it is not from a file."""
        if not isinstance(value, Filtered) or (*place, 0) not in self.document.lines:
            return ()
        return tuple(self.document.where((*place, index)) for index in range(len(value.entries)))

    def tokenizer(self, config: Configuration) -> TokenizerSpec | None:
        section, source = config.tokenizer, config.tokenizer_source
        if section is not None and source is not None:
            places = self.document.place(("tokenizer",)), self.document.place(("tokenizer_source",))
            raise RecipeError(
                f"{places[1]}: 'tokenizer_source' and 'tokenizer' ({places[0]}) are both given",
                hint="'tokenizer: {source: ...}' says all that 'tokenizer_source' can; keep that one",
            )
        if source is not None:
            return TokenizerSpec(source, where=self.document.where(("tokenizer_source",)))
        if section is None:
            return None
        tokens = {
            token: TokenEntry(entry.source, entry.force, self.document.where(("tokenizer", "tokens", token)))
            for token, entry in (section.tokens or {}).items()
        }
        where = self.document.where(("tokenizer",))
        return TokenizerSpec(section.source or "union", tokens, section.pad_to_multiple_of, where)

    def only_one(self, path: DataPath, **choices: object) -> None:
        """Exactly one of the keys must have a value."""
        given = [key for key, value in choices.items() if value is not None]
        if len(given) == 1:
            return
        quoted = [f"'{key}'" for key in (given or choices)]
        listed = ", ".join(quoted[:-1]) + (" and " if given else " or ") + quoted[-1]
        if not given:
            raise RecipeError(
                self.at(path, f"{listed} is missing"), hint="list the models to merge, below 'models:'"
            )
        places = [(*path, key) for key in given]
        last = max(places, key=lambda place: self.document.lines.get(place, 0))
        raise RecipeError(self.at(last, f"{listed} cannot stand together"), hint="keep exactly one of them")

    def equal_lengths(self, part: OutputSlice, path: DataPath) -> None:
        """All sources of a slice contribute to the same layers, so they must have equally many."""
        ranges = [source.layer_range for source in part.sources]
        (start, end), *others = ranges
        for index, (a, b) in enumerate(others, start=1):
            if b - a != end - start:
                first, this = ((*path, "sources", i, "layer_range") for i in (0, index))
                message = (
                    f"layer_range [{a}, {b}] has {_layers(b - a)}, but [{start}, {end}]"
                    f" of the same slice ({self.document.place(first)}) has {_layers(end - start)}"
                )
                raise RecipeError(
                    self.at(this, message), hint="all sources of a slice need equally many layers"
                )

    def note_unused(self, section: Section, path: DataPath) -> None:
        for key, advice in section.unused_keys():
            self.astray.setdefault(key, self.document.place((*path, key)))
            self.warn((*path, key), f"'{key}' here has no effect" + (f"; {advice}" if advice else ""))

    def warn(self, path: DataPath, message: str) -> None:
        self.warnings.append((self.document.lines.get(path, 0), self.at(path, message)))

    def at(self, path: DataPath, message: str) -> str:
        place = self.document.place(path)
        return f"{place}: {message}" if place else message


def _layers(count: int) -> str:
    return "1 layer" if count == 1 else f"{count} layers"
