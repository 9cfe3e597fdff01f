"The second prior: what it promises of every grid, and a run of it from training to the report."
import json
import os
import signal
import time

import pytest
import torch
from test_resume import WORK, figures, start

from t2igen.blip.embed import TextFeatures
from t2igen.core.files import file_sha256, read_json
from t2igen.core.run import Run, make_stage
from t2igen.data.stage import load_data
from t2igen.pipeline.report import report_tables
from t2igen.pipeline.stages import take_over
from t2igen.prior.diffusion import MaskedDiffusion, halton_order
from t2igen.prior.levels import Prior, level_config, prior_config
from t2igen.prior.pixelsnail import PixelSnail
from t2igen.prior.settings import PriorConfig
from t2igen.sampling.draw import sample_codes, sample_steps, uniforms
from t2igen.sampling.edit import edit
from t2igen.sampling.stage import load_sample_codes, load_text2image
from t2igen.settings import load_config
from t2igen.training.checkpoint import load_model, save_model

GRID = (4, 6)
BOTH = {
    "prior.top.kind": "diffusion", "prior.bottom.kind": "diffusion",
    "prior.bottom.weighting": "maskgit", "sampling.order": "halton",
    "sampling.guidance_schedule": "rising", "sampling.top_steps": 5, "sampling.bottom_steps": 3,
}
META = dict(top=(8, 8), bottom=(16, 16), codebook_size=512, vocabulary=99, pooled=64,
            states=(24, 128))


@pytest.fixture(scope="module")
def model():
    "One with random weights and strong opinions."
    torch.manual_seed(0)
    model = MaskedDiffusion(GRID, 7, 3, 8, 2, 2, 3, 5, 6, 0.0, top_grid=(2, 3)).eval()
    with torch.no_grad():
        model.head.table.weight.mul_(3)
        model.embed.table.weight.mul_(20)
    return model


def given(n: int) -> tuple:
    "Texts, uniform numbers and top codes of `n` grids; those of fewer are the first."
    draw = torch.Generator().manual_seed(1)
    text = TextFeatures(torch.randn(16, 5, generator=draw), torch.randn(16, 4, 6, generator=draw),
                        torch.ones(16, 4).bool())
    top = torch.randint(7, (16, 2, 3), generator=draw)
    return text[torch.arange(n)], uniforms(range(n), 24), top[:n]


def holes() -> torch.Tensor:
    "Grids `16 4 6` of which a different number of codes is known, all and none among them."
    draw = torch.Generator().manual_seed(2)
    codes = torch.randint(7, (16, *GRID), generator=draw)
    rank = torch.rand(16, 24, generator=draw).argsort(1).argsort(1)
    hidden = rank < torch.arange(16)[:, None] * 24 // 15
    return codes.masked_fill(hidden.view(16, *GRID), -1)


def alone(model, k: int, known, **settings) -> torch.Tensor:
    "Grid k drawn by itself."
    text, u, top = given(16)
    own = {key: v[k] if torch.is_tensor(v) else v for key, v in settings.items()}
    return sample_codes(model, text[[k]], u[[k]], top[[k]], known[[k]], **own)[0]


@pytest.mark.parametrize("order", ["random", "halton"])
@pytest.mark.parametrize("steps", [1, 3, 7, 24, 99])
def test_known_codes_stay_and_a_grid_does_not_depend_on_its_batch(model, order, steps):
    known = holes()
    each = dict(guidance=torch.linspace(1, 3, 16), temperature=torch.linspace(0.5, 1.5, 16),
                top_k=torch.arange(16) % 5, steps=steps, order=order)
    for settings in (dict(steps=steps, order=order), dict(each, guidance_schedule="rising")):
        together = sample_codes(model, *given(16), known, **settings)
        assert together[known >= 0].equal(known[known >= 0])
        assert 0 <= together.min() and together.max() < 7
        for k in (0, 1, 8, 15):
            assert alone(model, k, known, **settings).equal(together[k]), k
    assert len(together.flatten(1).unique(dim=0)) == 16


@pytest.mark.parametrize("order", ["random", "halton"])
def test_every_place_is_drawn_once(model, order):
    known = holes().flatten(1)
    steps = list(model.places(known, uniforms(range(16), 24), 5, order))
    for k, row in enumerate(torch.cat(steps, 1)):
        assert set(row.tolist()) >= set((known[k] < 0).nonzero().flatten().tolist())
    empty = torch.full((16, 24), -1)
    steps = torch.cat(list(model.places(empty, uniforms(range(16), 24), 5, order)), 1)
    assert steps.sort(1).values.equal(torch.arange(24).expand(16, 24))
    ordered = torch.tensor(halton_order(GRID)).expand(16, 24)
    assert steps.equal(ordered) == (order == "halton")


def test_what_is_drawn_is_not_drawn_again(model):
    before = torch.full((16, *GRID), -1)
    fill = []
    for codes in sample_steps(model, *given(16), steps=6):
        assert codes[before >= 0].equal(before[before >= 0])
        before = codes.clone()
        fill.append(int((codes >= 0).sum(dim=(1, 2)).unique()))
    assert len(fill) == 6 and fill == sorted(set(fill)) and fill[-1] == 24


def test_guidance(model):
    plain = sample_codes(model, *given(16), steps=6)
    assert sample_codes(model, *given(16), steps=6).equal(plain)           # the same seeds
    one = torch.ones(16)
    one[0] = 2
    assert sample_codes(model, *given(16), guidance=one, steps=6)[1:].equal(plain[1:])
    strong = sample_codes(model, *given(16), guidance=4.0, steps=6)
    rising = sample_codes(model, *given(16), guidance=4.0, steps=6, guidance_schedule="rising")
    assert not strong.equal(plain) and not rising.equal(strong)


def test_the_text_and_the_top_codes_are_seen(model):
    text, u, top = given(16)
    plain = sample_codes(model, text, u, top, steps=6)
    other = TextFeatures(text.pooled.flip(0), text.states.flip(0), text.mask)
    assert not sample_codes(model, other, u, top, steps=6).equal(plain)
    assert not sample_codes(model, text, u, top.flip(0), steps=6).equal(plain)


def test_training_makes_the_bound_small(model):
    torch.manual_seed(3)
    codes = torch.randint(7, (16, 1, 1)).expand(16, *GRID)                 # all alike
    text, _, top = given(16)
    learner = MaskedDiffusion(GRID, 7, 3, 16, 1, 2, 3, 5, 6, 0.0, top_grid=(2, 3))
    optimizer = torch.optim.AdamW(learner.parameters(), 1e-2)
    with torch.no_grad():
        first = learner.bits(codes, text, top).mean()
    for _ in range(60):
        optimizer.zero_grad()
        learner.loss(codes, text, top).backward()
        optimizer.step()
    with torch.no_grad():
        last = learner.bits(codes, text, top).mean()
        assert last.equal(learner.bits(codes, text, top).mean())           # the same each time
    assert first > 2.5 and last < 1


def test_both_kinds_are_of_one_size():
    sizes = {}
    for kind in ("pixelsnail", "diffusion"):
        cfg = PriorConfig(top=PriorConfig().top.model_copy(update=dict(kind=kind)))
        prior = Prior(**prior_config(cfg, META, 64))
        sizes[kind] = sum(p.numel() for p in prior.top.parameters())
    assert 1 < sizes["diffusion"] / sizes["pixelsnail"] < 1.2


def test_a_saved_prior_is_of_its_kinds(tmp_path):
    cfg = PriorConfig(top=dict(channels=16, blocks=1),
                      bottom=dict(kind="diffusion", weighting="maskgit", channels=16, blocks=1))
    prior = Prior(**prior_config(cfg, META, 8))
    save_model(tmp_path, prior)
    again = load_model(tmp_path, Prior)
    assert type(again.top) is PixelSnail and type(again.bottom) is MaskedDiffusion
    assert again.bottom.weighting == "maskgit"
    config = read_json(tmp_path / "config.json")
    assert "weighting" not in level_config(cfg.top, (8, 8))
    del config["top"]["kind"]                                              # of an earlier version
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert type(load_model(tmp_path, Prior).top) is PixelSnail


def prepared(tiny, folder, more=None) -> Run:
    "A run of both levels by masked diffusion, taken over from the tiny one up to the codes."
    run = Run(folder, load_config(str(tiny / "params.yaml"), {**BOTH, **(more or {})}))
    run.save_params()
    for stage in ("data", "blip", "vqvae", "codes"):
        assert take_over(run, stage, [tiny])
    return run


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory) -> Run:
    "A finished run of masked diffusion."
    run = prepared(tiny, tmp_path_factory.mktemp("diffusion") / "run")
    for stage in ("prior", "samples", "metrics"):
        make_stage(run, stage)
    return run


def test_a_run_of_it_is_a_run(whole, tiny):
    own = read_json(whole / "metrics.json")
    other = read_json(tiny / "metrics.json")
    assert load_sample_codes(whole).max() < 32
    for name in ("bits_per_code", "bits_per_code_without_text"):
        levels = own["prior"][name].values()
        assert [figure["bound"] for figure in levels] == ["upper", "upper"]
    assert "bound" not in other["prior"]["bits_per_code"]["top"]
    assert own["generated"].keys() == other["generated"].keys()
    tables = {table["title"]: table["rows"] for table in report_tables(own)}
    for row in tables["Priors"]:
        assert row[1].startswith("at most ") != ("by_frequency" in row[0]), row


def test_editing_from_all_sides(whole):
    model = load_text2image(whole)
    data = load_data(whole)
    some = data.indices("test_seen")[:3]
    redraw = torch.zeros(3, 64, 64, dtype=torch.bool)
    redraw[0, :32] = True                      # an upper half
    redraw[1, 20:40, 20:40] = True             # a hole
    prompts = [data.records[i].text for i in some]
    pixels = data.pixels(some)
    changed = edit(model, pixels, redraw, prompts, [0, 1, 2])
    assert changed.movedim(1, -1)[~redraw].equal(pixels.movedim(1, -1)[~redraw])
    assert changed[2].equal(pixels[2]) and not changed[0].equal(pixels[0])
    grids = list(model.steps(model.text(prompts), [0, 1, 2]))
    assert len(grids) == 5 + 3                 # as many passes as the run's settings say


def test_killed_and_started_again_it_ends_as_if_left_alone(whole, tiny, tmp_path):
    often = {f"prior.{level}.train.checkpoint_seconds": 0 for level in ("top", "bottom")}
    run = prepared(tiny, tmp_path / "run", often)
    for level in ("top", "bottom"):
        process = start("-c", WORK, run.folder)
        while not (run / "prior" / f"{level}_checkpoint.pt").exists():
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    process = start("-c", WORK, run.folder)
    output = process.communicate()[0]
    assert process.returncode == 0, output[-3000:]
    for name in ("prior", "samples", "examples"):
        assert file_sha256(run / name) == file_sha256(whole / name), name
    assert figures(run.folder) == figures(whole.folder)
