"""What a report's page consists of, and its HTML: one file that needs nothing else and asks no network.

What comes from recipes and models is text to be shown, whatever it looks like: the template escapes it,
`plotly_text` does so for what plotly draws, and the page's policy lets no script run but its own two.
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from typing import Any, ClassVar, TypeAlias

from meldkit import __version__
from meldkit.errors import NotSupportedError

Cell: TypeAlias = str | float | int | None

#: Rows of a table; what is left out is said below it.
MAX_ROWS = 200


@dataclass(frozen=True, slots=True)
class Words:
    """Paragraphs."""

    kind: ClassVar[str] = "words"
    paragraphs: Sequence[str]


@dataclass(frozen=True, slots=True)
class Items:
    """A list of sentences; as `warning` it is set off from the rest. `title` folds it away."""

    kind: ClassVar[str] = "items"
    sentences: Sequence[str]
    warning: bool = False
    title: str = ""


@dataclass(frozen=True, slots=True)
class Cards:
    """Single facts: (what, value, remark)."""

    kind: ClassVar[str] = "cards"
    facts: Sequence[tuple[str, Cell, str]]


@dataclass(frozen=True, slots=True)
class Code:
    """Text in which spaces and line breaks count."""

    kind: ClassVar[str] = "code"
    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under a head; numbers have so many `digits`. `title` folds it away."""

    kind: ClassVar[str] = "table"
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    digits: int = 4

    @property
    def shown(self) -> Sequence[Sequence[Cell]]:
        """As many rows as a page takes."""
        return self.rows[:MAX_ROWS]

    @property
    def num_hidden(self) -> int:
        """How many rows are not shown."""
        return max(0, len(self.rows) - MAX_ROWS)


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot.

    Attributes:
        title: what it shows.
        words: how to read it.
        traces: as plotly's `data`.
        layout: plotly's, without colours, which follow the reader's theme.
        scales: for each trace "sequential", "diverging" or "": how its colours follow its numbers.
        table: the same numbers for those who do not see the plot.
        height: in CSS pixels.
    """

    kind: ClassVar[str] = "figure"
    title: str
    words: str
    traces: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    scales: Sequence[str]
    table: Table
    height: int


Block: TypeAlias = Words | Items | Cards | Code | Table | Figure


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True, slots=True)
class Page:
    """A whole report.

    Attributes:
        title: of the page.
        lead: what it says, in a sentence or two.
        sections: in order; those without blocks are left out.
    """

    title: str
    lead: str
    sections: Sequence[Section] = field(default_factory=tuple[Section, ...])

    @property
    def figures(self) -> list[Figure]:
        """All plots, in order."""
        return [b for s in self.sections for b in s.blocks if isinstance(b, Figure)]


def render(page: Page) -> str:
    """The HTML of a page; the same page gives the same text.

    Raises:
        NotSupportedError: plotly is not installed.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = cell_text
    # A number that JSON does not know would make all plots unreadable: better fail here.
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    library, script = plotly_js(), _own("page.js")
    figures = [
        {"data": figure.traces, "layout": figure.layout, "scales": figure.scales} for figure in page.figures
    ]
    return environment.from_string(_own("page.html")).render(
        page=page,
        sections=[section for section in page.sections if section.blocks],
        figures=figures,
        style=_own("page.css"),
        # The policy names scripts by their hashes, which hold for the text between the tags, to the letter.
        library=library,
        script=script,
        hashes=[_hash(library), _hash(script)],
        version=__version__,
    )


def plotly_js() -> str:
    """The text of the plotting library.

    Raises:
        NotSupportedError: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise NotSupportedError(
            "the HTML report needs plotly, which is not installed", hint="pip install 'meldkit[html]'"
        ) from None
    text: str = get_plotlyjs()
    assert "</script" not in text.lower()
    return text


def plotly_text(text: str) -> str:
    """Text as plotly shows it unchanged; of itself it reads tags and entities in it."""
    return html.escape(text, quote=False)


def cell_text(value: Cell, digits: int = 4) -> str:
    """A value as tables show it."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool | str):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}g}"


@lru_cache
def _own(name: str) -> str:
    return (files("meldkit.report.html") / name).read_text("utf-8")


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
