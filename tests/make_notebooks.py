"""Executes chapters and tutorials of the course and keeps their outputs, small and the same.

    python tests/make_notebooks.py             all of them, each in place
    python tests/make_notebooks.py 05c 07d     those whose names begin so
    python tests/make_notebooks.py --check     writes nothing; fails where an output would change
    python tests/make_notebooks.py --list      their names

On one machine two calls give the same bytes; on another processor a training rounds differently.
"""
import argparse
import base64
import io
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from execnb.nbio import nb2str
from nbclient import NotebookClient
from nbdev.clean import clean_nb
from PIL import Image

from t2igen.pipeline.kernels import Kernel

ROOT = Path(__file__).resolve().parents[1]
LESSONS = (
    "01d_gallery.ships", "01j_gallery.scene",
    "02b_data.records", "02g_data.pixels", "02t_data.augment",
    "03c_training.optim", "03e_training.loop",
    "04f_blip.matcher", "04g_blip.losses",
    "05b_vqvae.codebooks", "05c_vqvae.quantizers", "05e_vqvae.model", "05j_vqvae.latents",
    "06d_codes.store",
    "07b_prior.layers", "07d_prior.pixelsnail", "07h_prior.diffusion",
    "08b_sampling.draw",
    "09b_metrics.statistics", "09c_metrics.captions", "09d_metrics.pictures",
)
BESIDE = ("02t_data.augment", "05b_vqvae.codebooks")      # parts of the lesson before them
TUTORIALS = ("first_hour", "own_pictures", "what_can_go_wrong", "batch_runs", "musti",
             "laptop_to_gpus")
PAGES = ("playground",)    # executed like a tutorial, but a page of controls, not a lesson
# Not here are `reading_a_run` and `vqvae_study`: they show a finished run of yours.
MOST = 800_000             # bytes a chapter
PLAIN = 60_000             # bytes of a picture that keeps all its colors
SECONDS = 600              # a cell
WIDGET = "application/vnd.jupyter.widget-view+json"
SETUP = """\
import matplotlib_inline.backend_inline
from matplotlib_inline.config import InlineBackend
InlineBackend.instance().print_figure_kwargs = {"bbox_inches": "tight", "dpi": 96}
"""
QUIET = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONHASHSEED": "0",
         "T2IGEN_DEVICE": "cpu", "COLUMNS": "100"}


def chapters(starts=()) -> list[Path]:
    "The lesson chapters and tutorials, or those whose names begin with one of `starts`."
    known = [ROOT/"nbs"/f"{name}.ipynb" for name in LESSONS]
    known += [ROOT/"nbs"/"tutorials"/f"{name}.ipynb" for name in (*TUTORIALS, *PAGES)]
    return [path for path in known if not starts or path.name.startswith(tuple(starts))]


def executed(path: Path) -> list[list]:
    "The outputs of each cell of a chapter, from a kernel of its own."
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(SETUP))
    client = NotebookClient(
        notebook, timeout=SECONDS, km=Kernel(kernel_name="python3"), store_widget_state=False,
        coalesce_streams=True, resources={"metadata": {"path": str(path.parent)}})
    client.execute()
    return [cell.get("outputs", []) for cell in notebook.cells[1:]]


def small_picture(data: str) -> str:
    "A PNG in base64 without notes of its maker; a large one with 256 colors."
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    image.load()
    bare = Image.frombytes(image.mode, image.size, image.tobytes())
    plain = bare.convert("RGB") if bare.mode == "RGBA" else bare
    file = io.BytesIO()
    plain.save(file, "PNG", optimize=True)
    if file.tell() > PLAIN and plain.mode == "RGB":
        file = io.BytesIO()
        plain.quantize(256, Image.Quantize.MEDIANCUT).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def clean_text(text: str, timed: bool) -> str:
    "`text` without places of this machine and addresses; without its numbers if it is `timed`."
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", text)
    for place in (ROOT, tempfile.gettempdir(), Path.home()):
        text = re.sub(re.escape(str(place)) + r"(/tmp\w+)?", "...", text)
    return re.sub(r"\d+(\.\d+)?", "?", text) if timed else text


def clean_output(output: dict, timed: bool) -> dict | None:
    "An output as it is kept; None for what was said on stderr, and for a widget, which is dead."
    if output["output_type"] == "stream":
        kept = clean_text(output["text"], timed)
        bare = {"output_type": "stream", "name": "stdout", "text": kept.splitlines(True)}
        return None if output["name"] == "stderr" else bare
    if output["output_type"] == "error":
        return {**output, "traceback": []}
    if WIDGET in output["data"]:
        return None
    data = {}
    shown = {"image/png", "text/markdown"} & output["data"].keys()
    for kind, value in output["data"].items():
        if kind == "image/png":
            data[kind] = small_picture(value)
        elif kind.startswith("text/") and not (shown and kind == "text/plain"):
            data[kind] = clean_text(value, timed).splitlines(True)
    if not data:
        return None
    bare = {"output_type": output["output_type"], "data": data, "metadata": {}}
    return {**bare, "execution_count": None} if "execution_count" in output else bare


def pictured(outputs: list) -> bool:
    "Whether there is a picture among the outputs of a cell."
    return any("image/png" in output.get("data", {}) for output in outputs)


def with_outputs(path: Path) -> str:
    """The text of a chapter's file, with its outputs and without anything else that changes. A cell
    tagged `timing` that drew what it measured keeps its picture; who wants a new one clears it."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell, outputs in zip(notebook["cells"], executed(path), strict=True):
        if cell["cell_type"] == "code":
            timed = "timing" in cell["metadata"].get("tags", [])
            if timed and pictured(cell["outputs"]):
                continue
            hidden = re.match(r"#\|\s*hide\s*$", "".join(cell["source"]), re.M)
            shown = [] if hidden else outputs
            kept = (clean_output(dict(output), timed) for output in shown)
            cell["outputs"] = [output for output in kept if output]
    clean_nb(notebook, allowed_cell_metadata_keys=["tags"])
    return nb2str(notebook)


def pictures_in(text: str) -> int:
    "How many pictures a chapter's file holds."
    return text.count('"image/png":')


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("starts", nargs="*", help="only chapters whose names begin so")
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--list", action="store_true", help="only say which chapters")
    args = parser.parse_args()
    os.environ.update(QUIET)
    faults = []
    for path in chapters(args.starts):
        if args.list:
            print(path.stem)
            continue
        began = time.monotonic()
        text = with_outputs(path)
        size = len(text.encode())
        same = text == path.read_text(encoding="utf-8")
        print(f"{path.stem:26} {time.monotonic() - began:4.0f} s {size/1000:5.0f} KB "
              f"{pictures_in(text):2} pictures{', as it was' if same else ''}", flush=True)
        if size > MOST:
            faults.append(f"{path.stem} has more than {MOST//1000} KB: draw less, or smaller.")
        if args.check and not same:
            faults.append(f"{path.stem}: its outputs are not those that it has.")
        if not args.check:
            path.write_text(text, encoding="utf-8")
    sys.exit("\n".join(faults) or None)


if __name__ == "__main__":
    main()
