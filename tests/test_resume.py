"Killed, stopped or interrupted at any moment and started again, a run ends as if left alone."
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import lmdb
import psutil
import pytest
from conftest import command, executed
from jupyter_client.manager import start_new_kernel

from t2igen.core.config import InputError
from t2igen.core.files import file_sha256, read_json
from t2igen.core.run import Run
from t2igen.pipeline.stages import take_over
from t2igen.settings import existing_run, load_config

TRAINED = ("blip.matcher", "blip.captioner", "vqvae", "prior.top", "prior.bottom",
           "metrics.classifier")
OFTEN = {f"{name}.train.checkpoint_seconds": 0 for name in TRAINED}
WORK = """
import sys
import t2igen.metrics.stage
from t2igen.core.run import make_inputs, make_stage
from t2igen.settings import existing_run
run = existing_run(sys.argv[1])
print('at work', flush=True)
make_inputs(run, 'metrics')
make_stage(run, 'metrics')
"""


def store(path) -> dict:
    "Every key of a code store with its value, from a copy: a process opens an environment once."
    with tempfile.TemporaryDirectory() as copy:
        copied = shutil.copytree(path, f"{copy}/codes.lmdb")
        with lmdb.open(copied, readonly=True, lock=False) as env, env.begin() as txn:
            return {bytes(k): bytes(v) for k, v in txn.cursor()}


def figures(folder) -> dict:
    "metrics.json without times and memory."
    metrics = read_json(folder / "metrics.json")
    return {k: v for k, v in metrics.items() if k not in ("seconds", "memory_mib")}


def assert_same_results(folder: Path, undisturbed: Path):
    "Models, codes, samples and metrics are equal byte for byte, times and memory aside."
    for name in ("data", "blip", "vqvae", "prior", "samples", "examples"):
        assert file_sha256(folder / name) == file_sha256(undisturbed / name), name
    assert store(folder / "codes.lmdb") == store(undisturbed / "codes.lmdb")
    assert figures(folder) == figures(undisturbed)


def start(*args) -> subprocess.Popen:
    "A Python process in a group of its own."
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True, env=env,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))


def family(process) -> list[psutil.Process]:
    "A process and all that came from it."
    try:
        own = psutil.Process(process.pid)
        return [own, *own.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def all_ended(processes, seconds: float) -> bool:
    return not psutil.wait_procs(processes, timeout=seconds)[1]


def test_a_process_killed_in_every_way_goes_on(tiny, tmp_path):
    "The stages' functions in one process: SIGKILL, SIGTERM and Ctrl-C, each at a random moment."
    run = Run(tmp_path / "run", load_config(str(tiny / "params.yaml"), OFTEN))
    run.save_params()
    moment = random.Random(0)
    for blow in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        process = start("-c", WORK, run.folder)
        assert process.stdout.readline() == "at work\n"
        time.sleep(moment.uniform(0.2, 2))
        while process.poll() is None:     # an import of others may swallow the first Ctrl-C
            os.killpg(process.pid, blow)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=10)
        assert process.returncode != 0
    whole = [sys.executable, "-c", WORK, run.folder]
    done = subprocess.run(whole, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_results(run.folder, tiny)


def strike(process, blow, orphans: bool) -> list[psutil.Process]:
    "Kill a run and all its processes, or the first only; returns those that should end."
    ended = family(process)                        # none, if it was quicker than we
    for victim in ended if orphans else ended[:1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.send_signal(blow)
    return ended


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT],
                         ids=lambda blow: blow.name)
def test_a_run_killed_often_goes_on(tiny, tmp_path, blow, request):
    "`t2igen run` itself, its kernels killed with it or left orphans in turn."
    kills = request.config.getoption("kills") // (1 if blow == signal.SIGKILL else 4)
    if not kills:
        pytest.skip("takes ten minutes: pytest tests/test_resume.py --kills 20")
    moment = random.Random(blow)
    settings = []
    for key, value in OFTEN.items():
        settings += ["-p", f"{key}={value}"]
    args = ["-m", "t2igen.cli", "run", "--profile", tiny / "params.yaml", "--run-dir",
            tmp_path / "run", *settings]
    for k in range(kills):
        process = start(*args)
        while (line := process.stdout.readline()) and not line.rstrip().endswith(".ipynb"):
            pass
        time.sleep(moment.uniform(0, 20))
        ended = strike(process, blow, orphans=blow == signal.SIGKILL and k % 2)
        output = process.communicate()[0]
        if not ended or process.returncode == 0:
            break
        assert all_ended(ended, 20), [p.cmdline() for p in ended if p.is_running()]
        if blow != signal.SIGKILL:
            assert process.returncode == 128 + blow, output[-2000:]
            assert "Interrupted" in output and "Traceback" not in output, output[-2000:]
    done = start(*args)
    output = done.communicate()[0]
    assert done.returncode == 0, output[-3000:]
    assert_same_results(tmp_path / "run", tiny)


def written_by(path: Path) -> str:
    "The number of a process in a file, empty if there is none."
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def test_one_run_at_a_time(t2igen, tmp_path):
    "The second is told so; a killed driver takes its kernel with it; the third goes on."
    folder = tmp_path / "run"
    args = ["run", "--profile", "tiny", "--run-dir", folder, "--until", "data", "-p",
            "data.n_train=4000"]                                   # enough to be caught at it
    first = start("-m", "t2igen.cli", *args)
    while written_by(folder / ".stage.pid") in ("", str(first.pid)):   # the driver's is a short one
        assert first.poll() is None
        time.sleep(0.05)
    kernels = family(first)[1:]
    for kernel in kernels:                                         # it stays at it
        kernel.suspend()
    code, out, err = t2igen(*args)
    assert code == 2 and f"{folder} is in use by another run" in err, err
    assert f"(process {first.pid})" in err and executed(out) == []
    with pytest.raises(InputError, match="Another process is at work in"):    # opened beside it
        with existing_run(folder).stage("blip"):
            pass
    first.kill()
    for kernel in kernels:
        kernel.resume()
    assert kernels and all_ended(kernels, 20)                      # and the workers of the kernel
    first.communicate(timeout=60)
    assert not existing_run(folder).is_current("data")
    done = command(*args)
    assert done.returncode == 0 and executed(done.stdout) == ["data"], done.stderr


def runs_to_interrupt(tiny, tmp_path) -> tuple[Run, Run]:
    "Two runs with many checkpoints and many transactions, data and BLIP taken over."
    changed = {"vqvae.train.checkpoint_seconds": 0, "codes.batch_size": 1}
    cfg = load_config(str(tiny / "params.yaml"), changed)
    run = Run(tmp_path / "run", cfg)
    run.save_params()
    undisturbed = Run(tmp_path / "undisturbed", cfg)
    undisturbed.save_params()
    for stage in ("data", "blip"):
        assert take_over(run, stage, [tiny])
    return run, undisturbed


def test_an_interrupted_kernel_goes_on(tiny, tmp_path):
    "The stop button of JupyterLab, then the same cell again in the same kernel."
    run, undisturbed = runs_to_interrupt(tiny, tmp_path)
    kernel, client = start_new_kernel(kernel_name="python3")

    def cell(code, during=lambda: None) -> str:
        "How a cell ends: ok, or the name of its error."
        client.execute(code)
        during()
        return client.get_shell_msg(timeout=300)["content"].get("ename", "ok")

    def interrupt_when(sign):
        while not sign.exists():
            time.sleep(0.01)
        kernel.interrupt_kernel()

    imports = "from t2igen.codes.stage import make_codes\n" \
              "from t2igen.vqvae.stage import make_vqvae\n" \
              "from t2igen.settings import existing_run\n"
    signs = {"vqvae": "vqvae/vqvae_checkpoint.pt", "codes": "codes.lmdb/data.mdb"}
    try:
        assert cell(f"{imports}run = existing_run({str(run.folder)!r})") == "ok"
        for stage, sign in signs.items():
            stop = cell(f"make_{stage}(run)", lambda sign=sign: interrupt_when(run / sign))
            assert stop == "KeyboardInterrupt"
            assert run.entry(stage)["status"] == "failed"
            assert cell(f"make_{stage}(run)") == "ok" and run.is_current(stage)
        for stage in ("data", "blip", "vqvae"):
            assert take_over(undisturbed, stage, [run.folder])
        assert cell(f"make_codes(existing_run({str(undisturbed.folder)!r}))") == "ok"
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)
    assert file_sha256(run / "vqvae") == file_sha256(tiny / "vqvae")
    assert store(run / "codes.lmdb") == store(undisturbed / "codes.lmdb")
