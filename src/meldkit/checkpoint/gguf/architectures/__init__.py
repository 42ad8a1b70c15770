"""Architectures of GGUF files: which are known, and why the others are not.

Sources: https://github.com/ggml-org/llama.cpp (conversion from Hugging Face), tensor names of the gguf
package, and the modules of transformers.
"""

from __future__ import annotations

from meldkit.checkpoint.gguf.architectures import dense, encoders, mixtures, state_spaces
from meldkit.checkpoint.gguf.architectures.architecture import Architecture, Leaf
from meldkit.checkpoint.gguf.architectures.refused import REFUSED
from meldkit.checkpoint.gguf.configs.mixtures import sigmoid
from meldkit.checkpoint.gguf.settings import Settings

__all__ = ["ARCHITECTURES", "REFUSED", "Architecture", "Leaf", "variant"]

#: By the name that the file gives.
ARCHITECTURES: dict[str, Architecture] = {
    **dense.ARCHITECTURES,
    **mixtures.ARCHITECTURES,
    **state_spaces.ARCHITECTURES,
    **encoders.ARCHITECTURES,
}


def variant(s: Settings) -> Architecture:
    """The architecture of a file, where llama.cpp files several ones under the same name."""
    tensors, settings = s.contents.tensors, s.contents.settings
    found: Architecture | None = None
    match s.architecture:
        case "llama" if s.has("ffn_gate_inp.weight"):
            found = mixtures.MIXTRAL
        case "llama":
            # To llama.cpp they are the same, and the file says so in nothing but its title.
            titles = [settings.get(f"general.{key}") for key in ("name", "basename")]
            if any(isinstance(title, str) and "mistral" in title.lower() for title in titles):
                found = dense.MISTRAL
        case "mistral3" if s.get("attention.temperature_scale") is None:
            found = dense.MISTRAL
        case "falcon" if s.has("attn_norm_2.weight"):
            found = dense.FALCON_TWO_NORMS
        case "olmo2" if s.get("attention.sliding_window") is not None:
            found = dense.OLMO3
        case "mamba" if s.get("ssm.dt_b_c_rms") is True:
            found = state_spaces.FALCON_MAMBA
        case "granitemoe" if s.has("ffn_gate_shexp.weight"):
            found = mixtures.GRANITE_MOE_SHARED
        case "deepseek2" if sigmoid(s):
            glm = settings.get("tokenizer.ggml.pre") == "glm4"
            found = mixtures.GLM4_MOE_LITE if glm else mixtures.DEEPSEEK_V3
        case "bert" if settings.get("tokenizer.ggml.model") == "t5":
            found = encoders.XLM_ROBERTA
        case "t5" | "t5encoder":
            encoder = s.architecture == "t5encoder"
            if "enc.blk.1.attn_rel_b.weight" in tensors:
                found = encoders.UMT5_ENCODER if encoder else encoders.UMT5
            elif "enc.blk.0.ffn_gate.weight" not in tensors:
                found = encoders.T5_ENCODER_WITHOUT_GATES if encoder else encoders.T5_WITHOUT_GATES
        case _:
            pass
    return found or ARCHITECTURES[s.architecture]
