"""Weights that are stored as codes: their scales by name, and how these lie over them by shape.

    codes                             scales and the like                written by
    X.weight F8 [r, c] or [m, r, c]   X.weight_scale_inv [⌈r/h⌉, ⌈c/w⌉]  DeepSeek, transformers (fp8, mxfp8)
                                      X.weight_scale [], [r, 1] …        compressed-tensors, fbgemm, ModelOpt
    X.weight I8 [r, c]                X.weight_scale, _zero_point        compressed-tensors
    X.weight_packed I32 [r, c/8]      X.weight_scale, _zero_point        compressed-tensors (4 or 8 bits)
    X.weight_packed U8 [r, c/2]       X.weight_scale, _global_scale      compressed-tensors (MXFP4, NVFP4)
    X.weight U8 or I8 [r, c/2]        X.weight_scale, _scale_2           ModelOpt (NVFP4), DeepSeek (MXFP4)
    X_blocks U8 [m, c, g, 16]         X_scales U8 [m, c, g]              GPT-OSS (MXFP4, transposed)

Parameters of fused modules have names without `.weight`.

Sources: `transformers.integrations` (finegrained_fp8, fbgemm_fp8, mxfp4, compressed_tensors);
compressed-tensors, `compressors/`; vLLM, `quantization/modelopt.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from meldkit.checkpoint.json_file import shown
from meldkit.checkpoint.quantised.model import CODE_TYPES, F8, QuantisedModel
from meldkit.checkpoint.quantised.scaled import Grid, PackedRows, PowersOfTwo, Scaled, TransposedFp4
from meldkit.checkpoint.tensor import TensorInfo

#: Types of scales that hold exponents.
_EXPONENTS = ("U8", "F8_E8M0")
WEIGHT = ".weight"
#: Endings of a weight's scales: added to its name, or in the place of `.weight`.
_SCALES = ("_scale_inv", "_scale")
_MODULE_SCALES = (".scale", ".qscale_weight")
#: 4-bit floats that have a scale in common, in the two formats.
_MX_GROUP, _NV_GROUP = 32, 16
#: Height and width of blocks where the configuration names none.
_USUAL_BLOCKS = ((128, 128),)

#: A weight that is stored as codes, and the name of its scales.
_Decoded = tuple[TensorInfo, str]


def decode(model: QuantisedModel, name: str, info: TensorInfo) -> _Decoded | None:
    """The weight that a tensor holds the codes of; None if it holds none."""
    if info.dtype not in CODE_TYPES:
        return None
    stem, _, ending = name.rpartition("_")
    if ending == "blocks" and f"{stem}_scales" in model.tensors:
        return _transposed_fp4(model, stem, info, model.tensors[f"{stem}_scales"])
    target = stem if ending == "packed" else name
    scale = next((model.tensors[s] for s in scale_names(target) if s in model.tensors), None)
    if scale is None:
        return None
    if info.encoding is not None or len(info.shape) < 2:
        raise model.refusal(f"stores the codes {shown(name)} of shape {list(info.shape)} in no usual way")
    if f"{target.removesuffix('weight')}pre_quant_scale" in model.tensors:
        raise model.refusal(f"has a pre_quant_scale for the inputs of {shown(target)}, as AWQ needs")
    if info.dtype == "I32" and target != name:
        return _packed_integers(model, target, info, scale)
    # Under its method for 8-bit floats transformers stores 4-bit ones as I8.
    if info.dtype == "U8" or (info.dtype == "I8" and (scale.dtype in _EXPONENTS or model.method == "fp8")):
        return _fp4(model, target, info, scale)
    if info.dtype in (*F8, "I8"):
        return _bytes(model, info, scale)
    return None


def _bytes(model: QuantisedModel, info: TensorInfo, scale: TensorInfo) -> _Decoded:
    """One code to a byte: 8-bit floats or integers."""
    columns = info.shape[-1]
    if model.method == "fbgemm_fp8" and scale.shape == (info.shape[0], columns, 1):
        # Experts are quantised transposed, and the shape of the scales stays so.
        scale = replace(scale, shape=(info.shape[0], 1, columns))
    grid = _grid(model, info, scale)
    zero = model.tensors.get(f"{info.name}_zero_point")
    if zero is not None and (zero.shape != scale.shape or zero.dtype not in (*F8, "I8")):
        raise model.misfit(zero, info)
    encoding = Scaled(info.dtype, grid, replace(grid, numbers=zero) if zero else None)
    return replace(info, dtype=model.dtype, encoding=encoding), scale.name


def _fp4(model: QuantisedModel, name: str, info: TensorInfo, scale: TensorInfo) -> _Decoded:
    """Two 4-bit floats to a byte, a scale for each group of them in a row."""
    if info.dtype == "U8" and scale.dtype not in ("F8_E4M3", *_EXPONENTS):
        raise model.refusal(
            f"stores the weight {shown(name)} as {info.dtype} {list(info.shape)} with {scale.dtype} scales"
        )
    weight = replace(info, name=name, dtype=model.dtype, shape=(*info.shape[:-1], 2 * info.shape[-1]))
    size = _NV_GROUP if scale.dtype == "F8_E4M3" else _MX_GROUP
    groups, rest = divmod(weight.shape[-1], size)
    if rest or scale.shape != (*weight.shape[:-1], groups):
        raise model.refusal(
            f"stores the weight {shown(name)} as {info.dtype} {list(info.shape)} with scales "
            f"{scale.dtype} {list(scale.shape)}, which are not of 4-bit floats in groups of {size}"
        )
    rows = weight.shape[-2]
    numbers = _numbers(model, scale)
    for ending, inverse in (("_global_scale", True), ("_scale_2", False)):
        factor = model.tensors.get(name + ending)
        if factor is not None:
            if factor.numel != 1 or scale.dtype not in F8:
                raise model.misfit(factor, scale)
            of_all = Grid(factor, 1, 1, (rows, groups), per_matrix=False)
            numbers = replace(scale, dtype="F32", encoding=Scaled(scale.dtype, of_all, inverse=inverse))
    grid = Grid(numbers, rows, groups, (1, size), per_matrix=True)
    return replace(weight, encoding=Scaled("E2M1", grid)), scale.name


def _packed_integers(model: QuantisedModel, name: str, info: TensorInfo, scale: TensorInfo) -> _Decoded:
    """Four or eight small integers to an int32, as the configuration says."""
    if f"{name}_g_idx" in model.tensors:
        raise model.refusal(f"groups the columns of {shown(name)} in another order (its _g_idx)")
    if len(info.shape) != 2 or len(scale.shape) != 2:
        raise model.refusal(
            f"packs {shown(name)} as {list(info.shape)} with scales {list(scale.shape)}, not as matrices"
        )
    rows, words = info.shape
    widths = {bits: words * 32 // bits for bits in model.integer_bits()}
    groups = model.group_sizes()
    fitting = [
        bits
        for bits, columns in widths.items()
        if scale.shape[0] == rows
        and scale.shape[1]
        and columns % scale.shape[1] == 0
        and (scale.shape[1] == 1 or columns // scale.shape[1] in groups)
    ]
    if len(fitting) != 1:
        raise model.error(
            f"{shown(info.name)} {list(info.shape)} and {shown(scale.name)} {list(scale.shape)} leave open "
            f"what is packed: config.json says {' or '.join(map(str, widths)) or 'no'} bits that are read, "
            f"groups of {' or '.join(map(str, groups)) or 'rows'}"
        )
    bits = fitting[0]
    codes = "I4+8" if bits == 4 else "I8+128"
    columns = widths[bits]
    grid = Grid(_numbers(model, scale), rows, scale.shape[1], (1, columns // scale.shape[1]), per_matrix=True)
    zero = model.tensors.get(f"{name}_zero_point")
    zeros = None
    if zero is not None:
        if zero.dtype == "I32" and zero.shape == (-(-rows * bits // 32), scale.shape[1]):
            zero = replace(zero, dtype="F32", shape=scale.shape, encoding=PackedRows(codes))
        elif zero.shape != scale.shape or zero.dtype != "I8":
            raise model.misfit(zero, info)
        zeros = replace(grid, numbers=zero)
    shape = model.tensors.get(f"{name}_shape")
    weight = replace(info, name=name, dtype=model.dtype, shape=(rows, columns))
    return replace(weight, encoding=Scaled(codes, grid, zeros, stated_shape=shape)), scale.name


def _transposed_fp4(model: QuantisedModel, name: str, info: TensorInfo, scale: TensorInfo) -> _Decoded:
    """The experts of GPT-OSS: 4-bit floats of matrices that are stored transposed."""
    if info.dtype != "U8" or scale.dtype != "U8" or len(info.shape) != 4:
        raise model.refusal(
            f"stores {shown(info.name)} as {info.dtype} {list(info.shape)} and its scales as {scale.dtype}"
        )
    matrices, columns, groups, nbytes = info.shape
    if scale.shape != (matrices, columns, groups):
        raise model.misfit(scale, info)
    shape = (matrices, groups * nbytes * 2, columns)
    return replace(info, name=name, dtype=model.dtype, shape=shape, encoding=TransposedFp4(scale)), scale.name


def _grid(model: QuantisedModel, info: TensorInfo, scale: TensorInfo) -> Grid:
    """How scales lie over a weight of one code to a byte: per tensor, row, column, group or block."""
    *stack, rows, columns = info.shape
    shape = scale.shape
    per_matrix = True
    if scale.numel == 1:
        below, beside, per_matrix = 1, 1, False
    elif len(shape) == len(info.shape) and [*shape[:-2]] in (stack, [1] * len(stack)):
        below, beside = shape[-2:]
        per_matrix = [*shape[:-2]] == stack
    elif shape == info.shape[:-1]:
        below, beside = rows, 1
    elif stack and [*shape] == stack:
        below, beside = 1, 1
    elif len(info.shape) == 2 and len(shape) == 4 and shape[1] == shape[3] == 1:
        # ModelOpt keeps the dimensions over which it took the maximum.
        below, beside = shape[0], shape[2]
    else:
        raise model.misfit(scale, info)
    halves = bool(stack) and "gate_up" in info.name
    block = _block(rows, columns, below, beside, model.blocks(), halves=halves)
    if block is None:
        raise model.misfit(scale, info)
    return Grid(_numbers(model, scale), below, beside, block, per_matrix)


def _block(
    rows: int, columns: int, below: int, beside: int, blocks: Sequence[tuple[int, int]], *, halves: bool
) -> tuple[int, int] | None:
    """Height and width of the blocks, of which there are `below` × `beside`; None if none fit.

    Args:
        rows, columns: of the matrix.
        below, beside: of the grid.
        blocks: that the configuration names; empty if it names none.
        halves: the matrix is two, one above the other, that were quantised apart.
    """
    for height, width in blocks or _USUAL_BLOCKS:
        if -(-columns // width) != beside:
            continue
        if halves and below == 2 and rows % 2 == 0 and rows // 2 <= height:
            return rows // 2, width
        if -(-rows // height) == below:
            return height, width
    sides = [
        n if parts == 1 else 1 if parts == n else None for n, parts in ((rows, below), (columns, beside))
    ]
    if None not in sides:
        return cast("tuple[int, int]", tuple(sides))
    if not blocks and rows % max(below, 1) == 0 and columns % max(beside, 1) == 0 and below and beside:
        return rows // below, columns // beside
    return None


def _numbers(model: QuantisedModel, scale: TensorInfo) -> TensorInfo:
    """Scales as numbers."""
    if scale.dtype in _EXPONENTS:
        return replace(scale, dtype="F32", encoding=PowersOfTwo())
    if not scale.floating:
        raise model.refusal(f"has {scale.dtype} scales {shown(scale.name)}")
    return scale


def scale_names(name: str) -> list[str]:
    names = [name + ending for ending in _SCALES]
    if name.endswith(WEIGHT):
        names += [name.removesuffix(WEIGHT) + ending for ending in _MODULE_SCALES]
    return names
