"""The settings of a GGUF file, checked as they are looked up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

from meldkit.checkpoint.gguf.contents import Contents, Entry, bad
from meldkit.checkpoint.json_file import shown
from meldkit.errors import CheckpointError, FormatError

#: Nothing that is counted gets that large.
_LARGE = 2**31


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings that describe the model, without the architecture before their keys."""

    contents: Contents
    architecture: str

    def get(self, key: str) -> Any:
        """What the file says, or None."""
        return self.contents.settings.get(f"{self.architecture}.{key}")

    def integer(self, key: str, default: int | None = None) -> int:
        """A size or a number of things, at least 1.

        Raises:
            CheckpointError: it is not that, or missing without a default.
            FormatError: it differs between layers.
        """
        value = self.get(key)
        if isinstance(value, tuple):
            values = set(cast("tuple[object, ...]", value))
            if len(values) > 1:
                raise FormatError(
                    f"not supported: {self.contents.path} has a {self.architecture}.{key} for each layer",
                    hint="merge the original model",
                )
            value = values.pop() if values else None
        if value is None and default is not None:
            return default
        if type(value) is not int or not 0 < value < _LARGE:
            raise self._wrong(key, value)
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """A number.

        Raises:
            CheckpointError: it is not that, or missing without a default.
        """
        value = self.get(key)
        if value is None and default is not None:
            return default
        if type(value) is not int and (type(value) is not float or not math.isfinite(value)):
            raise self._wrong(key, value)
        return float(value)

    def some_real(self, key: str) -> float | None:
        """A number, None if the file does not say.

        Raises:
            CheckpointError: it is not that.
        """
        return None if self.get(key) is None else self.real(key)

    def count(self, key: str) -> int:
        """A number of things, 0 if the file does not say.

        Raises:
            CheckpointError: it is not that.
        """
        value = self.get(key)
        if value is None:
            return 0
        if type(value) is not int or not 0 <= value < _LARGE:
            raise self._wrong(key, value)
        return value

    def per_layer(self, key: str) -> tuple[int, ...]:
        """A number of things, or a truth, for each layer but for those behind the last one.

        Raises:
            CheckpointError: it is not that, or missing.
        """
        numbers = self.each_layer(key)
        counts = tuple(n for n in numbers if isinstance(n, int) and 0 <= n < _LARGE)
        if len(counts) < len(numbers):
            raise self._wrong(key, numbers)
        return counts

    def each_layer(self, key: str) -> tuple[object, ...]:
        """Anything for each layer but for those behind the last one.

        Raises:
            CheckpointError: it is not that, or missing.
        """
        values = self.get(key)
        lengths = (self.depth, self.integer("block_count"))
        numbers = cast("tuple[object, ...]", values) if isinstance(values, tuple) else ()
        if len(numbers) not in lengths:
            raise self._wrong(key, cast("object", values))
        return numbers[: self.depth]

    def of_block(self, key: str, block: int) -> int:
        """A number of a block, 0 if the file does not say.

        Raises:
            CheckpointError: it is not that.
        """
        value = self.get(key)
        if isinstance(value, tuple):
            values = cast("tuple[Any, ...]", value)
            value = values[block] if block < len(values) else 0
        if value is not None and (type(value) is not int or not 0 <= value < _LARGE):
            raise self._wrong(key, value)
        return value or 0

    @property
    def heads(self) -> int:
        return self.integer("attention.head_count")

    @property
    def kv_heads(self) -> int:
        return self.integer("attention.head_count_kv", self.heads)

    @property
    def some_kv_heads(self) -> int:
        """The same where layers without attention have none."""
        counts = self.get("attention.head_count_kv")
        if not isinstance(counts, tuple):
            return self.kv_heads
        different = set(cast("tuple[Any, ...]", counts)) - {0}
        count = different.pop() if len(different) == 1 else None
        if type(count) is not int or not 0 < count < _LARGE:
            raise self._wrong("attention.head_count_kv", cast("object", counts))
        return count

    @property
    def head_size(self) -> int:
        width = self.integer("embedding_length")
        if width < self.heads:
            raise self._wrong("embedding_length", width)
        return self.integer("attention.key_length", width // self.heads)

    @property
    def epsilon(self) -> float:
        """Of the norms, whatever kind they are of."""
        both = [f"attention.layer_norm_{kind}" for kind in ("rms_epsilon", "epsilon")]
        return self.real(next((key for key in both if self.get(key) is not None), both[0]))

    @property
    def depth(self) -> int:
        """Number of blocks, but for those behind the last one that predict further tokens."""
        blocks, more = self.integer("block_count"), self.count("nextn_predict_layers")
        if more >= blocks:
            raise self._wrong("nextn_predict_layers", more)
        if blocks > len(self.contents.tensors):
            raise self._wrong("block_count", blocks)
        return blocks - more

    @property
    def feed_forward(self) -> int:
        """The width of the MLP: that of its tensor, for some programs write another one."""
        down = self.first("ffn_down.weight")
        return down.shape[-1] if down else self.integer("feed_forward_length")

    @property
    def expert_width(self) -> int:
        """The width of an expert: that of its tensor, for old files do not say."""
        down = self.first("ffn_down_exps.weight")
        return down.shape[-1] if down else self.integer("expert_feed_forward_length")

    def first(self, name: str) -> Entry | None:
        """The tensor of that name in the first block that has it."""
        blocks: dict[int, Entry] = {}
        for whole, entry in self.contents.tensors.items():
            block = whole.removeprefix("blk.").removesuffix(f".{name}")
            if block.isdecimal() and whole == f"blk.{block}.{name}":
                blocks[int(block)] = entry
        return blocks[min(blocks)] if blocks else None

    def layers_with(self, leaf: str) -> list[bool]:
        """Which layers have a tensor of that name, without its ending."""
        tensors, ends = self.contents.tensors, ("", ".weight")
        return [any(f"blk.{layer}.{leaf}{end}" in tensors for end in ends) for layer in range(self.depth)]

    def outer(self, name: str) -> int:
        """The number of rows of a tensor.

        Raises:
            CheckpointError: there is no such tensor.
        """
        entry = self.contents.tensors.get(name)
        if entry is None or not entry.shape:
            raise bad(self.contents.path, f"has no matrix {shown(name)}")
        return entry.shape[0]

    def has(self, name: str) -> bool:
        """Whether there is such a tensor in any block."""
        return self.first(name) is not None

    def wrong(self, key: str) -> CheckpointError:
        """An error about a setting."""
        return self._wrong(key, self.get(key))

    def _wrong(self, key: str, value: object) -> CheckpointError:
        return bad(self.contents.path, f"has the setting {self.architecture}.{key}: {shown(value)}")


def token_ids(contents: Contents) -> dict[str, int]:
    """The numbers of the special tokens, by the names of config.json."""
    roles = {"bos": "bos", "eos": "eos", "pad": "padding"}
    ids = {
        f"{ours}_token_id": contents.settings.get(f"tokenizer.ggml.{theirs}_token_id")
        for ours, theirs in roles.items()
    }
    return {name: value for name, value in ids.items() if type(value) is int}
