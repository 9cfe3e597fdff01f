"""How fast codes are read and extracted, and how much room they take.

    python benchmarks/codes.py [--rows 1000000] [--pictures 2048]

Prints, as ratios within one run: (a) random batches from our store against one pickled tuple a key, the common way; (b) against fancy indexing
of an `np.memmap`, the practical limit; (c) extraction against encoding alone; (d) bytes a record against the entropy of the codes. Then it opens
and reads a store of `--rows` synthetic rows. Exits with 1 if a figure misses its aim."""
import argparse, pickle, subprocess, sys, tempfile, time
from pathlib import Path
from statistics import median

import lmdb, numpy as np, torch

from t2igen.blip import load_blip, make_blip
from t2igen.codes import CodeStore, StoreWriter, code_block, feature_block, make_codes, row_widths
from t2igen.core import Run, load_config, require
from t2igen.data import load_data, make_data
from t2igen.vqvae import encode_all, load_vqvae, make_vqvae

META = dict(captions=128, block=128, top=[8, 8], bottom=[16, 16], dtype="uint16", codebook_size=512, pooled=64, states=[32, 128], vqvae="0"*64)

def write(path, rows:np.ndarray):
    "A store of `rows` and random features."
    size, rng = META["block"], np.random.default_rng(1)
    with StoreWriter(path, dict(META, count=len(rows)), map_size=1 << 31) as writer:
        writer.put(feature_block(0, rng.integers(0, 2, (size, row_widths(META)["feature"])).astype(np.uint8), [f"caption {i}" for i in range(size)], 0))
        for i in range(0, len(rows), 64*size):          # 64 blocks a transaction: only the reading is measured
            writer.put([pair for j in range(i, min(i + 64*size, len(rows)), size)
                        for pair in code_block(j // size, rows[j:j+size], [(f"record-{k}", "") for k in range(j, min(j + size, len(rows)))])])
        writer.finish()

def pickled(path, rows:np.ndarray):
    "A function that reads a batch from an LMDB with a pickled tuple (top, bottom, name) a key."
    with lmdb.open(str(path), map_size=1 << 34) as env:
        for i in range(0, len(rows), 4096):
            with env.begin(write=True) as txn:
                for j, row in enumerate(rows[i:i+4096].astype(np.int64), i): txn.put(str(j).encode(), pickle.dumps((row[:64].reshape(8, 8), row[64:].reshape(16, 16), f"record-{j}")))
    env = lmdb.open(str(path), readonly=True, lock=False, readahead=False)
    def read(indices):
        found = []
        for i in indices:
            with env.begin() as txn: found.append(pickle.loads(txn.get(str(i).encode())))
        return dict(top=torch.stack([torch.from_numpy(t) for t, _, _ in found]), bottom=torch.stack([torch.from_numpy(b) for _, b, _ in found]))
    return read

def mapped(path, rows:np.ndarray):
    "Two functions that read a batch from an `np.memmap`: as it is stored, and as int64 tensors."
    np.save(path, rows)
    table = np.load(path, mmap_mode="r")
    def tensors(indices):
        codes = torch.from_numpy(table[indices].astype(np.int64))
        return dict(top=codes[:, :64].view(-1, 8, 8), bottom=codes[:, 64:].view(-1, 16, 16))
    return lambda indices: table[indices], tensors

def rates(readers:dict, count:int, batch:int, batches:int=200) -> dict[str, float]:
    "Rows a second of each reader, on the same random batches, in turns; the median of seven."
    rng = np.random.default_rng(2)
    batches, seconds = [rng.integers(0, count, batch) for _ in range(batches)], {name: [] for name in readers}
    for _ in range(8):
        for name, read in readers.items():
            start = time.perf_counter()
            for indices in batches[:20 if name == "pickled" else None]: read(indices)
            seconds[name].append((time.perf_counter() - start) / (20 if name == "pickled" else len(batches)))
    return {name: batch/median(times[1:]) for name, times in seconds.items()}

def reading(folder:Path, count:int=20_000) -> bool:
    "(a) and (b)."
    rows = np.random.default_rng(0).integers(0, 512, (count, 320)).astype(np.uint16)
    write(folder/"ours.lmdb", rows); store = CodeStore(folder/"ours.lmdb")
    narrow, tensors = mapped(folder/"rows.npy", rows)
    readers = {"ours": store.__getitems__, "ours, narrow": store.rows, "pickled": pickled(folder/"pickled.lmdb", rows), "memmap": tensors, "memmap, narrow": narrow}
    some = [5, count - 1, 5]
    assert all((readers[name](some)["bottom"] == readers["ours"](some)["bottom"]).all() for name in ("pickled", "memmap")) and (narrow(some) == store.rows(some)).all()
    good = True
    for batch in (32, 128, 512):
        r = rates(readers, count, batch)
        a, b, c = r["ours"]/r["pickled"], r["ours"]/r["memmap"], r["ours, narrow"]/r["memmap, narrow"]
        print(f"random batches of {batch:3}: {r['ours']:12,.0f} rows/s; (a) {a:5.1f} times a pickled tuple a key; (b) {b:.2f} times np.memmap, {c:.2f} without widening to int64", flush=True)
        good &= a >= 10 and b >= 0.5 and c >= 0.5
    return good

def entropy(codes:np.ndarray) -> float:
    "Bits a code, if each were coded by how often it occurs."
    p = np.unique(codes, return_counts=True)[1] / codes.size
    return float(-(p*np.log2(p)).sum())

def extraction(folder:Path, pictures:int) -> bool:
    "(c) and (d), with models of the demo's size after one step of training: what they weigh does not change how long they take."
    one = {f"{section}.steps": 1 for section in ("blip.matcher", "blip.captioner", "vqvae.train")}
    run = Run(folder/"run", load_config("demo", {"data.n_train": pictures, "data.n_test_seen": 4, "data.n_test_unseen": 4, **one}))
    for make in (make_data, make_blip, make_vqvae): make(run)
    data, block = load_data(run), run.cfg.codes.batch_size
    captions = sorted({t for r in data.records for t in (r.text, r.title) if t})
    def encode():
        require(run, data=make_data, blip=make_blip, vqvae=make_vqvae)
        data, blip, model = load_data(run), load_blip(run), load_vqvae(run)
        for i in range(0, len(captions), block): blip.embed_texts(captions[i:i+block])
        for i in range(0, len(data), block):
            part = range(i, min(i + block, len(data)))
            encode_all(model, data.pixels(part), blip.embed_texts([data.records[k].text for k in part]).pooled, len(part))
    seconds = {encode: [], make_codes: []}
    for _ in range(8):
        for work in seconds:
            start = time.perf_counter()
            work(*([run] if work is make_codes else []))
            seconds[work].append(time.perf_counter() - start)
    c = min(seconds[encode][1:])/min(seconds[make_codes][1:])
    store, m = CodeStore(run/"codes.lmdb"), CodeStore(run/"codes.lmdb").meta
    codes, widths = store[range(len(store))], row_widths(m)
    bits = sum(codes[level][0].numel()*entropy(codes[level].numpy()) for level in ("top", "bottom"))
    size = (run/"codes.lmdb"/"data.mdb").stat().st_size / (len(store)*widths["code"] + m["captions"]*widths["feature"])
    print(f"extraction of {len(data)} pictures and {len(captions)} captions: {len(data)/min(seconds[make_codes]):,.0f} images/s, (c) {c:.2f} times encoding alone")
    print(f"(d) {widths['code']} bytes a record, {8*widths['code']/bits:.2f} times the entropy of its codes ({bits/8:.0f} bytes)")
    print(f"the store: {size:.3f} times the raw codes and text features")
    return c >= 0.9 and size < 1.3

READ = """
import os, sys, time
import numpy as np
from t2igen.codes import CodeStore
def memory(kind): return next(int(line.split()[1])/1024 for line in open("/proc/self/status") if line.startswith(kind))
start = time.perf_counter(); store = CodeStore(sys.argv[1]); store[[0]]; opened = 1e3*(time.perf_counter() - start)
rng, before = np.random.default_rng(0), None
for i in range(8000):
    store[rng.integers(0, len(store), 128)]
    if i == 100: before = memory("RssAnon")
print(opened, before, memory("RssAnon"), memory("RssFile"))
"""

def large(folder:Path, count:int) -> bool:
    "A store of `count` rows: opening, and memory while a million rows are read in a fresh process."
    rows = np.lib.format.open_memmap(folder/"large.npy", "w+", np.uint16, (count, 320))
    rng = np.random.default_rng(0)
    for i in range(0, count, 10_000): rows[i:i+10_000] = rng.integers(0, 512, rows[i:i+10_000].shape)
    write(folder/"large.lmdb", rows)
    done = subprocess.run([sys.executable, "-c", READ, str(folder/"large.lmdb")], capture_output=True, text=True, check=True)
    opened, before, after, mapped = map(float, done.stdout.split())
    size = (folder/"large.lmdb"/"data.mdb").stat().st_size / (count*640 + META["captions"]*row_widths(META)["feature"])
    print(f"{count:,} rows: opened and first row read in {opened:.1f} ms; own memory {before:.1f} MiB after 100 batches, {after:.1f} MiB after 8,000 "
          f"({mapped:.0f} MiB of the file are mapped, which the system may take back); {size:.3f} times the raw codes and features")
    return opened < 50 and after - before < 8 and size < 1.3

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000); parser.add_argument("--pictures", type=int, default=2048)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        good = [reading(Path(folder)), extraction(Path(folder), args.pictures), large(Path(folder), args.rows)]
    raise SystemExit(not all(good))

if __name__ == "__main__": main()
