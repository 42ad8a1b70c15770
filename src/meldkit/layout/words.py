"""The words of tensor names and configuration keys: what part of a model they speak of."""

from __future__ import annotations

import re

#: Different words for the same part.
_SYNONYMS = {
    "visual": "vision",
    "vit": "vision",
    "image": "vision",
    "img": "vision",
    "pixel": "vision",
    "video": "vision",
    "speech": "audio",
    "sound": "audio",
    "language": "text",
    "llm": "text",
    "lm": "text",
    "nextn": "mtp",
}
#: Parts that are not the text decoder.
NOT_TEXT = frozenset(
    (
        "vision",
        "audio",
        "mtp",
        "qformer",
        "qwen2",  # the encoder of images of DeepSeek-OCR 2, by the name it is stored under
        "perceiver",
        "resampler",
        "projector",
        "connector",
        "merger",
        "sam",
        "dino",
        "vq",
        "vqmodel",
        "talker",
        "t2u",
        "vocoder",
        "code2wav",
        "token2wav",
        "classifier",
        "cross",
        "ctc",
        "draft",
        "embed",
        "embeddings",
        "heads",
        "local",
        "patcher",
    )
)
_WORD = re.compile(r"[a-z0-9]+")


def words(text: str) -> frozenset[str]:
    """The words of a name such as `model.vision_tower.layers.`, synonyms made equal."""
    found: list[str] = _WORD.findall(text.lower())
    return frozenset(_SYNONYMS.get(word, word) for word in found)
