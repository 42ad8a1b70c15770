"""A recipe to begin with: every parameter explained, with values that make sense for the models."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from meldkit.checkpoint import BY_TORCH_NAME, Checkpoint, open_model
from meldkit.errors import MeldError, RecipeError
from meldkit.methods import Base, Method, Parameter, Value, get_method
from meldkit.methods.describe import default_text, values_text
from meldkit.plan import build_plan
from meldkit.recipe import ModelRef, parse_recipe
from meldkit.recipe.dtypes import DTYPES
from meldkit.recipe.write import to_yaml_text
from meldkit.report.headers import Header, read_header, vocabularies_differ

_WIDTH = 80
#: Layers of a model that cannot be opened, and its type: what most models of 7 and 8 billion parameters have.
_LAYERS = 32
_DTYPE = "bfloat16"


@dataclass(frozen=True, slots=True)
class Draft:
    """A recipe with comments.

    Attributes:
        text: of the file.
        warnings: what is not as it should be, one sentence each; they stand in the text too.
    """

    text: str
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Starts:
    """Values to begin with, instead of those that the method declares, and why the method was chosen.

    Attributes:
        values: by parameter, the value and the reason for it.
        reasons: for the method, one sentence each.
    """

    values: Mapping[str, tuple[Value, str]] = field(default_factory=dict[str, tuple[Value, str]])
    reasons: tuple[str, ...] = ()


def draft_recipe(
    method: str,
    models: Sequence[str | ModelRef],
    *,
    base: str | ModelRef | None = None,
    slices: bool = False,
    name: str = "recipe.yml",
    schema: str | None = None,
    starts: Starts | None = None,
    cache: Path | None = None,
) -> Draft:
    """Write a recipe; models are opened where they can be, and only their headers are read.

    Args:
        method: as in `merge_method`.
        models: as recipes name them; the first one is the base if the method needs one.
        base: the base model, if it is not the first one.
        slices: write `slices:` with all layers, or for passthrough, a stack of layers of all models.
        name: of the file that it will be, for its comments.
        schema: where an editor finds the JSON Schema of recipes, seen from the file.
        starts: values that were chosen for these models.
        cache: where downloads are kept; None for the hub's own cache.

    Raises:
        RecipeError: no such method, or it does not take so many models.
    """
    chosen = get_method(method)
    refs = [_ref(model) for model in models]
    roles = _roles(chosen, refs, None if base is None else _ref(base))
    headers = {ref: read_header(ref, cache) for ref in roles.models}
    writer = _Writer(chosen, roles, headers, starts or Starts(), name, schema)
    stacked = chosen.num_models == (1, 1) and not chosen.base.delta and (slices or len(roles.sources) > 1)
    body = "\n".join(writer.body(slices=slices or stacked, stacked=stacked)) + "\n"
    warnings = [f"'{h.ref}' was not looked at: {h.problem}" for h in headers.values() if h.problem]
    if not warnings:
        warnings += _verdict(body, headers, name)
    head = "\n".join(writer.head(warnings))
    return Draft(f"{head}\n\n{body}", tuple(warnings))


def _ref(model: str | ModelRef) -> ModelRef:
    return model if isinstance(model, ModelRef) else ModelRef.parse(model)


@dataclass(frozen=True, slots=True)
class _Roles:
    """The models in the roles that the method gives them.

    Attributes:
        base: what `base_model` names.
        sources: what `models` lists.
        count: how many the method merges.
    """

    base: ModelRef | None
    sources: tuple[ModelRef, ...]
    count: int

    @property
    def models(self) -> tuple[ModelRef, ...]:
        """All of them, once each, the base first."""
        return tuple(dict.fromkeys([*([self.base] if self.base else []), *self.sources]))


def _roles(method: Method, refs: Sequence[ModelRef], base: ModelRef | None) -> _Roles:
    given = len(refs) + (base is not None)
    if method.base.required and base is None and refs:
        base, *refs = refs
    sources = tuple(refs)
    if base is not None:
        if method.base.delta:
            sources = tuple(ref for ref in refs if ref != base)
        elif method.base is Base.ENDPOINT:
            sources = (base, *(ref for ref in refs if ref != base))
        elif method.base is Base.MEMBER and base not in refs:
            sources = (*refs, base)
    low, high = method.num_models
    stacks = (low, high) == (1, 1) and not method.base.delta
    few = len(sources) < low or (method.base.required and base is None)
    if few or (high is not None and len(sources) > high and not stacks):
        models = "MODEL " * (low - (method.base is Base.ENDPOINT)) + ("MODEL …" if high is None else "")
        raise RecipeError(
            f"{method.name} takes {_wanted(method)}, got {given}",
            hint=f"meldkit new {method.name} {'BASE ' * method.base.required}{models.strip()}",
        )
    return _Roles(base, sources, len(sources))


def _wanted(method: Method) -> str:
    """How many models a method takes, such as "a base and 1 or more models"."""
    low, high = method.num_models
    count = f"{low}" if low == high else f"{low} to {high}" if high else f"{low} or more"
    return f"{'a base and ' * (method.base is Base.DELTA)}{count} model{'s' * (high != 1)}"


def _verdict(text: str, headers: Mapping[ModelRef, Header], name: str) -> list[str]:
    """What planning the recipe has to say about it."""

    def opened(ref: ModelRef) -> Checkpoint:
        header = headers.get(ref)
        return header.checkpoint if header and header.checkpoint else open_model(ref, headers_only=True)

    try:
        return list(build_plan(parse_recipe(text, name), opened).warnings)
    except MeldError as e:
        return [f"it cannot be merged as it is: {e.message}"]


class _Writer:
    def __init__(
        self,
        method: Method,
        roles: _Roles,
        headers: Mapping[ModelRef, Header],
        starts: Starts,
        name: str,
        schema: str | None,
    ) -> None:
        self.method = method
        self.roles = roles
        self.headers = headers
        self.starts = starts
        self.name = name
        self.schema = schema
        own = [p for p in method.parameters if not p.of_recipe]
        self.shared = [p for p in own if not p.per_model]
        self.of_model = [p for p in own if p.per_model]

    def head(self, warnings: Sequence[str]) -> Iterator[str]:
        method = self.method
        if self.schema:
            yield f"# yaml-language-server: $schema={self.schema}"
        yield from _comment(f"{method.name}: {method.summary}")
        more = f"More: meldkit methods {method.name}"
        paper = f"Paper: https://arxiv.org/abs/{method.paper}. " if method.paper else ""
        yield from _comment(paper + more)
        for reason in self.starts.reasons:
            yield from _comment(f"Why: {reason}")
        yield "#"
        yield from _comment(f"See what it does:  meldkit plan {self.name}")
        yield from _comment(f"Merge:             meldkit merge {self.name} OUT")
        if warnings:
            yield "#"
        for warning in warnings:
            yield from _comment(f"Warning: {warning}")

    def body(self, *, slices: bool, stacked: bool) -> Iterator[str]:
        if slices:
            yield from self.stack() if stacked else self.slice()
        else:
            yield "models:"
            for index, ref in enumerate(self.roles.sources):
                yield from self.source(ref, 2, first=index == self.first)
        yield ""
        yield f"merge_method: {self.method.name}"
        if self.roles.base is not None:
            yield ""
            yield from _comment(_sentence(self.method.base.value))
            yield from _entry("base_model", self.roles.base.to_value())
        if self.shared:
            yield ""
            yield "parameters:"
            yield from self.block(self.shared, 2, gradient=slices)
        yield ""
        yield from self.dtype()
        yield from self.tokenizer()

    @property
    def first(self) -> int:
        """The source whose parameters are explained: the base has none, except where it is merged."""
        return int(self.method.base.delta and self.roles.sources[0] == self.roles.base)

    def source(
        self,
        ref: ModelRef,
        indent: int,
        *,
        first: bool,
        layers: tuple[int, int] | None = None,
        gradient: bool = False,
    ) -> Iterator[str]:
        """An entry of `models:` or `sources:`; parameters are explained in the first one."""
        lines = list(_entry("model", ref.to_value(), indent + 2))
        yield " " * indent + "- " + lines[0].lstrip()
        yield from lines[1:]
        if layers is not None:
            yield from _entry("layer_range", list(layers), indent + 2)
        given = [p for p in self.of_model if first or self.start(p)[0] is not None]
        if given and not (self.method.base.delta and ref == self.roles.base):
            yield " " * (indent + 2) + "parameters:"
            yield from self.block(given, indent + 4, explained=first, gradient=gradient)

    def slice(self) -> Iterator[str]:
        """All layers of all models in one slice."""
        refs = list(self.roles.sources)
        if self.method.base.delta and self.roles.base is not None:
            refs.insert(0, self.roles.base)
        depths = [self.depth(ref) for ref in refs]
        yield from _comment("Runs of layers, from the first to the last; more slices may follow.")
        yield from self.guessed()
        if len(set(depths)) > 1:
            yield from _comment(f"The models have {_listed(sorted(set(depths)))} layers.")
        yield "slices:"
        yield "  - sources:"
        explained = len(refs) - len(self.roles.sources)
        for index, ref in enumerate(refs):
            yield from self.source(ref, 6, first=index == explained, layers=(0, min(depths)), gradient=True)

    def stack(self) -> Iterator[str]:
        """Layers of the models one after the other, as SOLAR stacks a model on itself."""
        refs = self.roles.sources * (2 if len(self.roles.sources) == 1 else 1)
        yield from _comment(
            "Layers one after the other. Where two runs meet, a quarter of each model is left out, as in "
            "SOLAR (https://arxiv.org/abs/2312.15166); such a model needs training before it is of use."
        )
        yield from self.guessed()
        yield "slices:"
        for index, ref in enumerate(refs):
            depth = self.depth(ref)
            start = 0 if index == 0 else depth // 4
            end = depth if index == len(refs) - 1 else depth - depth // 4
            yield "  - sources:"
            yield from self.source(ref, 6, first=index == 0, layers=(start, end))

    def depth(self, ref: ModelRef) -> int:
        return self.headers[ref].num_layers or _LAYERS

    def guessed(self) -> Iterator[str]:
        unknown = [f"'{ref}'" for ref, header in self.headers.items() if header.num_layers is None]
        if unknown:
            yield from _comment(f"How many layers {_listed(unknown)} has is not known; {_LAYERS} is a guess.")

    def start(self, p: Parameter) -> tuple[Value | None, str]:
        """The value that a parameter begins with, and why; None for the default."""
        return self.starts.values.get(p.name) or (p.start_for(self.roles.count), p.reason)

    def block(
        self, parameters: Sequence[Parameter], indent: int, *, explained: bool = True, gradient: bool = False
    ) -> Iterator[str]:
        """What stands under `parameters:`."""
        for index, p in enumerate(parameters):
            if index and explained:
                yield ""
            yield from self.parameter(p, indent, explained=explained, gradient=gradient)

    def parameter(self, p: Parameter, indent: int, *, explained: bool, gradient: bool) -> Iterator[str]:
        """A parameter with what it means; one that keeps its default is a comment, ready to be changed."""
        value, reason = self.start(p)
        if explained:
            default = "required" if p.required else f"default {default_text(p)}"
            yield from _comment(f"{p.doc} {values_text(p)}; {default}.", indent)
        if value is None:
            example = 1.0 if p.default is None else p.default
            yield from (f"{' ' * indent}# {line}" for line in _entry(p.name, example))
            return
        if explained and reason:
            yield from _comment(f"{_plain(value)}: {reason}.", indent)
        graded = next(
            (q for q in (*self.shared, *self.of_model) if isinstance(self.start(q)[0], float)), None
        )
        layers = next((header.layers for header in self.headers.values() if header.layers), "layers.")
        if not gradient or p is not graded:
            yield from _entry(p.name, value, indent)
            return
        if explained:
            yield from _comment(
                "A gradient: the value at the first layer and at the last, with as many more between them as "
                "you like; the other value is for all that stands outside the layers.",
                indent,
            )
        yield from _entry(p.name, [{"filter": layers, "value": [value, value]}, {"value": value}], indent)

    def dtype(self) -> Iterator[str]:
        """The type of the base, else of the first model."""
        donor = self.headers[self.roles.models[0]]
        if donor.dtype is None:
            why = (
                "The models' own is not known" if donor.checkpoint is None else "Values are decoded when read"
            )
            yield from _comment(f"Type of the output. {why}; most models have {_DTYPE}.")
            yield f"dtype: {_DTYPE}"
            return
        others = sorted({h.dtype for h in self.headers.values() if h.dtype} - {donor.dtype})
        whose = f"that of '{donor.ref}'; others have {_listed(others)}" if others else "that of the models"
        dtype = donor.dtype if donor.dtype in DTYPES and BY_TORCH_NAME[donor.dtype].itemsize > 1 else _DTYPE
        yield from _comment(
            f"Type of the output: {whose if dtype == donor.dtype else 'what most models have'}."
        )
        yield f"dtype: {dtype}"

    def tokenizer(self) -> Iterator[str]:
        differ = vocabularies_differ(list(self.headers.values()))
        if differ is False:
            return
        yield ""
        if differ:
            yield from _comment("The models' vocabularies differ: the output gets all tokens of all of them.")
            yield from _entry("tokenizer", {"source": "union"})
        else:
            yield from _comment(
                "If the models' vocabularies differ, the output can get all tokens of all of them:"
            )
            yield "# tokenizer: {source: union}"


def _comment(text: str, indent: int = 0) -> Iterator[str]:
    margin = " " * indent + "# "
    yield from textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=margin,
        subsequent_indent=margin,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _entry(key: str, value: object, indent: int = 0) -> Iterator[str]:
    for line in to_yaml_text({key: value}).splitlines():
        yield " " * indent + line


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _plain(value: Value) -> str:
    return (
        str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else value
    )


def _listed(items: Sequence[object]) -> str:
    *head, last = map(str, items)
    return f"{', '.join(head)} and {last}" if head else last
