"""mergekit's dialect: the sections of a recipe, the keys that may stand in each, and how they are read.

All is said once. `read_section` goes by it, and so do pydantic's models in `recipe.schema`, which programs
and editors know recipes by; a merge does without them, because they take as long to make as the merge itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, ClassVar, Literal, TypeVar, cast

from meldkit.recipe import fields
from meldkit.recipe.forms import MARK, JsonSchema, one_of
from meldkit.recipe.model import ModelToken
from meldkit.recipe.problem import DataPath, Problem, check_keys
from meldkit.recipe.refs import ModelRef
from meldkit.recipe.values import Value
from meldkit.recipe.write import token_source_to_plain, tokenizer_source_to_plain


@dataclass(frozen=True, slots=True)
class Kind:
    """What stands behind a key.

    Attributes:
        read: gives the value, of the data and the key's name; raises a Problem.
        schema: what JSON Schema says of the data.
        write: the inverse of `read`; None if the value is plain data itself.
        reads_null: whether null is for `read` too; else it is what a key without a value says.
        section: what stands there, or in the list or mapping that `read` gives.
        entries: which of the two it is, if any.
    """

    read: Callable[[object, str], object]
    schema: JsonSchema
    write: Callable[[Any], object] | None = None
    reads_null: bool = False
    section: type[Section] | None = None
    entries: Literal["", "list", "mapping"] = ""


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a section.

    Attributes:
        kind: what stands behind it.
        doc: what it is for.
        default: its value where it is not given; `dict` for an empty mapping, `...` if it must be given.
        schema: what JSON Schema says of it besides.
    """

    kind: Kind
    doc: str
    default: object
    schema: JsonSchema

    @property
    def nullable(self) -> bool:
        return self.default is None and not self.kind.reads_null

    def absent(self) -> object:
        return {} if self.default is dict else self.default


def key(kind: Kind, doc: str = "", *, default: object = ..., **schema: object) -> Any:
    """Declares a key of a section; in what was read, the attribute is its value."""
    return Key(kind, doc, default, schema)


class Section:
    """A mapping of the recipe with a fixed set of keys."""

    place: ClassVar[str]
    """What messages call such a mapping."""
    unused: ClassVar[Mapping[str, str]] = {}
    """Keys that are accepted here though they do nothing, and what to do instead ("" for nothing)."""
    together: ClassVar[JsonSchema] = {}
    """What JSON Schema says of its keys together."""
    declared: ClassVar[Mapping[str, Key]] = {}
    """The keys, in the order in which messages list them."""

    _unused_keys: tuple[str, ...]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = {name: each for name, each in vars(cls).items() if isinstance(each, Key)}
        if own:
            cls.declared = own
        for name in own:
            delattr(cls, name)

    def __init__(self, values: Mapping[str, object], unused: tuple[str, ...]) -> None:
        vars(self).update(values, _unused_keys=unused)

    @classmethod
    def checked(cls, data: object) -> tuple[Mapping[str, object], tuple[str, ...]]:
        """The data as a mapping that holds the right keys, without those that do nothing; and these.

        Raises:
            Problem: it is no mapping, or has a wrong key, or lacks one.
        """
        unused: list[str] = []
        if isinstance(data, Mapping):
            given = cast("Mapping[object, object]", data)
            unused = [key for key in given if isinstance(key, str) and key in cls.unused]
            data = {key: value for key, value in given.items() if key not in unused}
        required = [name for name, key in cls.declared.items() if isinstance(key.default, EllipsisType)]
        return check_keys(data, cls.place, cls.declared, required, _homes), tuple(unused)

    def unused_keys(self) -> Iterator[tuple[str, str]]:
        """Keys that were given though they do nothing here, each with what to do instead ("" for nothing)."""
        for key in self._unused_keys:
            yield key, self.unused[key]


S = TypeVar("S", bound=Section)


def read_section(kind: type[S], raw: object, problems: list[Problem], path: DataPath = ()) -> S | None:
    """A section and all that stands in it.

    Args:
        kind: of the section.
        raw: the data.
        problems: gets everything that is wrong.
        path: of the data, which paths of problems begin with.

    Returns:
        None if something is wrong.
    """
    if isinstance(raw, kind):
        return raw
    num_before = len(problems)
    values: dict[str, object] = {}
    try:
        data, unused = kind.checked(raw)
    except Problem as problem:
        problems.append(problem.below(path))
        return None
    for name, key in kind.declared.items():
        if name not in data:
            values[name] = key.absent()
        elif data[name] is None and key.nullable:
            values[name] = None
        else:
            values[name] = _read_value(key.kind, data[name], name, problems, (*path, name))
    return kind(values, unused) if len(problems) == num_before else None


def _read_value(kind: Kind, raw: object, name: str, problems: list[Problem], path: DataPath) -> object:
    try:
        value = kind.read(raw, name)
    except Problem as problem:
        problems.append(problem.below(path))
        return None
    if kind.section is None:
        return value
    if kind.entries == "list":
        listed = cast("Sequence[object]", value)
        return [read_section(kind.section, each, problems, (*path, i)) for i, each in enumerate(listed)]
    if kind.entries == "mapping":
        named = cast("Mapping[str, object]", value)
        return {k: read_section(kind.section, each, problems, (*path, k)) for k, each in named.items()}
    return read_section(kind.section, value, problems, path)


def _form(name: str, kinds: str | list[str]) -> JsonSchema:
    """What JSON Schema says of a key: a form of `forms.py`, and beside it the kinds of its values."""
    return {"type": kinds, MARK: name}


def list_of(section: type[Section]) -> Kind:
    """Sections one after the other."""
    return Kind(fields.read_list, {}, section=section, entries="list")


TEXT = Kind(fields.read_text, _form("text", "string"))
DTYPE = Kind(fields.read_dtype, _form("dtype", ["string", "null"]), reads_null=True)
COMPAT = Kind(fields.read_compat, {"enum": list(fields.COMPAT)})
FLAG = Kind(fields.read_flag, {"type": "boolean"})
MULTIPLE = Kind(
    fields.read_multiple,
    {"type": ["integer", "string"], "minimum": 1, "pattern": "^[0-9]{0,8}[1-9][0-9]*$"},
)
MODEL = Kind(fields.read_model, _form("model", ["string", "object"]), ModelRef.to_value)
LAYER_RANGE = Kind(fields.read_layer_range, _form("layer-range", "array"), list)
PARAMETERS = Kind(
    fields.read_parameters,
    {
        "type": ["object", "null"],
        "propertyNames": {MARK: "parameter-name"},
        "additionalProperties": {
            "type": ["number", "boolean", "string", "array", "object"],
            MARK: "value",
        },
    },
    fields.write_parameters,
)
TOKENIZER_SOURCE = Kind(
    fields.read_tokenizer_source, _form("tokenizer-source", ["string", "object"]), tokenizer_source_to_plain
)
TOKEN_SOURCE = Kind(
    fields.read_token_source, _form("token-source", ["string", "object"]), token_source_to_plain
)

# mergekit's parameters. Recipes in the wild write them beside `parameters:`, where mergekit ignores them.
_PARAMETER_NAMES = (
    *("weight", "density", "t", "scale", "normalize", "normalize_weights", "rescale", "lambda", "gamma"),
    *("epsilon", "select_topk", "filter_wise", "nuslerp_flatten", "nuslerp_row_wise", "max_iter", "tol"),
    *("eps", "r", "alpha", "int8_mask", "embed_slerp"),
)
_AMONG_PARAMETERS = dict.fromkeys(_PARAMETER_NAMES, "write it under 'parameters:'")
_AT_THE_TOP = dict.fromkeys(("dtype", "out_dtype"), "write it at the top level of the recipe")


_MODEL = "A folder, a file or a hub id: `path-or-id[@revision][+lora[@revision]]`."
_SOURCE = "Whose vocabulary the output has: `union` of all, the `base`'s, or that of a model."


class InputModel(Section):
    """An entry of `models:`: all layers of one model."""

    place = "an entry of 'models'"
    unused: ClassVar[Mapping[str, str]] = {
        **_AMONG_PARAMETERS,
        **_AT_THE_TOP,
        "layer_range": "layers are chosen under 'slices:'",
    }

    model: ModelRef = key(MODEL, _MODEL)
    parameters: Mapping[str, Value] = key(PARAMETERS, "Parameters of this model.", default=dict)

    def layers(self) -> tuple[int, int] | None:
        """The layers taken from the model; None is all of them."""
        return None


class SliceSource(Section):
    """An entry of a slice's `sources:`: some layers of one model."""

    place = "an entry of 'sources'"
    unused: ClassVar[Mapping[str, str]] = {**_AMONG_PARAMETERS, **_AT_THE_TOP}

    model: ModelRef = key(MODEL, _MODEL)
    layer_range: tuple[int, int] = key(
        LAYER_RANGE, "First layer and the one past the last, counted from 0: [0, 8] is layers 0 to 7."
    )
    parameters: Mapping[str, Value] = key(PARAMETERS, "Parameters of these layers.", default=dict)

    def layers(self) -> tuple[int, int] | None:
        """The layers taken from the model, half-open and counted from 0."""
        return self.layer_range


class OutputSlice(Section):
    """An entry of `slices:`: a run of output layers, and the models they are merged from."""

    place = "an entry of 'slices'"
    unused: ClassVar[Mapping[str, str]] = {**_AMONG_PARAMETERS, **_AT_THE_TOP, "residual_weight": ""}

    sources: list[SliceSource] = key(
        list_of(SliceSource),
        "What these layers are merged from; all have equally many layers.",
        minItems=1,
    )
    base_model: ModelRef | None = key(MODEL, "The base of these layers, one of the sources.", default=None)
    parameters: Mapping[str, Value] = key(PARAMETERS, "Parameters of these layers.", default=dict)


_MODELS = key(list_of(InputModel), "The models to merge, all layers of each.", default=None, minItems=1)
_SLICES = key(
    list_of(OutputSlice), "Runs of output layers, from the first to the last.", default=None, minItems=1
)


class OutputModule(Section):
    """A value of `modules:`: one part of the output model."""

    place = "an entry of 'modules'"
    unused: ClassVar[Mapping[str, str]] = {**_AMONG_PARAMETERS, **_AT_THE_TOP}
    together: ClassVar[JsonSchema] = {"oneOf": one_of(models="array", slices="array")}

    models: list[InputModel] | None = _MODELS
    slices: list[OutputSlice] | None = _SLICES
    parameters: Mapping[str, Value] = key(PARAMETERS, "Parameters of this part.", default=dict)


class TokenSection(Section):
    """A value of `tokens:`: where the embedding of one token comes from."""

    place = "an entry of 'tokens'"

    source: ModelRef | ModelToken | Literal["zero"] | None = key(
        TOKEN_SOURCE, "Where models that lack the token take its embedding from.", default=None
    )
    force: bool = key(FLAG, "Models that have the token take that embedding too.", default=False)


class TokenizerSection(Section):
    """The value of `tokenizer:`."""

    place = "'tokenizer'"

    source: ModelRef | Literal["union", "base"] | None = key(
        TOKENIZER_SOURCE, _SOURCE + " The default is `union`.", default=None
    )
    tokens: dict[str, TokenSection] | None = key(
        Kind(fields.read_mapping, {}, section=TokenSection, entries="mapping"),
        "Where the embeddings of single tokens come from.",
        default=None,
    )
    pad_to_multiple_of: int | None = key(
        MULTIPLE, "The number of embedding rows is rounded up to a multiple of this.", default=None
    )


class Configuration(Section):
    """A whole recipe."""

    place = "the recipe"
    unused: ClassVar[Mapping[str, str]] = _AMONG_PARAMETERS
    together: ClassVar[JsonSchema] = {
        "oneOf": one_of(models="array", slices="array", modules="object"),
        "not": {
            "required": ["tokenizer", "tokenizer_source"],
            "properties": {
                "tokenizer": {"type": "object"},
                "tokenizer_source": {"type": ["string", "object"]},
            },
        },
    }

    merge_method: str = key(TEXT, "How the models are merged; see `meldkit methods`.")
    base_model: ModelRef | None = key(
        MODEL,
        "Task vectors are taken from it, slerp begins at it; gives configuration and tokenizer.",
        default=None,
    )
    models: list[InputModel] | None = _MODELS
    slices: list[OutputSlice] | None = _SLICES
    modules: dict[str, OutputModule] | None = key(
        Kind(fields.read_modules, {}, section=OutputModule, entries="mapping"),
        "Parts of the model, such as text_decoder and vision_tower, each with models or slices.",
        default=None,
        minProperties=1,
    )
    parameters: Mapping[str, Value] = key(PARAMETERS, "Parameters of the whole recipe.", default=dict)
    dtype: str | None = key(
        DTYPE, "Type of the output tensors; each keeps its own if not given.", default=None
    )
    out_dtype: str | None = key(DTYPE, "The same; wins over dtype.", default=None)
    tokenizer_source: ModelRef | Literal["union", "base"] | None = key(
        TOKENIZER_SOURCE, _SOURCE, default=None
    )
    tokenizer: TokenizerSection | None = key(
        Kind(fields.read_later, {}, section=TokenizerSection),
        "The tokenizer of the output; the base's, else the first model's, if not given.",
        default=None,
    )
    chat_template: str | None = key(
        TEXT,
        "`auto` for that of most models, the name of a preset, or the text of a Jinja template.",
        default=None,
        **{MARK: "chat-template"},
    )
    compat: str | None = key(COMPAT, "`mergekit` for its numerics where meldkit's differ.", default=None)
    name: str | None = key(TEXT, "What other documents of the file call this merge.", default=None)


_SECTIONS: tuple[type[Section], ...] = (
    *(Configuration, InputModel, SliceSource, OutputSlice, OutputModule, TokenizerSection, TokenSection),
)


#: Keys that a section accepts though they do nothing there; nowhere does a model stand behind them.
UNUSED = frozenset(name for section in _SECTIONS for name in section.unused)


def _homes(key: str) -> list[str]:
    """The places where a key may stand, each with its preposition."""
    sections = [section for section in _SECTIONS if key in section.declared]
    return ["at the top level" if section is Configuration else f"in {section.place}" for section in sections]
