"""The VQ-VAE across processes and stages: one codebook whatever the number of processes, other
people's checkpoints, collapse."""
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from t2igen.codes.stage import make_codes
from t2igen.codes.store import CodeStore
from t2igen.prior.stage import make_prior
from t2igen.sampling.stage import load_text2image
from t2igen.sampling.text2image import Text2Image
from t2igen.settings import open_run
from t2igen.vqvae.shared_layout import SharedVqvae
from t2igen.vqvae.stage import make_vqvae

FEW = {"data.n_train": 16, "data.n_test_seen": 8, "data.n_test_unseen": 8}

WORKER = """
import sys

import torch
import torch.distributed as dist
from accelerate import Accelerator
from safetensors.torch import save_file

from t2igen.core.device import seed_everything
from t2igen.core.seeds import derive_seed
from t2igen.vqvae.quantizers import Quantizer


def learn(rank, processes):
    seed_everything(0, "codebook")
    quantizer = Quantizer(24, 4, decay=0.8)
    for step in range(12):
        stream = torch.Generator().manual_seed(step)
        features = torch.randn(8, 4, 6, 6, generator=stream)*(1 + step % 3)
        torch.manual_seed(derive_seed(0, "step", step, rank))
        quantizer.train()(features[rank::processes])
    return quantizer.state_dict()


alone = learn(0, 1)
acc = Accelerator(cpu=True)
assert acc.num_processes == 2
together = learn(acc.process_index, acc.num_processes)
found = {f"alone.{key}": value for key, value in alone.items()}
found |= {f"together.{key}": value for key, value in together.items()}
if acc.is_main_process:
    save_file(found, sys.argv[1])
dist.destroy_process_group()
"""


def test_two_processes_learn_the_codebook_of_one(tmp_path):
    (tmp_path/"worker.py").write_text(WORKER, encoding="utf-8")
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         tmp_path/"worker.py", tmp_path/"learned.safetensors"],
        check=True, timeout=240,
        env={**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"})
    learned = load_file(tmp_path/"learned.safetensors")
    for key in ("codebook", "count", "total"):
        alone = learned[f"alone.{key}"]
        together = learned[f"together.{key}"]
        torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-4)
    assert learned["alone.codebook"].std() > 0.5


def test_somebody_elses_checkpoint_becomes_codes(tmp_path):
    torch.manual_seed(0)
    state = SharedVqvae(16, 2, 8, 32, 8).state_dict()
    for name in ("quantize_t", "quantize_b"):
        state[f"{name}.embed"] = state.pop(f"{name}.codebook").t().contiguous()
        state[f"{name}.embed_avg"] = state.pop(f"{name}.total").t().contiguous()
        state[f"{name}.cluster_size"] = state.pop(f"{name}.count")
    weights = tmp_path/"vqvae2.safetensors"
    save_file(state, weights)
    run = open_run(tmp_path/"run", "tiny", {"vqvae.weights": str(weights), **FEW})
    make_codes(run)
    store = CodeStore(run/"codes.lmdb")
    assert store.meta["codebook_size"] == 32
    bottom = store[[0]]["bottom"]
    assert bottom.shape == (1, 16, 16)
    assert bottom.max() < 32
    config = json.loads((run/"vqvae"/"config.json").read_text(encoding="utf-8"))
    assert config["res_channels"] == 8


def test_larger_pictures_have_larger_patches_and_as_many_codes(tmp_path):
    large = {"data.image_size": 128, "blip.patch": 32, "vqvae.patch": 8}
    run = open_run(tmp_path/"run", "tiny", {**large, **FEW})
    make_codes(run)
    meta = CodeStore(run/"codes.lmdb").meta
    assert (meta["top"], meta["bottom"]) == ([8, 8], [16, 16])
    make_prior(run)
    model = load_text2image(run)
    assert model.side == 128
    drawn = model(["a red ship"], seed=0).images[0]
    assert drawn.size == (128, 128)
    model.save_pretrained(tmp_path/"saved")
    again = Text2Image.from_pretrained(tmp_path/"saved")(["a red ship"], seed=0).images[0]
    assert again.tobytes() == drawn.tobytes()


def test_a_collapse_stops_the_stage(tmp_path):
    never_leave = {                       # features must not leave their code: nothing is learned
        "vqvae.commitment": 1e6, "vqvae.train.muon": 0.0, "vqvae.codebook_size": 512,
        "vqvae.train.steps": 80}
    run = open_run(tmp_path/"run", "tiny", {**never_leave, **FEW})
    with pytest.raises(RuntimeError, match="codebook has collapsed: .*vqvae.quantizer=fsq"):
        make_vqvae(run)
    assert not (run/"vqvae"/"model.safetensors").exists()
