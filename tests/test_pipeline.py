"The whole chain at its smallest: it runs, it skips, it keeps its settings."
import json
import re
import shlex
import shutil
import time
from html.parser import HTMLParser

from conftest import ROOT, command, executed

from t2igen.core.stages import STAGES
from t2igen.settings import existing_run


def first_run(tiny) -> dict:
    "What the command that made the tiny run printed, and its seconds."
    return json.loads((tiny.parent / "first.json").read_text())


def test_every_stage_is_done(tiny):
    first = first_run(tiny)
    assert executed(first["stdout"]) == list(STAGES)
    assert "the talk" in first["stdout"] and "peak memory" in first["stdout"]
    run = existing_run(tiny)
    for name, stage in STAGES.items():
        assert run.is_current(name)
        assert (tiny / "notebooks" / f"{stage.notebook}.ipynb").exists()
        assert all((tiny / output).exists() for output in stage.outputs)
    assert not [p for p in tiny.rglob("*") if ".tmp" in p.name]


def test_the_terminal_is_quiet(tiny):
    first = first_run(tiny)
    lines = [line for line in first["stdout"].splitlines() if line.strip()]
    assert len(lines) < 60, first["stdout"]
    assert "Warning" not in first["stderr"] and "Traceback" not in first["stderr"]


def test_stage_notebooks_ran_to_their_end(tiny):
    for stage in STAGES.values():
        book = json.loads((tiny / "notebooks" / f"{stage.notebook}.ipynb").read_text())
        code = [c for c in book["cells"] if c["cell_type"] == "code"]
        assert all(c["execution_count"] for c in code)
        kinds = [output["output_type"] for c in code for output in c["outputs"]]
        assert "error" not in kinds and "display_data" in kinds


def test_metrics_say_what_the_design_promises(tiny):
    metrics = json.loads((tiny / "metrics.json").read_text())
    for key in ("schema", "profile", "dataset", "seed", "blip", "vqvae", "prior", "generated",
                "controls", "talk", "reasons", "seconds", "memory_mib"):
        assert key in metrics, key
    assert set(metrics["seconds"]) == {*STAGES, "total"}
    assert set(metrics["memory_mib"]) == set(STAGES)
    total = sum(metrics["seconds"][s] for s in STAGES)
    assert metrics["seconds"]["total"] >= total - 0.1
    keys = {
        "bleu", "meteor", "meteor_exact_stem", "rouge1", "rougeL", "lpips",
        "blip_feature_distance", "attribute_accuracy", "exact_match", "matching", "diversity",
        "frechet_blip", "precision_blip", "recall_blip",
    }
    controls = ("real_images", "reconstructions", "shuffled_prompts")
    for figures in (*metrics["generated"].values(), *(metrics["controls"][c] for c in controls)):
        assert keys <= set(figures)
    for baselines in metrics["baselines"].values():
        assert set(baselines) == {"nearest_caption", "random_training", "mean_image"}
        found = [f["blip_feature_distance"] for f in baselines.values()]
        assert all(f["value"] >= 0 for f in found if f)


class Page(HTMLParser):
    "Collects what a page would fetch, its pictures and its links."

    def __init__(self, text):
        super().__init__()
        self.fetched = []
        self.pictures = []
        self.links = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        inline = ("data:image/png;base64,", "data:image/webp;base64,")
        for key, value in attributes:
            if key == "src":
                (self.pictures if value.startswith(inline) else self.fetched).append(value)
            if key == "href":
                self.links.append(value)
        if tag in ("script", "link", "iframe"):
            self.fetched.append(tag)


def test_report_is_one_page(tiny):
    page = Page((tiny / "report.html").read_text(encoding="utf-8"))
    assert page.fetched == [] and len(page.pictures) > 16
    assert page.links and all((tiny / link).exists() for link in page.links)


def times(folder) -> dict:
    "When each file of a run was changed, but for what a reading command may touch."
    passing = ("lock.mdb", ".run.lock")
    files = [p for p in folder.rglob("*") if p.is_file() and p.name not in passing]
    return {p: p.stat().st_mtime_ns for p in files}


def test_a_second_run_does_nothing(tiny):
    before = times(tiny)
    start = time.perf_counter()
    done = command("run", "--run-dir", tiny)
    assert done.returncode == 0 and executed(done.stdout) == []
    assert time.perf_counter() - start < 30
    assert before == times(tiny)


def test_reading_commands_write_nothing(tiny, tmp_path):
    before = times(tiny)
    for args in (["verify", tiny], ["config", "--run-dir", tiny],
                 ["generate", "a red ship", "--run-dir", tiny, "-o", tmp_path / "ship.png"]):
        assert command(*args).returncode == 0, args
    assert before == times(tiny)


def test_one_setting_reruns_what_follows_from_it(tiny):
    def entries():
        return json.loads((tiny / "manifest.json").read_text())["stages"]

    before = entries()
    seconds = json.loads((tiny / "metrics.json").read_text())["seconds"]
    done = command("run", "--run-dir", tiny, "-p", "prior.dropout=0.2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert executed(done.stdout) == ["prior", "samples", "metrics"]
    assert "prior.dropout: 0.05 -> 0.2" in done.stdout
    assert "run again: prior, samples, metrics" in done.stdout
    assert entries()["vqvae"] == before["vqvae"]
    assert entries()["prior"]["fingerprint"] != before["prior"]["fingerprint"]
    after = json.loads((tiny / "metrics.json").read_text())["seconds"]
    assert after["vqvae"] == seconds["vqvae"]                    # what was skipped keeps its time
    assert "dropout: 0.2" in (tiny / "params.yaml").read_text()
    done = command("run", "--run-dir", tiny)                     # and the setting stays
    assert done.returncode == 0 and executed(done.stdout) == []
    assert "dropout: 0.2" in (tiny / "params.yaml").read_text()


def test_a_command_that_cannot_be_leaves_the_settings(tiny):
    before = (tiny / "params.yaml").read_bytes()
    done = command("run", "--run-dir", tiny, "-p", "prior.dropout=0.3", "--until", "vqve")
    assert done.returncode == 2 and (tiny / "params.yaml").read_bytes() == before


def test_edited_notebooks_are_executed(tiny, tmp_path):
    run, books = tmp_path / "run", tmp_path / "books"
    assert command("notebooks", books).returncode == 0
    path = books / "1_data.ipynb"
    book = json.loads(path.read_text(encoding="utf-8"))
    cell = {"cell_type": "code", "id": "mine", "metadata": {}, "execution_count": None,
            "outputs": [], "source": ["print('my own cell', len(data))"]}
    book["cells"].append(cell)
    path.write_text(json.dumps(book), encoding="utf-8")
    args = ["run", "--profile", "tiny", "--run-dir", run, "--until", "data"]
    done = command(*args, "--notebooks", books)
    assert done.returncode == 0, done.stderr
    assert "my own cell" in (run / "notebooks" / "1_data.ipynb").read_text(encoding="utf-8")
    assert executed(command("run", "--run-dir", run, "--until", "data").stdout) == []
    book["cells"][-1]["source"] = ["raise RuntimeError('a broken picture')"]
    book["cells"][-1]["metadata"] = {"tags": ["raises-exception"]}
    path.write_text(json.dumps(book), encoding="utf-8")
    done = command("run", "--run-dir", run, "--until", "data")
    assert done.returncode == 0 and executed(done.stdout) == ["data"], done.stdout + done.stderr
    assert "could not be drawn" in done.stdout + done.stderr
    assert existing_run(run).is_current("data")


ADVICE = re.compile(r"`(t2igen [^`{]*(?:\{[^`]*?\}[^`{]*)*)`")


def test_advised_commands_exist(t2igen):
    "Every command in backquotes in the code names a command and options that there are."
    found = set()
    for room in (ROOT / "t2igen").rglob("*.py"):
        found.update(ADVICE.findall(room.read_text(encoding="utf-8")))
    assert len(found) > 5
    for line in found:
        words = shlex.split(re.sub(r"\{.*?\}", "X", line).replace("'", ""))[1:]
        names = [w for w in words if re.fullmatch(r"[a-z-]+", w)][:2]
        grouped = names[:1] in (["data"], ["codes"])
        code, out, err = t2igen(*(names[:2] if grouped else names[:1]), "--help")
        assert code == 0, (line, err)
        options = [w for w in words if w.startswith("--")]
        assert all(option in out for option in options), (line, out)


def test_a_moved_run_is_whole(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "moved")
    done = command("verify", tmp_path / "moved")
    assert done.returncode == 0 and set(re.findall(r"\S+$", done.stdout, re.M)) == {"ok"}
