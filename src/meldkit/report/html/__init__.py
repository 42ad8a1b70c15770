"""Reports as HTML: one file each, with plots, that needs no network."""

from __future__ import annotations

from meldkit.report.html.diff import diff_page
from meldkit.report.html.file import check_html, write_html
from meldkit.report.html.merge import merge_page
from meldkit.report.html.plan import plan_page

__all__ = ["check_html", "diff_page", "merge_page", "plan_page", "write_html"]
