"One training on two processes, one sweep in two jobs: the same results."
import json, os, shutil, subprocess, sys

import pytest, torch
from conftest import command, executed
from t2igen.core import Run, file_sha256, load_config
from t2igen.pipeline import export_workflow, take_over
from t2igen.pixelsnail import load_prior
from t2igen.training import read_history

def test_two_processes_train_as_one(tiny, tmp_path):
    "Same batches, same loss curve up to rounding; the first process writes."
    certain = {f"prior.{k}": 0 for k in ("dropout", "text_dropout", "title_share")}      # what each process draws for itself
    runs = [Run(tmp_path/name, load_config(str(tiny/"params.yaml"), certain)) for name in ("one", "two")]
    for run in runs: assert all(take_over(run, stage, [tiny]) for stage in ("data", "blip", "vqvae", "codes"))
    assert command("train", "prior", "--run-dir", runs[0].folder).returncode == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "t2igen.cli", "train", "prior", "--run-dir", runs[1].folder]
    done = subprocess.run(torchrun, capture_output=True, text=True, env={**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    for run in runs: assert run.is_current("prior") and sorted(p.name for p in (run/"prior").iterdir()) == ["bottom_history.csv", "config.json", "model.safetensors", "top_history.csv"]
    for level in ("top", "bottom"):
        one, two = ([row["loss"] for row in read_history(run/"prior"/f"{level}_history.csv")] for run in runs)
        assert len(one) == len(two) and max(abs(a - b) for a, b in zip(one, two)) < 0.01, (one, two)
        assert len(set(one)) == len(one)                                                  # not a curve of constants
    weights = [torch.cat([p.flatten() for p in load_prior(run).parameters()]) for run in runs]
    assert (weights[0] - weights[1]).abs().mean() < 0.01*weights[0].abs().mean()

def test_snakemake_runs_the_same_stages(tmp_path):
    "Two runs that share a stage: one job executes it, the other takes it over; a second call has nothing to do."
    if not (snakemake := shutil.which("snakemake")): pytest.skip("snakemake is not installed (it needs Python 3.11)")
    file = export_workflow("tiny", {"prior.dropout": [0, 0.1]}, tmp_path/"cluster")
    first, second = (tmp_path/"cluster"/f"prior.dropout={v}" for v in (0, 0.1))
    call = [snakemake, "-s", file, "--cores", "2", "--config", f"t2igen={sys.executable} -m t2igen.cli", "--", *(f"{folder.name}/done/data" for folder in (first, second))]
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert executed(done.stdout + done.stderr) == ["data"] and "data: taken from prior.dropout=0" in done.stdout + done.stderr
    runs = [Run.open(first), Run.open(second)]
    assert all(run.is_current("data") and (run/"done"/"data").read_text().strip() == run.fingerprint("data") for run in runs)
    assert file_sha256(first/"data") == file_sha256(second/"data")
    again = subprocess.run(call, capture_output=True, text=True)
    assert again.returncode == 0 and "Nothing to be done" in again.stdout + again.stderr
