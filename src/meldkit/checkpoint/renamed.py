"""The same model under other names: with or without a prefix, or as another transformers stores it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from meldkit.checkpoint.tensor import TensorInfo

#: A model that shares more than this part of the reference's names goes by them already.
_SHARED = 0.5
#: Components at the end of two names of one tensor that are alike: the module's and the parameter's own.
_TAIL = 2


def alike(tensors: Mapping[str, TensorInfo], reference: Mapping[str, TensorInfo]) -> bool:
    """Whether two models have tensors of the same names and shapes."""
    return len(tensors) == len(reference) and all(
        name in reference and info.shape == reference[name].shape for name, info in tensors.items()
    )


def as_named_by(
    tensors: Mapping[str, TensorInfo], reference: Mapping[str, TensorInfo]
) -> Mapping[str, TensorInfo]:
    """A model's tensors under a reference's names, if it is the same kind of model under other names.

    Two names mean one tensor if their shapes, their numbers and their last components are equal and no other
    name has as many components in common, in whatever order: `h.0.ln_1.weight` is
    `transformer.h.0.ln_1.weight`, and `language_model.model.norm.weight` is
    `model.language_model.norm.weight`.

    Args:
        tensors: of the model.
        reference: of the model whose names are wanted.

    Returns:
        `tensors` itself if most names are shared, or if names do not belong together one by one.
    """
    missing = [name for name in reference if name not in tensors]
    if len(missing) < _SHARED * len(reference):
        return tensors
    wanted: dict[object, list[str]] = {}
    for name in missing:
        wanted.setdefault(_key(name, reference[name]), []).append(name)
    names: dict[str, str] = {}
    for name, info in tensors.items():
        if name in reference:
            continue
        found = _nearest(name, wanted.get(_key(name, info), ()))
        if found is not None:
            names[name] = found
    # One by one, and nearly all: else they are models of different kinds that share some words.
    if len(set(names.values())) < len(names) or len(names) <= _SHARED * len(missing):
        return tensors
    return {
        names.get(name, name): replace(info, name=names.get(name, name)) for name, info in tensors.items()
    }


def _key(name: str, info: TensorInfo) -> object:
    parts = name.split(".")
    return info.shape, tuple(p for p in parts if p.isdigit()), tuple(parts[-_TAIL:])


def _nearest(name: str, candidates: tuple[str, ...] | list[str]) -> str | None:
    """The candidate with the most components in common; None if two have as many."""
    own = Counter(name.split("."))
    ranked = sorted(((own & Counter(other.split("."))).total(), other) for other in candidates)
    if not ranked or (len(ranked) > 1 and ranked[-1][0] == ranked[-2][0]):
        return None
    return ranked[-1][1]
