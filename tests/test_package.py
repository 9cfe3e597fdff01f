"What holds the notebooks together."
import ast, json, re, subprocess, sys
from configparser import ConfigParser

import pytest
from conftest import ROOT
from t2igen.core import STAGES, load_config, profiles

CHAIN = ["core", "gallery", "data", "training", "blip", "vqvae", "codes", "pixelsnail", "sampling", "metrics", "pipeline", "cli"]

@pytest.mark.parametrize("module", CHAIN)
def test_imports_point_leftwards(module):
    tree = ast.parse((ROOT/"t2igen"/f"{module}.py").read_text())
    names = {m for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
             for m in ([node.module] if node.level == 1 and node.module else [a.name for a in node.names] if node.level else
                       [node.module.removeprefix("t2igen.")] if (node.module or "").startswith("t2igen.") else [])}
    assert names <= set(CHAIN[:CHAIN.index(module)]), f"{module} imports {names}"

@pytest.mark.parametrize("stage", STAGES)
def test_stage_notebooks_take_the_three_parameters(stage):
    cells = json.loads((ROOT/"nbs"/f"{STAGES[stage].notebook}.ipynb").read_text())["cells"]
    tagged = ["".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1
    assert {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(tagged[0]).body} == dict(run_dir="", profile="tiny", overrides={})

@pytest.mark.parametrize("profile", profiles())
def test_profiles_load(profile): assert load_config(profile).profile == profile

def test_help_does_not_wait_for_torch():
    code = "import sys, t2igen.cli; assert not {'torch', 'transformers', 'papermill', 'matplotlib'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

def test_constraints_cover_the_requirements():
    config = ConfigParser(delimiters=["="]); config.read(ROOT/"settings.ini")
    normal = lambda name: re.sub(r"[-_.]+", "-", name).lower()
    pinned = {normal(re.split("==", line)[0]) for line in (ROOT/"constraints.txt").read_text().splitlines() if "==" in line}
    wanted = config["DEFAULT"]["requirements"].split() + config["DEFAULT"]["dev_requirements"].split()
    assert {normal(re.split("[<>=]", w)[0]) for w in wanted} <= pinned
