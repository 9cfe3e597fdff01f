"""PixelSNAIL and masked diffusion side by side: the same data, widths, and seconds of training.

    python benchmarks/priors.py [--profile demo] [--run-dir runs/priors] [--seeds 0 1 2]
                                [--steps 8,4 64,16] [--weighting bound maskgit] [-p KEY=VALUE ...]

For each seed the stages up to the codes are made once. Then each pair of priors is trained, draws,
and is judged by the metrics stage: PixelSNAIL twice, masked diffusion twice, PixelSNAIL's top codes
with diffusion's bottom ones. PixelSNAIL takes as many steps of training as the profile says;
diffusion as many as fit into the same seconds, by a measurement beforehand. `--steps` are the
numbers of steps in which diffusion draws top and bottom grids; the first pair also completes
pictures. Bits are exact for PixelSNAIL, a bound from above for diffusion. Printed are means over
the seeds and, after the sign, their standard deviation; all figures of each seed are in
`priors.json`. What is done is not done again. For few pictures: `-p data.limit=795`."""
import argparse
import statistics
import time
from pathlib import Path

import torch

from t2igen.codes.stage import load_codes
from t2igen.core.config import parse_overrides
from t2igen.core.device import autocast, choose_device, prepare_torch
from t2igen.core.files import read_json, write_json
from t2igen.core.run import Run, make_inputs, make_stage
from t2igen.data.stage import load_data
from t2igen.metrics.attributes import attribute_accuracy, load_classifier
from t2igen.metrics.tables import lookup
from t2igen.pipeline.takeover import take_over
from t2igen.prior.bits import CodesWithText
from t2igen.prior.levels import Prior, prior_config, prior_loss
from t2igen.sampling.edit import edit
from t2igen.sampling.stage import load_text2image
from t2igen.settings import load_config, override
from t2igen.training.checkpoint import read_history
from t2igen.training.optim import make_optimizer

LEVELS = ("top", "bottom")
PAIRS = {                     # kinds of the top and the bottom prior
    "PixelSNAIL": ("pixelsnail", "pixelsnail"),
    "diffusion": ("diffusion", "diffusion"),
    "PixelSNAIL, diffusion": ("pixelsnail", "diffusion"),
}
FIGURES = {
    "bits, top": "prior.bits_per_code.top", "bits, bottom": "prior.bits_per_code.bottom",
    "attributes, seen": "generated.seen.attribute_accuracy",
    "all right, seen": "generated.seen.exact_match",
    "attributes, unseen": "generated.unseen.attribute_accuracy",
    "all right, unseen": "generated.unseen.exact_match",
    "diversity": "generated.seen.diversity", "Frechet (BLIP)": "generated.seen.frechet_blip",
    "precision": "generated.seen.precision_blip", "recall": "generated.seen.recall_blip",
    "copied top grids": "memory.generated.copied.top",
}
HOLES = ("lower half", "upper half", "left half", "right half", "middle")
COUNTS = ((4, 4), (8, 8), (16, 16), (32, 32))      # steps, top and bottom, that are timed


def mean_text(values) -> str:
    "A mean and the standard deviation, `-` for nothing."
    values = [v for v in values if v is not None]
    if not values:
        return "-"
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f}±{spread:.3f}"


def pace(run: Run, level: str, kind: str, steps: int = 8) -> float:
    "Median seconds of a training step of a level, of one kind, on the run's codes."
    cfg = override(run.cfg, {f"prior.{level}.kind": kind}).prior
    train = getattr(cfg, level).train
    data = load_data(run)
    store = load_codes(run)
    dataset = CodesWithText(store, data, data.indices("train"), cfg.title_share)
    code_dim = read_json(run / "vqvae" / "config.json")["code_dim"]
    device = choose_device()
    model = getattr(Prior(**prior_config(cfg, store.meta, code_dim)), level).to(device)
    optimizer = make_optimizer(model, train)
    spent = []
    for step in range(steps + 2):
        start = time.perf_counter()
        indices = [(step * train.batch_size + k) % len(dataset) for k in range(train.batch_size)]
        batch = {key: value.to(device) for key, value in dataset[indices].items()}
        with autocast(device):
            loss, _ = prior_loss(model, batch, level, cfg.text_dropout)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        spent.append(time.perf_counter() - start)
    return statistics.median(spent[2:])


def budgets(base: Run) -> dict[str, int]:
    "Steps of diffusion that take as long as PixelSNAIL's of the profile, by level."
    path = base / "budgets.json"
    if not path.exists():
        found = {}
        for level in LEVELS:
            ratio = pace(base, level, "pixelsnail") / pace(base, level, "diffusion")
            steps = getattr(base.cfg.prior, level).train.steps
            found[level] = max(1, round(ratio * steps))
        write_json(path, found)
    return read_json(path)


def judged(base: Run, folder: Path, overrides: dict, reuse) -> Run:
    "A run with other priors or other steps, with its metrics; stages that are done are taken over."
    run = Run(folder, override(base.cfg, overrides))
    run.save_params()
    for stage in ("data", "blip", "vqvae", "codes", "prior", "samples", "metrics"):
        if not run.is_current(stage) and not take_over(run, stage, reuse):
            make_stage(run, stage)
    return run


def hole(name: str, side: int) -> torch.Tensor:
    "Which pixels are to be drawn anew: `side side` bool."
    line = torch.arange(side)
    half = side // 2
    middle = (line >= side // 4) & (line < side - side // 4)
    areas = {"lower half": (line >= half)[:, None], "upper half": (line < half)[:, None],
             "left half": (line < half)[None], "right half": (line >= half)[None],
             "middle": middle[:, None] & middle[None]}
    return areas[name].expand(side, side)


def seam(pixels: torch.Tensor, area: torch.Tensor) -> float:
    "Root mean squared step of `n c h w` between neighbors on both sides of the border of `area`."
    squares = []
    for axis in (0, 1):
        border = area.diff(dim=axis)                           # bool: the two differ
        step = pixels.diff(dim=axis + 2)                       # n c h w, one less
        squares.append(step[:, :, border].square().flatten())
    return float(torch.cat(squares).mean().sqrt())


def completed(run: Run, most: int) -> dict:
    "Attribute accuracy and seam of held-out pictures of which a part was drawn anew."
    model = load_text2image(run)
    classifier = load_classifier(run / "classifier")
    data = load_data(run)
    some = data.indices("test_seen")[:most]
    pixels = data.pixels(some)
    prompts = [data.records[i].text for i in some]
    wanted = [data.records[i].attributes for i in some]
    found = {}
    for name in HOLES:
        area = hole(name, pixels.shape[-1])
        redraw = area.expand(len(some), *area.shape)
        made = edit(model, pixels, redraw, prompts, list(range(len(some))))
        found[f"{name}: attributes"] = attribute_accuracy(classifier.predict(made), wanted)
        found[f"{name}: seam"] = seam(made, area)
        found[f"{name}: seam of real ones"] = seam(pixels, area)
    return found


def seconds(run: Run, pictures: int, steps: tuple[int, int], times: int = 3) -> float:
    "Least seconds in which the codes of so many pictures are drawn."
    model = load_text2image(run)
    changed = dict(top_steps=steps[0], bottom_steps=steps[1])
    model.cfg = model.cfg.model_copy(update=changed)
    text = model.text(["a red ship in a storm at night"] * pictures)
    spent = []
    for _ in range(times):
        start = time.perf_counter()
        model.codes(text, range(pictures))
        spent.append(time.perf_counter() - start)
    return min(spent)


def figures_of(run: Run) -> dict:
    "The figures of a run that are compared, and how long its priors were trained."
    metrics = read_json(run / "metrics.json")
    found = {}
    for name, path in FIGURES.items():
        figure = lookup(metrics, path) or {}
        words = " (at most)" if "bound" in figure else ""
        found[name + words] = figure.get("value")
    for level in LEVELS:
        rows = read_history(run / "prior" / f"{level}_history.csv")
        found[f"training seconds, {level}"] = rows[-1]["seconds"]
    return found


def kinds_of(pair: str, weighting: str, steps: dict[str, int]) -> dict:
    "The settings of a pair of priors."
    given = {}
    for level, kind in zip(LEVELS, PAIRS[pair]):
        given[f"prior.{level}.kind"] = kind
        if kind == "diffusion":
            given[f"prior.{level}.weighting"] = weighting
            given[f"prior.{level}.train.steps"] = steps[level]
    return given


def variants(pair: str, args, steps: dict[str, int]) -> list[tuple[str, dict, list]]:
    "Name and settings of each way to train a pair, and the numbers of steps in which it draws."
    if "diffusion" not in PAIRS[pair]:
        return [(pair, kinds_of(pair, "", steps), args.steps[:1])]
    found = []
    for weighting in args.weighting:
        found.append((f"{pair}, {weighting}", kinds_of(pair, weighting, steps), args.steps))
    return found


def of_variant(base: Run, name: str, given: dict, counts, args) -> dict[str, dict]:
    "A way to train a pair, drawn in each of the numbers of steps: {row: {figure: value}}."
    table = {}
    runs = [base.folder]
    has_steps = "diffusion" in given.values()
    for top, bottom in counts:
        drawn = {"sampling.top_steps": top, "sampling.bottom_steps": bottom}
        label = f"{name}, {top} + {bottom} steps" if has_steps else name
        folder = base.folder.parent / label.replace(", ", "-").replace(" ", "")
        run = judged(base, folder, {**given, **drawn}, runs)
        table[label] = figures_of(run)
        if len(runs) == 1:
            table[label] |= completed(run, args.pictures)
            table[label] |= timed(run, has_steps, args.batches)
        runs.append(run.folder)
    return table


def compare(base: Run, args) -> dict[str, dict]:
    "Every pair of priors of a seed: {row: {figure: value}}."
    steps = budgets(base)
    table = {}
    for pair in PAIRS:
        for name, given, counts in variants(pair, args, steps):
            table |= of_variant(base, name, given, counts, args)
    return table


def timed(run: Run, has_steps: bool, batches) -> dict:
    "Seconds for each number of pictures, in each number of steps if there is a choice."
    found = {}
    for pictures in batches:
        for steps in COUNTS if has_steps else COUNTS[:1]:
            words = f" in {steps[0]} + {steps[1]} steps" if has_steps else ""
            found[f"seconds for {pictures}{words}"] = seconds(run, pictures, steps)
    return found


def print_table(tables: list[dict]):
    "A paragraph for each pair of priors, means over the seeds."
    for row in tables[0]:
        print(f"\n{row}")
        for name in tables[0][row]:
            values = [table[row].get(name) for table in tables]
            print(f"  {name:34} {mean_text(values)}")


def pair_of(text: str) -> tuple[int, int]:
    "`8,4` as (8, 4)."
    top, bottom = text.split(",")
    return int(top), int(bottom)


def arguments() -> argparse.Namespace:
    "The command line."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/priors"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=pair_of, nargs="+", default=[(8, 4), (64, 16)])
    parser.add_argument("--weighting", nargs="+", default=["bound"], choices=["bound", "maskgit"])
    parser.add_argument("--pictures", type=int, default=200, help="that are completed")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16], help="that are timed")
    parser.add_argument("-p", "--param", action="append", metavar="KEY=VALUE")
    return parser.parse_args()


def main():
    args = arguments()
    prepare_torch()
    tables = []
    for seed in args.seeds:
        overrides = {**parse_overrides(args.param), "seed": seed}
        cfg = load_config(args.profile, overrides)
        base = Run(args.run_dir / f"seed{seed}" / "base", cfg)
        base.save_params()
        make_inputs(base, "prior")
        tables.append(compare(base, args))
        write_json(args.run_dir / "priors.json", dict(zip(map(str, args.seeds), tables)))
    print_table(tables)


if __name__ == "__main__":
    main()
