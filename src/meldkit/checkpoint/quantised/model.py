"""What is known about a checkpoint that may be quantised, and what its configuration says about that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from meldkit.checkpoint.dtypes import BY_TORCH_NAME
from meldkit.checkpoint.json_file import shown
from meldkit.checkpoint.tensor import TensorInfo
from meldkit.errors import CheckpointError, FormatError

#: Where configurations say how a model is quantised; the second is that of early compressed-tensors.
_KEYS = ("quantization_config", "compression_config")
#: Sections that describe the language model of a larger one.
_SECTIONS = ("text_config", "language_config", "llm_config")
F8 = ("F8_E4M3", "F8_E5M2")
#: Types of codes; no weight that is a number has one of the integer ones.
CODE_TYPES = (*F8, "I8", "U8", "I16", "U16", "I32", "U32")
ORIGINAL = "merge the original, unquantised weights"


@dataclass(frozen=True, slots=True)
class QuantisedModel:
    """What is known about a checkpoint.

    Attributes:
        label: the model as the recipe names it.
        tensors: as they are stored.
        settings: how the configuration says it is quantised; None if it says nothing.
        dtype: of the values, safetensors spelling.
    """

    label: str
    tensors: Mapping[str, TensorInfo]
    settings: Mapping[str, Any] | None
    dtype: str

    @property
    def method(self) -> str:
        """What the configuration calls the method; "" if it names none."""
        settings = self.settings or {}
        if settings.get("load_in_4bit") is True or settings.get("load_in_8bit") is True:
            return "bitsandbytes"
        named = settings.get("quant_method") or ("compressed-tensors" if "config_groups" in settings else "")
        return named.lower() if isinstance(named, str) else shown(named)

    def error(self, what: str) -> CheckpointError:
        """Something is missing or does not fit."""
        return CheckpointError(
            f"model '{self.label}': {what}", hint=f"download the model again, or {ORIGINAL}"
        )

    def refusal(self, what: str, hint: str = ORIGINAL) -> FormatError:
        """Something is not read."""
        return FormatError(f"not supported: model '{self.label}' {what}", hint=hint)

    def misfit(self, part: TensorInfo, of: TensorInfo) -> CheckpointError:
        """A tensor that belongs to another has a shape or type that cannot be right."""
        blocks = ", ".join(f"{height} × {width}" for height, width in self.blocks())
        return self.error(
            f"{shown(part.name)}, {part.dtype} {list(part.shape)}, does not fit {shown(of.name)}, "
            f"{of.dtype} {list(of.shape)}" + (f", in blocks of {blocks}" if blocks else "")
        )

    def _schemes(self) -> Iterator[Mapping[str, Any]]:
        """What the configuration says about weights: of the whole model, then of groups of modules."""
        settings = self.settings or {}
        yield settings
        groups = settings.get("config_groups")
        for group in cast("dict[str, Any]", groups).values() if isinstance(groups, dict) else ():
            weights = cast("dict[str, Any]", group).get("weights") if isinstance(group, dict) else None
            if isinstance(weights, dict):
                yield cast("dict[str, Any]", weights)

    def blocks(self) -> list[tuple[int, int]]:
        """Heights and widths of blocks that the configuration names."""
        found: list[tuple[int, int]] = [(1, size) for size in self.group_sizes()]
        for scheme in self._schemes():
            for key in ("weight_block_size", "block_structure"):
                value = scheme.get(key)
                if value is None:
                    continue
                sides: object = value.split("x") if isinstance(value, str) else value
                listed = cast("list[object]", sides) if isinstance(sides, list) else []
                numbers = [int(str(n)) for n in listed if str(n).isdecimal()]
                if len(listed) != 2 or len(numbers) != 2 or 0 in numbers:
                    raise self.error(f"config.json has {key} {shown(value)}, which is no height and width")
                found.append((numbers[0], numbers[1]))
        return list(dict.fromkeys(found))

    def group_sizes(self) -> list[int]:
        """Elements of a row that have a scale in common, as the configuration names them."""
        sizes = (scheme.get("group_size") for scheme in self._schemes())
        return list(dict.fromkeys(size for size in sizes if type(size) is int and size > 0))

    def integer_bits(self) -> list[int]:
        """Bits of packed integers that the configuration names, as far as they are read."""
        found = (s.get("num_bits") for s in self._schemes() if s.get("type", "int") == "int")
        return list(dict.fromkeys(bits for bits in found if bits in (4, 8)))


def _sections(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The configuration itself and those of its parts that may speak for it."""
    yield config
    for key in _SECTIONS:
        if isinstance(config.get(key), dict):
            yield cast("dict[str, Any]", config[key])


def settings_of(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a configuration says about quantisation; None if nothing."""
    found = (section.get(key) for section in _sections(config) for key in _KEYS)
    return next((cast("dict[str, Any]", value) for value in found if isinstance(value, dict)), None)


def may_be_quantised(tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> bool:
    """Whether there is anything to decode: some tensor has a type of codes, or the configuration says so."""
    return settings_of(config) is not None or any(info.dtype in CODE_TYPES for info in tensors.values())


def digest_of_settings(config: Mapping[str, Any]) -> str:
    """Hex hash of what the configuration says about quantisation; "" if it says nothing."""
    settings = settings_of(config)
    if settings is None:
        return ""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def without_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without that."""
    cleaned = {key: value for key, value in config.items() if key not in _KEYS}
    for key in _SECTIONS:
        if isinstance(cleaned.get(key), dict):
            cleaned[key] = {k: v for k, v in cleaned[key].items() if k not in _KEYS}
    return cleaned


def dtype_of(config: Mapping[str, Any]) -> str:
    """The type that the configuration names for the weights, else bfloat16."""
    for section in _sections(config):
        for key in ("dtype", "torch_dtype"):
            dtype = BY_TORCH_NAME.get(str(section.get(key)).removeprefix("torch."))
            if dtype is not None and dtype.floating and dtype.itemsize > 1:
                return dtype.name
    return "BF16"
