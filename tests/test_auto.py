"""`steps: auto` on a real small run: the best weights are kept, and what it came to is told."""

import pytest

from t2igen.codes.stage import load_codes
from t2igen.core.config import InputError
from t2igen.core.used import read_used
from t2igen.data.stage import load_data
from t2igen.prior.bits import CodesWithText
from t2igen.prior.stage import held_out_bits, load_prior, make_prior
from t2igen.settings import load_config, open_run
from t2igen.training.auto import AUTO_LOOKS, make_plan
from t2igen.training.checkpoint import read_history

SECTIONS = ("blip.matcher", "blip.captioner", "prior.top", "prior.bottom")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A small run whose four trainings find out themselves how long is good."
    auto = {f"{section}.train.steps": "auto" for section in SECTIONS}
    short = {"prior.top.train.lr": 0.05, "data.augment": "auto", "data.n_train": 16}
    small = {"blip.matcher.train.batch_size": 16, "blip.captioner.train.batch_size": 16}
    found = open_run(tmp_path_factory.mktemp("auto") / "run", "tiny", {**auto, **short, **small})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("t2igen.training.auto.FEWEST", 0.01)      # not 333 steps for a test
        make_prior(found)
    return found


def test_what_auto_came_to_is_written_down(run):
    used = read_used(run / "data", run / "blip", run / "prior")
    for section in SECTIONS:
        folder, _, name = section.partition(".")
        rows = read_history(run / folder / f"{name}_history.csv")
        looks = [row for row in rows if "held_out_loss" in row]
        best = min(looks, key=lambda row: row["held_out_loss"])
        assert used[f"{section}.train.steps"] == rows[-1]["step"]
        assert used[f"{section}.kept_step"] == best["step"]
        assert len(looks) <= AUTO_LOOKS
    assert used["data.augment"] == 4 and len(load_data(run).indices("train")) == 5*16
    assert run.entry("data")["used"] == {"data.augment": 4}
    assert run.entry("prior")["used"] == read_used(run / "prior") and run.is_current("prior")


def test_the_weights_kept_are_those_of_the_best_look(run):
    data = load_data(run)
    prior = load_prior(run)
    settings = run.cfg.prior.top.train
    plan = make_plan(settings, 12, data.records, data.indices("train"), [])
    watched = CodesWithText(load_codes(run), data, plan.watched)
    figures = held_out_bits("top", watched, settings.batch_size, run.cfg.seed)(prior.top)
    rows = read_history(run / "prior" / "top_history.csv")
    least = min(row["held_out_loss"] for row in rows if "held_out_loss" in row)
    assert figures["loss"] == pytest.approx(least, rel=0.02)
    assert not set(plan.watched) & set(data.indices("test_seen"))


@pytest.mark.parametrize("value", ["many", 0, 1.5, True, None])
def test_what_is_no_number_of_steps(value):
    with pytest.raises(InputError, match="'prior.top.train.steps'.* auto"):
        load_config("tiny", {"prior.top.train.steps": value})


def test_models_without_pictures_set_apart_have_no_auto():
    with pytest.raises(InputError, match="metrics.classifier.train.steps"):
        load_config("tiny", {"metrics.classifier.train.steps": "auto"})
