"""Every architecture that transformers builds can be merged and restacked; see zoo.py."""

from __future__ import annotations

from pathlib import Path

import pytest

import zoo

#: At least one of every way in which names and configurations tell layers apart.
REPRESENTATIVE = {
    "causal": (
        "llama gpt2 opt bloom gpt_neox gpt_neo phi3 qwen2 gemma2 gemma3_text cohere2 smollm3 exaone4 "
        "mixtral qwen2_moe qwen3_moe dbrx deepseek_v2 deepseek_v3 gpt_oss llama4_text glm4_moe "
        "ernie4_5_moe lfm2_moe longcat_flash minimax phimoe granitemoehybrid qwen3_next qwen4_exp_text "
        "bamba falcon_h1 jamba nemotron_h olmo_hybrid lfm2 recurrent_gemma zamba zamba2 kimi_linear "
        "mamba rwkv xlstm dots3_note_text gemma4_text blt hrm_text musicgen xlnet bert bart whisper"
    ),
    "seq2seq": ("t5 bart t5gemma led encoder-decoder nemo_speechlm"),
    "masked": ("bert modernbert albert xlm esm perceiver funnel"),
    "image": (
        "qwen2_vl qwen2_5_vl qwen3_vl gemma3 llava llama4 mistral3 mistral_large4 smolvlm idefics3 "
        "internvl mllama florence2 paligemma blip-2 deepseek_ocr2 cosmos3_omni qwen2_5_omni_thinker pi0 "
        "vision-encoder-decoder"
    ),
}
REPRESENTATIVE_KINDS = [
    zoo.Kind(mapping, t) for mapping, types in REPRESENTATIVE.items() for t in types.split()
]
KINDS = zoo.kinds()


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(k, id=str(k), marks=[] if k in REPRESENTATIVE_KINDS else [pytest.mark.slow])
        for k in KINDS
        if k.model_type not in zoo.IMPOSSIBLE
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_merged_and_restacked(kind: zoo.Kind, tmp_path: Path) -> None:
    made = zoo.make(kind, tmp_path)
    zoo.check_merge(made, tmp_path / "merged")
    zoo.check_slices(made, tmp_path / "sliced")


@pytest.mark.parametrize(
    ("mapping", "model_type", "part"),
    [
        ("seq2seq", "t5", "encoder"),
        ("seq2seq", "bart", "encoder"),
        ("speech", "whisper", "encoder"),
        ("image", "llava", "vision_tower"),
        ("image", "qwen2_5_vl", "visual"),
        ("image", "qwen3_vl", "vision_tower"),
        ("image", "gemma3", "vision_tower"),
        ("image", "smolvlm", "vision_model"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_modules_are_restacked_at_once(mapping: str, model_type: str, part: str, tmp_path: Path) -> None:
    made = zoo.make(zoo.Kind(mapping, model_type), tmp_path)
    zoo.check_modules(made, tmp_path / "restacked", part)


def test_representatives_exist() -> None:
    assert set(REPRESENTATIVE_KINDS) <= set(KINDS)
