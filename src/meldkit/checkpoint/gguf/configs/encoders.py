"""config.json of encoders."""

from __future__ import annotations

from typing import Any

from meldkit.checkpoint.gguf.configs.common import decoder
from meldkit.checkpoint.gguf.settings import Settings


def _bert(s: Settings) -> dict[str, Any]:
    return {
        "hidden_size": s.integer("embedding_length"),
        "intermediate_size": s.feed_forward,
        "num_hidden_layers": s.depth,
        "num_attention_heads": s.heads,
        "max_position_embeddings": s.integer("context_length"),
        "layer_norm_eps": s.epsilon,
    }


def bert(s: Settings) -> dict[str, Any]:
    return _bert(s) | {
        "max_position_embeddings": s.outer("position_embd.weight"),
        "type_vocab_size": s.outer("token_types.weight"),
    }


def xlm_roberta(s: Settings) -> dict[str, Any]:
    config = bert(s)
    # The first positions are those of padding, which the file lacks.
    config["max_position_embeddings"] += ROBERTA_PADDING
    return config | {"pad_token_id": ROBERTA_PADDING - 1}


#: Positions before the first one that a token of a text may have.
ROBERTA_PADDING = 2


def modern_bert(s: Settings) -> dict[str, Any]:
    config = _bert(s)
    every = s.get("attention.sliding_window_pattern")
    every = every if type(every) is int and every > 0 else 3
    return config | {
        "norm_eps": config.pop("layer_norm_eps"),
        "local_attention": s.integer("attention.sliding_window"),
        "global_attn_every_n_layers": every,
        "global_rope_theta": s.real("rope.freq_base", 160000.0),
        "local_rope_theta": s.real("rope.freq_base_swa", 10000.0),
        "attention_bias": s.has("attn_qkv.bias"),
        "mlp_bias": s.has("ffn_up.bias"),
        "norm_bias": s.has("ffn_norm.bias"),
    }


def rotated(s: Settings) -> dict[str, Any]:
    """BERT with rotary positions."""
    return _bert(s) | {
        "type_vocab_size": s.outer("token_types.weight"),
        "rope_theta": s.real("rope.freq_base", 10000.0),
    }


def eurobert(s: Settings) -> dict[str, Any]:
    return decoder(s) | {"attention_bias": s.has("attn_q.bias"), "mlp_bias": s.has("ffn_down.bias")}


def t5(s: Settings) -> dict[str, Any]:
    tensors = s.contents.tensors
    width = tensors.get("enc.blk.0.ffn_down.weight")
    gated = "enc.blk.0.ffn_gate.weight" in tensors
    depth = s.integer("block_count")
    return {
        "d_model": s.integer("embedding_length"),
        "d_kv": s.integer("attention.key_length"),
        "d_ff": width.shape[-1] if width else s.integer("feed_forward_length"),
        "num_layers": depth,
        "num_decoder_layers": s.integer("decoder_block_count", depth),
        "num_heads": s.heads,
        "n_positions": s.integer("context_length"),
        "layer_norm_epsilon": s.epsilon,
        "relative_attention_num_buckets": s.integer("attention.relative_buckets_count"),
        "feed_forward_proj": "gated-gelu" if gated else "relu",
        "decoder_start_token_id": s.count("decoder_start_token_id"),
        # As long as it is tied to the embedding, the output is scaled.
        "tie_word_embeddings": "output.weight" not in tensors,
    }


def t5encoder(s: Settings) -> dict[str, Any]:
    config = t5(s)
    del config["decoder_start_token_id"]
    return config
