"Killed, stopped or interrupted at any moment and started again, a run ends as if it had been left alone."
import contextlib, os, random, shutil, signal, subprocess, sys, tempfile, time
from pathlib import Path

import lmdb, psutil, pytest
from conftest import command, executed
from jupyter_client.manager import start_new_kernel
from t2igen.core import InputError, Run, file_sha256, load_config, read_json
from t2igen.pipeline import take_over

OFTEN = {f"{name}.checkpoint_seconds": 0 for name in ("blip.matcher", "blip.captioner", "vqvae.train", "prior.top", "prior.bottom", "metrics.classifier")}
WORK = "import sys\nfrom t2igen.core import *\nfrom t2igen.metrics import make_metrics\nrun = Run.open(sys.argv[1]); print('at work', flush=True); require(run, metrics=make_metrics)"

def store(path) -> dict:
    "Every key of a code store with its value, read from a copy: one process opens an environment once."
    with tempfile.TemporaryDirectory() as copy, lmdb.open(shutil.copytree(path, f"{copy}/codes.lmdb"), readonly=True, lock=False) as env, env.begin() as txn:
        return {bytes(k): bytes(v) for k, v in txn.cursor()}

def assert_same_results(folder:Path, undisturbed:Path):
    "Models, codes, samples and metrics are equal byte for byte, times and memory aside."
    for name in ("data", "blip", "vqvae", "prior", "samples", "examples"): assert file_sha256(folder/name) == file_sha256(undisturbed/name), name
    assert store(folder/"codes.lmdb") == store(undisturbed/"codes.lmdb")
    first, second = ({k: v for k, v in read_json(f/"metrics.json").items() if k not in ("seconds", "memory_mib")} for f in (folder, undisturbed))
    assert first == second

def start(*args) -> subprocess.Popen:
    "A Python process in a group of its own."
    return subprocess.Popen([sys.executable, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})

def family(process) -> list[psutil.Process]:
    "A process and all that came from it."
    try: return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess: return []

def all_ended(processes, seconds:float) -> bool: return not psutil.wait_procs(processes, timeout=seconds)[1]

def test_a_process_killed_in_every_way_goes_on(tiny, tmp_path):
    "The stages' functions in one process: SIGKILL, SIGTERM and Ctrl-C, each at a random moment of its work."
    run, moment = Run(tmp_path/"run", load_config(str(tiny/"params.yaml"), OFTEN)), random.Random(0)
    for blow in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        process = start("-c", WORK, run.folder)
        assert process.stdout.readline() == "at work\n"
        time.sleep(moment.uniform(0.2, 2)); os.killpg(process.pid, blow); process.communicate()
        assert process.returncode != 0
    done = subprocess.run([sys.executable, "-c", WORK, run.folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_results(run.folder, tiny)

@pytest.mark.timeout(7200)
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda blow: blow.name)
def test_a_run_killed_often_goes_on(tiny, tmp_path, blow, request):
    "`t2igen run` itself, its kernels killed with it or left orphans in turn."
    kills, moment = request.config.getoption("kills") // (1 if blow == signal.SIGKILL else 4), random.Random(blow)
    if not kills: pytest.skip("takes ten minutes: pytest tests/test_resume.py --kills 20")
    args = ["-m", "t2igen.cli", "run", "--profile", tiny/"params.yaml", "--run-dir", tmp_path/"run", *(word for k, v in OFTEN.items() for word in ("-p", f"{k}={v}"))]
    for k in range(kills):
        process = start(*args)
        while (line := process.stdout.readline()) and not line.rstrip().endswith(".ipynb"): pass
        time.sleep(moment.uniform(0, 20)); ended = family(process)            # none, if it was quicker than we
        for victim in ended if blow == signal.SIGKILL and k % 2 else ended[:1]:
            with contextlib.suppress(psutil.NoSuchProcess): victim.send_signal(blow)
        output = process.communicate()[0]
        if not ended or process.returncode == 0: break
        assert all_ended(ended, 20), [p.cmdline() for p in ended if p.is_running()]
        assert blow == signal.SIGKILL or process.returncode == 128 + blow and "Interrupted" in output and "Traceback" not in output, output[-2000:]
        stages = Run.open(tmp_path/"run").manifest["stages"] if (tmp_path/"run"/"manifest.json").exists() else {}
        print(f"{k + 1}: {blow.name} with {len(ended)} processes at", ", ".join(f"{name} {entry['status']}" for name, entry in stages.items()))
    done = start(*args); output = done.communicate()[0]
    assert done.returncode == 0, output[-3000:]
    assert_same_results(tmp_path/"run", tiny)

def test_one_run_at_a_time(t2igen, tmp_path):
    "The second is told so; a killed driver takes its kernel with it; the third goes on."
    folder = tmp_path/"run"; args = ["run", "--profile", "tiny", "--run-dir", folder, "--until", "data", "-p", "data.n_train=4000"]      # enough to be caught at it
    first = start("-m", "t2igen.cli", *args)
    while not (folder/".stage.lock").exists(): assert first.poll() is None; time.sleep(0.05)
    code, out, err = t2igen(*args)
    assert code == 2 and out == "" and f"{folder} is in use by another run" in err and f"(process {first.pid})" in err, err
    kernels = family(first)[1:]
    for kernel in kernels: kernel.suspend()
    with pytest.raises(InputError, match="Another process is at work in"):    # a notebook opened beside it
        with Run.open(folder).stage("blip"): pass
    first.kill()
    for kernel in kernels: kernel.resume()
    assert kernels and all_ended(kernels, 20)                                  # and the workers of the kernel
    first.communicate(timeout=60)
    assert not Run.open(folder).is_current("data")
    done = command(*args)
    assert done.returncode == 0 and executed(done.stdout) == ["data"], done.stderr

def test_an_interrupted_kernel_goes_on(tiny, tmp_path):
    "The stop button of JupyterLab, then the same cell again in the same kernel."
    cfg = load_config(str(tiny/"params.yaml"), {"vqvae.train.checkpoint_seconds": 0, "codes.batch_size": 1})      # many checkpoints, many transactions
    run, undisturbed = Run(tmp_path/"run", cfg), Run(tmp_path/"undisturbed", cfg)
    for stage in ("data", "blip"): assert take_over(run, stage, [tiny])
    kernel, client = start_new_kernel(kernel_name="python3")
    try:
        def cell(code, during=lambda: None) -> str:
            "How a cell ends: ok, or the name of its error."
            number = client.execute(code); during()
            return client.get_shell_msg(timeout=300)["content"].get("ename", "ok") if number else ""
        assert cell(f"from t2igen.codes import *\nfrom t2igen.core import *\nfrom t2igen.vqvae import *\nrun = Run.open({str(run.folder)!r})") == "ok"
        def interrupt_when(sign):
            while not sign.exists(): time.sleep(0.01)
            kernel.interrupt_kernel()
        for stage, sign in (("vqvae", "vqvae/vqvae_checkpoint.pt"), ("codes", "codes.lmdb/data.mdb")):
            assert cell(f"make_{stage}(run)", lambda: interrupt_when(run/sign)) == "KeyboardInterrupt"
            assert run.manifest["stages"][stage]["status"] == "failed"
            assert cell(f"make_{stage}(run)") == "ok" and run.is_current(stage)
        for stage in ("data", "blip", "vqvae"): assert take_over(undisturbed, stage, [run.folder])
        assert cell(f"make_codes(Run.open({str(undisturbed.folder)!r}))") == "ok"
    finally: client.stop_channels(); kernel.shutdown_kernel(now=True)
    assert file_sha256(run/"vqvae") == file_sha256(tiny/"vqvae")
    assert store(run/"codes.lmdb") == store(undisturbed/"codes.lmdb")
