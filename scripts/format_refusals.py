"""Samples of what is not read; for formats.py."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import test_adapter
import test_quantised
import tiny
from gguf_files import LLAMA_KEYS, llama_tensors, write_gguf
from meldkit.checkpoint.adapter.settings import _CHANGED_BASE, _OTHER_KINDS
from meldkit.checkpoint.gguf.architectures import REFUSED
from meldkit.checkpoint.quantised import dequantise as quantised

#: Makes a sample in a folder, and gives the reference of the model.
Make = Callable[[Path], str | Path]


@dataclass(frozen=True)
class Refused:
    """Something that is not read.

    Attributes:
        group: what comes before `what`, once where several have a row together.
        what: it is.
        make: makes a sample.
    """

    group: str
    what: str
    make: Make


def refusals() -> Iterator[Refused]:
    """Everything that has a message of its own."""
    for foreign in quantised._FOREIGN:
        yield Refused("quantised with", foreign.name, _foreign(foreign))
    yield Refused("", "any other `quant_method`", _coded({"quant_method": "bitnet"}))
    yield from _adapters()
    part = _gguf("llama", {"split.count": 2}, "m-00001-of-00002.gguf")
    yield Refused("", "a part of a GGUF model without the others", part)
    for architecture, why in REFUSED.items():
        yield Refused(f"GGUF files, because {why}:", f"`{architecture}`", _gguf(architecture, {}))
    yield Refused("", "GGUF files of any other architecture", _gguf("another", {}))
    linear = torch.nn.Linear(2, 2)
    contents = {
        "a whole module": linear,
        "anything else that is code": {"model": linear.state_dict(), "run": shutil.rmtree},
        "sparse tensors": {"x": torch.zeros(1).to_sparse()},
        "complex128 tensors": {"x": torch.zeros(1, dtype=torch.complex128)},
    }
    for what, content in contents.items():
        yield Refused("in a file of torch.save:", what, _saved(content))
    yield Refused("", "TorchScript", _torchscript)
    for suffix in (".h5", ".msgpack", ".onnx", ".npz"):
        yield Refused("files of other programs:", f"`{suffix}`", _empty(f"model{suffix}"))


def _coded(settings: dict[str, Any]) -> Make:
    stored = {"w.weight": torch.ones(4, 4, dtype=torch.int32)}
    return lambda folder: test_quantised.written(folder / "m", stored, settings)


def _foreign(foreign: quantised._Foreign) -> Make:
    """A format that is known by the name of its method, else by its tensors."""
    if foreign.method:
        return _coded({"quant_method": foreign.method})
    bad = (b for b in test_quantised.BAD.values() if any(map(foreign.marker.search, b.stored)))
    case = next(b for b in bad if (b.settings or {}).get("quant_method") in (None, "compressed-tensors"))
    return lambda folder: test_quantised.written(folder / "m", case.stored, case.settings)


def _gguf(architecture: str, keys: dict[str, Any], name: str = "m.gguf") -> Make:
    return lambda folder: write_gguf(folder / name, architecture, LLAMA_KEYS | keys, llama_tensors())


def _saved(content: object) -> Make:
    def make(folder: Path) -> Path:
        torch.save(content, folder / "w.pt")
        return folder / "w.pt"

    return make


def _torchscript(folder: Path) -> Path:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), folder / "w.pt")
    return folder / "w.pt"


def _empty(name: str) -> Make:
    def make(folder: Path) -> Path:
        (folder / name).touch()
        return folder / name

    return make


def _adapters() -> Iterator[Refused]:
    def of(settings: dict[str, Any]) -> Make:
        def make(folder: Path) -> str:
            base = tiny.decoder(folder / "base")
            adapter = tiny.adapter(folder / "a", {"model.layers.0.self_attn.q_proj": (4, 4)})
            test_adapter.configure(adapter, **settings)
            return f"{base}+{adapter}"

        return make

    for kind in ("LOHA", "LOKR", "IA3", "ADALORA", "OFT", "PREFIX_TUNING"):
        yield Refused("adapters that are no LoRA, such as", kind, of({"peft_type": kind}))
    for key in _OTHER_KINDS:
        yield Refused("LoRA with", f"`{key}`", of({key: [1]}))
    for name in _CHANGED_BASE:
        yield Refused("LoRA with `init_lora_weights`", f"`{name}`", of({"init_lora_weights": name}))
