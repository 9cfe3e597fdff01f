"The table of where attributes are lost."
import subprocess
import sys

import pytest
from conftest import ROOT

from t2igen.core.files import read_json

sys.path.insert(0, str(ROOT / "benchmarks"))
from attributes import accuracies, cell, confusions  # noqa: E402

SAID = [{"animal": "cow", "time": "night"}, {"animal": "cow", "time": "dawn"}, {"fruit": "pear"}]
ASKED = [{"animal": "horse", "time": "night"}, {"animal": "cow", "time": "night"},
         {"fruit": "pear"}]


def test_each_attribute_is_counted_where_it_is_asked_for():
    found = accuracies(SAID, ASKED)
    assert found == {"animal": 0.5, "fruit": 1.0, "time": 0.5, "all attributes": 3 / 5,
                     "all right": 1 / 3}


def test_mistakes_are_named():
    assert confusions(SAID + SAID, ASKED + ASKED, most=1) == ["animal: horse drawn as cow (2)"]


@pytest.mark.parametrize("rows, text", [
    ([{"a": 0.5}], "0.500"), ([{"a": 0.5}, {"a": 0.7}], "0.600±0.141"), ([{}], "-")])
def test_a_cell_shows_the_spread(rows, text):
    assert cell(rows, "a") == text


def test_the_table_of_a_run(tiny, tmp_path):
    script = ROOT / "benchmarks" / "attributes.py"
    args = ["--run", tiny, "--pictures", "8", "--seeds", "2", "-o", tmp_path / "lost.json"]
    done = subprocess.run([sys.executable, script, *map(str, args)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1500:]
    assert "| seen | caption | real | codes | bottom drawn | drawn |" in done.stdout
    found = read_json(tmp_path / "lost.json")
    for split in ("seen", "unseen"):
        figures = found[split]["figures"]
        assert len(figures["drawn"]) == 2 and len(figures["codes"]) == 1
        assert 0 <= figures["drawn"][0]["all attributes"] <= 1
        assert set(figures["real"][0]) == set(figures["drawn"][1])
