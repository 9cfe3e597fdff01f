"One tiny run, made by the real command, that all tests share."
import json, os, subprocess, sys, time
from pathlib import Path

import pytest
from typer.testing import CliRunner

ROOT = Path(__file__).parent.parent

def command(*args, **kwargs):
    "The command line in a process of its own."
    env = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "MPLBACKEND": "", "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, "-m", "t2igen.cli", *map(str, args)], capture_output=True, text=True, env=env, **kwargs)

def executed(output:str) -> list[str]:
    "The stages that a run executed, from what it printed."
    return [line.split()[1].rstrip(":") for line in output.splitlines() if line.startswith("[") and ": done in" in line]

def pytest_addoption(parser): parser.addoption("--kills", type=int, default=0, help="how often tests/test_resume.py kills a whole run")

@pytest.fixture
def t2igen():
    "Call the command line in this process: exit code, stdout, stderr."
    from t2igen.cli import app
    def call(*args):
        done = CliRunner().invoke(app, [str(a) for a in args])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.stdout, done.stderr
    return call

@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    "The folder of a finished tiny run; `.output` of the fixture's run is kept beside it."
    folder, start = tmp_path_factory.mktemp("runs")/"tiny", time.perf_counter()
    done = command("run", "--profile", "tiny", "--run-dir", folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (folder.parent/"first.json").write_text(json.dumps(dict(seconds=time.perf_counter() - start, stdout=done.stdout)))
    return folder
