"""The order in which llama.cpp keeps the rows of projections, or their columns."""

from __future__ import annotations

import math

from meldkit.checkpoint.gguf.architectures.architecture import Rows
from meldkit.checkpoint.gguf.blocks import RowOrder
from meldkit.checkpoint.gguf.contents import Entry, bad
from meldkit.checkpoint.gguf.settings import Settings
from meldkit.checkpoint.json_file import shown


def row_order(settings: Settings, rule: Rows | None, entry: Entry, num: int) -> RowOrder | None:
    """Where the rows are that Hugging Face has in order; None if they are in order.

    Args:
        settings: of the file.
        rule: how they are stored.
        entry: the tensor.
        num: how many rows there are; or columns.

    Raises:
        CheckpointError: they are not that many.
    """
    if rule is None:
        return None
    if rule in ("key heads", "values", "last values", "value numbers"):
        return _of_state_space(settings, rule, entry, num)
    heads, kv_heads = settings.heads, settings.some_kv_heads
    own = {
        "query pairs": heads,
        "key pairs": kv_heads,
        "heads": 3 * heads,
        "groups": heads + 2 * kv_heads,
    }[rule]
    pairs = rule in ("query pairs", "key pairs")
    size, rest = divmod(num, own)
    if rest or not size or heads % kv_heads or (pairs and size % 2):
        raise _misfit(entry, f"{heads} heads ({kv_heads} for keys and values)")
    heads_of: tuple[int, ...] = ()
    if rule == "heads":
        heads_of = tuple(which * heads + head for head in range(heads) for which in range(3))
    elif rule == "groups":
        each = heads // kv_heads
        heads_of = tuple(
            stored
            for group in range(kv_heads)
            for stored in (*range(group * each, (group + 1) * each), heads + group, heads + kv_heads + group)
        )
    return RowOrder(size, heads_of, pairs=pairs)


def _of_state_space(settings: Settings, rule: Rows, entry: Entry, num: int) -> RowOrder | None:
    keys, size = settings.integer("ssm.group_count"), settings.integer("ssm.state_size")
    values, inner = settings.integer("ssm.time_step_rank"), settings.integer("ssm.inner_size")
    each, width = values // keys, inner // values
    # How many rows there are at least.
    least = {
        "key heads": 2 * keys * size + inner,
        "values": inner,
        "last values": inner,
        "value numbers": values,
    }[rule]
    if values % keys or inner % values or num < least or (rule != "last values" and num != least):
        raise _misfit(entry, "the heads of its state space")
    if rule == "key heads":
        # Runs of equal length that queries, keys and the values of a key head consist of.
        run = math.gcd(size, each * width)
        key, value = size // run, each * width // run
        starts = ((0, key), (keys * key, key), (2 * keys * key, value))
        order = [
            start + head * length + i
            for head in range(keys)
            for start, length in starts
            for i in range(length)
        ]
        return RowOrder(run, tuple(order))
    if each == 1:
        return None
    if rule == "value numbers":
        width = 1
    before = num - values * width
    run = math.gcd(width, before)
    order = list(range(before // run))
    order += [
        before // run + (turn * keys + head) * (width // run) + i
        for head in range(keys)
        for turn in range(each)
        for i in range(width // run)
    ]
    return RowOrder(run, tuple(order))


def _misfit(entry: Entry, what: str) -> Exception:
    return bad(
        entry.path,
        f"gives tensor {shown(entry.name)} the shape {list(entry.shape)}, which does not fit {what}",
    )
