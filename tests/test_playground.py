"The playground as a user meets it: in JupyterLab, in a browser; and what its sliders do."
import base64
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

NOTEBOOK = ROOT / "nbs" / "tutorials" / "playground.ipynb"
LONG = 300_000       # milliseconds that a busy machine may need for one thing


def test_papermill_executes_the_notebook(tiny, tmp_path):
    out = tmp_path / "out.ipynb"
    command = [sys.executable, "-m", "papermill", str(NOTEBOOK), str(out), "-p", "run_dir",
               str(tiny), "--log-level", "ERROR", "--no-progress-bar"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    kinds = set()
    for cell in nbformat.read(out, 4).cells:
        for output in cell.get("outputs", []):
            kinds.update(output.get("data", {}))
    assert {"image/png", "application/vnd.jupyter.widget-view+json"} <= kinds


def test_a_picture_stands_in_the_notebook():
    book = nbformat.read(NOTEBOOK, 4)
    outputs = [o for c in book.cells if c.cell_type == "code" for o in c.outputs]
    png = [o["data"]["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    image = Image.open(io.BytesIO(base64.b64decode(png[0])))
    assert np.asarray(image.convert("L")).std() > 10
    assert len(png[0]) < 400_000


def test_a_low_temperature_makes_seeds_agree(tiny):
    from t2igen.play.panel import Panel
    panel = Panel(tiny)
    panel.controls.number.value = 4

    def agreement(temperature: float) -> float:
        "The share of top codes that two pictures of different seeds have in common."
        panel.controls.knobs["temperature"].value = temperature
        panel.draw(panel.controls.wish(), panel.opened)
        pictures = panel.history.drawings[0]
        assert {d.settings["temperature"] for d in pictures} == {temperature}
        first, *others = [d.top for d in pictures]
        return float(np.mean([(first == other).float().mean() for other in others]))

    assert agreement(0.1) > agreement(1.5) + 0.1


def chromium() -> str:
    "A browser for Playwright, or an empty string."
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return ""
    with sync_playwright() as p:
        own = p.chromium.executable_path
    return own if os.path.exists(own) else ""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def lab(tiny, tmp_path_factory):
    "The address of a JupyterLab that `t2igen play` started in an empty folder, and that folder."
    pytest.importorskip("playwright", reason="Playwright is not installed")
    if not chromium():
        pytest.skip("there is no Chromium")
    folder = tmp_path_factory.mktemp("my pictures")
    port = free_port()
    own = {name: str(tmp_path_factory.mktemp("jupyter")) for name in (
        "JUPYTER_CONFIG_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")}
    options = ["--no-browser", f"--port={port}", "--IdentityProvider.token=", "--allow-root",
               "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
               "--LabApp.news_url=None"]
    command = [sys.executable, "-m", "t2igen.cli", "play", "--run-dir", str(tiny), "--", *options]
    log = folder / "lab.log"
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=folder, env={**os.environ, **own}, stdout=file,
                                   stderr=subprocess.STDOUT, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{address}/api", process, log)
        yield address, folder
    finally:
        process.terminate()
        assert process.wait(60) == 0


def wait_for(address: str, process, log):
    "Until the server answers."
    end = time.monotonic() + LONG / 1000
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(address, timeout=5)
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def page(lab):
    "The playground, opened and run; `page.heard` has what the console said of errors."
    from playwright.sync_api import sync_playwright
    address, _ = lab
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(LONG)
        page.heard = []
        page.on("console", lambda m: page.heard.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: page.heard.append(str(error)))
        page.goto(f"{address}/lab/tree/playground.ipynb")
        page.locator("#jp-main-statusbar", has_text="| Idle").wait_for()    # it has a kernel
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        page.locator(".t2igen-play").wait_for()
        yield page
        browser.close()


def button(page, words: str):
    return page.locator(".t2igen-play").get_by_role("button", name=words, exact=True)


def press_when_it_can_be(page, words: str):
    "From now on, in the page itself: a drawing may be done before a test's own click arrives."
    page.evaluate("""button => {
        const waiting = setInterval(() => {
            if (button.disabled) return;
            button.click();
            clearInterval(waiting);
        }, 5);
    }""", button(page, words).element_handle())


def said(page, words: str):
    "Wait until the page says this."
    page.locator(".t2igen-said", has_text=words).wait_for()


def saved(page, place: str = ".t2igen-stage") -> list[np.ndarray]:
    "The pictures that can be downloaded, as arrays `h w c`."
    links = page.locator(f"{place} a[download$='.png']")
    urls = [link.get_attribute("href") for link in links.all()]
    files = [io.BytesIO(base64.b64decode(url.partition(",")[2])) for url in urls]
    return [np.asarray(Image.open(file)).astype(int) for file in files]


def slide(page, words: str, value: float):
    "Set a slider by the number beside it."
    row = page.locator(".t2igen-play .widget-slider", has=page.get_by_text(words, exact=True))
    readout = row.locator(".widget-readout")
    readout.fill(str(value))
    readout.press("Enter")


def draw(page, prompt: str, number: int):
    "Type, and press Generate."
    page.locator(".t2igen-prompt textarea").fill(prompt)
    slide(page, "pictures", number)
    seed = page.locator(".t2igen-seed input")
    seed.fill("0")                                  # whatever the test before has drawn
    seed.press("Enter")
    button(page, "Generate").click()


def test_generate_draws_and_another_seed_draws_others(page):
    draw(page, "a red ship in a storm", 2)
    said(page, "Drawn in")
    first = saved(page)
    assert len(first) == 2 and first[0].std() > 1
    link = page.locator(".t2igen-stage a[download$='.json']").first.get_attribute("href")
    notes = json.loads(base64.b64decode(link.partition(",")[2]))
    assert notes["prompt"] == "a red ship in a storm" and notes["seed"] == 0
    button(page, "Another seed").click()
    page.locator(".t2igen-frame", has_text="seed 2").get_by_text("match").wait_for()
    second = saved(page)
    assert len(second) == 2 and (first[0] != second[0]).any()
    assert page.locator(".t2igen-history .t2igen-past").count() == 2


def test_stop_stops(page):
    before = page.locator(".t2igen-history .t2igen-past").count()
    press_when_it_can_be(page, "Stop")
    draw(page, "a red ship in a storm", 8)
    said(page, "Stopped after")
    assert page.locator(".t2igen-stage .t2igen-frame").count() == 8
    assert page.locator(".t2igen-history .t2igen-past").count() == before
    button(page, "Generate").and_(page.locator(":enabled")).wait_for()


def test_an_error_is_said_in_the_page_and_ends_nothing(page):
    draw(page, "  ", 1)
    page.locator(".t2igen-said.error", has_text="The prompt is empty").wait_for()
    assert page.locator(".jp-OutputArea-output[data-mime-type*='stderr']").count() == 0
    draw(page, "a dog", 1)
    said(page, "Drawn in")


def test_a_closer_look_and_a_changed_code(page):
    draw(page, "a red ship", 1)
    said(page, "Drawn in")
    button(page, "Look closer").click()
    page.locator(".t2igen-closer figure:visible", has_text="ship").wait_for()
    tabs = page.locator(".t2igen-closer")
    tabs.get_by_role("tab", name="Neighbors").click()
    page.locator(".t2igen-closer figure", has_text="away").first.wait_for()
    tabs.get_by_role("tab", name="Codes").click()
    slide(page, "code", 5)
    button(page, "Change the code").click()
    page.locator(".t2igen-code-pane figure", has_text="what differs").wait_for()


def test_redraw_leaves_the_rest_untouched(page):
    draw(page, "a red ship", 1)
    said(page, "Drawn in")
    before, = saved(page)
    button(page, "Look closer").click()
    said(page, "closer: below the pictures")
    tabs = page.locator(".t2igen-closer")
    tabs.get_by_role("tab", name="Redraw").click()
    for name, value in dict(left=32, right=64, top=0, bottom=64).items():
        slide(page, name, value)
    button(page, "Redraw").click()
    page.locator(".t2igen-stage .t2igen-frame", has_text="seed 1").get_by_text("match").wait_for()
    after, = saved(page)
    assert (before[:, :32] == after[:, :32]).all()
    assert (before[:, 32:] != after[:, 32:]).any()


def test_a_brush_says_what_to_redraw(page):
    pytest.importorskip("anywidget")
    before, = saved(page)
    button(page, "Look closer").click()
    said(page, "closer: below the pictures")
    page.locator(".t2igen-closer").get_by_role("tab", name="Redraw").click()
    button(page, "brush").click()
    canvas = page.locator(".t2igen-canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 30, box["y"] + 200)
    page.mouse.down()
    page.mouse.move(box["x"] + 220, box["y"] + 200, steps=5)
    page.mouse.up()
    button(page, "Redraw").click()
    page.locator(".t2igen-stage .t2igen-frame", has_text="seed 2").get_by_text("match").wait_for()
    after, = saved(page)
    assert (before[:40] == after[:40]).all()
    assert (before[44:56, 8:54] != after[44:56, 8:54]).any()


def test_the_console_heard_of_no_error(page):
    assert page.heard == []
