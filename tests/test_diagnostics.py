"""The catalogue of what goes wrong: everything is caught, by headers alone where values do not matter."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path

import pytest

import command
from diagnostics_catalogue import TABLE, Case, make_models
from meldkit import plan
from meldkit.checkpoint import OpenFiles

CASES = {f"{group}: {case.name}": case for group, cases in TABLE.items() for case in cases}


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_models(folder)
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with models of its own; the hub is not asked."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def prepared(case: Case) -> set[Path]:
    """Do what users did; everything that there is then."""
    Path("recipe.yml").write_text(case.recipe)
    if case.models is not None:
        case.models()
    return set(Path().rglob("*"))


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items()])
def test_is_caught(
    case: Case, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = prepared(case)
    if case.command == "plan":

        def refuse(*_: object) -> None:
            raise AssertionError("a weight is read")

        monkeypatch.setattr(OpenFiles, "_descriptor", refuse)
    # Measuring the machine takes a second, and reads weights.
    more = ("out",) if case.command == "merge" else ("--no-probe",)
    done = command.run(capsys, case.command, "recipe.yml", *more, *case.options)
    said = re.sub(r"[\d,]+ MB free", "… MB free", done.err.replace(str(here), "PATH"))
    assert (done.status, done.out if case.status else "") == (case.status, ""), said
    if case.kind == "error":
        assert said.partition("error: ")[2] == f"{case.says}\n"
        # What a failed merge leaves is not a model.
        left = {path for path in set(Path().rglob("*")) - before if ".meldkit-partial" not in path.parts}
        assert left <= {Path("out")}
    else:
        found = plan("recipe.yml")
        assert found.warnings == ((case.says,) if case.kind == "warning" else ())
        assert case.kind == "warning" or case.says in found.notes
        assert " ".join(case.says.split()) in " ".join(done.out.split())


@pytest.mark.usefixtures("here")
def test_the_models_as_they_are_earn_no_warning() -> None:
    for recipe in (
        {"merge_method": "linear", "parameters": {"weight": 0.5}},
        {"merge_method": "slerp", "base_model": "a", "parameters": {"t": 0.5}},
        {"merge_method": "ties", "base_model": "base", "parameters": {"weight": 0.5, "density": 0.5}},
        {"merge_method": "dare_ties", "base_model": "base", "parameters": {"weight": 1, "density": [1, 0.3]}},
    ):
        made = plan({**recipe, "models": [{"model": "a"}, {"model": "b"}], "dtype": "bfloat16"})
        assert [w for w in made.warnings if "gradient" not in w] == []


def test_the_catalogue_is_large_and_says_what_to_do() -> None:
    assert len(CASES) == sum(map(len, TABLE.values())) >= 90
    assert len({case.recipe for case in CASES.values()}) > 60
    for case in CASES.values():
        ends = case.says.rpartition("; ")[2] if "\n" not in case.says else case.says.rpartition("\n")[2]
        assert ends, case.name
        assert case.kind != "error" or "\n" in case.says or "; " in case.says, case.name


def test_the_page_is_up_to_date() -> None:
    root = Path(__file__).parent.parent
    spec = importlib.util.spec_from_file_location("page", root / "scripts" / "diagnostics.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (root / "docs" / "diagnostics.md").read_text("utf-8") == module.page()
