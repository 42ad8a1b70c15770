"""The examples run as they are, on the demo's real models."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_quickstart_notebook_runs_from_start_to_end_and_the_merge_has_both_skills() -> None:
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "name=Erik Lindgren; age=41; city=Tampere" in printed
    assert "garden window candle" in printed
