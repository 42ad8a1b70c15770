"""Names of tensor types, as recipes spell them."""

from __future__ import annotations

from meldkit.errors import did_you_mean
from meldkit.recipe.problem import Problem, kind_of

DTYPES = ("float32", "float16", "bfloat16", "float64", "float8_e4m3fn")
"""The types a merged tensor may have, by torch's names."""

SPELLINGS = {
    **{name: name for name in DTYPES},
    "fp32": "float32",
    "float": "float32",
    "fp16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
    "fp64": "float64",
    "double": "float64",
    "fp8": "float8_e4m3fn",
}
"""How they may be written, in any case."""


def parse_dtype(raw: object) -> str | None:
    """The canonical name of a type; None for null and "auto", which leave the type open.

    Args:
        raw: a name such as "bfloat16", "bf16" or "torch.bfloat16", or the torch.dtype itself.

    Raises:
        RecipeError: no such type.
    """
    if raw is None:
        return None
    text = str(raw).strip()
    if not isinstance(raw, str) and not text.startswith("torch."):
        raise Problem(f"a dtype must be text, got {kind_of(raw)}", hint="known: " + ", ".join(DTYPES))
    name = text.removeprefix("torch.").lower()
    if name == "auto":
        return None
    if name not in SPELLINGS:
        raise Problem(f"unknown dtype '{text}'", hint=did_you_mean(name, DTYPES))
    return SPELLINGS[name]
