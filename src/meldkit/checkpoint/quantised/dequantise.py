"""Quantised checkpoints: their tensors as the numbers that they stand for.

The tensors decide what is quantised and how; the configuration gives what they leave open, such as the size
of blocks, and tells whether codes without scales are an error. What belongs to activations and caches is
left out: it was measured on one of the models.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from meldkit.checkpoint.json_file import shown
from meldkit.checkpoint.quantised.model import (
    CODE_TYPES,
    F8,
    ORIGINAL,
    QuantisedModel,
    dtype_of,
    settings_of,
    without_settings,
)
from meldkit.checkpoint.quantised.weights import WEIGHT, decode, scale_names
from meldkit.checkpoint.tensor import TensorInfo

#: What configurations call the methods whose tensors are read.
_METHODS = (
    "fp8",
    "mxfp8",
    "fbgemm_fp8",
    "compressed-tensors",
    "modelopt",
    "modelopt_fp4",
    "mxfp4",
    "nvfp4",
    "quark",
)


@dataclass(frozen=True, slots=True)
class _Foreign:
    """A format that is not read.

    Attributes:
        name: what people call it.
        method: what configurations call it; "" for none of its own.
        marker: names of tensors that only it has.
        hint: what to do.
    """

    name: str
    method: str = ""
    marker: re.Pattern[str] | None = None
    hint: str = ORIGINAL


_FOREIGN = (
    _Foreign(
        "bitsandbytes",
        "bitsandbytes",
        re.compile(r"\.(quant_state\..*|(nested_)?(absmax|quant_map)|SCB|weight_format)\Z"),
        f"{ORIGINAL}, or load it with transformers, call dequantize() and save it",
    ),
    _Foreign("AWQ", "awq"),
    _Foreign("AutoRound", "auto-round"),
    _Foreign("GPTQ", "gptq", re.compile(r"\.g_idx\Z")),
    _Foreign("GPTQ or AWQ", marker=re.compile(r"\.(qweight|qzeros)\Z")),
    _Foreign("HQQ", "hqq", re.compile(r"\.W_q\Z")),
    _Foreign("EETQ", "eetq", re.compile(r"\.weight_scales\Z")),
    _Foreign("Quanto", "quanto", re.compile(r"\._(data|scale|shift)\Z")),
    _Foreign("torchao", "torchao", re.compile(r"[._]weight_qdata\Z")),
    _Foreign("AQLM", "aqlm", re.compile(r"\.codebooks\Z")),
    _Foreign("VPTQ", "vptq", re.compile(r"\.centroids\b")),
    _Foreign("SpQR", "spqr", re.compile(r"\.dense_weights\Z")),
    _Foreign("HIGGS", "higgs", re.compile(r"\.tables2?\Z")),
    _Foreign(
        "compressed-tensors' sparse weights",
        marker=re.compile(r"\.weight\.(compressed|bitmask)\Z|\.scale_packed\Z"),
    ),
)
#: What is stored with a weight besides its codes: added to its name.
_OF_WEIGHT = re.compile(r"(.+?)_(scale(_inv|_2)?|global_scale|zero_point|shape|g_idx)")
#: Of the numbers that enter and leave a module, or are multiplied by a weight that has a name of its own.
_OF_ACTIVATIONS = re.compile(
    r"(.+?)[._](input_(scale(_ub)?|global_scale|zero_point)|output_(scale|zero_point)|activation_scale|qscale_act)"
)
_OF_CACHE = re.compile(r"(.*\.)?([qkv]|kv|prob)_(scale|zero_point)")
#: Names of parameters that hold weights, whatever their format.
_WEIGHTS = re.compile(r".*[._](weight|packed|blocks)")


def dequantised(
    label: str, tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]
) -> tuple[dict[str, TensorInfo], Mapping[str, Any]]:
    """A checkpoint's tensors as the numbers they stand for.

    Args:
        label: the model as the recipe names it, for messages.
        tensors: as they are stored.
        config: config.json.

    Returns:
        The tensors without those that only quantisation needs, and the configuration without what it
        says about that.

    Raises:
        CheckpointError: scales that are missing or do not fit their weights.
        FormatError: a format that is not read.
    """
    model = QuantisedModel(label, tensors, settings_of(config), dtype_of(config))
    _refuse_foreign(model)
    decoded = {name: found for name, info in tensors.items() if (found := decode(model, name, info))}
    if not decoded and model.settings is None:
        return dict(tensors), config
    scales = {scale for _, scale in decoded.values()}
    weights = {weight.name for weight, _ in decoded.values()}
    weights.update(name for name in tensors if name.endswith(WEIGHT))
    values: dict[str, TensorInfo] = {}
    for name, info in tensors.items():
        value = info
        if name in decoded:
            value = decoded[name][0]
        elif name in scales or _is_companion(name, weights):
            continue
        else:
            _check_plain(model, name, info)
        if value.name in values:
            raise model.error(f"tensor {shown(value.name)} is stored twice, as codes and as numbers")
        values[value.name] = value
    return values, without_settings(config)


def _refuse_foreign(model: QuantisedModel) -> None:
    """Refuse what cannot be read, if anything is quantised at all: configurations outlive quantisation."""
    coded = [name for name, info in model.tensors.items() if info.dtype in CODE_TYPES]
    if not coded:
        return
    for foreign in _FOREIGN:
        if foreign.method and foreign.method in model.method:
            raise model.refusal(f"is quantised with {foreign.name}", foreign.hint)
    for foreign in _FOREIGN:
        marked = foreign.marker and next(filter(foreign.marker.search, model.tensors), None)
        if marked:
            raise model.refusal(
                f"is quantised with {foreign.name}, as its tensor {shown(marked)} shows", foreign.hint
            )
    if model.method and model.method not in _METHODS:
        raise model.refusal(
            f"has quant_method {shown(model.method)}, and its tensor {shown(coded[0])} is "
            f"{model.tensors[coded[0]].dtype}",
            f"{ORIGINAL}; read are " + ", ".join(_METHODS),
        )


def _check_plain(model: QuantisedModel, name: str, info: TensorInfo) -> None:
    """Refuse what should have been decoded."""
    if model.settings is None:
        return
    if info.dtype in F8:
        looked_for = ", ".join(shown(scale) for scale in scale_names(name))
        raise model.error(
            f"tensor {shown(name)} is {info.dtype} and config.json says quantised "
            f"({shown(model.method)}), but it has no scale; looked for {looked_for}"
        )
    if info.dtype in CODE_TYPES and _WEIGHTS.fullmatch(name):
        raise model.refusal(
            f"stores the weight {shown(name)} as {info.dtype} {list(info.shape)} "
            f"(quant_method {shown(model.method)})"
        )


def _is_companion(name: str, weights: Collection[str]) -> bool:
    """Whether a tensor says something about a quantised weight, its inputs or a cache."""
    if _OF_CACHE.fullmatch(name):
        return True
    match = _OF_WEIGHT.fullmatch(name)
    if match and match[1] in weights:
        return True
    match = _OF_ACTIVATIONS.fullmatch(name)
    return match is not None and (match[1] in weights or match[1] + WEIGHT in weights)
