"""Who may import whom, read from the source: see `_TIERS`."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import meldkit
import tiny

PACKAGE = Path(meldkit.__file__).parent

#: Room → the rooms that it may import from, besides itself. What is not listed may not be imported.
_TIERS = {
    "errors": "",
    "regular": "",
    "expression": "",
    "paths": "errors",
    "recipe": "errors expression",
    "layout": "errors",
    "shapes": "",
    "kernels": "shapes",
    "methods": "errors shapes kernels",
    "checkpoint": "errors regular expression shapes kernels recipe",
    "vocab": "errors shapes recipe checkpoint",
    "plan": "errors regular recipe layout methods checkpoint vocab",
    "engine": "errors shapes kernels methods checkpoint plan",
    "output": "errors regular paths layout kernels checkpoint vocab plan engine",
    "composed": "errors shapes recipe methods checkpoint plan engine options",
    "options": "errors",
    "config": "recipe",
    "api": "errors regular paths recipe methods checkpoint plan engine output options composed",
    "memory": "errors shapes methods checkpoint plan engine",
    "merge": "paths api config options output",
    "report": "errors regular paths recipe checkpoint layout vocab plan methods engine output shapes kernels "
    "api options",
    "raw": "errors paths shapes recipe checkpoint plan options output api",
    "tools": "errors regular paths shapes kernels recipe checkpoint layout vocab plan output options "
    "composed api report",
    "cli": "errors paths options api raw report tools",
    "__init__": "api memory",
}
#: For annotations only, which cost nothing at run time.
_FOR_TYPES = {"cli": "plan methods recipe", "tools": "engine", "recipe": ""}
_EXTERNAL = {
    "errors": "",
    "regular": "",
    "expression": "regex",
    "paths": "",
    "recipe": "yaml pydantic",
    "layout": "",
    "shapes": "jaxtyping torch",
    "kernels": "torch numpy",
    "methods": "torch numpy",
    "checkpoint": "torch numpy huggingface_hub gguf tokenizers",
    "vocab": "torch numpy tokenizers transformers jinja2",
    "plan": "numpy",
    "engine": "torch numpy",
    "output": "yaml torch numpy",
    "composed": "torch numpy",
    "options": "",
    "config": "",
    "api": "",
    "memory": "torch numpy",
    "merge": "tqdm",
    "report": "yaml torch numpy transformers jinja2 plotly",
    "raw": "torch numpy",
    "tools": "torch numpy transformers pydantic",
    "cli": "click rich",
    "__init__": "",
}
#: Slow to import, and not always needed.
_LAZY = ("regex", "transformers", "tokenizers", "huggingface_hub", "rich", "tqdm")


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, bool, bool]]:
    """(module, stands at the top level, only for types) of every import in a file."""
    tree = ast.parse(path.read_text("utf-8"))
    inside: dict[ast.AST, tuple[bool, bool]] = {tree: (True, False)}
    for node in ast.walk(tree):
        top, typing = inside[node]
        for child in ast.iter_child_nodes(node):
            deferred = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            checking = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            inside[child] = (top and not deferred, typing or checking)
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, top, typing
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module or "", top, typing


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_layers(path: Path) -> None:
    here = room(path)
    assert here in _TIERS, f"{path} is in no tier: say in this test what it may import"
    for module, _, typing in imports(path):
        first, *rest = module.split(".")
        if first == "meldkit":
            allowed = {here, *_TIERS[here].split(), *(_FOR_TYPES.get(here, "").split() if typing else ())}
            if rest:  # `from meldkit import __version__` is everybody's
                assert rest[0] in allowed, f"{path}: {here} must not import {module}"
        elif first not in sys.stdlib_module_names:
            assert first in _EXTERNAL[here].split(), f"{path}: {here} must not import {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_libraries_are_imported_where_they_are_used(path: Path) -> None:
    for module, top, typing in imports(path):
        first = module.split(".")[0]
        if top and not typing:
            assert first not in ("transformers", "tokenizers", "huggingface_hub", "rich", "tqdm"), (
                f"{path}: {module}"
            )
            if room(path) in ("recipe", "layout", "cli", "options", "errors", "__init__"):
                assert first not in ("torch", "numpy"), f"{path}: {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_what_is_for_annotations_is_not_used_otherwise(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        used = [node.value] if isinstance(node, ast.Attribute) else []
        used += node.args if isinstance(node, ast.Call) else []
        for name in used:
            wrong = isinstance(name, ast.Name) and name.id in ("Tensor", "Float32", "Float64")
            assert not wrong, f"{path}:{name.lineno}: outside of tests it is None"


def test_importing_the_light_rooms_loads_nothing_heavy() -> None:
    code = (
        "import sys, meldkit, meldkit.options, meldkit.errors, meldkit.recipe, meldkit.layout, meldkit.cli\n"
        "import meldkit.cli.merge, meldkit.cli.plan, meldkit.cli.methods\n"
        "heavy = {'torch', 'numpy', 'transformers', 'pydantic', 'huggingface_hub', 'rich'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


#: Each takes longer to import than a small merge takes.
_HEAVY = ("transformers", "tokenizers", "huggingface_hub", "torch._dynamo", "scipy", "pandas", "gguf")
#: torch by its compiled part: what stands for it until it is used has none.
_TORCH = ("torch._C", *_HEAVY)
_NUMBERS = ("numpy", "pydantic", "safetensors", "rich", "jinja2", *_TORCH)
#: What only models or recipes of a certain kind need.
_MET = (
    "pydantic",
    "meldkit.recipe.schema",
    "meldkit.checkpoint.adapter",
    "meldkit.checkpoint.gguf",
    "meldkit.checkpoint.hub",
    "meldkit.checkpoint.pickled",
    "meldkit.checkpoint.quantised.dequantise",
    "meldkit.composed",
    "meldkit.plan.alignment",
    "meldkit.vocab.union",
)
#: By command: modules that it must do without.
WITHOUT = {
    "--help": _NUMBERS,
    "--version": _NUMBERS,
    "merge --help": _NUMBERS,
    "plan recipe.yml --no-probe": (*_MET, *_TORCH),
    "explain recipe.yml": (*_MET, *_TORCH),
    "inspect a": ("pydantic", *_TORCH),
    "methods ties": _TORCH,
    "schema": _TORCH,
    "merge recipe.yml out": ("meldkit.checkpoint.experts", *_MET, *_HEAVY),
}


@pytest.mark.parametrize("command", WITHOUT)
def test_commands_import_only_what_they_need(command: str, tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        tiny.decoder(tmp_path / name, seed)
    recipe = "merge_method: ties\nbase_model: a\nmodels: [{model: b, parameters: {weight: 1, density: 0.5}}]"
    (tmp_path / "recipe.yml").write_text(recipe)
    code = (
        "import sys\n"
        "from meldkit.cli import main\n"
        "try:\n    main()\nexcept SystemExit as e:\n    assert not e.code, e.code\n"
        f"found = set({WITHOUT[command]}) & set(sys.modules)\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", code, *command.split()], check=True, cwd=tmp_path)


def test_public_names() -> None:
    assert meldkit.__all__ == [
        "__version__",
        "merge",
        "merge_state_dicts",
        "merge_tensors",
        "methods",
        "plan",
    ]
    for name in meldkit.__all__:
        assert getattr(meldkit, name) is not None
    with pytest.raises(AttributeError, match="module 'meldkit' has no attribute 'merg'"):
        _ = meldkit.merg  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "first",
    [
        "from meldkit import *",
        "import meldkit.merge, meldkit.plan, meldkit.methods, meldkit.api",
    ],
)
def test_names_are_the_functions_whatever_was_imported_first(first: str) -> None:
    code = (
        f"{first}\n"
        "import types, meldkit\n"
        "from meldkit import merge, methods, plan\n"
        "from meldkit.merge import run_merge\n"
        "from meldkit.plan import build_plan\n"
        "from meldkit.methods import METHODS\n"
        "import meldkit.api\n"
        "for f in (merge, plan, methods, meldkit.merge, meldkit.plan, meldkit.methods):\n"
        "    assert isinstance(f, types.FunctionType), f\n"
        "assert merge is meldkit.api.merge and plan is meldkit.api.plan\n"
        "assert methods() == tuple(METHODS.values())\n"
        "import meldkit.merge as m, meldkit.methods.base as b, meldkit.plan.model as p\n"
        "assert (m.run_merge, b) == (run_merge, meldkit.methods.base) and p.Plan is meldkit.plan.model.Plan"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
