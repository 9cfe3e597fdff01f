"One training on two processes, one sweep in two jobs: the same results."
import os, subprocess, sys
from pathlib import Path

import pytest, torch
from conftest import executed
from safetensors.torch import load_file
from t2igen.core import STAGES, Run, file_sha256, load_config
from t2igen.pipeline import export_workflow, take_over
from t2igen.training import read_history

WORKER = """
import sys
import t2igen.core
from t2igen.cli import app
t2igen.core.has_bf16 = lambda device: False          # in float32, where rounding hides no error
for stage, folder in zip(sys.argv[1::2], sys.argv[2::2]):
    if code := app(["train", stage, "--run-dir", folder], standalone_mode=False): sys.exit(code)
"""
CERTAIN = {"blip": ("blip", {"title_share": 0.0}), "queue": ("blip", {"title_share": 0.0, "queue": 32}), "vqvae": ("vqvae", {}),     # nothing that a process draws for itself
           "prior": ("prior", dict.fromkeys(("dropout", "text_dropout", "title_share"), 0.0))}

def launched(worker, processes, *stages):
    "The command line in a process of its own, or in several at once: stages, each followed by its run folder."
    worker.write_text(WORKER)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []
    call = [sys.executable, *launcher, worker, *map(str, stages)]
    return subprocess.run(call, capture_output=True, text=True, env={**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"})

def prepared(folder, tiny, stage, settings):
    "A run that has all that comes before `stage`."
    run = Run(folder, load_config(str(tiny/"params.yaml"), {f"{stage}.{k}": v for k, v in settings.items()}))
    assert all(take_over(run, before, [tiny]) for before in list(STAGES)[:list(STAGES).index(stage)])
    return run

def assert_same_curves(one, two):
    assert len({row["loss"] for row in one}) == len(one)                                  # not a curve of constants
    for column in set(one[0]) - {"seconds", "waiting", "itm_accuracy"}:                   # times; a count, which a last digit may tip
        a, b = (torch.tensor([row[column] for row in rows]) for rows in (one, two))
        assert a.shape == b.shape and (a - b).abs().max() < 1e-3*a.abs().max(), (column, a, b)

def assert_same_weights(one, two):
    one, two = (torch.cat([w.flatten().float() for _, w in sorted(weights.items())]) for weights in (one, two))
    assert (one - two).abs().mean() < 1e-3*one.abs().mean()

def test_two_processes_train_as_one(tiny, tmp_path):
    "The same curves, of every part of the loss, and the same weights, up to rounding; the first process writes."
    runs = {name: [prepared(tmp_path/name/n, tiny, *case) for n in ("one", "two")] for name, case in CERTAIN.items()}
    for k in (1, 2):
        done = launched(tmp_path/"worker.py", k, *(x for name in runs for x in (CERTAIN[name][0], runs[name][k-1].folder)))
        assert done.returncode == 0, done.stderr[-3000:]
    for name, (one, two) in runs.items():
        stage = CERTAIN[name][0]
        assert one.is_current(stage) and two.is_current(stage)
        files = [sorted(p.relative_to(run/stage) for p in (run/stage).rglob("*")) for run in (one, two)]
        assert files[0] == files[1] and sum(p.name.endswith("_history.csv") for p in files[0]) in (1, 2)
        for a, b in ((one/stage/p, two/stage/p) for p in files[0]):
            if a.suffix == ".csv": assert_same_curves(read_history(a), read_history(b))
            if a.suffix == ".safetensors": assert_same_weights(load_file(a), load_file(b))

def test_a_batch_that_cannot_be_dealt_out(tiny, tmp_path):
    run = prepared(tmp_path/"odd", tiny, "blip", {"matcher.batch_size": 15})
    done = launched(tmp_path/"worker.py", 2, "blip", run.folder)
    assert done.returncode and "matcher: a batch of 15 cannot be dealt out to 2 processes: make batch_size a multiple of 2" in done.stderr

def test_snakemake_runs_the_same_stages(tmp_path):
    "Four runs, two of them with the stage of another: two jobs execute it, at the same time; two take it over; a second call has nothing to do."
    snakemake = Path(sys.executable).parent/"snakemake"
    if not snakemake.exists(): pytest.skip("snakemake is not installed (it needs Python 3.11)")
    file = export_workflow("tiny", {"seed": [0, 1], "prior.dropout": [0, 0.1]}, tmp_path/"cluster")
    folders = [tmp_path/"cluster"/f"seed={seed},prior.dropout={dropout}" for seed in (0, 1) for dropout in (0, 0.1)]
    call = [snakemake, "-s", file, "--cores", "2", "--config", f"t2igen={sys.executable} -m t2igen.cli", "--", *(f"{folder.name}/done/data" for folder in folders)]
    def output(done): assert done.returncode == 0, done.stderr[-3000:]; return done.stdout + done.stderr
    first, again = (output(subprocess.run(call, capture_output=True, text=True, cwd=tmp_path)) for _ in range(2))
    assert "Execute 2 jobs" in first and executed(first) == ["data", "data"] and all(f"data: taken from seed={seed},prior.dropout=0\n" in first for seed in (0, 1))
    assert "Nothing to be done" in again and not executed(again)
    runs = [Run.open(folder) for folder in folders]
    assert all(run.is_current("data") and (run/"done"/"data").read_text().strip() == run.fingerprint("data") for run in runs)
    hashes = [file_sha256(run/"data") for run in runs]
    assert hashes[0] == hashes[1] != hashes[2] == hashes[3]                  # what is shared, and another seed
