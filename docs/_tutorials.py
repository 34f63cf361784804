"""The tutorials: scripts of ``examples/``, executed and stored as notebooks.

    python docs/_tutorials.py        # those whose scripts have changed
    python docs/_tutorials.py --all

A script is a notebook in the percent format of jupytext. The notebook in
``docs/tutorials/`` has the same cells and what they printed and drew. Building the site
only reads it, and fails if it is of another version of the script.
"""

import re
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
SECONDS = 600  # for a cell


def stored_at(script):
    """The notebook of a script."""
    return ROOT / "docs" / "tutorials" / f"{script.stem}.ipynb"


def cells_of(notebook):
    """What the two must share."""
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def is_current(script):
    """Whether the stored notebook has the cells of the script."""
    path = stored_at(script)
    if not path.exists():
        return False
    return cells_of(nbformat.read(path, 4)) == cells_of(jupytext.read(script))


def execute(script):
    """Run a script cell by cell, and store what came out.

    Raises:
      RuntimeError: a cell warns.
    """
    notebook = jupytext.read(script)
    resources = {"metadata": {"path": str(ROOT)}}
    NotebookClient(
        notebook,
        timeout=SECONDS,
        resources=resources,
        record_timing=False,
        coalesce_streams=True,
    ).execute()
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i}"
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                raise RuntimeError(f"{script.name}, cell {i}: {output.text}")
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel})
    path = stored_at(script)
    path.parent.mkdir(exist_ok=True)
    nbformat.write(notebook, path)


def page_of(script):
    """The page of the site, and its figures by their names.

    Raises:
      ValueError: the stored notebook is of another version of the script.
    """
    if not is_current(script):
        raise ValueError(
            f"docs/tutorials/{script.stem}.ipynb is not of this version of "
            f"examples/{script.name}: run python docs/_tutorials.py"
        )
    notebook = nbformat.read(stored_at(script), 4)
    notebook.metadata.language_info = nbformat.from_dict({"name": "python"})
    resources = {"unique_key": script.stem, "output_files_dir": script.stem}
    markdown, resources = MarkdownExporter().from_notebook_node(notebook, resources)
    markdown = re.sub(r"!\[png\]", "![What the cell above draws]", markdown)
    return markdown, resources["outputs"]


def main():
    """Execute what has to be."""
    for script in SCRIPTS:
        if "--all" in sys.argv or not is_current(script):
            print(script.name, flush=True)
            execute(script)


if __name__ == "__main__":
    main()
