"""The kinds of mixtures that dense models can become, and how each of them names and configures its parts.

Sources: the configurations and models of these names in transformers 5. Where the gates of the experts that a
token takes add up to 1, a mixture of equal experts computes what the dense model does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]

_PROJECTIONS = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One kind of mixture.

    Attributes:
        name: by whose beginning `architecture:` names it.
        model_type, architecture: as config.json has them.
        sources: model types of dense models that it can be made from.
        module: of a block that holds the mixture, with a dot.
        leaves: what the matrices of an expert are called.
        shared: behind the module, what the shared experts' names begin with; "" if there are none.
        shared_gate: behind the module, the gate of the shared expert; "" if there is none.
        correction: behind the module, what is added to experts' scores when some are chosen; "" if nothing.
        num_shared: fewest and most shared experts.
        biases: whether projections of attention have biases, zeros where the dense model has none.
        settings: from the dense configuration, the number of experts, how many a token takes and how many are
            shared, to what config.json says otherwise than the dense one's.
    """

    name: str
    model_type: str
    architecture: str
    sources: frozenset[str]
    module: str = "mlp."
    leaves: Mapping[str, str]
    shared: str = ""
    shared_gate: str = ""
    correction: str = ""
    num_shared: tuple[int, int] = (0, 0)
    biases: bool = False
    settings: Callable[[Config, int, int, int], dict[str, Any]]

    @property
    def router(self) -> str:
        """Behind the module."""
        return "gate.weight"


def _mixtral(dense: Config, experts: int, per_token: int, shared: int) -> dict[str, Any]:
    del dense, shared
    return {"num_local_experts": experts, "num_experts_per_tok": per_token, "output_router_logits": False}


def _qwen2(dense: Config, experts: int, per_token: int, shared: int) -> dict[str, Any]:
    del shared
    return {
        **_qwen3(dense, experts, per_token, 0),
        "shared_expert_intermediate_size": dense["intermediate_size"],
    }


def _qwen3(dense: Config, experts: int, per_token: int, shared: int) -> dict[str, Any]:
    del shared
    return {
        "num_experts": experts,
        "num_experts_per_tok": per_token,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
        "moe_intermediate_size": dense["intermediate_size"],
        "output_router_logits": False,
    }


def _deepseek(dense: Config, experts: int, per_token: int, shared: int) -> dict[str, Any]:
    prefix = "deepseek-ai/deepseek-moe-16b-base--"
    return {
        "n_routed_experts": experts,
        "n_shared_experts": shared or None,
        "num_experts_per_tok": per_token,
        "first_k_dense_replace": 0,
        "moe_layer_freq": 1,
        "scoring_func": "softmax",
        "norm_topk_prob": True,
        "moe_intermediate_size": dense["intermediate_size"],
        # Code that comes with a model of the hub; programs other than transformers bring their own.
        "auto_map": {
            "AutoConfig": f"{prefix}configuration_deepseek.DeepseekConfig",
            "AutoModel": f"{prefix}modeling_deepseek.DeepseekModel",
            "AutoModelForCausalLM": f"{prefix}modeling_deepseek.DeepseekForCausalLM",
        },
    }


def _glm4(dense: Config, experts: int, per_token: int, shared: int) -> dict[str, Any]:
    rope = dense.get("rope_parameters")
    return {
        "n_routed_experts": experts,
        "n_shared_experts": shared,
        "num_experts_per_tok": per_token,
        "first_k_dense_replace": 0,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "num_nextn_predict_layers": 0,
        "moe_intermediate_size": dense["intermediate_size"],
        "partial_rotary_factor": 1.0,
        "use_qk_norm": dense["model_type"] == "qwen3",
        "attention_bias": dense["model_type"] == "qwen2",
        **({"rope_parameters": {**rope, "partial_rotary_factor": 1.0}} if isinstance(rope, dict) else {}),
    }


_LLAMA = frozenset({"llama", "mistral"})
#: The first that fits is taken where none is named.
FAMILIES = (
    Family(
        name="mixtral",
        model_type="mixtral",
        architecture="MixtralForCausalLM",
        sources=_LLAMA | {"phi3", "gemma"},
        module="block_sparse_moe.",
        leaves={"gate": "w1", "up": "w3", "down": "w2"},
        settings=_mixtral,
    ),
    Family(
        name="qwen moe",
        model_type="qwen2_moe",
        architecture="Qwen2MoeForCausalLM",
        sources=_LLAMA | {"qwen2"},
        leaves=_PROJECTIONS,
        shared="shared_expert.",
        shared_gate="shared_expert_gate.weight",
        num_shared=(1, 1),
        biases=True,
        settings=_qwen2,
    ),
    Family(
        name="qwen3 moe",
        model_type="qwen3_moe",
        architecture="Qwen3MoeForCausalLM",
        sources=frozenset({"qwen3"}),
        leaves=_PROJECTIONS,
        settings=_qwen3,
    ),
    Family(
        name="glm4 moe",
        model_type="glm4_moe",
        architecture="Glm4MoeForCausalLM",
        correction="gate.e_score_correction_bias",
        sources=_LLAMA | {"qwen2", "qwen3"},
        leaves=_PROJECTIONS,
        shared="shared_experts.",
        num_shared=(1, 1),
        settings=_glm4,
    ),
    Family(
        name="deepseek moe",
        model_type="deepseek",
        architecture="DeepseekForCausalLM",
        sources=_LLAMA,
        leaves=_PROJECTIONS,
        shared="shared_experts.",
        num_shared=(0, 1),
        settings=_deepseek,
    ),
)
