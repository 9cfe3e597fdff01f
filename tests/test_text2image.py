"A prompt in, pictures out: calls, folders, the hub, words that were never read, many calls."
import gc
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import psutil
import pytest
import torch
from conftest import command
from huggingface_hub import ModelCard
from PIL import Image

from t2igen import Text2Image
from t2igen.core.config import InputError
from t2igen.core.files import read_json, read_lines, write_json
from t2igen.prior.levels import Prior
from t2igen.sampling.settings import SamplingConfig
from t2igen.vqvae.model import new_vqvae
from t2igen.vqvae.settings import VqvaeConfig

PROMPT = "a red ship in a storm at night"


@pytest.fixture(scope="module")
def model(tiny):
    return Text2Image.from_pretrained(tiny)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    "The model in a folder of its own, in whole and in half precision."
    folder = tmp_path_factory.mktemp("a saved model")
    model.save_pretrained(folder / "whole")
    model.save_pretrained(folder / "half", half=True)
    return folder


def same(a, b) -> bool:
    "Whether two lists of PIL pictures are the same."
    return [x.tobytes() for x in a] == [y.tobytes() for y in b]


def elsewhere(code: str, **environment) -> str:
    "What Python code prints in a fresh process without a network."
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_call_gives_pictures_and_how_to_draw_them_again(model):
    result = model([PROMPT, "a brown cow in winter"], num_images_per_prompt=2, seed=3)
    assert result.seeds == [3, 4, 3, 4] and result.prompts[2] == "a brown cow in winter"
    assert result.warnings == [] and result.scores is None
    assert [image.size for image in result.images] == [(64, 64)] * 4
    assert same(model(PROMPT, seed=4).images, [result.images[1]])
    assert same(model(PROMPT, 2, seed=[4, 3]).images, result.images[1::-1])
    top, bottom = result.codes
    assert top.shape == (4, 8, 8) and bottom.shape == (4, 16, 16) and int(top.min()) >= 0
    array = model(PROMPT, seed=3, output_type="np").images
    assert np.abs(array[0] * 255 - np.asarray(result.images[0])).max() <= 0.51


def test_pictures_without_a_seed_differ_and_say_it(model):
    first, second = model(PROMPT), model(PROMPT)
    assert first.seeds != second.seeds
    assert same(model(PROMPT, seed=first.seeds).images, first.images)
    torch.manual_seed(5)
    seeds = model(PROMPT).seeds
    torch.manual_seed(5)
    assert model(PROMPT).seeds == seeds
    own = [model(PROMPT, generator=torch.Generator().manual_seed(8)).seeds for _ in range(2)]
    assert own[0] == own[1]


def test_settings_count(model):
    plain = model(PROMPT, 2, seed=0).codes[0]
    for given in (dict(guidance_scale=8.0), dict(temperature=3.0), dict(top_k=1), dict(top_p=0.1),
                  dict(negative_prompt="a brown cow in winter", guidance_scale=8.0)):
        assert not model(PROMPT, 2, seed=0, **given).codes[0].equal(plain), given
    strong = model(PROMPT, 2, seed=0, guidance_scale=8.0).codes[0]
    away = model(PROMPT, 2, seed=0, guidance_scale=8.0, negative_prompt="a brown cow").codes[0]
    assert not strong.equal(away)
    cool = model(PROMPT, seed=0, bottom_temperature=0.01)
    assert cool.codes[0].equal(plain[:1])


def test_what_has_no_effect_is_said(model):
    steps = model(PROMPT, seed=0, num_inference_steps=8)
    assert [w for w in steps.warnings if "num_inference_steps has no effect" in w]
    plain = model(PROMPT, seed=0, negative_prompt="a cow", guidance_scale=1)
    assert [w for w in plain.warnings if "negative_prompt has no effect" in w]


def test_one_may_watch_and_stop(model):
    seen = []

    def stop(own, step, left, grids):
        assert own is model
        seen.append((step, left, int((grids["top"] >= 0).sum()), list(grids["pictures"])))
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model(PROMPT, seed=0, callback_on_step_end=stop)
    assert seen == [(k, 64 + 256 - k - 1, k + 1, [0]) for k in range(5)]
    assert same(model(PROMPT, seed=0).images, model(PROMPT, seed=0).images)


def test_early_reranking_paints_the_best_only(model):
    phases = {"drafting": 0, "drawing": 0}

    def watch(own, step, left, grids):
        phases[grids["phase"]] += len(grids["top"])

    result = model(PROMPT, 2, seed=0, rerank=6, callback_on_step_end=watch)
    assert phases == {"drafting": 6 * 64, "drawing": 2 * (1 + 256)}
    found = result.candidates
    assert found.scores.shape == (1, 6) and found.top.shape == (1, 6, 8, 8)
    best = found.scores[0].sort(descending=True, stable=True).indices[:2]
    assert sorted(result.seeds) == sorted(found.seeds[0][best].tolist())
    assert result.scores == sorted(result.scores, reverse=True)
    alone = model(PROMPT, seed=result.seeds[0]).codes
    assert alone[0].equal(result.codes[0][:1])
    assert (alone[1] != result.codes[1][:1]).float().mean() < 0.05     # rounding, at most


def test_a_part_is_redrawn(model):
    picture = model(PROMPT, seed=1).images[0]
    mask = Image.new("L", picture.size)
    mask.paste(255, (0, 32, 64, 64))
    changed = model("a brown cow in winter", seed=2, image=picture, mask_image=mask).images[0]
    before, after = np.asarray(picture), np.asarray(changed)
    assert (before[:32] == after[:32]).all() and (before[32:] != after[32:]).any()


@pytest.mark.parametrize("given, words", [
    (dict(prompt=" "), "Prompt 1 is empty"),
    (dict(prompt=[]), "must be a text or a list of texts"),
    (dict(prompt=["a ship", 3]), "Prompt 2 is no text"),
    (dict(num_images_per_prompt=0), "num_images_per_prompt must be a whole number of at least 1"),
    (dict(num_images_per_prompt=2, seed=[1, 2, 3]), "seed has 3 values for 2 pictures"),
    (dict(seed="x"), "seed must be a whole number"),
    (dict(seed=1, generator=torch.Generator()), "do not go together"),
    (dict(guidance_scale="2"), "guidance must be a number"),
    (dict(temperature=0), "Bad value for temperature"),
    (dict(rerank=1, num_images_per_prompt=2), "rerank=1 is less than"),
    (dict(height=512, width=512), "64 x 64 pixels, not of 512"),
    (dict(output_type="latent"), "must be one of pil, np, pt"),
    (dict(num_inference_steps=0), "num_inference_steps must be"),
    (dict(image=Image.new("RGB", (64, 64))), "image needs mask_image"),
    (dict(image=Image.new("RGB", (64, 64)), mask_image=Image.new("L", (32, 32), 255)),
     "different sizes, 64x64 and 32x32"),
])
def test_bad_calls(model, given, words):
    with pytest.raises(InputError) as e:
        model(**{"prompt": PROMPT, **given})
    assert words in str(e.value) and str(e.value).count(".") <= 2


def test_many_pictures_are_drawn_in_batches(model):
    sizes = set()

    def watch(own, step, left, grids):
        sizes.add(len(grids["top"]))

    result = model(PROMPT, 40, seed=0, callback_on_step_end=watch)
    assert sizes == {16, 8} and len(result.images) == 40 == len(set(result.seeds))


def test_a_saved_model_has_what_it_needs_and_no_more(saved, tiny):
    for kind in ("whole", "half"):
        names = sorted(p.name for p in (saved / kind).iterdir())
        assert names == ["README.md", "blip", "captioner", "config.json", "prior", "vqvae",
                         "words.json"]
        suffixes = {p.suffix for p in (saved / kind).rglob("*") if p.is_file()}
        assert suffixes == {".json", ".safetensors", ".md"}
    size = {}
    for kind in ("whole", "half"):
        size[kind] = sum(p.stat().st_size for p in (saved / kind).rglob("*.safetensors"))
    assert size["half"] < 0.6 * size["whole"]
    text = (saved / "whole" / "config.json").read_text(encoding="utf-8")
    assert str(tiny.parent) not in text and os.path.expanduser("~") + "/" not in text
    about = json.loads(text)["about"]
    assert about["profile"] == "tiny" and "attribute_accuracy (seen)" in about["figures"]


def test_the_model_card_is_one_of_the_hub(saved):
    card = ModelCard.load(saved / "whole" / "README.md")
    assert card.data.pipeline_tag == "text-to-image" and card.data.library_name == "t2igen"
    assert card.data.license == "apache-2.0" and "text-to-image" in card.data.tags
    assert "| attribute_accuracy (seen) |" in card.text


def test_a_saved_model_draws_in_a_fresh_process(model, saved, tmp_path):
    shutil.copytree(saved / "whole", tmp_path / "my model")
    code = f"""
from t2igen import Text2Image
model = Text2Image.from_pretrained({str(tmp_path / "my model")!r})
result = model({PROMPT!r}, seed=0)
result.images[0].save({str(tmp_path / "ship.png")!r})
print(len(model.captioner.caption(model.generate([{PROMPT!r}], [0]))), len(model.words))
"""
    assert elsewhere(code) == f"1 {len(model.words)}"
    with Image.open(tmp_path / "ship.png") as drawn:
        assert same([drawn], model(PROMPT, seed=0).images)


def test_half_precision_changes_little(model, saved):
    half = Text2Image.from_pretrained(saved / "half")
    assert {p.dtype for p in half.prior.parameters()} == {torch.float32}
    one, two = (np.asarray(m(PROMPT, 8, seed=0).images[k]).astype(int)
                for m, k in ((model, 0), (half, 0)))
    assert np.abs(one - two).mean() < 3
    again = model(PROMPT, 8, seed=0).codes[0]
    assert (half(PROMPT, 8, seed=0).codes[0] != again).float().mean() < 0.1


def test_a_model_of_the_hub_is_found_offline(saved, tmp_path, model):
    "The hub's cache as a download would leave it."
    cache = tmp_path / "hub" / "models--somebody--gallery"
    commit = "0a1b2c3d4e5f60718293a4b5c6d7e8f901234567"
    shutil.copytree(saved / "half", cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    code = """
from t2igen import Text2Image
from t2igen.core.config import InputError
model = Text2Image.from_pretrained("somebody/gallery")
print(model("a red ship", seed=0).seeds)
for name in ("somebody/else", "no such name!", "/no/such/folder"):
    try:
        Text2Image.from_pretrained(name)
    except InputError as e:
        print(str(e).count("\\n"), "hub" in str(e))
"""
    printed = elsewhere(code, HF_HUB_CACHE=str(tmp_path / "hub"))
    assert printed.splitlines() == ["[0]", "0 True", "0 True", "0 True"]


def test_folders_that_are_no_model(saved, tiny, tmp_path):
    def refused(words, change=None):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(saved / "whole", folder)
        if change:
            change(folder)
        with pytest.raises(InputError) as e:
            Text2Image.from_pretrained(folder)
        assert words in str(e.value) and "\n" not in str(e.value)

    def config(**values):
        return lambda folder: write_json(folder / "config.json", {
            **read_json(folder / "config.json"), **values})

    refused("not a run folder", lambda folder: (folder / "config.json").unlink())
    refused("not of a model of t2igen", config(library_name="diffusers"))
    refused("saved in format 9 by a newer t2igen ('7.0')", config(format=9, version="7.0"))
    refused("has no format number", config(format=None))
    refused("bad value for sampling.top_p", config(sampling={"top_p": 7}))
    refused("sampling must hold settings by name", config(sampling=[]))
    refused("not valid JSON", lambda folder: (folder / "config.json").write_text("{"))
    refused("has no prior", lambda folder: shutil.rmtree(folder / "prior"))
    refused("cannot be read as weights",
            lambda folder: (folder / "vqvae" / "model.safetensors").write_bytes(b"rubbish"))
    refused("no counted words", lambda folder: write_json(folder / "words.json", {"words": [1]}))


def test_runs_without_a_prior(tiny, tmp_path):
    shutil.copy(tiny / "params.yaml", tmp_path)
    manifest = read_json(tiny / "manifest.json")
    del manifest["stages"]["prior"]
    write_json(tmp_path / "manifest.json", manifest)
    with pytest.raises(InputError, match="Stage 'prior' of .* is not done: finish it"):
        Text2Image.from_pretrained(tmp_path)


def test_nothing_else_is_overwritten(model, saved, tiny, tmp_path):
    before = read_json(tiny / "prior" / "config.json")
    with pytest.raises(InputError, match="holds something else"):
        model.save_pretrained(tiny)
    assert read_json(tiny / "prior" / "config.json") == before
    shutil.copytree(saved / "whole", tmp_path / "again")
    model.save_pretrained(tmp_path / "again", half=True)          # its own it replaces
    assert Text2Image.from_pretrained(tmp_path / "again").words == model.words


def test_words_that_were_never_read(model, tiny):
    assert model.words == read_json(tiny / "blip" / "words.json")["words"]
    assert model.unread(["A red ship, at NIGHT!"]) == []
    assert model.unread(["a spaceship"]) == [
        "This model has never read: spaceship; nearest known: ship"]
    assert model.unread(["a rde ship"]) == ["This model has never read: rde; one letter from: red"]
    for strange in ("🚀", "一艘红船", "корабль"):
        assert model.unread([f"a ship {strange}"]) == [f"This model has never read: {strange}"]
    result = model("a shipp", seed=0, negative_prompt="a gow")
    assert [words.split(";")[0] for words in result.warnings] == [
        "This model has never read: shipp", "This model has never read: gow"]
    assert result.prompts == ["a shipp"]


@pytest.fixture(scope="module")
def smallest(model):
    "The reader of the tiny run, and of the rest as little as there can be."
    vqvae = new_vqvae(VqvaeConfig(channels=16, res_blocks=1, codebook_size=32), 16).eval()
    levels = dict(top=dict(grid=(2, 2), channels=16, blocks=1),
                  bottom=dict(grid=(4, 4), channels=16, blocks=1))
    prior = Prior(**levels, codebook_size=32, code_dim=8, heads=2, kernel=3, pooled_dim=16,
                  state_dim=32, dropout=0.0).eval()
    return Text2Image(model.blip, prior, vqvae, SamplingConfig(batch_size=500), model.words)


def open_files() -> int:
    "Files and the like that this process holds open."
    own = psutil.Process()
    return own.num_handles() if os.name == "nt" else own.num_fds()


def test_200_calls_keep_memory_and_files_flat(smallest):
    def call(k):
        smallest([PROMPT, "a spaceship"], seed=k, rerank=2, negative_prompt="a cow")

    for k in range(30):
        call(k)
    gc.collect()
    memory, files = psutil.Process().memory_info().rss, open_files()
    for k in range(200):
        call(k)
    gc.collect()
    assert open_files() <= files
    assert psutil.Process().memory_info().rss - memory < 8 * 2**20


def test_ten_thousand_pictures_take_bounded_memory(smallest):
    smallest(PROMPT, 1000, seed=0)
    gc.collect()
    memory = psutil.Process().memory_info().rss
    result = smallest(PROMPT, 10_000, seed=0)
    assert len(result.images) == 10_000 and result.codes[0].shape == (10_000, 2, 2)
    assert psutil.Process().memory_info().rss - memory < 200 * 2**20


def test_an_old_series_is_replaced_and_nothing_else(t2igen, tiny, tmp_path):
    call = ("generate", PROMPT, "--run-dir", tiny, "-o", tmp_path / "ship.png")
    assert t2igen(*call, "-n", 4)[0] == 0
    Image.new("RGB", (9, 9)).save(tmp_path / "ship-7.png")            # the user's own
    code, out, err = t2igen(*call, "-n", 2)
    assert (code, err) == (0, "") and "removed ship-3.png, ship-4.png of an earlier" in out
    names = ["ship-1.png", "ship-2.png", "ship-7.png", "ship.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    Image.new("RGB", (9, 9)).save(tmp_path / "ship-3.png")
    code, out, err = t2igen(*call, "-n", 3)
    assert code == 2 and "no earlier drawing of ship.png" in err
    assert Image.open(tmp_path / "ship-3.png").size == (9, 9)
    assert t2igen(*call)[0] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ship-3.png", "ship-7.png", "ship.png"]
    notes = Image.open(tmp_path / "ship.png").text
    assert notes["prompt"] == PROMPT and notes["seed"] == "0" and notes["guidance"] == "2.0"


def test_prompts_of_a_file(t2igen, tiny, saved, tmp_path):
    file, folder = tmp_path / "prompts.txt", tmp_path / "out"
    file.write_text(f"{PROMPT}\n\n  a brown cow in winter \n", encoding="utf-8")
    call = ("generate", "--prompts", file, "-o", folder, "--run-dir", saved / "whole")
    code, out, err = t2igen(*call, "--seed", "4,9", "--negative", "a pear")
    assert code == 0 and "4 pictures" in out, err
    lines = [line for _, line in read_lines(folder / "metadata.jsonl")]
    assert [line["seed"] for line in lines] == [4, 9, 4, 9]
    assert [line["prompt"] for line in lines[1:3]] == [PROMPT, "a brown cow in winter"]
    for line in lines:
        assert Image.open(folder / line["file_name"]).text["negative_prompt"] == "a pear"
    assert "is not empty" in t2igen(*call)[2]
    assert "-o FOLDER" in t2igen("generate", "--prompts", file, "--run-dir", tiny)[2]
    file.write_text("\n")
    assert "has no prompts" in t2igen(*call[:4], tmp_path / "new", *call[5:])[2]


def test_interactive_stays_loaded(tiny, tmp_path):
    done = command("generate", "--interactive", "--run-dir", tiny, "-o", tmp_path / "i.png",
                   input=f"{PROMPT}\na spaceship\n\n")
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["i-000.png", "i-001.png"]
    assert "never read: spaceship; nearest known: ship" in done.stderr


def test_words_are_named_before_it_draws_and_listed(t2igen, tiny, saved, tmp_path):
    code, out, err = t2igen("generate", "a spaceship", "--run-dir", tiny, "--rerank", 2, "-o",
                            tmp_path / "s.png")
    assert code == 0
    assert err == "Warning: This model has never read: spaceship; nearest known: ship\n"
    assert "matching: BLIP's probability" in out
    code, out, err = t2igen("words", "--run-dir", tiny)
    assert code == 0 and " ship\n" in out and out.splitlines()[0].split()[1] == "a"
    assert t2igen("words", "--run-dir", saved / "half")[1] == out
    counts = json.loads(t2igen("words", "--run-dir", tiny, "--json")[1])
    assert counts["ship"] > 0 and "spaceship" not in counts
