"""Sets of leaves that many architectures share; left llama.cpp's names, right Hugging Face's."""

from __future__ import annotations

from meldkit.checkpoint.gguf.architectures.architecture import Leaf

NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
BLOCKS = "model.layers"

ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
QK_NORM = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
DENSE = ATTENTION | {"ffn_norm": "post_attention_layernorm"} | MLP
#: Queries and keys that are rotated in pairs.
PAIRS = {
    "attn_q": Leaf("self_attn.q_proj", rows="query pairs"),
    "attn_k": Leaf("self_attn.k_proj", rows="key pairs"),
}
NORMS_AROUND = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}

#: Keys and values that are computed from compressed ones. Old files have both in one, as Hugging Face.
MLA = {
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    "attn_k_b": Leaf("self_attn.kv_b_proj", turned=True, part=0, run="matrix", flat=True),
    "attn_v_b": Leaf("self_attn.kv_b_proj", part=1, run="matrix", flat=True),
}

EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
}
#: What is added to the scores of experts only while they are chosen.
SCORE_BIAS = {"exp_probs_b": Leaf("mlp.gate.e_score_correction", bias="_bias")}
SHARED_EXPERT = {
    "ffn_gate_inp_shexp": Leaf("mlp.shared_expert_gate", ones=(0,)),
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
SHARED_EXPERTS = {
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}
DEEPSEEK_EXPERTS = EXPERTS | SHARED_EXPERTS | SCORE_BIAS
MIXTRAL_EXPERTS = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
    "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
    "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
}
#: As Granite has them: gates above ups, all experts in one tensor.
GRANITE_EXPERTS = {
    "ffn_gate_inp": "block_sparse_moe.router.layer",
    "ffn_gate_exps": Leaf("block_sparse_moe.input_linear", part=0, run="matrix"),
    "ffn_up_exps": Leaf("block_sparse_moe.input_linear", part=1, run="matrix"),
    "ffn_down_exps": "block_sparse_moe.output_linear",
    "ffn_gate_shexp": Leaf("shared_mlp.input_linear", part=0),
    "ffn_up_shexp": Leaf("shared_mlp.input_linear", part=1),
    "ffn_down_shexp": "shared_mlp.output_linear",
}


def mamba(module: str) -> dict[str, str | Leaf]:
    """A state space of the first kind."""
    return {
        "ssm_in": f"{module}.in_proj",
        "ssm_conv1d": Leaf(f"{module}.conv1d", ones=(1,)),
        "ssm_x": f"{module}.x_proj",
        "ssm_dt": f"{module}.dt_proj",
        "ssm_a": Leaf(f"{module}.A_log", change="log of negative"),
        "ssm_d": f"{module}.D",
        "ssm_out": f"{module}.out_proj",
    }


def mamba2(module: str) -> dict[str, str | Leaf]:
    """A state space of the second kind."""
    return mamba(module) | {
        "ssm_dt": Leaf(f"{module}.dt", bias="_bias"),
        "ssm_a": Leaf(f"{module}.A_log", change="log of negative", flat=True),
        "ssm_d": Leaf(f"{module}.D", flat=True),
        "ssm_norm": Leaf(f"{module}.norm", flat=True),
    }
