"""How fast grids of codes are drawn.

    python benchmarks/sampling.py [--sides 8 16 32] [--batches 1 16 64] [--channels 416] [--blocks 4] [--attention 0.25] [--cpu-time]

A PixelSNAIL of about 11 million random parameters, float32. For each side of the grid and each batch: seconds to draw the batch with the cached
sampler, over seconds of one teacher-forced forward pass of that batch, and against the sampler of public PixelSNAIL code, which runs the network
on rows 0 to r for every position of row r. That baseline is timed at five heights and interpolated over the rows. `last/first` is the median cost of
a position in the last quarter over that in the first. Then, what bounds it. On a machine with other work, --cpu-time with OMP_NUM_THREADS=1 counts
the seconds this process was given instead of those on the wall. Exits with 1 if a target at batch 16 is missed."""
import argparse, statistics, time

import numpy as np, torch
import torch.nn.functional as F
from torch import nn

from t2igen.blip import TextFeatures
from t2igen.core import keep_freed_memory, seed_everything
from t2igen.pixelsnail import CausalConv2d, PixelSnail
from t2igen.sampling import sample_steps, uniforms

TARGETS = {16: (6, 12), 32: (8, 60)}          # side: at most so many forward passes, at least so many times faster than the baseline
FLAT = 1.3                                    # last over first quarter, at most
clock = time.perf_counter

def seconds(work, times:int=1) -> float:
    "The least seconds that `work()` takes in `times` calls."
    def one(): start = clock(); work(); return clock() - start
    return min(one() for _ in range(times))

def cached(model, text, u) -> list[float]:
    "Seconds of each position of the cached sampler; the first includes the condition."
    marks = [clock()]
    for _ in sample_steps(model, text, u, top_p=0.9): marks.append(clock())
    return np.diff(marks).tolist()

@torch.inference_mode()
def truncated(model, text, codes) -> float:
    "Seconds of the row-truncated full-forward sampler: timed at five heights, interpolated over the others."
    h, w = model.grid
    condition, heights = model.condition(text), sorted({1, h//4, h//2, 3*h//4, h})
    def position(rows): return torch.multinomial(model.first_rows(codes[:, :rows], condition, text.mask)[:, -1, 0].softmax(-1), 1)
    return w*np.interp(range(1, h + 1), heights, [seconds(lambda: position(rows)) for rows in heights]).sum()

def measure(side:int, batch:int, args) -> dict:
    "All figures of one grid and batch."
    seed_everything("benchmark", side)
    model = PixelSnail((side, side), 512, 32, args.channels, args.blocks, 4, 3, 64, 128, 0.0, attention=args.attention).eval()
    text, codes = TextFeatures(torch.randn(batch, 64), torch.randn(batch, 32, 128), torch.ones(batch, 32).bool()), torch.randint(512, (batch, side, side))
    with torch.inference_mode(): forward = seconds(lambda: model(codes, text), 1 if side*side*batch > 20_000 else 2)
    positions = cached(model, text, uniforms(range(batch), side*side))
    quarter = len(positions)//4
    first, last = (statistics.median(part) for part in (positions[1:quarter], positions[-quarter:]))
    return dict(model=model, forward=forward, drawn=sum(positions), baseline=truncated(model, text, codes), flat=last/first, position=np.percentile(positions[-quarter:], 10))

@torch.inference_mode()
def products(model, batch:int) -> float:
    "Seconds of the matrix products of one position by themselves."
    once = ("conditions", "kv", "pooled")                                          # computed once a grid
    layers = [m for name, m in model.named_modules() if isinstance(m, (CausalConv2d, nn.Linear)) and name.split(".")[-1] not in once and name.split(".")[0] not in once]
    weights = [m.conv.weight.flatten(1) if isinstance(m, CausalConv2d) else m.weight for m in layers]
    inputs = [torch.randn(batch, w.shape[1]) for w in weights]
    return seconds(lambda: [F.linear(x, w) for x, w in zip(inputs, weights)], 10)

def explain(m:dict, side:int, batch:int) -> str:
    "What bounds a late position, from a measurement and what this machine can do by itself."
    model, big = m["model"], torch.randn(2048, 2048)
    parameters, product, alone = sum(p.numel() for p in model.parameters()), seconds(lambda: big @ big, 3), products(model, batch)
    known = 4*2*batch*side*side*sum(b.attention.qkv.out_features//3 for b in model.blocks if b.attention)       # bytes of all keys and values
    return (f"\n{parameters/1e6:.1f} million parameters. A late position at {side}x{side}, batch {batch}, takes {1e3*m['position']:.1f} ms; its matrix products alone take {1e3*alone:.1f} ms, {alone/m['position']:.0%}"
            f"\n(at {2*parameters*batch/alone/1e9:.0f} GFLOP/s; the forward pass reaches {2*parameters*batch*side*side/m['forward']/1e9:.0f}, a large product {2*2048**3/product/1e9:.0f}). The rest is attention, which reads "
            f"{known/1e6:.0f} MB of keys and values\nbeside {4*parameters/1e6:.0f} MB of weights, and small operations.")

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, values in (("--sides", [8, 16, 32]), ("--batches", [1, 16, 64])): parser.add_argument(name, type=int, nargs="+", default=values)
    for name, value in (("--channels", 416), ("--blocks", 4)): parser.add_argument(name, type=int, default=value)
    parser.add_argument("--attention", type=float, default=0.25, help="width of causal attention as a share of the channels")
    parser.add_argument("--cpu-time", action="store_true", help="count the process's seconds, not the wall's")
    args, missed = parser.parse_args(), []
    global clock
    clock = time.process_time if args.cpu_time else time.perf_counter
    keep_freed_memory()
    print(f"{torch.get_num_threads()} threads, float32{', processor time' if args.cpu_time else ''}; the baseline is interpolated from five heights\n")
    print(f"{'grid':>7} {'batch':>5} {'forward s':>10} {'drawn s':>9} {'passes':>7} {'baseline s':>11} {'faster':>7} {'last/first':>10}")
    for side in args.sides:
        for batch in args.batches:
            m = measure(side, batch, args); passes, faster = m["drawn"]/m["forward"], m["baseline"]/m["drawn"]
            print(f"{side:>4}x{side:<2} {batch:>5} {m['forward']:>10.3f} {m['drawn']:>9.2f} {passes:>7.2f} {m['baseline']:>11.1f} {faster:>6.0f}x {m['flat']:>10.2f}", flush=True)
            if batch == 16 and side in TARGETS:
                most, least = TARGETS[side]
                if passes > most or faster < least or m["flat"] > FLAT: missed.append(f"{side}x{side}: at most {most} passes, at least {least}x, last/first at most {FLAT}")
            if batch == 16: bound = explain(m, side, batch)
    if 16 in args.batches: print(bound, f"\nMissed: {'; '.join(missed)}" if missed else "\nNo target at batch 16 is missed.", sep="\n")
    raise SystemExit(bool(missed))

if __name__ == "__main__": main()
