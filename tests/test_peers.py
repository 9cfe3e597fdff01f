"The comparison with other libraries: floors, judge and table; the peers where they are."
import importlib.util
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from safetensors.torch import load_file

from t2igen.blip.stage import load_blip
from t2igen.core.files import read_json
from t2igen.metrics.attributes import attribute_accuracy
from t2igen.settings import existing_run

sys.path.insert(0, str(ROOT / "benchmarks"))

import peer_judge  # noqa: E402
import peers  # noqa: E402
from peer_models import PEERS  # noqa: E402
from peer_training import HISTORIES, steps_of  # noqa: E402

STILL = ["nearest caption", "class mean", "real pictures"]
MISSING = [name for name, peer in PEERS.items() if not importlib.util.find_spec(peer.module)]


def compare(run, out, *args) -> subprocess.CompletedProcess:
    "The benchmark in a process of its own."
    script = ROOT / "benchmarks" / "peers.py"
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    whole = [sys.executable, script, "--run", run, "--out", out, *args]
    return subprocess.run(list(map(str, whole)), capture_output=True, text=True, env=env)


@pytest.fixture(scope="module")
def done(tiny, tmp_path_factory):
    "The comparison of the tiny run with no peer, also with twice the seconds."
    out = tmp_path_factory.mktemp("peers")
    ended = compare(tiny, out, "--times", 2, "--pictures", 6, "--peers")
    assert ended.returncode == 0, ended.stderr[-3000:]
    rows = read_json(out / "peers.json")["0"]
    return SimpleNamespace(run=existing_run(tiny), out=out, stdout=ended.stdout, rows=rows)


@pytest.fixture(scope="module")
def judging(done):
    "Who judges, and what is drawn."
    judges = peer_judge.load_judges(done.run, done.out / "judge")
    return judges, peer_judge.Task(done.run, judges, 6)


def test_the_table_has_all_rows_and_columns(done):
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert [line.split(" | ")[0].strip("| ") for line in table[2:]] == [
        "t2igen", "t2igen, 2 x", *STILL]
    assert {line.count("|") for line in table} == {len(peers.COLUMNS) + 2}
    assert all(name in table[0] for name in peers.COLUMNS)
    sheet = Image.open(done.out / "peers.png")
    assert sheet.height > 5 * 64 and len(np.unique(np.asarray(sheet))) > 50


def test_twice_the_seconds_are_twice_the_steps(done):
    rows = done.rows
    assert rows["t2igen"]["steps"] == sum(steps_of(done.run).values())
    assert rows["t2igen, 2 x"]["steps"] == 2 * rows["t2igen"]["steps"]
    assert rows["t2igen, 2 x"]["training seconds"] > 0 and len(HISTORIES) == 3
    for name in ("t2igen", "t2igen, 2 x"):
        assert rows[name]["peak MiB"] > 100 and rows[name]["seconds a picture"] > 0
    again = compare(done.run.folder, done.out, "--times", 2, "--pictures", 6, "--peers")
    assert read_json(done.out / "peers.json")["0"] == rows, again.stderr     # none is done again


def test_floors_and_real_pictures(done, judging):
    judges, task = judging
    rows = done.rows
    for name in ("nearest caption", "class mean"):
        assert rows[name]["diversity"]["value"] == pytest.approx(0, abs=1e-6)
        assert rows[name]["pixel_diversity"]["value"] == pytest.approx(0, abs=1e-6)
    assert rows["real pictures"]["diversity"]["value"] > 1e-5
    assert rows["real pictures"]["pixel_diversity"]["value"] > 0.01
    data = judges.data
    train = data.indices("train")
    means = peer_judge.class_means(judges, task)
    nearest = peer_judge.nearest_caption_pictures(done.run, judges, task)
    learned = data.pixels(train)
    blip = load_blip(done.run)
    known = blip.embed_texts([data.records[j].text for j in train]).pooled
    near = blip.embed_texts(task.prompts).pooled @ known.T                   # prompt, caption
    for k, i in enumerate(task.positions):
        wanted = data.records[i].attributes
        alike = [j for j in train if data.records[j].attributes == wanted] or train
        assert torch.allclose(means[k], data.pixels(alike).mean(0), atol=1e-4)
        which = int((learned - nearest[k]).abs().flatten(1).sum(1).argmin())
        assert learned[which].equal(nearest[k])
        assert near[k, which] >= near[k].max() - 1e-5


def test_the_judge_is_not_the_runs_own_matcher_and_its_figures_are_those_of_the_metrics(
        done, judging):
    judges, task = judging
    own = load_file(done.run / "blip" / "matcher" / "model.safetensors")
    other = load_file(done.out / "judge" / "model.safetensors")
    assert own.keys() == other.keys()
    assert sum(not own[key].equal(other[key]) for key in own) > len(own) / 2
    real = judges.data.pixels(task.positions)
    figures = peer_judge.figures_of(judges, task, real)
    first = task.positions[:task.n]
    wanted = [judges.data.records[i].attributes for i in first]
    found = attribute_accuracy(judges.classifier.predict(real[:task.n]), wanted)
    assert figures["attribute_accuracy"]["value"] == pytest.approx(found, abs=1e-5)
    noise = torch.rand(real.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert 0 < figures["attribute_accuracy"]["value"] < 1
    assert all(len(group) == 4 for group in task.groups)
    worse = peer_judge.figures_of(judges, task, noise)
    assert worse["diversity"]["value"] != figures["diversity"]["value"]


def test_a_table_is_of_means_and_says_how_far_seeds_differ():
    tables = [{"one": {"attribute_accuracy": {"value": 0.5}, "steps": 10}},
              {"one": {"attribute_accuracy": {"value": 0.7}, "steps": 10}}]
    row = peers.markdown(tables).splitlines()[2]
    assert row.startswith("| one | 0.600±0.141 | - |") and row.endswith("| - | 10±0 |")
    assert peers.markdown(tables[:1]).splitlines()[2].startswith("| one | 0.500 | - |")


@pytest.mark.skipif(not MISSING, reason="all peers are installed")
def test_a_missing_package_is_one_sentence(tiny, tmp_path):
    ended = compare(tiny, tmp_path, "--peers", MISSING[0])
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert f"{MISSING[0]} is not installed: `pip install 't2igen[peers]'`" in ended.stderr


@pytest.mark.parametrize("name", list(PEERS))
def test_a_peer_learns_and_draws(name, done):
    if name in MISSING:
        pytest.skip(f"{name} is not installed")
    ended = compare(done.run.folder, done.out, "--times", 1, "--pictures", 2, "--peers", name,
                    "--sizes", "small", "--lrs", "1e-3", "--seconds", 2)
    assert ended.returncode == 0, ended.stderr[-3000:]
    row = read_json(done.out / "peers.json")["0"][name]
    assert row["steps"] > 0 and row["million parameters"] > 0.5 and row["seconds a picture"] > 0
    assert 0 <= row["attribute_accuracy"]["value"] <= 1
    folder = next(done.out.glob(f"seed0-2pictures/{name}-small-*"))
    drawn = np.load(folder / "pictures.npy")
    assert drawn.shape[1:] == (64, 64, 3) and drawn.std() > 1
