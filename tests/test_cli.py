"What a user types, right and wrong."
import json
import shutil

import pytest
from conftest import command
from PIL import Image


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def refused(result, *words):
    "Exit code 2 and one clear sentence."
    code, out, err = result
    assert code == 2 and out == "", result
    assert err.startswith("Error: ") and err.count("\n") == 1 and "Traceback" not in err, result
    for word in words:
        assert word in err, err


@pytest.mark.parametrize("args, words", [
    (["--profile", "dmeo"], ["'dmeo'", "did you mean 'demo'"]),
    (["-p", "vqvae.codebok_size=3"], ["vqvae.codebok_size", "did you mean 'codebook_size'"]),
    (["-p", "prior.top.train.steps=many"], ["prior.top.train.steps", "'many'"]),
    (["-p", "prior.top.steps=3"], ["called 'prior.top.train.steps' now"]),
    (["-p", "seed"], ["key=value"]),
    (["--until", "vqve"], ["'vqve'", "did you mean 'vqvae'"]),
    (["--force", "prio"], ["'prio'", "did you mean 'prior'"]),
    (["--profile", "absent.yaml"], ["Cannot read absent.yaml: No such", "; give another."]),
    (["--profile", "broken.yaml"], ["broken.yaml is not valid YAML"]),
    (["--profile", "."], ["Unknown profile"]),
])
def test_run_refuses(t2igen, tmp_path, monkeypatch, args, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.yaml").write_text("a: [")
    refused(t2igen("run", *args, "--run-dir", tmp_path / "run"), *words)
    assert files(tmp_path) == ["broken.yaml"]


def test_places_that_cannot_be_written(t2igen, tiny, tmp_path):
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "sub"
    refused(t2igen("run", "--profile", "tiny", "--run-dir", below), "Cannot write", "file/sub")
    draw = ["generate", "a ship", "--run-dir", tiny, "-o"]
    refused(t2igen(*draw, below / "ship.png"), "Cannot write")
    refused(t2igen(*draw, tmp_path / "ship.jpg"), "must end in .png")
    refused(t2igen("data", "gallery", "--out", below), "Cannot write")
    refused(t2igen("data", "gallery", "--out", tmp_path), "not empty")
    assert files(tmp_path) == ["file"]


@pytest.mark.parametrize("option", [
    ["--temperature", "0"], ["--temperature", "nan"], ["--top-p", "1.5"], ["--top-k", "-1"],
    ["--guidance", "-2"]])
def test_generate_refuses_settings(t2igen, tiny, tmp_path, option):
    args = ["generate", "a ship", "--run-dir", tiny, "-o", tmp_path / "ship.png", *option]
    refused(t2igen(*args), option[0][2:].replace("-", "_"))
    assert files(tmp_path) == []


def test_generate_refuses_prompts_and_runs(t2igen, tiny, tmp_path):
    refused(t2igen("generate", "a ship", "  ", "--run-dir", tiny), "Prompt 2 is empty")
    refused(t2igen("generate", "a", "red", "ship", "--run-dir", tiny), '"a red ship"')
    refused(t2igen("generate", "a ship", "--run-dir", tmp_path), "not a run folder")
    (tmp_path / "params.yaml").write_text("profile: tiny\nseed: [1\n")
    refused(t2igen("generate", "a ship", "--run-dir", tmp_path), "not valid YAML")
    refused(t2igen("report", "--run-dir", tmp_path), "no metrics.json")
    refused(t2igen("train", "vqve", "--run-dir", tiny), "did you mean 'vqvae'")
    assert t2igen("generate", "a ship", "-n", "0")[0] == 2         # usage errors
    assert t2igen("paint")[0] == 2


def test_generate_draws(t2igen, tiny, tmp_path):
    prompt = "a red ship in a storm at night"
    args = ["generate", prompt, "--run-dir", tiny]
    code, out, err = t2igen(*args, "-n", 2, "-o", tmp_path / "ship.png")
    assert (code, err) == (0, "")
    assert files(tmp_path) == ["ship-1.png", "ship-2.png", "ship.png"]
    assert out.split() == [str(tmp_path / f) for f in ("ship.png", "ship-1.png", "ship-2.png")]
    assert Image.open(tmp_path / "ship-1.png").size == (64, 64)
    assert Image.open(tmp_path / "ship.png").size[0] > 128
    assert t2igen(*args, "--seed", 1, "-o", tmp_path / "again.png")[0] == 0
    again, second = (Image.open(tmp_path / f) for f in ("again.png", "ship-2.png"))
    assert again.tobytes() == second.tobytes()                     # a seed is a picture


def test_a_long_prompt_is_cut(t2igen, tiny, tmp_path):
    prompt = "a red ship " * 909 + "!"
    code, out, err = t2igen("generate", prompt, "--run-dir", tiny, "-o", tmp_path / "ship.png")
    assert code == 0 and err.startswith("Warning: "), err
    assert "cut" in err and err.count("\n") == 1, err
    assert files(tmp_path) == ["ship.png"]


def test_gallery_writes_an_imagefolder(t2igen, tmp_path):
    code, out, err = t2igen("data", "gallery", "--out", tmp_path / "g", "-n", 3, "--size", 48)
    assert (code, err) == (0, "")
    text = (tmp_path / "g" / "metadata.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["file_name"] for line in lines] == ["000000.png", "000001.png", "000002.png"]
    assert all(line["text"] for line in lines)
    assert Image.open(tmp_path / "g" / "000002.png").size == (48, 48)


def test_report_and_doctor(t2igen, tiny):
    assert t2igen("report", "--run-dir", tiny) == (0, f"{tiny / 'report.html'}\n", "")
    code, out, err = t2igen("doctor")
    assert code == 0 and len(out.splitlines()) >= 8


def test_report_of_several_runs_is_a_comparison(t2igen, tiny, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(tiny / "metrics.json", other)
    both = tmp_path / "both.html"
    assert t2igen("report", tiny, other, "-o", both) == (0, f"{both}\n", "")
    page = both.read_text(encoding="utf-8")
    assert all(f">{name}</th>" in page for name in (tiny.name, "other"))
    assert page.count("data:image/png") == 1 and "http" not in page
    refused(t2igen("report", tiny, other, "-o", tmp_path / "both.txt"), "must end in .html")


def test_settings_are_shown(t2igen, tiny):
    code, out, err = t2igen("config", "prior.dropout", "--run-dir", tiny, "-p", "prior.dropout=0.4")
    assert code == 0 and "prior.dropout = 0.4 [default 0.05; set by -p]" in out
    code, out, err = t2igen("config", "vqvae.codebook_size", "--run-dir", tiny)
    assert code == 0 and "set by profile tiny" in out and "codebook" in out
    code, out, err = t2igen("config")
    assert code == 0 and out.count("\n    ") > 80 and "None" not in out


def test_version(t2igen):
    import t2igen as package
    assert t2igen("--version") == (0, f"{package.__version__}\n", "")


def test_what_cannot_be_fetched_is_said(tmp_path, monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")             # nobody listens
    for name in ("TORCH_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    done = command("doctor", "--fetch")
    assert done.returncode == 0, done.stderr
    assert "The LPIPS backbone could not be had: " in done.stderr
    assert "The models of the hub could not be had: " in done.stderr
    assert "LPIPS weights  absent" in done.stdout
