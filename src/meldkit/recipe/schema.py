"""Recipes as pydantic models: what programs that know mergekit's configuration work with, and the source of
the JSON Schema. What may stand where, `recipe.sections` says."""

from __future__ import annotations

from typing import Annotated, Any, Optional, TypeVar, cast

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
    create_model,
    model_validator,
)
from pydantic.functional_validators import ModelWrapValidatorHandler
from pydantic.json_schema import JsonSchemaValue

from meldkit.recipe import sections
from meldkit.recipe.canonical import to_recipe
from meldkit.recipe.forms import deprecated
from meldkit.recipe.model import Recipe
from meldkit.recipe.refs import ModelRef
from meldkit.recipe.sections import Key, Section
from meldkit.recipe.source import Document

S = TypeVar("S", bound=Section)


class _Model(BaseModel, Section):
    """What the models of all sections have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    _unused_keys: tuple[str, ...] = PrivateAttr(default=())

    @model_validator(mode="wrap")
    @classmethod
    def _read(cls, data: object, handler: ModelWrapValidatorHandler[_Model]) -> _Model:
        if isinstance(data, cls):
            return data
        given, unused = cls.checked(data)
        section = handler(given)
        section._unused_keys = unused
        return section

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(core_schema))
        schema |= cls.together
        schema["description"] = cast(str, cls.__doc__).split("\n")[0]
        for key, advice in cls.unused.items():
            reason = "No effect here" + (f"; {advice}." if advice else ".")
            schema["properties"].setdefault(key, deprecated({}, reason))
        return schema


#: The models of sections, each made once.
_made: dict[type[Section], Any] = {}


def _model_of(section: type[S]) -> type[S]:
    """The model of a section."""
    if section not in _made:
        keys: Any = {name: (_annotation(name, key), _field(key)) for name, key in section.declared.items()}
        bases: Any = (_Model, section)
        _made[section] = create_model(
            section.__name__, __base__=bases, __module__=__name__, __doc__=section.__doc__, **keys
        )
    return _made[section]


def _annotation(name: str, key: Key) -> Any:
    """What pydantic is to know of the values of a key."""
    kind = key.kind

    def read(raw: object) -> object:
        return kind.read(raw, name)

    if kind.section is None:
        about = [PlainValidator(read), *([PlainSerializer(kind.write)] if kind.write else [])]
        annotation: Any = Annotated[(Any, *about, WithJsonSchema(kind.schema))]
    else:
        model = _model_of(kind.section)
        several: Any = {"": model, "list": list[model], "mapping": dict[str, model]}
        annotation = Annotated[several[kind.entries], BeforeValidator(read)]
    return Optional[annotation] if key.nullable else annotation  # noqa: UP045  made while running


def _field(key: Key) -> Any:
    extra: Any = key.schema or None
    if key.default is dict:
        return Field(default_factory=dict, description=key.doc, json_schema_extra=extra)
    return Field(key.default, description=key.doc, json_schema_extra=extra)


InputModel = _model_of(sections.InputModel)
SliceSource = _model_of(sections.SliceSource)
OutputSlice = _model_of(sections.OutputSlice)
OutputModule = _model_of(sections.OutputModule)
TokenSection = _model_of(sections.TokenSection)
TokenizerSection = _model_of(sections.TokenizerSection)


class MergeConfiguration(_model_of(sections.Configuration), _Model):
    """A recipe as mergekit's notebooks know it: `MergeConfiguration.model_validate(yaml.safe_load(file))`.

    Raises:
        pydantic.ValidationError: the data is not a recipe; each error says what is wrong and what to do.
    """

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
