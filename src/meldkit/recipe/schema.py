"""mergekit's dialect as pydantic models: what may stand where in a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    PlainValidator,
    PrivateAttr,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic.functional_validators import ModelWrapValidatorHandler
from pydantic.json_schema import JsonSchemaValue

from meldkit.recipe import fields
from meldkit.recipe.canonical import to_recipe
from meldkit.recipe.dtypes import parse_dtype
from meldkit.recipe.forms import MARK, one_of
from meldkit.recipe.model import ModelToken, Recipe
from meldkit.recipe.problem import check_keys
from meldkit.recipe.refs import ModelRef
from meldkit.recipe.source import Document
from meldkit.recipe.values import Value
from meldkit.recipe.write import token_source_to_plain, tokenizer_source_to_plain


def _form(name: str, kinds: str | list[str]) -> WithJsonSchema:
    """What JSON Schema says of a field: a form of `forms.py`, and beside it the kinds of its values."""
    return WithJsonSchema({"type": kinds, MARK: name})


Text: TypeAlias = Annotated[str, PlainValidator(fields.read_text), _form("text", "string")]
Dtype: TypeAlias = Annotated[str | None, PlainValidator(parse_dtype), _form("dtype", ["string", "null"])]
Compat: TypeAlias = Annotated[
    str, PlainValidator(fields.read_compat), WithJsonSchema({"enum": list(fields.COMPAT)})
]
Flag: TypeAlias = Annotated[bool, PlainValidator(fields.read_flag), WithJsonSchema({"type": "boolean"})]
Multiple: TypeAlias = Annotated[
    int,
    PlainValidator(fields.read_multiple),
    WithJsonSchema({"type": ["integer", "string"], "minimum": 1, "pattern": "^[0-9]{0,8}[1-9][0-9]*$"}),
]
Model: TypeAlias = Annotated[
    ModelRef,
    PlainValidator(fields.read_model),
    PlainSerializer(ModelRef.to_value),
    _form("model", ["string", "object"]),
]
LayerRange: TypeAlias = Annotated[
    tuple[int, int],
    PlainValidator(fields.read_layer_range),
    PlainSerializer(list),
    _form("layer-range", "array"),
]
ParameterValues: TypeAlias = Annotated[
    dict[str, Value],
    PlainValidator(fields.read_parameters),
    PlainSerializer(fields.write_parameters),
    WithJsonSchema(
        {
            "type": ["object", "null"],
            "propertyNames": {MARK: "parameter-name"},
            "additionalProperties": {
                "type": ["number", "boolean", "string", "array", "object"],
                MARK: "value",
            },
        }
    ),
]
TokenizerSource: TypeAlias = Annotated[
    ModelRef | Literal["union", "base"],
    PlainValidator(fields.read_tokenizer_source),
    PlainSerializer(tokenizer_source_to_plain),
    _form("tokenizer-source", ["string", "object"]),
]
TokenSource: TypeAlias = Annotated[
    ModelRef | ModelToken | Literal["zero"],
    PlainValidator(fields.read_token_source),
    PlainSerializer(token_source_to_plain),
    _form("token-source", ["string", "object"]),
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


_MODEL = "A folder, a file or a hub id: `path-or-id[@revision][+lora[@revision]]`."
_SOURCE = "Whose vocabulary the output has: `union` of all, the `base`'s, or that of a model."


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

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(core_schema))
        schema["description"] = cast(str, cls.__doc__).split("\n")[0]
        for key, advice in cls.unused.items():
            reason = "No effect here" + (f"; {advice}." if advice else ".")
            schema["properties"].setdefault(key, {"deprecated": True, "description": reason})
        return schema

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

    model: Model = Field(description=_MODEL)
    parameters: ParameterValues = Field(default_factory=dict, description="Parameters of this model.")

    def layers(self) -> tuple[int, int] | None:
        """The layers taken from the model; None is all of them."""
        return None


class SliceSource(Section):
    """An entry of a slice's `sources:`: some layers of one model."""

    place = "an entry of 'sources'"
    unused = {**_AMONG_PARAMETERS, **_AT_THE_TOP}

    model: Model = Field(description=_MODEL)
    layer_range: LayerRange = Field(
        description="First layer and the one past the last, counted from 0: [0, 8] is layers 0 to 7."
    )
    parameters: ParameterValues = Field(default_factory=dict, description="Parameters of these layers.")

    def layers(self) -> tuple[int, int] | None:
        """The layers taken from the model, half-open and counted from 0."""
        return self.layer_range


class OutputSlice(Section):
    """An entry of `slices:`: a run of output layers, and the models they are merged from."""

    place = "an entry of 'slices'"
    unused = {**_AMONG_PARAMETERS, **_AT_THE_TOP, "residual_weight": ""}

    sources: Annotated[list[SliceSource], BeforeValidator(fields.read_list)] = Field(
        description="What these layers are merged from; all have equally many layers.",
        json_schema_extra={"minItems": 1},
    )
    base_model: Model | None = Field(None, description="The base of these layers, one of the sources.")
    parameters: ParameterValues = Field(default_factory=dict, description="Parameters of these layers.")


Models: TypeAlias = Annotated[
    list[InputModel] | None,
    BeforeValidator(fields.read_list),
    Field(
        description="The models to merge, all layers of each.",
        json_schema_extra={"minItems": 1},
    ),
]
Slices: TypeAlias = Annotated[
    list[OutputSlice] | None,
    BeforeValidator(fields.read_list),
    Field(
        description="Runs of output layers, from the first to the last.",
        json_schema_extra={"minItems": 1},
    ),
]


class OutputModule(Section):
    """A value of `modules:`: one part of the output model."""

    model_config = ConfigDict(json_schema_extra={"oneOf": one_of(models="array", slices="array")})

    place = "an entry of 'modules'"
    unused = {**_AMONG_PARAMETERS, **_AT_THE_TOP}

    models: Models = None
    slices: Slices = None
    parameters: ParameterValues = Field(default_factory=dict, description="Parameters of this part.")


class TokenSection(Section):
    """A value of `tokens:`: where the embedding of one token comes from."""

    place = "an entry of 'tokens'"

    source: TokenSource | None = Field(
        None, description="Where models that lack the token take its embedding from."
    )
    force: Flag = Field(False, description="Models that have the token take that embedding too.")


class TokenizerSection(Section):
    """The value of `tokenizer:`."""

    place = "'tokenizer'"

    source: TokenizerSource | None = Field(None, description=_SOURCE + " The default is `union`.")
    tokens: Annotated[dict[str, TokenSection] | None, BeforeValidator(fields.read_mapping)] = Field(
        None, description="Where the embeddings of single tokens come from."
    )
    pad_to_multiple_of: Multiple | None = Field(
        None, description="The number of embedding rows is rounded up to a multiple of this."
    )


class MergeConfiguration(Section):
    """A recipe as mergekit's notebooks know it: `MergeConfiguration.model_validate(yaml.safe_load(file))`.

    Raises:
        pydantic.ValidationError: the data is not a recipe; each error says what is wrong and what to do.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": one_of(models="array", slices="array", modules="object"),
            "not": {
                "required": ["tokenizer", "tokenizer_source"],
                "properties": {
                    "tokenizer": {"type": "object"},
                    "tokenizer_source": {"type": ["string", "object"]},
                },
            },
        }
    )

    place = "the recipe"
    unused = _AMONG_PARAMETERS

    merge_method: Text = Field(description="How the models are merged; see `meldkit methods`.")
    base_model: Model | None = Field(
        None,
        description="Task vectors are taken from it, slerp begins at it; gives configuration and tokenizer.",
    )
    models: Models = None
    slices: Slices = None
    modules: Annotated[dict[str, OutputModule] | None, BeforeValidator(fields.read_modules)] = Field(
        None,
        description="Parts of the model, such as text_decoder and vision_tower, each with models or slices.",
        json_schema_extra={"minProperties": 1},
    )
    parameters: ParameterValues = Field(default_factory=dict, description="Parameters of the whole recipe.")
    dtype: Dtype = Field(None, description="Type of the output tensors; each keeps its own if not given.")
    out_dtype: Dtype = Field(None, description="The same; wins over dtype.")
    tokenizer_source: TokenizerSource | None = Field(None, description=_SOURCE)
    tokenizer: TokenizerSection | None = Field(
        None, description="The tokenizer of the output; the base's, else the first model's, if not given."
    )
    chat_template: Text | None = Field(
        None,
        description="`auto` for that of most models, the name of a preset, or the text of a Jinja template.",
        json_schema_extra={MARK: "chat-template"},
    )
    compat: Compat | None = Field(None, description="`mergekit` for its numerics where meldkit's differ.")
    name: Text | None = Field(None, description="What other documents of the file call this merge.")

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
