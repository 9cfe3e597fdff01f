"""The chapters of the course have one shape, and their outputs are kept without what changes."""
import base64
import io
import json
import re
import sys
from types import SimpleNamespace

import make_notebooks
import pytest
from make_notebooks import BESIDE, LESSONS, ROOT, TUTORIALS, clean_output, clean_text
from PIL import Image, PngImagePlugin

sys.path.insert(0, str(ROOT))

from docs import pages  # noqa: E402
from docs.processors import INSTALL  # noqa: E402

PARTS = ("minutes.**", "The question", "smallest version", "reak it", "What you saw",
         "## Exercises", "## References")


@pytest.mark.parametrize("name", sorted(set(LESSONS) - set(BESIDE)))
def test_a_lesson_has_its_parts(name):
    cells = json.loads((ROOT/"nbs"/f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    prose = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    places = [prose.find(part) for part in PARTS]
    assert -1 not in places and places == sorted(places), dict(zip(PARTS, places))
    assert "redict" in prose
    tasks = prose[prose.find("## Exercises"):]
    assert 4 <= len(re.findall(r"^\d+\. ", tasks, re.MULTILINE)) <= 6
    solved = re.findall(r"<summary>Solution of (\d)", tasks)
    assert len(solved) >= 2
    solutions = [c for c in cells if "solution" in c["metadata"].get("tags", [])]
    assert len(solutions) == len(solved)
    assert all("assert" in "".join(c["source"]) for c in solutions)


COURSE = {*pages.lessons(), *(f"{name}.ipynb" for name in LESSONS)}
COURSE |= {path for path in pages.notebooks() if path.startswith("tutorials/")}


@pytest.mark.parametrize("path", sorted(COURSE))
def test_in_colab_a_lesson_installs_what_it_needs(path):
    "Before anything of t2igen is imported, and nowhere else is anything done."
    cells = json.loads((pages.NBS/path).read_text(encoding="utf-8"))["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    at = [INSTALL in source for source in code].index(True)
    assert not any(re.search(r"^(from|import) t2igen", source, re.M) for source in code[:at])
    here = {}
    exec(code[at], here)                # where t2igen is, no IPython is asked for
    assert here["importlib"].util.find_spec("t2igen")
    asked = []
    shell = SimpleNamespace(run_line_magic=lambda *words: asked.append(words))
    elsewhere = code[at].replace('find_spec("t2igen")', 'find_spec("no_t2igen")')
    exec(elsewhere, {"get_ipython": lambda: shell})
    assert asked == [("pip", "install -q t2igen")]


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_has_its_parts(name):
    path = ROOT/"nbs"/"tutorials"/f"{name}.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    prose = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    parts = (" minutes", "## The question", "redict:*", "## What you saw", "## Exercises")
    places = [prose.find(part) for part in parts]
    assert -1 not in places and places == sorted(places), dict(zip(parts, places))
    tasks = prose[prose.find("## Exercises"):]
    assert 4 <= len(re.findall(r"^\d+\. ", tasks, re.MULTILINE)) <= 6
    solutions = [c for c in cells if "solution" in c["metadata"].get("tags", [])]
    assert len(solutions) == len(re.findall(r"<summary>Solution of \d", tasks)) == 2
    assert any("assert" in "".join(c["source"]) for c in solutions)
    pictured = [i for i, c in enumerate(cells) if '"image/png"' in json.dumps(c.get("outputs"))]
    assert len(pictured) >= 2 and pictured[0] < 8


def test_kept_text_names_no_place_and_no_time():
    text = f"{ROOT}/nbs and <thing at 0x7f00aa> took 12.5 ms"
    assert clean_text(text, timed=False) == ".../nbs and <thing> took 12.5 ms"
    assert clean_text("took 12.5 ms", timed=True) == "took ? ms"


def test_kept_pictures_have_no_maker_and_no_second_text():
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Software", "some version")
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG", pnginfo=notes)
    data = {"image/png": base64.b64encode(file.getvalue()).decode(), "text/plain": "<Figure>"}
    kept = clean_output({"output_type": "display_data", "data": data}, timed=False)
    assert list(kept["data"]) == ["image/png"]
    image = Image.open(io.BytesIO(base64.b64decode(kept["data"]["image/png"])))
    assert image.info == {} and image.convert("RGB").getpixel((0, 0)) == (255, 0, 0)
    assert clean_output({"output_type": "stream", "name": "stderr", "text": "x"}, False) is None


def test_a_dead_widget_is_not_kept():
    data = {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "VBox(...)"}
    assert clean_output({"output_type": "execute_result", "data": data}, timed=False) is None


def test_a_picture_of_a_timing_stays_until_it_is_cleared(tmp_path, monkeypatch):
    def drawn(what: str) -> dict:
        file = io.BytesIO()
        Image.new("RGB", (8, 8), what).save(file, "PNG")
        data = {"image/png": base64.b64encode(file.getvalue()).decode()}
        return {"output_type": "display_data", "data": data, "metadata": {}}

    cells = [dict(cell_type="code", id=name, source="draw()", execution_count=None,
                  metadata={"tags": tags}, outputs=[drawn("red")] if kept else [])
             for name, tags, kept in (("a", ["timing"], True), ("b", ["timing"], False),
                                      ("c", [], True))]
    path = tmp_path / "race.ipynb"
    notebook = dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)
    path.write_text(json.dumps(notebook), encoding="utf-8")
    monkeypatch.setattr(make_notebooks, "executed", lambda path: [[drawn("blue")]] * 3)
    found = json.loads(make_notebooks.with_outputs(path))["cells"]
    pictures = [base64.b64decode(cell["outputs"][0]["data"]["image/png"]) for cell in found]
    colors = [Image.open(io.BytesIO(p)).convert("RGB").getpixel((0, 0)) for p in pictures]
    assert colors == [(255, 0, 0), (0, 0, 255), (0, 0, 255)]
