"""How fast the models train, how much of a step is not the model, and what a prior keeps in memory.

    python benchmarks/training.py [--profile demo] [--steps 8] [--pictures 256]

For BLIP, the VQ-VAE and both priors of a profile: steps a second in bfloat16 with channels_last
over float32 in the plain layout, by the project's own loop, and the share of a step spent outside
forward and backward pass (batches, clipping, optimizer, averaged weights). Then, for a prior of
about 11 million parameters over 32x32 grids of 512 codes: what is kept for the backward pass, with
and without activation checkpointing."""
import argparse
import contextlib
import copy
import io
import tempfile
import time
from unittest.mock import patch

import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState

import t2igen.blip.stage
import t2igen.prior.layers
import t2igen.prior.stage
import t2igen.training.loop
import t2igen.vqvae.stage
from t2igen.blip.embed import TextFeatures
from t2igen.core.run import Run
from t2igen.prior.pixelsnail import PixelSnail
from t2igen.settings import load_config

GIB = 1 << 30
MIB = 1 << 20


def stages(run: Run) -> list[tuple]:
    "(name, model, loss, data set, TrainConfig) of every training of the run, none of them done."
    found = []

    def record(model, loss, dataset, cfg, folder, seed, name, *args, **kwargs):
        found.append((name, model.eval(), loss, dataset, cfg))
        return []                                # a history of no step

    with contextlib.ExitStack() as stack:
        for room in (t2igen.blip.stage, t2igen.vqvae.stage, t2igen.prior.stage):
            stack.enter_context(patch.object(room, "train", record))
        t2igen.prior.stage.make_prior(run)
    return found


class Clock:
    "Notes when steps begin, and how long forward and backward passes take."

    def __init__(self, loss):
        self.loss = loss
        self.starts = []
        self.model = []

    def __call__(self, model, batch):
        self.starts.append(time.perf_counter())
        out = self.loss(model, batch)
        self.model.append(time.perf_counter() - self.starts[-1])
        return out

    def backward(self, value):
        start = time.perf_counter()
        value.backward()
        self.model[-1] += time.perf_counter() - start


def in_plain_layout(_, args) -> tuple:
    "A model's arguments, contiguous."
    return tuple(a.contiguous() if torch.is_tensor(a) else a for a in args)


def speed(model, loss, dataset, cfg, steps: int, precision: str, layout) -> tuple[float, float]:
    """Steps a second, and the share of the time outside the model; the first two steps are not
    counted."""
    model = copy.deepcopy(model).to(memory_format=layout)
    clock = Clock(loss)
    if layout is torch.contiguous_format:
        model.register_forward_pre_hook(in_plain_layout)
    AcceleratorState._reset_state(reset_partial_state=True)      # one process, several precisions
    loop = t2igen.training.loop
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(loop, "choose_precision", lambda: precision))
        stack.enter_context(patch.object(loop.Accelerator, "backward", clock.backward))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        loop.train(model, clock, dataset, cfg.model_copy(update={"steps": steps}), folder)
    whole = clock.starts[-1] - clock.starts[2]
    return (steps - 3)/whole, 1 - sum(clock.model[2:-1])/whole


def fused(q, k, v, mask=None, causal: bool = False):
    "Attention as a GPU computes it, scores never written out."
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


def kept(checkpointing: bool, batch: int = 2) -> tuple[float, int]:
    """MiB a sample that a 32x32 prior keeps for its backward pass in bfloat16, and its number of
    parameters."""
    model = PixelSnail((32, 32), 512, 32, 416, 4, 4, 3, 64, 128, 0.05, attention=0.25,
                       checkpointing=checkpointing).train()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes = {}

    def keep(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return x

    text = TextFeatures(torch.randn(batch, 64), torch.randn(batch, 32, 128),
                        torch.ones(batch, 32).bool())
    codes = torch.randint(512, (batch, 32, 32))
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(t2igen.prior.layers, "attend", fused))
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x))
        stack.enter_context(torch.autocast("cpu", torch.bfloat16))
        logits = model(codes, text).float()                  # b h w codes
        F.cross_entropy(logits.flatten(0, 2), codes.flatten())
    return sum(sizes.values())/batch/MIB, sum(p.numel() for p in model.parameters())


def print_speeds(args):
    "A line for each training of a profile."
    small = {"data.n_train": args.pictures, "data.n_test_seen": 4, "data.n_test_unseen": 4}
    run = Run(tempfile.mkdtemp(), load_config(args.profile, small))
    print(f"{torch.get_num_threads()} threads")
    print(f"{'':10} {'float32':>10} {'bfloat16':>10} {'faster':>7} {'outside the model':>18}")
    for name, *training in stages(run):
        slow, _ = speed(*training, args.steps, "no", torch.contiguous_format)
        fast, outside = speed(*training, args.steps, "bf16", torch.channels_last)
        print(f"{name:10} {slow:>8.2f}/s {fast:>8.2f}/s {fast/slow:>6.2f}x {outside:>17.1%}",
              flush=True)


def print_memory(batch: int = 32):
    "What a large prior needs."
    full, parameters = kept(False)
    less, _ = kept(True)
    fixed = 5*4*parameters/GIB       # weights, gradients, two moments, averaged weights
    block = full/4/1024              # a block's activations, GiB a sample
    print(f"\n32x32 grids of 512 codes, {parameters/1e6:.1f} million parameters, attention fused: "
          f"{full:.0f} MiB a sample are kept for the backward pass, {less:.0f} with checkpointing.")
    print(f"Batch {batch} then needs about {fixed + batch*full/1024:.1f} GiB, or with "
          "checkpointing, one block's activations beside what is kept, "
          f"{fixed + batch*(less/1024 + block):.1f} GiB.")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--pictures", type=int, default=256)
    args = parser.parse_args()
    print_speeds(args)
    print_memory()


if __name__ == "__main__":
    main()
