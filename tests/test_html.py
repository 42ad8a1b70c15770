"""Reports as HTML: whole, harmless, small, and with the numbers of what they report on."""

from __future__ import annotations

import json
import re
import resource
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import tiny
from command import run
from meldkit.api import MergeOptions, merge, plan
from meldkit.errors import NotSupportedError, OutputError
from meldkit.report import ModelRun, SmokeTest, diff, summarise_plan
from meldkit.report.html import check_html, diff_page, merge_page, plan_page, write_html
from meldkit.report.html.figures import colours, distribution
from meldkit.report.html.grid import gather, grids_of
from meldkit.report.html.page import Cards, Code, Items, Page, Section, Table, Words, plotly_js, render
from meldkit.report.html.plan import time_text

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>&amp;%{x}"
#: Elements that have no end.
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Parsed(HTMLParser):
    """A page: its elements in order, the text of each script, and whether elements are nested properly."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            self.scripts[-1] += data

    @property
    def figures(self) -> list[dict[str, Any]]:
        return json.loads(self.scripts[0])


def parse(page: Page) -> Parsed:
    return Parsed(render(page))


def own_size(text: str) -> int:
    """Bytes of a page besides the plotting library."""
    return len(text.encode()) - len(plotly_js().encode())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [tiny.decoder(folder / name, seed, layers=3) for seed, name in enumerate(("base", "a", "b"))]


def recipe_of(models: list[Path]) -> dict[str, Any]:
    base, a, b = map(str, models)
    return {
        "models": [
            {"model": a, "parameters": {"weight": [0, 0.5, 1], "density": 0.5}},
            {"model": b, "parameters": {"weight": [{"filter": "mlp", "value": 0.25}, {"value": [1, 0]}]}},
        ],
        "merge_method": "ties",
        "base_model": base,
        "parameters": {"density": 0.75},
    }


def test_a_page_asks_the_network_for_nothing(models: list[Path]) -> None:
    for page in (plan_page(summarise_plan(plan(recipe_of(models)))), diff_page(diff(models[1:], models[0]))):
        text = render(page)
        parsed = Parsed(text)
        assert page.figures
        for tag, attributes in parsed.elements:
            assert tag not in ("link", "iframe", "object", "embed", "base", "form", "img")
            for name, value in attributes.items():
                assert not name.startswith("on")
                assert name not in ("src", "srcset", "background", "action")
                assert name != "href" or (value or "").startswith("#")
        style = re.search(r"<style>(.*?)</style>", text, re.S)
        assert style is not None
        assert not re.search(r"@import|url\(", style[1])
        policies = [a["content"] for _, a in parsed.elements if a.get("http-equiv")]
        assert len(policies) == 1
        assert "default-src 'none'" in (policies[0] or "")
        assert "connect-src" not in (policies[0] or "")
        # Plots, a library and a script: each plot has its place, and nothing else has its identity.
        identities = [a["id"] for _, a in parsed.elements if "id" in a]
        assert len(set(identities)) == len(identities)
        assert [i for i in identities if (i or "").startswith("figure-")] == [
            f"figure-{n}" for n in range(1, len(page.figures) + 1)
        ]
        assert len(parsed.figures) == len(page.figures)
        assert len(parsed.scripts) == 3


def test_plotly_knows_everything_that_figures_say(models: list[Path]) -> None:
    from plotly.graph_objects import Figure

    several = diff([*models[1:], models[0]], spectral=True)
    for page in (plan_page(summarise_plan(plan(recipe_of(models)))), diff_page(several)):
        for figure in page.figures:
            # Raises for any name or value that plotly does not have.
            Figure(data=list(figure.traces), layout=dict(figure.layout))
            assert len(figure.scales) == len(figure.traces)


def test_what_models_and_recipes_say_is_only_shown() -> None:
    page = Page(
        HOSTILE,
        HOSTILE,
        [
            Section(
                HOSTILE,
                [
                    Words([HOSTILE]),
                    Items([HOSTILE], warning=True, title=HOSTILE),
                    Cards([(HOSTILE, HOSTILE, HOSTILE)]),
                    Code(HOSTILE),
                    Table([HOSTILE], [[HOSTILE]], title=HOSTILE),
                    distribution(HOSTILE, HOSTILE, {HOSTILE: np.ones(3)}, HOSTILE),
                ],
            )
        ],
    )
    parsed = parse(page)
    assert [tag for tag, _ in parsed.elements].count("script") == 3
    assert "img" not in [tag for tag, _ in parsed.elements]
    # Plotly reads tags in its texts, and %{...} in templates.
    figure = json.dumps(parsed.figures)
    assert "<script" not in figure
    assert "<img" not in figure
    assert HOSTILE not in parsed.figures[0]["data"][0]["hovertemplate"]


def test_a_hostile_model_folder(tmp_path: Path) -> None:
    first = tiny.decoder(tmp_path / "<script>alert(1)<", 0)
    second = tiny.decoder(tmp_path / "</script><b>", 1)
    recipe = {
        "models": [
            {"model": str(m), "parameters": {"weight": [1, n]}} for n, m in enumerate((first, second), 1)
        ],
        "merge_method": "linear",
    }
    for page in (plan_page(summarise_plan(plan(recipe))), diff_page(diff([first, second]))):
        tags = [tag for tag, _ in parse(page).elements]
        assert tags.count("script") == 3
        assert "b" not in tags


def test_the_same_report_gives_the_same_bytes(models: list[Path], tmp_path: Path) -> None:
    summary = summarise_plan(plan(recipe_of(models)))
    for name in ("one.html", "other.html"):
        write_html(tmp_path / name, plan_page(summary))
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "other.html").read_bytes()


def test_a_plan_shows_the_values_of_its_tensors(models: list[Path]) -> None:
    chosen = plan(recipe_of(models))
    page = plan_page(summarise_plan(chosen))
    maps = {f.title: f.traces[0] for f in page.figures if f.traces[0]["type"] == "heatmap"}
    drawn = maps["weight of b by layer and tensor"]
    prefix = drawn["meta"][0]
    values = {job.name: job.values["weight"] for job in chosen.jobs if job.method is not None}
    compared = 0
    for row, leaf in enumerate(drawn["y"]):
        for column, layer in enumerate(drawn["x"]):
            assert drawn["z"][row][column] == pytest.approx(values[f"{prefix}{layer}.{leaf}"][1], rel=1e-5)
            compared += 1
    assert compared == sum(name.startswith(prefix) for name in values)
    # The gradients as curves, under the names of the modules that share them.
    curves = next(f for f in page.figures if f.title == "weight over depth")
    lines = {line["name"]: line["y"] for line in curves.traces}
    assert lines["a: all tensors of a layer"] == [0, 0.5, 1]
    assert lines["b: mlp"] == [0.25, 0.25, 0.25]
    # The same numbers stand in the table behind the plot.
    assert [list(row) for row in zip(*(line["y"] for line in curves.traces), strict=True)] == [
        list(row[1:]) for row in curves.table.rows
    ]
    # Density does not change from layer to layer: there is nothing to draw.
    assert not any("density" in figure.title for figure in page.figures)


def test_a_plan_shows_where_layers_come_from(models: list[Path]) -> None:
    _, a, b = map(str, models)
    slices = [
        {"sources": [{"model": a, "layer_range": [0, 2]}]},
        {"sources": [{"model": b, "layer_range": [1, 3]}]},
    ]
    page = plan_page(summarise_plan(plan({"merge_method": "passthrough", "slices": slices})))
    (drawn,) = (f for f in page.figures if f.title == "Where the layers of model.layers.* come from")
    assert {line["name"]: line["y"] for line in drawn.traces} == {
        "a": [0, 1, None, None],
        "b": [None, None, 1, 2],
    }
    assert [list(row) for row in drawn.table.rows] == [
        [0, 0, None],
        [1, 1, None],
        [2, None, 1],
        [3, None, 2],
    ]
    # Where every layer stays in its place there is nothing to draw.
    page = plan_page(summarise_plan(plan(recipe_of(models))))
    assert not any(figure.title.startswith("Where") for figure in page.figures)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.01234, "0.012 s"),
        (9.49, "9.5 s"),
        (9.5, "10 s"),
        (99.4, "99 s"),
        (99.5, "2 min"),
        (5969, "99 min"),
        (5970, "1.7 h"),
        (36000, "10.0 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert time_text(seconds) == text


def test_a_comparison_shows_its_numbers(models: list[Path]) -> None:
    comparison = diff(models[1:], models[0])
    page = diff_page(comparison)
    maps = {f.title: f.traces[0] for f in page.figures if f.traces[0]["type"] == "heatmap"}
    tensors = {t.name: t for t in comparison.tensors}
    for title, key, of in (
        ("Relative change, base → A", (0, 1), lambda d: 100 * d.relative_change),
        ("Cosine of the weights, base → B", (0, 2), lambda d: d.cosine),
        ("Signs in conflict, A and B", (1, 2), lambda d: 100 * d.task.sign_conflict),
        ("Cosine of the task vectors, A and B", (1, 2), lambda d: d.task.cosine),
    ):
        drawn = maps[title]
        for row, leaf in enumerate(drawn["y"]):
            for column, layer in enumerate(drawn["x"]):
                wanted = of(tensors[f"{drawn['meta'][0]}{layer}.{leaf}"].pairs[key])
                assert drawn["z"][row][column] == pytest.approx(wanted, rel=1e-5)
    bars = next(f for f in page.figures if f.title == "Relative change of tensors, base → A")
    assert sum(sum(trace["y"]) for trace in bars.traces) == len(tensors)


def test_experts_share_a_cell() -> None:
    names = [f"{expert}.w" for expert in range(4)]
    places: list[tuple[str | None, int | None, str]] = [
        ("layers.", layer, f"experts.{name}") for layer in (0, 1) for name in names
    ]
    (grid,) = grids_of([*places, (None, None, "norm.weight")])
    assert grid.leaves == ("experts.*.w",)
    spread = grid.spread(gather(dict(enumerate([1.0, 2.0, 3.0, 6.0, 5.0])), 9))
    assert spread.mean.tolist() == [[3.0, 5.0]]
    assert (spread.low[0, 0], spread.high[0, 0], spread.count[0].tolist()) == (1.0, 6.0, [4, 1])


def test_colours_reach_as_far_to_both_sides_of_the_middle() -> None:
    found = colours([np.array([-0.1, np.nan, 0.4])], around=0.0)
    assert (found.scale, found.low, found.high) == ("diverging", -0.4, 0.4)
    assert colours([np.full(3, np.nan)]).low < colours([np.full(3, np.nan)]).high
    # One tensor far from all others does not take the colours from them.
    assert colours([np.append(np.linspace(1, 2, 99), 50.0)], robust=True).high < 3


def mixture(folder: Path, layers: int, experts: int) -> Path:
    """The headers and zeros of a mixture of experts."""
    leaves = [f"self_attn.{name}_proj.weight" for name in "qkvo"] + [
        "mlp.gate.weight",
        "input_layernorm.weight",
    ]
    leaves += [
        f"mlp.experts.{e}.{name}_proj.weight" for e in range(experts) for name in ("up", "gate", "down")
    ]
    names = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    names += [f"model.layers.{layer}.{leaf}" for layer in range(layers) for leaf in leaves]
    header = {
        name: {"dtype": "BF16", "shape": [1], "data_offsets": [2 * place, 2 * place + 2]}
        for place, name in enumerate(names)
    }
    text = json.dumps(header).encode()
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(2 * len(names)))
    (folder / "config.json").write_text(json.dumps({"num_hidden_layers": layers}))
    return folder


def mixtures(folder: Path, layers: int, experts: int) -> tuple[int, Page]:
    """The number of tensors and the page of a plan that merges two of them with gradients."""
    folder.mkdir()
    first = mixture(folder / "a", layers, experts)
    (folder / "b").symlink_to("a")
    up = {"weight": [{"filter": "experts", "value": [0.1, 1]}, {"value": [1, 0.5, 0.3]}]}
    down = {"weight": [{"filter": "self_attn", "value": [1, 0.1]}, {"value": 0.5}]}
    recipe = {
        "models": [
            {"model": str(first), "parameters": up},
            {"model": str(folder / "b"), "parameters": down},
        ],
        "merge_method": "linear",
    }
    summary = summarise_plan(plan(recipe))
    return len(summary.plan.jobs), plan_page(summary)


def test_more_experts_make_no_larger_page(tmp_path: Path) -> None:
    sizes = {
        experts: own_size(render(mixtures(tmp_path / str(experts), 8, experts)[1])) for experts in (2, 32)
    }
    assert sizes[32] < sizes[2] * 1.1


@pytest.mark.slow
def test_a_hundred_thousand_tensors_make_a_small_page(tmp_path: Path) -> None:
    num_tensors, page = mixtures(tmp_path / "models", 130, 256)
    assert num_tensors > 100_000
    assert page.figures
    assert own_size(render(page)) < 3_000_000


def test_only_html_is_written_over(models: list[Path], tmp_path: Path) -> None:
    page = Page("a", "b")
    report = tmp_path / "report.html"
    report.write_text("  <!DOCTYPE html><p>an older report")
    write_html(report, page)
    assert "<h1>a</h1>" in report.read_text("utf-8")
    weights = models[0] / "model.safetensors"
    before = weights.read_bytes()
    for path, message in (
        (weights, "exists and is no HTML file"),
        (tmp_path, "is a folder"),
        (tmp_path / "none" / "x.html", "there is no folder"),
    ):
        with pytest.raises(OutputError, match=message):
            check_html(path)
        with pytest.raises(OutputError, match=message):
            write_html(path, page)
    assert weights.read_bytes() == before
    # A link is replaced; what it leads to stays.
    (tmp_path / "real.html").write_text("<html>mine")
    link = tmp_path / "link.html"
    link.symlink_to("real.html")
    write_html(link, page)
    assert (tmp_path / "real.html").read_text() == "<html>mine"
    assert not link.is_symlink()
    assert sorted(p.name for p in tmp_path.glob(".*")) == []
    check_html(tmp_path / "out" / "report.html", created=tmp_path / "out")


def test_a_report_is_there_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    """The system refuses files of more than some bytes, as a disk that is full would."""
    report = tmp_path / "report.html"
    report.write_text("<html>an older report")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"cannot write '.*report.html': File too large"):
            write_html(report, Page("a", "b"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert report.read_text() == "<html>an older report"


def test_a_report_among_the_files_of_the_model(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(OutputError, match="may become a file of the model") as refused:
        check_html(out / "config.json", created=out)
    assert refused.value.hint == "there the report's name must end in .html"
    with pytest.raises(OutputError, match="is a folder"):
        check_html(out, created=out)
    assert not out.exists()


def test_a_merge_tells_of_values_that_were_let_through(tmp_path: Path) -> None:
    models = [
        tiny.decoder(tmp_path / name, seed, extra={"odd": torch.tensor([1.0, value])})
        for seed, (name, value) in enumerate((("a", 1.0), ("b", float("nan"))))
    ]
    recipe = {
        "merge_method": "linear",
        "models": [{"model": str(m), "parameters": {"weight": 1}} for m in models],
    }
    result = merge(recipe, tmp_path / "out", MergeOptions(allow_nonfinite=True))
    text = render(merge_page(result, 10**9))
    assert "odd holds NaN or Inf, which was let through" in text
    assert "norm.weight holds NaN" not in text


def test_without_plotly_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(NotSupportedError) as caught:
        check_html(tmp_path / "x.html")
    assert str(caught.value) == (
        "the HTML report needs plotly, which is not installed\n  pip install 'meldkit[html]'"
    )


def test_commands(models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(yaml.safe_dump(recipe_of(models)))
    done = run(capsys, "plan", recipe, "--no-probe", "--html", tmp_path / "plan.html")
    assert done.status == 0
    assert Parsed((tmp_path / "plan.html").read_text("utf-8")).figures
    done = run(capsys, "diff", *models, "--quiet", "--html", tmp_path / "diff.html")
    assert done.status == 0
    assert Parsed((tmp_path / "diff.html").read_text("utf-8")).figures
    out = tmp_path / "out"
    done = run(capsys, "merge", recipe, out, "--quiet", "--html", out / "report.html")
    assert done.status == 0, done.err
    text = (out / "report.html").read_text("utf-8")
    assert "weight files have the sizes and headers that they should have" in text
    assert Parsed(text).figures
    for command in (["plan", recipe], ["diff", *models], ["merge", recipe, tmp_path / "no"]):
        done = run(capsys, *command, "--html", models[0] / "config.json")
        assert done.status == 2
        assert done.err.endswith(
            f"error: '{models[0] / 'config.json'}' exists and is no HTML file\n"
            "  --html takes the name of the report to write\n"
        )
        assert json.loads((models[0] / "config.json").read_text())
    assert not (tmp_path / "no").exists()


def test_a_smoke_test_is_shown_as_it_is(models: list[Path], tmp_path: Path) -> None:
    result = merge(recipe_of(models), tmp_path / "out")
    tested = ModelRun(HOSTILE, {"prose": 12.5, "code": float("inf")}, None, 0.25, None, {"prose": HOSTILE})
    failed = ModelRun("b", {}, None, None, None, {}, "out of memory")
    page = merge_page(result, 10**9, SmokeTest(tested, (failed,), ("much worse",)))
    tables = [block for s in page.sections if s.title == "Smoke test" for block in s.blocks]
    rows = next(block.rows for block in tables if isinstance(block, Table))
    assert rows == [["b", None, None, None, None], [HOSTILE, 12.5, float("inf"), None, 25.0]]
    text = render(page)
    assert "much worse" in text
    assert "b was not run: out of memory" in text
    assert [tag for tag, _ in Parsed(text).elements].count("script") == 3
