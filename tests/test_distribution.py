"One training on two processes, one sweep in two jobs: the same results."
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import executed
from safetensors.torch import load_file

from t2igen.core.files import file_sha256
from t2igen.core.run import Run
from t2igen.core.stages import STAGES
from t2igen.pipeline.stages import take_over
from t2igen.pipeline.workflow import export_workflow
from t2igen.settings import existing_run, load_config
from t2igen.training.checkpoint import read_history

WORKER = """
import sys
import t2igen.core.device
from t2igen.cli.app import app
t2igen.core.device.has_bf16 = lambda device: False      # in float32 rounding hides no error
for stage, folder in zip(sys.argv[1::2], sys.argv[2::2]):
    if code := app(["train", stage, "--run-dir", folder], standalone_mode=False):
        sys.exit(code)
"""
CERTAIN = {      # nothing that a process draws for itself
    "blip": ("blip", {"title_share": 0.0}),
    "queue": ("blip", {"title_share": 0.0, "queue": 32}),
    "vqvae": ("vqvae", {}),
    "prior": ("prior", dict.fromkeys(("dropout", "text_dropout", "title_share"), 0.0)),
}
UNCERTAIN = {"seconds", "waiting", "itm_accuracy"}     # times; a count, which a digit may tip


def launched(worker, processes, *stages):
    """The command line in a process of its own, or in several at once: stages, each followed by its
    run folder."""
    worker.write_text(WORKER, encoding="utf-8")
    launcher = []
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone",
                    "--nproc_per_node", str(processes)]
    call = [sys.executable, *launcher, worker, *map(str, stages)]
    env = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(call, capture_output=True, text=True, env=env)


def prepared(folder, tiny, stage, settings):
    "A run that has all that comes before `stage`."
    overrides = {f"{stage}.{key}": value for key, value in settings.items()}
    run = Run(folder, load_config(str(tiny/"params.yaml"), overrides))
    for before in STAGES[stage].inputs:
        assert take_over(run, before, [tiny])
    return run


def assert_same_curves(one, two):
    "The histories of two trainings, up to rounding."
    assert len({row["loss"] for row in one}) == len(one)            # not a curve of constants
    for column in set(one[0]) - UNCERTAIN:
        a = torch.tensor([row[column] for row in one])
        b = torch.tensor([row[column] for row in two])
        assert a.shape == b.shape, column
        assert (a - b).abs().max() < 1e-3*a.abs().max(), (column, a, b)


def flat(weights: dict) -> torch.Tensor:
    "All numbers of a model in one row."
    return torch.cat([w.flatten().float() for _, w in sorted(weights.items())])


def assert_same_weights(one, two):
    "The weights of two trainings, up to rounding."
    a, b = (flat(weights) for weights in (one, two))
    assert (a - b).abs().mean() < 1e-3*a.abs().mean()


def files_of(run, stage) -> list[Path]:
    "What a stage wrote, as seen from its folder."
    return sorted(p.relative_to(run/stage) for p in (run/stage).rglob("*"))


def assert_same_training(stage, one, two):
    "Two runs in which a stage came to the same."
    assert one.is_current(stage) and two.is_current(stage)
    files = files_of(one, stage)
    assert files == files_of(two, stage)
    assert sum(p.name.endswith("_history.csv") for p in files) in (1, 2)
    for file in files:
        a, b = one/stage/file, two/stage/file
        if file.suffix == ".csv":
            assert_same_curves(read_history(a), read_history(b))
        if file.suffix == ".safetensors":
            assert_same_weights(load_file(a), load_file(b))


def test_two_processes_train_as_one(tiny, tmp_path):
    """The same curves, of every part of the loss, and the same weights, up to rounding; the first
    process writes."""
    runs = {1: {}, 2: {}}
    for processes in runs:
        call = []
        for name, (stage, settings) in CERTAIN.items():
            run = prepared(tmp_path/name/str(processes), tiny, stage, settings)
            runs[processes][name] = run
            call += [stage, run.folder]
        done = launched(tmp_path/"worker.py", processes, *call)
        assert done.returncode == 0, done.stderr[-3000:]
    for name, (stage, _) in CERTAIN.items():
        assert_same_training(stage, runs[1][name], runs[2][name])


def test_a_batch_that_cannot_be_dealt_out(tiny, tmp_path):
    run = prepared(tmp_path/"odd", tiny, "blip", {"matcher.train.batch_size": 15})
    done = launched(tmp_path/"worker.py", 2, "blip", run.folder)
    words = "matcher: a batch of 15 cannot be dealt out to 2 processes: make batch_size a multiple"
    assert done.returncode and f"{words} of 2" in done.stderr


def snakemake(file, *targets):
    "Run snakemake on two cores; what it printed."
    command = Path(sys.executable).parent/"snakemake"
    call = [command, "-s", file, "--cores", "2",
            "--config", f"t2igen={sys.executable} -m t2igen.cli", "--", *targets]
    done = subprocess.run(call, capture_output=True, text=True, cwd=file.parent.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_snakemake_runs_the_same_stages(tmp_path):
    """Four runs, two of them with the stage of another: two jobs execute it, at the same time; two
    take it over; a second call has nothing to do."""
    if not (Path(sys.executable).parent/"snakemake").exists():
        pytest.skip("snakemake is not installed (it needs Python 3.11)")
    grid = {"seed": [0, 1], "prior.dropout": [0, 0.1]}
    file = export_workflow("tiny", grid, tmp_path/"cluster")
    names = [f"seed={seed},prior.dropout={dropout}" for seed in (0, 1) for dropout in (0, 0.1)]
    targets = [f"{name}/done/data" for name in names]
    first = snakemake(file, *targets)
    again = snakemake(file, *targets)
    assert "Execute 2 jobs" in first and executed(first) == ["data", "data"]
    for seed in (0, 1):
        assert f"data: taken from seed={seed},prior.dropout=0\n" in first
    assert "Nothing to be done" in again and not executed(again)
    runs = [existing_run(tmp_path/"cluster"/name) for name in names]
    for run in runs:
        done = (run/"done"/"data").read_text(encoding="utf-8").strip()
        assert run.is_current("data") and done == run.fingerprint("data")
    hashes = [file_sha256(run/"data") for run in runs]
    assert hashes[0] == hashes[1] != hashes[2] == hashes[3]          # shared, and another seed
