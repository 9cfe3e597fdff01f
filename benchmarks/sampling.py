"""How fast grids of codes are drawn.

    python benchmarks/sampling.py [--sides 8 16 32] [--batches 1 16 64] [--channels 416]
                                  [--blocks 4] [--attention 0.25] [--cpu-time]

A PixelSNAIL of about 11 million random parameters, float32. For each side of the grid and each
batch: seconds to draw the batch with the cached sampler, over seconds of one teacher-forced forward
pass of that batch, and against the sampler of public PixelSNAIL code, which runs the network on
rows 0 to r for every position of row r. That baseline is timed at five heights and interpolated
over the rows. `last/first` is the median cost of a position in the last quarter over that in the
first. Then, what bounds it. On a machine with other work, --cpu-time with OMP_NUM_THREADS=1 counts
the seconds this process was given instead of those on the wall. Exits with 1 if a target at batch
16 is missed."""
import argparse
import statistics
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from t2igen.blip.embed import TextFeatures
from t2igen.core.device import keep_freed_memory, seed_everything
from t2igen.prior.layers import CausalConv2d
from t2igen.prior.pixelsnail import PixelSnail
from t2igen.sampling.draw import sample_steps, uniforms

TARGETS = {16: (6, 12), 32: (8, 60)}     # side: at most so many passes, at least so much faster
FLAT = 1.3                               # last over first quarter, at most
clock = time.perf_counter


def seconds(work, times: int = 1) -> float:
    "The least seconds that `work()` takes in `times` calls."
    spent = []
    for _ in range(times):
        start = clock()
        work()
        spent.append(clock() - start)
    return min(spent)


def cached(model, text, u) -> list[float]:
    "Seconds of each position of the cached sampler; the first includes the condition."
    marks = [clock()]
    for _ in sample_steps(model, text, u, top_p=0.9):
        marks.append(clock())
    return np.diff(marks).tolist()


@torch.inference_mode()
def truncated(model, text, codes) -> float:
    """Seconds of the row-truncated full-forward sampler: timed at five heights, interpolated over
    the others."""
    h, w = model.grid
    condition = model.condition(text)
    heights = sorted({1, h // 4, h // 2, 3*h // 4, h})

    def position(rows):
        logits = model.first_rows(codes[:, :rows], condition, text.mask)[:, -1, 0]
        return torch.multinomial(logits.softmax(-1), 1)

    timed = []
    for rows in heights:
        timed.append(seconds(lambda rows=rows: position(rows)))
    return w * np.interp(range(1, h + 1), heights, timed).sum()


def measure(side: int, batch: int, args) -> dict:
    "All figures of one grid and batch."
    seed_everything("benchmark", side)
    model = PixelSnail((side, side), 512, 32, args.channels, args.blocks, 4, 3, 64, 128, 0.0,
                       attention=args.attention).eval()
    text = TextFeatures(torch.randn(batch, 64), torch.randn(batch, 32, 128),
                        torch.ones(batch, 32).bool())
    codes = torch.randint(512, (batch, side, side))
    with torch.inference_mode():
        forward = seconds(lambda: model(codes, text), 1 if side*side*batch > 20_000 else 2)
    positions = cached(model, text, uniforms(range(batch), side * side))
    quarter = len(positions) // 4
    first = statistics.median(positions[1:quarter])
    last = statistics.median(positions[-quarter:])
    return dict(model=model, forward=forward, drawn=sum(positions),
                baseline=truncated(model, text, codes), flat=last / first,
                position=np.percentile(positions[-quarter:], 10))


@torch.inference_mode()
def products(model, batch: int) -> float:
    "Seconds of the matrix products of one position by themselves."
    once = ("conditions", "kv", "pooled")                          # computed once a grid
    weights = []
    for name, layer in model.named_modules():
        parts = name.split(".")
        if parts[0] in once or parts[-1] in once:
            continue
        if isinstance(layer, CausalConv2d):
            weights.append(layer.conv.weight.flatten(1))
        elif isinstance(layer, nn.Linear):
            weights.append(layer.weight)
    inputs = [torch.randn(batch, w.shape[1]) for w in weights]
    return seconds(lambda: [F.linear(x, w) for x, w in zip(inputs, weights)], 10)


def explain(m: dict, side: int, batch: int) -> str:
    "What bounds a late position, from a measurement and what this machine can do by itself."
    model = m["model"]
    big = torch.randn(2048, 2048)
    parameters = sum(p.numel() for p in model.parameters())
    product = seconds(lambda: big @ big, 3)
    alone = products(model, batch)
    widths = [b.attention.qkv.out_features // 3 for b in model.blocks if b.attention]
    known = 4 * 2 * batch * side * side * sum(widths)              # bytes of keys and values
    late = m["position"]
    flops = 2 * parameters * batch
    return (
        f"\n{parameters/1e6:.1f} million parameters. A late position at {side}x{side}, batch "
        f"{batch}, takes {1e3*late:.1f} ms; its matrix products alone take {1e3*alone:.1f} ms, "
        f"{alone/late:.0%}\n(at {flops/alone/1e9:.0f} GFLOP/s; the forward pass reaches "
        f"{flops*side*side/m['forward']/1e9:.0f}, a large product {2*2048**3/product/1e9:.0f}). "
        f"The rest is attention, which reads {known/1e6:.0f} MB of keys and values\nbeside "
        f"{4*parameters/1e6:.0f} MB of weights, and small operations.")


def report(side: int, batch: int, m: dict) -> str:
    "Prints a line of the table; the target that was missed, or an empty string."
    passes = m["drawn"] / m["forward"]
    faster = m["baseline"] / m["drawn"]
    print(f"{side:>4}x{side:<2} {batch:>5} {m['forward']:>10.3f} {m['drawn']:>9.2f} "
          f"{passes:>7.2f} {m['baseline']:>11.1f} {faster:>6.0f}x {m['flat']:>10.2f}", flush=True)
    if batch != 16 or side not in TARGETS:
        return ""
    most, least = TARGETS[side]
    if passes <= most and faster >= least and m["flat"] <= FLAT:
        return ""
    return f"{side}x{side}: at most {most} passes, at least {least}x, last/first at most {FLAT}"


def arguments() -> argparse.Namespace:
    "The command line."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--channels", type=int, default=416)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--attention", type=float, default=0.25,
                        help="width of causal attention as a share of the channels")
    parser.add_argument("--cpu-time", action="store_true",
                        help="count the process's seconds, not the wall's")
    return parser.parse_args()


def main():
    global clock
    args = arguments()
    clock = time.process_time if args.cpu_time else time.perf_counter
    keep_freed_memory()
    print(f"{torch.get_num_threads()} threads, float32"
          f"{', processor time' if args.cpu_time else ''}; "
          "the baseline is interpolated from five heights\n")
    print(f"{'grid':>7} {'batch':>5} {'forward s':>10} {'drawn s':>9} {'passes':>7} "
          f"{'baseline s':>11} {'faster':>7} {'last/first':>10}")
    missed = []
    bound = ""
    for side in args.sides:
        for batch in args.batches:
            m = measure(side, batch, args)
            missed.append(report(side, batch, m))
            if batch == 16:
                bound = explain(m, side, batch)
    missed = [words for words in missed if words]
    if bound:
        print(bound)
        print(f"\nMissed: {'; '.join(missed)}" if missed else
              "\nNo target at batch 16 is missed.")
    raise SystemExit(bool(missed))


if __name__ == "__main__":
    main()
