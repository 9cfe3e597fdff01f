"""Contestants at work, each in a process of its own: trained for some seconds, then they draw."""
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from peer_models import PEERS
from tqdm import tqdm

from t2igen.blip.stage import load_blip
from t2igen.core.config import InputError
from t2igen.core.device import autocast, choose_device, generator, prepare_torch, seed_everything
from t2igen.core.environment import peak_mib
from t2igen.core.files import atomic_path, write_json
from t2igen.core.run import Run, make_stage
from t2igen.core.seeds import derive_seed
from t2igen.data.pixels import to_uint8
from t2igen.data.stage import load_data, number_texts
from t2igen.pipeline.takeover import take_over
from t2igen.sampling.stage import load_text2image
from t2igen.settings import existing_run, override
from t2igen.training.checkpoint import read_history
from t2igen.training.optim import Ema, lr_factor


def core_seconds() -> float:
    "What this process and those it started, which have ended, have used of the processor."
    return sum(os.times()[:4])


CLOCKS = {"wall": time.perf_counter, "core": core_seconds}
STAGES = ("vqvae", "codes", "prior")         # whose seconds the peers are given
HISTORIES = {"vqvae": "vqvae/vqvae_history.csv", "prior.top": "prior/top_history.csv",
             "prior.bottom": "prior/bottom_history.csv"}
BATCH = 16
EMA = 0.99


def alone(work, *args):
    "What `work(*args)` returns, done in a process of its own: its peak memory is its alone."
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(work, *args).result()


def millions(*models) -> float:
    "Million parameters of some models."
    return sum(p.numel() for model in models for p in model.parameters()) / 1e6


def finish(folder: Path, pixels: torch.Tensor, about: dict):
    "Keep pictures and what is known of their contestant."
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "pictures.npy") as path:
        np.save(path, to_uint8(pixels))
    write_json(folder / "about.json", about)


# -- ours ---------------------------------------------------------------------------------------

def steps_of(run: Run) -> dict[str, int]:
    "Steps of training of the VQ-VAE and both priors of a finished run."
    return {key: int(read_history(run / path)[-1]["step"]) for key, path in HISTORIES.items()}


def seconds_of(run: Run) -> float:
    "What VQ-VAE, codes and priors of a finished run took."
    return sum(run.manifest["stages"][stage]["seconds"] for stage in STAGES)


def train_ours(run_folder: Path, folder: Path, share: float, clock: str) -> float:
    """VQ-VAE, codes and priors of a run again in `folder`, with a share of their steps; returns the
    seconds that it took."""
    prepare_torch()
    base = existing_run(run_folder)
    given = {}
    for key, steps in steps_of(base).items():
        given[f"{key}.train.steps"] = max(1, round(steps*share))
    run = Run(folder, override(base.cfg, given))
    run.save_params()
    for stage in ("data", "blip"):
        if not run.is_current(stage) and not take_over(run, stage, [base.folder]):
            raise InputError(f"{run_folder} was made by another version: make it again.")
    start = CLOCKS[clock]()
    for stage in STAGES:
        make_stage(run, stage)
    return CLOCKS[clock]() - start


def draw_ours(run_folder: Path, folder: Path, prompts, seed: int, clock: str, seconds: float):
    "Our pictures of the prompts, and what is known of a run whose training took `seconds`."
    prepare_torch()
    run = existing_run(run_folder)
    model = load_text2image(run)
    seeds = [derive_seed(seed, "peers", k) % 2**32 for k in range(len(prompts))]
    start = CLOCKS[clock]()
    pixels = model.generate(prompts, seeds)
    spent = CLOCKS[clock]() - start
    stages = run.manifest["stages"]
    finish(folder, pixels, {
        "seconds a picture": spent / len(prompts),
        "peak MiB": max(peak_mib(), *(stages[stage]["memory_mib"] for stage in STAGES)),
        "million parameters": millions(model.vqvae, model.prior),
        "training seconds": seconds,
        "steps": list(steps_of(run).values()),
    })


# -- peers --------------------------------------------------------------------------------------

def token_states(run: Run, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """What the run's BLIP makes of its different captions, `u l h`, zeros where there is no token;
    embedded once and kept in `folder`. And the number of each record's caption, `n`."""
    unique, row = number_texts([record.text for record in load_data(run).records])
    path = folder / "texts.npy"
    if not path.exists():
        text = load_blip(run).embed_texts(unique)
        longest = int(text.mask.sum(1).max())
        states = text.states * text.mask[..., None]
        with atomic_path(path) as new:
            np.save(new, states[:, :longest].numpy())
    return torch.from_numpy(np.load(path)), row


def batches(run: Run, texts, seed: int):
    "Batches without end of a run's training pictures `b c h w` and their texts `b l h`."
    data = load_data(run)
    states, row = texts
    learned = torch.tensor(data.indices("train"))
    draw = generator(seed, "peers", "batches")
    device = choose_device()
    while True:
        order = learned[torch.randperm(len(learned), generator=draw)]
        for some in order.split(BATCH):
            yield data.pixels(some.numpy()).to(device), states[row[some]].to(device)


def fit(phase, feed, seconds: float, lr: float, clock: str, name: str) -> int:
    """Train a phase of a peer for some seconds, as our models are but for Muon: AdamW, warm-up and
    cosine (by the share of the seconds), clipped gradients, averaged weights. Returns the steps."""
    model = phase.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.01)
    ema = Ema(model, EMA)
    start = CLOCKS[clock]()
    step = 0
    with tqdm(total=round(seconds), desc=name) as bar:
        while (spent := CLOCKS[clock]() - start) < seconds or step == 0:
            bar.update(int(spent) - bar.n)
            optimizer.param_groups[0]["lr"] = lr * lr_factor(spent, seconds, 0.05)
            pixels, text = next(feed)
            with autocast(pixels.device):
                loss = phase.loss(pixels, text)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            ema.update(step)
        bar.set_postfix(steps=step, loss=float(loss))
    ema.into_model()
    model.eval()
    return step


@torch.no_grad()
def draw_in_batches(peer, text: torch.Tensor, batch: int = 32) -> torch.Tensor:
    "Pictures `n c h w` in [-1, 1] of texts `n l h`."
    parts = []
    for some in text.split(batch):
        with autocast(some.device):
            parts.append(peer.draw(some).float().clamp(-1, 1).cpu())
    return torch.cat(parts)


def play(name: str, run_folder: Path, folder: Path, texts: Path, positions, how: dict):
    """Train a peer as `how` says (size, lr, seconds, seed, clock), draw the captions of the records
    at `positions`, and keep both in `folder`."""
    prepare_torch()
    run = existing_run(run_folder)
    seed_everything(how["seed"], "peers", name)
    states, row = token_states(run, texts)
    peer = PEERS[name](run.cfg.data.image_size, how["size"], states.shape[-1]).to(choose_device())
    feed = batches(run, (states, row), how["seed"])
    steps = []
    for phase in peer.phases():
        seconds = phase.share * how["seconds"]
        steps.append(fit(phase, feed, seconds, how["lr"], how["clock"], name))
    peer.eval()
    start = CLOCKS[how["clock"]]()
    pixels = draw_in_batches(peer, states[row[positions]].to(choose_device()))
    spent = CLOCKS[how["clock"]]() - start
    finish(folder, pixels, {
        "seconds a picture": spent / len(positions),
        "peak MiB": peak_mib(),
        "million parameters": millions(peer),
        "training seconds": how["seconds"],
        "steps": steps,
        **how,
    })
