"A run that starts from the weights of another one."
import shutil

from t2igen.core.run import make_inputs
from t2igen.settings import open_run
from t2igen.training.checkpoint import read_history
from t2igen.training.start import part_folder, vocabulary
from t2igen.training.weights import read_weights
from t2igen.vqvae.stage import make_vqvae

FEW = {"vqvae.train.steps": 2, "vqvae.train.ema": 0.0, "vqvae.train.lr": 1e-9,
       "blip.matcher.train.steps": 1, "blip.captioner.train.steps": 1}


def test_models_go_on_from_those_of_another_run(tiny, tmp_path, capsys):
    run = open_run(tmp_path / "run", "tiny", {**FEW, "seed": 1, "init": str(tiny)})
    make_inputs(run, "vqvae")
    make_vqvae(run)
    said = capsys.readouterr().out
    tokens = vocabulary(part_folder(str(tiny), "matcher"))
    assert f"vqvae: 100% of its weights start from {tiny}" in said
    assert f"of {len(vocabulary(run / 'blip' / 'matcher'))} tokens start from {tiny}" in said
    known = read_weights(tiny / "vqvae" / "model.safetensors")
    begun = read_weights(run / "vqvae" / "model.safetensors")
    for name, weight in known.items():
        if weight.ndim > 1 and "quantize" not in name:
            assert (begun[name] - weight).std() < 0.1 * weight.std(), name
    first = read_history(run / "vqvae" / "vqvae_history.csv")[0]["loss"]
    assert first < read_history(tiny / "vqvae" / "vqvae_history.csv")[0]["loss"]
    assert len(tokens) > 100


def test_other_weights_to_start_from_make_the_stages_stale(tiny, tmp_path):
    start = tmp_path / "start"
    for part in ("blip", "vqvae", "prior"):
        shutil.copytree(tiny / part, start / part)
    plain = open_run(tmp_path / "run", "tiny")
    run = open_run(tmp_path / "run", "tiny", {"init": str(start)})
    before = {stage: run.fingerprint(stage) for stage in ("data", "blip", "vqvae", "codes")}
    assert before["data"] == plain.fingerprint("data")
    assert before["blip"] != plain.fingerprint("blip")
    moved = open_run(tmp_path / "run", "tiny", {"init": str(start.rename(tmp_path / "moved"))})
    assert {stage: moved.fingerprint(stage) for stage in before} == before
    shutil.copy(tmp_path / "moved/prior/model.safetensors",
                tmp_path / "moved/vqvae/model.safetensors")
    assert moved.fingerprint("data") == before["data"]
    assert moved.fingerprint("blip") != before["blip"]


def test_a_folder_without_weights_is_one_sentence(t2igen, tmp_path):
    code, out, err = t2igen("run", "--profile", "tiny", "--run-dir", tmp_path / "run",
                            "-p", f"init={tmp_path / 'nothing'}")
    assert code == 2
    assert "nothing has no matcher" in err
    assert err.count("\n") <= 3
    assert not (tmp_path / "run" / "params.yaml").exists()
