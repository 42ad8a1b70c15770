"""What the numbers mean, in words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from meldkit.report.diff.model import ComparedModel, Finding, Pair, Relation, TensorDifference
from meldkit.report.diff.thresholds import limit


def findings_of(
    models: Sequence[ComparedModel],
    base: int | None,
    tensors: Sequence[TensorDifference],
    pairs: Sequence[Pair],
) -> tuple[Finding, ...]:
    """All that is worth saying, the most important first."""
    context = _Context(models, base, tensors, pairs)
    return tuple(
        chain(
            context.relations(),
            context.broken(),
            context.tasks(),
            context.changes(),
            context.tensor_sets(),
        )
    )


@dataclass(frozen=True, slots=True)
class _Context:
    models: Sequence[ComparedModel]
    base: int | None
    tensors: Sequence[TensorDifference]
    pairs: Sequence[Pair]

    def _name(self, model: int) -> str:
        return "the base" if model == self.base else self.models[model].name

    def _names(self, pair: Pair) -> str:
        return f"{self._name(pair.first)} and {self._name(pair.second)}"

    # --- what models are to each other

    def relations(self) -> Iterator[Finding]:
        """One finding for each kind of relation; with a base, what its fine-tunes are to it comes first."""
        if self.base is not None:
            yield from self._relations([pair for pair in self.pairs if pair.first == self.base])
            made = {pair.second for pair in self.pairs if pair.first == self.base and _merges(pair)}
            rest = [pair for pair in self.pairs if pair.first != self.base and not made >= {*pair.key}]
            unlike = (Relation.IDENTICAL, Relation.ROUNDED)
            rest += [pair for pair in self.pairs if pair.first != self.base and pair.relation in unlike]
            yield from self._relations(list(dict.fromkeys(rest)))
        else:
            yield from self._relations(self.pairs)

    def _relations(self, pairs: Sequence[Pair]) -> Iterator[Finding]:
        for relation in Relation:
            found = [pair for pair in pairs if pair.relation is relation]
            if found:
                yield self._relation(relation, found)

    def _relation(self, relation: Relation, pairs: Sequence[Pair]) -> Finding:
        models = tuple(dict.fromkeys(model for pair in pairs for model in pair.key))
        based = pairs[0].first == self.base
        if based:
            who, many = listed([self._name(pair.second) for pair in pairs]), len(pairs) > 1
        elif len(models) == len(self.models) > 2 and len(pairs) == len(self.pairs):
            who, many = f"all {len(models)} models", True
        else:
            who, many = listed([self._names(pair) for pair in pairs], ", "), True
        verb = "are" if many else "is"
        change = _span([pair.total.relative_change for pair in pairs], share)
        cosine = _span([pair.total.cosine for pair in pairs], number)
        of_matrices = _span([(p.matrices if p.matrices.numel else p.total).cosine for p in pairs], number)
        warning, advice = False, ""
        match relation:
            case Relation.IDENTICAL:
                text = f"{who} {verb} identical" + " to the base" * based
                advice = "merging them changes nothing; leave one out"
            case Relation.ROUNDED:
                text = f"{who} {verb} the base in" if based else f"{who} are one model in"
                text += " types of different precision: the numbers differ by rounding only"
                advice = "merging them changes nothing; keep the more precise one"
            case Relation.CLOSE:
                kind = "fine-tunes of" if many else "a fine-tune of"
                made = f"{verb} {kind} {'the base' if based else 'one base'}"
                text = f"{who} {made}: {change} change, cosine {cosine}"
                advice = self._advice_for_close(pairs)
            case Relation.DISTANT:
                has, whom = "have" if many else "has", "the base" if based else "each other"
                text = f"{who} {has} gone far from {whom}: {change} change, cosine of matrices {of_matrices}"
                advice = (
                    "an even mix is likely to be worse than either; try small weights, and look whether "
                    + ("another base is theirs" if based else "a common base can be named with --base")
                )
                warning = True
            case Relation.UNRELATED:
                if based:
                    text = f"{who} {'were' if many else 'was'} not made from the base"
                    advice = "task vectors against it mean nothing; name the model that they were made from"
                else:
                    text = f"{who} have no shared base"
                    advice = "merging their weights will not work; choose models that were made from one base"
                text += f": cosine of matrices {of_matrices}"
                warning = True
            case Relation.INCOMPARABLE:
                text = (
                    f"{who} {verb} of {'another kind than the base' if based else 'different kinds'}: fewer "
                    "than half of the parameters have counterparts"
                )
                advice = "they cannot be merged; 'meldkit inspect' shows what each is made of"
                warning = True
        return Finding(relation.value, models, text, advice, warning)

    def _advice_for_close(self, pairs: Sequence[Pair]) -> str:
        gains = [_slerp_gain(pair.total.cosine) for pair in pairs]
        largest = max((gain for gain in gains if gain is not None), default=None)
        if largest is None or not all(map(_equal_norms, pairs)):
            return ""
        if largest < limit("slerp"):
            return (
                f"they can be merged; slerp ≈ linear here (norms of their results differ by {share(largest)})"
            )
        return f"they can be merged; slerp keeps the norm, of which linear loses up to {share(largest)}"

    # --- what makes them unfit

    def broken(self) -> Iterator[Finding]:
        """NaN and Inf; norms that do not belong together."""
        for index, model in enumerate(self.models):
            bad = [t for t in self.tensors if t.num_nonfinite[index]]
            if bad:
                count = sum(t.num_nonfinite[index] for t in bad)
                yield Finding(
                    "nonfinite",
                    (index,),
                    f"{model.name} has {counted(count, 'value')} of NaN or Inf, the first in {bad[0].name}",
                    "repair the model; a merge refuses them unless --allow-nonfinite is given",
                    warning=True,
                )
        for pair in self.pairs:
            if not _merges(pair):
                continue
            if not _equal_norms(pair):
                ratio = pair.total.norm_second / (pair.total.norm_first or math.inf)
                yield Finding(
                    "norms",
                    pair.key,
                    f"the weights of {self._name(pair.second)} are {ratio:.3g} times as large as those of "
                    f"{self._name(pair.first)}",
                    "the larger one dominates a linear merge; choose weights that make up for it, or slerp",
                    warning=True,
                )

    # --- with a base

    def tasks(self) -> Iterator[Finding]:
        """How task vectors go together."""
        if self.base is None:
            return
        for pair in self.pairs:
            if pair.first != self.base or not _merges(pair):
                continue
            average = pair.total.change / math.sqrt(max(1, pair.total.numel))
            if average > limit("dropped"):
                yield Finding(
                    "large-changes",
                    pair.key,
                    f"the changes of {self._name(pair.second)} are {average:.2g} on average (their root mean "
                    "square)",
                    "DARE may drop too much of them; keep 'density' at 0.5 or more, or use ties",
                )
        found: dict[str, list[Pair]] = {}
        for pair in self.pairs:
            task = pair.total.task
            if task is None or task.cosine is None or task.sign_conflict is None:
                continue
            if task.cosine >= limit("aligned"):
                found.setdefault("aligned", []).append(pair)
            elif task.cosine <= limit("opposed"):
                found.setdefault("opposed", []).append(pair)
            elif task.sign_conflict >= limit("conflict"):
                found.setdefault("conflict", []).append(pair)
        yield from (self._task(kind, pairs) for kind, pairs in found.items())

    def _task(self, kind: str, pairs: Sequence[Pair]) -> Finding:
        models = tuple(dict.fromkeys(model for pair in pairs for model in pair.key))
        tasks = [pair.total.task for pair in pairs if pair.total.task is not None]
        who = f"the task vectors of {listed([self._names(pair) for pair in pairs], ', ')}"
        signs = _span([task.sign_conflict for task in tasks], share)
        cosine = _span([task.cosine for task in tasks], number)
        if kind == "aligned":
            return Finding(
                kind,
                models,
                f"{who} are largely the same change: they differ in {signs} of the signs, cosine {cosine}",
                "average them (linear, or task_arithmetic with weights that add up to 1); their sum goes "
                "too far",
            )
        if kind == "opposed":
            return Finding(
                kind,
                models,
                f"{who} undo each other in part: they differ in {signs} of the signs, cosine {cosine}",
                "ties keeps what the stronger one says; an average loses both",
                warning=True,
            )
        common = _span([task.top_overlap for task in tasks], share)
        return Finding(
            kind,
            models,
            f"{who} conflict in {signs} of the signs, cosine {cosine}, and share {common} of their largest "
            "changes",
            "as independent changes do: ties will trim much, task_arithmetic adds them side by side",
        )

    # --- what kind of change it is

    def changes(self) -> Iterator[Finding]:
        """Where models differ, and how."""
        for pair in self.pairs:
            if not _merges(pair):
                continue
            # Against the reference only: what others have in common follows from that.
            if pair.first == 0 and 0 < pair.num_equal < pair.num_tensors:
                yield self._partial(pair)
            if pair.first == 0 and (finding := self._low_rank(pair)):
                yield finding
            quantised = [m for m in pair.key if self.models[m].quantised]
            if len(quantised) == 1:
                yield Finding(
                    "quantised",
                    pair.key,
                    f"{self._name(quantised[0])} is stored quantised: part of the change is rounding",
                    "compare and merge the models as they were before they were quantised, if there are such",
                )
        yield from self._added_tokens()

    def _partial(self, pair: Pair) -> Finding:
        differing = [t for t in self.tensors if pair.key in t.pairs and not t.pairs[pair.key].equal]
        roles = Counter(t.role for t in differing)
        found = ", ".join(f"{role} ({n:,})" for role, n in roles.most_common(4))
        return Finding(
            "partial",
            pair.key,
            f"{pair.num_equal:,} of {pair.num_tensors:,} tensors of {self._names(pair)} are equal; "
            f"those that differ are {found}",
        )

    def _low_rank(self, pair: Pair) -> Finding | None:
        spectra = [t.spectra[pair.second] for t in self.tensors if pair.second in t.spectra]
        ranks = [
            s.energy_rank
            for s in spectra
            if s.energy_rank is not None and s.energy_rank < limit("low_rank") * s.full_rank
        ]
        if not spectra or len(ranks) < limit("low_rank_matrices") * len(spectra):
            return None
        one, other = self._name(pair.first), self._name(pair.second)
        return Finding(
            "low-rank",
            pair.key,
            f"{other} is a low-rank, LoRA-like change of {one}: 90 % of the change of {len(ranks)} of "
            f"{len(spectra)} matrices lies in at most {max(ranks)} directions",
            "kept as an adapter it would take a fraction of the space",
        )

    def _added_tokens(self) -> Iterator[Finding]:
        for pair in self.pairs:
            first, second = pair.key
            tables = [t for t in self.tensors if pair.key in t.pairs and t.shapes[first] != t.shapes[second]]
            if tables and all(t.pairs[pair.key].equal for t in tables):
                one, other = (max(shape[0] for t in tables if (shape := t.shapes[m])) for m in pair.key)
                yield Finding(
                    "added-tokens",
                    pair.key,
                    f"the embeddings of {self._names(pair)} differ only in added rows: they have {one:,} and "
                    f"{other:,}",
                    "'tokenizer: {source: union}' in the recipe keeps the tokens of both",
                )

    # --- what only some have

    def tensor_sets(self) -> Iterator[Finding]:
        """Tensors that do not fit or are missing."""
        for pair in self.pairs:
            if pair.unfit:
                name = pair.unfit[0]
                tensor = next(t for t in self.tensors if t.name == name)
                shapes = [list(tensor.shapes[m] or ()) for m in pair.key]
                yield Finding(
                    "shapes",
                    pair.key,
                    f"{counted(len(pair.unfit), 'tensor')} of {self._names(pair)} differ in shape: {name} is "
                    f"{shapes[0]} and {shapes[1]}" + ", …" * (len(pair.unfit) > 1),
                    "they cannot be merged as they are",
                    warning=True,
                )
        for index, model in enumerate(self.models):
            if model.extra:
                yield Finding(
                    "extra",
                    (index,),
                    f"only {model.name} has {counted(len(model.extra), 'tensor')} of its kind: "
                    f"{model.extra[0]}" + ", …" * (len(model.extra) > 1),
                    "a merge leaves out what the base lacks; without a base it copies them",
                )


def _merges(pair: Pair) -> bool:
    return pair.relation in (Relation.CLOSE, Relation.DISTANT)


def _equal_norms(pair: Pair) -> bool:
    small, large = sorted((pair.total.norm_first, pair.total.norm_second))
    return large <= small * (1 + limit("norm"))


def counted(number_of: int, noun: str) -> str:
    """Such as "1 tensor" or "1,234 tensors"."""
    return f"{number_of:,} {noun}{'s' * (number_of != 1)}"


def listed(names: Sequence[str], last: str = " and ") -> str:
    """Such as "A, B and C"; of many, the first ones."""
    if len(names) > 4:
        return ", ".join(names[:4]) + ", …"
    return last.join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def _slerp_gain(cosine: float | None) -> float | None:
    """By how much slerp half way is longer than linear, for equal norms; None if it has no limit."""
    if cosine is None or cosine <= -1:
        return None
    return 1 / math.sqrt((1 + cosine) / 2) - 1


def share(value: float) -> str:
    """A share in percent, with two digits that tell something."""
    percent = 100 * value
    if percent >= 10:
        return f"{percent:.0f} %"
    if percent >= 0.01:
        return f"{percent:#.2g} %"
    return "<0.01 %" if percent else "0 %"


def number(value: float) -> str:
    """A cosine, with enough digits to tell it from 1."""
    if value == 1:
        return "1"
    digits = 3 if abs(value) < 0.9995 else 5
    return f"{value:.{digits}f}"


def _span(values: Sequence[float | None], text: object) -> str:
    assert callable(text)
    known = [value for value in values if value is not None]
    if not known:
        return "undefined"
    low, high = str(text(min(known))), str(text(max(known)))
    return low if low == high else f"{low} to {high}"
