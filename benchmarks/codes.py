"""How fast codes are read and extracted, and how much room they take.

    python benchmarks/codes.py [--rows 1000000] [--pictures 2048]

Prints, as ratios within one run: (a) random batches from our store against one pickled tuple a key,
the common way; (b) against fancy indexing of an `np.memmap`, the practical limit; (c) extraction
against encoding alone; (d) bytes a record against the entropy of the codes. Then it opens and reads
a store of `--rows` synthetic rows. Exits with 1 if a figure misses its aim."""
import argparse
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import lmdb
import numpy as np
import torch

from t2igen.blip.stage import load_blip
from t2igen.codes.extract import block_ranges
from t2igen.codes.format import code_block, feature_block, row_widths
from t2igen.codes.stage import all_captions, make_codes
from t2igen.codes.store import CodeStore
from t2igen.codes.writer import StoreWriter
from t2igen.core.run import Run, make_inputs
from t2igen.data.stage import load_data
from t2igen.settings import load_config
from t2igen.vqvae.encode import encode_all
from t2igen.vqvae.stage import load_vqvae

META = dict(captions=128, block=128, top=[8, 8], bottom=[16, 16], dtype="uint16",
            codebook_size=512, vocabulary=300, pooled=64, states=[32, 128], vqvae="0" * 64)
SIZE = META["block"]


def write(path, rows: np.ndarray):
    "A store of `rows` and random features."
    shape = (SIZE, row_widths(META)["feature"])
    features = np.random.default_rng(1).integers(0, 2, shape).astype(np.uint8)
    ranges = block_ranges(len(rows), SIZE)
    with StoreWriter(path, dict(META, count=len(rows)), map_size=1 << 31) as writer:
        writer.put(feature_block(0, features, [f"caption {i}" for i in range(SIZE)], 0))
        for i in range(0, len(ranges), 64):          # blocks a transaction: reading is measured
            pairs = []
            for k, own in enumerate(ranges[i:i + 64], i):
                labels = [(f"record-{j}", "") for j in own]
                pairs += code_block(k, rows[own.start:own.stop], labels)
            writer.put(pairs)
        writer.finish()


def pickled(path, rows: np.ndarray):
    """A function that reads a batch from an LMDB with a pickled tuple (top, bottom, name) a key."""
    with lmdb.open(str(path), map_size=1 << 34) as env:
        for i in range(0, len(rows), 4096):
            with env.begin(write=True) as txn:
                for j, row in enumerate(rows[i:i + 4096].astype(np.int64), i):
                    entry = row[:64].reshape(8, 8), row[64:].reshape(16, 16), f"record-{j}"
                    txn.put(str(j).encode(), pickle.dumps(entry))
    env = lmdb.open(str(path), readonly=True, lock=False, readahead=False)

    def read(indices):
        found = []
        for i in indices:
            with env.begin() as txn:
                found.append(pickle.loads(txn.get(str(i).encode())))
        return dict(top=torch.stack([torch.from_numpy(t) for t, _, _ in found]),
                    bottom=torch.stack([torch.from_numpy(b) for _, b, _ in found]))

    return read


def mapped(path, rows: np.ndarray):
    "Two functions that read a batch from an `np.memmap`: as it is stored, and as int64 tensors."
    np.save(path, rows)
    table = np.load(path, mmap_mode="r")

    def tensors(indices):
        codes = torch.from_numpy(table[indices].astype(np.int64))
        return dict(top=codes[:, :64].view(-1, 8, 8), bottom=codes[:, 64:].view(-1, 16, 16))

    return lambda indices: table[indices], tensors


def rates(readers: dict, count: int, batch: int, times: int = 200) -> dict[str, float]:
    "Rows a second of each reader, on the same random batches, in turns; the median of seven."
    rng = np.random.default_rng(2)
    batches = [rng.integers(0, count, batch) for _ in range(times)]
    seconds = {name: [] for name in readers}
    for _ in range(8):
        for name, read in readers.items():
            own = batches[:20] if name == "pickled" else batches
            start = time.perf_counter()
            for indices in own:
                read(indices)
            seconds[name].append((time.perf_counter() - start) / len(own))
    return {name: batch / median(spent[1:]) for name, spent in seconds.items()}


def check_readers(readers: dict, count: int):
    "Whether all read the same."
    some = [5, count - 1, 5]
    ours = readers["ours"](some)["bottom"]
    for name in ("pickled", "memmap"):
        assert (readers[name](some)["bottom"] == ours).all()
    assert (readers["memmap, narrow"](some) == readers["ours, narrow"](some)).all()


def reading(folder: Path, count: int = 20_000) -> bool:
    "(a) and (b)."
    rows = np.random.default_rng(0).integers(0, 512, (count, 320)).astype(np.uint16)
    write(folder / "ours.lmdb", rows)
    store = CodeStore(folder / "ours.lmdb")
    narrow, tensors = mapped(folder / "rows.npy", rows)
    readers = {"ours": store.__getitems__, "ours, narrow": store.rows,
               "pickled": pickled(folder / "pickled.lmdb", rows), "memmap": tensors,
               "memmap, narrow": narrow}
    check_readers(readers, count)
    good = True
    for batch in (32, 128, 512):
        r = rates(readers, count, batch)
        a = r["ours"] / r["pickled"]
        b = r["ours"] / r["memmap"]
        c = r["ours, narrow"] / r["memmap, narrow"]
        print(f"random batches of {batch:3}: {r['ours']:12,.0f} rows/s; (a) {a:5.1f} times a "
              f"pickled tuple a key; (b) {b:.2f} times np.memmap, {c:.2f} without widening to "
              "int64", flush=True)
        good &= a >= 10 and b >= 0.5 and c >= 0.5
    return good


def entropy(codes: np.ndarray) -> float:
    "Bits a code, if each were coded by how often it occurs."
    p = np.unique(codes, return_counts=True)[1] / codes.size
    return float(-(p * np.log2(p)).sum())


def encode_alone(run: Run):
    "What extraction computes, without a store."
    make_inputs(run, "codes")
    data = load_data(run)
    blip = load_blip(run)
    model = load_vqvae(run)
    captions = all_captions(data)
    block = run.cfg.codes.batch_size
    for own in block_ranges(len(captions), block):
        blip.embed_texts([captions[i] for i in own])
    for own in block_ranges(len(data), block):
        pooled = blip.embed_texts([data.records[i].text for i in own]).pooled
        encode_all(model, data.pixels(own), pooled, len(own))


def extraction(folder: Path, pictures: int) -> bool:
    """(c) and (d), with models of the demo's size after one step of training: what they weigh does
    not change how long they take."""
    sizes = {"data.n_train": pictures, "data.n_test_seen": 4, "data.n_test_unseen": 4}
    trained = ("blip.matcher", "blip.captioner", "vqvae")
    one = {f"{section}.train.steps": 1 for section in trained}
    run = Run(folder / "run", load_config("demo", {**sizes, **one}))
    make_inputs(run, "codes")
    seconds = {encode_alone: [], make_codes: []}
    for _ in range(8):
        for work, spent in seconds.items():
            start = time.perf_counter()
            work(run)
            spent.append(time.perf_counter() - start)
    extracting = min(seconds[make_codes][1:])
    c = min(seconds[encode_alone][1:]) / extracting
    store = CodeStore(run / "codes.lmdb")
    codes = store[range(len(store))]
    widths = row_widths(store.meta)
    bits = sum(grids[0].numel() * entropy(grids.numpy()) for grids in codes.values())
    raw = len(store) * widths["code"] + store.meta["captions"] * widths["feature"]
    size = (run / "codes.lmdb" / "data.mdb").stat().st_size / raw
    print(f"extraction of {len(store)} pictures and {store.meta['captions']} captions: "
          f"{len(store)/extracting:,.0f} images/s, (c) {c:.2f} times encoding alone")
    print(f"(d) {widths['code']} bytes a record, {8*widths['code']/bits:.2f} times the entropy of "
          f"its codes ({bits/8:.0f} bytes)")
    print(f"the store: {size:.3f} times the raw codes and text features")
    return c >= 0.9 and size < 1.3


READ = """
import sys
import time
import numpy as np
from t2igen.codes.store import CodeStore
def memory(kind):
    lines = open("/proc/self/status")
    return next(int(line.split()[1])/1024 for line in lines if line.startswith(kind))
start = time.perf_counter()
store = CodeStore(sys.argv[1])
store[[0]]
opened = 1e3*(time.perf_counter() - start)
rng = np.random.default_rng(0)
before = None
for i in range(8000):
    store[rng.integers(0, len(store), 128)]
    if i == 100:
        before = memory("RssAnon")
print(opened, before, memory("RssAnon"), memory("RssFile"))
"""


def large(folder: Path, count: int) -> bool:
    "A store of `count` rows: opening, and memory while a million rows are read in a new process."
    rows = np.lib.format.open_memmap(folder / "large.npy", "w+", np.uint16, (count, 320))
    rng = np.random.default_rng(0)
    for i in range(0, count, 10_000):
        part = rows[i:i + 10_000]
        part[:] = rng.integers(0, 512, part.shape)
    write(folder / "large.lmdb", rows)
    command = [sys.executable, "-c", READ, str(folder / "large.lmdb")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    opened, before, after, in_map = map(float, done.stdout.split())
    raw = count * 640 + META["captions"] * row_widths(META)["feature"]
    size = (folder / "large.lmdb" / "data.mdb").stat().st_size / raw
    print(f"{count:,} rows: opened and first row read in {opened:.1f} ms; own memory {before:.1f} "
          f"MiB after 100 batches, {after:.1f} MiB after 8,000 ({in_map:.0f} MiB of the file are "
          f"mapped, which the system may take back); {size:.3f} times the raw codes and features")
    return opened < 50 and after - before < 8 and size < 1.3


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--pictures", type=int, default=2048)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        good = [reading(folder), extraction(folder, args.pictures), large(folder, args.rows)]
    raise SystemExit(not all(good))


if __name__ == "__main__":
    main()
