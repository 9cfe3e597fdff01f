"The whole chain at its smallest: it runs, it skips."
import json, time
from html.parser import HTMLParser

from conftest import command, executed
from t2igen.core import STAGES, Run

def test_every_stage_is_done(tiny):
    first = json.loads((tiny.parent/"first.json").read_text())
    assert executed(first["stdout"]) == list(STAGES)
    assert "the talk" in first["stdout"] and "peak memory" in first["stdout"]
    run = Run.open(tiny)
    for name, stage in STAGES.items():
        assert run.is_current(name)
        assert (tiny/"notebooks"/f"{stage.notebook}.ipynb").exists() and all((tiny/o).exists() for o in stage.outputs)
    assert not [p for p in tiny.rglob("*") if ".tmp" in p.name]

def test_metrics_say_what_the_design_promises(tiny):
    metrics = json.loads((tiny/"metrics.json").read_text())
    for key in ("schema", "profile", "dataset", "seed", "blip", "vqvae", "prior", "generated", "controls", "talk", "reasons", "seconds", "memory_mib"):
        assert key in metrics, key
    assert set(metrics["seconds"]) == {*STAGES, "total"} and set(metrics["memory_mib"]) == set(STAGES)
    assert metrics["seconds"]["total"] >= sum(metrics["seconds"][s] for s in STAGES) - 0.1
    keys = {"bleu", "meteor", "meteor_exact_stem", "rouge1", "rougeL", "lpips", "blip_feature_distance", "attribute_accuracy", "exact_match", "matching", "diversity", "frechet_blip", "precision_blip", "recall_blip"}
    for figures in (*metrics["generated"].values(), *(metrics["controls"][c] for c in ("real_images", "reconstructions", "shuffled_prompts"))):
        assert keys <= set(figures)
    for split, baselines in metrics["baselines"].items():
        assert set(baselines) == {"nearest_caption", "random_training", "mean_image"}
        assert all(figures["blip_feature_distance"]["value"] >= 0 for figures in baselines.values() if figures["blip_feature_distance"])

class Page(HTMLParser):
    "Collects what a page would fetch, and its pictures."
    def __init__(self, text): super().__init__(); self.fetched, self.pictures, self.links = [], [], []; self.feed(text)
    def handle_starttag(self, tag, attributes):
        for key, value in attributes:
            if key == "src": (self.pictures if value.startswith(("data:image/png;base64,", "data:image/webp;base64,")) else self.fetched).append(value)
            if key == "href": self.links.append(value)
        if tag in ("script", "link", "iframe"): self.fetched.append(tag)

def test_report_is_one_page(tiny):
    page = Page((tiny/"report.html").read_text())
    assert page.fetched == [] and len(page.pictures) > 16
    assert page.links and all((tiny/link).exists() for link in page.links)

def test_a_second_run_does_nothing(tiny):
    before = {p: p.stat().st_mtime_ns for p in tiny.rglob("*") if p.is_file() and p.name not in ("params.yaml", "lock.mdb", ".run.lock")}
    start, done = time.perf_counter(), command("run", "--profile", "tiny", "--run-dir", tiny)
    assert done.returncode == 0 and executed(done.stdout) == [] and time.perf_counter() - start < 30
    assert before == {p: p.stat().st_mtime_ns for p in tiny.rglob("*") if p.is_file() and p.name not in ("params.yaml", "lock.mdb", ".run.lock")}

def test_one_setting_reruns_what_follows_from_it(tiny):
    entries = lambda: json.loads((tiny/"manifest.json").read_text())["stages"]
    before, seconds = entries(), json.loads((tiny/"metrics.json").read_text())["seconds"]
    done = command("run", "--profile", "tiny", "--run-dir", tiny, "-p", "prior.dropout=0.2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert executed(done.stdout) == ["prior", "samples", "metrics"]
    assert entries()["vqvae"] == before["vqvae"] and entries()["prior"]["fingerprint"] != before["prior"]["fingerprint"]
    assert json.loads((tiny/"metrics.json").read_text())["seconds"]["vqvae"] == seconds["vqvae"]      # what was skipped keeps its time
    assert "dropout: 0.2" in (tiny/"params.yaml").read_text()
