"""The modules of a model, as PEFT sees them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from meldkit.checkpoint import Checkpoint, TensorInfo
from meldkit.errors import MismatchError
from meldkit.layout import infer_layout
from meldkit.tools.lora.experts import is_expert_stack

#: Models whose linear layers store their matrices transposed, and which of them do.
CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp")
_CONV1D_LAYERS = ("c_attn", "c_proj", "c_fc", "q_attn")
#: Experts that are stored one by one.
_EXPERT = re.compile(r"\.experts\.\d+\.")


@dataclass(frozen=True, slots=True)
class Module:
    """A module with a weight.

    Attributes:
        name: without ".weight"; of experts in one tensor, that tensor's.
        base, model: the weight in both; no base for one that only the fine-tune has.
        bias: of the fine-tune and of the base, if both have one.
        kind: linear, embedding, head, experts or other.
        turned: whether the matrix is stored transposed.
    """

    name: str
    base: TensorInfo | None
    model: TensorInfo
    bias: tuple[TensorInfo, TensorInfo] | None
    kind: str
    turned: bool = False


def modules_of(base: Checkpoint, model: Checkpoint) -> Iterator[Module]:
    """The modules of a fine-tune, in its order.

    Args:
        base, model: base and fine-tune.

    Raises:
        MismatchError: the models do not fit together.
    """
    layout, model_type = infer_layout(model, model.config), base.config.get("model_type")
    # What other programs leave out, as it follows from the rest.
    spare = ("rotary_emb.inv_freq", "lm_head.weight")
    lacking = [name for name in base if name not in model and not name.endswith(spare)]
    if lacking:
        raise MismatchError(
            f"'{model.label}' lacks {lacking[0]}, which the base '{base.label}' has",
            hint="the base is the model that the fine-tune began with",
        )
    for name, info in model.tensors.items():
        stack = is_expert_stack(name, info)
        if not (name.endswith(".weight") or stack) or not info.floating:
            continue
        module = name.removesuffix(".weight")
        other = base.tensors.get(name)
        kind = _kind(name, info, layout.places[name].role)
        turned = model_type in CONV1D and module.rpartition(".")[2] in _CONV1D_LAYERS
        if other is not None and other.shape != info.shape and kind not in ("embedding", "head"):
            raise MismatchError(
                f"{name} is {list(info.shape)} in '{model.label}', but {list(other.shape)} in the base",
                hint="the base is the model that the fine-tune began with",
            )
        bias = f"{module}.bias"
        pair = (model.tensors[bias], base.tensors[bias]) if bias in model and bias in base else None
        yield Module(module, other, info, pair, kind, turned)


def _kind(name: str, info: TensorInfo, role: str) -> str:
    """What PEFT has for a module: layers of the usual kinds, whose weight is a matrix."""
    if is_expert_stack(name, info):
        return "experts"
    # Routers are modules of their own kind, and so is T5's table of distances.
    if len(info.shape) != 2 or role == "router" or "relative_attention_bias" in name:
        return "other"
    return {"embedding": "embedding", "lm_head": "head"}.get(role, "linear")


def experts_of(name: str) -> str:
    """A module's name; of an expert, what it has in common with all others of its layer."""
    match = _EXPERT.search(name)
    return name[: match.start()] if match else name


def group_of(name: str) -> str:
    """A module's name; of an expert, without its number."""
    return _EXPERT.sub(".experts.*.", name)
