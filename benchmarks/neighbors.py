"""What a busy neighbor costs, by how threads wait for each other.

    python benchmarks/neighbors.py [--steps 40] [--repeats 2] [--loads 0 0.3 1]

Steps a second of the VQ-VAE's training, of the demo's sizes on random pictures: on two threads that
sleep at once, that look a moment and then sleep (as the commands of t2igen tell them to), or that
look for long (OpenMP's default), and on one thread. Beside it run processes that want so much of a
core: `--loads`, the whole part of each as processes that are never idle. Each figure is the median
of `--repeats`, each a process of its own, since the way of waiting is chosen once. The bytes that a
training ends with depend on the number of threads, not on how they wait."""
import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time

from t2igen.cli.shell import WAITING

WAYS = {
    "two, sleep": (2, {"OMP_WAIT_POLICY": "PASSIVE"}),
    "two, look 100": (2, {"GOMP_SPINCOUNT": "100"}),
    "two, as t2igen": (2, WAITING),
    "two, look 10000": (2, {"GOMP_SPINCOUNT": "10000"}),
    "two, default": (2, {}),
    "one": (1, {}),
}
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
SLICE = 0.05      # seconds within which a neighbor works its share


def be_busy(share: float):
    "Work for `share` of every slice of time, for ever."
    while True:
        until = time.perf_counter() + share * SLICE
        while time.perf_counter() < until:
            pass
        time.sleep((1 - share) * SLICE)


class RandomPictures:
    "As many random pictures with random texts as are asked for."

    def __init__(self, side: int, text_dim: int, n: int = 64):
        import torch
        self.pixels = torch.rand(n, 3, side, side) * 2 - 1
        self.text = torch.randn(n, text_dim)

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, indices) -> dict:
        return dict(pixels=self.pixels[indices], text=self.text[indices])


def steps_a_second(threads: int, steps: int) -> float:
    "Of the VQ-VAE's training; the first steps are not counted."
    import torch

    from t2igen.settings import load_config
    from t2igen.training.loop import train
    from t2igen.vqvae.losses import vqvae_objective
    from t2igen.vqvae.model import new_vqvae

    torch.set_num_threads(threads)
    run = load_config("demo")
    cfg = run.vqvae.model_copy(deep=True)
    warm = 5
    cfg.train.steps = warm + steps
    begun = []

    def note(step):
        begun.append(time.perf_counter())

    dataset = RandomPictures(run.data.image_size, run.blip.embed_dim)
    model = new_vqvae(cfg, run.blip.embed_dim).to(memory_format=torch.channels_last)
    with tempfile.TemporaryDirectory() as folder:
        train(model, vqvae_objective(cfg), dataset, cfg.train, folder, before_step=note)
    return (steps - 1) / (begun[-1] - begun[warm])


@contextlib.contextmanager
def neighbors(load: float):
    "While the block runs, processes that want `load` cores."
    shares = [1.0] * int(load) + ([load % 1] if load % 1 else [])
    command = [sys.executable, __file__, "--be-busy"]
    started = [subprocess.Popen([*command, str(share)]) for share in shares]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def measure(way: str, steps: int) -> float:
    "Steps a second of one way, in a process of its own."
    threads, given = WAYS[way]
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    command = [sys.executable, __file__, "--measure", str(threads), "--steps", str(steps)]
    done = subprocess.run(
        command, env={**kept, **given}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, check=True)
    return float(done.stdout.split()[-1])


def print_table(args):
    "A line for each way to wait, a column for each load."
    head = [f"{load:g} cores busy" if load else "idle" for load in args.loads]
    print("| threads | " + " | ".join(head) + " |")
    print("|---|" + "---|" * len(head))
    for way in WAYS:
        cells = []
        for load in args.loads:
            with neighbors(load):
                found = [measure(way, args.steps) for _ in range(args.repeats)]
            cells.append(f"{statistics.median(found):.2f}")
        print(f"| {way} | " + " | ".join(cells) + " |", flush=True)


def arguments() -> argparse.Namespace:
    "The command line."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--loads", type=float, nargs="+", default=[0, 0.3, 1])
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--be-busy", type=float, help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    args = arguments()
    if args.be_busy:
        be_busy(args.be_busy)
    elif args.measure:
        print(steps_a_second(args.measure, args.steps))
    else:
        print_table(args)


if __name__ == "__main__":
    main()
