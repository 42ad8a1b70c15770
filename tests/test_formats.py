"""The page of formats has a row for everything that the code knows, and the examples of recipes are recipes.

The rows are measured by scripts/formats.py, which takes longer than a test may.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from meldkit.checkpoint import DTYPES
from meldkit.checkpoint.adapter.settings import _CHANGED_BASE, _OTHER_KINDS
from meldkit.checkpoint.gguf.architectures import ARCHITECTURES
from meldkit.checkpoint.gguf.blocks import KINDS
from meldkit.checkpoint.quantised import dequantise as quantised
from meldkit.checkpoint.weights import PICKLED
from meldkit.recipe import parse_recipe

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "formats.md").read_text("utf-8")


def encodings() -> list[str]:
    """The classes that say how a tensor is stored, or what an adapter does to one."""
    found: list[str] = []
    for path in sorted((ROOT / "src" / "meldkit" / "checkpoint").rglob("*.py")):
        for name, body in re.findall(
            r"^class (\w+)([^\n]*\n(?:(?:    .*)?\n)*)", path.read_text("utf-8"), re.M
        ):
            opens = re.search(
                r"def (open|over)\(self, files: OpenFiles, \w+: (TensorInfo|TileSource)\)", body
            )
            if opens and not body.startswith("(Protocol)"):
                found.append(name)
    return found


@pytest.mark.parametrize(
    ("known", "row"),
    [
        (encodings(), r"| [{}]("),
        ([d.torch for d in DTYPES.values() if d.floating], "| numbers of type {} |"),
        (PICKLED, "`{}`"),
        (quantised._METHODS, "{}"),
        ([foreign.name for foreign in quantised._FOREIGN], "{}"),
        ([kind.name for kind in KINDS.values()], "| {} |"),
        (ARCHITECTURES, "| {} |"),
        (_OTHER_KINDS, "LoRA with `{}`"),
        (_CHANGED_BASE, "`{}`"),
    ],
    ids=[
        "encodings",
        "dtypes",
        "endings",
        "methods",
        "foreign",
        "kinds",
        "architectures",
        "adapters",
        "bases",
    ],
)
def test_everything_that_is_known_is_on_the_page(known: list[str], row: str) -> None:
    assert len(known) > 1
    assert [name for name in known if row.format(name) not in PAGE] == [], "run scripts/formats.py"


def test_nothing_on_the_page_went_wrong() -> None:
    assert re.findall(r".*\*\*.*", PAGE) == []


@pytest.mark.parametrize("page", ["README.md", "docs/recipes.md", "docs/architectures.md"])
def test_examples_of_recipes_are_recipes(page: str) -> None:
    examples = re.findall(r"^```yaml\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.M | re.S)
    assert examples
    for example in examples:
        recipe = parse_recipe(example)
        assert recipe.models()
        assert not recipe.warnings
