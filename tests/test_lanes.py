"Two trainings side by side: the same bytes as one after the other, whoever is killed."
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from t2igen.core.files import file_sha256
from t2igen.core.run import Run
from t2igen.settings import existing_run, override

MORE = {}
for model in ("blip.matcher", "blip.captioner", "prior.top", "prior.bottom"):
    MORE[f"{model}.train.steps"] = 16
    MORE[f"{model}.train.checkpoint_seconds"] = 0
WORK = """
import sys

import torch

from t2igen.core.run import make_stage
from t2igen.settings import existing_run
from t2igen.training import lanes

lanes.LEAST = int(sys.argv[2])
torch.set_num_threads(2)
start = lanes.Other.__init__


def start_and_tell(self, job, run, threads):
    start(self, job, run, threads)
    print("other", self.process.pid, flush=True)


lanes.Other.__init__ = start_and_tell
make_stage(existing_run(sys.argv[1]), "prior")
print("threads", torch.get_num_threads(), flush=True)
"""
SIDE_BY_SIDE = 1
ONE_AFTER_THE_OTHER = 10_000


def work(folder: Path, least: int = SIDE_BY_SIDE) -> subprocess.Popen:
    "Make the stages from blip to prior in a process of its own."
    env = {**os.environ, "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", WORK, str(folder), str(least)]
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end_of(process: subprocess.Popen) -> str:
    "What a process that ends well printed from now on."
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-2000:]
    return said


def other_of(process: subprocess.Popen) -> psutil.Process:
    "The process that trains beside `process`, as soon as it is there."
    for line in process.stdout:
        if line.startswith("other"):
            return psutil.Process(int(line.split()[1]))
    raise AssertionError(process.stderr.read()[-2000:])


def copy(tiny: Path, folder: Path) -> Path:
    "A copy of the tiny run whose trainings are to be a little longer."
    shutil.copytree(tiny, folder)
    Run(folder, override(existing_run(folder).cfg, MORE)).save_params()
    return folder


@pytest.fixture(scope="module")
def alone(tiny, tmp_path_factory) -> Path:
    "A run whose models were trained one after the other."
    folder = copy(tiny, tmp_path_factory.mktemp("lanes") / "alone")
    assert "other" not in end_of(work(folder, ONE_AFTER_THE_OTHER))
    return folder


def assert_same(run: Path, alone: Path):
    "Both stages are done, nothing of a checkpoint is left, and what they made is the same."
    for stage in ("blip", "prior"):
        assert existing_run(run).is_current(stage)
        assert file_sha256(run / stage) == file_sha256(alone / stage)
    assert not list(run.rglob("*_checkpoint.pt"))


def test_side_by_side_is_as_one_after_the_other(tiny, alone, tmp_path):
    "Also where the process that trained the captioner was killed: it is done without."
    run = copy(tiny, tmp_path / "run")
    process = work(run)
    other_of(process).kill()
    said = end_of(process)
    assert said.count("other") == 1                           # that of the bottom prior
    assert "threads 2" in said                                # as many as before
    assert_same(run, alone)
    both = existing_run(run).entry("prior")["memory_mib"]
    assert both > existing_run(alone).entry("prior")["memory_mib"] + 100


def test_the_other_ends_with_a_killed_process(tiny, alone, tmp_path):
    run = copy(tiny, tmp_path / "run")
    process = work(run)
    other_of(process)
    other = other_of(process)
    time.sleep(3)
    process.kill()
    process.communicate()
    psutil.wait_procs([other], timeout=20)
    assert not other.is_running()
    end_of(work(run))
    assert_same(run, alone)
