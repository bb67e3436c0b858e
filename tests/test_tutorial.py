"""docs/tutorial.ipynb runs top to bottom, and shows plain lines as in a log file."""

import ast
import os
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorial.ipynb"


@pytest.fixture(scope="module")
def notebook() -> Any:
    return nbformat.read(TUTORIAL, as_version=4)


def shown(cell: Any, kind: str = "stream") -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == kind and output.name == "stdout")


def test_it_is_kept_without_outputs(notebook: Any) -> None:
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert max(len(line) for cell in notebook.cells for line in cell.source.splitlines()) <= 120
    for cell in code:
        ast.parse(cell.source)
    linked = [part.partition(")")[0] for cell in notebook.cells for part in cell.source.split("](")[1:]]
    assert linked
    assert [page for page in linked if not (TUTORIAL.parent / page).is_file()] == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")  # of the client's libraries
def test_it_runs(notebook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "JUPYTER_PLATFORM_DIRS", "1")
    resources = {"metadata": {"path": str(tmp_path)}}
    done = nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3", resources=resources).execute()
    cells = {cell.id: cell for cell in done.cells}
    rounds = [line for line in shown(cells["run"]).splitlines() if line.startswith("round ")]
    assert [line.split()[1] for line in rounds] == [f"{number}/12" for number in range(13)]
    assert "QAT" in rounds[-1]
    assert {output.output_type for output in cells["run"].outputs} == {"stream"}, "a display where lines are meant"
    assert float(shown(cells["deployed"])) > 0.7
    [picture] = cells["picture"].outputs
    assert picture.data["image/svg+xml"].startswith("<svg")
