"What a user types, right and wrong."
import json, shutil

import pytest
from PIL import Image

from conftest import command

def files(folder): return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))

def refused(result, *words):
    "Exit code 2 and one clear sentence."
    code, out, err = result
    assert code == 2 and out == "" and err.startswith("Error: ") and err.count("\n") == 1 and "Traceback" not in err, result
    for word in words: assert word in err, err

@pytest.mark.parametrize("args, words", [
    (["--profile", "dmeo"], ["'dmeo'", "did you mean 'demo'"]),
    (["--profile", "tiny", "-p", "vqvae.codebok_size=3"], ["vqvae.codebok_size", "did you mean 'codebook_size'"]),
    (["--profile", "tiny", "-p", "prior.top.steps=many"], ["prior.top.steps", "'many'"]),
    (["--profile", "tiny", "-p", "seed"], ["key=value"]),
    (["--profile", "tiny", "--until", "vqve"], ["'vqve'", "did you mean 'vqvae'"]),
    (["--profile", "tiny", "--force", "prio"], ["'prio'", "did you mean 'prior'"]),
    (["--profile", "absent.yaml"], ["Cannot read absent.yaml"]),
    (["--profile", "broken.yaml"], ["broken.yaml is not valid YAML"]),
    (["--profile", "."], ["Unknown profile"]),
])
def test_run_refuses(t2igen, tmp_path, monkeypatch, args, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path/"broken.yaml").write_text("a: [")
    refused(t2igen("run", *args, "--run-dir", tmp_path/"run"), *words)
    assert files(tmp_path) == ["broken.yaml"]

def test_run_refuses_a_folder_of_another_profile(t2igen, tiny):
    before = (tiny/"params.yaml").read_bytes()
    refused(t2igen("run", "--profile", "demo", "--run-dir", tiny), "made with profile 'tiny'")
    assert (tiny/"params.yaml").read_bytes() == before

def test_places_that_cannot_be_written(t2igen, tiny, tmp_path):
    (tmp_path/"file").write_text("")
    refused(t2igen("run", "--profile", "tiny", "--run-dir", tmp_path/"file"/"sub"), "Cannot write", "file/sub")
    refused(t2igen("generate", "a ship", "--run-dir", tiny, "-o", tmp_path/"file"/"sub"/"ship.png"), "Cannot write")
    refused(t2igen("generate", "a ship", "--run-dir", tiny, "-o", tmp_path/"ship.jpg"), "must end in .png")
    refused(t2igen("data", "gallery", "--out", tmp_path/"file"/"sub"), "Cannot write")
    refused(t2igen("data", "gallery", "--out", tmp_path), "not empty")
    assert files(tmp_path) == ["file"]

@pytest.mark.parametrize("option", [["--temperature", "0"], ["--temperature", "nan"], ["--top-p", "1.5"], ["--top-k", "-1"], ["--guidance", "-2"]])
def test_generate_refuses_settings(t2igen, tiny, tmp_path, option):
    refused(t2igen("generate", "a ship", "--run-dir", tiny, "-o", tmp_path/"ship.png", *option), option[0][2:].replace("-", "_"))
    assert files(tmp_path) == []

def test_generate_refuses_prompts_and_runs(t2igen, tiny, tmp_path):
    refused(t2igen("generate", "a ship", "  ", "--run-dir", tiny), "Prompt 2 is empty")
    refused(t2igen("generate", "a ship"), "ships no weights", "t2igen run")
    refused(t2igen("generate", "a ship", "--run-dir", tmp_path), "not a run folder")
    (tmp_path/"params.yaml").write_text("profile: tiny\nseed: [1\n")
    refused(t2igen("generate", "a ship", "--run-dir", tmp_path), "not valid YAML")
    refused(t2igen("report", "--run-dir", tmp_path), "no metrics.json")
    refused(t2igen("train", "vqve", "--run-dir", tiny), "did you mean 'vqvae'")
    assert t2igen("generate", "a ship", "-n", "0")[0] == 2 and t2igen("paint")[0] == 2      # usage errors

def test_generate_draws(t2igen, tiny, tmp_path):
    code, out, err = t2igen("generate", "a red ship in a storm at night", "--run-dir", tiny, "-n", 2, "-o", tmp_path/"ship.png")
    assert (code, err) == (0, "")
    assert files(tmp_path) == ["ship-1.png", "ship-2.png", "ship.png"] and out.split() == [str(tmp_path/f) for f in ("ship.png", "ship-1.png", "ship-2.png")]
    assert Image.open(tmp_path/"ship-1.png").size == (64, 64) and Image.open(tmp_path/"ship.png").size[0] > 128
    assert t2igen("generate", "a red ship in a storm at night", "--run-dir", tiny, "--seed", 1, "-o", tmp_path/"again.png")[0] == 0
    assert Image.open(tmp_path/"again.png").tobytes() == Image.open(tmp_path/"ship-2.png").tobytes()    # a seed is a picture

def test_a_long_prompt_is_cut(t2igen, tiny, tmp_path):
    code, out, err = t2igen("generate", "a red ship " * 909 + "!", "--run-dir", tiny, "-o", tmp_path/"ship.png")
    assert code == 0 and err.startswith("Warning: ") and "cut" in err and err.count("\n") == 1, err
    assert files(tmp_path) == ["ship.png"]

def test_gallery_writes_an_imagefolder(t2igen, tmp_path):
    code, out, err = t2igen("data", "gallery", "--out", tmp_path/"g", "-n", 3, "--size", 48)
    assert (code, err) == (0, "")
    lines = [json.loads(line) for line in (tmp_path/"g"/"metadata.jsonl").read_text().splitlines()]
    assert [line["file_name"] for line in lines] == ["000000.png", "000001.png", "000002.png"] and all(line["text"] for line in lines)
    assert Image.open(tmp_path/"g"/"000002.png").size == (48, 48)

def test_report_and_doctor(t2igen, tiny):
    assert t2igen("report", "--run-dir", tiny) == (0, f"{tiny/'report.html'}\n", "")
    code, out, err = t2igen("doctor")
    assert code == 0 and len(out.splitlines()) >= 8

def test_report_of_several_runs_is_a_comparison(t2igen, tiny, tmp_path):
    other = tmp_path/"other"; other.mkdir()
    shutil.copy(tiny/"metrics.json", other)
    assert t2igen("report", tiny, other, "-o", tmp_path/"both.html") == (0, f"{tmp_path/'both.html'}\n", "")
    page = (tmp_path/"both.html").read_text()
    assert all(f">{name}</th>" in page for name in (tiny.name, "other")) and page.count("data:image/png") == 1 and "http" not in page
    refused(t2igen("report", tiny, other, "-o", tmp_path/"both.txt"), "must end in .html")

def test_what_cannot_be_fetched_is_said(tmp_path, monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"): monkeypatch.setenv(name, "http://127.0.0.1:9")    # nobody listens
    for name in ("TORCH_HOME", "HF_HOME"): monkeypatch.setenv(name, str(tmp_path/name))
    done = command("doctor", "--fetch")
    assert done.returncode == 0, done.stderr
    assert "The LPIPS backbone could not be had: " in done.stderr and "The models of the hub could not be had: " in done.stderr
    assert "LPIPS weights  absent" in done.stdout
