"""Writes docs/methods/ and the JSON Schema of recipes from what is declared; --check says what is stale."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

from meldkit.methods import METHODS, Method, Parameter
from meldkit.methods.describe import default_text, minimal_recipe, models_text, scope_text, start_text
from meldkit.report.schema import STORED, recipe_schema, to_text

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "methods"
SCHEMA = ROOT / "src" / "meldkit" / "recipe" / STORED.name


def page(method: Method) -> str:
    """One method's page."""
    documentation = inspect.getdoc(method.function) or ""
    lines = [
        f"# {method.name}",
        "",
        _markdown(documentation),
        "",
        f"Models: {models_text(method)}. `base_model`: {method.base.value}. Speed class: {method.shape}.",
        "",
    ]
    if method.parameters:
        lines += [
            "| parameter | meaning | values | default | begin with | where |",
            "|---|---|---|---|---|---|",
        ]
        lines += [_row(p) for p in method.parameters]
        lines.append("")
    lines += ["A minimal recipe:", "", "```yaml", minimal_recipe(method).strip(), "```", ""]
    return "\n".join(lines)


def _markdown(documentation: str) -> str:
    """A docstring as Markdown: runs of indented lines are formulas."""
    result: list[str] = []
    formula = False
    for line in documentation.splitlines():
        indented = line.startswith("    ")
        if line.strip() and indented != formula:
            result.append("```" if not indented else "```text")
            formula = indented
        result.append(line.removeprefix("    ") if indented else line)
    if formula:
        result.append("```")
    return "\n".join(result).replace("\n\n```\n", "\n```\n\n")


def _row(p: Parameter) -> str:
    values = p.range_text.replace("|", "\\|")
    return f"| `{p.name}` | {p.doc} | {values} | {default_text(p)} | {start_text(p)} | {scope_text(p)} |"


def index() -> str:
    """The list of all methods."""
    lines = [
        "# Merge methods",
        "",
        "| method | what it does | models | speed class | paper |",
        "|---|---|---|---|---|",
    ]
    for m in METHODS.values():
        paper = f"[{m.paper}](https://arxiv.org/abs/{m.paper})" if m.paper else ""
        lines.append(f"| [{m.name}]({m.name}.md) | {m.summary} | {models_text(m)} | {m.shape} | {paper} |")
    return "\n".join([*lines, ""])


def main() -> int:
    pages = {"README.md": index()} | {f"{name}.md": page(m) for name, m in METHODS.items()}
    schema = to_text(recipe_schema())
    present = {p.name: p.read_text("utf-8") for p in FOLDER.glob("*.md")} if FOLDER.is_dir() else {}
    if "--check" in sys.argv:
        stale = sorted(name for name in pages.keys() | present.keys() if pages.get(name) != present.get(name))
        if not SCHEMA.is_file() or SCHEMA.read_text("utf-8") != schema:
            stale.append(SCHEMA.name)
        if stale:
            print(f"stale: {', '.join(stale)}; run scripts/make_docs.py")
        return bool(stale)
    SCHEMA.write_text(schema, "utf-8")
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in present.keys() - pages.keys():
        (FOLDER / name).unlink()
    for name, text in pages.items():
        (FOLDER / name).write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
