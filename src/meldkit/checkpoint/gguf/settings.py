"""The settings of a GGUF file, checked as they are looked up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

from meldkit.checkpoint.gguf.contents import Contents, bad
from meldkit.checkpoint.json_file import shown
from meldkit.errors import CheckpointError, NotSupportedError

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
            NotSupportedError: it differs between layers.
        """
        value = self.get(key)
        if isinstance(value, tuple):
            values = set(cast("tuple[object, ...]", value))
            if len(values) > 1:
                raise NotSupportedError(
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

    def per_layer(self, key: str) -> tuple[Any, ...]:
        """A value for each layer.

        Raises:
            CheckpointError: it is not that, or missing.
        """
        values = cast("object", self.get(key))
        if not isinstance(values, tuple) or len(cast("tuple[Any, ...]", values)) != self.integer(
            "block_count"
        ):
            raise self._wrong(key, cast("object", values))
        return cast("tuple[Any, ...]", values)

    @property
    def heads(self) -> int:
        return self.integer("attention.head_count")

    @property
    def kv_heads(self) -> int:
        return self.integer("attention.head_count_kv", self.heads)

    @property
    def head_size(self) -> int:
        return self.integer("attention.key_length", self.integer("embedding_length") // self.heads)

    @property
    def feed_forward(self) -> int:
        """The width of the MLP: that of its tensor, for some programs write another one."""
        down = self.contents.tensors.get("blk.0.ffn_down.weight")
        return down.shape[-1] if down and down.shape else self.integer("feed_forward_length")

    def has(self, name: str) -> bool:
        """Whether there is such a tensor in the first block."""
        return f"blk.0.{name}" in self.contents.tensors

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
