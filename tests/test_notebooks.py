"""Every notebook runs from top to bottom, offline, and shows what was committed."""

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def shown(notebook):
    """The printed text and the number of pictures of each code cell."""
    cells = []
    for cell in notebook.cells:
        outputs = cell.get("outputs", [])
        text = "".join(output.text for output in outputs if output.output_type == "stream")
        cells.append((text, sum("image/png" in output.get("data", {}) for output in outputs)))
    return cells


def test_there_are_notebooks():
    assert [path.name for path in NOTEBOOKS] == [
        "01_from_ratings_to_a_metric.ipynb",
        "02_optimize_a_program.ipynb",
        "03_rerank_a_retriever.ipynb",
        "04_when_to_trust_it.ipynb",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_shows_what_was_committed(path, tmp_path):
    for folder in ("notebooks", "examples"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    committed = nbformat.read(path, as_version=4)
    fresh = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(tmp_path / "notebooks")}}
    NotebookClient(fresh, timeout=300, kernel_name="python3", resources=resources).execute()
    assert shown(fresh) == shown(committed)
    assert sum(pictures for _, pictures in shown(committed)) > 0
    assert not any(output.get("name") == "stderr" for cell in committed.cells for output in cell.get("outputs", []))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_begins_with_its_question_and_the_answer(path):
    first = nbformat.read(path, as_version=4).cells[0]
    assert first.cell_type == "markdown"
    assert "**Question.**" in first.source
    assert "**Answer.**" in first.source
