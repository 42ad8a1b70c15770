"""Where the lines are drawn between models that go together and those that do not."""

from __future__ import annotations

from dataclasses import dataclass

from meldkit.report.diff.difference import Difference
from meldkit.report.diff.model import Relation


@dataclass(frozen=True, slots=True)
class Threshold:
    """Where a line is drawn; docs/diff.md has the same table.

    Attributes:
        value: the line.
        meaning: what lies beyond it.
        source: why it is there.
    """

    value: float
    meaning: str
    source: str


#: By name. Cosines of whole models are over their matrices: scales of norms are alike in all models.
THRESHOLDS = {
    "close": Threshold(
        0.9,
        "two models with at least this cosine are close: made from one another, or from one base",
        "measured: all-MiniLM-L6-v2 and a fine-tune 0.99995, CHGNet 0.3.0 and its r2SCAN fine-tune 0.982",
    ),
    "related": Threshold(
        0.2,
        "two models with a smaller cosine have nothing in common",
        "independent weights have a cosine of about 1/√n, below 0.01 from 10,000 elements on; measured: "
        "CHGNet 0.2.0 and 0.3.0, trained apart, -0.001",
    ),
    "fitting": Threshold(
        0.5,
        "models that share less than this part of the smaller one's parameters are of different kinds",
        "the share from which on a merge refuses a model that lacks tensors",
    ),
    "slerp": Threshold(
        0.01,
        "slerp and linear are alike if the norm of their results differs by less than this",
        "half way between vectors of equal norm at an angle θ, slerp is 1/cos(θ/2) times as long as linear",
    ),
    "conflict": Threshold(
        0.4,
        "task vectors whose signs differ in this share of the elements that both changed conflict much",
        "independent ones have 0.5; TIES (Yadav et al. 2023) elects signs because of them; measured: 0.49 "
        "for two adapters of SmolLM2 for different skills",
    ),
    "aligned": Threshold(
        0.5,
        "task vectors with at least this cosine are largely the same change",
        "those of different tasks are nearly at right angles (Ilharco et al. 2023, task arithmetic); "
        "0.5 is 60 degrees",
    ),
    "opposed": Threshold(
        -0.1,
        "task vectors with at most this cosine undo each other in part",
        "negated task vectors unlearn a task (Ilharco et al. 2023)",
    ),
    "dropped": Threshold(
        0.002,
        "changes of more than this on average are too large for DARE to drop most of them",
        "DARE (Yu et al. 2024): changes of supervised fine-tuning are typically within 0.002; measured: "
        "0.0006 for all-MiniLM-L6-v2's fine-tune, 0.0013 for rank-8 adapters of SmolLM2",
    ),
    "norm": Threshold(
        0.1,
        "norms that differ by more than this part do not belong together",
        "measured: 0.00002 for all-MiniLM-L6-v2 and its fine-tune, 0.018 for CHGNet 0.3.0 and its own",
    ),
    "low_rank": Threshold(
        0.125,
        "a change is of low rank if 90 % of its energy lies in less than this share of the directions",
        "measured: at most 0.03 for rank-8 adapters of SmolLM2; 0.29 in the median, and less than 0.125 in "
        "one of 39 matrices, for all-MiniLM-L6-v2's fine-tune, which was trained in full",
    ),
    "low_rank_matrices": Threshold(
        0.9,
        "a model is a low-rank change if this share of the matrices that differ are",
        "an adapter (LoRA, Hu et al. 2021) changes all matrices so; the rest is for rounding",
    ),
}


def limit(name: str) -> float:
    """The value of a threshold."""
    return THRESHOLDS[name].value


def relation_of(
    total: Difference, matrices: Difference, *, equal: bool, num_tensors: int, smaller: int
) -> Relation:
    """What two models are to each other.

    Args:
        total, matrices: as of `Pair`.
        equal: whether no tensor differs, of whatever kind.
        num_tensors: how many were compared.
        smaller: parameters of the smaller model.
    """
    if not num_tensors or total.numel < limit("fitting") * smaller:
        return Relation.INCOMPARABLE
    if equal:
        return Relation.IDENTICAL
    if total.num_rounded == total.numel:
        return Relation.ROUNDED
    cosine = (matrices if matrices.numel else total).cosine
    if cosine is None or cosine < limit("related"):
        return Relation.UNRELATED
    return Relation.CLOSE if cosine >= limit("close") else Relation.DISTANT
