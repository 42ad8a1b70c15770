"""From the description of a mixture of experts to a plan that writes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from meldkit.api import devices_of
from meldkit.checkpoint import Locate, open_model
from meldkit.checkpoint.experts import expert_layers
from meldkit.composed import plan_of
from meldkit.errors import NotSupportedError, RecipeError
from meldkit.options import MergeOptions
from meldkit.plan import Plan, Tool
from meldkit.recipe import ModelRef
from meldkit.report.run_model import as_folder, computing_dtype, silence
from meldkit.tools.moe.build import compose
from meldkit.tools.moe.config import PROMPTED, Mixture, upcycled
from meldkit.tools.moe.gates import (
    Features,
    Gates,
    Reader,
    Routing,
    gate_warnings,
    load_base,
    load_tokenizer,
    make_gates,
    read_embeddings,
    read_states,
    routings,
    tokens_of,
)
from meldkit.tools.moe.parts import Parts, gather, needs_shared

#: Called with how many prompts have been read, and of how many.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class PlannedMixture:
    """A mixture of experts about to be written.

    Attributes:
        plan: that writes it.
        experts: what each is, in their order.
        layers: numbers of those that have experts.
        routings: where prompts go, by what the gates were made from; none where these are random.
    """

    plan: Plan
    experts: tuple[str, ...]
    layers: tuple[int, ...]
    routings: tuple[Routing, ...]


def plan_mixture(
    mixture: Mixture,
    text: str,
    options: MergeOptions | None = None,
    *,
    work: Path | None = None,
    progress: Progress | None = None,
    locate: Locate | None = None,
) -> PlannedMixture:
    """Open the models of a mixture, make its gates, and plan what is to be written.

    For gates from hidden states the base is loaded by transformers, and reads the prompts; everything else is
    streamed when the plan is carried out.

    Args:
        mixture: what is to be made.
        text: the same as a file.
        options: as for `merge`; the base is run on `options.wanted_device()`.
        work: where there is room for a copy of a base that transformers cannot load as it is.
        progress: called while prompts are read.
        locate: where the models are now, if they lay elsewhere.

    Raises:
        MeldError: see `meldkit.errors`.
    """
    options = options or MergeOptions()
    cache = Path(options.transformers_cache) if options.transformers_cache else None
    seed = options.random_seed or 0
    parts = gather(mixture, lambda ref: open_model(ref, cache=cache, locate=locate), seed)
    base = locate(mixture.base) if locate else mixture.base
    gates, made_with = _gates(parts, base, options, work or Path.cwd(), progress)
    made = compose(parts, gates.values, "mixture")
    warnings = (*made.warnings, *gate_warnings(parts, gates), *_rounded(made_with, options))
    made = replace(made, warnings=warnings)
    kind = parts.family.name if parts.family else str(parts.checkpoint.config.get("model_type"))
    mixed = parts.mixture
    summary = f"{len(mixed.experts)} experts, {parts.per_token} per token, as {kind} from {mixed.base}"
    tool = Tool("moe", text, summary, made_with=made_with)
    plan = plan_of(made, tool, options, dtype=mixture.dtype)
    experts = tuple(map(str, mixed.experts))
    return PlannedMixture(plan, experts, parts.numbers, tuple(routings(parts, gates)))


def upcycle(
    path: str, num_experts: int, per_token: int, noise: float, options: MergeOptions | None = None
) -> tuple[Mixture, str]:
    """A mixture of one dense model again and again, to be trained on; and its file.

    Args:
        path, num_experts, per_token, noise: as for `upcycled`.
        options: as for `merge`.

    Raises:
        RecipeError: it is no dense model; or as for `upcycled`.
        MeldError: as for `open_model`.
    """
    hint = "--upcycle takes one dense model; leave it out to read a file that describes a mixture"
    if Path(path).suffix in (".yml", ".yaml"):
        raise RecipeError(f"{path} is no model", hint=hint)
    options = options or MergeOptions()
    cache = Path(options.transformers_cache) if options.transformers_cache else None
    model = open_model(ModelRef.parse(path), cache=cache)
    if layers := expert_layers(model.tensors):
        count = len(layers[0].experts)
        raise RecipeError(f"{path} is a mixture of {count} experts already", hint=hint)
    shared = needs_shared(str(model.config.get("model_type")))
    return upcycled(path, num_experts, per_token, noise, shared=shared)


def _gates(
    parts: Parts, ref: ModelRef, options: MergeOptions, work: Path, progress: Progress | None
) -> tuple[Gates, dict[str, str]]:
    """The gates, and what they may depend on besides the models."""
    mode = parts.mixture.gate_mode
    seed = options.random_seed or 0
    if mode not in PROMPTED or not parts.needs_gates:
        return make_gates(parts, _unread, seed), {}
    # What has no prompts is complained of before a model is loaded.
    make_gates(parts, _nothing_yet(parts), seed)
    base = parts.checkpoint
    device = devices_of(options)[0].name
    trusted = options.trust_remote_code
    made_with: dict[str, str] = {}
    with silence(), as_folder(ref, work, options) as folder:
        tokenizer = load_tokenizer(folder, trust_remote_code=trusted)
        if mode == "cheap_embed":
            layers = parts.numbers[-1] + 1
            reader = read_embeddings(base, layers, lambda text: tokens_of(tokenizer, text))
        else:
            import transformers

            dtype = computing_dtype(base, device)
            made_with = {
                "transformers": transformers.__version__,
                "hidden_states": str(dtype).removeprefix("torch."),
            }
            reader = read_states(
                load_base(folder, dtype, device, trust_remote_code=trusted), tokenizer, progress
            )
        return make_gates(parts, reader, seed), made_with


def _rounded(made_with: Mapping[str, str], options: MergeOptions) -> Iterator[str]:
    if made_with.get("hidden_states") == "bfloat16" and devices_of(options)[0].in_memory:
        yield (
            "hidden states were computed in bfloat16, as there is not enough memory for float32: where there "
            "is, gates come out a little otherwise"
        )


def _unread(prompts: Sequence[str], mode: str) -> Features:
    raise NotSupportedError(f"gate_mode '{mode}' reads no prompts, but got {len(prompts)}")


def _nothing_yet(parts: Parts) -> Reader:
    import numpy as np

    size = next(iter(parts.experts.values()))[0]["up"].shape[1]
    one = np.ones((parts.numbers[-1] + 1, size), np.float32)
    return lambda prompts, _: dict.fromkeys(prompts, one)
