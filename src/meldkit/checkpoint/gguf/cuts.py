"""How byte-level tokenizers cut text into words before pairs of their bytes are merged.

A GGUF file gives only a name for it. The names and what they stand for are llama.cpp's, the expressions those
of the models' own tokenizer.json.
Source: https://github.com/ggml-org/llama.cpp (src/llama-vocab.cpp).
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Cut:
    """How text is cut into words.

    Attributes:
        patterns: one after the other; each match becomes a word. GPT-2's own if there is none.
        digits: whether digits stand alone.
        whole_words: whether a word of the vocabulary is taken as it is, whatever the merges say.
        begins: whether a text begins with the BOS token if the file does not say.
    """

    patterns: tuple[str, ...] = ()
    digits: bool = False
    whole_words: bool = False
    begins: bool = False


def _any(*patterns: str) -> str:
    return "|".join(patterns)


_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_UPPER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}"
_LOWER = r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_START = r"[^\r\n\p{L}\p{N}]?"
_PATHS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
#: Digits in threes, counted from the last one.
_THREES = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"
_ASCII_SYMBOLS = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
_HAN = "[一-龥\u0800-一가-\ud7ff]+"
_HAN_AND_KANA = "[一-龥\u3040-\u309f\u30a0-\u30ff]+"


def _cased(upper: str, lower: str, ending: str) -> tuple[str, str]:
    """Words in which a capital letter begins a new one."""
    return f"{_START}[{upper}]*[{lower}]+{ending}", f"{_START}[{upper}]+[{lower}]*{ending}"


_GPT2 = Cut()
_DIGITS = Cut(digits=True)
_LLAMA3 = Cut((_any(_ENDINGS, _LETTERS, r"\p{N}{1,3}", _SYMBOLS, _SPACES),), whole_words=True, begins=True)
_DBRX = Cut(_LLAMA3.patterns)
_QWEN2 = Cut((_any(_ENDINGS, _LETTERS, r"\p{N}", _SYMBOLS, _SPACES),))
_QWEN35 = Cut(
    (
        _any(
            _ENDINGS,
            r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
            r"\p{N}",
            r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
            _SPACES,
        ),
    )
)
_TEKKEN = Cut((_any(*_cased(_UPPER, _LOWER, ""), r"\p{N}", _PATHS, _SPACES),), whole_words=True, begins=True)
_GPT4O = Cut((_any(*_cased(_UPPER, _LOWER, f"{_ENDINGS}?"), r"\p{N}{1,3}", _PATHS, _SPACES),))
_KIMI = Cut(
    (
        _any(
            r"\p{Han}+",
            *_cased(f"{_UPPER}&&[^\\p{{Han}}]", f"{_LOWER}&&[^\\p{{Han}}]", f"{_ENDINGS}?"),
            r"\p{N}{1,3}",
            _SYMBOLS,
            _SPACES,
        ),
    )
)
_SEED = Cut((_any(_ENDINGS, _LETTERS, r"\p{N}", r" ?[^\s\p{L}\p{N}\r\n]+", _SPACES),))
_BAILING = Cut(
    (
        _any(
            r"'(?i:[sdmt]|ll|ve|re)",
            r"[^\r\n\p{L}\p{N}]?+\p{L}+",
            r"\p{N}",
            r" ?[^\s\p{L}\p{N}]++[\r\n]*",
            r"\s*[\r\n]|\s+(?!\S)|\s+",
        ),
    )
)
_EXAONE_MOE = Cut(
    (
        _any(
            _ENDINGS,
            r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+",
            r"\p{N}",
            r" ?[^\s\p{L}\p{N}]+[\r\n/]?",
            r"\s*[\r\n]|\s+(?!\S)|\s+",
        ),
    )
)
_JAIS2 = Cut(
    (
        _any(
            _ENDINGS,
            _LETTERS,
            r"\p{N}{1,3}",
            _SYMBOLS,
            r"\s*[\r\n]+",
            *(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4)),
            r"\s{1,2}(?!\S)|\s{1}",
        ),
    )
)
_BLOOM = Cut((r" ?[^(\s|.,!?…。，、।۔،)]+",))
_FALCON = Cut((r"[\p{P}$+<=>^~|`]+", _GPT2_WORDS, r"[0-9][0-9][0-9]"))
_DEEPSEEK_CODER = Cut((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN, r"\p{N}"))
#: Letters that have a case, but for those of mathematics.
_DEEPSEEK_LLM = Cut(
    (
        r"[\r\n]",
        r"\s?[\p{Lu}\p{Ll}\p{Lt}&&[^\x{1D400}-\x{1D7FF}]]+",
        "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+",
        r"\s+$",
        _HAN,
        r"\p{N}",
    )
)
_DEEPSEEK_WORDS = _any(
    f"{_ASCII_SYMBOLS}[A-Za-z]+",
    r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
    r" ?[\p{P}\p{S}]+[\r\n]*",
    _SPACES,
)
_DEEPSEEK3 = Cut((r"\p{N}{1,3}", _HAN_AND_KANA, _DEEPSEEK_WORDS))
_AFMOE = Cut(
    (
        _THREES,
        "[一-鿿㐀-䶿豈-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e00-\u0e7f\u0e80-\u0eff"
        "\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+",
        _DEEPSEEK_WORDS,
    )
)
_TINY_AYA = Cut((r"\d{1,3}(?=(?:\d{3})*\b)", *_GPT4O.patterns))

_NAMES: dict[Cut, str] = {
    _GPT2: "default gpt-2 phi-2 mpt olmo jais trillion exaone4 modern-bert roberta-bpe jina-v1-en "
    "jina-v2-code jina-es jina-de jina-v2-es jina-v2-de a.x-4.0 mellum gigachat granite-docling",
    _DIGITS: "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
    _LLAMA3: "llama3 llama-v3 llama-bpe falcon3 falcon-h1 lfm2 pixtral midm-2.0 jina-v5-nano",
    _DBRX: "dbrx smaug-bpe chatglm-bpe",
    replace(_DBRX, whole_words=True): "glm4",
    _QWEN2: "qwen2 stablelm2 deepseek-r1-qwen megrez hunyuan kormo f2llmv2 solar-open grok-2",
    _QWEN35: "qwen35",
    _TEKKEN: "tekken",
    _GPT4O: "gpt-4o llama4 kanana2 minimax-m2",
    _KIMI: "kimi-k2",
    _SEED: "seed-coder",
    _BAILING: "bailingmoe bailingmoe2 llada-moe",
    _EXAONE_MOE: "exaone-moe",
    _JAIS2: "jais-2",
    _BLOOM: "bloom poro-chat gpt3-finnish",
    replace(_BLOOM, digits=True): "viking",
    _FALCON: "falcon",
    _DEEPSEEK_CODER: "deepseek-coder",
    _DEEPSEEK_LLM: "deepseek-llm",
    _DEEPSEEK3: "deepseek-v3 hunyuan-dense joyai-llm",
    _AFMOE: "afmoe",
    _TINY_AYA: "tiny_aya cohere2moe",
}
#: By tokenizer.ggml.pre.
CUTS: dict[str, Cut] = {name: cut for cut, names in _NAMES.items() for name in names.split()}
