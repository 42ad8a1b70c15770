"""What a mixture of experts is to be made of: mergekit-moe's files, and what they cannot say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from meldkit.errors import RecipeError, did_you_mean
from meldkit.recipe import ModelRef
from meldkit.recipe.load import read_as
from meldkit.recipe.problem import Problem, kind_of
from meldkit.recipe.sections import DTYPE, FLAG, MODEL, MULTIPLE, TEXT, Kind, Section, key, list_of
from meldkit.recipe.values import parse_value
from meldkit.recipe.write import to_yaml_text

#: How gates are made.
GATE_MODES = ("hidden", "hidden_avg", "hidden_last", "cheap_embed", "random", "uniform_random")
#: Those for which each expert needs prompts.
PROMPTED = GATE_MODES[:4]


def _number(raw: object, name: str) -> float | None:
    if raw is None:
        return None
    value = parse_value(raw)
    if isinstance(value, bool) or not isinstance(value, float) or not math.isfinite(value):
        raise Problem(f"'{name}' must be a number, got {kind_of(raw)}")
    return value


def _prompts(raw: object, name: str) -> tuple[str, ...]:
    """Texts; one alone need not stand in a list."""
    texts = [raw] if isinstance(raw, str) else [] if raw is None else raw
    if not isinstance(texts, list | tuple):
        raise Problem(f"'{name}' must be a list of texts, got {kind_of(raw)}")
    for text in cast("Sequence[object]", texts):
        if not isinstance(text, str) or not text:
            hint = "put it in quotes" if isinstance(text, bool | int | float) else ""
            raise Problem(f"'{name}' holds {kind_of(text)}, which is no text", hint=hint)
    return tuple(cast("Sequence[str]", texts))


def _expert(raw: object, name: str) -> Literal["all"] | tuple[int, ...] | None:
    if raw is None:
        return None
    if raw == "all":
        return "all"
    numbers = cast("list[object]", raw) if isinstance(raw, list) else [raw]
    whole = [n for n in numbers if type(n) is int and n >= 0]
    if not numbers or len(whole) < len(numbers):
        raise Problem(
            f"'{name}' cannot be {kind_of(cast(object, raw))}",
            hint="give the number of one of the model's experts, counted from 0, a list of such, or all",
        )
    return tuple(whole)


def _gate_mode(raw: object, name: str) -> str:
    if raw not in GATE_MODES:
        raise Problem(f"unknown {name} {kind_of(raw)}", hint=did_you_mean(str(raw), GATE_MODES))
    return cast(str, raw)


def _deviation(raw: object, name: str) -> float | None:
    value = _number(raw, name)
    if value is not None and value < 0:
        raise Problem(f"'{name}' is {value:g}", hint="it is a standard deviation: 0 or more")
    return value


_NUMBER = Kind(_number, {})
_DEVIATION = Kind(_deviation, {})
_PROMPTS = Kind(_prompts, {})


class ExpertSection(Section):
    """An entry of `experts:` or `shared_experts:`."""

    place = "an entry of 'experts'"

    source_model: ModelRef = key(MODEL)
    expert: Literal["all"] | tuple[int, ...] | None = key(Kind(_expert, {}), default=None)
    positive_prompts: tuple[str, ...] = key(_PROMPTS, default=())
    negative_prompts: tuple[str, ...] = key(_PROMPTS, default=())
    noise_scale: float | None = key(_DEVIATION, default=None)
    residual_scale: float | None = key(_NUMBER, default=None)


class MoeSection(Section):
    """A whole file."""

    place = "the mixture"

    base_model: ModelRef = key(MODEL)
    experts: list[ExpertSection] = key(list_of(ExpertSection))
    shared_experts: list[ExpertSection] | None = key(list_of(ExpertSection), default=None)
    gate_mode: str = key(Kind(_gate_mode, {}), default="hidden")
    dtype: str | None = key(DTYPE, default=None)
    experts_per_token: int | None = key(MULTIPLE, default=None)
    architecture: str | None = key(TEXT, default=None)
    fused: bool = key(FLAG, default=False)


@dataclass(frozen=True, slots=True)
class Expert:
    """One expert of every layer.

    Attributes:
        model: whose feed-forward layers it is.
        number: of an expert of that model, which is a mixture itself; None for a dense one.
        positive, negative: prompts that are to reach it, and that are not.
        noise: standard deviation of what is added to each of its weights.
        scale: its output is multiplied by this.
        where: "moe.yml:12".
    """

    model: ModelRef
    number: int | Literal["all"] | None = None
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    noise: float = 0.0
    scale: float = 1.0
    where: str = field(default="", compare=False, repr=False)

    def __str__(self) -> str:
        return str(self.model) if self.number is None else f"{self.model}, expert {self.number}"


@dataclass(frozen=True, slots=True)
class Mixture:
    """A mixture of experts.

    Attributes:
        base: gives all but the experts.
        experts: in their order; one with the number "all" stands for all of its model.
        shared: experts that every token takes.
        gate_mode: how gates are made: one of `GATE_MODES`.
        experts_per_token: that a token takes; None for 2, or as many as with a base that is a mixture.
        architecture: of the output; None for the first that fits.
        dtype: of the output, as torch calls it; None keeps the base's.
        fused: whether the experts of a layer are one tensor.
    """

    base: ModelRef
    experts: tuple[Expert, ...]
    shared: tuple[Expert, ...] = ()
    gate_mode: str = "hidden"
    experts_per_token: int | None = None
    architecture: str | None = None
    dtype: str | None = None
    fused: bool = False

    def models(self) -> tuple[ModelRef, ...]:
        """Every model that takes part, once each, the base first."""
        return tuple(dict.fromkeys((self.base, *(e.model for e in (*self.experts, *self.shared)))))


def load_mixture(path: Path) -> tuple[Mixture, str]:
    """What a file describes, and its text.

    Raises:
        RecipeError: it cannot be read, or what it says makes no sense; each problem with its line.
    """
    section, document, text = read_as(MoeSection, path)

    def experts(key: str, sections: Sequence[ExpertSection]) -> tuple[Expert, ...]:
        found: list[Expert] = []
        for index, each in enumerate(sections):
            numbers: Sequence[Any] = each.expert if isinstance(each.expert, tuple) else (each.expert,)
            found += [
                Expert(
                    each.source_model,
                    number,
                    each.positive_prompts,
                    each.negative_prompts,
                    each.noise_scale or 0.0,
                    1.0 if each.residual_scale is None else each.residual_scale,
                    document.place((key, index)),
                )
                for number in numbers
            ]
        return tuple(found)

    mixture = Mixture(
        base=section.base_model,
        experts=experts("experts", section.experts),
        shared=experts("shared_experts", section.shared_experts or ()),
        gate_mode=section.gate_mode,
        experts_per_token=section.experts_per_token,
        architecture=section.architecture,
        dtype=section.dtype,
        fused=section.fused,
    )
    _check(mixture, document.place(("experts",)))
    return mixture, text


def _check(mixture: Mixture, where: str) -> None:
    """Refuse what cannot work, whatever the models are."""
    shared = [expert for expert in mixture.shared if expert.positive or expert.negative]
    if 0 < len(shared) < len(mixture.shared):
        raise RecipeError(
            f"{shared[0].where}: some shared experts have prompts, others have none",
            hint="give prompts to all of them, or to none",
        )
    if mixture.gate_mode not in PROMPTED:
        return
    # Experts of a mixture may come with a gate of their own.
    lacking = [e for e in mixture.experts if not e.positive and e.number is None]
    if lacking:
        raise RecipeError(
            f"{lacking[0].where}: expert '{lacking[0]}' has no positive_prompts, from which gate_mode "
            f"'{mixture.gate_mode}' makes its gate",
            hint="say what should reach it, or choose gate_mode: random if the gates are to be trained",
        )
    prompts = {(expert.positive, expert.negative) for expert in mixture.experts}
    if len(mixture.experts) > 1 and len(prompts) == 1 and prompts != {((), ())}:
        raise RecipeError(
            f"{where}: all experts have the same prompts, so that their gates are the same",
            hint="for each expert, give prompts that are typical of what should reach it",
        )


def upcycled(
    path: str, num_experts: int, per_token: int, noise: float, *, shared: bool = False
) -> tuple[Mixture, str]:
    """A mixture of the same model again and again, to be trained on; and its file.

    Args:
        path: of a dense model, as recipes name it.
        num_experts: how often.
        per_token: experts that a token takes.
        noise: standard deviation of what is added to the experts' weights, so that they can part.
        shared: whether there is a shared expert, which adds nothing until it is trained.

    Raises:
        RecipeError: fewer than two experts, none for a token, or noise of no size.
    """
    if num_experts < 2:
        raise RecipeError(f"--upcycle is {num_experts}; a mixture has 2 experts or more")
    if per_token < 1:
        raise RecipeError(f"--experts-per-token is {per_token}", hint="a token takes 1 expert or more")
    if not 0 <= noise < math.inf:
        raise RecipeError(f"--noise-scale is {noise:g}", hint="it is a standard deviation: 0 or more")
    model = ModelRef.parse(path)
    entry: dict[str, Any] = {"source_model": model.to_value()} | ({"noise_scale": noise} if noise else {})
    data = {
        "base_model": model.to_value(),
        "gate_mode": "random",
        "experts_per_token": per_token,
        "experts": [dict(entry) for _ in range(num_experts)],
    }
    if shared:
        data["shared_experts"] = [{"source_model": model.to_value(), "residual_scale": 0}]
    experts = tuple(Expert(model, noise=noise, where=f"experts[{i}]") for i in range(num_experts))
    beside = (Expert(model, scale=0.0, where="shared_experts[0]"),) if shared else ()
    mixture = Mixture(model, experts, beside, gate_mode="random", experts_per_token=per_token)
    return mixture, to_yaml_text(data)
