"""The faults of mutation testing: one at a time, in code alone, and each of them a program."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def mutants(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("mutants").mutants


@pytest.mark.parametrize(
    ("code", "afters"),
    [
        ("x + 1", ["(x - 1)", "2"]),
        ("x * 0.0", ["(x / 0.0)", "1.0"]),
        ("x < y", ["(x <= y)", "(x >= y)"]),
        ("x == y", ["(x != y)"]),
        ("x is None", ["(x is not None)"]),
        ("x and y", ["(x or y)", "(not x)", "(not y)"]),
        ("not x", ["x"]),
        ("-x", ["x"]),
        ("1 if x else y", ["(not x)", "2"]),
        ("min(x, key=y)", ["max(x, key=y)", "min(x)"]),
        ("abs(x)", ["x"]),
        ("zip(x, y, strict=True)", []),
        ("isinstance(x, int | str)", []),
        ("cast(int, x)", []),
        ("cast('list[int]', not x)", ["x"]),
        ("'word'", ["''"]),
        ("True", ["False"]),
        ("'text for people'", []),
        ("f'text {x + 1}'", []),
        ("[a for a in x if a]", ["(not a)"]),
    ],
)
def test_operators(mutants: Any, code: str, afters: list[str]) -> None:
    found = mutants(f"def f(x, y):\n    z = {code}\n")
    assert [m.name.rpartition(" → ")[2].strip("`") for m in found] == afters
    assert all((m.function, m.lines) == ("f", (2, 2)) for m in found)


def test_statements_and_what_is_left_alone(mutants: Any) -> None:
    text = (
        '"""A module."""\n__all__ = ["f"]\nLIMIT = 3\n\n\n'
        'class C:\n    """A class."""\n\n    size: int = 4\n\n'
        "    def f(self, n: int = 5) -> int:\n"
        '        """A method."""\n'
        "        assert n > 0\n"
        "        self.n = n\n"
        "        g(n)\n"
        "        return n\n"
    )
    assert [(m.name, m.function) for m in mutants(text)] == [
        ("import: `3` → `4`", ""),
        ("C: `4` → `5`", ""),
        ("C.f: `5` → `6`", ""),
        ("C.f: `self.n = n` → `pass`", "C.f"),
        ("C.f: `g(n)` → `pass`", "C.f"),
        ("C.f: `return n` → `return None`", "C.f"),
    ]


@pytest.mark.parametrize("path", ["methods/ties.py", "recipe/values.py", "output/journal.py"])
def test_every_mutant_is_a_program_with_one_difference(mutants: Any, path: str) -> None:
    text = (ROOT / "src" / "meldkit" / path).read_text("utf-8")
    found = mutants(text)
    assert len({m.name for m in found}) == len(found) > 50
    dumped = ast.dump(ast.parse(text))
    for m in found:
        assert ast.dump(ast.parse(m.text)) != dumped
        before, after = text.splitlines(), m.text.splitlines()
        same = next(i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b)
        assert same < m.lines[1]
