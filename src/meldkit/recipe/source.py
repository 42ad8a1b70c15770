"""YAML text → plain data, and the line on which every piece of it stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import yaml
from yaml.constructor import SafeConstructor

from meldkit.errors import RecipeError
from meldkit.recipe.problem import DataPath, kind_of

# Bounds for input that is hostile or no recipe at all; the largest known recipes have a few thousand values.
MAX_BYTES = 16 * 2**20
_MAX_VALUES = 200_000
MAX_DEPTH = 64

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_TAG = "tag:yaml.org,2002:"
_SCALARS = SafeConstructor()
_MERGE = _TAG + "merge"


@dataclass(frozen=True, slots=True)
class Document:
    """One recipe as plain data.

    Attributes:
        data: what YAML or Python gave.
        lines: the line, from 1, of each piece of `data`; empty for Python data.
        origin: name of the file; "" for Python data.
    """

    data: object
    lines: Mapping[DataPath, int] = field(default_factory=dict[DataPath, int])
    origin: str = ""

    def where(self, path: DataPath) -> str:
        """The place of a piece of data, or of what should hold it: "recipe.yml:12"; "" for Python data."""
        if not self.origin:
            return ""
        for length in range(len(path), -1, -1):
            line = self.lines.get(path[:length])
            if line is not None:
                return f"{self.origin}:{line}"
        return self.origin

    def place(self, path: DataPath) -> str:
        """The same for messages: Python data has no lines, so the path itself, "models[0].parameters"."""
        if self.origin:
            return self.where(path)
        steps = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
        return steps.removeprefix(".")


def read_documents(text: str, origin: str) -> list[Document]:
    """All documents of a YAML text; empty ones beside others are left out.

    Args:
        text: the YAML.
        origin: name of the file, for messages.

    Raises:
        RecipeError: the text is not YAML, is empty, has a key twice in one mapping, or is far too large.
    """
    if len(text) > MAX_BYTES:
        raise RecipeError(f"{origin}: {len(text)} characters are too many for a recipe")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = f"{origin}: character #x{ord(text[error.start]):04x} cannot stand in YAML"
        raise RecipeError(f"{message} (half of a pair, position {error.start})") from None
    try:
        _check_depth(text, origin)
        nodes = cast("list[yaml.Node | None]", list(yaml.compose_all(text, Loader=_LOADER)))  # pyright: ignore[reportUnknownArgumentType]
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, text, origin) from None
    except yaml.reader.ReaderError as error:
        message = f"{origin}: character #x{cast(int, error.character):04x} cannot stand in YAML"
        raise RecipeError(f"{message} ({error.reason}, position {error.position})") from None
    documents = [_Reader(origin).document(node) for node in nodes if node is not None]
    held = [document for document in documents if document.data is not None]
    if not held:
        raise RecipeError(
            f"{origin}: the recipe is empty", hint="it needs at least 'merge_method:' and 'models:'"
        )
    return held


def _check_depth(text: str, origin: str) -> None:
    """Refuses deep nesting before anything recursive sees it."""
    depth = 0
    events = cast("Iterator[object]", yaml.parse(text, Loader=_LOADER))  # pyright: ignore[reportUnknownMemberType]
    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise RecipeError(f"{_mark(event, origin)}: nested more than {MAX_DEPTH} levels deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _mark(event: Any, origin: str) -> str:
    return f"{origin}:{event.start_mark.line + 1}"


def _syntax_error(error: yaml.MarkedYAMLError, text: str, origin: str) -> RecipeError:
    mark = error.problem_mark or error.context_mark
    where = f"{origin}:{mark.line + 1}:{mark.column + 1}" if mark else origin
    said = ", ".join(part for part in (error.context, error.problem) if part)
    hint = ""
    if "cannot start any token" in said and mark and text.startswith("\t", mark.index):
        hint = "YAML does not allow tabs for indentation; use spaces"
    elif "mapping values are not allowed" in said:
        hint = "check the indentation, and put quotes around text that contains ': '"
    return RecipeError(f"{where}: not valid YAML: {said}", hint=hint)


class _Reader:
    """Turns the nodes of one document into data, counting values so that aliases cannot blow it up."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.lines: dict[DataPath, int] = {}
        self.num_values = 0

    def document(self, root: yaml.Node) -> Document:
        data = self._value(root, ())
        return Document(data, self.lines, self.origin)

    def _value(self, node: yaml.Node, path: DataPath) -> object:
        self.num_values += 1
        if self.num_values > _MAX_VALUES or len(path) > MAX_DEPTH:
            # Only an alias inside its own anchor gets deeper than the text was.
            raise self._error(node, "the aliases of this document expand to too much data")
        self.lines.setdefault(path, _line(node))
        if isinstance(node, yaml.MappingNode):
            self._expect_tag(node, "map")
            data: dict[str, object] = {}
            for key, (key_node, value_node) in self._pairs(node).items():
                self.lines[(*path, key)] = _line(key_node)
                data[key] = self._value(value_node, (*path, key))
            return data
        if isinstance(node, yaml.SequenceNode):
            self._expect_tag(node, "seq")
            items = cast("list[yaml.Node]", node.value)
            return [self._value(item, (*path, index)) for index, item in enumerate(items)]
        return self._scalar(cast("yaml.ScalarNode", node))

    def _pairs(self, node: yaml.MappingNode, depth: int = 0) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """The entries of a mapping; its own ones come before and win over those that `<<` brings in."""
        if depth > MAX_DEPTH:
            raise self._error(node, "'<<' refers to itself")
        pairs: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merged: list[yaml.MappingNode] = []
        for key_node, value_node in cast("list[tuple[yaml.Node, yaml.Node]]", node.value):
            self.num_values += 1
            if self.num_values > _MAX_VALUES:
                raise self._error(node, "the aliases of this document expand to too much data")
            if key_node.tag == _MERGE:
                merged.extend(self._merged(value_node))
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._error(key_node, "a key must be plain text")
            # The key as it stands: YAML 1.1 would make booleans of `on` and `no`, which may be tokens.
            key = cast(str, key_node.value)
            if key in pairs:
                first = f"{self.origin}:{_line(pairs[key][0])}"
                raise self._error(
                    key_node,
                    f"key '{key}' stands here a second time; first at {first}",
                    "keep one of them; entries of a list begin with '- '",
                )
            pairs[key] = (key_node, value_node)
        for source in merged:
            for key, pair in self._pairs(source, depth + 1).items():
                pairs.setdefault(key, pair)
        return pairs

    def _merged(self, node: yaml.Node) -> Iterator[yaml.MappingNode]:
        nodes = cast("list[yaml.Node]", node.value) if isinstance(node, yaml.SequenceNode) else [node]
        for source in nodes:
            if not isinstance(source, yaml.MappingNode):
                raise self._error(source, "'<<' takes a mapping or a list of mappings")
            yield source

    def _scalar(self, node: yaml.ScalarNode) -> object:
        tag = node.tag.removeprefix(_TAG)
        text = cast(str, node.value)
        try:
            if tag == "null":
                return None
            if tag == "bool":
                return _SCALARS.construct_yaml_bool(node)
            if tag == "int":
                return _SCALARS.construct_yaml_int(node)
            if tag == "float":
                return _SCALARS.construct_yaml_float(node)
        except (ValueError, KeyError, IndexError):
            raise self._error(node, f"{kind_of(text)} is not a valid {tag}") from None
        # Recipes have no dates: a model called 2024-01-01 is text.
        if tag in ("str", "timestamp", "value", "merge"):
            return text
        raise self._error(node, f"the YAML tag '{node.tag}' means nothing in a recipe")

    def _expect_tag(self, node: yaml.Node, tag: str) -> None:
        if node.tag != _TAG + tag:
            raise self._error(node, f"the YAML tag '{node.tag}' means nothing in a recipe")

    def _error(self, node: yaml.Node, message: str, hint: str = "") -> RecipeError:
        return RecipeError(f"{self.origin}:{_line(node)}: {message}", hint=hint)


def _line(node: yaml.Node) -> int:
    return cast(int, node.start_mark.line) + 1
