"""What the documentation shows is true: pages are up to date, and its example of a method works."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

import command
import tiny

ROOT = Path(__file__).parent.parent


def test_pages_of_methods_are_up_to_date(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They tell users of every parameter's range, default and place: to change one is to change a page."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    monkeypatch.setattr(sys, "argv", ["make_docs.py", "--check"])
    status = importlib.import_module("make_docs").main()
    assert (status, capsys.readouterr().out) == (0, "")


def test_the_example_of_a_method_is_a_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "extending.md").read_text("utf-8")
    example = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert example is not None
    Path("pull.py").write_text(example[1])
    for seed, name in enumerate(("base", "a", "b")):
        tiny.decoder(tmp_path / name, seed)
    Path("recipe.yml").write_text(
        "merge_method: pull\nbase_model: base\nparameters: {weight: 1, limit: 0.01}\n"
        "models: [{model: a}, {model: b}]\n"
    )
    assert command.run(capsys, "merge", "recipe.yml", "out", "--plugin", "pull.py").status == 0
    base, a, b = (tiny.tensors(Path(name)) for name in ("base", "a", "b"))
    for name, tensor in tiny.tensors(Path("out")).items():
        step = (a[name] - base[name]) + (b[name] - base[name])
        torch.testing.assert_close(tensor, base[name] + step.clamp(-0.01, 0.01))
    assert "clip(Σ w_i τ_i" in command.run(capsys, "methods", "pull", "--plugin", "pull.py").out


def test_plugins_that_are_none_are_errors_and_those_without_a_word_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    done = command.run(capsys, "methods", "--plugin", "absent.py")
    assert (done.status, done.err) == (2, "error: cannot read plugin absent.py: No such file or directory\n")
    Path("empty.py").touch()
    done = command.run(capsys, "methods", "--plugin", "empty.py")
    assert done.err == "error: plugin empty.py has no METHOD\n  see docs/extending.md\n"
    Path("silent.py").write_text(
        "from meldkit.methods.base import Elementwise\n"
        "METHOD = Elementwise(name='silent', function=lambda x: x[0])\n"
    )
    assert "silent" in command.run(capsys, "methods", "--plugin", "silent.py").out
    Path("double.py").write_text(
        "from meldkit.methods.base import Elementwise\n"
        "METHOD = Elementwise(name='linear', function=lambda x: x[0])\n"
    )
    done = command.run(capsys, "methods", "--plugin", "double.py")
    assert done.err == "error: there is already a merge_method 'linear'\n  give yours another name\n"


def _examples(page: str) -> list[str]:
    """The YAML of a page."""
    text = (ROOT / "docs" / page).read_text("utf-8")
    return re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)


def test_examples_of_recipes_in_recipes_are_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "coder", "poet", "chat")):
        tiny.decoder(tmp_path / name, seed)
    examples = [
        text for text in _examples("recipes.md") if "\n---\n" in text or "model:\n      merge_m" in text
    ]
    assert len(examples) == 2
    for number, text in enumerate(examples):
        Path("recipe.yml").write_text(text)
        done = command.run(capsys, "merge", "recipe.yml", f"out{number}")
        assert done.status == 0, done.err


def test_examples_of_mixtures_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from test_moe import dense

    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "coder", "poet")):
        dense(Path(name), "Llama", seed)
    dense(Path("mixture"), "Mixtral", 3, num_local_experts=2)
    examples = _examples("moe.md")
    assert len(examples) == 2
    for number, text in enumerate(examples):
        Path("moe.yml").write_text(text)
        done = command.run(capsys, "moe", "moe.yml", f"out{number}")
        assert done.status == 0, done.err
