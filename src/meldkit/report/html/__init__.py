"""Reports as HTML: one file each, with plots, that needs no network."""

from __future__ import annotations

from meldkit.report.html.file import check_html, write_html
from meldkit.report.html.plan import plan_page

__all__ = ["check_html", "plan_page", "write_html"]
