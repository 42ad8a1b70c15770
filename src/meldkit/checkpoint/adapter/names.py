"""Names of modules as an adapter's training program saw them, found again in a checkpoint.

The same weight has several names. transformers loads `language_model.model.layers.0…` into
`model.language_model.layers.0…`, and `encoder.layer.0…` of a plain BERT into `bert.encoder.layer.0…` of one
with a head. It also joins the experts that Mixtral's and Qwen's checkpoints store one by one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from functools import cached_property

from meldkit.errors import MismatchError

#: What transformers 5 renames inside of names as it reads them; adapters and checkpoints may have either.
_RENAMED = ((".mlp.", ".block_sparse_moe."), (".block_sparse_moe.", ".mlp."))
_EXPERT = re.compile(r"(?P<experts>.+\.experts)\.(?P<index>0|[1-9]\d{0,5})\.(?P<leaf>\w+)\.weight")


class Names:
    """Names to be found, also where others say them differently.

    Args:
        names: as they are stored.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names

    @cached_property
    def _by_tail(self) -> Mapping[str, list[str]]:
        return _grouped((_tail(name), name) for name in self._names)

    def find(self, wanted: str) -> str | None:
        """The stored name that is meant: the same, or the only one that is like it.

        Two names are alike if they are equal from the first number's component on (those without numbers: in
        the last two components), and if one is an end of the other or their beginnings share a component. Of
        several such names the one is meant whose beginning shares most and differs least.

        Raises:
            MismatchError: several names are equally like it.
        """
        if wanted in self._names:
            return wanted
        for form in (wanted, *(wanted.replace(new, old) for new, old in _RENAMED if new in wanted)):
            if form in self._names:
                return form
            scores: dict[str, tuple[int, int]] = {}
            for name in self._by_tail.get(_tail(form), ()):
                score = _likeness(form, name)
                if score is not None:
                    scores[name] = score
            best = [name for name, score in scores.items() if score == max(scores.values())]
            if len(best) > 1:
                raise MismatchError(
                    f"'{wanted}' may mean '{best[0]}' or '{best[1]}'",
                    hint="rename the modules in one of the two files so that only one fits",
                )
            if best:
                return best[0]
        return None


class Experts:
    """Modules of experts that are stored one by one.

    Args:
        names: every tensor of a checkpoint.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._leaves: dict[str, dict[str, dict[int, str]]] = {}
        for name in names:
            match = _EXPERT.fullmatch(name)
            if match:
                leaves = self._leaves.setdefault(match["experts"], {})
                leaves.setdefault(match["leaf"], {})[int(match["index"])] = name
        self._modules = Names(self._leaves)

    def find(self, module: str, leaves: tuple[str, ...]) -> list[tuple[str, ...]] | None:
        """The names of these weights of each expert, in order; None if this module is not stored so."""
        found = self._modules.find(module)
        stored = self._leaves.get(found or "", {})
        if not all(leaf in stored for leaf in leaves):
            return None
        count = len(stored[leaves[0]])
        if any(stored[leaf].keys() != set(range(count)) for leaf in leaves):
            return None
        return [tuple(stored[leaf][i] for leaf in leaves) for i in range(count)]


def _tail(name: str) -> str:
    """The end of a name that other programs leave as it is."""
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
    return ".".join(parts[-2:] if number is None else parts[max(0, number - 1) :])


def _likeness(wanted: str, name: str) -> tuple[int, int] | None:
    """Of the beginnings of two names of equal tails: the number of components in both, and minus that in one.

    None if the names are not alike.
    """
    length = _tail(wanted).count(".") + 1
    first, second = (set(n.split(".")[:-length]) for n in (wanted, name))
    shared = first & second
    is_end = f".{wanted}".endswith(f".{name}") or f".{name}".endswith(f".{wanted}")
    return (len(shared), -len(first ^ second)) if shared or is_end else None


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups
