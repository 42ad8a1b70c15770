"""What one model is made of, from its headers and its small files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from meldkit.checkpoint import (
    Checkpoint,
    TensorInfo,
    open_as_stored,
    read_json,
)
from meldkit.checkpoint.config import writes_texts
from meldkit.checkpoint.stored import quantisation_method, stored_entries
from meldkit.errors import CheckpointError
from meldkit.layout import Layout, Part, all_parts, infer_layout, part_of
from meldkit.plan import embedding_rows
from meldkit.recipe import ModelRef
from meldkit.report.relatives import Relative, license_of, read_card, relatives
from meldkit.report.settings import settings_of
from meldkit.vocab import FAST, read_templates, special_tokens, tokenizer_files, tokenizer_of_folder
from meldkit.vocab.tokenizer import OTHERS

#: Numbers that are what they stand for.
_PLAIN = frozenset(("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"))


@dataclass(frozen=True, slots=True)
class PartSummary:
    """One part of a model, as a recipe's `modules:` addresses it.

    Attributes:
        name: of the part.
        part: the beginning of its tensors' names and the layers that `layer_range` counts in it.
        num_tensors: how many tensors it has.
        num_parameters: elements of them.
    """

    name: str
    part: Part
    num_tensors: int
    num_parameters: int


@dataclass(frozen=True, slots=True)
class Quantisation:
    """How weights are quantised.

    Attributes:
        method: what config.json calls it, or "GGUF"; "" if nothing names it.
        kinds: quantised tensors by the kind of their numbers, the most frequent first.
    """

    method: str
    kinds: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """The tokenizer of a model.

    Attributes:
        kind: BPE, Unigram, WordPiece, WordLevel; or the file that holds it, if that is not tokenizer.json.
        num_tokens: how many tokens it has; None if it has no tokenizer.json.
        num_added: those among them that are looked for in texts as they are.
        num_special: those that are skipped when texts are decoded.
        size: one more than the largest number of a token.
        special: tokens by what they are for, with their numbers: bos, eos, pad, unk, sep, cls, mask.
        templates: names of its chat templates.
    """

    kind: str
    num_tokens: int | None
    num_added: int
    num_special: int
    size: int | None
    special: Mapping[str, tuple[str, int | None]]
    templates: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """An adapter that stands alone.

    Attributes:
        kind: PEFT's name: LORA, …
        rank, alpha: of its factors, where no module has its own.
        targets: kinds of modules that it changes.
    """

    kind: str
    rank: int | None
    alpha: float | None
    targets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Inspection:
    """What one model is made of.

    Attributes:
        checkpoint: its tensors and configuration.
        layout: where each tensor stands.
        parts: the text decoder first.
        roles: elements by role: attention, mlp, expert, router, embedding, norm, lm_head, vision, other.
        dtypes: elements by the type of their values, safetensors spelling.
        num_encoded: tensors that are not stored as an array of that type, such as quantised ones.
        stored: tensors and bytes by the kind of number that the files hold.
        quantisation: None if there is none.
        settings: sizes that config.json tells, by the same names for all models.
        head: "tied" to the embedding, "stored", "tied and stored", or "none".
        rows: of the embedding.
        tokenizer: None if there is none.
        adapter: None for a model.
        relatives: models that it comes from.
        license: None if nothing names it.
        notes: what could not be found out, or went otherwise than usual, in words.
    """

    checkpoint: Checkpoint
    layout: Layout
    parts: tuple[PartSummary, ...]
    roles: Mapping[str, int]
    dtypes: Mapping[str, int]
    num_encoded: int
    stored: Mapping[str, tuple[int, int]]
    quantisation: Quantisation | None
    settings: Mapping[str, int | float]
    head: str
    rows: int
    tokenizer: TokenizerFacts | None
    adapter: AdapterFacts | None
    relatives: Sequence[Relative]
    license: str | None
    notes: Sequence[str]

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors by name, in the order of the files."""
        return self.checkpoint.tensors

    @property
    def num_parameters(self) -> int:
        """Elements of all tensors."""
        return sum(self.dtypes.values())

    @property
    def nbytes(self) -> int:
        """Size of what the files hold."""
        return sum(nbytes for _, nbytes in self.stored.values())

    @property
    def architectures(self) -> list[str]:
        """What config.json calls the model: its classes, else its type."""
        config = self.checkpoint.config
        return [str(name) for name in config.get("architectures") or [config.get("model_type")] if name]

    def part_of(self, tensor: str) -> str:
        """The name of the part that a tensor belongs to."""
        return part_of({summary.name: summary.part for summary in self.parts}, tensor)

    def data(self, *, tensors: bool = False) -> dict[str, Any]:
        """All of it as JSON has it; with every tensor if asked for."""
        checkpoint = self.checkpoint
        result: dict[str, Any] = {
            "model": checkpoint.label,
            "kind": "adapter" if self.adapter else "model",
            "folder": str(checkpoint.folder),
            "architectures": self.architectures,
            "model_type": checkpoint.config.get("model_type"),
            "num_parameters": self.num_parameters,
            "num_tensors": len(checkpoint),
            "bytes": self.nbytes,
            "files": [
                {"name": path.name, "bytes": path.stat().st_size, "here": path not in checkpoint.absent}
                for path in checkpoint.files()
            ],
            "bytes_to_download": sum(checkpoint.absent.values()),
            "dtypes": dict(self.dtypes),
            "stored": {kind: {"tensors": n, "bytes": size} for kind, (n, size) in self.stored.items()},
            "quantisation": self.quantisation
            and {"method": self.quantisation.method, "tensors": dict(self.quantisation.kinds)},
            "settings": dict(self.settings),
            "head": self.head,
            "embedding_rows": self.rows,
            "modules": [_part_data(summary) for summary in self.parts],
            "stacks": [
                {"prefix": s.prefix, "num_layers": s.num_blocks, "first": s.first} for s in self.layout.stacks
            ],
            "roles": dict(self.roles),
            "tokenizer": self.tokenizer and _tokenizer_data(self.tokenizer),
            "adapter": self.adapter
            and {
                "kind": self.adapter.kind,
                "rank": self.adapter.rank,
                "alpha": self.adapter.alpha,
                "targets": list(self.adapter.targets),
            },
            "relatives": [
                {"name": r.name, "relation": r.relation, "source": r.source} for r in self.relatives
            ],
            "license": self.license,
            "notes": list(self.notes),
        }
        if tensors:
            result["tensors"] = [
                {
                    "name": name,
                    "dtype": info.dtype,
                    "shape": list(info.shape),
                    "module": self.part_of(name),
                    "role": self.layout.places[name].role,
                    "file": info.file.name,
                }
                for name, info in checkpoint.items()
            ]
        return result


def _part_data(summary: PartSummary) -> dict[str, Any]:
    stack = summary.part.stack
    return {
        "name": summary.name,
        "stack": stack.prefix if stack else None,
        "num_layers": stack.num_blocks if stack else None,
        "num_tensors": summary.num_tensors,
        "num_parameters": summary.num_parameters,
    }


def _tokenizer_data(facts: TokenizerFacts) -> dict[str, Any]:
    return {
        "kind": facts.kind,
        "num_tokens": facts.num_tokens,
        "num_added": facts.num_added,
        "num_special": facts.num_special,
        "size": facts.size,
        "special": {role: {"token": token, "id": number} for role, (token, number) in facts.special.items()},
        "chat_templates": list(facts.templates),
    }


def inspect(model: str | os.PathLike[str] | ModelRef, *, cache: Path | None = None) -> Inspection:
    """Look at a model; reads headers, configuration and tokenizer only.

    An adapter without a base model is looked at as what it is.

    Args:
        model: as recipes name it: a folder, a file, a hub id, with adapters.
        cache: where downloads are kept; None for the hub's own cache.

    Raises:
        RecipeError: that names no model.
        CheckpointError: there is no such model, or it is damaged.
    """
    ref = ModelRef.from_value(model)
    checkpoint = open_as_stored(ref, cache=cache, headers_only=True)
    layout = infer_layout(checkpoint, checkpoint.config)
    parts = all_parts(layout)
    tensors: Counter[str] = Counter()
    elements: Counter[str] = Counter()
    roles: Counter[str] = Counter()
    dtypes: Counter[str] = Counter()
    for name, info in checkpoint.items():
        owner = part_of(parts, name)
        tensors[owner] += 1
        elements[owner] += info.numel
        roles[layout.places[name].role] += info.numel
        dtypes[info.dtype] += info.numel
    adapter = _adapter(checkpoint)
    notes = list(checkpoint.notes) + list(checkpoint.warnings)
    card = read_card(checkpoint.folder)
    stored, quantisation = _stored(checkpoint)
    return Inspection(
        checkpoint=checkpoint,
        layout=layout,
        parts=tuple(PartSummary(n, part, tensors[n], elements[n]) for n, part in parts.items() if tensors[n]),
        roles=dict(roles.most_common()),
        dtypes=dict(dtypes.most_common()),
        num_encoded=sum(info.encoding is not None for info in checkpoint.values()),
        stored=stored,
        quantisation=quantisation,
        settings=settings_of(checkpoint.config),
        head=_head(checkpoint, layout),
        rows=0 if adapter else embedding_rows(checkpoint),
        tokenizer=_tokenizer(checkpoint, notes),
        adapter=adapter,
        relatives=relatives(checkpoint.folder, card, checkpoint.config, ref.path),
        license=license_of(checkpoint.folder, card),
        notes=notes,
    )


def _stored(checkpoint: Checkpoint) -> tuple[Mapping[str, tuple[int, int]], Quantisation | None]:
    """Tensors and bytes by the kind of number that files hold, and which of these stand for others."""
    entries = stored_entries(checkpoint.files())
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for entry in entries.values():
        counts[entry.kind] += 1
        sizes[entry.kind] += entry.nbytes
    stored = {kind: (counts[kind], size) for kind, size in sizes.most_common()}
    if checkpoint.gguf is not None:
        coded = {kind: n for kind, n in counts.most_common() if kind not in _PLAIN}
        return stored, Quantisation("GGUF", coded) if coded else None
    changed: Counter[str] = Counter()
    for info in checkpoint.values():
        entry = entries.get((info.file, info.offset))
        if entry is not None and entry.kind != info.dtype:
            changed[entry.kind] += 1
    if not changed:
        return stored, None
    path = checkpoint.folder / "config.json"
    method = quantisation_method(read_json(path)) if path.is_file() else ""
    return stored, Quantisation(method, dict(changed.most_common()))


def _head(checkpoint: Checkpoint, layout: Layout) -> str:
    stored = any(place.role == "lm_head" and place.stack is None for place in layout.places.values())
    text = checkpoint.config.get("text_config")
    inner = cast("dict[str, Any]", text if isinstance(text, dict) else {})
    tied = checkpoint.config.get("tie_word_embeddings", inner.get("tie_word_embeddings"))
    if stored:
        return "tied and stored" if tied is True else "stored"
    if tied is None:
        # Where nothing else is said, a model that writes texts has one.
        tied = writes_texts(checkpoint.config)
    return "tied" if tied is True else "none"


def _adapter(checkpoint: Checkpoint) -> AdapterFacts | None:
    path = checkpoint.folder / "adapter_config.json"
    if checkpoint.config or not path.is_file():
        return None
    settings = read_json(path)
    targets = settings.get("target_modules")
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    return AdapterFacts(
        kind=str(settings.get("peft_type", "LORA")),
        rank=rank if type(rank) is int else None,
        alpha=alpha if type(alpha) in (int, float) else None,
        targets=tuple(sorted(map(str, cast("list[object]", targets))))
        if isinstance(targets, list)
        else ((str(targets),) if targets else ()),
    )


def _tokenizer(checkpoint: Checkpoint, notes: list[str]) -> TokenizerFacts | None:
    try:
        with tokenizer_files(checkpoint) as folder:
            templates = read_templates(folder)
            names = (("default",) if templates.default is not None else ()) + tuple(templates.named)
            roles = special_tokens(folder)
            if not (folder / FAST).is_file():
                others = [name for name in OTHERS if (folder / name).is_file()]
                others += [path.name for path in folder.glob("*.tiktoken")]
                if not others:
                    return None
                special = {role: (token, None) for role, token in roles.items()}
                return TokenizerFacts(others[0], None, 0, 0, None, special, names)
            # Only what is not stored as tokenizer.json takes transformers.
            tokenizer = tokenizer_of_folder(checkpoint.label, folder)
            assert tokenizer is not None
            return TokenizerFacts(
                kind=tokenizer.kind,
                num_tokens=len(tokenizer.tokens),
                num_added=len(tokenizer.added),
                num_special=sum(token.flags.get("special", False) for token in tokenizer.added.values()),
                size=tokenizer.size,
                special={role: (token, tokenizer.tokens.get(token)) for role, token in roles.items()},
                templates=names,
            )
    except CheckpointError as e:
        notes.append(e.message)
        return None
