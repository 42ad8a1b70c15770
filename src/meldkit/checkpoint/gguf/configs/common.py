"""What config.json says of many architectures, from the settings of a GGUF file.

llama.cpp keeps what its own program needs. What it leaves out is either the same for all models of an
architecture, and then the default of transformers, or follows from what is there: see `_frequency_scaling`.
Sources: https://github.com/ggml-org/llama.cpp (conversion from Hugging Face, src/models), and the
configuration classes of transformers.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from meldkit.checkpoint.gguf.settings import Settings
from meldkit.checkpoint.json_file import shown
from meldkit.errors import FormatError


def decoder(s: Settings, *, eps: str = "rms_norm_eps", kv_heads: int | None = None) -> dict[str, Any]:
    """What most architectures have.

    Args:
        s: of the file.
        eps: what the configuration calls the epsilon of its norms.
        kv_heads: heads of keys and values, if they are not simply those of all layers.
    """
    config = {
        "hidden_size": s.integer("embedding_length"),
        "intermediate_size": s.feed_forward,
        "num_hidden_layers": s.depth,
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv_heads if kv_heads is None else kv_heads,
        "max_position_embeddings": s.integer("context_length"),
        eps: s.epsilon,
        "rope_theta": s.real("rope.freq_base", 10000.0),
    }
    stretched = scaling(s)
    return config | ({"rope_scaling": stretched} if stretched else {})


def scaling(s: Settings) -> dict[str, Any] | None:
    """How positions are stretched, as transformers' rope_scaling."""
    kind = s.get("rope.scaling.type")
    # Old files have another key, and no type.
    old = s.real("rope.scale_linear", 1.0)
    if kind == "linear" or (kind is None and old not in (0.0, 1.0)):
        return {"rope_type": "linear", "factor": s.real("rope.scaling.factor", old)}
    if kind == "yarn":
        return yarn(s)
    if kind not in (None, "none", "longrope"):
        raise FormatError(
            f"not supported: {s.contents.path} stretches positions by {shown(kind)} "
            f"({s.architecture}.rope.scaling.type)",
            hint="merge the original model",
        )
    return _frequency_scaling(s) if "rope_freqs.weight" in s.contents.tensors else None


def yarn(s: Settings) -> dict[str, Any]:
    betas = {key: s.some_real(f"rope.scaling.yarn_{key}") for key in ("beta_fast", "beta_slow")}
    return {
        "rope_type": "yarn",
        "factor": s.real("rope.scaling.factor"),
        "original_max_position_embeddings": s.integer("rope.scaling.original_context_length"),
        **{key: value for key, value in betas.items() if value is not None},
    }


def long_rope(s: Settings) -> dict[str, Any]:
    """Positions that are stretched by factors of their own for long texts."""
    names = {f"{which}_factor": f"rope_factors_{which}.weight" for which in ("long", "short")}
    if not all(name in s.contents.tensors for name in names.values()):
        return {}
    factors = {key: [float(str(n)) for n in s.contents.numbers(name)] for key, name in sorted(names.items())}
    return {"rope_scaling": {"type": "longrope", **factors}}


def _frequency_scaling(s: Settings) -> dict[str, Any] | None:
    """Llama 3's scaling, which is stored as the divisors of the frequencies that follow from it.

    The largest divisor is the factor. The rest is the same in all of Meta's models but for the original
    context length, so those that give the same divisors are looked for.
    """
    divisors = s.contents.numbers("rope_freqs.weight")
    if np.all(divisors == 1):
        return None
    factor = float(str(divisors.max()))
    low = 1.0
    size = 2 * len(divisors)
    base = s.real("rope.freq_base", 10000.0)
    if base <= 0:
        raise s.wrong("rope.freq_base")
    wavelengths = 2 * math.pi * base ** (np.arange(0, size, 2) / size)
    # Llama 4 has no smooth transition.
    for high, context in itertools.product((4.0, 1.0), (2**n for n in (13, 12, 11, 14, 15, 16, 17))):
        turns = context / wavelengths
        smooth = np.clip((turns - low) / (high - low), 0, 1) if high > low else (turns > low) * 1.0
        # Multiplied, because the factor may be anything, also 0.
        if np.allclose(divisors * ((1 - smooth) + smooth * factor), factor, rtol=1e-4):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": context,
            }
    raise FormatError(
        f"not supported: {s.contents.path} scales the frequencies of rotary positions "
        f"(rope_freqs.weight, up to {factor:g}) in a way that config.json has no words for",
        hint="merge the original model",
    )


def partial_rotation(s: Settings) -> dict[str, Any]:
    rotated = s.get("rope.dimension_count")
    return (
        {} if rotated is None else {"partial_rotary_factor": s.integer("rope.dimension_count") / s.head_size}
    )


def sliding(s: Settings) -> dict[str, Any]:
    """Layers that attend to the last tokens only."""
    pattern = s.per_layer("attention.sliding_window_pattern")
    return {
        "sliding_window": s.integer("attention.sliding_window"),
        "layer_types": ["sliding_attention" if slides else "full_attention" for slides in pattern],
    }


def experts(s: Settings) -> dict[str, Any]:
    """Experts as Qwen has them."""
    return {
        "num_experts": s.integer("expert_count"),
        "num_experts_per_tok": s.integer("expert_used_count"),
        "moe_intermediate_size": s.expert_width,
    }


def linear_attention(s: Settings) -> dict[str, Any]:
    """Layers of a gated delta rule between those of attention, as Qwen has them."""
    num_values = s.integer("ssm.time_step_rank")
    return {
        "head_dim": s.head_size,
        "linear_conv_kernel_dim": s.integer("ssm.conv_kernel"),
        "linear_key_head_dim": s.integer("ssm.state_size"),
        "linear_value_head_dim": s.integer("ssm.inner_size") // num_values,
        "linear_num_key_heads": s.integer("ssm.group_count"),
        "linear_num_value_heads": num_values,
        "layer_types": [
            "linear_attention" if linear else "full_attention" for linear in s.layers_with("ssm_a")
        ],
    }


def granite_scales(s: Settings) -> dict[str, Any]:
    """What Granite multiplies by; 1 where the file does not say."""
    return {
        "attention_multiplier": s.real("attention.scale", s.head_size**-0.5),
        "embedding_multiplier": s.real("embedding_scale", 1.0),
        "residual_multiplier": s.real("residual_scale", 1.0),
        "logits_scaling": s.real("logit_scale", 1.0),
        "attention_bias": s.has("attn_q.bias"),
    }
