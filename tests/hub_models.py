"""Models for a hub of our own."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save

import tiny
from hub_server import Hub, Repository

MAIN, OLD = "a" * 40, "b" * 40


def model(seed: int = 0, layers: int = 2) -> dict[str, bytes]:
    """The files of a model that a merge needs."""
    folder = tiny.decoder(Path(f"made-{seed}-{layers}"), seed, layers=layers)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    more = {"LICENSE": b"free", "merges.txt": b"#", "README.md": b"read me"}
    return files | {"tokenizer.json": b'{"model": {"vocab": {}}}'} | more


def sharded(seed: int = 0) -> dict[str, bytes]:
    """The same in two files."""
    files = model(seed)
    tensors = tiny.tensors(Path(f"made-{seed}-2"))
    parts = [dict(list(tensors.items())[index::2]) for index in range(2)]
    names = [f"model-{index + 1:05d}-of-00002.safetensors" for index in range(2)]
    weight_map = {name: file for file, part in zip(names, parts, strict=True) for name in part}
    del files["model.safetensors"]
    files |= {file: save(part) for file, part in zip(names, parts, strict=True)}
    return files | {"model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode()}


def put(hub: Hub, files: dict[str, bytes], name: str = "org/name", **more: object) -> Repository:
    hub.repositories[name] = Repository({MAIN: files}, {"main": MAIN}, **more)  # type: ignore[arg-type]
    return hub.repositories[name]


def wide(layers: int = 4) -> dict[str, bytes]:
    """A model in a file per layer, of which nearly everything is weights: 4 MB a file."""
    folder = tiny.decoder(Path("wide"), layers=layers)
    weights = tiny.tensors(folder)
    files: dict[str, bytes] = {"config.json": (folder / "config.json").read_bytes()}
    weight_map: dict[str, str] = {}
    for layer in range(layers):
        mine = {
            name: t
            for name, t in weights.items()
            if (f".{layer}." in name) or (not layer and "layers" not in name)
        }
        mine[f"model.layers.{layer}.mlp.down_proj.weight"] = torch.full((1000, 1000), layer + 1.0)
        file = f"model-{layer + 1:05d}-of-{layers:05d}.safetensors"
        files[file] = save(mine)
        weight_map |= dict.fromkeys(mine, file)
    return files | {"model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode()}


def heads(files: dict[str, bytes]) -> int:
    """Bytes before the weights of all safetensors files."""
    return sum(
        8 + int.from_bytes(data[:8], "little")
        for name, data in files.items()
        if name.endswith(".safetensors")
    )
