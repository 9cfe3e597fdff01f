"""Our chain beside what people would use instead: same data, same seconds, same judge.

    python benchmarks/peers.py --run runs/demo [--out runs/peers] [--seconds 400] [--times 4]
        [--sizes small large] [--lrs 3e-4 1e-3] [--peers diffusers imagen-pytorch ...]
        [--seeds 0 1 2] [--pictures 200] [--clock core]

`--run` is a finished run. Our VQ-VAE, codes and priors took some seconds; with `--seconds`, and for
`--times` as many, they are trained again with as many steps as fit. Each peer is given what ours
took, the run's pictures, and its BLIP's token states; of two sizes by two learning rates the one
with the most attributes right is shown, which favors the peers. `--clock core` counts the seconds
that the processor worked, not those that passed: for a machine with neighbors, and
OMP_NUM_THREADS=1. What is done is not done again. Written are `peers.json` and `peers.png`; the
table that is printed shows means over the seeds. Needs `pip install 't2igen[peers]'`."""
import argparse
import itertools
import statistics
import sys
from pathlib import Path

import matplotlib
import numpy as np
from peer_judge import (
    Task,
    class_means,
    figures_of,
    load_judges,
    nearest_caption_pictures,
    real_pictures,
)
from peer_models import PEERS, SIZES, check_installed
from peer_training import CLOCKS, alone, draw_ours, play, seconds_of, token_states, train_ours

from t2igen.core.config import InputError
from t2igen.core.files import read_json, write_json
from t2igen.core.run import Run
from t2igen.core.stages import STAGES
from t2igen.data.pixels import grid_image, to_pixels
from t2igen.metrics.statistics import Missing
from t2igen.settings import existing_run

OURS = "t2igen"
COLUMNS = {
    "attributes": ("attribute_accuracy", "{:.3f}"),
    "all right": ("exact_match", "{:.3f}"),
    "Fréchet (BLIP)": ("frechet_blip", "{:.3f}"),
    "precision": ("precision_blip", "{:.2f}"),
    "recall": ("recall_blip", "{:.2f}"),
    "diversity": ("diversity", "{:.3f}"),
    "seconds a picture": ("seconds a picture", "{:.2f}"),
    "peak MiB": ("peak MiB", "{:.0f}"),
    "million parameters": ("million parameters", "{:.1f}"),
    "training seconds": ("training seconds", "{:.0f}"),
    "steps": ("steps", "{:.0f}"),
}


def place(args, seed: int) -> Path:
    "Where the contestants of a seed keep what they draw."
    return args.out / f"seed{seed}-{args.pictures}pictures"


def ours(args, run: Run, task: Task, seed: int, seconds: float, times: int) -> tuple[str, Path]:
    "Our chain, drawn from the finished run if it has these seconds: its row and its folder."
    share = seconds * times / seconds_of(run)
    name = f"{OURS}, {times} x" if times > 1 else OURS
    trained = run.folder
    spent = seconds_of(run)
    if share != 1:
        trained = args.out / f"ours-{seconds * times:g}s"
        known = trained / "seconds.json"
        if not known.exists():
            write_json(known, alone(train_ours, run.folder, trained, share, args.clock))
        spent = read_json(known)
    folder = place(args, seed) / f"{OURS}-{seconds * times:g}s"
    if not (folder / "about.json").exists():
        alone(draw_ours, trained, folder, task.prompts, seed, args.clock, spent)
    return name, folder


def tried(args, run: Run, task: Task, seed: int, seconds: float, name: str) -> list[Path]:
    "A peer in each size at each learning rate: the folders of what they drew."
    folders = []
    for size, lr in itertools.product(args.sizes, args.lrs):
        folder = place(args, seed) / f"{name}-{size}-{lr:g}-{seconds:.0f}s"
        if not (folder / "about.json").exists():
            how = dict(size=size, lr=lr, seconds=seconds, seed=seed, clock=args.clock)
            alone(play, name, run.folder, folder, args.out, task.positions, how)
        folders.append(folder)
    return folders


def judged(judges, task: Task, folder: Path) -> dict:
    "Figures of what a contestant drew, with what is known of it."
    about = read_json(folder / "about.json")
    about["steps"] = sum(about["steps"])
    return figures_of(judges, task, pictures_in(folder)) | about


def pictures_in(folder: Path):
    "What a contestant drew: `n c h w` in [-1, 1]."
    return to_pixels(np.load(folder / "pictures.npy"))


def best_of(judges, task: Task, folders) -> tuple[dict, Path]:
    "The figures and the folder of the contestant with the most attributes right, and all others'."
    rows = {folder.name: judged(judges, task, folder) for folder in folders}
    best = max(rows, key=lambda name: value_of(rows[name], "attribute_accuracy") or 0.0)
    chosen = next(folder for folder in folders if folder.name == best)
    return {**rows[best], "tried": rows}, chosen


def contest(args, run: Run, judges, task: Task, seed: int) -> tuple[dict, dict]:
    "Every contestant of a seed: {row: figures}, {row: pictures}."
    rows = {}
    drawn = {}
    for times in sorted({1, args.times}):
        row, folder = ours(args, run, task, seed, args.seconds or seconds_of(run), times)
        rows[row] = judged(judges, task, folder)
        drawn[row] = pictures_in(folder)
        for name in args.peers:
            folders = tried(args, run, task, seed, rows[row]["training seconds"], name)
            label = row.replace(OURS, name)
            rows[label], folder = best_of(judges, task, folders)
            drawn[label] = pictures_in(folder)
    return rows, drawn


def controls(run: Run, judges, task: Task) -> tuple[dict, dict]:
    "The floors, which draw nothing, and real pictures: {row: figures}, {row: pictures}."
    real, repeated = real_pictures(judges, task)
    drawn = {"nearest caption": nearest_caption_pictures(run, judges, task),
             "class mean": class_means(judges, task), "real pictures": real}
    rows = {name: figures_of(judges, task, pixels) for name, pixels in drawn.items()}
    rows["real pictures"] = figures_of(judges, task, real, repeated)
    return rows, drawn


def value_of(figures: dict, key: str) -> float | None:
    "A figure without its interval; None if there is none."
    figure = figures.get(key)
    if isinstance(figure, Missing):
        return None
    return figure["value"] if isinstance(figure, dict) else figure


def markdown(tables: list[dict]) -> str:
    "Means over the seeds, a row a contestant; with the standard deviation where there are several."
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for row in tables[0]:
        cells = [row]
        for key, form in COLUMNS.values():
            values = [value_of(table[row], key) for table in tables]
            values = [value for value in values if value is not None]
            cell = form.format(statistics.mean(values)) if values else "-"
            if len(values) > 1:
                cell += "±" + form.format(statistics.stdev(values))
            cells.append(cell)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw_grid(path: Path, drawn: dict, chosen, prompts):
    "The same prompts, one row a contestant, as a PNG."
    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(len(drawn), 1, figsize=(9, 1.05*len(drawn)), dpi=110)
    for axis, (name, pixels) in zip(axes, drawn.items()):
        axis.imshow(grid_image(pixels[chosen], columns=len(chosen)))
        axis.set_ylabel(name.replace(", ", "\n"), rotation=0, ha="right", va="center")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    figure.savefig(path, bbox_inches="tight", pad_inches=0.05)
    plt.close(figure)
    print(*(f"{k}. {prompts[i]}" for k, i in enumerate(chosen, 1)), sep="\n")


def as_json(figures: dict) -> dict:
    "Figures with None for what could not be had."
    found = {}
    for key, value in figures.items():
        if isinstance(value, dict):
            value = as_json(value)
        found[key] = None if isinstance(value, Missing) else value
    return found


def arguments() -> argparse.Namespace:
    "The command line."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="a finished run")
    parser.add_argument("--out", type=Path, default=Path("runs/peers"))
    parser.add_argument("--seconds", type=float, help="of training; the run's, if not given")
    parser.add_argument("--times", type=int, default=4, help="again with so many times as many")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--lrs", type=float, nargs="+", default=[3e-4, 1e-3])
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--pictures", type=int, default=200, help="prompts that are drawn once")
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS))
    return parser.parse_args()


def compare(args):
    "All contestants; writes and prints what they did."
    check_installed(args.peers)
    run = existing_run(args.run)
    run.check_done(*STAGES)
    args.out.mkdir(parents=True, exist_ok=True)
    judges = load_judges(run, args.out / "judge")
    task = Task(run, judges, args.pictures)
    token_states(run, args.out)                      # embedded here, not on a peer's clock
    others, still = controls(run, judges, task)
    tables = []
    for seed in args.seeds:
        rows, drawn = contest(args, run, judges, task, seed)
        tables.append({**rows, **others})
        if seed == args.seeds[0]:
            chosen = [k * task.n // 8 for k in range(min(8, task.n))]
            draw_grid(args.out / "peers.png", {**drawn, **still}, chosen, task.prompts)
    write_json(args.out / "peers.json", as_json(dict(zip(map(str, args.seeds), tables))))
    print(markdown(tables))


def main() -> int:
    try:
        compare(arguments())
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
