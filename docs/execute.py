"""Execute the notebooks whose outputs are in the repository: `python -m docs.execute [GLOB ...]`.

Outputs are kept without what differs from call to call: counts, addresses, folders, warnings."""
import re
import sys
from fnmatch import fnmatch
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from docs.pages import NBS, lessons, notebooks

LARGEST = 800_000       # bytes of a notebook
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
FIGURE = re.compile(r"<Figure size [^>]*>")
FOLDER = re.compile(r"/(?:tmp|var/folders|home|root|work|Users)/[^\s'\"<>)]*")


def wanted(globs: list[str]) -> list[str]:
    "The course's chapters and the tutorials; with `globs` those that fit one, as in `05*`."
    shown = [p for p in notebooks() if p.startswith("tutorials/")] + lessons()
    return [p for p in shown if not globs or any(fnmatch(p, glob) for glob in globs)]


def steady(text: str) -> str:
    "Text without addresses in memory and folders of this machine."
    return FOLDER.sub("...", ADDRESS.sub("", text))


def tidy(cell):
    "Keep of a cell's outputs what is for a reader, and the same every time."
    kept = []
    for output in cell.get("outputs", []):
        if output.output_type == "stream":
            if output.name == "stderr":
                continue
            output.text = steady(output.text)
        data = output.get("data", {})
        data.pop("application/vnd.jupyter.widget-view+json", None)
        for kind in ("text/plain", "text/html"):
            if kind in data:
                data[kind] = steady(data[kind])
        if FIGURE.fullmatch(data.get("text/plain", "")) and len(data) > 1:
            data.pop("text/plain")
        if "execution_count" in output:
            output.execution_count = None
        if output.output_type == "stream" or data:
            kept.append(output)
    cell.outputs = kept
    cell.execution_count = None
    cell.metadata.pop("execution", None)


def execute(file: Path):
    "Execute a notebook where it lies, and write it with its outputs; a failing cell raises."
    notebook = nbformat.read(file, as_version=4)
    resources = {"metadata": {"path": str(file.parent)}}
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources=resources).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            tidy(cell)
    notebook.metadata.pop("widgets", None)
    notebook.metadata.pop("language_info", None)
    text = nbformat.writes(notebook, indent=1, ensure_ascii=False)
    if len(text.encode()) > LARGEST:
        sys.exit(f"{file.name} would have {len(text.encode()):,} bytes with its outputs: "
                 f"draw fewer or smaller pictures (at most {LARGEST:,}).")
    file.write_text(text.rstrip("\n") + "\n", encoding="utf-8")


def main():
    for path in wanted(sys.argv[1:]):
        print(path, flush=True)
        execute(NBS / path)


if __name__ == "__main__":
    main()
