"""How fast pictures reach the training, and how long it waits for them.

    python benchmarks/loading.py [--profile demo] [--steps 40]

Prints pictures a second of plain Pillow decoding in one process, of the array that the training reads, and the share of a step of VQ-VAE-sized
work that is spent waiting for the next batch. Exits with 1 if that share is 5 % or more."""
import argparse, io, tempfile, time

import numpy as np, torch
from PIL import Image

from t2igen.core import Run, load_config
from t2igen.data import load_data, make_data, square, to_pixels

def rate(work, n:int, seconds:float=2) -> float:
    "Pictures a second of `work()`, which handles `n`."
    work(); start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds: work(); done += n
    return done / (time.perf_counter() - start)

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="demo"); parser.add_argument("--steps", type=int, default=20); parser.add_argument("--pictures", type=int, default=512)
    args = parser.parse_args()
    cfg = load_config(args.profile, {"data.n_train": args.pictures, "data.n_test_seen": 4, "data.n_test_unseen": 4})
    run = Run(tempfile.mkdtemp(), cfg); make_data(run); data = load_data(run)
    size, batch, train, rng = cfg.data.image_size, cfg.vqvae.train.batch_size, data.indices("train"), np.random.default_rng(0)
    files = []
    for i in train[:64]:
        file = io.BytesIO(); Image.fromarray(np.asarray(data.images[i])).resize((256, 256)).save(file, "JPEG"); files.append(file.getvalue())
    def pillow(): return [to_pixels(np.asarray(square(Image.open(io.BytesIO(f)).convert("RGB"), size))) for f in files]
    def loader(): return data.pixels(rng.choice(train, batch))
    plain, ours = rate(pillow, len(files)), rate(loader, batch)
    body = torch.nn.Sequential(*[torch.nn.Sequential(torch.nn.Conv2d(3 if i == 0 else cfg.vqvae.channels, cfg.vqvae.channels, 4 if i < 2 else 3, 2 if i < 2 else 1, 1), torch.nn.SiLU()) for i in range(6)])
    waited, start = 0.0, time.perf_counter()
    for _ in range(args.steps):
        t = time.perf_counter(); pixels = loader(); waited += time.perf_counter() - t
        body(pixels).square().mean().backward()
    share = waited / (time.perf_counter() - start)
    print(f"plain Pillow, 256 px JPEG to {size} px, one process: {plain:10,.0f} pictures/s")
    print(f"the training's array:                             {ours:10,.0f} pictures/s ({ours/plain:.0f} times)")
    print(f"share of {args.steps} steps (batch {batch}, an encoder of the VQ-VAE's width, forward and backward) spent waiting: {share:.2%}")
    raise SystemExit(share >= 0.05)

if __name__ == "__main__": main()
