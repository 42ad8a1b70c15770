"""`meldkit new --suggest`: each rule, on models that were made so that it applies."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import command
import tiny
from meldkit.api import merge, plan
from meldkit.report.suggest import RULES, suggest_recipe

SIZE = {"layers": 4, "hidden": 32, "vocab": 64}


def tuned(name: str, *changes: tuple[float, int]) -> None:
    """A fine-tune of the base: changes of these sizes, drawn from these seeds."""
    tiny.decoder(Path(name), 0, **SIZE)
    weights = load_file("base/model.safetensors")
    for size, seed in changes:
        generator = torch.Generator().manual_seed(seed)
        for tensor in weights.values():
            tensor += size * torch.randn(tensor.shape, generator=generator)
    save_file(weights, f"{name}/model.safetensors", metadata={"format": "pt"})


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    tiny.decoder(Path("base"), 0, **SIZE)


def kinds() -> None:
    tuned("a")
    tiny.decoder(Path("b"), 1, layers=4, hidden=16, architectures=["MistralForCausalLM"])


def depths() -> None:
    tuned("a")
    tiny.decoder(Path("b"), 1, layers=3, hidden=32, vocab=64)


def widths() -> None:
    tuned("a")
    tiny.decoder(Path("b"), 1, layers=4, hidden=16)


def equal() -> None:
    tuned("a", (0.02, 1))
    tuned("b", (0.02, 1))


def strangers() -> None:
    tuned("a")
    tiny.decoder(Path("b"), 9, **SIZE)


def broken() -> None:
    tuned("a")
    tuned("b")
    weights = load_file("b/model.safetensors")
    weights["model.norm.weight"][0] = torch.nan
    save_file(weights, "b/model.safetensors", metadata={"format": "pt"})


def opposite() -> None:
    tuned("a", (0.02, 1))
    tuned("b", (-0.02, 1))


def far() -> None:
    tuned("a", (1, 1))
    tuned("b", (1, 2))


def alike() -> None:
    tuned("a", (0.02, 1))
    tuned("b", (0.02, 1), (0.005, 2))


def different() -> None:
    tuned("a", (0.02, 1))
    tuned("b", (0.02, 2))


def partly_alike() -> None:
    """Fewer of the signs differ than of independent changes, and still they are not one change."""
    tuned("a", (0.02, 1), (0.02, 2))
    tuned("b", (0.02, 1), (0.03, 3))


def three() -> None:
    partly_alike()
    tuned("c", (0.02, 1), (0.02, 4))


def three_close() -> None:
    different()
    tuned("c", (0.02, 3))


def wide() -> None:
    tuned("a", (0.3, 1))
    tuned("b", (0.1, 2))


def three_wide() -> None:
    wide()
    tuned("c", (0.2, 3))


def nothing() -> None:
    pass


CASES: list[tuple[Callable[[], None], str, str, str]] = [
    (kinds, "a b", "architectures differ", ""),
    (depths, "a b", "numbers of layers differ", ""),
    (widths, "a b", "fewer than half of the parameters have counterparts", ""),
    (broken, "a b", "a model holds NaN or Inf", ""),
    (equal, "a b", "two models are the same, but for rounding", ""),
    (strangers, "a b", "two models have no base in common", ""),
    (far, "a b", "models are far apart, and no base is given", ""),
    (different, "a --base base", "a base and one model", "linear"),
    (alike, "a b --base base", "a base, and all models changed it alike", "linear"),
    (opposite, "a b --base base", "a base, and task vectors that undo each other", "ties"),
    (far, "a b --base base", "a base, and models far from it", "task_arithmetic"),
    (three, "a b c --base base", "a base and three models or more", "ties"),
    (partly_alike, "a b --base base", "a base and two models", "task_arithmetic"),
    (nothing, "org/a org/b", "two models whose weights are not here", "slerp"),
    (nothing, "org/a org/b org/c", "more models whose weights are not here", "linear"),
    (wide, "a b", "two models at a wide angle", "slerp"),
    (three_wide, "a b c", "three models or more at wide angles", "karcher"),
    (three_close, "a b c", "models close to each other", "linear"),
]


def test_every_rule_has_a_case() -> None:
    assert [when for _, _, when, _ in CASES] == [rule.when for rule in RULES]


@pytest.mark.parametrize(("make", "args", "when", "method"), CASES, ids=[when for _, _, when, _ in CASES])
def test_rule(
    capsys: pytest.CaptureFixture[str], make: Callable[[], None], args: str, when: str, method: str
) -> None:
    make()
    rule = next(rule for rule in RULES if rule.when == when)
    done = command.run(capsys, "new", "--suggest", *args.split())
    if not method:
        assert (done.status, done.out) == (3, "")
        assert done.err.startswith("error: ")
        assert done.err.endswith(f"\n  {rule.why}\n")
        return
    assert done.status == 0
    said = re.sub(r"\s+", " ", done.err)
    assert f"note: {when}: {rule.why} ({rule.source})" in said
    assert f"Why: {when}: {rule.why}" in done.out.replace("\n# ", " ")
    assert max(map(len, done.out.splitlines())) <= 80
    data = yaml.safe_load(done.out)
    assert data["merge_method"] == method
    if "--base" in args:
        assert data["base_model"] == "base"
    if Path("a").exists():
        Path("recipe.yml").write_text(done.out)
        assert plan("recipe.yml").warnings == ()
        merge("recipe.yml", "out")


def test_three_models_that_changed_alike(capsys: pytest.CaptureFixture[str]) -> None:
    for seed, name in enumerate("abc"):
        tuned(name, (0.02, 9), (0.004, seed))
    done = command.run(capsys, "new", "--suggest", "a", "b", "c", "--base", "base")
    assert yaml.safe_load(done.out)["merge_method"] == "linear"


def test_what_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    strangers()
    done = command.run(capsys, "new", "--suggest", "a", "b")
    assert re.sub(r"-?0\.\d+", "0.0", done.err) == (
        "error: 'a' and 'b' have no base in common (cosine 0.0)\n"
        "  choose models that were made from one base; their weights mean different things in the same "
        "places\n"
    )
    depths()
    assert command.run(capsys, "new", "--suggest", "a", "b").err == (
        "error: numbers of layers differ: 'a' 4 layers, 'b' 3 layers\n"
        "  layers can be stacked instead: meldkit new passthrough, and train the result\n"
    )
    alike()
    done = command.run(capsys, "new", "--suggest", "a", "b", "--base", "base", "--out", "new.yml")
    assert re.sub(r"\d[\d.]*\d", "…", re.sub(r"\s+", " ", done.err)) == (
        "note: a base, and all models changed it alike: fine-tunes for the same task are averaged; the sum "
        "of their task vectors would go too far (Model soups, arXiv:…) "
        "note: A is 'a', B is 'b'; A and B are fine-tunes of the base: … % to … % change, cosine … to …; "
        "the task vectors of A and B are largely the same change: they differ in … % of the signs, cosine … "
    )
    assert plan("new.yml").method.name == "linear"


def test_values_of_a_rule_come_with_their_reason() -> None:
    far()
    draft = suggest_recipe(["a", "b"], base="base").draft
    assert yaml.safe_load(draft.text)["models"][0]["parameters"] == {"weight": 0.3}
    assert "# 0.3: the factor that did best for eight tasks in the paper." in draft.text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["a"],
            "--suggest needs two models, got 1\n  meldkit new --suggest MODEL MODEL, or MODEL --base BASE",
        ),
        ([], "--suggest needs two models, got 0\n  meldkit new --suggest MODEL MODEL, or MODEL --base BASE"),
        (
            ["ties", "a", "b"],
            "'ties' is a method, and --suggest chooses one\n  name models only, or leave out --suggest",
        ),
    ],
)
def test_errors(capsys: pytest.CaptureFixture[str], args: list[str], message: str) -> None:
    done = command.run(capsys, "new", "--suggest", *args)
    assert (done.status, done.out, done.err) == (2, "", f"error: {message}\n")


def test_a_path_that_was_mistyped_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    equal()
    done = command.run(capsys, "new", "--suggest", "a", "nope")
    assert (done.status, done.out) == (3, "")
    assert done.err == (
        "error: model 'nope' does not exist\n  check its path; --suggest looks into every model\n"
    )
