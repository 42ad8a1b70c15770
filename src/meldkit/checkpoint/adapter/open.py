"""LoRA adapters in PEFT's format, laid over a checkpoint without writing a merged copy.

An adapter is a set of tensors named after the modules they belong to, and adapter_config.json:

    MODULE.lora_A.weight, MODULE.lora_B.weight          factors of a linear layer or a convolution, or of
                                                        parameters that are named under target_parameters
    MODULE.lora_embedding_A, MODULE.lora_embedding_B    the same of an embedding
    MODULE.lora_magnitude_vector                        DoRA
    MODULE.lora_B.bias                                  added to the bias
    MODULE.token_adapter.trainable_tokens_delta         rows of an embedding
    anything else                                       tensors that were trained as a whole

Source: `peft.utils.save_and_load` and `peft.tuners.lora` (PEFT 0.21); what each does to a tensor stands in
`overlay`. In two places the result is what the model with the adapter computes, and not what
`merge_and_unload` makes of it: an embedding and a head that are tied come apart if only one of them changes,
and an embedding or a head of another vocabulary size brings its size along.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from meldkit.checkpoint.adapter.fit import HALF_HINT, OTHER_BASE_HINT, Fit
from meldkit.checkpoint.adapter.names import Experts, Names
from meldkit.checkpoint.adapter.overlay import Change, Dora, LowRank, Overlay, Replacement, Rows, Shift
from meldkit.checkpoint.adapter.settings import Settings, weights_file
from meldkit.checkpoint.adapter.vocabulary import EMBEDDING, HEAD, Vocabulary
from meldkit.checkpoint.experts import as_stored_by, one_by_one
from meldkit.checkpoint.json_file import shown
from meldkit.checkpoint.tensor import TensorInfo
from meldkit.checkpoint.weights import read_file
from meldkit.errors import CheckpointError, FormatError, MismatchError

#: What the names of an adapter's tensors begin with, before that of a module.
PREFIX = "base_model.model."
#: Parameters of experts in the order in which transformers creates them, which is that of PEFT's wrappers.
_PARAMETERS = ("gate_up_proj", "gate_up_proj_bias", "gate_proj", "up_proj", "down_proj", "down_proj_bias")
#: Under which names the matrices of a joined one are stored, expert by expert.
_JOINED = {"gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")), "down_proj": (("down_proj",), ("w2",))}
_FACTOR = re.compile(r"(?P<module>.+)\.(?P<part>lora_\w+)(?:\.default)?(?P<leaf>\.weight|\.bias)?")
_PARTS = ("lora_A", "lora_B", "lora_B.bias", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")
#: Parts that matter in training only.
_IDLE_PARTS = ("lora_velora_embed",)
_TOKENS = re.compile(r"(?P<module>.+)\.token_adapter\.trainable_tokens_delta(?:\.default)?")


@dataclass(frozen=True, slots=True)
class Adapter:
    """A checked adapter.

    Attributes:
        folder: where it lies.
        tensors: those that it changes or adds, as they are under it.
        stored: its own, as they lie in its file.
        config: the model's configuration under it.
        digest: hex hash of everything that decides what it does.
        notes: what it does besides changing values, in words.
    """

    folder: Path
    tensors: Mapping[str, TensorInfo]
    stored: Mapping[str, TensorInfo]
    config: Mapping[str, Any]
    digest: str
    notes: tuple[str, ...]


def open_adapter(
    folder: Path, weights: Mapping[str, TensorInfo], config: Mapping[str, Any] | None = None
) -> Adapter:
    """Read an adapter's configuration and headers and match them with the weights they change.

    Args:
        folder: holds adapter_config.json and adapter_model.safetensors (or .bin).
        weights: tensors of the model under the adapter.
        config: that model's config.json.

    Raises:
        CheckpointError: missing or damaged files, or a factor without its partner.
        MismatchError: the adapter belongs to another base.
        FormatError: a kind of adapter that is understood but not merged.
    """
    settings = Settings.read(folder)
    header = read_file(weights_file(folder))
    # transformers before version 5 had a module for each expert, so that its adapters change single ones.
    factors = (_FACTOR.fullmatch(name.removeprefix(PREFIX)) for name in header.tensors)
    apart = one_by_one(weights, [match["module"].replace(".base_layer", "") for match in factors if match])
    laying = _Laying(settings, apart, config or {})
    laying.lay(header.tensors)
    changed = laying.changed
    if apart is not weights:
        together = as_stored_by(laying.weights, weights)
        changed = {name: info for name, info in together.items() if weights.get(name) != info}
    says = json.dumps([settings.values, laying.model_type], sort_keys=True)
    digest = hashlib.sha256((header.digest + says).encode()).hexdigest()
    return Adapter(folder, changed, header.tensors, laying.model_config, digest, tuple(laying.notes))


class _Laying:
    """One adapter being laid over the tensors of a model.

    Args:
        settings: the adapter's adapter_config.json.
        weights: the model's tensors.
        config: the model's config.json.

    Attributes:
        weights: the model's tensors under the adapter.
        changed: those that differ from the model's, or that it does not have.
        model_config: the model's configuration under the adapter.
        model_type: what the model calls itself.
        notes: about embedding and head.
    """

    def __init__(
        self, settings: Settings, weights: Mapping[str, TensorInfo], config: Mapping[str, Any]
    ) -> None:
        self.weights = dict(weights)
        self.changed: dict[str, TensorInfo] = {}
        self.notes: list[str] = []
        self.model_config = dict(config)
        self.model_type = str(config.get("model_type", ""))
        self._folder = settings.folder
        self._settings = settings
        self._fit = Fit(settings, self.model_type)
        self._names = Names(self.weights)
        self._vocabulary = Vocabulary(settings, self.weights, self.model_config)
        self._made: set[tuple[str, type[Change]]] = set()
        self._resized = False

    @cached_property
    def _experts(self) -> Experts:
        return Experts(self.weights)

    def lay(self, tensors: Mapping[str, TensorInfo]) -> None:
        """Match every tensor of the adapter. Those that replace others come first, changes go on top."""
        modules: dict[str, dict[int, dict[str, TensorInfo]]] = {}
        tokens: dict[str, TensorInfo] = {}
        whole: list[tuple[str, TensorInfo]] = []
        for full, info in tensors.items():
            name = full.removeprefix(PREFIX)
            if match := _TOKENS.fullmatch(name):
                tokens[match["module"]] = info
            elif match := _FACTOR.fullmatch(name):
                self._sort_in(modules, match, info)
            elif ".original_module." not in name:
                whole.append((re.sub(r"\.modules_to_save(\.default)?|\.base_layer", "", name), info))
        # Trained modules first: they may untie the head, which then has a value of its own in the file.
        for name, info in sorted(whole, key=lambda entry: not self._saved(entry[0])):
            self._replace(name, info)
        for module, layers in modules.items():
            head = f"{module}.weight"
            if self._vocabulary.kept_tied and HEAD.fullmatch(head) and self._names.find(head) is None:
                continue
            # PEFT nests a wrapper for each parameter; the first lies innermost.
            parts = [layers[depth] for depth in sorted(layers, reverse=True)]
            parameters = self._parameters_of(module, len(parts))
            if parameters:
                for parameter, own in zip(parameters, parts, strict=True):
                    self._change_parameter(module, parameter, own)
            else:
                for own in parts:
                    self._change_module(module, own)
        for module, info in tokens.items():
            self._change_tokens(module, info)
        if not self.changed:
            raise CheckpointError(f"adapter {self._folder} changes nothing: it has no tensors")
        if self._resized:
            self._vocabulary.resize()

    def _sort_in(
        self, modules: dict[str, dict[int, dict[str, TensorInfo]]], match: re.Match[str], info: TensorInfo
    ) -> None:
        part = match["part"] + (".bias" if match["leaf"] == ".bias" else "")
        if part in _IDLE_PARTS:
            return
        if part not in _PARTS:
            raise FormatError(
                f"not supported yet: adapter {self._folder} has tensor {shown(match[0])}, "
                "which is no part of LoRA or DoRA"
            )
        module = match["module"].replace(".base_layer", "")
        parts = modules.setdefault(module, {}).setdefault(match["module"].count(".base_layer"), {})
        if part in parts:
            raise CheckpointError(f"adapter {self._folder} has two {part} for {shown(module)}")
        parts[part] = info

    # ---- which tensor is meant

    def _find(self, wanted: str, shape: Sequence[int]) -> str:
        """The stored name of what an adapter calls so, and changes by something of that shape."""
        name = self._names.find(wanted)
        if name is None and self._vocabulary.tied and HEAD.fullmatch(wanted):
            return self._untie()
        if name is None:
            near = difflib.get_close_matches(wanted, self.weights, n=1)
            raise MismatchError(
                f"adapter {self._folder} changes {shown(wanted)} {list(shape)}, "
                "which its base model does not have",
                hint=OTHER_BASE_HINT
                + "".join(f"; it has {shown(name)} {list(self.weights[name].shape)}" for name in near),
            )
        if self._vocabulary.tied and (name == self._vocabulary.tied or HEAD.fullmatch(name)):
            self._untie()
        return name

    def _untie(self) -> str:
        """Give the model a head of its own; its name."""
        tied = self._vocabulary.tied
        name, info = self._vocabulary.untie()
        self.notes.append(f"adapter {self._folder}: {name} comes apart from {tied}, to which it was tied")
        if info is not None:
            self._put(name, info)
        return name

    # ---- whole tensors

    def _saved(self, name: str) -> bool:
        """Whether a tensor belongs to a module that the adapter replaces as a whole."""
        return any(f".{module}." in f".{name}" for module in self._settings.names("modules_to_save"))

    def _replace(self, wanted: str, info: TensorInfo) -> None:
        saved = self._saved(wanted)
        name = self._names.find(wanted)
        tied = self._vocabulary.tied
        if tied and saved and (name == tied or HEAD.fullmatch(wanted)):
            head = self._untie()
            name = name or head
        elif name is None and HEAD.fullmatch(wanted) and (tied or self._vocabulary.kept_tied):
            return
        elif name is None:
            if not saved or EMBEDDING.fullmatch(wanted) or HEAD.fullmatch(wanted):
                self._find(wanted, info.shape)
            # A head for another task, such as a classifier: the base model has none.
            self._put(wanted, replace(info, name=wanted))
            return
        weight = self.weights[name]
        if info.shape != weight.shape:
            resized = EMBEDDING.fullmatch(name) or HEAD.fullmatch(name)
            if not resized or len(info.shape) != 2 or info.shape[1:] != weight.shape[1:]:
                raise MismatchError(
                    f"adapter {self._folder} replaces {shown(name)} by {list(info.shape)} "
                    f"against {list(weight.shape)}",
                    hint=OTHER_BASE_HINT,
                )
            self._resized = True
            self.notes.append(
                f"adapter {self._folder}: {name} has {info.shape[0]} tokens, instead of {weight.shape[0]}"
            )
        if info.floating and weight.floating and info.dtype != weight.dtype:
            info = replace(info, dtype=weight.dtype, encoding=Replacement(info))
        self._put(name, replace(info, name=name))

    def _put(self, name: str, info: TensorInfo) -> None:
        self.weights[name] = self.changed[name] = info

    # ---- changes on top

    def _change(self, name: str, change: Change) -> None:
        under = self.weights[name]
        if not under.floating:
            raise FormatError(
                f"not supported yet: adapter {self._folder} changes {shown(name)}, "
                f"which is stored as {under.dtype}",
                hint="lay it over the base model's original, unquantised weights",
            )
        if (name, type(change)) in self._made:
            raise CheckpointError(
                f"adapter {self._folder} changes {shown(name)} under two names", hint=HALF_HINT
            )
        self._made.add((name, type(change)))
        self._put(name, replace(under, encoding=Overlay(under, change)))

    def _change_module(self, module: str, parts: Mapping[str, TensorInfo]) -> None:
        embedding = any(part.startswith("lora_embedding") for part in parts)
        a, b = self._fit.pair(module, parts, "lora_embedding_" if embedding else "lora_")
        wanted = f"{module}.weight"
        if self._names.find(wanted) is None and self._names.find(f"{module}.in_proj_weight"):
            raise FormatError(
                f"not supported yet: adapter {self._folder} changes {shown(module)}, "
                "which is a torch.nn.MultiheadAttention",
                hint="PEFT adds the product of its output projection twice; merge it with PEFT",
            )
        name = self._find(wanted, (a.shape[1], b.shape[0]) if embedding else (b.shape[0], *a.shape[1:]))
        transposed = self._fit.orientation(name, self.weights[name], a, b, embedding=embedding)
        product = LowRank(a, b, self._settings.scale(module, a.shape[0]), transposed)
        magnitude = parts.get("lora_magnitude_vector")
        if bool(self._settings.values.get("use_dora")) != (magnitude is not None):
            has, says = ("no", "True") if magnitude is None else ("a", "False")
            raise CheckpointError(
                f"adapter {self._folder} has {has} lora_magnitude_vector for {shown(module)}, "
                f"but use_dora is {says}",
                hint=HALF_HINT,
            )
        if magnitude is None:
            self._change(name, product)
        elif magnitude.numel != b.shape[0] or not magnitude.floating:
            raise self._fit.unfit(name, f"lora_magnitude_vector {list(magnitude.shape)}", [b.shape[0]])
        else:
            self._change(name, Dora(product, magnitude))
        if "lora_B.bias" in parts:
            shift = parts["lora_B.bias"]
            bias = self._find(f"{module}.bias", shift.shape)
            if shift.shape != self.weights[bias].shape or not shift.floating:
                raise self._fit.unfit(bias, f"lora_B.bias {list(shift.shape)}", self.weights[bias].shape)
            self._change(bias, Shift(shift, product.scale))

    def _change_tokens(self, module: str, values: TensorInfo) -> None:
        name = self._names.find(f"{module}.weight") or self._find(f"{module}.weight", values.shape)
        indices = self._settings.token_indices(module)
        rows = self.weights[name].shape[0]
        places = cast("list[object]", indices) if isinstance(indices, list) else [None]
        if not all(type(i) is int and 0 <= i < rows for i in places):
            raise CheckpointError(
                f"adapter {self._folder}: trainable_token_indices of adapter_config.json gives "
                f"{shown(module)} {shown(cast('object', indices))}, "
                f"which are not rows of {shown(name)} with its {rows}"
            )
        wanted = (len(places), *self.weights[name].shape[1:])
        if values.shape != wanted or len(wanted) != 2 or not values.floating:
            raise self._fit.unfit(name, f"trainable_tokens_delta {list(values.shape)}", wanted)
        self._change(name, Rows(values, tuple(cast("list[int]", places))))

    # ---- parameters, such as those of experts

    def _parameters_of(self, module: str, count: int) -> Sequence[str]:
        """The parameters of a module that target_parameters names, in the order of PEFT's wrappers."""
        entries = [entry.rpartition(".") for entry in self._settings.names("target_parameters")]
        found = {
            parameter
            for owner, _, parameter in entries
            if f".{module}".endswith(f".{owner}" if owner else "")
            and (self._names.find(f"{module}.{parameter}") or self._stored_apart(module, parameter))
        }
        if not found:
            return ()
        known = [parameter for parameter in _PARAMETERS if parameter in found]
        if len(found) != count or (count > 1 and len(known) != count):
            raise FormatError(
                f"not supported yet: adapter {self._folder} has factors for {count} of the parameters "
                f"{', '.join(sorted(found))} of {shown(module)}, and nothing says which are whose"
            )
        return known or sorted(found)

    def _stored_apart(self, module: str, parameter: str) -> list[tuple[str, ...]] | None:
        """The tensors that are joined in a parameter of experts, expert by expert."""
        found = (self._experts.find(module, leaves) for leaves in _JOINED.get(parameter, ()))
        return next((names for names in found if names), None)

    def _change_parameter(self, module: str, parameter: str, parts: Mapping[str, TensorInfo]) -> None:
        path = f"{module}.{parameter}"
        a, b = self._fit.pair(path, parts, "lora_")
        if len(parts) > 2:
            raise FormatError(
                f"not supported yet: adapter {self._folder} has more than factors for {shown(path)}: "
                + ", ".join(parts)
            )
        name = self._names.find(path)
        if name is None:
            self._change_experts(path, self._stored_apart(module, parameter) or [], a, b)
            return
        weight = self.weights[name]
        if len(weight.shape) == 3:
            experts = weight.shape[0]
            transposed = self._fit.expert_orientation(path, weight.shape, a, b)
        else:
            experts = 1
            transposed = self._fit.orientation(name, weight, a, b, embedding=False)
        scale = self._settings.scale(path, a.shape[0] // experts)
        self._change(name, LowRank(a, b, scale, transposed, experts))

    def _change_experts(
        self, path: str, experts: list[tuple[str, ...]], a: TensorInfo, b: TensorInfo
    ) -> None:
        """Change the matrices that are joined in a parameter: each takes its rows of its expert's product."""
        shapes = [self.weights[leaf].shape for leaf in experts[0]]
        if any(len(shape) != 2 for shape in shapes):
            raise self._fit.unfit(experts[0][0], "matrices of experts", shapes[0])
        joined = (len(experts), sum(shape[0] for shape in shapes), shapes[0][1])
        transposed = self._fit.expert_orientation(path, joined, a, b)
        scale = self._settings.scale(path, a.shape[0] // len(experts))
        for index, leaves in enumerate(experts):
            first = 0
            for leaf, shape in zip(leaves, shapes, strict=True):
                if self.weights[leaf].shape != shape or shape[1] != joined[2]:
                    raise self._fit.unfit(leaf, f"other experts' {list(shape)}", self.weights[leaf].shape)
                rows = (first, first + shape[0])
                self._change(leaf, LowRank(a, b, scale, transposed, len(experts), index, rows))
                first += shape[0]
