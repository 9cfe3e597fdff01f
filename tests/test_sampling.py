"From prompts to pictures, with the models of a run: seeds, settings, editing, reranking, walking away."
import gc, subprocess, sys

import numpy as np, pytest, torch
from PIL import Image

from conftest import ROOT
from t2igen.core import InputError, Run, load_config
from t2igen.data import SPLITS, load_data, make_data, to_pixels
from t2igen.pixelsnail import Stepper
from t2igen.sampling import each_sample, edit, known_codes, load_generator, rerank

PROMPTS = ["a red ship in a storm at night", "two green pears on a blue plate", "a brown cow in winter", "a bouquet of white flowers in a red vase"]

@pytest.fixture(scope="module")
def models(tiny): return load_generator(Run.open(tiny))

def equal(a, b): return all(x.equal(y) for x, y in zip(a, b, strict=True))

def test_a_sample_does_not_depend_on_its_batch(models):
    prompts, seeds = PROMPTS*16, list(range(64))
    each = dict(temperature=torch.linspace(0.7, 1.3, 64), guidance=torch.linspace(1, 3, 64), top_k=torch.arange(64) % 5)
    for settings in ({}, each):
        together = models.codes(prompts, seeds, **settings)
        for k in (0, 41):
            assert equal(models.codes([prompts[k]], [seeds[k]], **{name: v[k] for name, v in settings.items()}), [codes[[k]] for codes in together]), k

def test_batches_of_another_size_draw_the_same(models):
    few = load_generator_like(models, batch_size=3)
    assert equal(few.codes(PROMPTS*2, range(8), top_k=list(range(8))), models.codes(PROMPTS*2, range(8), top_k=list(range(8))))

def load_generator_like(models, **changes):
    "The same models under changed sampling settings."
    return type(models)(models.blip, models.prior, models.vqvae, models.cfg.model_copy(update=changes))

def test_order_of_words_matters(models):
    words = models.text(["a red ship before a blue wall", "a blue ship before a red wall"])
    assert words.mask[0].equal(words.mask[1])
    words.pooled = words.pooled[[0, 0]]                              # the token states alone
    with torch.inference_mode(): logits = models.prior.top(torch.zeros(2, *models.prior.top.grid, dtype=torch.long), words)
    assert not logits[0, 0, 0].allclose(logits[1, 0, 0])

def test_the_grids_fill_up_and_one_may_leave(models):
    whole = models.codes(PROMPTS, range(4))
    fill = [int((top >= 0).sum() + (bottom >= 0).sum()) for top, bottom in models.steps(PROMPTS, range(4))]
    assert fill == list(range(4, 4*len(fill) + 1, 4)) and len(fill) == models.prior.top.length + models.prior.bottom.length
    for stop in (1, models.prior.top.length, models.prior.top.length + 5):
        for number, codes in enumerate(models.steps(PROMPTS, range(4)), 1):
            if number == stop: break
        del codes
        assert not [o for o in gc.get_objects() if type(o) is Stepper] and not torch.is_inference_mode_enabled()
    assert equal(models.codes(PROMPTS, range(4)), whole)

def test_editing_keeps_what_is_given(models, tiny):
    data = load_data(Run.open(tiny))
    some = data.indices("test_seen")[:3]
    pixels, prompts = data.pixels(some), [data.records[i].text for i in some]
    redraw = torch.zeros(3, 64, 64, dtype=torch.bool)
    redraw[0, 32:], redraw[1, :, :20], redraw[2, 30:31, 30:31] = True, True, True          # a half; not on the border of a cell; one pixel
    known, changed = known_codes(models, pixels, redraw, prompts), edit(models, pixels, redraw, prompts, [0, 1, 2])
    assert [int((k < 0).sum()) for k in known[0]] == [32, 24, 1] and [int((k < 0).sum()) for k in known[1]] == [128, 80, 1]
    assert all(new[k >= 0].equal(k[k >= 0]) for k, new in zip(known, models.codes(prompts, [0, 1, 2], known=known)))
    assert changed.movedim(1, -1)[~redraw].equal(pixels.movedim(1, -1)[~redraw]) and not changed[:2].equal(pixels[:2])
    assert not equal(models.codes(prompts, [3, 4, 5], known=known), models.codes(prompts, [0, 1, 2], known=known))     # another seed, another filling
    nothing = torch.zeros_like(redraw)
    assert edit(models, pixels, nothing, prompts, [0, 1, 2]).equal(pixels)

def test_reranking_keeps_all_and_says_why(models):
    ranked = rerank(models, PROMPTS[:2], 4, seed=7)
    assert ranked.pixels.shape == (2, 4, 3, 64, 64) and [sorted(s) for s in ranked.seeds.tolist()] == [[7, 8, 9, 10]]*2
    assert (ranked.scores.diff() <= 0).all() and torch.allclose(models.blip.match(ranked.pixels[1], [PROMPTS[1]]*4), ranked.scores[1], atol=1e-2)

@pytest.mark.parametrize("given, words", [(dict(guidance=[1.0, 2.0]), "2 values for 3"), (dict(temperature=0), "Bad value for temperature"), (dict(top_p=[1, 1, 2]), "got 2"),
                                          (dict(top_k=-1), "top_k"), (dict(temprature=1), "did you mean 'temperature'")])
def test_bad_settings(given, words):
    with pytest.raises(InputError) as e: each_sample(load_config("tiny").sampling, 3, **given)
    assert words in str(e.value)

def test_edit_from_the_command_line(t2igen, tiny, tmp_path):
    picture, out = tiny/"samples"/"00000.png", tmp_path/"new.png"
    code, printed, err = t2igen("generate", PROMPTS[0], "--run-dir", tiny, "--picture", picture, "--redraw", "bottom", "-o", out)
    assert (code, printed.split(), err) == (0, [str(out)], "")
    before, after = (np.asarray(Image.open(p)) for p in (picture, out))
    assert (before[:32] == after[:32]).all() and (before[32:] != after[32:]).any()
    mask = np.zeros((64, 64), np.uint8); mask[:, 32:] = 255
    Image.fromarray(mask).save(tmp_path/"mask.png")
    codes = [t2igen("generate", PROMPTS[0], "--run-dir", tiny, "--picture", picture, "--redraw", part, "-o", tmp_path/f"{k}.png")[0] for k, part in enumerate(("right", tmp_path/"mask.png"))]
    assert codes == [0, 0] and (tmp_path/"0.png").read_bytes() == (tmp_path/"1.png").read_bytes()
    Image.new("L", (64, 64)).save(tmp_path/"black.png")
    before = sorted(tmp_path.iterdir())
    for args, words in [(["--picture", picture], "needs --redraw"), (["--redraw", "top"], "needs --picture"), (["--picture", picture, "--redraw", tmp_path/"no.png"], "There is no file"),
                        (["--picture", tmp_path/"no.png", "--redraw", "top"], "There is no file"), (["--picture", picture, "--redraw", tmp_path/"black.png"], "white nowhere"),
                        (["--picture", picture, "--redraw", "top", "--rerank", 4], "do not go together"), (["-n", 4, "--rerank", 2], "less than -n 4")]:
        code, printed, err = t2igen("generate", PROMPTS[0], "--run-dir", tiny, "-o", tmp_path/"x.png", *args)
        assert code == 2 and not printed and err.startswith("Error: ") and err.count("\n") == 1 and words in err, (args, err)
    assert sorted(tmp_path.iterdir()) == before

def test_rerank_from_the_command_line(t2igen, tiny, tmp_path):
    code, printed, err = t2igen("generate", *PROMPTS[:2], "--run-dir", tiny, "-n", 2, "--rerank", 3, "-o", tmp_path/"best.png")
    assert code == 0 and not err and sorted(p.name for p in tmp_path.iterdir()) == ["best-1.png", "best-2.png", "best-3.png", "best-4.png", "best-candidates.png", "best.png"]
    notes = [Image.open(tmp_path/f"best-{k}.png").text for k in (1, 2, 3, 4)]
    assert [n["prompt"] for n in notes] == [PROMPTS[0]]*2 + [PROMPTS[1]]*2 and float(notes[0]["matching"]) >= float(notes[1]["matching"])
    assert f"(seed {notes[0]['seed']}, matching {float(notes[0]['matching']):.4f})" in printed
    assert t2igen("generate", PROMPTS[0], "--run-dir", tiny, "--seed", notes[0]["seed"], "-o", tmp_path/"again.png")[0] == 0
    assert np.abs(np.asarray(Image.open(tmp_path/"again.png")).astype(int) - np.asarray(Image.open(tmp_path/"best-1.png"))).max() <= 8       # the seed it names

def test_fewer_pictures_and_copies_of_them(tmp_path):
    sets = {}
    for name, overrides in dict(all={}, few={"data.limit": 20}, varied={"data.limit": 20, "data.augment": 3}).items():
        run = Run(tmp_path/name, load_config("tiny", overrides)); make_data(run); sets[name] = load_data(run)
    images = {name: {s: data.images[data.indices(s)] for s in SPLITS} for name, data in sets.items()}
    assert [len(images[name]["train"]) for name in sets] == [64, 20, 80]
    assert (images["all"]["train"][:20] == images["few"]["train"]).all() and (images["few"]["train"] == images["varied"]["train"][:20]).all()
    for split in SPLITS[1:]:
        assert (images["all"][split] == images["few"][split]).all() and (images["all"][split] == images["varied"][split]).all()       # held out, and whole
    copies = [r for r in sets["varied"].records if r.copy_of]
    by_id = {r.id: r for r in sets["varied"].records}
    assert len(copies) == 60 and all(r.split == "train" and r.text == by_id[r.copy_of].text and r.attributes == by_id[r.copy_of].attributes for r in copies)

def test_metrics_count_what_was_remembered(tiny):
    from t2igen.core import read_json
    memory = read_json(tiny/"metrics.json")["memory"]
    for figures in memory.values():
        assert 0 <= figures["copied"]["both"]["value"] <= figures["copied"]["top"]["value"] <= 1 and figures["nearest_training"]["value"] > 0
    rows = np.load(tiny/"samples"/"codes.npy")
    assert len(rows) == len(list((tiny/"samples").glob("0*.png"))) and rows.dtype.kind == "u"

@pytest.mark.parametrize("name, args, words", [
    ("sampling", "--sides 4 --batches 1 16 --channels 16 --blocks 1", ["4x4", "matrix products alone"]),
    ("training", "--profile tiny --steps 5 --pictures 16", ["matcher", "captioner", "vqvae", "top", "bottom", "with checkpointing"])])
def test_the_benchmarks_run(name, args, words):
    done = subprocess.run([sys.executable, ROOT/"benchmarks"/f"{name}.py", *args.split()], capture_output=True, text=True)
    assert done.returncode == 0 and all(word in done.stdout for word in words), done.stderr
