"""Gates of experts: what the base makes of prompts that are to reach them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from meldkit.checkpoint import Checkpoint, Scratch, open_files
from meldkit.composed import normal
from meldkit.errors import NotSupportedError, RecipeError, RunError
from meldkit.tools.moe.config import Expert
from meldkit.tools.moe.parts import Parts

#: Prompts that the base reads at once.
BATCH = 8
#: Condition number from which on gates are hard to tell apart, as in mergekit.
_DEGENERATE = 5.0
#: Cosine of two gates from which on they are nearly the same.
_NEAR = 0.98

Features = Mapping[str, np.ndarray]
#: From prompts and a mode to their features.
Reader = Callable[[Sequence[str], str], Features]


@dataclass(frozen=True, slots=True)
class Gates:
    """Gates, and how prompts fare with them.

    Attributes:
        values: float32 `[layers, experts, size]`, for `Parts.needs_gates`.
        features: of each prompt, what a layer's router is assumed to see of it: float32 `[layers, size]`;
            none where gates are random.
    """

    values: np.ndarray
    features: Features


def make_gates(parts: Parts, read: Reader, seed: int = 0) -> Gates:
    """The gates of a mixture.

    Args:
        parts: of the mixture.
        read: from prompts and one of the modes in `PROMPTED` to their features, of every layer of the base.
        seed: of random ones.

    Raises:
        RecipeError: an expert has no prompts though it needs them.
        RunError: the base computes NaN.
    """
    mode = parts.mixture.gate_mode
    experts = parts.needs_gates
    layers, size = len(parts.experts), _size(parts)
    if not experts:
        return Gates(np.zeros((layers, 0, size), np.float32), {})
    if mode in ("random", "uniform_random"):
        return Gates(_random(mode, layers, len(experts), size, seed), {})
    for expert in experts:
        if not expert.positive:
            raise RecipeError(
                f"{expert.where}: expert '{expert}' has no positive_prompts, from which its gate is made",
                hint="say what should reach it, or choose gate_mode: random",
            )
    prompts = dict.fromkeys(text for expert in experts for text in (*expert.positive, *expert.negative))
    numbers = list(parts.numbers)
    # Of a mixture, some layers may be dense.
    read_rows = read(list(prompts), mode)
    if (least := min(map(len, read_rows.values()))) <= numbers[-1]:
        raise NotSupportedError(
            f"layer {numbers[-1]} of the base '{parts.mixture.base}' has experts, and is none of the {least} "
            "that it reads texts with",
            hint="it is for guessing further tokens; choose gate_mode: cheap_embed, or a base without it",
        )
    features = {text: rows[numbers] for text, rows in read_rows.items()}
    values = np.stack([_gate(expert, features, mode) for expert in experts], axis=1)
    if not np.isfinite(values).all():
        raise RunError(
            f"the base '{parts.mixture.base}' computes NaN or Inf for the prompts",
            hint="look whether it works at all: 'meldkit smoke' runs it",
        )
    return Gates(values, features)


def _size(parts: Parts) -> int:
    return next(iter(parts.experts.values()))[0]["up"].shape[1]


def _random(mode: str, layers: int, experts: int, size: int, seed: int) -> np.ndarray:
    shape = (layers, experts, size)
    if mode == "random":
        return normal(f"{seed}\0gates", 0, math.prod(shape)).reshape(shape)
    # As a new linear layer of PyTorch has them.
    bound = 1 / math.sqrt(size)
    return np.random.default_rng(seed).uniform(-bound, bound, shape).astype(np.float32)


def _gate(expert: Expert, features: Features, mode: str) -> np.ndarray:
    """[layers, size], each of length 1."""

    def together(prompts: Sequence[str]) -> np.ndarray:
        total = np.mean([features[text] for text in prompts], axis=0)
        # Embeddings are compared by direction alone.
        return _unit(total) if mode == "cheap_embed" else total

    gate = together(expert.positive)
    if expert.negative:
        gate = gate - together(expert.negative)
    return _unit(gate)


def _unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-8)).astype(np.float32)


def read_embeddings(
    base: Checkpoint, layers: int, tokens: Callable[[str], Sequence[int]]
) -> Callable[..., Features]:
    """A reader for `make_gates`: the sum of the embeddings of a prompt's tokens, the same in all layers.

    Args:
        base: whose embeddings.
        layers: of the base.
        tokens: from a prompt to its tokens' numbers.
    """
    name = next((name for name in base if name.endswith(("embed_tokens.weight", "wte.weight"))), None)
    if name is None:
        raise NotSupportedError(f"the token embeddings of '{base.label}' were not found")
    info = base[name]

    def read(prompts: Sequence[str], mode: str) -> Features:
        import torch

        del mode
        size = info.shape[1]
        row, scratch = torch.empty(size), Scratch()
        result: dict[str, np.ndarray] = {}
        with open_files() as files:
            source = info.open(files)
            for text in prompts:
                total = np.zeros(size, np.float32)
                for token in tokens(text):
                    source.read(token * size, (token + 1) * size, row, scratch)
                    total += row.numpy()
                result[text] = np.broadcast_to(total, (layers, size))
        return result

    return read


def read_states(
    model: Any, tokenizer: Any, progress: Callable[[int, int], None] | None = None
) -> Callable[..., Features]:
    """A reader for `make_gates`: what the base's layers get of a prompt.

    Args:
        model: of transformers, in evaluation mode.
        tokenizer: of transformers.
        progress: called with how many prompts are read, of how many.
    """

    def read(prompts: Sequence[str], mode: str) -> Features:
        import torch

        result: dict[str, np.ndarray] = {}
        for start in range(0, len(prompts), BATCH):
            batch = prompts[start : start + BATCH]
            ids = [tokens_of(tokenizer, text) for text in batch]
            longest = max(map(len, ids))
            # What comes after a prompt is not seen by it, as nothing looks ahead.
            padded = torch.tensor(
                [row + [row[-1]] * (longest - len(row)) for row in ids], device=model.device
            )
            mask = torch.tensor(
                [[1] * len(row) + [0] * (longest - len(row)) for row in ids], device=model.device
            )
            with torch.inference_mode():
                states = model(input_ids=padded, attention_mask=mask, output_hidden_states=True).hidden_states
            for i, (text, row) in enumerate(zip(batch, ids, strict=True)):
                own = torch.stack([layer[i, : len(row)].float() for layer in states[:-1]])
                found = own.mean(dim=1) if mode == "hidden_avg" else own[:, -1]
                result[text] = found.cpu().numpy()
            if progress is not None:
                progress(min(start + BATCH, len(prompts)), len(prompts))
        return result

    return read


def tokens_of(tokenizer: Any, text: str) -> list[int]:
    """A prompt's tokens, after the one that begins a text, if there is such."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    begin = tokenizer.bos_token_id
    ids = ([] if begin is None else [begin]) + ids
    if not ids:
        raise RecipeError(f"the prompt {text!r} has no tokens", hint="write something that the base can read")
    return ids


@dataclass(frozen=True, slots=True)
class Routing:
    """Where a prompt goes.

    Attributes:
        prompt: its text.
        expert: number of the expert that names it.
        shares: of each expert, the share of the layers in which it is among those that the prompt takes.
        first: of each layer, the expert that it likes best.
    """

    prompt: str
    expert: int
    shares: tuple[float, ...]
    first: tuple[int, ...]

    @property
    def first_shares(self) -> tuple[float, ...]:
        """Of each expert, the share of the layers that like it best."""
        return tuple(self.first.count(expert) / len(self.first) for expert in range(len(self.shares)))


def routings(parts: Parts, gates: Gates) -> list[Routing]:
    """Where each positive prompt of an expert goes, by the features that the gates were made from."""
    experts = parts.mixture.experts
    if not gates.features or any(parts.has_gate(expert) for expert in experts):
        return []
    rows = gates.values[:, : len(experts)]
    found: list[Routing] = []
    for number, expert in enumerate(experts):
        for prompt in expert.positive:
            scores = np.einsum("les,ls->le", rows, gates.features[prompt])
            best = np.argsort(-scores, axis=1, kind="stable")[:, : parts.per_token]
            shares = [(best == other).any(axis=1).mean() for other in range(len(experts))]
            found.append(Routing(prompt, number, tuple(map(float, shares)), tuple(best[:, 0].tolist())))
    return found


def gate_warnings(parts: Parts, gates: Gates) -> list[str]:
    """What may keep a mixture from routing well, in words."""
    values = gates.values[:, : len(parts.mixture.experts)]
    if values.shape[1] < 2 or not gates.features:
        return []
    found: list[str] = []
    with np.errstate(all="ignore"):
        conditions = np.array([np.linalg.cond(layer.astype(np.float64)) for layer in values])
    if (bad := np.flatnonzero(~(conditions <= _DEGENERATE))).size:
        found.append(
            f"the gates of {_layers(bad.tolist(), parts)} are hard to tell apart (condition number up "
            f"to {conditions.max():.3g}, over {_DEGENERATE:g}); some experts will be used little. Give "
            "prompts that differ more, or negative_prompts"
        )
    cosines = np.einsum("lis,ljs->lij", values, values)
    for i in range(values.shape[1]):
        for j in range(i):
            near = np.flatnonzero(cosines[:, i, j] > _NEAR)
            if near.size:
                found.append(
                    f"experts {j} and {i} have nearly the same gate in {_layers(near.tolist(), parts)} "
                    f"(cosine up to {cosines[near, i, j].max():.4f})"
                )
    return found


def _layers(places: Sequence[int], parts: Parts) -> str:
    numbers = [parts.numbers[place] for place in places]
    if len(numbers) == len(parts.numbers):
        return "all layers"
    shown = ", ".join(map(str, numbers[:6])) + ", …" * (len(numbers) > 6)
    return f"layer{'s' * (len(numbers) > 1)} {shown}"


def load_base(folder: Path, dtype: Any, device: str, *, trust_remote_code: bool) -> Any:
    """The base without its head, by transformers.

    Raises:
        RunError: transformers cannot load it.
    """
    model = _loaded("AutoModel", folder, dtype=dtype, trust_remote_code=trust_remote_code)
    return model.to(device).eval()


def load_tokenizer(folder: Path, *, trust_remote_code: bool) -> Any:
    """The base's tokenizer, by transformers.

    Raises:
        RunError: transformers cannot load it.
    """
    return _loaded("AutoTokenizer", folder, trust_remote_code=trust_remote_code)


def _loaded(kind: str, folder: Path, **settings: Any) -> Any:
    import transformers

    try:
        return getattr(transformers, kind).from_pretrained(str(folder), local_files_only=True, **settings)
    except Exception as e:  # models of strangers raise whatever they like
        reason = next(iter(str(e).strip().splitlines()), "")
        raise RunError(f"transformers cannot load the base: {type(e).__name__}: {reason}") from e
