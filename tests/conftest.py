"One tiny run, made by the real command, that all tests share."
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

ROOT = Path(__file__).parent.parent


def command(*args, **kwargs) -> subprocess.CompletedProcess:
    "The command line in a process of its own."
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    env = {**os.environ, "OMP_NUM_THREADS": threads, "MPLBACKEND": "", "HF_HUB_OFFLINE": "1"}
    whole = [sys.executable, "-m", "t2igen.cli", *map(str, args)]
    return subprocess.run(whole, capture_output=True, text=True, env=env, **kwargs)


def executed(output: str) -> list[str]:
    "The stages that a run executed, from what it printed."
    lines = [line for line in output.splitlines() if line.startswith("[") and ": done in" in line]
    return [line.split()[1].rstrip(":") for line in lines]


def pytest_addoption(parser):
    words = "how often tests/test_resume.py kills a whole run"
    parser.addoption("--kills", type=int, default=0, help=words)


@pytest.fixture
def t2igen():
    "Call the command line in this process: exit code, stdout, stderr."
    from t2igen.cli.app import app

    def call(*args):
        done = CliRunner().invoke(app, [str(a) for a in args])
        ended = done.exception is None or isinstance(done.exception, SystemExit)
        assert ended, done.exception
        return done.exit_code, done.stdout, done.stderr

    return call


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    "The folder of a finished tiny run; what the command printed is kept beside it."
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    start = time.perf_counter()
    done = command("run", "--profile", "tiny", "--run-dir", folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    first = dict(seconds=time.perf_counter() - start, stdout=done.stdout, stderr=done.stderr)
    (folder.parent / "first.json").write_text(json.dumps(first))
    return folder
