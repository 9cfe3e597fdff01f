"""Another seed gives other pictures, and a sample is what its line says; that whole runs repeat is
seen in test_resume."""
import os
import subprocess
import sys

from t2igen.core.run import Run
from t2igen.data.records import read_records
from t2igen.data.stage import make_data
from t2igen.sampling.settings import SETTINGS
from t2igen.sampling.stage import load_samples, load_text2image
from t2igen.settings import existing_run, load_config


def test_another_seed_other_pictures(tiny, tmp_path):
    other = Run(tmp_path / "other", load_config("tiny", {"seed": 1}))
    make_data(other)
    images = []
    for run in (existing_run(tiny), other):
        records = read_records(run / "data" / "records.jsonl")
        images.append({r.image for r in records})
    assert not images[0] & images[1]


def test_a_sample_is_what_its_line_says(tiny):
    run = existing_run(tiny)
    lines, pictures = load_samples(run)
    model = load_text2image(run)
    codes = []
    for line in lines[:2]:
        settings = {key: line[key] for key in SETTINGS}
        text = model.text([line["prompt"]])
        codes.append(model.codes(text, [line["seed"]], **settings))
    assert codes[0][0].shape == (1, 8, 8) and codes[0][1].shape == (1, 16, 16)
    assert not all(a.equal(b) for a, b in zip(*codes))             # two prompts: two grids
    assert len({p.tobytes() for p in pictures}) == len(pictures)   # no picture twice


TWICE = """
import sys
import torch
from t2igen.core.run import make_inputs, make_stage
from t2igen.settings import open_run
torch.set_num_threads(2)
few = {"data.n_train": 40, "data.n_test_seen": 5, "data.n_test_unseen": 5,
       "blip.matcher.train.steps": 6, "blip.captioner.train.steps": 2, "vqvae.train.steps": 4,
       "prior.top.train.steps": 4, "prior.bottom.train.steps": 3}
outputs = []
for folder in sys.argv[1:]:
    run = open_run(folder, "demo", few)
    make_inputs(run, "prior")
    make_stage(run, "prior")
    outputs.append({stage: run.outputs(stage) for stage in ("blip", "vqvae", "codes", "prior")})
assert run.manifest["threads"] == 2
differ = [stage for stage in outputs[0] if outputs[0][stage] != outputs[1][stage]]
assert not differ, differ
"""


def test_two_threads_give_the_same_bytes_again(tmp_path):
    "Short trainings of each model at the demo's sizes, twice, on two threads."
    env = {**os.environ, "OMP_NUM_THREADS": "2"}
    whole = [sys.executable, "-c", TWICE, str(tmp_path / "one"), str(tmp_path / "two")]
    done = subprocess.run(whole, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1500:]
