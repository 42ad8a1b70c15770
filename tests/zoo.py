"""The smallest model of every type that transformers can build, and what a merge of two of them must be.

A configuration is made small by rules: what a key is called says what it counts. `OVERRIDES` holds the few
settings that no rule finds, because a configuration class insists on how its numbers fit together.
"""

from __future__ import annotations

import inspect
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import tiny

if TYPE_CHECKING:
    from meldkit.layout import Layout

#: Short names of transformers' mappings from model types to classes.
MAPPINGS = {
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "masked": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "image": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "speech": "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
}

#: A model of more is not small: some setting was not found.
MAX_PARAMETERS = 15_000_000
VOCAB = 128
#: Names of keys that hold a number of layers.
_DEPTH = re.compile(
    r"^(num_(hidden|decoder|encoder|nextn_predict|global|temporal|mtp)?_?(layers|blocks)|n_layers?"
    r"|(en|de)coder_(num_hidden_)?layers|(t2u|speech|text)_(en|de)coder_layers|depth|layers|num_hidden_layers"
    r"|num_self_attends_per_block|num_(encoder|decoder)_blocks|.*_num_(hidden_)?layers|num_hidden_groups|num_layer|resampler_depth"
    r"|num_sparse_(en|de)coder_layers|.*_depth)$"
)
#: What a number counts, by the name of its key, and how much of it there is. The first that matches holds.
_SIZES: tuple[tuple[str, int], ...] = (
    (r"adapter_input_size", 64),
    (r"type_vocab_size|max_2d|.*_id|.*_index", 0),
    (r"(.*_)?vocab_size(_per_layer_input)?|n_vocab|codebook_size|num_embeddings|.*_vocab_size", VOCAB),
    (r"mamba_n_heads|mamba_num_heads|n_mamba_heads", 8),
    (r"mamba_d_ssm|time_mix_extra_dim", 128),
    (r"(.*_)?(num_key_value_heads|num_kv_heads|multi_query_groups?_num|num_global_key_value_heads)", 2),
    (
        r"(.*_)?(num_)?(self_|cross_|linear_)?(attention_)?(key_|value_|query_)?heads|n_heads?|(.*_)?n_heads?",
        4,
    ),
    (r"(.*_)?num_(key|value|query|v|k|q)_heads", 4),
    (r"(.*_)?rotary_dim", 8),
    (r"qk_head_dim", 32),
    (r"dim_head", 16),
    (r"dim_ff|d_inner", 96),
    (r"base_channels", 32),
    (r".*_byte_group_vocab", 64),
    (
        r"(.*_)?(head_dim|head_size|d_kv|kv_channels|d_head|headdim|qk_head_dim|attention_head_size)|.*_head_dim",
        16,
    ),
    (r"(.*_)?(lora_rank|lora_r|rank|time_step_rank|mamba_dt_rank|dt_rank)", 8),
    (
        r"(.*_)?(num_experts|num_local_experts|num_routed_experts|n_routed_experts|num_moe_experts|moe_num_experts)",
        4,
    ),
    (
        r"(.*_)?(experts_per_tok|experts_per_token|num_selected_experts|top_k_experts|moe_topk|moe_k|moe_top_k)",
        2,
    ),
    (r"num_kv_shared_layers|max_window_layers", 1),
    (r"n_group|topk_group|num_expert_groups?", 1),
    (r"(.*_)?(num|n)_shared_experts?|moe_num_shared_experts", 1),
    (r"(.*_)?(state_size|d_state|ssm_state_size)|(mamba_)?chunk_size", 8),
    (
        r"(.*_)?(intermediate_size|ffn_dim|ffn_hidden_size|d_ff|n_inner|mlp_dim|inner_size|ffn_hidden_dim"
        r"|inner_dim|intermediate_dim|feedforward_size|feed_forward_size|dim_feedforward|ff_dim)"
        r"|intermediate_size_mlp|mlp_hidden_size",
        96,
    ),
    (
        r"(.*_)?(hidden_size|d_model|hidden_dim|n_embd|embed_dim|emb_dim|embedding_size|projection_dim|dim_model"
        r"|proj_dim|projection_size|width|embedding_dim|output_dim|dim|embed_dims|lru_width|feature_size"
        r"|decoder_hidden|feature_dim|model_dim|hidden_sizes|channels_out|d_latents|d_embeds?|retriever_proj_size)"
        r"|(.*_)?hidden_size(_per_layer_input|_global)?|classifier_proj_size|bottleneck_size|codebook_dim",
        64,
    ),
    (
        r"(.*_)?(max_position_embeddings|n_positions|max_source_positions|max_target_positions|n_ctx"
        r"|max_seq(uence)?_len(gth)?|seq_len(gth)?|max_length|context_length|position_embedding_size)"
        r"|(.*_)?max_position_embeddings(_.*)?|max_encoder_position_embeddings|num_position_embeddings"
        r"|model_max_length|max_seqlen|position_bins|num_positions",
        64,
    ),
    (r"(.*_)?sliding_window|attention_window_size|attention_window|local_attention|window_size", 8),
    (r"(.*_)?patch_size", 4),
    (r"(.*_)?(image_size|input_size|img_size)", 16),
    (r"num_mel_bins|feature_projection_input_dim|n_mels", 80),
    (
        r"(.*_)?(num_query_tokens|num_queries|num_latents|query_length|image_seq_length|mm_tokens_per_image)",
        4,
    ),
    (r"decoder_sparse_step|interleave_moe_layer_step|moe_layer_freq", 1),
)
_COMPILED = tuple((re.compile(f"^({pattern})$"), size) for pattern, size in _SIZES)
_TOKEN = re.compile(r"(_token_ids?|_token_index|_index|_idx|token_id|_id)$")
_LAYER_INDICES = re.compile(r"(indices|indexes|idxs?|_layers|_blocks|layer_ids|slstm_at|_indexes)$")


@dataclass(frozen=True)
class Kind:
    """A model type as one of transformers' mappings names it."""

    mapping: str
    model_type: str

    def __str__(self) -> str:
        return f"{self.mapping}-{self.model_type}"

    @property
    def class_name(self) -> str:
        """The class of its models."""
        from transformers.models.auto import modeling_auto

        return dict(getattr(modeling_auto, MAPPINGS[self.mapping]))[self.model_type]


def kinds() -> list[Kind]:
    """Everything that the mappings of text and image models name."""
    from transformers.models.auto import modeling_auto

    return [
        Kind(short, model_type)
        for short, name in MAPPINGS.items()
        for model_type in getattr(modeling_auto, name)
        if short != "speech"
    ]


# ---- small configurations


def small(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the smallest model of this kind that still has every kind of layer."""
    result = _small(config, {})
    _override(result, overrides)
    return result


def _override(section: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    for path, value in overrides.items():
        *sections, key = path.split(".")
        inner = section
        for name in sections:
            inner = inner.setdefault(name, {})
        inner[key] = value


def _small(section: Mapping[str, Any], tokens: dict[int, int]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    picked = _picked(section)
    for key, value in section.items():
        if key == "per_layer_config" and isinstance(value, Mapping):
            own = {int(layer): entry for layer, entry in value.items()}
            result[key] = {str(i): _small(own[old], tokens) for i, old in enumerate(picked) if old in own}
        elif isinstance(value, Mapping):
            settings = re.match("rope_|id2label|label2id", str(key))
            result[key] = _small_rope(value) if settings else _small(value, tokens)
        elif not isinstance(key, str):
            result[key] = value
        elif _TOKEN.search(key) and not _LAYER_INDICES.search(key):
            result[key] = _token(value, tokens)
        elif isinstance(value, list | tuple):
            result[key] = _small_list(key, list(value), section, picked)
        elif type(value) is int and value > 1:
            result[key] = _small_number(key, value, picked, section)
        else:
            result[key] = value
    _override(result, OVERRIDES.get(str(section.get("model_type")), {}))
    return result


def _small_rope(section: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings: sections of the head and factors per frequency, for heads of 16."""
    result = dict(section)
    for key, value in section.items():
        if isinstance(value, Mapping):
            result[key] = _small_rope(value)
        elif key == "mrope_section" and isinstance(value, list):
            result[key] = [4, 2, 2][: len(value)]
        elif isinstance(value, list) and key.endswith("_factor"):
            result[key] = value[:8]
    return result


def _small_number(key: str, value: int, picked: Sequence[int], section: Mapping[str, Any]) -> int:
    if _DEPTH.match(key):
        return min(value, len(picked))
    for pattern, size in _COMPILED:
        if pattern.match(key):
            if size == 2 and "head" in key and value == section.get("num_attention_heads"):
                return 4
            return min(value, size) if size else value
    return value


def _depth(section: Mapping[str, Any]) -> int:
    found = [v for k, v in section.items() if _DEPTH.match(str(k)) and type(v) is int]
    lists = [section.get(key) for key in ("layer_types", "layers_block_type")]
    return max(found or [len(v) for v in lists if isinstance(v, list)], default=0)


def _picked(section: Mapping[str, Any]) -> list[int]:
    """Layers to keep, in order: enough that every combination of entries in per-layer lists is there."""
    depth = _depth(section)
    lists = [v for k, v in section.items() if _per_layer(k, v, depth)]
    own = section.get("per_layer_config")
    if isinstance(own, Mapping):
        numbered = {int(layer): sorted(entry) for layer, entry in own.items()}
        lists.append([numbered.get(i) for i in range(depth)])
    seen: dict[str, int] = {}
    for layer in range(depth):
        seen.setdefault(json.dumps([v[layer] for v in lists]), layer)
    picked = set(list(seen.values())[:6])
    for layer in range(depth):
        if len(picked) >= min(3, depth):
            break
        picked.add(layer)
    return sorted(picked)


def _per_layer(key: str, value: Any, depth: int) -> bool:
    return isinstance(value, list | tuple) and depth > 1 and len(value) == depth and not _TOKEN.search(key)


def _small_list(key: str, value: list[Any], section: Mapping[str, Any], picked: Sequence[int]) -> Any:
    if _per_layer(key, value, _depth(section)):
        kept = [value[layer] for layer in picked]
        return [_small_number(key, v, picked, section) if type(v) is int else v for v in kept]
    numbers = [v for v in value if type(v) is int]
    if _LAYER_INDICES.search(key) and numbers and len(numbers) == len(value) and picked:
        kept = [new for new, old in enumerate(picked) if old in value]
        last = len(picked) - 1
        return kept or sorted({min(v, last) if v >= 0 else v for v in value})
    for pattern, size in _COMPILED:
        if size and pattern.match(key) and len(numbers) == len(value):
            return [min(v, size) for v in value]
    return value


def _token(value: Any, tokens: dict[int, int]) -> Any:
    if isinstance(value, list):
        return [_token(v, tokens) for v in value]
    if type(value) is not int or value < VOCAB - 40:
        return value
    return tokens.setdefault(value, VOCAB - 1 - len(tokens))


# ---- what no rule finds

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}

#: Settings by model type; the path of a nested one is written with dots.
OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    # Its decoder alone has a head of its own, whatever its configuration says.
    "causal-bigbird_pegasus": {"tie_word_embeddings": False},
    "causal-reformer": {"is_decoder": True},
    "chameleon": {"vocabulary_map": {"<image>": 4}},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE}},
    "blip-2": {"image_token_index": 5, "image_token_id": 5},
    "cosmos3_omni": {"vision_config.depth": 2, "vision_config.deepstack_visual_indexes": [1]},
    "dbrx": {"attn_config.rope_theta": 10000.0, "attn_config.clip_qkv": 8, "attn_config.kv_n_heads": 2},
    "deepseek_ocr2": {
        "text_config.mlp_layer_types": ["dense", "sparse", "sparse"],
        "text_config.num_experts_per_tok": 2,
    },
    "deepseek_v2": {"n_group": 1, "topk_group": 1, "num_experts_per_tok": 2},
    "diffusion_gemma": {
        "text_config.num_experts": 4,
        "text_config.top_k_experts": 2,
        "text_config.moe_intermediate_size": 32,
    },
    "dots1": {
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    "dots3_note_text": {"head_dim": 32},
    "emu3": {"vocabulary_map": {"<image>": 4}},
    "ernie4_5_vl_moe": {"text_config.rope_parameters.mrope_section": [3, 3, 2]},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "glm4v_moe_text": {"rope_parameters.mrope_section": [2, 1, 1]},
    "glm4v_text": {"rope_parameters.mrope_section": [4, 2, 2]},
    "glm_ocr_text": {"rope_parameters.mrope_section": [4, 2, 2]},
    "granite4_vision": {
        "deepstack_layer_map": [[0, 0]],
        "spatial_target_layers": [1],
        "downsample_rate": "2/4",
    },
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "hunyuan_vl_text": {"head_dim": 16, "rope_parameters.mrope_section": [2, 2, 2, 2]},
    "instructblip": {"image_token_index": 5, "image_token_id": 5},
    "instructblipvideo": {"video_token_index": 5, "video_token_id": 5},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "longcat_flash": {"zero_expert_num": 2},
    "mamba2": {"num_heads": 8},
    "ministral": {"head_dim": 16},
    "mistral4": {"head_dim": 32},
    "mobilebert": {"intra_bottleneck_size": 64, "true_hidden_size": 64},
    "molmo2": {"adapter_config.vision_feature_layer": [2, 1]},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 16},
    "paddleocr_vl_text": {"rope_parameters.mrope_section": [4, 2, 2]},
    "qwen2_5_omni_thinker": {"vision_start_token_id": 5},
    "qwen2_5_omni_text": {"rope_parameters.mrope_section": [4, 2, 2]},
    "qwen2_5_vl_text": {"rope_parameters.mrope_section": [4, 2, 2]},
    "qwen2_vl_text": {"rope_parameters.mrope_section": [4, 2, 2]},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 5},
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
        "ngram_vocab_size_base": 64,
        "split_ngram_parts": 2,
    },
    "reformer": {"axial_pos_embds": False},
    "step3p7": {"text_config.sliding_window": 8},
    "vibevoice_asr": {
        f"{kind}_tokenizer_encoder_config.{key}": value
        for kind in ("acoustic", "semantic")
        for key, value in (("num_filters", 4), ("downsampling_ratios", [2, 2]), ("depths", [1, 1, 1]))
    },
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "hybrid_layer_ids": [1, 3],
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
    },
}
#: Layer ranges for architectures whose configuration can tell only some sequences of layers.
RANGES: dict[str, list[list[int]]] = {"jamba": [[0, 2], [0, 3]]}
_SHARES = "a tensor holds a share of every layer"
#: Types whose layers cannot be restacked, which meldkit says instead of doing it.
REFUSED: dict[str, str] = {
    "diffusion_gemma": "the decoder's layers are the encoder's",
    "esm": _SHARES,
    "gemma3n_text": _SHARES,
    "gemma4": _SHARES,
    "gemma4_text": _SHARES,
    "hrm_text": "two stacks of equal rank",
    "idefics": "cross-attention between layers is a stack of its own",
    "inkling2": "what a layer holds depends on its number",
    "inkling2_text": "what a layer holds depends on its number",
    "pi0": "two stacks run side by side",
    "zamba2": "a shared block holds an adapter for each of its uses",
}


def _settings_of(model_type: str, **settings: Any) -> dict[str, Any]:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return CONFIG_MAPPING[model_type](**settings).to_dict()


#: Configurations that are put together from others.
COMPOSITES: dict[str, Callable[[], dict[str, Any]]] = {
    "encoder-decoder": lambda: {
        "model_type": "encoder-decoder",
        "encoder": _settings_of("bert"),
        "decoder": _settings_of("bert", is_decoder=True, add_cross_attention=True),
        "decoder_start_token_id": 1,
        "pad_token_id": 0,
    },
    "vision-encoder-decoder": lambda: {
        "model_type": "vision-encoder-decoder",
        "encoder": _settings_of("vit"),
        "decoder": _settings_of("gpt2", is_decoder=True, add_cross_attention=True),
        "decoder_start_token_id": 1,
        "pad_token_id": 0,
    },
}

#: Types of which transformers itself cannot make, save and load an instance here, and why.
IMPOSSIBLE: dict[str, str] = {
    "fast_vlm": "needs timm, which has no small tower",
    "gemma3n": "needs timm, which has no small tower",
    "gemma4_assistant": "its configuration asks for what its layers refuse",
    "gemma4_unified_assistant": "its configuration asks for what its layers refuse",
    "perception_lm": "needs timm, which has no small tower",
    "shieldgemma2": "transformers does not find its own weights again",
}
if find_spec("scipy") is None:
    IMPOSSIBLE["inkling_mm_model"] = "needs scipy"


def config_of(kind: Kind) -> Any:
    """The small configuration of a kind."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[kind.model_type]
    wanted = getattr(transformers, kind.class_name).config_class
    if kind.model_type not in COMPOSITES and wanted in config_class.sub_configs.values():
        config_class = wanted
    overrides = OVERRIDES.get(str(kind), {})
    settings = COMPOSITES.get(kind.model_type, lambda: config_class().to_dict())()
    return config_class.from_dict(small(settings, overrides))


def build(kind: Kind) -> Any:
    """A model of random weights."""
    import transformers

    model_class = getattr(transformers, kind.class_name)
    config = config_of(kind)
    with torch.device("meta"):
        size = sum(p.numel() for p in model_class(config).parameters())
    if size > MAX_PARAMETERS:
        with torch.device("meta"):
            largest = sorted(model_class(config).named_parameters(), key=lambda p: -p[1].numel())[:3]
        raise ValueError(f"{size:,} parameters: " + ", ".join(f"{n} {list(p.shape)}" for n, p in largest))
    torch.manual_seed(0)
    return model_class(config).eval()


def save_siblings(model: Any, first: Path, second: Path) -> None:
    """The model as it is, and with other weights; ties stay tied."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                # Also what begins as zeros or ones (biases, norms) differs between siblings.
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
        model.save_pretrained(first)
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
        model.save_pretrained(second)


def reload(model_class: Any, folder: Path) -> tuple[Any, dict[str, Any]]:
    """The model as transformers loads it, and what it had to say about missing and unexpected weights."""
    model, info = model_class.from_pretrained(folder, output_loading_info=True)
    return model.eval(), {k: sorted(map(str, v)) for k, v in info.items() if v}


def forward(model: Any) -> Iterator[Tensor]:
    """The floating-point outputs of one pass over a few tokens."""
    arguments = INPUTS.get(model.config.model_type, _arguments)(model)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = model(**arguments)
    for value in output.to_tuple():
        if isinstance(value, Tensor) and value.is_floating_point():
            yield value


def _arguments(model: Any) -> dict[str, Any]:
    """Eight tokens, and whatever else the model cannot do without."""
    parameters = inspect.signature(model.forward).parameters
    ids = torch.arange(3, 11).reshape(1, 8)
    made = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    made["decoder_input_ids"] = ids[:, :4]
    kept: dict[str, Any] = {k: v for k, v in made.items() if k in parameters}
    if "use_cache" in parameters:
        kept["use_cache"] = False
    needed = {k for k, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
    if "pixel_values" in parameters and (
        model.config.model_type in SEEING or "pixel_values" in needed or "input_ids" not in parameters
    ):
        kept["pixel_values"] = _pixels(model.config)
    return kept


def _queried(model: Any) -> dict[str, Any]:
    """An image, tokens that stand for it, and a question."""
    config = model.config
    ids = torch.tensor([[5] * config.num_query_tokens + [7, 8, 9]])
    made = {"pixel_values": _pixels(config), "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if config.model_type == "instructblipvideo":
        made["pixel_values"] = made["pixel_values"].unsqueeze(1)
    if "qformer_input_ids" in inspect.signature(model.forward).parameters:
        made["qformer_input_ids"] = ids[:, -3:]
    return made


def _pixels(config: Any) -> Tensor:
    for name in ("vision_config", "encoder"):
        config = getattr(config, name, config)
    size = getattr(config, "image_size", 16)
    height, width = (size, size) if isinstance(size, int) else size
    return torch.rand(1, getattr(config, "num_channels", 3), height, width)


#: Models that need an image although they say otherwise.
SEEING = frozenset(("blip", "blip-2", "instructblip", "instructblipvideo", "idefics", "pp_formulanet"))
#: Inputs of models that need something of their own.
INPUTS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "musicgen_decoder": lambda model: {
        "input_ids": torch.ones(model.config.num_codebooks, 8, dtype=torch.long)
    },
}
INPUTS["musicgen_melody_decoder"] = INPUTS["musicgen_decoder"]
INPUTS["blip-2"] = INPUTS["instructblip"] = INPUTS["instructblipvideo"] = lambda model: _queried(model)
INPUTS["idefics"] = lambda model: {
    "input_ids": torch.arange(3, 11).reshape(1, 8),
    "pixel_values": _pixels(model.config).unsqueeze(1),
    "image_attention_mask": torch.ones(1, 8, 1),
}
INPUTS["pi0"] = lambda model: (
    _arguments(model)
    | {
        "state": torch.rand(1, model.config.max_state_dim),
        "noise": torch.rand(1, model.config.chunk_size, model.config.max_action_dim),
        "timestep": torch.full((1,), 0.5),
        "pixel_values": torch.rand(1, 1, 3, 16, 16),
        "pixel_attention_mask": torch.ones(1, 1, dtype=torch.bool),
        # The picture is sixteen patches.
        "input_ids": torch.tensor([[model.config.vlm_config.image_token_index] * 16 + [3, 4]]),
        "attention_mask": torch.ones(1, 18, dtype=torch.long),
    }
)
INPUTS["kosmos-2"] = lambda model: {
    "pixel_values": _pixels(model.config),
    "input_ids": torch.arange(3, 7 + model.config.latent_query_num).reshape(1, -1) % VOCAB,
    "image_embeds_position_mask": (
        torch.arange(4 + model.config.latent_query_num) < model.config.latent_query_num
    )
    .long()
    .reshape(1, -1),
}
INPUTS["voxtral_realtime"] = lambda model: {
    "input_ids": torch.arange(3, 11).reshape(1, 8),
    "encoder_inputs_embeds": torch.rand(1, 32, model.config.audio_config.hidden_size),
}
INPUTS["perceiver"] = lambda _: {"inputs": torch.arange(3, 11).reshape(1, 8)}
INPUTS["whisper"] = lambda model: (
    _arguments(model)
    if "input_features" not in inspect.signature(model.forward).parameters
    else {
        "input_features": torch.rand(1, model.config.num_mel_bins, 2 * model.config.max_source_positions),
        "decoder_input_ids": torch.arange(3, 7).reshape(1, 4),
    }
)
INPUTS["udop"] = lambda model: _arguments(model) | {"bbox": torch.zeros(1, 8, 4)}
INPUTS["pix2struct"] = lambda model: {
    "flattened_patches": torch.rand(1, 4, 2 + model.config.vision_config.patch_embed_hidden_size),
    "decoder_input_ids": torch.arange(3, 7).reshape(1, 4),
}


# ---- what must hold


@dataclass(frozen=True)
class Siblings:
    """Two models of one kind on disk."""

    kind: Kind
    model_class: Any
    first: Path
    second: Path
    loading: dict[str, Any]
    ties: set[tuple[str, ...]]


def ties(model: Any) -> set[tuple[str, ...]]:
    """Names of parameters that are one."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {tuple(group) for group in names.values() if len(group) > 1}


def make(kind: Kind, folder: Path) -> Siblings:
    """Build and save two models; what transformers says when it loads its own files is kept."""
    model = build(kind)
    first, second = folder / "a", folder / "b"
    save_siblings(model, first, second)
    again, loading = reload(type(model), first)
    return Siblings(kind, type(model), first, second, loading, ties(again))


def check_merge(made: Siblings, out: Path) -> None:
    """A linear merge is the mean of what is stored, loads cleanly and computes."""
    from meldkit import merge

    recipe = {
        "merge_method": "linear",
        "parameters": {"weight": 0.5},
        "models": [{"model": str(made.first)}, {"model": str(made.second)}],
    }
    merge(recipe, out)
    a, b, merged = tiny.tensors(made.first), tiny.tensors(made.second), tiny.tensors(out)
    assert sorted(merged) == sorted(a)
    for name, value in merged.items():
        assert (value.dtype, value.shape) == (a[name].dtype, a[name].shape), name
        if not value.is_floating_point():
            assert torch.equal(value, a[name]), name
        else:
            expected = ((a[name].double() + b[name].double()) / 2).to(value.dtype)
            torch.testing.assert_close(value, expected, rtol=2e-6, atol=1e-12, msg=name)
    assert ties(loads(made, out)) == made.ties


def loads(made: Siblings, out: Path) -> Any:
    """The model: transformers loads it as it loads its own files, and it computes finite numbers."""
    model, loading = reload(made.model_class, out)
    assert loading == made.loading
    count = 0
    for value in forward(model):
        count += 1
        assert torch.isfinite(value).all()
    assert count, "no output"
    return model


def check_slices(made: Siblings, out: Path) -> int | None:
    """Stacking the layers [0, 2) and [1, n) gives a model of n + 1 layers; None if that is not possible."""
    from meldkit import merge
    from meldkit.errors import MismatchError, NotSupportedError

    layout = layout_of(made.first)
    if not layout.stacks:
        return None
    refused = made.kind.model_type in REFUSED
    n = layout.text_stack.num_blocks if layout.text_stack else 3
    ranges = RANGES.get(made.kind.model_type, [[0, 2], [1, n]] if n > 1 else [[0, 1], [0, 1]])
    slices = [{"sources": [{"model": str(made.first), "layer_range": r}]} for r in ranges]
    try:
        merge({"merge_method": "passthrough", "slices": slices}, out)
    except (MismatchError, NotSupportedError):
        if refused:
            return None
        raise
    assert not refused
    check_stack(made, out, None, ranges)
    loads(made, out)
    return sum(last - first for first, last in ranges)


def layout_of(folder: Path) -> Layout:
    """How the tensors of a model folder are organised."""
    from meldkit.checkpoint import open_checkpoint
    from meldkit.layout import infer_layout

    checkpoint = open_checkpoint("model", folder)
    return infer_layout(checkpoint, checkpoint.config)


def check_stack(made: Siblings, out: Path, part: str | None, ranges: list[list[int]]) -> None:
    """The layers of a part of the model are those of the ranges, and what is in no stack is as it was."""
    from meldkit.layout import find_part

    before, after = layout_of(made.first), layout_of(out)
    stack, again = find_part(before, part, "before").stack, find_part(after, part, "after").stack
    origins = [layer for first, last in ranges for layer in range(first, last)]
    assert stack is not None
    assert again is not None
    assert (again.prefix, again.num_blocks) == (stack.prefix, len(origins))
    a, restacked = tiny.tensors(made.first), tiny.tensors(out)
    for name, place in after.places.items():
        if place.stack == again and place.block is not None:
            assert torch.equal(restacked[name], a[stack.name(origins[place.block], place.leaf)]), name
        elif place.stack is None:
            assert torch.equal(restacked[name], a[name]), name


def check_modules(made: Siblings, out: Path, part: str) -> None:
    """Two parts of a model are restacked at once, each for itself."""
    from meldkit import merge
    from meldkit.layout import find_part

    layout = layout_of(made.first)
    modules: dict[str, Any] = {}
    ranges: dict[str, list[list[int]]] = {}
    for name in ("text_decoder", part):
        stack = find_part(layout, name, "model").stack
        assert stack is not None
        n = stack.num_blocks
        ranges[name] = [[0, 2], [1, n]] if name == "text_decoder" else [[0, n], [n - 1, n], [n - 1, n]]
        slices = [{"sources": [{"model": str(made.first), "layer_range": r}]} for r in ranges[name]]
        modules[name] = {"slices": slices}
    merge({"merge_method": "passthrough", "modules": modules}, out)
    for name, own in ranges.items():
        check_stack(made, out, name, own)
    loads(made, out)
