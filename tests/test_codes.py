"The code store across processes: killed, sharded, read by workers, on full and read-only disks."
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from t2igen.codes.format import code_block, data_sha256, feature_block, row_widths
from t2igen.codes.stage import load_codes, make_codes
from t2igen.codes.store import CodeStore, as_batch
from t2igen.codes.verify import verify_store
from t2igen.codes.writer import StoreWriter
from t2igen.core.config import InputError
from t2igen.core.files import file_sha256
from t2igen.data.stage import load_data
from t2igen.settings import existing_run

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system forks no process")
META = dict(captions=40, block=32, top=[8, 8], bottom=[16, 16], dtype="uint16", codebook_size=512,
            vocabulary=99, pooled=16, states=[8, 32], vqvae="a" * 64)


def numbers(count: int) -> np.ndarray:
    "Codes of `count` synthetic records."
    return np.random.default_rng(0).integers(0, 512, (count, 320)).astype(np.uint16)


def write(path, count: int, pause: float = 0.0):
    "A synthetic store; continues what is there."
    rows = numbers(count)
    shape = (40, row_widths(META)["feature"])
    texts = np.random.default_rng(1).integers(0, 2, shape).astype(np.uint8)
    with StoreWriter(path, dict(META, count=count), map_size=1 << 16) as writer:
        for k in range(writer.written("feature"), 2):
            own = range(k * 32, min(k*32 + 32, 40))
            captions = [f"caption {i}" for i in own]
            writer.put(feature_block(k, texts[own], captions, own[0]))
        for k in range(writer.written("code"), -(-count // 32)):
            own = range(k * 32, min(k*32 + 32, count))
            writer.put(code_block(k, rows[own], [(f"id-{i}", "") for i in own]))
            time.sleep(pause)
        writer.finish()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / "codes.lmdb"
    write(path, 3000)
    return path


def killer(path, rng):
    "A forked process that writes to `path`, and is killed after a random time."
    pid = os.fork()
    if not pid:
        try:
            write(path, 3000, pause=0.003)
        finally:
            os._exit(0)
    time.sleep(rng.uniform(0, 0.3))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@forks
def test_killed_at_any_moment(store, tmp_path):
    path = tmp_path / "codes.lmdb"
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(12):
        killer(path, rng)
        try:
            CodeStore(path)
            break                                              # it was quicker than the killer
        except InputError as e:
            refused += "no code store" in str(e) or "not complete" in str(e)
    assert refused
    write(path, 3000)
    again = CodeStore(path)
    assert (again.rows(range(3000)) == numbers(3000)).all()
    assert again.names == [f"id-{i}" for i in range(3000)]
    assert again.captions == CodeStore(store).captions
    assert verify_store(path)["size"] > 0


@pytest.mark.parametrize("context, workers",
                         [pytest.param("fork", 2, marks=forks), ("spawn", 1)])
def test_workers_read(store, context, workers):
    opened = CodeStore(store)
    opened.rows([0])                           # open in this process before the workers start
    order = list(BatchSampler(RandomSampler(opened), 100, drop_last=False))
    seen = list(DataLoader(opened, batch_sampler=order, collate_fn=as_batch, num_workers=workers,
                           multiprocessing_context=context))
    for indices, batch in zip(order, seen, strict=True):
        rows = np.concatenate([batch["top"].flatten(1), batch["bottom"].flatten(1)], 1)
        assert (rows == numbers(3000)[indices]).all()
    assert (opened.rows(range(3000)) == numbers(3000)).all()   # the parent's map is as it was


def limited(size: int) -> ProcessPoolExecutor:
    """A forked process that can write no file beyond `size` bytes; unlike the rights of a file,
    this holds for root, too."""
    resource = pytest.importorskip("resource")
    limits = (resource.RLIMIT_FSIZE, (size, size))
    context = multiprocessing.get_context("fork")
    return ProcessPoolExecutor(1, context, resource.setrlimit, limits)


def test_full_disk(tmp_path):
    path = tmp_path / "codes.lmdb"
    words = "disk is full.*what was written is kept"
    with limited(600_000) as process, pytest.raises(OSError, match=words):
        process.submit(write, path, 3000).result()
    with pytest.raises(InputError, match="not complete"):
        CodeStore(path)
    with StoreWriter(path, dict(META, count=3000)) as writer:
        assert 5 < writer.written("code") < 40
    write(path, 3000)                                          # room was made
    assert (CodeStore(path).rows(range(3000)) == numbers(3000)).all()
    assert verify_store(path)


def read(path) -> np.ndarray:
    "The last row of a store."
    return CodeStore(path).rows([2999])


def test_reading_writes_nothing(store, tmp_path):
    path = tmp_path / "ro"
    shutil.copytree(store, path)
    (path / "lock.mdb").unlink()
    for file in (*path.iterdir(), path):
        file.chmod(0o555)
    with limited(0) as process:
        assert (process.submit(read, path).result() == numbers(3000)[2999]).all()
    path.chmod(0o755)
    assert sorted(f.name for f in path.iterdir()) == ["checksum.json", "data.mdb"]


def damage(path, part: bytes):
    "Flip a bit of the last `part` in a store's file."
    data = bytearray((path / "data.mdb").read_bytes())
    data[data.rindex(part)] ^= 1
    (path / "data.mdb").write_bytes(data)


VERIFY = """
import multiprocessing
import os
import sys
import torch
for name in ("fork", "register_at_fork"):
    if hasattr(os, name):
        delattr(os, name)
from t2igen.codes.verify import verify_store
if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    try:
        verify_store(sys.argv[1])
    except ValueError as e:
        print(e)"""


def test_damage_is_found_where_nothing_forks(store, tmp_path):
    path = tmp_path / "codes.lmdb"
    shutil.copytree(store, path)
    damage(path, numbers(3000)[40].tobytes())
    (tmp_path / "verify.py").write_text(VERIFY, encoding="utf-8")
    done = subprocess.run([sys.executable, tmp_path / "verify.py", path], capture_output=True,
                          text=True)
    assert "in data.mdb: codes of records 32 to 63;" in done.stdout, done.stderr


def test_two_processes_write_the_same_store(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "run")
    run = existing_run(tmp_path / "run")
    before = file_sha256(run / "codes.lmdb")
    shutil.rmtree(run / "codes.lmdb")
    env = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    words = ["-m", "t2igen.cli", "codes", "extract", "--run-dir", str(run.folder)]
    done = subprocess.run([sys.executable, *launch, *words], capture_output=True, text=True,
                          env=env, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "images/s" in done.stderr
    assert file_sha256(run / "codes.lmdb") == before and run.is_current("codes")
    assert load_codes(run).names == [r.id for r in load_data(run).records]


SLOW = """
import sys
import time
from t2igen.codes.stage import make_codes
from t2igen.codes.writer import StoreWriter
from t2igen.settings import existing_run
put = StoreWriter.put
times = []
def slow(self, pairs):
    put(self, pairs)
    times.append(1)
    print(len(times), flush=True)
    time.sleep(0.3)
StoreWriter.put = slow
make_codes(existing_run(sys.argv[1]))"""


def test_extraction_killed_goes_on(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "run")
    run = existing_run(tmp_path / "run")
    whole = CodeStore(run / "codes.lmdb")
    expected = whole.rows(range(len(whole)))
    names = whole.names
    shutil.rmtree(run / "codes.lmdb")
    command = [sys.executable, "-c", SLOW, str(run.folder)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in child.stdout:
        if int(line) >= 9:
            break
    child.kill()
    child.wait()
    with pytest.raises(InputError, match="not complete"):
        CodeStore(run / "codes.lmdb")
    make_codes(run)
    again = load_codes(run)
    assert (again.rows(range(len(again))) == expected).all() and again.names == names
    caption = load_data(run).records[3].text
    before = CodeStore(tiny / "codes.lmdb").text([caption])
    assert again.text([caption]).pooled.equal(before.pooled)


def test_commands_describe_and_verify(tiny, t2igen):
    store = tiny / "codes.lmdb"
    code, out, err = t2igen("codes", "info", store)
    assert code == 0 and "records        96 in blocks of 32" in out, out + err
    assert data_sha256(store / "data.mdb") in out and file_sha256(tiny / "vqvae") in out
    assert t2igen("codes", "verify", store)[0] == 0


def test_commands_convert_and_find_damage(tiny, t2igen, tmp_path):
    store = tiny / "codes.lmdb"
    tables = tmp_path / "tables"
    new = tmp_path / "new.lmdb"
    assert t2igen("codes", "export", store, "--out", tables) == (0, f"{tables}\n", "")
    assert t2igen("codes", "import", tables, "--out", new)[0] == 0
    assert file_sha256(new) == file_sha256(store)
    damage(new, CodeStore(store).rows([40]).tobytes())
    code, out, err = t2igen("codes", "verify", new)
    assert code == 2 and "codes of records 32 to 63" in err and err.count("\n") == 1
    os.truncate(new / "data.mdb", 4096)
    for command in ("verify", "info"):
        assert "has 4,096 of" in t2igen("codes", command, new)[2]
