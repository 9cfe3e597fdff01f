"What a busy neighbor costs is measured with neighbors that are there, and go."
import sys

import psutil
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import neighbors  # noqa: E402


def busy_children() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "--be-busy" in p.cmdline()]


LOADS = [(0, []), (0.3, ["0.3"]), (1, ["1.0"]), (1.5, ["1.0", "0.5"])]


@pytest.mark.parametrize("load, shares", LOADS)
def test_as_many_neighbors_as_the_load_says_and_none_after(load, shares):
    with neighbors.neighbors(load):
        assert [p.cmdline()[-1] for p in busy_children()] == shares
    assert busy_children() == []


def test_a_way_is_measured_in_a_process_of_its_own():
    assert 0.01 < neighbors.measure("one", steps=2) < 1000
