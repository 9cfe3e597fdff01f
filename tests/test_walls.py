"What makes a stage run again, and what does not: a copy of the package is edited."
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

from t2igen.core.stages import STAGES

PRINTS = """
import json
from t2igen.core.stages import STAGES, fingerprint
from t2igen.settings import load_config
cfg, known = load_config("tiny"), {}
print(json.dumps({name: fingerprint(cfg, name, known) for name in STAGES}))
"""


@pytest.fixture
def checkout(tmp_path):
    "A copy of package and stage notebooks."
    shutil.copytree(ROOT / "t2igen", tmp_path / "t2igen")
    shutil.copytree(ROOT / "nbs" / "stages", tmp_path / "nbs" / "stages")
    return tmp_path


def fingerprints(checkout) -> dict:
    "The fingerprints of all stages, by the code of `checkout`."
    env = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", PRINTS], env=env, cwd=checkout,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def edit(file, pattern: str, new: str):
    "Replace what matches once in a file."
    text, count = re.subn(pattern, new, file.read_text(encoding="utf-8"), count=1, flags=re.S)
    assert count == 1, f"nothing in {file} matches {pattern}"
    file.write_text(text, encoding="utf-8")


def stale(before: dict, after: dict) -> list[str]:
    return [name for name in STAGES if before[name] != after[name]]


QUIET = {
    "a plot": ("t2igen/plots.py", r"\Z", "\n\ndef one_more_plot():\n    return 1\n"),
    "a download header": ("t2igen/data/fetch.py", r"research", "study"),
    "a message of an error": ("t2igen/vqvae/model.py", r"(InputError\(\s*f?\")", r"\1Oh: "),
    "a docstring": ("t2igen/prior/pixelsnail.py", r"Autoregressive prior", "The prior"),
    "a comment": ("t2igen/core/seeds.py", r"\Z", "\n# a comment\n"),
    "a meaning of a setting": ("t2igen/vqvae/settings.py", r"description=\"", "description=\"Oh"),
    "a line of the command line": ("t2igen/cli/app.py", r"\Z", "\nONE_MORE = 1\n"),
    "the driver": ("t2igen/pipeline/kernels.py", r"\Z", "\nONE_MORE = 1\n"),
}


@pytest.mark.parametrize("what", QUIET)
def test_what_cannot_change_a_result_makes_nothing_stale(checkout, what):
    path, pattern, new = QUIET[what]
    before = fingerprints(checkout)
    edit(checkout / path, pattern, new)
    assert stale(before, fingerprints(checkout)) == []


ALL = list(STAGES)
LOUD = {
    "the seeds": ("t2igen/core/seeds.py", r">> 1", ">> 2", ALL),
    "a painter": ("t2igen/gallery/ships.py", r"\Z", "\nONE_MORE = 1\n", ALL),
    "the device": ("t2igen/core/device.py", r"\Z", "\nONE_MORE = 1\n", ALL[1:]),
    "the matcher": ("t2igen/blip/matcher.py", r"\Z", "\nONE_MORE = 1\n", ALL[1:]),
    "the VQ-VAE": ("t2igen/vqvae/model.py", r"\Z", "\nONE_MORE = 1\n", ALL[2:]),
    "the store": ("t2igen/codes/writer.py", r"\Z", "\nONE_MORE = 1\n", ALL[3:]),
    "PixelSNAIL": ("t2igen/prior/pixelsnail.py", r"\Z", "\nONE_MORE = 1\n", ALL[4:]),
    "how codes are drawn": ("t2igen/sampling/draw.py", r"\Z", "\nONE_MORE = 1\n", ALL[5:]),
    "a figure": ("t2igen/metrics/captions.py", r"\Z", "\nONE_MORE = 1\n", ALL[6:]),
}


@pytest.mark.parametrize("what", LOUD)
def test_what_can_change_a_result_makes_the_right_stages_stale(checkout, what):
    path, pattern, new, follows = LOUD[what]
    before = fingerprints(checkout)
    edit(checkout / path, pattern, new)
    assert stale(before, fingerprints(checkout)) == follows


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_notebook_counts_by_its_code(checkout, stage):
    path = checkout / "nbs" / "stages" / f"{STAGES[stage].notebook}.ipynb"
    book = json.loads(path.read_text(encoding="utf-8"))
    before = fingerprints(checkout)
    book["cells"].append({"cell_type": "markdown", "id": "a", "metadata": {}, "source": ["Oh."]})
    path.write_text(json.dumps(book), encoding="utf-8")
    assert stale(before, fingerprints(checkout)) == []
    cell = {"cell_type": "code", "id": "b", "metadata": {}, "source": ["one_more = 1"],
            "outputs": [], "execution_count": None}
    book["cells"].append(cell)
    path.write_text(json.dumps(book), encoding="utf-8")
    followers = [s for s in STAGES if s == stage or stage in STAGES[s].inputs]
    found = stale(before, fingerprints(checkout))
    assert found[0] == stage and set(followers) <= set(found)
