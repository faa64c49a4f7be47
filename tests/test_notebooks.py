"""The notebooks run, and what is stored of them is small, complete and about no particular machine."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient


EXAMPLES = Path(__file__).parents[1] / "examples"
SRC = Path(__file__).parents[1] / "src"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
MACHINE = re.compile(r"(?<![\w.])/(home|root|work|tmp|usr|opt|Users|var)/|[A-Z]:\\\\")


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def ids(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_the_notebook_runs(path, monkeypatch):
    """In the folder of the notebook, as Jupyter starts it; with the package of this checkout."""
    paths = [str(SRC), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    client = NotebookClient(read(path), timeout=500, kernel_name="python3", resources={"metadata": {"path": EXAMPLES}})
    executed = client.execute()
    assert not [
        output for cell in executed.cells for output in cell.get("outputs", []) if output.output_type == "error"
    ]


def test_there_are_four_notebooks():
    assert [path.stem for path in NOTEBOOKS] == [
        "01_generate",
        "02_look_inside_the_tree",
        "03_train_a_draft",
        "04_evaluate_and_publish",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_the_stored_notebook_is_small_and_begins_with_prose(path):
    notebook = read(path)
    assert path.stat().st_size < 300_000
    assert len(notebook.cells) <= 25
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith(f"# {int(path.stem[:2])}. ")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_the_outputs_are_stored_with_a_picture_and_without_warnings_or_paths(path):
    outputs = []
    for number, cell in enumerate((cell for cell in read(path).cells if cell.cell_type == "code"), start=1):
        assert cell.execution_count == number, "executed in order, in one go"
        outputs += cell.outputs
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    pictures = {kind for output in outputs for kind in output.get("data", {}) if kind.startswith("image/")}
    assert pictures
    texts = [output.get("text", "") for output in outputs]
    texts += ["".join(output.data.get(kind, "")) for output in outputs if "data" in output for kind in TEXT_KINDS]
    assert not [text for text in texts if MACHINE.search(text)]


TEXT_KINDS = ("text/plain", "text/html", "image/svg+xml")


def test_the_search_for_paths_finds_them():
    assert all(map(MACHINE.search, ("in /home/me/x", "'/tmp/a'", "C:\\\\Users")))
    assert not any(map(MACHINE.search, ("http://a.b/home/x", "mini/target", "a/b")))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_links_between_notebooks_and_to_files_lead_somewhere(path):
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            for link in re.findall(r"\]\((?!https?:)([^)#]+)", cell.source):
                assert (EXAMPLES / link).exists(), link
