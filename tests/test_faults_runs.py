"A run folder of somebody else shows, and does nothing; whatever goes wrong is a sentence."
import html
import json
import os
import shlex
import shutil
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import version

import pytest
from conftest import ROOT, command
from packaging.requirements import Requirement
from PIL import Image

from t2igen.core.config import InputError
from t2igen.core.files import read_json, read_text, write_json, write_lines, write_text
from t2igen.core.run import Run, at_work
from t2igen.core.stages import STAGES
from t2igen.pipeline.report import make_report
from t2igen.pipeline.stages import next_steps, run_pipeline
from t2igen.pipeline.stand_ins import write_stand_ins
from t2igen.pipeline.sweep import sweep_table
from t2igen.sampling.stage import load_samples
from t2igen.settings import load_config, open_run

POSIX = pytest.mark.skipif(os.name != "posix", reason="what POSIX has")
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"


@pytest.fixture
def run(tmp_path) -> Run:
    "A finished run, its stages written by hand."
    settings = {"notebooks": str(write_stand_ins(tmp_path / "stand_ins"))}
    run = open_run(tmp_path / "run", "tiny", settings)
    prompt = "a red ship"
    for stage, spec in STAGES.items():
        with run.stage(stage):
            for name in spec.outputs:
                write_json(run / name if "." in name else run / name / "out.json", {})
            if stage == "samples":
                Image.new("RGB", (8, 8), "red").save(run / "samples" / "0.png")
                row = dict(file_name="0.png", prompt=prompt)
                write_lines(run / "samples" / "metadata.jsonl", [row])
            if stage == "metrics":
                Image.new("RGB", (24, 8), "navy").save(run / "examples" / "0.png")
                row = dict(file_name="0.png", prompt=prompt, split="test_seen", said="a ship")
                write_lines(run / "examples" / "metadata.jsonl", [row])
    (run / "figures").mkdir()
    Image.new("RGB", (9, 9), "green").save(run / "figures" / "data_grid.png")
    return run


def refused(result, *words) -> str:
    "What is said: exit code 2 and one sentence that shows no control character."
    code, out, err = result
    assert code == 2 and out == "" and err.startswith("Error: ") and err.count("\n") == 1, result
    assert err[:-1].isprintable(), ascii(err)
    for word in words:
        assert word in err, err
    return err


def tree(folder) -> dict:
    "Every file of a folder, with its bytes."
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


# --- what leads out of a run folder


READERS = [["report"], ["verify"], ["generate", "a ship", "--run-dir"], ["config", "--run-dir"],
           ["evaluate", "--run-dir"], ["codes", "extract", "--run-dir"],
           ["train", "blip", "--run-dir"], ["run", "--run-dir"]]


@POSIX
@pytest.mark.parametrize("name", [
    "figures/a.png", "examples/a.json", "data/a.npy", "notebooks", "params.yaml", "metrics.json",
    ".run.lock", ".stage.pid", "prior/sub/weights", "sweep.json", "classifier"])
def test_links_out_of_a_run_are_refused_by_all_that_read_it(t2igen, run, tmp_path, name):
    (tmp_path / "secret").write_text("my secret")
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(tmp_path / "secret")
    before = tree(tmp_path)
    for words in READERS:
        refused(t2igen(*words, run.folder), f"{name} is a link that leads out of")
    reuse = ["run", "--profile", "tiny", "--run-dir", tmp_path / "new", "--reuse", run.folder]
    refused(t2igen(*reuse), "is a link that leads out of")
    with pytest.raises(InputError, match="is a link that leads out of"):
        Run(run.folder, run.cfg)
    assert tree(tmp_path) == before


@POSIX
def test_links_inside_and_links_to_a_run_are_right(t2igen, run, tmp_path):
    (run / "figures" / "again.png").symlink_to("data_grid.png")
    (tmp_path / "link").symlink_to(run.folder)
    (run / "other").symlink_to(tmp_path)                      # not ours
    code, out, err = t2igen("report", tmp_path / "link")
    assert (code, err) == (0, "")
    assert (run / "report.html").read_text(encoding="utf-8").count("image/webp") == 2


@POSIX
@pytest.mark.parametrize("name", ["manifest.json", "params.yaml", "metrics.json",
                                  "figures/a.png", ".run.pid"])
def test_a_pipe_in_a_run_folder_hangs_nothing(t2igen, run, name):
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    for words in READERS:
        refused(t2igen(*words, run.folder), f"{name} is a pipe")


@POSIX
def test_pipes_and_devices_named_by_the_user_are_not_read(t2igen, run, tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path / "pipe.yaml", "/dev/zero"):
        refused(t2igen("rerun", path, "--run-dir", tmp_path / "again"), "a pipe or a device")
    refused(t2igen("run", "--profile", tmp_path / "pipe.yaml"), "a pipe or a device")


@pytest.mark.parametrize("name", ["../../secret.png", "{}/secret.png", "../params.yaml", "", "..",
                                  None, 3, "a\0b", "metadata.jsonl"])
def test_names_in_a_runs_files_stay_in_it(t2igen, run, tmp_path, name):
    Image.new("RGB", (24, 8)).save(tmp_path / "secret.png")
    name = name and name.format(tmp_path) if isinstance(name, str) else name
    row = dict(file_name=name, prompt="a ship", split="test_seen", said="a ship")
    write_lines(run / "examples" / "metadata.jsonl", [row])
    refused(t2igen("report", run.folder), "metadata.jsonl")
    write_lines(run / "samples" / "metadata.jsonl", [row])
    with pytest.raises(InputError, match="metadata.jsonl|samples"):
        load_samples(run)


def test_names_in_sweep_json_stay_in_the_sweep(run, tmp_path):
    (tmp_path / "sweep").mkdir()
    write_json(tmp_path / "sweep" / "sweep.json", {"runs": {"../run": {}}})
    with pytest.raises(InputError, match="leads out of"):
        sweep_table(tmp_path / "sweep")


@pytest.mark.parametrize("place", ["figures/a.png", "examples/0.png", "samples/0.png"])
def test_a_picture_that_is_postscript_calls_no_ghostscript(t2igen, run, place, monkeypatch):
    from PIL import EpsImagePlugin
    called = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: called.append(a))
    (run / place).write_bytes(EPS)
    if place.startswith("samples"):
        with pytest.raises(InputError, match="PostScript"):
            load_samples(run)
    else:
        refused(t2igen("report", run.folder), "is PostScript")
    assert not called


@pytest.mark.parametrize("name", ["../../out", "/tmp/out", "a/b.yaml", "evil.yaml", "..", "",
                                  "a\nb", "\x1b[31m", "x" * 300])
def test_a_profile_in_a_file_is_a_name_and_no_path(t2igen, run, tmp_path, name):
    values = {**run.cfg.model_dump(), "profile": name}
    write_text(tmp_path / "received.yaml", json.dumps(values))
    words = ["export-workflow", "--profile", tmp_path / "received.yaml", "--run-dir"]
    refused(t2igen(*words, tmp_path / "flow"), "'profile'", "received.yaml")
    write_text(run / "params.yaml", json.dumps(values))
    refused(t2igen("verify", run.folder), "'profile'", "params.yaml")
    assert not (tmp_path / "out").exists() and not (tmp_path / "flow").exists()


def test_a_received_run_brings_no_notebooks(t2igen, run):
    values = run.cfg.model_dump()
    write_stand_ins(run / "notebooks")
    for folder, words in ((str(run / "notebooks"), "lie in it"), ("notebooks", "whole path")):
        write_text(run / "params.yaml", json.dumps({**values, "notebooks": folder}))
        refused(t2igen("run", "--run-dir", run.folder, "--force", "data"), words)


# --- what killed processes left


def test_leftovers_of_a_killed_take_over_are_gone_at_the_next_start(run):
    left = [run / ".data.k2j.tmp" / "half.npy", run / "notebooks" / ".1_data.7.tmp.ipynb",
            run / ".manifest.12.tmp.json", run / "figures" / ".data_grid.9.tmp.png",
            run / ".report.3.tmp.html"]
    for half in left:
        half.parent.mkdir(parents=True, exist_ok=True)
        half.touch()
    shutil.copytree(run / "blip", run / ".blip.old")           # and between two renames
    shutil.rmtree(run / "blip")
    run_pipeline(run, until="blip")                            # nothing is to be made
    assert not any(half.exists() for half in left) and run.is_current("blip")
    assert not [p.name for p in run.folder.iterdir() if ".tmp" in p.name or ".old" in p.name]


# --- files that are damaged


DEEP = '{"stages":' * 100_000
DONE = dict(status="done", fingerprint="a", outputs={}, seconds=1, memory_mib=1)
MANIFESTS = {
    "empty": "", "list": "[]", "null": "null", "no keys": "{}", "deep": DEEP, "latin": b'"\xe9"',
    "long": '{"stages": ' + "9"*5000 + "}", "no entry": '{"stages": {"data": 1}}',
    "no status": '{"stages": {"data": {}}}', "status": '{"stages": {"data": {"status": []}}}',
    "done": '{"stages": {"data": {"status": "done"}}}', "versions": '{"stages": {}, "versions": 3}',
    "params": '{"stages": {}, "params": []}', "huge": json.dumps(
        {"stages": {"data": {**DONE, "seconds": 10**4000}}}),
    "nan": json.dumps({"stages": {"data": {**DONE, "seconds": float("nan")}}}),
    "outputs": json.dumps({"stages": {"data": {**DONE, "outputs": [1]}}}),
    "key": json.dumps({"stages": {"data": {**DONE, "stage": "blip"}}}),
    "escape": '{"stages": {"\\u001b]0;title\\u0007": 3}}',
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_damaged_manifest_is_a_sentence(t2igen, run, tmp_path, name):
    text = MANIFESTS[name]
    manifest = run / "manifest.json"
    manifest.write_bytes(text if isinstance(text, bytes) else text.encode())
    for words in (["verify"], ["report"], ["generate", "a ship", "--run-dir"],
                  ["run", "--run-dir"]):
        refused(t2igen(*words, run.folder), "manifest.json")
    refused(t2igen("rerun", manifest, "--run-dir", tmp_path / "again"), "manifest.json")
    assert not (tmp_path / "again").exists()


FIGURE = dict(value=0.5, low=0.4, high=0.6, n=9)
METRICS = {
    "list": [], "number": 3, "part": {"blip": []},
    "word": {"generated": {"seen": {"bleu": "good"}}},
    "figure": {"vqvae": {"psnr": {**FIGURE, "value": "x"}}}, "reason": {"reasons": {"a": {}}},
    "half an interval": {"vqvae": {"psnr": {"value": 1, "low": None, "high": 3}}},
    "inside": {"vqvae": {"psnr": {"value": FIGURE}}}, "inf": {"vqvae": {"psnr": float("inf")}},
    "huge": {"seconds": {"total": 10**4000}}, "memory": {"memory_mib": {"data": "much"}},
    "talk": {"talk": [3]}, "protocol": {"protocol": 3}, "a figure": {"controls": FIGURE},
}


@pytest.mark.parametrize("name", METRICS)
def test_damaged_metrics_are_a_sentence(t2igen, run, tmp_path, name):
    (run / "metrics.json").write_text(json.dumps(METRICS[name]))
    refused(t2igen("report", run.folder), "metrics.json holds no metrics")
    other = ["report", run.folder, run.folder, "-o", tmp_path / "both.html"]
    refused(t2igen(*other), "metrics.json holds no metrics")


@pytest.mark.parametrize("text, words", [
    (DEEP, "it is nested too deeply"), ("{", "not valid JSON"), ("9"*5000, "thousands of digits)")])
def test_metrics_that_are_no_json(t2igen, run, text, words):
    (run / "metrics.json").write_text(text)
    refused(t2igen("report", run.folder), "metrics.json", words)


@pytest.mark.parametrize("value, words", [
    ("{1: 2}", "the key 1 is not a name"), ("{a: {b: {2: 3}}}", "the key 2 is not a name"),
    ("9" * 5000, "thousands of digits."), ("{a: 1, a: 2}", "the key 'a' occurs twice"),
    ("0x" + "f" * 5000, "more than 18 digits"),
    ("[" * 5000, "nested too deeply."), ("9" * 20, "more than 18 digits")])
def test_yaml_that_is_no_setting(t2igen, run, tmp_path, value, words):
    new = tmp_path / "new"
    given = ["run", "--profile", "tiny", "--run-dir", new, "-p", f"data={value}"]
    told = refused(t2igen(*given), words)
    assert len(told) < 500
    write_text(run / "params.yaml", f"data: {value}\n")
    refused(t2igen("verify", run.folder), words, "params.yaml")


@pytest.mark.parametrize("setting, words", [
    ("seed=1:30", "'1:30'"), ("vqvae.train.steps=1:30", "'1:30'"),
    ("vqvae.train.lr=1:30.5", "'1:30.5'"),
    ("vqvae.train.lr=.inf", "finite"), ("data.path=~nobody-has-this-name/x", "home directory"),
    ('data.path="a\\0b"', "no file has that name"), ("seed=-1", "'seed'")])
def test_values_that_cannot_be(t2igen, tmp_path, setting, words):
    new = tmp_path / "new"
    refused(t2igen("run", "--profile", "tiny", "--run-dir", new, "-p", setting), words)


def test_a_value_is_what_stands_there(tmp_path):
    "Also where YAML 1.1 saw a date, a number to another base, or a truth."
    file = tmp_path / "mine.yaml"
    write_text(file, "profile: 2026-01-02\nseed: 010\ndata: {language: no, mirror: off}\n"
                     "vqvae: {fuse_text: yes}\n")
    cfg = load_config(str(file))
    assert (cfg.profile, cfg.seed, cfg.data.language) == ("2026-01-02", 10, "no")
    assert cfg.data.mirror is False and cfg.vqvae.fuse_text is True
    run = open_run(tmp_path / "run", str(file), {"data.language": "1:30"})
    run.save_params()
    assert open_run(run.folder).cfg == run.cfg and run.cfg.data.language == "1:30"


# --- places that cannot be


@POSIX
def test_places_that_cannot_be_are_a_sentence(t2igen, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    places = ["file", "file/sub", "loop", "loop/sub", "x" * 300, "y/" * 3000]
    for place in [*(tmp_path / place for place in places), "/proc/none", "bad\udcff"]:
        for words in (["run", "--profile", "tiny", "--run-dir"],
                      ["sweep", "--profile", "tiny", "--run-dir"],
                      ["export-workflow", "--profile", "tiny", "--run-dir"],
                      ["verify"], ["report"], ["notebooks"], ["data", "gallery", "--out"]):
            assert len(refused(t2igen(*words, place))) < 1000, (words, place)


@POSIX
@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True,
                    reason="root may write everywhere")
def test_a_read_only_folder_is_a_sentence(t2igen, run):
    run.folder.chmod(0o555)
    try:
        refused(t2igen("run", "--run-dir", run.folder, "--force", "data"), "Permission denied")
        assert t2igen("verify", run.folder)[0] == 0
    finally:
        run.folder.chmod(0o755)


def shell(line: str, **env) -> subprocess.CompletedProcess:
    "A line for bash, in which `t2igen` is the command."
    name = f"t2igen() {{ {shlex.quote(sys.executable)} -m t2igen.cli \"$@\"; }}\n"
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **env}
    return subprocess.run(["bash", "-c", name + line], capture_output=True, env=env)


@POSIX
def test_streams_that_are_closed_or_full(run):
    folder = shlex.quote(str(run.folder))
    for line in (f"t2igen verify {folder} >&-", f"t2igen verify {folder} <&-",
                 f"t2igen verify {folder} 2>&-", f"t2igen verify {folder} <&- >&- 2>&-"):
        done = shell(line)
        assert (done.returncode, done.stderr) == (0, b""), (line, done)
    assert shell("t2igen verify /none >&- 2>&-").returncode == 2
    gone = shell("(sleep 1; t2igen config) | true; exit ${PIPESTATUS[0]}")
    assert (gone.returncode, gone.stderr) == (141, b""), gone
    full = shell(f"t2igen verify {folder} > /dev/full")
    assert full.returncode == 2 and full.stderr.startswith(b"Error: No space left on device")
    assert full.stderr.count(b"\n") == 1


@POSIX
def test_few_open_files_are_a_sentence(run):
    folder = shlex.quote(str(run.folder))
    few = shell(f"ulimit -n 64; t2igen run --run-dir {folder} --force data")
    assert few.returncode == 2 and b"ulimit -n 1024" in few.stderr, few
    raised = shell(f"ulimit -Sn 64; t2igen run --run-dir {folder} --force data --until data")
    assert raised.returncode == 0, raised


@pytest.mark.parametrize("stray", [
    dict(RANK="1"), dict(WORLD_SIZE="2"), dict(LOCAL_RANK="1"), dict(RANK="x", WORLD_SIZE="2"),
    dict(RANK="1", LOCAL_RANK="1", WORLD_SIZE="2")], ids=lambda v: ",".join(v))
def test_stray_variables_of_torchrun_mean_nothing(run, monkeypatch, stray):
    for name, value in stray.items():
        monkeypatch.setenv(name, value)
    with at_work(run, "data"):
        assert not set(stray) & set(os.environ)
        write_json(run / "data" / "out.json", {"again": True})
    assert run.is_current("data")


def test_a_driver_under_torchrun_says_what_to_do(t2igen, run, monkeypatch):
    group = dict(RANK="0", WORLD_SIZE="2", LOCAL_RANK="0", MASTER_ADDR="localhost", MASTER_PORT="1")
    for name, value in group.items():
        monkeypatch.setenv(name, value)
    refused(t2igen("run", "--run-dir", run.folder), "torchrun -m t2igen.cli train")


def test_what_nobody_foresaw_is_one_sentence_with_its_place(t2igen, run, monkeypatch):
    from t2igen.pipeline import verify

    def broken(run):
        raise KeyError("a\x1b]0;title\x07\nb")

    monkeypatch.setattr(verify, "verify_run", broken)
    code, out, err = t2igen("verify", run.folder)
    assert code == 1 and err.count("\n") == 1 and err[:-1].isprintable()
    assert err.startswith("Error: KeyError: ") and "t2igen/cli/results.py, line " in err


# --- what reaches a terminal, and what is copied from there


EVIL = "a\x1b]0;title\x07\x9b31m\u202eb"


def test_no_control_character_reaches_the_terminal(t2igen, run, tmp_path):
    write_json(run / "metrics.json", {"reasons": {f"blip.{EVIL}": EVIL}})
    run.record("metrics", **{**run.entry("metrics"), "outputs": run.outputs("metrics")})
    row = dict(file_name="0.png", prompt=f"{EVIL} $(touch {tmp_path}/hacked)")
    write_lines(run / "samples" / "metadata.jsonl", [row])
    run.record("samples", **{**run.entry("samples"), "outputs": run.outputs("samples")})
    for words in (["run", "--run-dir", run.folder], ["verify", tmp_path / EVIL],
                  ["run", "--run-dir", run.folder, "-p", f"data.{EVIL}=3"], ["config", EVIL],
                  ["generate", EVIL, "--run-dir", tmp_path / EVIL], [EVIL], ["run", f"--{EVIL}"],
                  ["report", run.folder, tmp_path / EVIL, "-o", tmp_path / f"{EVIL}.html"],
                  ["rerun", tmp_path / EVIL, "--run-dir", tmp_path / EVIL],
                  ["codes", "info", EVIL]):
        code, out, err = t2igen(*words)
        told = (out + err).replace("\n", "").replace("–", "")
        assert told and told.isprintable(), ascii((out, err))


@POSIX
@pytest.mark.parametrize("prompt", [
    "$(touch hacked)", "`touch hacked`", "'; touch hacked; '", "a\ntouch hacked\n",
    "a\r\x1b[201~touch hacked\n", "-o x.png", "\"$(touch hacked)\"", "!!", "it's 5 o'clock"])
def test_commands_to_copy_do_what_they_say(run, tmp_path, prompt):
    run.folder.rename(tmp_path / "my $(touch hacked)\nrun")
    run = open_run(tmp_path / "my $(touch hacked)\nrun")
    row = dict(file_name="0.png", prompt=prompt, split="test_seen", said="a ship")
    for folder in ("samples", "examples"):
        write_lines(run / folder / "metadata.jsonl", [row])
    page = make_report(run.folder).read_text(encoding="utf-8")
    shown = page.partition("Draw a picture from your own words")[2].partition("</pre>")[0]
    commands = [html.unescape(shown.partition("<pre>")[2])]
    commands += [line.partition(":")[2].strip() for line in next_steps(run).split("\n")
                 if line.startswith(("Draw:", "Change:"))]
    assert len(commands) == 3 and all(c.isprintable() for c in commands), commands
    show = "t2igen() { printf '%s\\0' \"$@\"; }\n"
    for given in commands:
        done = subprocess.run(["bash", "-c", show + given], capture_output=True, cwd=tmp_path)
        words = done.stdout.decode().split("\0")
        assert (prompt in words) == ("generate" in words) and done.stderr == b"", words
        assert ("." if given == commands[0] else str(run.folder)) in words
    assert not list(tmp_path.rglob("hacked"))


@POSIX
def test_a_line_break_in_a_folder_runs_nothing(t2igen, tmp_path):
    folder = tmp_path / "flow\nraise SystemExit('hacked')\n"
    assert t2igen("export-workflow", "--profile", "tiny", "--run-dir", folder)[0] == 0
    lines = read_text(folder / "Snakefile").split("\n")
    assert "raise SystemExit('hacked')" not in lines
    assert all(line.startswith("#") for line in lines if "hacked" in line)


def test_hints_of_data_commands_are_quoted(t2igen, tmp_path):
    gallery = tmp_path / "gallery"
    assert t2igen("data", "gallery", "--out", gallery, "-n", 12, "--size", 32)[0] == 0
    out = tmp_path / "my $(touch hacked)"
    code, told, err = t2igen("data", "folder", gallery, "--out", out, "--size", 32)
    assert code == 0 and f"-p 'data.path={out}'" in told


def test_verify_names_what_is_missing_if_its_record_is_emptied(t2igen, run):
    run.record("data", **{**run.entry("data"), "outputs": {}})
    shutil.rmtree(run / "data")
    code, out, err = t2igen("verify", run.folder)
    assert code == 1 and out.splitlines()[0] == "data     missing: data"


def test_a_terminal_in_ascii_is_told_all(run):
    env = dict(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PYTHONIOENCODING="ascii")
    folder = shlex.quote(str(run.folder))
    done = shell(f"t2igen run --run-dir {folder} --force data --until data -p seed=0", **env)
    assert done.returncode == 0, done
    done = shell(f"t2igen run --run-dir {folder}", **env)
    assert done.returncode == 0 and b"Look:" in done.stdout and done.stdout.isascii(), done


@POSIX
def test_names_of_all_letters_where_the_system_has_ascii(run, tmp_path):
    place = tmp_path / "Läufe 🚢"
    shutil.copytree(run.folder, place / "run")
    rows = [dict(file_name=f"Köln {i}.png", text="grün 🚢") for i in range(4)]
    for i, row in enumerate(rows):
        Image.new("RGB", (40, 40), (60 * i, 0, 0)).save(place / row["file_name"])
    write_lines(place / "metadata.jsonl", rows)
    words = shlex.quote(str(place))
    for encoding in ("ascii", "latin-1"):
        env = dict(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PYTHONIOENCODING=encoding)
        done = shell(f"t2igen run --run-dir {words}/run --force data --until data", **env)
        assert done.returncode == 0 and b"[1/7] data: done" in done.stdout, done
        done = shell(f"t2igen data folder {words} --out {words}/{encoding}", **env)
        shown = str(place).encode(encoding, "backslashreplace")
        assert done.returncode == 0 and shown + b"/" + encoding.encode() in done.stdout, done
        assert len(list((place / encoding).glob("*.png"))) == 4
    done = shell(f"t2igen run --run-dir {words}/run", **{**env, "PYTHONIOENCODING": "ascii"})
    change = next(line for line in done.stdout.decode("ascii").split("\n") if "Change:" in line)
    word = change.split(" --run-dir ")[1].split(" -p ")[0]
    told = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True)
    assert told.stdout == os.fsencode(place / "run"), change


def test_a_value_of_a_command_that_cannot_be(t2igen, tmp_path):
    refused(t2igen("data", "folder", "a\udcff", "--out", tmp_path / "new"), "'path'", "no file has")


LAST_WITH_A_HOLE = dict(
    torch="2.12.0", transformers="5.9.0", accelerate="1.14.0", requests="2.32.5", nltk="3.10.3",
    urllib3="2.6.3", filelock="3.20.2", lmdb="2.0.0", jinja2="3.1.5", jupyterlab="4.6.1",
    jupyter_core="5.7.2", pyarrow="23.0.0", pillow="12.2.0", tqdm="4.66.2", pytest="9.0.2",
    setuptools="78.1.0")


def test_lower_bounds_are_free_of_known_holes():
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    lines = []
    for key in ("requirements", "parquet_requirements", "dev_requirements"):
        lines += config["DEFAULT"][key].split()
    seen = set()
    for line in map(Requirement, lines):
        here = line.marker is None or line.marker.evaluate()
        if here and line.name in LAST_WITH_A_HOLE:
            seen.add(line.name)
            assert LAST_WITH_A_HOLE[line.name] not in line.specifier, line
            assert version(line.name) in line.specifier, line
    assert seen == set(LAST_WITH_A_HOLE)


def test_a_finished_tiny_run_is_read_by_every_command(tiny, tmp_path):
    "The checks refuse nothing that t2igen writes."
    assert read_json(tiny / "manifest.json")["stages"]
    assert command("verify", tiny).returncode == 0
    both = command("report", tiny, tiny, "-o", tmp_path / "both.html")
    assert both.returncode == 0, both.stderr
    assert load_config(str(tiny / "params.yaml")).profile == "tiny"
