"""How fast pictures reach the training, and how long it waits for them.

    python benchmarks/loading.py [--profile demo] [--steps 30]
        a short run of every training at the profile's sizes
    python benchmarks/loading.py --run-dir runs/demo
        what the trainings of a finished run recorded

Prints pictures a second of plain Pillow decoding in one process and of the array that the trainings
read, and for each training the share of its step time that it spent waiting for the next batch.
Exits with 1 if one of these shares is 5 % or more."""
import argparse
import io
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from t2igen.core.run import Run, make_inputs
from t2igen.data.fit import fit_picture
from t2igen.data.pixels import to_pixels
from t2igen.data.stage import load_data
from t2igen.settings import existing_run, load_config
from t2igen.training.checkpoint import read_history

TRAININGS = ("blip.matcher.train", "blip.captioner.train", "vqvae.train", "prior.top.train",
             "prior.bottom.train")


def rate(work, n: int, seconds: float = 2) -> float:
    "Pictures a second of `work()`, which handles `n`."
    work()
    done = 0
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        work()
        done += n
    return done / (time.perf_counter() - start)


def short_run(profile: str, steps: int, pictures: int) -> Run:
    "All trainings of a profile at its sizes, but with few steps on few pictures."
    settings = {"data.n_train": pictures, "data.n_test_seen": 4, "data.n_test_unseen": 4}
    settings.update({f"{name}.steps": steps for name in TRAININGS})
    run = Run(tempfile.mkdtemp(), load_config(profile, settings))
    make_inputs(run, "samples")                    # all that is trained
    return run


def photograph(image: np.ndarray) -> bytes:
    "A picture as a JPEG file of 256 pixels a side."
    file = io.BytesIO()
    Image.fromarray(np.asarray(image)).resize((256, 256)).save(file, "JPEG")
    return file.getvalue()


def measure_reading(run: Run):
    "Print how fast files and the run's array are read."
    data = load_data(run)
    size = run.cfg.data.image_size
    batch = run.cfg.vqvae.train.batch_size
    train = data.indices("train")
    files = [photograph(data.images[i]) for i in train[:64]]
    rng = np.random.default_rng(0)

    def pillow():
        for file in files:
            image = Image.open(io.BytesIO(file)).convert("RGB")
            to_pixels(np.asarray(fit_picture(image, size)))

    plain = rate(pillow, len(files))
    ours = rate(lambda: data.pixels(rng.choice(train, batch)), batch)
    print(f"plain Pillow, 256 px JPEG to {size} px, one process: {plain:10,.0f} pictures/s")
    print(f"the training's array:                             {ours:10,.0f} pictures/s "
          f"({ours/plain:.0f} times)")


def waiting_shares(run: Run) -> dict[str, float]:
    "Of each training the share of its step time spent waiting for batches."
    shares = {}
    for path in sorted(run.folder.glob("*/*_history.csv")):
        waited = [row["waiting"] for row in read_history(path)]
        shares[path.name.removesuffix("_history.csv")] = float(np.mean(waited))
    return shares


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--run-dir", type=Path)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--pictures", type=int, default=512)
    args = parser.parse_args()
    if args.run_dir:
        run = existing_run(args.run_dir)
    else:
        run = short_run(args.profile, args.steps, args.pictures)
    measure_reading(run)
    shares = waiting_shares(run)
    for name, share in shares.items():
        print(f"{name:12} {share:6.2%} of the step time is spent waiting for batches")
    raise SystemExit(int(max(shares.values()) >= 0.05))


if __name__ == "__main__":
    main()
