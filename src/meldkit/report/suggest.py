"""Which method suits models: found out from their headers, then from how their weights differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from meldkit.api import Status
from meldkit.checkpoint import may_be_on_hub
from meldkit.errors import CheckpointError, MismatchError, RecipeError
from meldkit.methods import Value
from meldkit.recipe import ModelRef
from meldkit.report.diff import THRESHOLDS, ModelComparison, Relation, diff
from meldkit.report.diff.thresholds import limit
from meldkit.report.draft import Draft, Starts, draft_recipe
from meldkit.report.headers import Header, read_header

#: Findings of a comparison that are told as reasons, and how many of them.
_TOLD = ("close", "distant", "nonfinite", "norms", "aligned", "opposed", "conflict")
_MOST_TOLD = 4


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of the models.

    Attributes:
        headers: of the models, without the base.
        base: header of the base, if there is one.
        comparison: of their weights; None where some are not here.
    """

    headers: tuple[Header, ...]
    base: Header | None
    comparison: ModelComparison | None

    @property
    def everyone(self) -> tuple[Header, ...]:
        """The base, then the models."""
        return ((self.base,) if self.base else ()) + self.headers

    def any_pair(self, *relations: Relation) -> bool:
        """Whether two of them are to each other what one of the relations says."""
        return self.comparison is not None and any(p.relation in relations for p in self.comparison.pairs)

    @property
    def broken(self) -> bool:
        """Whether a model holds NaN or Inf."""
        return self.comparison is not None and any(sum(t.num_nonfinite) for t in self.comparison.tensors)

    def found(self, kind: str) -> int:
        """How many findings of a kind there are."""
        return sum(f.kind == kind for f in self.comparison.findings) if self.comparison else 0

    @property
    def aligned(self) -> bool:
        """Whether all task vectors are largely the same change."""
        pairs = self.comparison.pairs if self.comparison else ()
        cosines = [pair.total.task.cosine for pair in pairs if pair.total.task is not None]
        return bool(cosines) and all(c is not None and c >= limit("aligned") for c in cosines)

    @property
    def wide(self) -> bool:
        """Whether the angle between two models is one that slerp and a linear average treat differently."""
        cosines = [p.total.cosine for p in self.comparison.pairs] if self.comparison else []
        gains = [math.sqrt(2 / (1 + c)) - 1 for c in cosines if c is not None and c > -1]
        return max(gains, default=0.0) >= THRESHOLDS["slerp"].value


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table of suggestions; the first that applies counts.

    Attributes:
        when: it applies, in words.
        method: to suggest; None if the models should not be merged.
        why: in words, the reason or, without a method, what to do instead.
        source: of the reason.
        applies: whether it does.
        with_base: whether the base is one of the models to merge.
        values: to begin with, each with its reason, where the method's own do not fit.
    """

    when: str
    method: str | None
    why: str
    source: str
    applies: Callable[[Facts], bool]
    with_base: bool = False
    values: Mapping[str, tuple[Value, str]] = field(default_factory=dict[str, tuple[Value, str]])


def _known(values: Sequence[object]) -> int:
    return len({value for value in values if value})


_DIFF = "measured, see `meldkit diff`"
_SOUPS = "Model soups, arXiv:2203.05482"
_TASKS = "Task arithmetic, arXiv:2212.04089"
_TIES = "TIES-Merging, arXiv:2306.01708"
_SLERP = "half way at an angle θ, an average is cos(θ/2) times as long as the models"

RULES = (
    Rule(
        "architectures differ",
        None,
        "models of different kinds cannot be merged",
        "headers",
        lambda f: (
            _known([h.architecture for h in f.everyone]) > 1
            and (f.comparison is None or f.any_pair(Relation.INCOMPARABLE))
        ),
    ),
    Rule(
        "numbers of layers differ",
        None,
        "layers can be stacked instead: meldkit new passthrough, and train the result",
        "SOLAR, arXiv:2312.15166",
        lambda f: _known([h.num_layers for h in f.everyone]) > 1,
    ),
    Rule(
        "fewer than half of the parameters have counterparts",
        None,
        "models of different kinds cannot be merged",
        _DIFF,
        lambda f: f.any_pair(Relation.INCOMPARABLE),
    ),
    Rule(
        "a model holds NaN or Inf",
        None,
        "meldkit diff says which; download it again, or leave it out",
        _DIFF,
        lambda f: f.broken,
    ),
    Rule(
        "two models are the same, but for rounding",
        None,
        "leave one of the two out",
        _DIFF,
        lambda f: f.any_pair(Relation.IDENTICAL, Relation.ROUNDED),
    ),
    Rule(
        "two models have no base in common",
        None,
        "choose models that were made from one base; their weights mean different things in the same places",
        "Git Re-Basin, arXiv:2209.04836",
        lambda f: f.any_pair(Relation.UNRELATED),
    ),
    Rule(
        "models are far apart, and no base is given",
        None,
        "name the model that they were made from with --base",
        _DIFF,
        lambda f: f.base is None and f.any_pair(Relation.DISTANT),
    ),
    Rule(
        "a base and one model",
        "linear",
        "between a base and its fine-tune the skills of both are often kept",
        "WiSE-FT, arXiv:2109.01903",
        lambda f: f.base is not None and len(f.headers) == 1,
        with_base=True,
    ),
    Rule(
        "a base, and all models changed it alike",
        "linear",
        "fine-tunes for the same task are averaged; the sum of their task vectors would go too far",
        _SOUPS,
        lambda f: f.base is not None and f.aligned,
    ),
    Rule(
        "a base, and task vectors that undo each other",
        "ties",
        "where models changed a weight in opposite directions a sum loses both; electing a sign keeps one",
        _TIES,
        lambda f: f.base is not None and f.found("opposed") > 0,
    ),
    Rule(
        "a base, and models far from it",
        "task_arithmetic",
        "small shares of large changes do the least damage",
        _TASKS,
        lambda f: f.base is not None and f.any_pair(Relation.DISTANT),
        values={"weight": (0.3, "the factor that did best for eight tasks in the paper")},
    ),
    Rule(
        "a base and three models or more",
        "ties",
        "the more task vectors, the more of their elements conflict",
        _TIES,
        lambda f: f.base is not None and len(f.headers) > 2,
    ),
    Rule(
        "a base and two models",
        "task_arithmetic",
        "independent changes can be added; ties is for those that undo each other",
        _TASKS,
        lambda f: f.base is not None,
    ),
    Rule(
        "two models whose weights are not here",
        "slerp",
        "it does for small and for wide angles, if they were made from one base",
        _SLERP,
        lambda f: f.comparison is None and len(f.headers) == 2,
    ),
    Rule(
        "more models whose weights are not here",
        "linear",
        "fine-tunes of one base can be averaged, if that is what they are",
        _SOUPS,
        lambda f: f.comparison is None,
    ),
    Rule(
        "two models at a wide angle",
        "slerp",
        "it keeps the length of the weights, of which an average loses some",
        _SLERP,
        lambda f: len(f.headers) == 2 and f.wide,
    ),
    Rule(
        "three models or more at wide angles",
        "karcher",
        "it keeps the length of the weights, of which an average loses some",
        _SLERP,
        lambda f: f.wide,
    ),
    Rule(
        "models close to each other",
        "linear",
        "fine-tunes of one base can be averaged; at so small an angle slerp gives the same",
        _SOUPS,
        lambda f: f.comparison is not None,
    ),
)


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A recipe for models, and why it is that one.

    Attributes:
        rule: that decided.
        reasons: the rule in words, then what was found, one sentence each.
        draft: the recipe.
    """

    rule: Rule
    reasons: tuple[str, ...]
    draft: Draft


def suggest_recipe(
    models: Sequence[str],
    *,
    base: str | None = None,
    slices: bool = False,
    name: str = "recipe.yml",
    schema: str | None = None,
    cache: Path | None = None,
    progress: Callable[[Status], None] | None = None,
) -> Suggestion:
    """Write a recipe that suits the models. Weights are read where they are here, and never downloaded.

    Args:
        models: as recipes name them.
        base: what they were made from.
        slices, name, schema, cache: as of `draft_recipe`.
        progress: called about ten times a second while weights are compared.

    Raises:
        RecipeError: there are fewer than two models.
        CheckpointError: one that cannot be on the hub is missing or damaged.
        MismatchError: they should not be merged.
    """
    refs = [ModelRef.parse(model) for model in models]
    if len(refs) + (base is not None) < 2:
        raise RecipeError(
            f"--suggest needs two models, got {len(refs)}",
            hint="meldkit new --suggest MODEL MODEL, or MODEL --base BASE",
        )
    root = None if base is None else read_header(ModelRef.parse(base), cache)
    headers = tuple(read_header(ref, cache) for ref in refs if root is None or ref != root.ref)
    for header in (*headers, *((root,) if root else ())):
        # What cannot be a model of the hub is a path that was mistyped.
        if header.problem and not may_be_on_hub(header.ref.path):
            raise CheckpointError(header.problem, hint="check its path; --suggest looks into every model")
    facts = Facts(headers, root, None)
    rule = next(rule for rule in RULES if rule.applies(facts))
    absent = [str(h.ref) for h in facts.everyone if h.checkpoint is None or h.checkpoint.absent]
    if rule.method is not None and not absent:
        facts = Facts(headers, root, diff([h.ref for h in headers], base, cache=cache, progress=progress))
        rule = next(rule for rule in RULES if rule.applies(facts))
    reasons = _reasons(rule, facts, absent)
    if rule.method is None:
        raise MismatchError(_described(rule, facts), hint=rule.why)
    merged = [h.ref for h in (facts.everyone if rule.with_base else headers)]
    draft = draft_recipe(
        rule.method,
        merged,
        base=None if root is None else root.ref,
        slices=slices,
        name=name,
        schema=schema,
        starts=Starts(rule.values, reasons),
        cache=cache,
    )
    return Suggestion(rule, reasons, draft)


#: What stands in the way of merging two models.
_OBSTACLES = {
    Relation.INCOMPARABLE: "have too few tensors of equal names and shapes",
    Relation.IDENTICAL: "are identical",
    Relation.ROUNDED: "are the same but for rounding",
    Relation.UNRELATED: "have no base in common",
    Relation.DISTANT: "are far apart",
}


def _described(rule: Rule, facts: Facts) -> str:
    """Why models should not be merged, with their names."""
    comparison = facts.comparison
    if comparison is None:
        facts_of = {
            h.ref: h.architecture if "architectures" in rule.when else f"{h.num_layers} layers"
            for h in facts.everyone
        }
        return f"{rule.when}: " + ", ".join(f"'{ref}' {fact}" for ref, fact in facts_of.items())
    for relation, said in _OBSTACLES.items():
        for pair in comparison.pairs:
            if pair.relation is relation:
                one, other = (comparison.models[i].label for i in pair.key)
                cosine = pair.matrices.cosine if pair.matrices.numel else pair.total.cosine
                exact = (
                    f" (cosine {cosine:.3f})"
                    if cosine is not None and relation is not Relation.IDENTICAL
                    else ""
                )
                return f"'{one}' and '{other}' {said}{exact}"
    return rule.when


def _reasons(rule: Rule, facts: Facts, absent: Sequence[str]) -> tuple[str, ...]:
    reasons = [f"{rule.when}: {rule.why} ({rule.source})"]
    if facts.comparison is not None:
        names = [f"{m.name} is '{m.label}'" for m in facts.comparison.models if m.name != "base"]
        told = [f.text for f in facts.comparison.findings if f.kind in _TOLD]
        reasons.append(f"{', '.join(names)}; {'; '.join(told[:_MOST_TOLD])}")
    elif absent:
        reasons.append(
            f"the weights of {', '.join(map(repr, absent))} are not here, so that nothing is known of how "
            "they differ; download them and ask again"
        )
    return tuple(reasons)
