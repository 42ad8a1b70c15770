"""What is known of an architecture, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from meldkit.checkpoint.gguf.blocks import Change
from meldkit.checkpoint.gguf.settings import Settings

#: What of config.json is particular to an architecture.
Describe = Callable[[Settings], Mapping[str, Any]]
#: Tensors that a file keeps as settings, by their names: shapes, and what all their elements are.
Constants = Callable[[Settings], Mapping[str, tuple[tuple[int, ...], float]]]
#: How rows (or columns) are stored in another order:
#: - pairs: rotated in pairs inside of heads, where Hugging Face rotates halves;
#: - heads, groups, key heads: query, key and value of all heads one after the other, where Hugging Face has
#:   them head by head, group by group, or key head by key head;
#: - values, value numbers: the first value of all key heads, then the second one and so on, where Hugging
#:   Face has all values of a key head together; "last values" come after queries and keys.
Rows = Literal[
    "query pairs", "key pairs", "heads", "groups", "key heads", "values", "last values", "value numbers"
]
#: What is taken by turns from tensors that are one in Hugging Face's layout.
Run = Literal["element", "row", "matrix", "tensor", "key head"]


@dataclass(frozen=True, slots=True)
class Leaf:
    """Where a stored tensor goes, and what is to be done with it; in this order.

    Attributes:
        name: in Hugging Face's layout, without the ending; a `{}` stands for the number of an expert.
        weight: ending of the weight's name; `.weight` in the file.
        bias: ending of the bias's name; `.bias` in the file.
        rows: order of its rows, if it is not the same.
        columns: order of its columns, if it is not the same.
        change: what llama.cpp does to its values.
        turned: its last two sizes are exchanged.
        ones: places of its sizes of 1 in Hugging Face's layout; other ones that the file has are left out.
        part: which part of a tensor it is; None if it is a whole one.
        run: what is taken by turns from each part.
        flat: its first two sizes are one in Hugging Face's layout.
        padding: rows of zeros before the first one.
    """

    name: str
    weight: str = ".weight"
    bias: str = ".bias"
    rows: Rows | None = None
    columns: Rows | None = None
    change: Change = "as stored"
    turned: bool = False
    ones: tuple[int, ...] = ()
    part: int | None = None
    run: Run = "tensor"
    flat: bool = False
    padding: int = 0


@dataclass(frozen=True, slots=True)
class Mtp:
    """Blocks behind the last one, which predict further tokens.

    Attributes:
        blocks: what stands before their leaves; `{block}` is the number in the file, `{own}` counts from 0.
        leaves: what they have besides the leaves of all blocks.
        names: what all of them share; no number before it.
        setting: of config.json, their number; None if there is no such.
    """

    blocks: str
    leaves: Mapping[str, str] = field(default_factory=dict[str, str])
    names: Mapping[str, str] = field(default_factory=dict[str, str])
    setting: str | None = None


@dataclass(frozen=True, slots=True)
class Architecture:
    """An architecture whose tensors are known.

    Attributes:
        model_type, class_name: of transformers.
        describe: gives its configuration.
        names: tensors outside of blocks.
        blocks: what stands before a block's number; `{stack}` is encoder or decoder.
        leaves: tensors in blocks; those of an encoder or decoder begin with `enc.` or `dec.`.
        raised_norms: the weights of norms are stored with one added, but for that of a state space.
        left_out: tensors that Hugging Face does not store: copies, and settings in disguise.
        constants: gives tensors that the file keeps as settings.
        mtp: blocks behind the last one; None if such files are not known.
    """

    model_type: str
    class_name: str
    describe: Describe
    names: Mapping[str, str | Leaf]
    blocks: str
    leaves: Mapping[str, str | Leaf]
    raised_norms: bool = False
    left_out: frozenset[str] = frozenset({"rope_freqs", "rope_factors_long", "rope_factors_short"})
    constants: Constants | None = None
    mtp: Mtp | None = None
