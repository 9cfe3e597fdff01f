"""How fast the models train, how much of a step is not the model, and what a prior over 32x32 codes keeps in memory.

    python benchmarks/training.py [--profile demo] [--steps 8] [--pictures 256]

For BLIP, the VQ-VAE and both priors of a profile: steps a second in bfloat16 with channels_last over float32 in the plain layout, by the project's own
loop, and the share of a step spent outside forward and backward pass (batches, clipping, optimiser, averaged weights). Then, for a prior of about
11 million parameters over 32x32 grids of 512 codes: what is kept for the backward pass, with and without activation checkpointing."""
import argparse, contextlib, copy, io, tempfile, time
from unittest.mock import patch

import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState

from t2igen import blip, pixelsnail, training, vqvae
from t2igen.blip import TextFeatures
from t2igen.core import Run, load_config
from t2igen.pixelsnail import PixelSnail

def stages(run) -> list[tuple]:
    "(name, model, loss, data set, TrainConfig) of every training of the run's stages, none of them done."
    found = []
    def record(model, loss, dataset, cfg, folder, seed, name, *args, **kwargs): found.append((name, model.eval(), loss, dataset, cfg))
    with patch.object(blip, "train", record), patch.object(vqvae, "train", record), patch.object(pixelsnail, "train", record): pixelsnail.make_prior(run)
    return found

class Clock:
    "Notes when steps begin, and how long forward and backward passes take."
    def __init__(self, loss): self.loss, self.starts, self.model = loss, [], []

    def __call__(self, model, batch):
        self.starts.append(time.perf_counter())
        out = self.loss(model, batch)
        self.model.append(time.perf_counter() - self.starts[-1])
        return out

    def backward(self, value):
        start = time.perf_counter(); value.backward()
        self.model[-1] += time.perf_counter() - start

def speed(model, loss, dataset, cfg, steps:int, precision:str, layout) -> tuple[float, float]:
    "Steps a second, and the share of the time outside the model; the first two steps are not counted."
    model, clock = copy.deepcopy(model).to(memory_format=layout), Clock(loss)
    plain = model.register_forward_pre_hook(lambda _, args: tuple(a.contiguous() if torch.is_tensor(a) and layout is torch.contiguous_format else a for a in args))
    AcceleratorState._reset_state(reset_partial_state=True)                # one process, several precisions
    with (patch.object(training, "choose_precision", lambda: precision), patch.object(training.Accelerator, "backward", lambda _, value: clock.backward(value)),
          tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO())):
        training.train(model, clock, dataset, cfg.model_copy(update={"steps": steps}), folder)
    plain.remove()
    whole = clock.starts[-1] - clock.starts[2]
    return (steps - 3)/whole, 1 - sum(clock.model[2:-1])/whole

def fused(q, k, v, mask=None, causal:bool=False):
    "Attention as a GPU computes it, scores never written out."
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)

def kept(checkpointing:bool, batch:int=2) -> tuple[float, int]:
    "MiB a sample that a 32x32 prior keeps for its backward pass in bfloat16, and its number of parameters."
    model = PixelSnail((32, 32), 512, 32, 416, 4, 4, 3, 64, 128, 0.05, attention=0.25, checkpointing=checkpointing).train()
    own, sizes = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}
    def keep(x):
        if x.untyped_storage().data_ptr() not in own: sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x
    text, codes = TextFeatures(torch.randn(batch, 64), torch.randn(batch, 32, 128), torch.ones(batch, 32).bool()), torch.randint(512, (batch, 32, 32))
    with patch.object(pixelsnail, "attend", fused), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(model(codes, text).float().flatten(0, 2), codes.flatten())
    return sum(sizes.values())/batch/2**20, sum(p.numel() for p in model.parameters())

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="demo"); parser.add_argument("--steps", type=int, default=8); parser.add_argument("--pictures", type=int, default=256)
    args = parser.parse_args()
    run = Run(tempfile.mkdtemp(), load_config(args.profile, {"data.n_train": args.pictures, "data.n_test_seen": 4, "data.n_test_unseen": 4}))
    print(f"{torch.get_num_threads()} threads\n{'':10} {'float32':>10} {'bfloat16':>10} {'faster':>7} {'outside the model':>18}")
    for name, model, loss, dataset, cfg in stages(run):
        slow, _ = speed(model, loss, dataset, cfg, args.steps, "no", torch.contiguous_format)
        fast, outside = speed(model, loss, dataset, cfg, args.steps, "bf16", torch.channels_last)
        print(f"{name:10} {slow:>8.2f}/s {fast:>8.2f}/s {fast/slow:>6.2f}x {outside:>17.1%}", flush=True)
    (full, parameters), (less, _) = kept(False), kept(True)
    fixed, block = 5*4*parameters/2**30, full/4/1024                   # weights, gradients, two moments, averaged weights; a block's activations, GiB a sample
    print(f"\n32x32 grids of 512 codes, {parameters/1e6:.1f} million parameters, attention fused: {full:.0f} MiB a sample are kept for the backward pass, {less:.0f} with checkpointing."
          f"\nBatch 32 then needs about {fixed + 32*full/1024:.1f} GiB, or with checkpointing, one block's activations beside what is kept, {fixed + 32*(less/1024 + block):.1f} GiB.")

if __name__ == "__main__": main()
