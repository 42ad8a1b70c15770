"""Recipe → YAML: block style, short lists on one line, keys in the order a reader looks for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import yaml

from meldkit.recipe.refs import ModelRef
from meldkit.recipe.values import to_plain

if TYPE_CHECKING:
    from meldkit.recipe.model import (
        ModelToken,
        Module,
        Parameters,
        Recipe,
        Slice,
        Source,
        TokenEntry,
        TokenizerSpec,
    )

# A list of at most this many characters stands on one line.
_SHORT = 100


class _Dumper(yaml.SafeDumper):
    """Plain YAML without anchors, since an anchor for two equal lists says nothing to a reader."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002  PyYAML's signature
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002
        super().increase_indent(flow, False)


def _represent_list(dumper: yaml.SafeDumper, data: list[object]) -> yaml.Node:
    flat = not any(isinstance(item, dict | list) for item in data)
    short = sum(len(str(item)) + 2 for item in data) <= _SHORT
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flat and short)


def _represent_text(dumper: yaml.SafeDumper, data: str) -> yaml.Node:
    style = "|" if "\n" in data else None
    if not data.replace("\n", "").replace("\t", "").isprintable():
        # Some invisible characters count as line breaks and would be lost; here they are written as escapes.
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(str, _represent_text)


def to_yaml_text(data: object) -> str:
    """Plain data as YAML text."""
    # Wrapping would break long model paths and templates over lines.
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1 << 30)


def recipe_to_yaml(recipe: Recipe) -> str:
    """The canonical YAML of a recipe, after that of its stages."""
    parts = (*recipe.stages.values(), recipe)
    return "---\n".join(to_yaml_text(recipe_to_plain(part)) for part in parts)


def recipe_to_plain(recipe: Recipe) -> dict[str, object]:
    """A recipe without its stages as plain data, keys without a value left out."""
    data: dict[str, object] = {"name": recipe.name, "merge_method": recipe.merge_method}
    data["base_model"] = None if recipe.base_model is None else recipe.base_model.to_value()
    first = recipe.modules[0]
    if first.name is None:
        data.update(_module(first))
        # The one unnamed module has no place of its own in the file, hence no parameters of its own either.
        assert not first.parameters
        assert len(recipe.modules) == 1
    else:
        data["modules"] = {cast(str, module.name): _module(module) for module in recipe.modules}
    data["parameters"] = _parameters(recipe.parameters)
    data["dtype"] = recipe.dtype
    data["out_dtype"] = recipe.out_dtype
    data["tokenizer"] = None if recipe.tokenizer is None else _tokenizer(recipe.tokenizer)
    data["chat_template"] = recipe.chat_template
    data["compat"] = recipe.compat
    return _present(data)


def _present(data: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in data.items() if value is not None}


def _parameters(parameters: Parameters) -> dict[str, object] | None:
    return {key: to_plain(setting.value) for key, setting in parameters.items()} or None


def _module(module: Module) -> dict[str, object]:
    if module.from_models:
        data: dict[str, object] = {"models": [_source(source) for source in module.slices[0].sources]}
    else:
        data = {"slices": [_slice(part) for part in module.slices]}
    return _present({**data, "parameters": _parameters(module.parameters)})


def _slice(part: Slice) -> dict[str, object]:
    return _present(
        {
            "sources": [_source(source) for source in part.sources],
            "base_model": None if part.base_model is None else part.base_model.to_value(),
            "parameters": _parameters(part.parameters),
        }
    )


def _source(source: Source) -> dict[str, object]:
    return _present(
        {
            "model": source.model.to_value(),
            "layer_range": None if source.layer_range is None else list(source.layer_range),
            "parameters": _parameters(source.parameters),
        }
    )


def tokenizer_source_to_plain(source: ModelRef | str) -> object:
    """Whose vocabulary; a model that is called like a keyword is written in the mapping form."""
    if isinstance(source, str):
        return source
    value = source.to_value()
    if isinstance(value, str) and (value in ("union", "base") or value.startswith("model:")):
        return source.to_mapping()
    return value


def token_source_to_plain(source: ModelRef | ModelToken | str | None) -> object:
    """Where one token's embedding comes from."""
    if source is None:
        return None
    if isinstance(source, str):
        return {"kind": source}
    if isinstance(source, ModelRef):
        return source.to_value()
    by: dict[str, object] = {"token": source.token, "token_id": source.token_id}
    return _present({"kind": "model_token", "model": source.model.to_value(), **by})


def _token(entry: TokenEntry) -> dict[str, object]:
    return _present({"source": token_source_to_plain(entry.source), "force": entry.force or None})


def _tokenizer(spec: TokenizerSpec) -> dict[str, object]:
    return _present(
        {
            "source": tokenizer_source_to_plain(spec.source),
            "tokens": {token: _token(entry) for token, entry in spec.tokens.items()} or None,
            "pad_to_multiple_of": spec.pad_to_multiple_of,
        }
    )
