"""The element types of the safetensors format and what each is called elsewhere.

Source: https://huggingface.co/docs/safetensors (format section).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DType:
    """One element type.

    Attributes:
        name: safetensors spelling, e.g. "BF16".
        torch: attribute of `torch`, e.g. "bfloat16".
        itemsize: bytes per element.
        floating: whether arithmetic on it has a meaning; other types are copied, never merged.
    """

    name: str
    torch: str
    itemsize: int
    floating: bool


_TABLE = (
    DType("F64", "float64", 8, True),
    DType("F32", "float32", 4, True),
    DType("F16", "float16", 2, True),
    DType("BF16", "bfloat16", 2, True),
    DType("F8_E4M3", "float8_e4m3fn", 1, True),
    DType("F8_E5M2", "float8_e5m2", 1, True),
    DType("F8_E8M0", "float8_e8m0fnu", 1, False),
    DType("I64", "int64", 8, False),
    DType("I32", "int32", 4, False),
    DType("I16", "int16", 2, False),
    DType("I8", "int8", 1, False),
    DType("U64", "uint64", 8, False),
    DType("U32", "uint32", 4, False),
    DType("U16", "uint16", 2, False),
    DType("U8", "uint8", 1, False),
    DType("BOOL", "bool", 1, False),
    DType("C64", "complex64", 8, False),
)

DTYPES: dict[str, DType] = {d.name: d for d in _TABLE}
BY_TORCH_NAME: dict[str, DType] = {d.torch: d for d in _TABLE}
