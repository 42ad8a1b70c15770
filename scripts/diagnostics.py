"""Writes docs/diagnostics.md from the catalogue of the tests; with --check, says whether it is stale."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from diagnostics_catalogue import TABLE, Case  # noqa: E402 - the tests must be found

PAGE = ROOT / "docs" / "diagnostics.md"
INTRO = """\
<!-- written by scripts/diagnostics.py -->
# What goes wrong, and what meldkit says

Run `meldkit plan recipe.yml` before a merge. It reads the recipe and the headers of the models, no weights,
and tells in seconds what would fail, or would work and give a bad model:

- **errors** stop it: what was got, where (file and line, model, tensor), and in the next line what to do;
- **warnings** are about what is most likely not meant: look at each of them;
- **notes** say what is treated in another way than the method's.

`meldkit merge` does the same first. Only what depends on values, or on the output folder, is found later, and
then nothing is published: there is never a folder that looks like a model and is none.

Exit status: 0 done, 2 the recipe or the command line, 3 the inputs, 4 failed while running.

Below are {count} mistakes of the kinds that people report, each with the whole message; {plan} are found by
`plan` without reading a weight, {merge} by `merge`. In them, `base`, `a`, `b` and `c` are four small Llamas.
Every row is a test, so this is what meldkit says today. In italics: what people saw with other tools.
"""


def page() -> str:
    """The whole page."""
    cases = [case for cases in TABLE.values() for case in cases]
    commands = Counter(case.command for case in cases)
    lines = [INTRO.format(count=len(cases), **commands)]
    for group, rows in TABLE.items():
        lines += [f"## {group}", "", "| what is wrong | what meldkit says | | exit |", "|---|---|---|---|"]
        lines += [_row(case) for case in rows]
        lines.append("")
    return "\n".join(lines)


def _row(case: Case) -> str:
    what = case.name
    if case.symptom:
        what += f"<br>*{_escaped(case.symptom)}*"
    if case.seen:
        what += f" ([seen]({case.seen}))"
    kind = "" if case.command == "plan" else ", by merge"
    return f"| {what} | {_code(case.says)} | {case.kind}{kind} | {case.status} |"


def _code(message: str) -> str:
    return "<br>".join(f"`{_cell(line.strip())}`" for line in message.split("\n"))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("`", "'")


def _escaped(text: str) -> str:
    return _cell(text).replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


def main() -> int:
    text = page()
    if "--check" in sys.argv:
        stale = not PAGE.is_file() or PAGE.read_text("utf-8") != text
        if stale:
            print("docs/diagnostics.md is stale; run scripts/diagnostics.py")
        return int(stale)
    PAGE.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
