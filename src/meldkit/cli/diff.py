"""meldkit diff: how the weights of models differ, and what that means."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meldkit.cli import INTERRUPTED
from meldkit.cli.arguments import Model
from meldkit.cli.display import count, show_progress, table, text_size
from meldkit.errors import one_line

if TYPE_CHECKING:
    from meldkit.report import Difference, ModelComparison, Pair, Spectrum, TensorDifference

#: Rows of the table of layers; of more layers, several are put together.
_LAYER_ROWS = 12
#: Pairs that the tables of layers and roles have columns for; with task vectors, one fewer.
_COLUMNS = 3


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("models", nargs=-1, required=True, type=Model())
@click.option(
    "--base",
    type=Model(),
    default=None,
    help="The model that they were made from; compares task vectors too.",
)
@click.option(
    "--spectral",
    is_flag=True,
    help="Count the directions in which matrices changed; takes several times longer.",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option(
    "--num-threads", "-j", type=click.IntRange(1, 1024), default=None, help="Threads; one per processor."
)
@click.option("--transformers-cache", default=None, help="Folder for downloaded models.")
@click.option("--html", type=click.Path(path_type=Path), help="Write a page with plots to this file.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
@click.option("--verbose", "-v", is_flag=True, help="List every layer, and more tensors.")
def command(
    models: tuple[str, ...],
    base: str | None,
    spectral: bool,
    as_json: bool,
    num_threads: int | None,
    transformers_cache: str | None,
    html: Path | None,
    quiet: bool,
    verbose: bool,
) -> None:
    """Compare the weights of MODELS, two or more: how far apart they are, where, and what that means.

    MODELS are anything that a recipe may name: folders, weight files, hub ids, with adapters.
    """
    if html is not None:
        from meldkit.report.html import check_html

        check_html(html)
    try:
        from meldkit.report import diff

        with show_progress(enabled=not quiet) as progress:
            comparison = diff(
                models,
                base,
                spectral=spectral,
                threads=num_threads,
                cache=Path(transformers_cache) if transformers_cache else None,
                progress=progress,
            )
    except KeyboardInterrupt:
        click.echo("\n" * sys.stderr.isatty() + "stopped; a comparison keeps nothing, run it again", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    if as_json:
        click.echo(json.dumps(comparison.data(), indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(describe(comparison, verbose=verbose)))
    if html is not None:
        from meldkit.report.html import diff_page, write_html

        write_html(html, diff_page(comparison))


def describe(comparison: ModelComparison, *, verbose: bool = False) -> Iterator[str]:
    """The comparison in words and tables: what it means comes first."""
    yield from table([_model(comparison, i) for i in range(len(comparison.models))])
    yield ""
    for finding in comparison.findings:
        mark = click.style("! ", fg="yellow") if finding.warning else "  "
        yield from wrapped(finding.text, mark)
        if finding.advice:
            yield from wrapped(finding.advice, "    ")
    for note in comparison.notes:
        yield from wrapped(f"note: {note}", "  ")
    yield ""
    yield from _summary(comparison)
    if len(comparison.models) - (comparison.base is not None) > 2:
        yield from _matrices(comparison)
    shown = _shown(comparison)
    if shown:
        yield from _parts(comparison, shown, verbose)
        yield from _most_changed(comparison, shown, 20 if verbose else 5)
        yield from _left_out(comparison, shown)
    if comparison.spectral:
        yield from _ranks(comparison)
    if verbose:
        yield from _only_some(comparison)
    yield ""
    yield f"read {text_size(comparison.bytes_read)} in {comparison.seconds:.1f} s"


def wrapped(text: str, mark: str) -> list[str]:
    """Lines of at most 80 columns, the first one behind a mark, the others below its text."""
    import textwrap

    indent = " " * len(click.unstyle(mark))
    # A number stays with its percent sign.
    whole = one_line(text).replace(" %", "\u00a0%")
    lines = textwrap.wrap(whole, 80 - len(indent), break_long_words=False, break_on_hyphens=False)
    return [(mark if i == 0 else indent) + line.replace("\u00a0", " ") for i, line in enumerate(lines)]


def _model(comparison: ModelComparison, index: int) -> tuple[str, ...]:
    model = comparison.models[index]
    return (
        model.name,
        model.label,
        f"{model.num_parameters:,}",
        "/".join(model.dtypes) + " quantised" * model.quantised,
    )


def _names(comparison: ModelComparison, pair: Pair) -> str:
    return f"{comparison.models[pair.first].name} → {comparison.models[pair.second].name}"


def _summary(comparison: ModelComparison) -> Iterator[str]:
    """Totals of each pair; and those of their task vectors."""
    rows = [("", "change", "cosine", "norms", "", "largest", "equal tensors", "elements")]
    for pair in comparison.pairs:
        d = pair.total
        equal = d.num_equal / d.numel if d.numel else 1.0
        rows.append(
            (
                _names(comparison, pair),
                _percent(d.relative_change),
                _cosine(d.cosine),
                f"{d.norm_first:.5g}",
                f"{d.norm_second:.5g}",
                f"{d.largest:.3g}",
                f"{pair.num_equal:,} of {pair.num_tensors:,}",
                _percent(equal),
            )
        )
    yield from table(rows)
    tasks = [pair for pair in comparison.pairs if pair.total.task is not None]
    if tasks:
        rows = [("task vectors", "norms", "", "cosine", "sign conflict", "top 1 % shared")]
        for pair in tasks:
            task = pair.total.task
            assert task is not None
            rows.append(
                (
                    _names(comparison, pair).replace("→", "and"),
                    f"{task.norm_first:.5g}",
                    f"{task.norm_second:.5g}",
                    _cosine(task.cosine),
                    _percent(task.sign_conflict),
                    _percent(task.top_overlap),
                )
            )
        yield ""
        yield from table(rows)


def _matrices(comparison: ModelComparison) -> Iterator[str]:
    """Every model against every other one."""

    def change(d: Difference) -> str:
        return _percent(d.relative_change)

    def cosine(d: Difference) -> str:
        return _cosine(d.cosine)

    def task_cosine(d: Difference) -> str:
        return "" if d.task is None else _cosine(d.task.cosine)

    def conflict(d: Difference) -> str:
        return "" if d.task is None else _percent(d.task.sign_conflict)

    kinds = [("cosine above, change below the diagonal", cosine, change)]
    if comparison.base is not None:
        kinds.append(("task vectors: cosine above, signs in conflict below", task_cosine, conflict))
    names = [model.name for model in comparison.models]
    for title, above, below in kinds:
        rows = [("", *names)]
        for i, name in enumerate(names):
            cells = [
                "" if i == j else (above if i < j else below)(comparison.pair(i, j).total)
                for j in range(len(names))
            ]
            rows.append((name, *cells))
        yield ""
        yield title
        yield from table(rows)


def _shown(comparison: ModelComparison) -> list[Pair]:
    """The pairs that have columns of their own: changes from the reference, those of different models."""
    changed = [p for p in comparison.pairs if p.first == comparison.reference and not p.total.equal]
    return changed[: _COLUMNS - any(p.total.task is not None for p in comparison.pairs)]


def _left_out(comparison: ModelComparison, shown: Sequence[Pair]) -> Iterator[str]:
    """How many pairs have no columns, and where they are to be had."""
    changed = sum(p.first == comparison.reference and not p.total.equal for p in comparison.pairs)
    if changed > len(shown):
        yield ""
        yield f"  {count(changed - len(shown), 'more pair')} without columns here; --json has all"


def _parts(comparison: ModelComparison, pairs: Sequence[Pair], verbose: bool) -> Iterator[str]:
    """By role and by layer."""
    task = next((pair for pair in comparison.pairs if pair.total.task is not None), None)
    head = [text for pair in pairs for text in (_names(comparison, pair), "cosine")]
    if task is not None:
        head += [f"{_names(comparison, task).replace(' → ', '/')} signs", "cosine"]
    by_role = [comparison.by_role(pair.key) for pair in pairs]
    task_by_role = comparison.by_role(task.key) if task else {}
    yield ""
    title = "by role and layer: change, cosine"
    yield title + "; of task vectors signs in conflict, cosine" * (task is not None)
    yield from table(
        [
            ("role", *head),
            *(
                (role, *_cells([found.get(role) for found in by_role], task and task_by_role.get(role)))
                for role in dict.fromkeys(role for found in by_role for role in found)
            ),
        ]
    )
    stacks = {t.stack: None for t in comparison.tensors if t.stack is not None and t.compared}
    for stack in stacks:
        blocks = [t.block for t in comparison.tensors if t.stack == stack and t.compared]
        numbers = [block for block in blocks if block is not None]
        first, last = min(numbers), max(numbers)
        step = 1 if verbose else -(-(last - first + 1) // _LAYER_ROWS)
        key = partial(_part_of, stack, first, step)
        found = [comparison.grouped(pair.key, key) for pair in pairs]
        of_task = comparison.grouped(task.key, key) if task else {}
        rows = [(f"{stack}*", *head)]
        for part in sorted({part for one in found for part in one}):
            low, high = first + part * step, min(first + (part + 1) * step - 1, last)
            name = f"{low}" if low == high else f"{low}-{high}"
            rows.append((name, *_cells([one.get(part) for one in found], task and of_task.get(part))))
        if len(rows) > 1:
            yield ""
            yield from table(rows)


def _part_of(stack: str, first: int, step: int, tensor: TensorDifference) -> int | None:
    """Which of the parts of a stack a tensor is in, each of `step` layers."""
    return (tensor.block - first) // step if tensor.stack == stack and tensor.block is not None else None


def _cells(differences: Sequence[Difference | None], task: Difference | None) -> list[str]:
    cells: list[str] = []
    for d in differences:
        cells += ["-", "-"] if d is None else [_percent(d.relative_change), _cosine(d.cosine)]
    if task is not None and task.task is not None:
        cells += [_percent(task.task.sign_conflict), _cosine(task.task.cosine)]
    return cells


def _most_changed(comparison: ModelComparison, pairs: Sequence[Pair], shown: int) -> Iterator[str]:
    """The tensors that changed most, for their size."""

    def change(tensor: TensorDifference) -> float:
        found = [tensor.pairs[p.key].relative_change for p in pairs if p.key in tensor.pairs]
        return max((c for c in found if c is not None), default=0.0)

    tensors = sorted((t for t in comparison.tensors if change(t) > 0), key=change, reverse=True)[:shown]
    rows = [("most changed", *(_names(comparison, p) for p in pairs))]
    for tensor in tensors:
        cells = [_percent(d.relative_change) if (d := tensor.pairs.get(p.key)) else "-" for p in pairs]
        rows.append((tensor.name, *cells))
    if tensors:
        yield ""
        yield from table(rows)


def _ranks(comparison: ModelComparison) -> Iterator[str]:
    """In how many directions matrices changed, by kind of matrix."""
    found: dict[tuple[int, str], list[Spectrum]] = {}
    for tensor in comparison.tensors:
        for model, spectrum in tensor.spectra.items():
            found.setdefault((model, tensor.leaf), []).append(spectrum)
    rows = [("rank of the change", "", "effective", "90 % of energy", "of", "found")]
    for (model, leaf), spectra in found.items():
        pair = comparison.pair(comparison.reference, model)
        ranks = [math.inf if s.energy_rank is None else s.energy_rank for s in spectra]
        rows.append(
            (
                leaf,
                _names(comparison, pair),
                _range([s.effective_rank for s in spectra]),
                _range(ranks),
                _range([s.full_rank for s in spectra]),
                _percent(min(s.captured for s in spectra)),
            )
        )
    if found:
        yield ""
        yield from table(rows)


def _range(values: Sequence[float]) -> str:
    low, high = ("more" if math.isinf(v) else f"{v:.0f}" for v in (min(values), max(values)))
    return low if low == high else f"{low}-{high}"


def _only_some(comparison: ModelComparison) -> Iterator[str]:
    """Tensors that cannot be compared."""
    for model in comparison.models:
        if model.extra:
            yield ""
            yield f"only {model.name} has {count(len(model.extra), 'tensor')}"
            yield from (f"  {name}" for name in model.extra)
    by_name = {t.name: t for t in comparison.tensors}
    for pair in comparison.pairs:
        if pair.unfit:
            names = f"{comparison.models[pair.first].name} and {comparison.models[pair.second].name}"
            yield ""
            yield f"{count(len(pair.unfit), 'tensor')} of {names} in different shapes"
            yield from table(
                (name, *(str(list(by_name[name].shapes[m] or ())) for m in pair.key)) for name in pair.unfit
            )


def _percent(value: float | None) -> str:
    from meldkit.report.diff import share

    return "-" if value is None else share(value)


def _cosine(value: float | None) -> str:
    from meldkit.report.diff import number

    return "-" if value is None else number(value)
