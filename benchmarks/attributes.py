"""Where attributes are lost on the way from a prompt to a picture.

    python benchmarks/attributes.py --run runs/demo [--model weights] [--pictures 500] [--seeds 3]

Each column knows one thing less than the one before it. `caption`: a linear probe on the pooled
embedding of the caption. `real`: the judge on real pictures. `codes`: the judge on what the decoder
makes of the codes of real pictures. `bottom drawn`: of their real top codes and bottom codes that
were drawn. `drawn`: of codes that were all drawn. What falls from one column to the next is lost
there. The run gives test pictures, prompts and the judge; `--model` (a run, a saved model, or
`weights`, the package's) draws, the run itself if it is not given. Each prompt is drawn with
`--seeds` seeds; after the sign stands the standard deviation over them. All figures are also
written to `attributes.json` in the run's folder, or `-o FILE`."""
import argparse
import statistics
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import torch

from t2igen.blip.embed import TextFeatures
from t2igen.core.device import prepare_torch
from t2igen.core.files import write_json
from t2igen.data.records import Record
from t2igen.data.stage import Pictures, load_data
from t2igen.metrics.attributes import attribute_accuracy, exact_match, load_classifier
from t2igen.sampling.text2image import Text2Image
from t2igen.settings import existing_run
from t2igen.vqvae.encode import decode_all, encode_all
from t2igen.vqvae.latents import probe_attributes

COLUMNS = ("caption", "real", "codes", "bottom drawn", "drawn")
SPLITS = {"seen": "test_seen", "unseen": "test_unseen"}


def accuracies(predicted: list[dict], wanted: list[dict]) -> dict[str, float]:
    "Accuracy of each attribute, of all of them, and the share of pictures with all right."
    found = defaultdict(list)
    for said, asked in zip(predicted, wanted, strict=True):
        for key, value in asked.items():
            found[key].append(said.get(key) == value)
    figures = {key: float(np.mean(hits)) for key, hits in sorted(found.items())}
    figures["all attributes"] = attribute_accuracy(predicted, wanted)
    figures["all right"] = exact_match(predicted, wanted)
    return figures


def confusions(predicted: list[dict], wanted: list[dict], most: int = 5) -> list[str]:
    "The commonest mistakes, as `animal: horse drawn as cow (7)`."
    counts = Counter()
    for said, asked in zip(predicted, wanted, strict=True):
        for key, value in asked.items():
            if said.get(key) != value:
                counts[key, value, said.get(key)] += 1
    return [f"{key}: {a} drawn as {b} ({n})" for (key, a, b), n in counts.most_common(most)]


def caption_probe(model: Text2Image, train: list[Record], text: TextFeatures,
                  test: list[Record]) -> dict[str, float]:
    "Accuracy of each attribute by a linear probe on the pooled embeddings of captions."
    learned = model.text([record.text for record in train]).pooled.cpu().numpy()
    found = probe_attributes(learned, train, text.pooled.cpu().numpy(), test)
    return {key: probe["accuracy"] for key, probe in found.items()}


def drawn_with(model: Text2Image, judge, text: TextFeatures, top, bottom, seed: int) -> list:
    "What the judge sees in pictures whose codes are known (`n h w`) or, where -1, drawn."
    seeds = [seed * 100_000 + n for n in range(len(top))]
    top, bottom = model.codes(text, seeds, known=(top, bottom))
    return judge.predict(decode_all(model.vqvae, top, bottom, text.pooled.cpu()))


def columns_of(model: Text2Image, judge, data: Pictures, split: str, args
               ) -> tuple[dict, list[str]]:
    "Figures of a split by column, one dict a seed where something is drawn; and the mistakes."
    positions = data.indices(SPLITS[split])[:args.pictures]
    records = [data.records[i] for i in positions]
    wanted = [record.attributes for record in records]
    pixels = data.pixels(positions)
    text = model.text([record.text for record in records])
    pooled = text.pooled.cpu()
    top, bottom = encode_all(model.vqvae, pixels, pooled)
    decoded = judge.predict(decode_all(model.vqvae, top, bottom, pooled))
    train = [data.records[i] for i in data.indices("train")[:3000]]
    found = {"caption": [caption_probe(model, train, text, records)],
             "real": [accuracies(judge.predict(pixels), wanted)],
             "codes": [accuracies(decoded, wanted)], "bottom drawn": [], "drawn": []}
    nothing = torch.full_like(bottom, -1)
    for seed in range(args.seeds):
        said = drawn_with(model, judge, text, top, nothing, seed)
        found["bottom drawn"].append(accuracies(said, wanted))
        said = drawn_with(model, judge, text, torch.full_like(top, -1), nothing, seed)
        found["drawn"].append(accuracies(said, wanted))
    return found, confusions(said, wanted)


def cell(rows: list[dict], key: str) -> str:
    "A mean, with its standard deviation where there are several; `-` for nothing."
    values = [row[key] for row in rows if key in row]
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.3f}"
    return f"{mean}±{statistics.stdev(values):.3f}" if len(values) > 1 else mean


def print_table(split: str, found: dict, mistakes: list[str]):
    "The table of a split, in Markdown, the attribute that is lost most often first."
    last = found["drawn"][0]
    keys = sorted(last, key=lambda key: (key.startswith("all "), last[key]))
    print(f"\n| {split} | " + " | ".join(COLUMNS) + " |")
    print("|" + "---|" * (len(COLUMNS) + 1))
    for key in keys:
        print(f"| {key} | " + " | ".join(cell(found[name], key) for name in COLUMNS) + " |")
    print(f"\nMost frequent mistakes: {'; '.join(mistakes)}.")


def arguments() -> argparse.Namespace:
    "The command line."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--model", default="")
    parser.add_argument("--pictures", type=int, default=500, help="of each split")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path)
    return parser.parse_args()


def main():
    args = arguments()
    prepare_torch()
    run = existing_run(args.run)
    where = None if args.model == "weights" else args.model or args.run
    model = Text2Image.from_pretrained(where)
    judge = load_classifier(run / "classifier")
    data = load_data(run)
    tables = {}
    for split in SPLITS:
        found, mistakes = columns_of(model, judge, data, split, args)
        print_table(split, found, mistakes)
        tables[split] = {"figures": found, "mistakes": mistakes}
    write_json(args.output or run / "attributes.json", tables)


if __name__ == "__main__":
    main()
