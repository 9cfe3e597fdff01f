"""The VQ-VAE across processes and stages: one codebook whatever the number of processes, other people's checkpoints, collapse."""
import json, os, subprocess, sys

import pytest, torch
from safetensors.torch import load_file, save_file

from t2igen.codes import CodeStore, make_codes
from t2igen.core import open_run
from t2igen.vqvae import Vqvae2, make_vqvae

WORKER = """
import sys, torch
from accelerate import Accelerator
from safetensors.torch import save_file
from t2igen.core import derive_seed, seed_everything
from t2igen.vqvae import Quantizer

def learn(rank, processes):
    seed_everything(0, "codebook")
    quantizer = Quantizer(24, 4, decay=0.8)
    for step in range(12):
        features = torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(step))*(1 + step % 3)
        torch.manual_seed(derive_seed(0, "step", step, rank))
        quantizer.train()(features[rank::processes])
    return quantizer.state_dict()

alone = learn(0, 1)
acc = Accelerator(cpu=True)
assert acc.num_processes == 2
together = learn(acc.process_index, acc.num_processes)
if acc.is_main_process: save_file({**{f"alone.{k}": v for k, v in alone.items()}, **{f"together.{k}": v for k, v in together.items()}}, sys.argv[1])
"""

def test_two_processes_learn_the_codebook_of_one(tmp_path):
    (tmp_path/"worker.py").write_text(WORKER)
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", tmp_path/"worker.py", tmp_path/"learned.safetensors"],
                   check=True, timeout=240, env={**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"})
    learned = load_file(tmp_path/"learned.safetensors")
    for key in ("codebook", "count", "total"): torch.testing.assert_close(learned[f"alone.{key}"], learned[f"together.{key}"], rtol=1e-4, atol=1e-4)
    assert learned["alone.codebook"].std() > 0.5

def test_somebody_elses_checkpoint_becomes_codes(tmp_path):
    torch.manual_seed(0)
    plain = Vqvae2(16, 2, 8, 32, 8)
    state = plain.state_dict()
    for q in ("quantize_t", "quantize_b"):
        state[f"{q}.embed"] = state.pop(f"{q}.codebook").t().contiguous()
        state[f"{q}.embed_avg"], state[f"{q}.cluster_size"] = state.pop(f"{q}.total").t().contiguous(), state.pop(f"{q}.count")
    save_file(state, tmp_path/"vqvae2.safetensors")
    run = open_run(tmp_path/"run", "tiny", {"vqvae.weights": str(tmp_path/"vqvae2.safetensors"), "data.n_train": 16, "data.n_test_seen": 8, "data.n_test_unseen": 8})
    make_codes(run)
    store = CodeStore(run/"codes.lmdb")
    assert store.meta["codebook_size"] == 32 and store[[0]]["bottom"].shape == (1, 16, 16) and store[[0]]["bottom"].max() < 32
    assert json.loads((run/"vqvae"/"config.json").read_text())["res_channels"] == 8

def test_a_collapse_stops_the_stage(tmp_path):
    run = open_run(tmp_path/"run", "tiny", {"vqvae.commitment": 1e6, "vqvae.codebook_size": 512, "vqvae.train.steps": 80, "data.n_train": 16, "data.n_test_seen": 8, "data.n_test_unseen": 8})
    with pytest.raises(RuntimeError, match="codebook has collapsed: .*vqvae.quantizer=fsq"): make_vqvae(run)     # features must not leave their code: nothing is learned
    assert not (run/"vqvae"/"model.safetensors").exists()
