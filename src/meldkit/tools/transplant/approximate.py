"""How the rows of tokens that a model lacks are made; one function per method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from meldkit.errors import NotSupportedError, RecipeError
from meldkit.plan.tables import Table
from meldkit.shapes import Float32, Tensor
from meldkit.tools.transplant.pursuit import Progress, pursue
from meldkit.tools.transplant.rows import (
    DrawnRows,
    EqualRows,
    MappedRows,
    NewRows,
    Turn,
    WeightedRows,
    columns_of,
    frequencies,
    halves,
    lengths,
    turned,
)

#: Whose annotations say nothing of what comes out.
_linalg: Any = torch.linalg
#: Vectors of which distances to all atoms are formed at once; and bytes that these may take.
_BATCH, _BATCH_BYTES = 512, 1 << 28
#: Distances below this count as this: weights are their reciprocals.
_LEAST_DISTANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Heads:
    """How a model's rows are cut into heads, for `mp_rope`.

    Attributes:
        count: of heads.
        base: of rotary position embeddings' frequencies.
    """

    count: int
    base: float


@dataclass(frozen=True, slots=True)
class Task:
    """Rows of tokens that a table of the model lacks, and what is known of them.

    Attributes:
        table, donor: the model's table and the donor's.
        missing: rows of the donor's table, int64 `[m]`.
        targets: the same, read when it is called: float32 `[m, columns of the donor's]`.
        shared: rows of the model's table whose tokens the donor has, int64 `[n]`.
        atoms: the donor's rows of those tokens, likewise: float32 `[n, columns of the donor's]`.
        own: the model's rows of them, likewise: float32 `[n, columns]`.
        blocks: all rows of the model's table, block by block, float32 `[some, columns]`.
        pieces: for each missing token, the model's tokens that its text is cut into.
        head: whether the table is the head's.
        heads: of the donor and of the model.
        k: how many atoms a row is made of.
        cosine, weight_scheme, subword_method: of the methods that have these.
        device, threads, batch: where to compute, on how many processors, and how many rows at once.
        key: of random numbers.
        progress: called with how many rows are done.
    """

    table: Table
    donor: Table
    missing: np.ndarray
    targets: Callable[[], Tensor]
    shared: np.ndarray
    atoms: Callable[[], Tensor]
    own: Callable[[], Tensor]
    blocks: Callable[[], Any]
    pieces: Callable[[], list[list[int]]]
    head: bool
    heads: Callable[[], tuple[Heads, Heads]]
    k: int
    cosine: bool
    weight_scheme: str
    subword_method: str
    device: str
    threads: int | None
    batch: int | None
    key: str
    progress: Progress | None

    def sums(self, places: np.ndarray, weights: np.ndarray, turn: Turn | None = None) -> WeightedRows:
        """Sums of the model's rows, with weights of the donor's: places among the shared ones `[m, k]`."""
        rows = self.shared[places].astype(np.int32)
        return WeightedRows(self.table, rows, weights.astype(np.float32), turn)

    def check_shared(self, wanted: int, what: str) -> None:
        """Raise RecipeError if fewer tokens are shared than are wanted."""
        if wanted > len(self.shared):
            smaller = ", or a smaller --k" * (len(self.shared) > 1)
            raise RecipeError(
                f"{what}, but the vocabularies share {len(self.shared):,} tokens",
                hint=f"--approximation-method subword needs none{smaller}",
            )

    def batch_of(self, row_bytes: int) -> int:
        """How many rows to take at once, if each takes so many bytes."""
        return self.batch or max(1, min(_BATCH, _BATCH_BYTES // max(row_bytes, 1)))


def omp(task: Task) -> NewRows:
    """As the donor's row is a sum of rows of few shared tokens, the same sum of the model's rows."""
    task.check_shared(task.k, f"--k is {task.k}")
    return task.sums(*_pursued(task, task.targets(), task.atoms(), task.progress))


def _pursued(
    task: Task, targets: Tensor, atoms: Tensor, progress: Progress | None
) -> tuple[np.ndarray, np.ndarray]:
    return pursue(
        targets,
        atoms,
        task.k,
        device=task.device,
        threads=task.threads,
        batch=task.batch,
        progress=progress,
    )


def common_interpolation(task: Task) -> NewRows:
    """The mean of the shared tokens that are nearest for the donor, weighted."""
    task.check_shared(task.k, f"--k is {task.k}")
    targets, atoms = task.targets(), task.atoms().to(task.device)
    places = np.zeros((len(targets), task.k), np.int64)
    weights = np.zeros((len(targets), task.k), np.float32)
    of_atoms = lengths(atoms)
    batch = task.batch_of(4 * (2 * len(atoms) + 3 * task.k * atoms.shape[1]))
    for start in range(0, len(targets), batch):
        x = targets[start : start + batch].to(task.device)
        products = x @ atoms.T
        if task.cosine:
            near = products / (lengths(x)[:, None] * of_atoms).clamp_min(_LEAST_DISTANCE)
            chosen = near.topk(task.k, 1).indices
            distances = 1 - near.gather(1, chosen)
        else:
            chosen = (of_atoms.square() - 2 * products).topk(task.k, 1, largest=False).indices
            # Differences of squares would leave nothing of small distances.
            distances = lengths(atoms[chosen] - x[:, None])
        found = _weights(task, x, atoms[chosen], distances)
        places[start : start + len(x)] = chosen.cpu().numpy()
        weights[start : start + len(x)] = found.cpu().numpy()
        if task.progress is not None:
            task.progress(start + len(x))
    return task.sums(places, weights)


def _weights(task: Task, x: Tensor, near: Tensor, distances: Tensor) -> Tensor:
    """Of the nearest ones; x `[m, columns]`, near `[m, k, columns]`."""
    if task.weight_scheme == "least_squares":
        return _least_squares(near.mT, x)
    if task.weight_scheme == "barycentric":
        # The point nearest to x among those whose weights add up to 1: seen from the last neighbour, the
        # rest is least squares.
        last = near[:, -1:]
        rest = _least_squares((near[:, :-1] - last).mT, x - last[:, 0])
        return torch.cat((rest, 1 - rest.sum(1, keepdim=True)), 1)
    raw = 1 - distances if task.cosine else 1 / distances.clamp_min(_LEAST_DISTANCE)
    return raw / raw.sum(1, keepdim=True).clamp_min(_LEAST_DISTANCE)


def _least_squares(matrix: Tensor, x: Tensor) -> Tensor:
    """Weights `[m, k]` whose sums of columns `[m, columns, k]` are nearest to x `[m, columns]`.

    The smallest ones, where neighbours are the same or lie in one plane.
    """
    return (_linalg.pinv(matrix, rtol=1e-5) @ x[..., None])[..., 0]


def subword(task: Task) -> NewRows:
    """A sum of the rows of the model's tokens that the token's text is cut into."""
    pieces = [[number for number in own if number < task.table.rows] for own in task.pieces()]
    most = max(map(len, pieces), default=0) or 1
    rows = np.zeros((len(pieces), most), np.int32)
    weights = np.zeros((len(pieces), most), np.float32)
    for place, own in enumerate(pieces):
        rows[place, : len(own)] = own
        weights[place, : len(own)] = _subword_weights(len(own), task.subword_method, head=task.head)
    return WeightedRows(task.table, rows, weights)


def _subword_weights(count: int, method: str, *, head: bool) -> np.ndarray:
    """What comes after an embedding has read its last piece before; a head says which piece is first."""
    if method == "sum":
        return np.ones(count)
    if method == "mean":
        return np.full(count, 1 / max(count, 1))
    if method == "weighted_mean":
        rising = np.arange(1, count + 1) / max(count * (count + 1) / 2, 1)
        return rising[::-1] if head else rising
    result = np.zeros(count)
    result[: 1 if head else None][-1:] = 1
    return result


def mean(task: Task) -> NewRows:
    """The mean of all rows of the model's table."""
    middle, _ = _moments(task, squares=False)
    return EqualRows(len(task.missing), middle)


def zero(task: Task) -> NewRows:
    """Zeros."""
    return EqualRows(len(task.missing), torch.zeros(columns_of(task.table)))


def randn(task: Task) -> NewRows:
    """Numbers from N(0, 1)."""
    return DrawnRows(len(task.missing), torch.zeros(columns_of(task.table)), None, task.key)


def john_hewitt(task: Task) -> NewRows:
    """Drawn from the normal distribution with mean and covariance of the model's rows (Hewitt 2021)."""
    middle, covariance = _moments(task, squares=True)
    values, vectors = _linalg.eigh(covariance)
    factor = vectors * values.clamp_min(0).sqrt()
    return DrawnRows(len(task.missing), middle, factor.float(), task.key)


def _moments(task: Task, *, squares: bool) -> tuple[Tensor, Tensor]:
    """Mean, float32 `[columns]`, and covariance, float64 `[columns, columns]`, of all the model's rows."""
    columns = columns_of(task.table)
    total = torch.zeros(columns, dtype=torch.float64)
    products = torch.zeros(columns, columns, dtype=torch.float64)
    count = 0
    for block in task.blocks():
        rows = block.double()
        total += rows.sum(0)
        count += len(rows)
        if squares:
            products += rows.T @ rows
    middle = total / count
    return middle.float(), products / count - torch.outer(middle, middle)


def landmark_pca(task: Task) -> NewRows:
    """Turned from the donor's principal axes to the model's, as suits the shared tokens best (Procrustes)."""
    task.check_shared(2, "axes need two")
    atoms, own = task.atoms(), task.own()
    before, after = atoms.mean(0), own.mean(0)
    theirs, ours = atoms - before, own - after
    count = min(theirs.shape[1], ours.shape[1])
    from_, to = _axes(theirs, count), _axes(ours, count)
    u, _, vt = _linalg.svd((theirs @ from_).T @ (ours @ to), full_matrices=False)
    return MappedRows(task.donor, task.missing, from_ @ (u @ vt) @ to.T, before, after)


def _axes(centred: Float32[Tensor, "n columns"], count: int) -> Float32[Tensor, "columns count"]:
    """The principal axes, the largest first."""
    covariance = (centred.T @ centred).double()
    return _linalg.eigh(covariance).eigenvectors.flip(1)[:, :count].float()


def stb(task: Task) -> NewRows:
    """In a basis of sparse sums of shared tokens that lies near the principal axes (sparse token basis)."""
    task.check_shared(task.k, f"--k is {task.k}")
    atoms, own = task.atoms(), task.own()
    before, after = atoms.mean(0), own.mean(0)
    theirs, ours = atoms - before, own - after
    smaller = theirs if theirs.shape[1] < ours.shape[1] else ours
    axes = _axes(smaller, smaller.shape[1]).T.contiguous()
    places, weights = _pursued(task, axes, smaller, None)
    rows, by = torch.from_numpy(places).long(), torch.from_numpy(weights)
    basis, images = (_sums(points, rows, by) for points in (theirs, ours))
    return MappedRows(task.donor, task.missing, _linalg.pinv(basis) @ images, before, after)


def _sums(points: Tensor, rows: Tensor, by: Tensor) -> Float32[Tensor, "m columns"]:
    """Weighted sums of points; rows and weights `[m, k]`."""
    step = _BATCH // 8
    parts = [slice(start, start + step) for start in range(0, len(rows), step)]
    return torch.cat([(by[part, None] @ points[rows[part]])[:, 0] for part in parts])


def mp_rope(task: Task) -> NewRows:
    """Matching pursuit whose atoms may be turned, head by head, as rotary position embeddings turn them.

    Each time the atom whose inner product with the rest is the largest is turned by the position that brings
    it nearest to the rest, or to its opposite, whichever is smaller; in the end least squares say how much.
    """
    task.check_shared(task.k, f"--k is {task.k}")
    theirs, ours = task.heads()
    for heads, table, whose in ((theirs, task.donor, "donor"), (ours, task.table, "model")):
        if columns_of(table) % (2 * heads.count):
            raise NotSupportedError(
                f"mp_rope turns halves of heads, but rows of {columns_of(table)} of the {whose} are no "
                f"{heads.count} heads of an even size",
                hint="--approximation-method omp",
            )
    targets, atoms = task.targets(), task.atoms().to(task.device)
    shape = (len(targets), task.k)
    places, weights = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
    positions = np.zeros(shape, np.float32)
    batch = task.batch_of(4 * (len(atoms) + 4 * task.k * atoms.shape[1]))
    for start in range(0, len(targets), batch):
        x = targets[start : start + batch].to(task.device)
        chosen = torch.zeros(len(x), task.k, dtype=torch.long, device=x.device)
        turns = torch.zeros(len(x), task.k, device=x.device)
        rest = x.clone()
        for t in range(task.k):
            scores = (rest @ atoms.T).abs_()
            if t:
                scores.scatter_(1, chosen[:, :t], -1)
            chosen[:, t] = scores.argmax(1)
            atom = atoms[chosen[:, t]]
            there, back = (_position(atom, side, theirs) for side in (rest, -rest))
            turns[:, t] = torch.where(there.abs() < back.abs(), there, back)
            atom = turned(atom, turns[:, t], theirs.count, theirs.base)
            share = (rest * atom).sum(1) / atom.square().sum(1).clamp_min(1e-8)
            rest = rest - share[:, None] * atom
        sources = turned(atoms[chosen], turns, theirs.count, theirs.base)
        last = start + len(x)
        places[start:last], positions[start:last] = chosen.cpu().numpy(), turns.cpu().numpy()
        weights[start:last] = _least_squares(sources.mT, x).cpu().numpy()
        if task.progress is not None:
            task.progress(last)
    return task.sums(places, weights, Turn(positions, ours.count, ours.base))


def _position(atom: Tensor, rest: Tensor, heads: Heads) -> Float32[Tensor, " m"]:
    """By how many positions an atom is to be turned to come nearest to the rest: least squares of angles."""
    (a, b), (c, d) = (halves(x, heads.count) for x in (atom, rest))
    angles = torch.atan2(a * d - b * c, a * c + b * d)
    by = frequencies(atom.shape[-1] // heads.count, heads.base).to(atom.device)
    return (angles * by).sum((-1, -2)) / (heads.count * by.square().sum())


#: By name.
METHODS: dict[str, Callable[[Task], NewRows]] = {
    function.__name__: function
    for function in (
        *(omp, common_interpolation, subword, mean, zero, randn),
        *(john_hewitt, landmark_pca, stb, mp_rope),
    )
}
