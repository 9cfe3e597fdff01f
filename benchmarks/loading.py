"""How fast pictures reach the training, and how long it waits for them.

    python benchmarks/loading.py [--profile demo] [--steps 30]       a short run of every training at the profile's sizes
    python benchmarks/loading.py --run-dir runs/demo                 what the trainings of a finished run recorded

Prints pictures a second of plain Pillow decoding in one process and of the array that the trainings read, and for each training the share
of its step time that it spent waiting for the next batch. Exits with 1 if one of these shares is 5 % or more."""
import argparse, io, tempfile, time
from pathlib import Path

import numpy as np
from PIL import Image

from t2igen.blip import make_blip
from t2igen.codes import make_codes
from t2igen.core import Run, load_config
from t2igen.data import load_data, make_data, square, to_pixels
from t2igen.pixelsnail import make_prior
from t2igen.training import read_history
from t2igen.vqvae import make_vqvae

TRAININGS = ("blip.matcher", "blip.captioner", "vqvae.train", "prior.top", "prior.bottom")

def rate(work, n:int, seconds:float=2) -> float:
    "Pictures a second of `work()`, which handles `n`."
    work(); start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds: work(); done += n
    return done / (time.perf_counter() - start)

def short_run(profile:str, steps:int, pictures:int) -> Run:
    "All trainings of a profile at its sizes, but with few steps on few pictures."
    cfg = load_config(profile, {"data.n_train": pictures, "data.n_test_seen": 4, "data.n_test_unseen": 4, **{f"{name}.steps": steps for name in TRAININGS}})
    run = Run(tempfile.mkdtemp(), cfg)
    make_data(run); make_blip(run); make_vqvae(run); make_codes(run); make_prior(run)
    return run

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="demo"); parser.add_argument("--run-dir", type=Path)
    parser.add_argument("--steps", type=int, default=30); parser.add_argument("--pictures", type=int, default=512)
    args = parser.parse_args()
    run = Run.open(args.run_dir) if args.run_dir else short_run(args.profile, args.steps, args.pictures)
    data, size, batch = load_data(run), run.cfg.data.image_size, run.cfg.vqvae.train.batch_size
    files, train, rng = [], data.indices("train"), np.random.default_rng(0)
    for i in train[:64]:
        file = io.BytesIO(); Image.fromarray(np.asarray(data.images[i])).resize((256, 256)).save(file, "JPEG"); files.append(file.getvalue())
    def pillow(): return [to_pixels(np.asarray(square(Image.open(io.BytesIO(f)).convert("RGB"), size))) for f in files]
    plain, ours = rate(pillow, len(files)), rate(lambda: data.pixels(rng.choice(train, batch)), batch)
    print(f"plain Pillow, 256 px JPEG to {size} px, one process: {plain:10,.0f} pictures/s")
    print(f"the training's array:                             {ours:10,.0f} pictures/s ({ours/plain:.0f} times)")
    shares = {path.name.removesuffix("_history.csv"): np.mean([row["waiting"] for row in read_history(path)]) for path in sorted(run.folder.glob("*/*_history.csv"))}
    for name, share in shares.items(): print(f"{name:12} {share:6.2%} of the step time is spent waiting for batches")
    raise SystemExit(int(max(shares.values()) >= 0.05))

if __name__ == "__main__": main()
