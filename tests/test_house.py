"How the house is built: floors, rooms, sentences, and what importing costs."
import ast
import json
import re
import subprocess
import sys
from configparser import ConfigParser

import pytest
from conftest import ROOT

import t2igen
from t2igen.core.fingerprints import room_file
from t2igen.core.stages import STAGES
from t2igen.settings import load_config, profiles

FLOORS = [
    "core", "gallery", "data", "training", "blip", "vqvae", "codes", "prior", "sampling",
    "metrics", "plots", "settings", "play", "pipeline", "cli",
]
PACKAGE = ROOT / "t2igen"
ROOMS = sorted(p for p in PACKAGE.rglob("*.py") if p.name not in ("__init__.py", "_modidx.py"))
CHAPTERS = sorted(p for p in (ROOT / "nbs").glob("[0-9]*.ipynb"))
STAGE_NOTEBOOKS = sorted((ROOT / "nbs" / "stages").glob("*.ipynb"))
SCRIPTS = [file for folder in ("tests", "benchmarks", "docs")
           for file in sorted((ROOT / folder).rglob("*.py"))]


def name_of(room) -> str:
    "The dotted name of a module's file below t2igen."
    return ".".join(room.relative_to(PACKAGE).with_suffix("").parts)


def imports_of(room) -> set[str]:
    "The rooms of t2igen that a room imports, anywhere in it."
    here, found = name_of(room).split("."), set()
    for node in ast.walk(ast.parse(room.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        module = (node.module or "").split(".") if node.module else []
        if node.level:
            base = here[:-node.level] + module
        elif module[:1] == ["t2igen"]:
            base = module[1:]
        else:
            continue
        names = [".".join([*base, alias.name]) for alias in node.names]
        found.update(n if room_file(n) else ".".join(base) for n in names)
    return {name for name in found if name}


def code_cells(notebook) -> list[str]:
    "The sources of a notebook's code cells."
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]


@pytest.mark.parametrize("room", ROOMS, ids=name_of)
def test_imports_go_down_only(room):
    wing = name_of(room).partition(".")[0]
    below = FLOORS[:FLOORS.index(wing)]
    for name in imports_of(room):
        other = name.partition(".")[0]
        assert other == wing or other in below, f"{name_of(room)} imports {name}"


def test_no_room_imports_itself_in_a_circle():
    graph = {name_of(room): imports_of(room) for room in ROOMS}
    done = set()

    def visit(name, path):
        assert name not in path, f"a circle: {' -> '.join([*path, name])}"
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, [*path, name])
            done.add(name)

    for name in graph:
        visit(name, [])


@pytest.mark.parametrize("room", ROOMS, ids=name_of)
def test_a_room_is_small(room):
    assert len(room.read_text(encoding="utf-8").splitlines()) <= 250


def test_every_room_has_its_chapter_and_bears_its_name():
    exported = {}
    for chapter in CHAPTERS:
        names = re.findall(r"^#\| default_exp (\S+)$", "\n".join(code_cells(chapter)), re.M)
        if names:
            exported[names[0]] = chapter.stem
            assert chapter.stem.partition("_")[2] == names[0]
    assert set(exported) == {name_of(room) for room in ROOMS}


def nested_comprehensions(tree) -> list[int]:
    "Lines with a comprehension inside a comprehension."
    kinds = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    outer = [n for n in ast.walk(tree) if isinstance(n, kinds)]
    inside = [n for n in outer for k in ast.walk(n) if isinstance(k, kinds) and k is not n]
    return [n.lineno for n in inside]


def long_assignments(tree) -> list[int]:
    "Lines that assign three things or more at once from three or more."
    found = [n for n in ast.walk(tree) if isinstance(n, ast.Assign)]
    return [n.lineno for n in found if isinstance(n.value, ast.Tuple) and len(n.value.elts) > 2
            and isinstance(n.targets[0], ast.Tuple)]


def star_imports(tree) -> list[int]:
    "Lines with `from x import *`."
    found = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    return [n.lineno for n in found if n.names[0].name == "*"]


@pytest.mark.parametrize("room", ROOMS, ids=name_of)
def test_sentences_are_short(room):
    tree = ast.parse(room.read_text(encoding="utf-8"))
    assert nested_comprehensions(tree) == []
    assert long_assignments(tree) == []
    assert star_imports(tree) == []


@pytest.mark.parametrize("chapter", CHAPTERS + STAGE_NOTEBOOKS, ids=lambda p: p.stem)
def test_cells_are_short(chapter):
    cells = json.loads(chapter.read_text(encoding="utf-8"))["cells"]
    first = "".join(cells[0]["source"]).splitlines()
    assert first[0].startswith("# ") and first[2].startswith("> ") and len(first) == 3
    for source in code_cells(chapter):
        exported = re.match(r"#\|\s*exports?\b", source)
        if exported and "\nclass " not in f"\n{source}":
            assert len(source.splitlines()) <= 41, source[:200]
        assert all(len(line) <= 100 for line in source.splitlines())
        assert nested_comprehensions(ast.parse(source)) == [], source[:200]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_sentences_of_scripts_are_short(script):
    tree = ast.parse(script.read_text(encoding="utf-8"))
    assert nested_comprehensions(tree) == []
    assert star_imports(tree) == []


@pytest.mark.parametrize("stage", STAGES)
def test_stage_notebooks_take_the_three_parameters(stage):
    notebook = ROOT / "nbs" / "stages" / f"{STAGES[stage].notebook}.ipynb"
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1
    body = ast.parse("".join(tagged[0]["source"])).body
    given = {node.targets[0].id: ast.literal_eval(node.value) for node in body}
    assert given == dict(run_dir="", profile="", overrides={})


@pytest.mark.parametrize("profile", profiles())
def test_profiles_load(profile):
    assert load_config(profile).profile == profile


def python(code: str) -> subprocess.CompletedProcess:
    "Code in a fresh interpreter."
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize("what", [
    "import t2igen", "import t2igen.cli.app", "import t2igen.settings",
    "from t2igen import load_config, Run; load_config('demo')"])
def test_importing_costs_no_torch(what):
    heavy = "{'torch', 'transformers', 'papermill', 'matplotlib', 'sklearn'}"
    done = python(f"import sys; {what}; x = {heavy} & set(sys.modules); assert not x, x")
    assert done.returncode == 0, done.stderr


def test_public_names_are_there():
    for name in t2igen.__all__:
        assert getattr(t2igen, name).__doc__


def test_nothing_posix_is_needed():
    "As on Windows: modules that it lacks are hidden, and every room is imported."
    hidden = "('fcntl', 'resource', 'termios', 'pwd', 'grp', 'pty', 'tty')"
    rooms = [f"t2igen.{name_of(room)}" for room in ROOMS]
    code = f"""
import importlib, sys, signal, os
import torch, papermill, jupyter_client, ipykernel, lmdb, accelerate, IPython, tqdm
import matplotlib.pyplot, seaborn, sklearn, multiprocessing.resource_tracker, filelock
import torchvision, lpips, nltk, rouge_score.rouge_scorer, multiprocessing.pool
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipProcessor
from transformers import BlipConfig, BlipImageProcessor, PreTrainedTokenizerFast
for name in {hidden}:
    sys.modules[name] = None
for name in ("SIGHUP", "SIGKILL", "SIGUSR1"):
    if hasattr(signal, name): delattr(signal, name)
for name in ("register_at_fork", "killpg", "getpgid", "fork", "setsid"):
    if hasattr(os, name): delattr(os, name)
for name in {rooms}:
    importlib.import_module(name)
"""
    done = python(code)
    assert done.returncode == 0, done.stderr[-2000:]


def test_constraints_cover_the_requirements():
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")

    def normal(name):
        return re.sub(r"[-_.]+", "-", name).lower()

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {normal(line.split("==")[0]) for line in lines if "==" in line}
    default = config["DEFAULT"]
    wanted = default["requirements"].split() + default["dev_requirements"].split()
    assert {normal(re.split("[<>=]", w)[0]) for w in wanted} <= pinned


def test_what_is_imported_is_required():
    "Every package that a room imports stands in settings.ini."
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    default = config["DEFAULT"]
    extras = default["parquet_requirements"].split() + default["cluster_requirements"].split()
    extras += default["playground_requirements"].split()
    required = default["requirements"].split() + extras
    names = {re.split("[<>=;]", r)[0].lower().replace("-", "_") for r in required}
    other = {"PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit_learn", "IPython": "ipykernel"}
    used = set()
    for room in ROOMS:
        for node in ast.walk(ast.parse(room.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                used.update(alias.name.split(".")[0] for alias in node.names)
            if isinstance(node, ast.ImportFrom) and not node.level:
                used.add(node.module.split(".")[0])
    outside = {other.get(n, n) for n in used - set(sys.stdlib_module_names) - {"t2igen"}}
    assert {n.lower() for n in outside} <= names
