"""An adapter by itself: the products that it adds to modules, without the model that they are added to."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from meldkit.checkpoint.adapter.open import PREFIX
from meldkit.checkpoint.adapter.overlay import LowRank, Overlay
from meldkit.checkpoint.adapter.settings import Settings, weights_file
from meldkit.checkpoint.json_file import shown
from meldkit.checkpoint.tensor import TensorInfo
from meldkit.checkpoint.weights import read_file
from meldkit.errors import CheckpointError, FormatError

_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.default)?(\.weight)?")
_ADAPTER_ONLY = re.compile(r"\.(lora_|token_adapter\.)")
_SAVED = re.compile(r"\.modules_to_save(\.default)?|\.base_layer")


@dataclass(frozen=True, slots=True)
class Factors:
    """What is added to the weight of a module: scale · B A.

    Attributes:
        a: `[rank, columns]`.
        b: `[rows, rank]`.
        scale: of the product.
        embedding: whether the weight is an embedding, to which the transpose is added.
    """

    a: TensorInfo
    b: TensorInfo
    scale: float
    embedding: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Of the product."""
        return self.b.shape[0], self.a.shape[1]

    @property
    def rank(self) -> int:
        """Rows of A."""
        return self.a.shape[0]

    def added_to(self, under: TensorInfo) -> TensorInfo:
        """The product added to a tensor, tile by tile."""
        encoding = Overlay(under, LowRank(self.a, self.b, self.scale))
        return replace(under, nbytes=under.nbytes + self.a.nbytes + self.b.nbytes, encoding=encoding)


@dataclass(frozen=True, slots=True)
class LoneAdapter:
    """An adapter without a model.

    Attributes:
        folder: where it lies.
        settings: adapter_config.json.
        modules: those that it adds products to.
        saved: tensors that it brings as a whole, by the names that the model has for them; theirs
            are those of the file.
        digest: hex hash of everything that decides what it does.
    """

    folder: Path
    settings: Mapping[str, Any]
    modules: Mapping[str, Factors]
    saved: Mapping[str, TensorInfo]
    digest: str


def open_alone(folder: Path) -> LoneAdapter:
    """Read an adapter's configuration and headers.

    Raises:
        CheckpointError: missing or damaged files, or a factor without its partner.
        FormatError: an adapter that does more than adding products to matrices.
    """
    settings = Settings.read(folder)
    if settings.values.get("use_dora"):
        raise FormatError(
            f"not supported yet: adapter {folder} uses DoRA, whose change depends on the model under it",
            hint="merge models: write each as BASE_MODEL+ADAPTER",
        )
    if settings.names("target_parameters"):
        raise FormatError(
            f"not supported yet: adapter {folder} has target_parameters, such as experts in one tensor; "
            "adapters by themselves are merged if all they do is to add products to matrices",
            hint="merge models: write each as BASE_MODEL+ADAPTER",
        )
    header = read_file(weights_file(folder))
    sides: dict[tuple[str, bool], dict[str, TensorInfo]] = {}
    saved: dict[str, TensorInfo] = {}
    for full, info in header.tensors.items():
        name = full.removeprefix(PREFIX)
        match = _FACTOR.fullmatch(name)
        if match is not None and len(info.shape) == 2:
            sides.setdefault((match["module"], bool(match["embedding"])), {})[match["side"]] = info
        elif _ADAPTER_ONLY.search(name):
            raise FormatError(
                f"not supported yet: adapter {folder} has {shown(name)} {list(info.shape)}; adapters by "
                "themselves are merged if all they do is to add products to matrices",
                hint="merge models: write each as BASE_MODEL+ADAPTER",
            )
        elif ".original_module." not in name:
            saved[_SAVED.sub("", name)] = info
    modules = {
        module: _factors(settings, module, pair, embedding=embedding)
        for (module, embedding), pair in sides.items()
    }
    if not modules:
        raise CheckpointError(
            f"adapter {folder} adds nothing to any matrix", hint="look whether it was saved as a whole"
        )
    # With an embedding's factors, PEFT saves the embedding as well, which nobody has trained.
    frozen = [f"{module}.weight" for module, factors in modules.items() if factors.embedding]
    saved = {name: info for name, info in saved.items() if name not in frozen}
    says = json.dumps(settings.values, sort_keys=True)
    digest = sha256((header.digest + says).encode()).hexdigest()
    return LoneAdapter(folder, settings.values, modules, saved, digest)


def _factors(settings: Settings, module: str, pair: Mapping[str, TensorInfo], *, embedding: bool) -> Factors:
    if len(pair) < 2:
        raise CheckpointError(
            f"adapter {settings.folder} has only lora_{next(iter(pair))} of {shown(module)}",
            hint="half of it is missing; download or save it again",
        )
    a, b = pair["A"], pair["B"]
    if a.shape[0] != b.shape[1] or not (a.floating and b.floating):
        raise CheckpointError(
            f"adapter {settings.folder}: lora_A {list(a.shape)} and lora_B {list(b.shape)} of "
            f"{shown(module)} have no product",
            hint="the file is damaged; download or save it again",
        )
    return Factors(a, b, settings.scale(module, a.shape[0]), embedding)
