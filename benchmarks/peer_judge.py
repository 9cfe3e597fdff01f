"""The judge of all contestants, trained apart from each, and the floors below them.

The attribute classifier is that of the run's metrics stage, which has seen real pictures only.
Features are those of a matcher that is trained here, with another seed than the one whose token
states all contestants are given."""
import dataclasses
from collections import defaultdict

import numpy as np
import torch
from transformers import BlipForImageTextRetrieval

from t2igen.blip.dataset import CaptionedPictures, true_pairs
from t2igen.blip.load import read_blip
from t2igen.blip.losses import matcher_loss
from t2igen.blip.matcher import Matcher
from t2igen.blip.settings import BlipConfig
from t2igen.blip.stage import load_blip, new_model, training_texts
from t2igen.codes.stage import load_codes
from t2igen.core.run import Run
from t2igen.data.stage import Pictures, load_data
from t2igen.metrics.attributes import attribute_hits, load_classifier
from t2igen.metrics.baselines import mean_picture, nearest_captions
from t2igen.metrics.distances import diversity, equal_texts, real_groups
from t2igen.metrics.judges import Judges, PictureSet, samples_for
from t2igen.metrics.sets import SET_FIGURES, frechet_distance, in_manifold
from t2igen.metrics.stage import judged_data
from t2igen.metrics.statistics import figure_or_why
from t2igen.sampling.stage import load_samples
from t2igen.settings import override
from t2igen.training.auto import make_plan
from t2igen.training.checkpoint import clear_checkpoints
from t2igen.training.loop import train

OTHER_SEED = 1000        # is added to the run's, for the judge's matcher


def train_matcher(run: Run, data: Pictures, folder):
    "A matcher like the run's, of another seed, trained on the same pictures; saved in `folder`."
    seed = run.cfg.seed + OTHER_SEED
    cfg = run.cfg.blip
    other = Run(folder, override(run.cfg, {"seed": seed}))
    texts = training_texts(data)
    model, processor = new_model(BlipForImageTextRetrieval, cfg.source, other, texts)
    plan = make_plan(cfg.matcher.train, BlipConfig().matcher.train.steps, data.records,
                     true_pairs(data, "train"), [])
    pictures = CaptionedPictures(data, plan.learned, processor, cfg.max_tokens, cfg.title_share)
    matcher = Matcher(model, cfg.matcher_label_smoothing, cfg.queue, cfg.momentum)
    train(matcher, matcher_loss, pictures, plan.cfg, folder, seed, "judge")
    processor.save_pretrained(folder)
    model.save_pretrained(folder)
    clear_checkpoints(folder)


def load_judges(run: Run, folder) -> Judges:
    "Who judges: the run's classifier, and the matcher in `folder`, which is trained if need be."
    data, judged_by = judged_data(run)
    if not (folder / "model.safetensors").exists():
        train_matcher(run, load_data(run), folder)
    return Judges(
        data=data,
        blip=read_blip(folder.absolute(), run.cfg.blip.max_tokens),
        captioner=None,                     # pyright: ignore[reportArgumentType]
        vqvae=None,
        store=load_codes(run),
        prior=None,
        classifier=load_classifier(run / "classifier"),
        judged_by=judged_by,
        seed=run.cfg.seed,
        n_resamples=run.cfg.metrics.bootstrap,
        lpips_weights=run.cfg.metrics.lpips_weights,
    )


class Task:
    """What all contestants draw: `n` captions of test_seen once each, then a few four times, for
    diversity; the run's own samples were drawn for the same ones."""

    def __init__(self, run: Run, judges: Judges, n: int):
        lines, _ = load_samples(run)
        once = judges.asked(lines[k] for k in samples_for(lines, "test_seen", "metrics")[:n])
        again = judges.asked(lines[k] for k in samples_for(lines, "test_seen", "diversity"))
        again = again[:max(8, n // 4)]
        self.n = len(once)
        self.positions = once + again                               # of records
        self.prompts = [judges.data.records[i].text for i in self.positions]
        self.groups = equal_texts(self.prompts[self.n:])


def set_figures(judges: Judges, features, own) -> dict:
    """Where features `n d` lie among those of all real test pictures but the `own` ones: few drawn
    pictures are then compared with many real ones."""
    data = judges.data
    tests = data.indices("test_seen") + data.indices("test_unseen")
    real = judges.real_features(sorted(set(tests) - set(own)))      # m d
    return {"frechet_blip": frechet_distance(features, real),
            "precision_blip": judges.interval(in_manifold(features, real)),
            "recall_blip": judges.interval(in_manifold(real, features))}


def figures_of(judges: Judges, task: Task, pixels: torch.Tensor, repeated=None) -> dict:
    """Every figure of a contestant's pictures `n c h w`, those of the task in its order; `repeated`
    are (pictures, groups) for diversity, if they are others."""
    own = task.positions[:task.n]
    records = [judges.data.records[i] for i in own]
    said = judges.classifier.predict(pixels[:task.n])
    hits = attribute_hits(said, [record.attributes for record in records])
    features = judges.blip.embed_images(pixels[:task.n]).numpy()
    found, named = hits.T
    figures = {"attribute_accuracy": judges.interval(hits),
               "exact_match": judges.interval((found == named)[named > 0])}
    figures |= figure_or_why(set_figures, judges, features, own, keys=SET_FIGURES)
    several, groups = repeated or (pixels[task.n:], task.groups)
    features = judges.blip.embed_images(several).numpy()
    return figures | diversity(PictureSet(several, features, [], []), groups, judges)


def real_pictures(judges: Judges, task: Task) -> tuple[torch.Tensor, tuple]:
    "The pictures of the captions themselves, and those for diversity with their groups."
    prompts = [task.prompts[task.n + group[0]] for group in task.groups]
    positions, groups = real_groups(prompts, judges.by_text)
    data = judges.data
    return data.pixels(task.positions), (data.pixels(positions), groups)


def nearest_caption_pictures(run: Run, judges: Judges, task: Task) -> torch.Tensor:
    "Of each caption the training picture whose caption is nearest to it, by the run's BLIP."
    reader = dataclasses.replace(judges, blip=load_blip(run))
    train_split = judges.data.indices("train")
    return judges.data.pixels(nearest_captions(reader, task.prompts, train_split))


def class_means(judges: Judges, task: Task) -> torch.Tensor:
    """Of each caption the mean of all training pictures with the same attributes; of all where
    there are none."""
    data = judges.data
    train_split = data.indices("train")
    alike = defaultdict(list)
    for i in train_split:
        alike[frozenset(data.records[i].attributes.items())].append(i)
    means = {}
    for i in task.positions:
        key = frozenset(data.records[i].attributes.items())
        if key not in means:
            means[key] = mean_picture(data, np.array(alike[key] or train_split))
    rows = [means[frozenset(data.records[i].attributes.items())] for i in task.positions]
    return torch.cat(rows)
