"""The notebook runs from its first cell to its last, and is stored without what it printed."""

import json
import os
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "examples" / "first_hour.ipynb"

pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")


def execute(folder: Path, **environment: str):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(PATH, as_version=4)
    settings = {"OMP_NUM_THREADS": "1", "MPLBACKEND": "module://matplotlib_inline.backend_inline", **environment}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}})
        client.execute()
    return notebook


def printed(notebook) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)


@pytest.mark.filterwarnings("ignore")  # of the client and its event loop
def test_it_runs_with_tiny_settings(tmp_path):
    notebook = execute(tmp_path, DTUNE_NOTEBOOK_ITERATIONS="1")
    said = printed(notebook)
    assert "WRONG" not in said
    assert float(said.partition("fresh ratio from 1: ")[2].split()[0]) < 1e-5
    assert "DecisionTransformer of" in said
    pictures = [output for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    assert any("image/png" in output["data"] for output in pictures)
    assert (tmp_path / "runs" / "first-hour" / "checkpoints" / "best").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_it_learns_as_it_says(tmp_path):
    said = printed(execute(tmp_path))
    best = int(said.partition(" before, ")[2].split()[0])
    assert best > 500


def test_it_is_stored_without_output():
    cells = json.loads(PATH.read_text())["cells"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code")
    assert os.path.getsize(PATH) < 20_000
