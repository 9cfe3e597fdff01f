"What `t2igen verify` notices: pictures wherever they lie, and outputs however they change."
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from t2igen.core.config import InputError
from t2igen.core.run import Run
from t2igen.core.stages import STAGES
from t2igen.data.metadata import metadata_files
from t2igen.data.stage import load_data, make_data
from t2igen.pipeline.verify import verify_run
from t2igen.settings import existing_run, open_run


def pictures(folder, inside: str, n: int = 24):
    "An imagefolder whose metadata names pictures in a folder `inside`."
    rng = np.random.default_rng(len(inside))
    (folder / inside).mkdir(parents=True, exist_ok=True)
    lines = []
    for k in range(n):
        name = f"{inside}/{k}.png" if inside else f"{k}.png"
        pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
        lines.append(json.dumps({"file_name": name, "text": f"picture {k} of {folder.name}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def made(folder, run_dir) -> Run:
    "A run whose data stage has read a folder."
    settings = {"data.dataset": "folder", "data.path": str(folder), "data.image_size": 32}
    run = open_run(run_dir, "tiny", settings)
    run.save_params()
    make_data(run)
    return run


def state(run) -> str:
    "What verify says of the data stage of a run, opened anew."
    return verify_run(existing_run(run.folder))["data"]


def paint(file):
    "Another picture in the place of one."
    Image.new("RGB", (32, 32), "red").save(file)


@pytest.mark.parametrize("inside", ["", "some", ".hidden", ".hidden/deep", "data2/.old"])
@pytest.mark.parametrize("where", [".", "runs/one", ".runs", "../elsewhere"])
def test_a_changed_picture_is_noticed(tmp_path, inside, where):
    folder = tmp_path / "mine"
    pictures(folder, inside)
    run = made(folder, folder / where)
    assert state(run) == "ok" and len(load_data(run)) == 24
    name = f"{inside}/7.png".strip("/")
    before = (folder / name).read_bytes()
    paint(folder / name)
    assert state(run) == "stale"
    (folder / name).write_bytes(before)
    assert state(run) == "ok"
    (folder / name).unlink()
    assert state(run) == "stale"
    (folder / name).write_bytes(before)
    with open(folder / "metadata.jsonl", "a", encoding="utf-8") as f:
        f.write(json.dumps({"file_name": name, "text": "again"}) + "\n")
    assert state(run) == "stale"


@pytest.mark.parametrize("inside", ["samples", "data/.old", "examples/deep"])
def test_a_run_does_not_write_over_pictures(tmp_path, inside):
    "The stages replace their folders; pictures of the user's that lie there would be gone."
    folder = tmp_path / "mine"
    pictures(folder, inside)
    with pytest.raises(InputError, match="choose another folder with --run-dir"):
        made(folder, folder)
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(InputError, match="choose another folder with --run-dir"):
        made(folder, tmp_path / "link")
    assert len(list((folder / inside).glob("*.png"))) == 24
    assert len(load_data(made(folder, folder / "runs"))) == 24


def test_classes_are_not_written_over_either(tmp_path):
    folder = tmp_path / "mine"
    for name in ("cats", "samples"):
        pictures(folder / name, "")
    with pytest.raises(InputError, match="choose another folder with --run-dir"):
        made(folder, folder)
    assert len(load_data(made(folder, tmp_path / "run"))) == 48


def test_what_a_run_makes_is_not_its_data(tmp_path):
    "Folders of classes, in which a run is made: its samples have a metadata.jsonl, too."
    folder = tmp_path / "mine"
    for name in ("cats", "dogs"):
        pictures(folder / name, "")
    run = made(folder, folder)
    assert state(run) == "ok" and len(load_data(run)) == 48
    before = metadata_files(folder)
    for name in ("samples", "examples"):
        pictures(folder / name, "")
    assert metadata_files(folder) == before and state(run) == "ok"
    paint(folder / "dogs" / "3.png")
    assert state(run) == "stale"
    elsewhere = made(folder, tmp_path / "run")
    assert len(load_data(elsewhere)) == 48


def test_changed_outputs_are_noticed(tmp_path, t2igen):
    folder = tmp_path / "mine"
    pictures(folder, "some")
    run = made(folder, tmp_path / "run")
    whole = tmp_path / "whole"
    shutil.copytree(run.folder, whole)

    def removed():
        shutil.rmtree(run / "data")

    def removed_and_forgotten():
        removed()
        entry = run.manifest["stages"]["data"]
        run.record("data", None, **{**entry, "outputs": {}})

    def forgotten():
        run.record("data", None, **{**run.manifest["stages"]["data"], "outputs": {}})

    def moved_bytes():
        first = run / "data" / "images.npy"
        second = run / "data" / "records.jsonl"
        data = first.read_bytes()
        first.write_bytes(data[:-5])
        second.write_bytes(data[-5:] + second.read_bytes())

    def added():
        (run / "data" / "model.checkpoint.pt").write_bytes(b"checkpoint")

    def added_hidden():
        (run / "data" / ".old").mkdir()
        (run / "data" / ".old" / "records.jsonl").write_text("{}")

    expected = {removed: "missing", removed_and_forgotten: "missing", forgotten: "changed",
                moved_bytes: "changed", added: "changed", added_hidden: "changed"}
    for spoil, word in expected.items():
        spoil()
        code, out, err = t2igen("verify", run.folder)
        assert code == 1 and f"data     {word}: data" in out and not err, spoil.__name__
        assert not existing_run(run.folder).is_whole("data")
        shutil.rmtree(run.folder)
        shutil.copytree(whole, run.folder)
        code, out, _ = t2igen("verify", run.folder)
        assert code == 0 and "data     ok" in out and out.count("not done") == len(STAGES) - 1


def test_an_entry_whose_outputs_are_none_is_told(tmp_path, t2igen):
    folder = tmp_path / "mine"
    pictures(folder, "some")
    run = made(folder, tmp_path / "run")
    manifest = run.manifest
    for wrong in ([], None, "data"):
        manifest["stages"]["data"]["outputs"] = wrong
        (run / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        code, _, err = t2igen("verify", run.folder)
        assert code == 2 and "the entry of stage 'data' is damaged" in err
