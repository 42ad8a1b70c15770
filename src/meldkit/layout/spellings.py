"""Ways in which configurations say, layer by layer, what a layer is.

Some name the layers of a kind, some count from the start or the end, some give a period. Each reads the entry
of every layer out of a section of config.json, and writes settings that give other layers their entries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

Section = Mapping[str, Any]


def _list(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


class Spelling(Protocol):
    """One way of a configuration to say what each layer is."""

    @property
    def key(self) -> str:
        """The setting, for messages."""
        ...

    def read(self, section: Section, depth: int) -> Sequence[Any] | None:
        """The entry of each of `depth` layers; None if the section does not use this spelling."""
        ...

    def write(self, section: Section, entries: Sequence[Any]) -> dict[str, Any] | None:
        """Settings under which the layers have these entries; None if there are none."""
        ...


@dataclass(frozen=True, slots=True)
class Numbers:
    """A list of the layers of a kind, by number from `first`; it may stand in a section of its own."""

    key: str
    first: int = 0
    within: str = ""

    def read(self, section: Section, depth: int) -> list[bool] | None:
        inner = section.get(self.within) if self.within else section
        value = cast("Section", inner).get(self.key) if isinstance(inner, Mapping) else None
        return [i + self.first in value for i in range(depth)] if isinstance(value, list) else None

    def write(self, section: Section, entries: Sequence[Any]) -> dict[str, Any]:
        numbers = [i + self.first for i, entry in enumerate(entries) if entry]
        if self.within:
            return {self.within: {**section[self.within], self.key: numbers}}
        return {self.key: numbers}


@dataclass(frozen=True, slots=True)
class Leading:
    """How many layers at the start are of a kind.

    Attributes:
        key: the number.
        listed: a per-layer list that wins over the number where it is given.
        switch: a setting without which the number means nothing.
    """

    key: str
    listed: str = ""
    switch: str = ""

    def read(self, section: Section, depth: int) -> list[bool] | None:
        value = section.get(self.key)
        idle = (self.listed and section.get(self.listed)) or (self.switch and not section.get(self.switch))
        return [i < value for i in range(depth)] if type(value) is int and not idle else None

    def write(self, section: Section, entries: Sequence[Any]) -> dict[str, Any] | None:
        count = sum(entries)
        if not all(entries[:count]):
            return None
        # A number beyond the last layer means all of them, however many there are.
        return {self.key: max(count, section[self.key]) if count == len(entries) else count}


@dataclass(frozen=True, slots=True)
class Trailing:
    """How many layers at the end are of a kind."""

    key: str

    def read(self, section: Section, depth: int) -> list[bool] | None:
        value = section.get(self.key)
        return [i >= depth - value for i in range(depth)] if type(value) is int else None

    def write(self, section: Section, entries: Sequence[Any]) -> dict[str, Any] | None:
        del section
        count = sum(entries)
        return {self.key: count} if all(entries[len(entries) - count :]) else None


@dataclass(frozen=True, slots=True)
class Period:
    """Layers at equal distances are of a kind: those where `layer % period` is the offset.

    Attributes:
        key: the period.
        offset: a number, counted from the period's end if negative, or the key of one.
        kinds: entries of layers that are of the kind, and of others.
        listed: a per-layer list of such entries that wins over the period where it is given.
        default: the period, by the model types whose configurations may leave it out.
    """

    key: str
    offset: int | str
    kinds: tuple[Any, Any] = (True, False)
    listed: str = ""
    default: Mapping[str, int] | None = None

    def _kind(self, section: Section, layer: int) -> Any | None:
        period = section.get(self.key)
        if period is None and self.default is not None:
            period = self.default.get(str(section.get("model_type")))
        offset = section.get(self.offset) if isinstance(self.offset, str) else self.offset
        if type(period) is not int or type(offset) is not int or period < 1:
            return None
        return self.kinds[layer % period != offset % period]

    @property
    def _plain(self) -> bool:
        """Whether it says only which layers are of the kind, in words of its own."""
        return self.kinds == (True, False)

    def read(self, section: Section, depth: int) -> list[Any] | None:
        if _list(section.get(self.listed)):
            return None
        entries = [self._kind(section, layer) for layer in range(depth)]
        return None if None in entries else entries

    def read_list(self, section: Section) -> list[Any] | None:
        """The list that wins over the period, where its entries are those that a period gives."""
        return None if self._plain else _list(section.get(self.listed)) or None

    def write(self, section: Section, entries: Sequence[Any]) -> dict[str, Any] | None:
        if all(self._kind(section, layer) == entry for layer, entry in enumerate(entries)):
            return {}
        return {self.listed: list(entries)} if self.listed and not self._plain else None


@dataclass(frozen=True, slots=True)
class SparseStep:
    """Every `decoder_sparse_step`-th layer has experts, except those in `mlp_only_layers` (Qwen-MoE)."""

    key: str = "decoder_sparse_step"

    def read(self, section: Section, depth: int) -> list[bool] | None:
        step = section.get(self.key)
        dense = _list(section.get("mlp_only_layers"))
        if type(step) is not int or step < 1:
            return None
        return [i not in dense and (i + 1) % step == 0 for i in range(depth)]

    def write(self, section: Section, entries: Sequence[Any]) -> dict[str, Any]:
        if "mlp_only_layers" not in section and self.read(section, len(entries)) == list(entries):
            return {}
        step = (
            section[self.key]
            if all((i + 1) % section[self.key] == 0 for i, e in enumerate(entries) if e)
            else 1
        )
        dense = [i for i, entry in enumerate(entries) if not entry and (i + 1) % step == 0]
        return {self.key: step, "mlp_only_layers": dense}


@dataclass(frozen=True, slots=True)
class Between:
    """Layers from one number to another, at equal distances, have experts (ERNIE)."""

    key: str = "moe_layer_start_index"

    def read(self, section: Section, depth: int) -> list[bool] | None:
        first, last = section.get(self.key), section.get("moe_layer_end_index", -1)
        step = section.get("moe_layer_interval", 1)
        if type(first) is not int or type(last) is not int or type(step) is not int:
            return None
        last = depth - 1 if last == -1 else last
        return [first <= i <= last and (i + 1) % step == 0 for i in range(depth)]

    def write(self, section: Section, entries: Sequence[Any]) -> dict[str, Any] | None:
        chosen = [i for i, entry in enumerate(entries) if entry]
        if not chosen:
            return None
        settings = {self.key: chosen[0], "moe_layer_end_index": chosen[-1]}
        return settings if self.read({**section, **settings}, len(entries)) == list(entries) else None


@dataclass(frozen=True, slots=True)
class Pointers:
    """For each layer, the number of the one whose keys and values it uses, which may be itself.

    An entry is how many layers back that is.
    """

    key: str

    def read(self, section: Section, depth: int) -> list[int] | None:
        sources = _list(section.get(self.key))
        if len(sources) != depth or not all(type(source) is int for source in sources):
            return None
        return [i - source for i, source in enumerate(sources)]

    def write(self, section: Section, entries: Sequence[Any]) -> dict[str, Any] | None:
        del section
        sources = [i - back for i, back in enumerate(entries)]
        owners = all(source in range(len(entries)) and entries[source] == 0 for source in sources)
        return {self.key: sources} if owners else None


@dataclass(frozen=True, slots=True)
class Exceptions:
    """A section whose keys are numbers of layers that differ from the others."""

    key: str

    def read(self, section: Section, depth: int) -> list[Any] | None:
        value = section.get(self.key)
        if not isinstance(value, Mapping):
            return None
        own = cast("Section", value)
        if not all(layer.isdecimal() for layer in own):
            return None
        numbered = {int(layer): entry for layer, entry in own.items()}
        return [numbered.get(i) for i in range(depth)]

    def write(self, section: Section, entries: Sequence[Any]) -> dict[str, Any]:
        del section
        return {self.key: {str(i): entry for i, entry in enumerate(entries) if entry is not None}}


@dataclass(frozen=True, slots=True)
class Letters:
    """One letter per layer."""

    key: str

    def read(self, section: Section, depth: int) -> list[str] | None:
        value = section.get(self.key)
        return list(value) if isinstance(value, str) and len(value) == depth else None

    def write(self, section: Section, entries: Sequence[Any]) -> dict[str, Any]:
        del section
        return {self.key: "".join(entries)}


@dataclass(frozen=True, slots=True)
class Repeated:
    """A list that starts again at its end until every layer has an entry."""

    key: str

    def read(self, section: Section, depth: int) -> list[Any] | None:
        entries = _list(section.get(self.key))
        return [entries[layer % len(entries)] for layer in range(depth)] if entries else None

    def write(self, section: Section, entries: Sequence[Any]) -> dict[str, Any]:
        return {} if self.read(section, len(entries)) == list(entries) else {self.key: list(entries)}


@dataclass(frozen=True, slots=True)
class Runs:
    """Pairs of a list and how often it is repeated, one after the other (GPT-Neo)."""

    key: str

    def read(self, section: Section, depth: int) -> list[Any] | None:
        entries: list[Any] = []
        for pair in _list(section.get(self.key)):
            run = _list(pair)
            if len(run) != 2 or type(run[1]) is not int:
                return None
            entries += _list(run[0]) * min(run[1], depth)
        return entries if entries and len(entries) == depth else None

    def write(self, section: Section, entries: Sequence[Any]) -> dict[str, Any]:
        del section
        return {self.key: [[list(entries), 1]]}
