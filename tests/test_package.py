"The package as a user gets it: sdist and wheel of a clean checkout, in an empty folder."
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from t2igen import Text2Image
from t2igen.core.stages import STAGES

LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "runs", "build", "dist", "*.egg-info", "__pycache__", "_proc", "_docs",
    "_preview")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "A folder with the sdist, and with the wheel that is built of it."
    checkout = tmp_path_factory.mktemp("checkout") / "t2igen"
    shutil.copytree(ROOT, checkout, ignore=LEFT_OUT)
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out)]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return out


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    "An environment with the wheel, and with what it needs from this one: the t2igen in it."
    place = tmp_path_factory.mktemp("an environment")
    venv.create(place, with_pip=False)
    scheme = {"base": str(place), "platbase": str(place)}
    site = sysconfig.get_path("purelib", vars=scheme)
    wheel = next(built.glob("*.whl"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site,
               str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    with open(os.path.join(site, "this.pth"), "w", encoding="utf-8") as f:
        f.write(sysconfig.get_path("purelib") + "\n")
    folder = "Scripts" if os.name == "nt" else "bin"
    return place / folder / ("python.exe" if os.name == "nt" else "python")


def test_the_wheel_has_all_that_it_needs(built):
    names = zipfile.ZipFile(next(built.glob("*.whl"))).namelist()
    for stage in STAGES.values():
        assert f"t2igen/notebooks/{stage.notebook}.ipynb" in names
    assert "t2igen/notebooks/tutorials/playground.ipynb" in names
    for part in ("t2igen/py.typed", "t2igen/profiles/tiny.yaml", "t2igen/metrics/talk.yaml",
                 "t2igen/play/style.css", "t2igen/play/brush.js",
                 "t2igen/pipeline/templates/report.html.j2"):
        assert part in names
    assert len(list(built.glob("*.tar.gz"))) == 1


def test_links_of_the_description_are_whole(built):
    wheel = zipfile.ZipFile(next(built.glob("*.whl")))
    name = next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    text = wheel.read(name).decode()
    assert "](nbs/" not in text
    assert "](https://github.com/t2igen/t2igen/blob/main/nbs/manual/drawing.ipynb)" in text
    assert "](https://github.com/t2igen/t2igen/raw/main/nbs/images/" in text


def python(installed, folder, *args, **environment):
    "What the installed interpreter says in a folder."
    return subprocess.run([str(installed), *args], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, **environment})


WHERE = ("-c", "import t2igen; print(t2igen.__path__[0])")


def test_it_runs_in_an_empty_folder(installed, tmp_path):
    def call(*args):
        return python(installed, tmp_path, "-m", "t2igen.cli", *args)

    where = python(installed, tmp_path, *WHERE)
    assert str(ROOT / "t2igen") not in where.stdout
    done = call("run", "--profile", "tiny", "--run-dir", "my run", "--until", "data")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "my run" / "notebooks" / "1_data.ipynb").exists()
    done = call("verify", "my run")
    assert "data     ok" in done.stdout, done.stdout + done.stderr


def test_it_draws_from_the_wheel_and_writes_nothing_into_it(installed, tmp_path):
    """The weights are in the wheel; an installation that may not be written to is enough, nor does
    anything need a home or the hub."""
    package = Path(python(installed, tmp_path, *WHERE).stdout.strip())
    assert " " in str(package)

    def state():
        files = [f for f in package.rglob("*") if f.is_file() and "__pycache__" not in f.parts]
        return {f: (f.stat().st_size, f.stat().st_mtime_ns) for f in files}

    before = state()
    prompt = "a red ship in a storm at night"
    words = ("-m", "t2igen.cli", "generate", prompt, "--seed", "3", "-o", "my picture.png")
    done = python(installed, tmp_path, *words, HOME=str(tmp_path / "no home"), HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stdout + done.stderr
    here = Text2Image.from_pretrained()(prompt, seed=3).images[0]
    with Image.open(tmp_path / "my picture.png") as picture:
        assert picture.size == (64, 64)
        assert np.array_equal(np.asarray(picture), np.asarray(here))
    assert len(before) > 100 and state() == before
