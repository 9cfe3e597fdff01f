"From prompts to pictures, with the models of a run: seeds, settings, editing, walking away."
import gc
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from t2igen.core.config import InputError
from t2igen.core.files import read_json
from t2igen.core.run import Run
from t2igen.data.records import SPLITS
from t2igen.data.stage import load_data, make_data
from t2igen.prior.pixelsnail import Stepper
from t2igen.sampling.edit import edit, known_codes
from t2igen.sampling.rerank import rerank
from t2igen.sampling.stage import load_text2image
from t2igen.sampling.values import each_sample
from t2igen.settings import existing_run, load_config

PROMPTS = ["a red ship in a storm at night", "two green pears on a blue plate",
           "a brown cow in winter", "a bouquet of white flowers in a red vase"]


@pytest.fixture(scope="module")
def model(tiny):
    return load_text2image(existing_run(tiny))


def equal(a, b) -> bool:
    "Whether two rows of tensors are equal."
    return all(x.equal(y) for x, y in zip(a, b, strict=True))


def codes(model, prompts, seeds, **given):
    "The codes of prompts."
    return model.codes(model.text(prompts), seeds, **given)


def test_a_sample_does_not_depend_on_its_batch(model):
    prompts = PROMPTS * 16
    seeds = list(range(64))
    each = dict(temperature=torch.linspace(0.7, 1.3, 64), guidance=torch.linspace(1, 3, 64),
                top_k=torch.arange(64) % 5)
    for settings in ({}, each):
        together = codes(model, prompts, seeds, **settings)
        for k in (0, 41):
            own = {name: values[k] for name, values in settings.items()}
            alone = codes(model, [prompts[k]], [seeds[k]], **own)
            assert equal(alone, [level[[k]] for level in together]), k


def test_batches_of_another_size_draw_the_same(model):
    cfg = model.cfg.model_copy(update=dict(batch_size=3))
    few = type(model)(model.blip, model.prior, model.vqvae, cfg)
    each = list(range(8))
    assert equal(codes(few, PROMPTS * 2, range(8), top_k=each),
                 codes(model, PROMPTS * 2, range(8), top_k=each))


def test_a_prompt_is_embedded_once(model, monkeypatch):
    embed = model.blip.embed_texts
    calls = []

    def counted(texts, *args, **kwargs):
        calls.append(list(texts))
        return embed(texts, *args, **kwargs)

    monkeypatch.setattr(model.blip, "embed_texts", counted)
    pixels = model.generate(PROMPTS[:2], [0, 1])
    redraw = torch.ones(2, 64, 64, dtype=torch.bool)
    edit(model, pixels, redraw, PROMPTS[2:], [0, 1])
    assert calls == [PROMPTS[:2], PROMPTS[2:]]


def test_order_of_words_matters(model):
    words = model.text(["a red ship before a blue wall", "a blue ship before a red wall"])
    assert words.mask[0].equal(words.mask[1])
    words.pooled = words.pooled[[0, 0]]                              # the token states alone
    grids = torch.zeros(2, *model.prior.top.grid, dtype=torch.long)
    with torch.inference_mode():
        logits = model.prior.top(grids, words)
    assert not logits[0, 0, 0].allclose(logits[1, 0, 0])


def test_the_grids_fill_up_and_one_may_leave(model):
    text = model.text(PROMPTS)
    whole = model.codes(text, range(4))
    fill = []
    for top, bottom in model.steps(text, range(4)):
        fill.append(int((top >= 0).sum() + (bottom >= 0).sum()))
    assert fill == list(range(4, 4*len(fill) + 1, 4))
    assert len(fill) == model.prior.top.length + model.prior.bottom.length
    del top, bottom
    for stop in (1, model.prior.top.length, model.prior.top.length + 5):
        steps = model.steps(text, range(4))
        for _ in range(stop):
            next(steps)
        del steps
        assert not [o for o in gc.get_objects() if type(o) is Stepper]
        assert not torch.is_inference_mode_enabled()
    assert equal(model.codes(text, range(4)), whole)


@pytest.fixture(scope="module")
def task(tiny):
    "Pictures, their captions, and what of them to draw anew."
    data = load_data(existing_run(tiny))
    some = data.indices("test_seen")[:3]
    redraw = torch.zeros(3, 64, 64, dtype=torch.bool)
    redraw[0, 32:] = True                    # a half
    redraw[1, :, :20] = True                 # not on the border of a cell
    redraw[2, 30:31, 30:31] = True           # one pixel
    return data.pixels(some), redraw, [data.records[i].text for i in some]


def test_codes_that_are_given_are_kept(model, task):
    pixels, redraw, prompts = task
    text = model.text(prompts)
    known = known_codes(model, pixels, redraw, text)
    assert [int((k < 0).sum()) for k in known[0]] == [32, 24, 1]
    assert [int((k < 0).sum()) for k in known[1]] == [128, 80, 1]
    drawn = model.codes(text, [0, 1, 2], known=known)
    assert all(new[k >= 0].equal(k[k >= 0]) for k, new in zip(known, drawn))
    assert not equal(model.codes(text, [3, 4, 5], known=known), drawn)     # another seed


def test_editing_keeps_what_is_given(model, task):
    pixels, redraw, prompts = task
    changed = edit(model, pixels, redraw, prompts, [0, 1, 2])
    assert changed.movedim(1, -1)[~redraw].equal(pixels.movedim(1, -1)[~redraw])
    assert not changed[:2].equal(pixels[:2])
    nothing = torch.zeros_like(redraw)
    assert edit(model, pixels, nothing, prompts, [0, 1, 2]).equal(pixels)


def test_reranking_keeps_all_and_says_why(model):
    ranked = rerank(model, PROMPTS[:2], 4, seed=7)
    assert ranked.pixels.shape == (2, 4, 3, 64, 64)
    assert [sorted(s) for s in ranked.seeds.tolist()] == [[7, 8, 9, 10]] * 2
    assert (ranked.scores.diff() <= 0).all()
    scores = model.blip.match(ranked.pixels[1], [PROMPTS[1]] * 4)
    assert torch.allclose(scores, ranked.scores[1], atol=1e-2)


@pytest.mark.parametrize("given, words", [
    (dict(guidance=[1.0, 2.0]), "2 values for 3"),
    (dict(temperature=0), "Bad value for temperature"),
    (dict(top_p=[1, 1, 2]), "got 2"),
    (dict(top_k=-1), "top_k"),
    (dict(temprature=1), "did you mean 'temperature'"),
])
def test_bad_settings(given, words):
    with pytest.raises(InputError) as e:
        each_sample(load_config("tiny").sampling, 3, **given)
    assert words in str(e.value)


def test_edit_from_the_command_line(t2igen, tiny, tmp_path):
    picture = tiny / "samples" / "00000.png"
    out = tmp_path / "new.png"
    call = ("generate", PROMPTS[0], "--run-dir", tiny, "--picture", picture)
    code, printed, err = t2igen(*call, "--redraw", "bottom", "-o", out)
    assert (code, printed.split(), err) == (0, [str(out)], "")
    before, after = (np.asarray(Image.open(p)) for p in (picture, out))
    assert (before[:32] == after[:32]).all() and (before[32:] != after[32:]).any()
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    for k, part in enumerate(("right", tmp_path / "mask.png")):
        assert t2igen(*call, "--redraw", part, "-o", tmp_path / f"{k}.png")[0] == 0
    assert (tmp_path / "0.png").read_bytes() == (tmp_path / "1.png").read_bytes()


@pytest.mark.parametrize("args, words", [
    ("--picture OLD", "needs --redraw"),
    ("--redraw top", "needs --picture"),
    ("--picture OLD --redraw no.png", "There is no file"),
    ("--picture no.png --redraw top", "There is no file"),
    ("--picture OLD --redraw BLACK", "white nowhere"),
    ("--picture OLD --redraw top --rerank 4", "do not go together"),
    ("-n 4 --rerank 2", "less than -n 4"),
])
def test_bad_edits_from_the_command_line(t2igen, tiny, tmp_path, args, words):
    black = tmp_path / "black.png"
    Image.new("L", (64, 64)).save(black)
    files = dict(OLD=tiny / "samples" / "00000.png", BLACK=black)
    args = [files.get(word, word) for word in args.split()]
    code, printed, err = t2igen("generate", PROMPTS[0], "--run-dir", tiny, "-o",
                                tmp_path / "x.png", *args)
    assert code == 2 and not printed and words in err, err
    assert err.startswith("Error: ") and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [black]


def test_rerank_from_the_command_line(t2igen, tiny, tmp_path):
    best = tmp_path / "best.png"
    code, printed, err = t2igen("generate", *PROMPTS[:2], "--run-dir", tiny, "-n", 2,
                                "--rerank", 3, "-o", best)
    assert code == 0 and not err
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "best-1.png", "best-2.png", "best-3.png", "best-4.png", "best-candidates.png", "best.png"]
    notes = [Image.open(tmp_path / f"best-{k}.png").text for k in (1, 2, 3, 4)]
    assert [n["prompt"] for n in notes] == [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2
    assert float(notes[0]["matching"]) >= float(notes[1]["matching"])
    words = f"(seed {notes[0]['seed']}, matching {float(notes[0]['matching']):.4f})"
    assert words in printed
    again = tmp_path / "again.png"
    seed = notes[0]["seed"]
    assert t2igen("generate", PROMPTS[0], "--run-dir", tiny, "--seed", seed, "-o", again)[0] == 0
    first, second = (np.asarray(Image.open(p)).astype(int)
                     for p in (again, tmp_path / "best-1.png"))
    assert np.abs(first - second).max() <= 8                           # the seed it names


def images_of(folder, overrides) -> tuple:
    "The data of a tiny run with `overrides`, and its pictures by split."
    run = Run(folder, load_config("tiny", overrides))
    make_data(run)
    data = load_data(run)
    return data, {split: data.images[data.indices(split)] for split in SPLITS}


def test_fewer_pictures_and_copies_of_them(tmp_path):
    _, whole = images_of(tmp_path / "all", {})
    _, few = images_of(tmp_path / "few", {"data.limit": 20})
    data, varied = images_of(tmp_path / "varied", {"data.limit": 20, "data.augment": 3})
    assert [len(images["train"]) for images in (whole, few, varied)] == [64, 20, 80]
    assert (whole["train"][:20] == few["train"]).all()
    assert (few["train"] == varied["train"][:20]).all()
    for split in SPLITS[1:]:                                           # held out, and whole
        assert (whole[split] == few[split]).all() and (whole[split] == varied[split]).all()
    copies = [r for r in data.records if r.copy_of]
    by_id = {r.id: r for r in data.records}
    assert len(copies) == 60 and {r.split for r in copies} == {"train"}
    for r in copies:
        original = by_id[r.copy_of]
        assert (r.text, r.attributes) == (original.text, original.attributes)


def test_metrics_count_what_was_remembered(tiny):
    for figures in read_json(tiny / "metrics.json")["memory"].values():
        both = figures["copied"]["both"]["value"]
        assert 0 <= both <= figures["copied"]["top"]["value"] <= 1
        assert figures["nearest_training"]["value"] > 0
    rows = np.load(tiny / "samples" / "codes.npy")
    assert len(rows) == len(list((tiny / "samples").glob("0*.png"))) and rows.dtype.kind == "u"


@pytest.mark.parametrize("name, args, words", [
    ("sampling", "--sides 4 --batches 1 16 --channels 16 --blocks 1",
     ["4x4", "matrix products alone"]),
    ("training", "--profile tiny --steps 5 --pictures 16",
     ["matcher", "captioner", "vqvae", "top", "bottom", "with checkpointing"]),
])
def test_the_benchmarks_run(name, args, words):
    script = ROOT / "benchmarks" / f"{name}.py"
    done = subprocess.run([sys.executable, script, *args.split()], capture_output=True, text=True)
    assert done.returncode == 0 and all(word in done.stdout for word in words), done.stderr
