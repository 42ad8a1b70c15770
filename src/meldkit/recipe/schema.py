"""mergekit's dialect as pydantic models: what may stand where in a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    PrivateAttr,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic.functional_validators import ModelWrapValidatorHandler

from meldkit.recipe import fields
from meldkit.recipe.canonical import to_recipe
from meldkit.recipe.dtypes import parse_dtype
from meldkit.recipe.model import ModelToken, Recipe
from meldkit.recipe.problem import check_keys
from meldkit.recipe.refs import ModelRef
from meldkit.recipe.source import Document
from meldkit.recipe.values import Value
from meldkit.recipe.write import token_source_to_plain, tokenizer_source_to_plain

# For model_json_schema(): what an editor may complete and check.
_TEXT: dict[str, Any] = {"type": "string"}
_MODEL: dict[str, Any] = {"anyOf": [_TEXT, {"type": "object"}]}
_SETTING: dict[str, Any] = {"type": ["number", "boolean", "string", "array", "object"]}
_RANGE: dict[str, Any] = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0},
    "minItems": 2,
    "maxItems": 2,
}

Text: TypeAlias = Annotated[str, PlainValidator(fields.read_text), WithJsonSchema(_TEXT)]
Dtype: TypeAlias = Annotated[str | None, PlainValidator(parse_dtype), WithJsonSchema(_TEXT)]
Compat: TypeAlias = Annotated[
    str, PlainValidator(fields.read_compat), WithJsonSchema({"enum": list(fields.COMPAT)})
]
Flag: TypeAlias = Annotated[bool, PlainValidator(fields.read_flag), WithJsonSchema({"type": "boolean"})]
Multiple: TypeAlias = Annotated[
    int, PlainValidator(fields.read_multiple), WithJsonSchema({"type": "integer", "minimum": 1})
]
Model: TypeAlias = Annotated[
    ModelRef, PlainValidator(fields.read_model), PlainSerializer(ModelRef.to_value), WithJsonSchema(_MODEL)
]
LayerRange: TypeAlias = Annotated[
    tuple[int, int], PlainValidator(fields.read_layer_range), PlainSerializer(list), WithJsonSchema(_RANGE)
]
ParameterValues: TypeAlias = Annotated[
    dict[str, Value],
    PlainValidator(fields.read_parameters),
    PlainSerializer(fields.write_parameters),
    WithJsonSchema({"type": "object", "additionalProperties": _SETTING}),
]
TokenizerSource: TypeAlias = Annotated[
    ModelRef | Literal["union", "base"],
    PlainValidator(fields.read_tokenizer_source),
    PlainSerializer(tokenizer_source_to_plain),
    WithJsonSchema(_MODEL),
]
TokenSource: TypeAlias = Annotated[
    ModelRef | ModelToken | Literal["zero"],
    PlainValidator(fields.read_token_source),
    PlainSerializer(token_source_to_plain),
    WithJsonSchema(_MODEL),
]

# mergekit's parameters. Recipes in the wild write them beside `parameters:`, where mergekit ignores them.
_PARAMETER_NAMES = [
    "weight",
    "density",
    "t",
    "scale",
    "normalize",
    "normalize_weights",
    "rescale",
    "lambda",
    "gamma",
    "epsilon",
    "select_topk",
    "filter_wise",
    "nuslerp_flatten",
    "nuslerp_row_wise",
    "max_iter",
    "tol",
    "eps",
    "r",
    "alpha",
    "int8_mask",
    "embed_slerp",
]
_AMONG_PARAMETERS = dict.fromkeys(_PARAMETER_NAMES, "write it under 'parameters:'")
_AT_THE_TOP = dict.fromkeys(("dtype", "out_dtype"), "write it at the top level of the recipe")


class Section(BaseModel):
    """A mapping of the recipe with a fixed set of keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    place: ClassVar[str]
    """What messages call such a mapping."""
    unused: ClassVar[Mapping[str, str]] = {}
    """Keys that are accepted here though they do nothing, and what to do instead ("" for nothing)."""

    _unused_keys: tuple[str, ...] = PrivateAttr(default=())

    @model_validator(mode="wrap")
    @classmethod
    def _read(cls, data: object, handler: ModelWrapValidatorHandler[Section]) -> Section:
        if isinstance(data, cls):
            return data
        unused: list[str] = []
        if isinstance(data, Mapping):
            given = cast("Mapping[object, object]", data)
            unused = [key for key in given if isinstance(key, str) and key in cls.unused]
            data = {key: value for key, value in given.items() if key not in unused}
        required = [key for key, info in cls.model_fields.items() if info.is_required()]
        section = handler(check_keys(data, cls.place, cls.model_fields, required, _homes))
        section._unused_keys = tuple(unused)
        return section

    def unused_keys(self) -> Iterator[tuple[str, str]]:
        """Keys that were given though they do nothing here, each with what to do instead ("" for nothing)."""
        for key in self._unused_keys:
            yield key, self.unused[key]


class InputModel(Section):
    """An entry of `models:`: all layers of one model."""

    place = "an entry of 'models'"
    unused = {
        **_AMONG_PARAMETERS,
        **_AT_THE_TOP,
        "layer_range": "layers are chosen under 'slices:'",
    }

    model: Model
    parameters: ParameterValues = Field(default_factory=dict)

    def layers(self) -> tuple[int, int] | None:
        """The layers taken from the model; None is all of them."""
        return None


class SliceSource(Section):
    """An entry of a slice's `sources:`: some layers of one model."""

    place = "an entry of 'sources'"
    unused = {**_AMONG_PARAMETERS, **_AT_THE_TOP}

    model: Model
    layer_range: LayerRange
    parameters: ParameterValues = Field(default_factory=dict)

    def layers(self) -> tuple[int, int] | None:
        """The layers taken from the model, half-open and counted from 0."""
        return self.layer_range


class OutputSlice(Section):
    """An entry of `slices:`: a run of output layers, and the models they are merged from."""

    place = "an entry of 'slices'"
    unused = {**_AMONG_PARAMETERS, **_AT_THE_TOP, "residual_weight": ""}

    sources: Annotated[list[SliceSource], BeforeValidator(fields.read_list)]
    base_model: Model | None = None
    parameters: ParameterValues = Field(default_factory=dict)


class OutputModule(Section):
    """A value of `modules:`: one part of the output model."""

    place = "an entry of 'modules'"
    unused = {**_AMONG_PARAMETERS, **_AT_THE_TOP}

    models: Annotated[list[InputModel] | None, BeforeValidator(fields.read_list)] = None
    slices: Annotated[list[OutputSlice] | None, BeforeValidator(fields.read_list)] = None
    parameters: ParameterValues = Field(default_factory=dict)


class TokenSection(Section):
    """A value of `tokens:`: where the embedding of one token comes from."""

    place = "an entry of 'tokens'"

    source: TokenSource | None = None
    force: Flag = False


class TokenizerSection(Section):
    """The value of `tokenizer:`."""

    place = "'tokenizer'"

    source: TokenizerSource | None = None
    tokens: Annotated[dict[str, TokenSection] | None, BeforeValidator(fields.read_mapping)] = None
    pad_to_multiple_of: Multiple | None = None


class MergeConfiguration(Section):
    """A recipe as mergekit's notebooks know it: `MergeConfiguration.model_validate(yaml.safe_load(file))`.

    Raises:
        pydantic.ValidationError: the data is not a recipe; each error says what is wrong and what to do.
    """

    place = "the recipe"
    unused = _AMONG_PARAMETERS

    merge_method: Text
    base_model: Model | None = None
    models: Annotated[list[InputModel] | None, BeforeValidator(fields.read_list)] = None
    slices: Annotated[list[OutputSlice] | None, BeforeValidator(fields.read_list)] = None
    modules: Annotated[dict[str, OutputModule] | None, BeforeValidator(fields.read_modules)] = None
    parameters: ParameterValues = Field(default_factory=dict)
    dtype: Dtype = None
    out_dtype: Dtype = None
    tokenizer_source: TokenizerSource | None = None
    tokenizer: TokenizerSection | None = None
    chat_template: Text | None = None
    compat: Compat | None = None
    name: Text | None = None

    _document: Document = PrivateAttr(default=Document(None))

    @model_validator(mode="after")
    def _check_together(self, info: ValidationInfo) -> MergeConfiguration:
        if isinstance(info.context, Document):
            self._document = info.context
        self.recipe()
        return self

    def recipe(self) -> Recipe:
        """The canonical form.

        Raises:
            RecipeError: the configuration was changed by `model_copy(update=...)` and now contradicts itself.
        """
        return to_recipe(self, self._document)

    def to_yaml(self) -> str:
        """The configuration as YAML in a fixed order and style."""
        return self.recipe().to_yaml()

    def referenced_models(self) -> list[ModelRef]:
        """Every model whose weights take part, once each, in the order of the recipe."""
        return list(self.recipe().models())


_SECTIONS: tuple[type[Section], ...] = (
    *(MergeConfiguration, InputModel, SliceSource, OutputSlice, OutputModule, TokenizerSection, TokenSection),
)


def _homes(key: str) -> list[str]:
    """The places where a key may stand, each with its preposition."""
    sections = [section for section in _SECTIONS if key in section.model_fields]
    return [
        "at the top level" if section is MergeConfiguration else f"in {section.place}" for section in sections
    ]
