"""The models of a mixture of experts, and whether they fit together."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from meldkit.checkpoint import Checkpoint, TensorInfo
from meldkit.checkpoint.experts import ExpertLayer, expert_layers
from meldkit.composed import Altered, altered, cast_to
from meldkit.errors import MismatchError, NotSupportedError, RecipeError, did_you_mean
from meldkit.recipe import ModelRef
from meldkit.tools.moe.config import PROMPTED, Expert, Mixture
from meldkit.tools.moe.dense import Dense, read_dense
from meldkit.tools.moe.families import FAMILIES, Family

Matrices = Mapping[str, TensorInfo]
#: Where configurations of mixtures say how many experts a token takes; and how many it does of dense models'.
PER_TOKEN = ("num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts")
_USUAL = 2


@dataclass(frozen=True, slots=True)
class Parts:
    """The models of a mixture, found to fit together.

    Attributes:
        mixture: with every expert by itself.
        base: gives all but the experts.
        family: what a dense base becomes; None where the base is a mixture, which keeps its kind.
        models: all that take part, the base first.
        experts: by what the names of a layer begin with, the matrices of each expert; from the first layer to
            the last.
        shared: the same of shared experts.
        layers: of a base that is a mixture, its own experts.
        per_token: experts that a token takes.
        warnings: about it, in words.
    """

    mixture: Mixture
    base: Dense | Checkpoint
    family: Family | None
    models: tuple[Checkpoint, ...]
    experts: Mapping[str, Sequence[Matrices]]
    shared: Mapping[str, Sequence[Matrices]]
    layers: Mapping[str, ExpertLayer]
    per_token: int
    warnings: tuple[str, ...]

    @property
    def checkpoint(self) -> Checkpoint:
        """The base as it is stored."""
        return self.base.checkpoint if isinstance(self.base, Dense) else self.base

    @property
    def needs_gates(self) -> tuple[Expert, ...]:
        """The experts that gates are made for: those that come without one, and shared ones that have one."""
        own = tuple(expert for expert in self.mixture.experts if not self.has_gate(expert))
        gated = self.family is not None and bool(self.family.shared_gate)
        return own + (self.mixture.shared if gated else ())

    @property
    def numbers(self) -> tuple[int, ...]:
        """Of the layers that have experts, which layers of the model they are."""
        return tuple(_numbers(block)[-1] for block in self.experts)

    def has_gate(self, expert: Expert) -> bool:
        """Whether an expert is one of the base's own, with a gate that it keeps."""
        return self.family is None and expert.model == self.mixture.base and not expert.positive


def gather(mixture: Mixture, open_model: Callable[[ModelRef], Checkpoint], seed: int = 0) -> Parts:
    """Open the models of a mixture, and see whether they fit together.

    Args:
        mixture: what is to be made.
        open_model: opens what a reference names.
        seed: of noise.

    Raises:
        RecipeError: no mixture can be made like this.
        MismatchError: the models do not fit together.
        NotSupportedError: a model is of a kind that is not known here.
    """
    opened = {ref: open_model(ref) for ref in mixture.models()}
    stored = {ref: {layer.block: layer for layer in expert_layers(c.tensors)} for ref, c in opened.items()}
    experts = [one for expert in mixture.experts for one in _each(expert, stored[expert.model])]
    mixture = replace(mixture, experts=tuple(experts))
    dense: dict[ModelRef, Dense] = {}

    def matrices(expert: Expert) -> dict[str, Matrices]:
        """By layer."""
        if isinstance(expert.number, int):
            return {b: _of_mixture(expert, layer) for b, layer in stored[expert.model].items()}
        if expert.model not in dense:
            dense[expert.model] = read_dense(opened[expert.model])
        return dict(dense[expert.model].layers)

    own = stored[mixture.base]
    base = opened[mixture.base] if own else read_dense(opened[mixture.base])
    family = None if isinstance(base, Checkpoint) else _family(mixture, opened)
    for key in ("architecture", "fused"):
        if family is None and getattr(mixture, key):
            raise NotSupportedError(
                f"the base '{mixture.base}' is a mixture itself, whose kind and storage stay as they are",
                hint=f"leave out {key}",
            )
    if family is None and mixture.shared:
        raise NotSupportedError(
            f"the base '{mixture.base}' is a mixture itself, whose shared experts stay as they are",
            hint="leave out shared_experts",
        )
    # Files have layer 10 before layer 2.
    blocks = sorted(own if isinstance(base, Checkpoint) else base.layers, key=_numbers)
    routed, shared = ([matrices(e) for e in found] for found in (mixture.experts, mixture.shared))
    named = [*zip(mixture.experts, routed, strict=True), *zip(mixture.shared, shared, strict=True)]
    _check_shapes(mixture, base, own, named)
    configs = {ref: opened[ref].config for ref in opened} | {ref: d.config for ref, d in dense.items()}
    _check_activations(mixture, base.config, configs)
    per_token = mixture.experts_per_token
    if per_token is None:
        own_config: dict[str, Any] = dict(opened[mixture.base].config) if family is None else {}
        usual = own_config | dict(own_config.get("text_config") or {})
        per_token = next((n for key in PER_TOKEN if isinstance(n := usual.get(key), int)), _USUAL)
        per_token = min(per_token, len(mixture.experts)) if family is None else per_token
    if per_token > len(mixture.experts):
        there = "is 1 expert" if len(experts) == 1 else f"are {len(experts)} experts"
        raise RecipeError(
            f"experts_per_token is {per_token}, but there {there}",
            hint="a token cannot take more experts than there are",
        )
    dtypes = {b: {role: info.dtype for role, info in m.items()} for b, m in _layers_of(base, own).items()}
    return Parts(
        mixture=mixture,
        base=base,
        family=family,
        models=tuple(opened.values()),
        experts=_by_layer(f"{seed}\0experts", blocks, mixture.experts, routed, dtypes),
        shared=_by_layer(f"{seed}\0shared_experts", blocks, mixture.shared, shared, dtypes),
        layers=own,
        per_token=per_token,
        warnings=tuple(_warnings(mixture)),
    )


def _layers_of(base: Dense | Checkpoint, own: Mapping[str, ExpertLayer]) -> Mapping[str, Matrices]:
    """By layer, what experts are to be like: the base's feed-forward part, or its first expert."""
    return base.layers if isinstance(base, Dense) else {b: layer.experts[0] for b, layer in own.items()}


def _numbers(block: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", block)))


def _by_layer(
    kind: str,
    blocks: Sequence[str],
    experts: Sequence[Expert],
    matrices: Sequence[Mapping[str, Matrices]],
    dtypes: Mapping[str, Mapping[str, str]],
) -> dict[str, list[Matrices]]:
    """Of each layer, the matrices of each expert with what is changed in them, in the base's types."""
    return {
        block: [
            # By their places: of where they stand in a file, the record of the output says nothing.
            {
                role: cast_to(dtypes[block][role], info)
                for role, info in _changed(expert, f"{kind}[{number}]\0{block}", own[block]).items()
            }
            for number, (expert, own) in enumerate(zip(experts, matrices, strict=True))
        ]
        for block in blocks
    }


def _each(expert: Expert, layers: Mapping[str, ExpertLayer]) -> Iterator[Expert]:
    """An entry as the experts that it names."""
    if not layers:
        if expert.number is not None:
            raise MismatchError(
                f"{expert.where}: '{expert.model}' is dense and has no experts to choose from",
                hint="leave out 'expert'",
            )
        yield expert
        return
    count = min(len(layer.experts) for layer in layers.values())
    if expert.number is None:
        raise RecipeError(
            f"{expert.where}: '{expert.model}' is a mixture of {count} experts, and none of them is named",
            hint=f"add 'expert: 0', 'expert: [0, 1]' or 'expert: all'; the last one is {count - 1}",
        )
    numbers = range(count) if expert.number == "all" else (expert.number,)
    for number in numbers:
        if number >= count:
            raise RecipeError(
                f"{expert.where}: '{expert.model}' has no expert {number}",
                hint=f"it has {count}, counted from 0 to {count - 1}",
            )
        yield replace(expert, number=number)


def _of_mixture(expert: Expert, layer: ExpertLayer) -> Matrices:
    assert isinstance(expert.number, int)
    return layer.experts[expert.number]


def _changed(expert: Expert, key: str, matrices: Matrices) -> Matrices:
    """An expert's matrices with scale, and noise that depends on the key."""
    return {
        role: altered(
            info,
            Altered(
                info,
                noise=expert.noise,
                scale=expert.scale if role == "down" else 1.0,
                key=f"{key}\0{role}",
            ),
        )
        for role, info in matrices.items()
    }


def _family(mixture: Mixture, opened: Mapping[ModelRef, Checkpoint]) -> Family:
    """What the dense models become."""
    wanted = (mixture.architecture or "").lower()
    named = [family for family in FAMILIES if family.name.startswith(wanted)]
    if not named:
        names = [family.name for family in FAMILIES]
        raise RecipeError(
            f"unknown architecture '{mixture.architecture}'",
            hint=did_you_mean(wanted, names),
        )
    refused: list[tuple[Family, str]] = []
    for family in named:
        reason = _why_not(family, mixture, opened)
        if reason is None:
            return family
        refused.append((family, f"{family.name}: {reason}"))
    # What the base cannot become at all is of no interest where there is something else.
    own = opened[mixture.base].config.get("model_type")
    near = [reason for family, reason in refused if own in family.sources]
    reasons = "; ".join(near or [reason for _, reason in refused])
    raise MismatchError(f"no kind of mixture fits: {reasons}", hint="see docs/moe.md for what fits what")


def _why_not(family: Family, mixture: Mixture, opened: Mapping[ModelRef, Checkpoint]) -> str | None:
    """Why models cannot become a mixture of this kind; None if they can."""
    base = opened[mixture.base].config
    for checkpoint in opened.values():
        kind = str(checkpoint.config.get("model_type"))
        if kind not in family.sources:
            known = ", ".join(sorted(family.sources))
            return f"not from models of type '{kind}', as '{checkpoint.label}' is, but {known}"
    kind = str(base.get("model_type"))
    if base.get("attention_bias") and not family.biases and kind in ("llama", "mistral", "qwen3"):
        return "it has no biases in attention, as the base has"
    if any(name.endswith("self_attn.o_proj.bias") for name in opened[mixture.base]):
        return "its o_proj has no bias, as that of the base has"
    fewest, most = family.num_shared
    count = len(mixture.shared)
    if not fewest <= count <= most:
        wanted = str(fewest) if fewest == most else f"{fewest} to {most}"
        return f"'shared_experts' has {count} entries, it takes {wanted}"
    prompts = any(expert.positive for expert in mixture.shared)
    if family.shared_gate and mixture.gate_mode in PROMPTED and not prompts:
        return "its shared expert has a gate, for which it needs prompts"
    if prompts and not family.shared_gate:
        return "its shared expert has no gate, so that prompts for it say nothing"
    return None


def _check_shapes(
    mixture: Mixture,
    base: Dense | Checkpoint,
    own: Mapping[str, ExpertLayer],
    found: Sequence[tuple[Expert, Mapping[str, Matrices]]],
) -> None:
    """Every expert has the base's layers, and matrices of the same shapes."""
    layers = _layers_of(base, own)
    for expert, matrices in found:
        if lacking := [block for block in layers if block not in matrices]:
            raise MismatchError(
                f"expert '{expert}' has {len(matrices)} layers, the base '{mixture.base}' has {len(layers)}; "
                f"it lacks {lacking[0].rstrip('.')}",
                hint="experts are models of the same depth and names as the base",
            )
        if len(matrices) > len(layers):
            raise MismatchError(
                f"expert '{expert}' has {len(matrices)} layers, the base '{mixture.base}' has {len(layers)}",
                hint="experts are models of the same depth and names as the base",
            )
        for block, roles in layers.items():
            if more := [role for role in matrices[block] if role not in roles]:
                raise MismatchError(
                    f"expert '{expert}' has a {more[0]} projection in {block.rstrip('.')}, the base "
                    f"'{mixture.base}' has none",
                    hint="experts are models of the same kind as the base",
                )
            for role, info in roles.items():
                if role not in matrices[block] or matrices[block][role].shape != info.shape:
                    shape = list(matrices[block][role].shape) if role in matrices[block] else "missing"
                    raise MismatchError(
                        f"the {role} projection of expert '{expert}' in {block.rstrip('.')} is {shape}, that "
                        f"of the base '{mixture.base}' {list(info.shape)}",
                        hint="experts are models of the same sizes as the base",
                    )


def _check_activations(
    mixture: Mixture, base: Mapping[str, Any], configs: Mapping[ModelRef, Mapping[str, Any]]
) -> None:
    """A mixture has one activation function, of which weights tell nothing."""
    own = base.get("hidden_act")
    for expert in (*mixture.experts, *mixture.shared):
        theirs = configs[expert.model].get("hidden_act")
        if None not in (own, theirs) and theirs != own:
            raise MismatchError(
                f"expert '{expert}' has hidden_act {theirs}, the base '{mixture.base}' has {own}",
                hint="a mixture has one activation function for all experts",
            )


def needs_shared(model_type: str) -> bool:
    """Whether all kinds of mixtures that such dense models can become have a shared expert."""
    kinds = [family for family in FAMILIES if model_type in family.sources]
    return bool(kinds) and all(family.num_shared[0] for family in kinds)


def _warnings(mixture: Mixture) -> Iterator[str]:
    count = len(mixture.experts)
    if count & (count - 1):
        yield f"{count} experts are no power of two; llama.cpp and some other programs want one"
    same = {(e.model, e.number, e.noise, e.scale) for e in mixture.experts}
    # Noise is drawn for each expert by itself.
    if len(same) == 1 and count > 1 and not mixture.experts[0].noise:
        yield "all experts are the same: the mixture computes what one of them does until it is trained"
