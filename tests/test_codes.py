"The code store across processes: killed, sharded, read by workers, on full and read-only disks."
import multiprocessing, os, resource, shutil, signal, subprocess, sys, time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np, pytest
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from t2igen.codes import *
from t2igen.core import InputError, Run, file_sha256
from t2igen.data import load_data

META = dict(captions=40, block=32, top=[8, 8], bottom=[16, 16], dtype="uint16", codebook_size=512, pooled=16, states=[8, 32], vqvae="a"*64)

def numbers(count:int) -> np.ndarray:
    "Codes of `count` synthetic records."
    return np.random.default_rng(0).integers(0, 512, (count, 320)).astype(np.uint16)

def write(path, count:int, pause:float=0.0):
    "A synthetic store; continues what is there."
    rows, texts = numbers(count), np.random.default_rng(1).integers(0, 2, (40, row_widths(META)["feature"])).astype(np.uint8)
    with StoreWriter(path, dict(META, count=count), map_size=1 << 16) as writer:
        for k in range(writer.written("feature"), 2): writer.put(feature_block(k, texts[k*32:k*32+32], [f"caption {i}" for i in range(k*32, min(k*32 + 32, 40))], k*32))
        for k in range(writer.written("code"), -(-count // 32)):
            writer.put(code_block(k, rows[k*32:k*32+32], [(f"id-{i}", "") for i in range(k*32, min(k*32 + 32, count))]))
            time.sleep(pause)
        writer.finish()

@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("stores")/"codes.lmdb"
    write(path, 3000)
    return path

def killer(path, rng):
    "A forked process that writes to `path`, and is killed after a random time."
    pid = os.fork()
    if not pid:
        try: write(path, 3000, pause=0.003)
        finally: os._exit(0)
    time.sleep(rng.uniform(0, 0.3)); os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)

def test_killed_at_any_moment(store, tmp_path):
    path, rng, refused = tmp_path/"codes.lmdb", np.random.default_rng(0), 0
    for _ in range(12):
        killer(path, rng)
        try: CodeStore(path); break                            # it was quicker than the killer
        except InputError as e: refused += "no code store" in str(e) or "not complete" in str(e)
    assert refused
    write(path, 3000)
    again = CodeStore(path)
    assert (again.rows(range(3000)) == numbers(3000)).all()
    assert again.names == [f"id-{i}" for i in range(3000)] and again.captions == CodeStore(store).captions
    assert verify_store(path)["size"] > 0

@pytest.mark.parametrize("context, workers", [("fork", 2), ("spawn", 1)])
def test_workers_read(store, context, workers):
    opened = CodeStore(store); opened.rows([0])                # open in this process before the workers start
    sampler = BatchSampler(RandomSampler(opened), 100, drop_last=False)
    order = list(sampler)
    seen = [b for b in DataLoader(opened, batch_sampler=order, collate_fn=whole_batch, num_workers=workers, multiprocessing_context=context)]
    for indices, batch in zip(order, seen, strict=True):
        assert (np.concatenate([batch["top"].flatten(1), batch["bottom"].flatten(1)], 1) == numbers(3000)[indices]).all()
    assert (opened.rows(range(3000)) == numbers(3000)).all()  # the parent's map is as it was

def limited(size:int) -> ProcessPoolExecutor:
    "A forked process that can write no file beyond `size` bytes; unlike the rights of a file, this holds for root, too."
    return ProcessPoolExecutor(1, multiprocessing.get_context("fork"), resource.setrlimit, (resource.RLIMIT_FSIZE, (size, size)))

def test_full_disk(tmp_path):
    path = tmp_path/"codes.lmdb"
    with limited(600_000) as process, pytest.raises(OSError, match="disk is full.*what was written is kept"): process.submit(write, path, 3000).result()
    with pytest.raises(InputError, match="not complete"): CodeStore(path)
    with StoreWriter(path, dict(META, count=3000)) as writer: assert 5 < writer.written("code") < 40
    write(path, 3000)                                          # room was made
    assert (CodeStore(path).rows(range(3000)) == numbers(3000)).all() and verify_store(path)

def read(path): return CodeStore(path).rows([2999])

def test_reading_writes_nothing(store, tmp_path):
    path = tmp_path/"ro"; shutil.copytree(store, path); (path/"lock.mdb").unlink()
    for file in (*path.iterdir(), path): file.chmod(0o555)
    with limited(0) as process: assert (process.submit(read, path).result() == numbers(3000)[2999]).all()
    path.chmod(0o755)
    assert sorted(f.name for f in path.iterdir()) == ["checksum.json", "data.mdb"]

def test_two_processes_write_the_same_store(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path/"run"); run = Run.open(tmp_path/"run"); before = file_sha256(run/"codes.lmdb")
    shutil.rmtree(run/"codes.lmdb")
    env = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "-m", "t2igen.cli", "codes", "extract", "--run-dir", str(run.folder)],
                          capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "images/s" in done.stderr
    assert file_sha256(run/"codes.lmdb") == before and run.is_current("codes")
    assert load_codes(run).names == [r.id for r in load_data(run).records]

SLOW = """
import sys, time
from t2igen.codes import *
from t2igen.core import Run
put, times = StoreWriter.put, []
def slow(self, pairs): put(self, pairs); times.append(1); print(len(times), flush=True); time.sleep(0.3)
StoreWriter.put = slow
make_codes(Run.open(sys.argv[1]))"""

def test_extraction_killed_goes_on(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path/"run"); run = Run.open(tmp_path/"run"); whole = CodeStore(run/"codes.lmdb")
    expected, names = whole.rows(range(len(whole))), whole.names
    shutil.rmtree(run/"codes.lmdb")
    child = subprocess.Popen([sys.executable, "-c", SLOW, run.folder], stdout=subprocess.PIPE, text=True)
    for line in child.stdout:
        if int(line) >= 9: break
    child.send_signal(signal.SIGKILL); child.wait()
    with pytest.raises(InputError, match="not complete"): CodeStore(run/"codes.lmdb")
    make_codes(run)
    again = load_codes(run)
    assert (again.rows(range(len(again))) == expected).all() and again.names == names
    assert again.text([load_data(run).records[3].text]).pooled.equal(CodeStore(tiny/"codes.lmdb").text([load_data(run).records[3].text]).pooled)

def test_commands(tiny, t2igen, tmp_path):
    store = tiny/"codes.lmdb"
    code, out, err = t2igen("codes", "info", store)
    assert code == 0 and "records        96 in blocks of 32" in out and file_sha256(store/"data.mdb") in out and file_sha256(tiny/"vqvae") in out, out + err
    assert t2igen("codes", "verify", store)[0] == 0
    assert t2igen("codes", "export", store, "--out", tmp_path/"tables") == (0, f"{tmp_path/'tables'}\n", "")
    assert t2igen("codes", "import", tmp_path/"tables", "--out", tmp_path/"new.lmdb")[0] == 0
    assert file_sha256(tmp_path/"new.lmdb") == file_sha256(store)
    data = bytearray((tmp_path/"new.lmdb"/"data.mdb").read_bytes()); data[data.rindex(CodeStore(store).rows([40]).tobytes())] ^= 1
    (tmp_path/"new.lmdb"/"data.mdb").write_bytes(data)
    code, out, err = t2igen("codes", "verify", tmp_path/"new.lmdb")
    assert code == 2 and "codes of records 32 to 63" in err and err.count("\n") == 1
    os.truncate(tmp_path/"new.lmdb"/"data.mdb", 4096)
    assert "has 4,096 of" in t2igen("codes", "verify", tmp_path/"new.lmdb")[2] and "has 4,096 of" in t2igen("codes", "info", tmp_path/"new.lmdb")[2]
