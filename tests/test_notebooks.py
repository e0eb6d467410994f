"""The notebooks of docs/notebooks run to their end in an empty folder."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
MOST_BYTES = 300_000


@pytest.mark.parametrize(
    "name",
    ["score_profiles", pytest.param("plates_to_mechanisms", marks=pytest.mark.slow)],
)
def test_notebooks_run(tmp_path, name):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    NotebookClient(
        notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_notebooks_are_stored_small_and_with_their_outputs():
    paths = sorted(FOLDER.glob("*.ipynb"))
    assert len(paths) == 2
    for path in paths:
        assert path.stat().st_size < MOST_BYTES
        code = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        assert all(cell.execution_count for cell in code)
        assert sum(bool(cell.outputs) for cell in code) >= len(code) - 2
