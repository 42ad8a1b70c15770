"""Architectures of GGUF files that cannot be made models of Hugging Face's layout, and why."""

from __future__ import annotations

_FOREIGN = "transformers has no class for it"
_HALF = "it is the language half of a model of images, which has no class of its own"

#: By the name that the file gives.
REFUSED: dict[str, str] = {
    **dict.fromkeys(
        (
            "arctic",
            "arwkv7",
            "baichuan",
            "bailingmoe",
            "bailingmoe2",
            "codeshell",
            "deci",
            "deepseek",
            "dream",
            "exaone",
            "grok",
            "grovemoe",
            "internlm2",
            "jais",
            "jina-bert-v2",
            "llada",
            "llada-moe",
            "llama-embed",
            "maincoder",
            "minicpm",
            "neo-bert",
            "nomic-bert-moe",
            "openelm",
            "orion",
            "pangu-embedded",
            "plamo",
            "plamo2",
            "plamo3",
            "plm",
            "qwen",
            "refact",
            "rnd1",
            "rwkv6",
            "rwkv6qwen2",
            "rwkv7",
            "smallthinker",
            "step35",
            "wavtokenizer-dec",
            "xverse",
        ),
        _FOREIGN,
    ),
    **dict.fromkeys(("cogvlm", "deepseek2-ocr", "hunyuan_vl", "paddleocr"), _HALF),
    "clip": "it is the half of a model that sees or hears",
    "chameleon": "llama.cpp leaves the part out that makes tokens of images",
    "falcon-h1": "llama.cpp multiplies its weights by settings that it does not keep",
    "bitnet": "llama.cpp rounds its weights to -1, 0 and 1",
    "gptj": "llama.cpp has a name for it, but no tensors",
}
