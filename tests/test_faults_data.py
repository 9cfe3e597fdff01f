"What is wrong with other people's folders is told at once; what is right comes out right."
import json
import os
import struct
import subprocess
import sys
import threading
import unicodedata
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from t2igen.core.config import InputError
from t2igen.core.files import read_lines, write_json, write_lines
from t2igen.core.run import Run
from t2igen.data import addresses
from t2igen.data.addresses import FetchError
from t2igen.data.download import url_key
from t2igen.data.fetch import fetch
from t2igen.data.folder import folder_records, user_files
from t2igen.data.musti import make_musti
from t2igen.data.pictures import open_picture
from t2igen.data.settings import DataConfig
from t2igen.data.stage import load_data, make_data
from t2igen.settings import load_config


def paint(path, i: int = 0, **options):
    "Write a picture of one color, another for each number."
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (48, 40), (20 + i*9 % 200, 90, i)).save(path, **options)


def pictures(folder, n: int = 12) -> list[str]:
    "The names of `n` pictures in `folder`."
    names = [f"{i:03d}.png" for i in range(n)]
    for i, name in enumerate(names):
        paint(folder / name, i)
    return names


def rows_of(folder, n: int = 12) -> list[dict]:
    "`n` pictures in `folder` and their metadata.jsonl."
    names = pictures(folder, n)
    rows = [dict(file_name=name, text=f"a box, number {i}") for i, name in enumerate(names)]
    write_lines(folder / "metadata.jsonl", rows)
    return rows


def config(folder, **more) -> DataConfig:
    return DataConfig(dataset="folder", path=str(folder), image_size=32, **more)


def read(folder, **more):
    "The records of a folder."
    return folder_records(config(folder, **more))[0]


def refused(folder, **more) -> str:
    "What is said of a folder that is refused; the question for its files never is."
    user_files(config(folder))
    with pytest.raises(InputError) as e:
        folder_records(config(folder, **more))
    return str(e.value)


def as_csv(folder, lines: list[str], encoding: str = "utf-8"):
    (folder / "metadata.csv").write_bytes("".join(f"{s}\n" for s in lines).encode(encoding))

# --- CSV


def test_commas_without_quotation_marks_cut_no_caption(tmp_path):
    names = pictures(tmp_path)
    lines = ["file_name,text", *(f'{name},"a box, red"' for name in names)]
    as_csv(tmp_path, lines)
    assert {r.text for r in read(tmp_path)} == {"a box, red"}
    lines[5] = f"{names[4]},a box, red"
    lines[8] = names[7]
    as_csv(tmp_path, lines)
    told = refused(tmp_path)
    assert "metadata.csv, line 6: 3 cells for 2 columns; put a caption with commas" in told
    assert "metadata.csv, line 9: 1 cells for 2 columns" in told
    assert "2 things are wrong with 2 of 12 lines" in told and "skip_broken" in told


@pytest.mark.parametrize("marks, line", [((4, 9), 6), ((4,), 6)])
def test_an_open_quotation_mark_swallows_no_rows(tmp_path, marks, line):
    names = pictures(tmp_path)
    lines = ["file_name,text"]
    for i, name in enumerate(names):
        lines.append(f'{name},{chr(34) if i in marks else ""}a box')
    as_csv(tmp_path, lines)
    assert f"metadata.csv, line {line}: a quotation mark is open" in refused(tmp_path)
    lines[10] = lines[10].replace('"', "") + '"'             # and closed five rows further on
    as_csv(tmp_path, lines)
    assert f"line {line}: a quotation mark is open and swallows rows" in refused(tmp_path)


def test_a_cell_of_several_lines_is_one_and_the_next_has_the_line_of_an_editor(tmp_path):
    names = pictures(tmp_path)
    lines = ["file_name,text", f'{names[0]},"a box,\non a table"']
    as_csv(tmp_path, [*lines, *(f"{name},x" for name in names[1:]), "none.png,x"])
    assert "metadata.csv, line 15: There is no file none.png" in refused(tmp_path)
    as_csv(tmp_path, [*lines, *(f"{name},x" for name in names[1:])])
    assert "a box,\non a table" in {r.text for r in read(tmp_path)}


def test_a_cell_longer_than_the_limit_of_csv(tmp_path):
    names = pictures(tmp_path)
    as_csv(tmp_path, ["file_name,text", f"{names[0]},{'x'*140_000}"])
    assert "line 2: a cell has more than 131,072 characters" in refused(tmp_path)


def saved_otherwise(folder, header: str, mark: str, encoding: str):
    "A table whose cells are parted by `mark`, with an umlaut."
    names = pictures(folder)
    as_csv(folder, [header, *(f"{name}{mark}eine grüne Kiste" for name in names)], encoding)


@pytest.mark.parametrize("header, mark, encoding, words", [
    ("file_name;text", ";", "utf-8", "the separator is a semicolon: save it with commas"),
    ("file_name\ttext", "\t", "utf-8", "the separator is a tab: save it with commas"),
    ("file_name,text", ",", "cp1252", "line 2, it is not UTF-8 text (perhaps cp1252 or latin-1); "
                                      "save it as 'CSV UTF-8'"),
    ("file_name,text", ",", "utf-16", "not UTF-8 text but UTF-16; save it as 'CSV UTF-8'"),
    ("IMAGE_FILE\tDESCRIPTION", "\t", "latin-1", "parted by a tab; save it as 'CSV UTF-8' with"),
    ("bild,wort", ",", "utf-8", "no column is called file_name (there are 'bild', 'wort')"),
])
def test_tables_saved_otherwise_are_refused_with_what_to_do(
        tmp_path, header, mark, encoding, words):
    saved_otherwise(tmp_path, header, mark, encoding)
    assert words in refused(tmp_path)


def test_blanks_after_commas_and_rows_without_anything_are_no_fault(tmp_path):
    names = pictures(tmp_path)
    lines = ["file_name, text", *(f'{name}, "a box, red" ' for name in names)]
    as_csv(tmp_path, [line.rstrip() for line in lines] + [",,", ""], "utf-8-sig")
    assert {r.text for r in read(tmp_path)} == {"a box, red"}


@pytest.mark.parametrize("name", ["semart_train.csv", "metadata.tsv", "captions.json"])
def test_a_table_by_another_name_is_named(tmp_path, name):
    pictures(tmp_path)
    (tmp_path / name).write_text("IMAGE_FILE\tDESCRIPTION\n")
    assert f"if it is {name}, save that as metadata.csv" in refused(tmp_path)

# --- other names, and what is said


def test_other_columns_are_taken_and_said(tmp_path, capsys):
    names = pictures(tmp_path)
    for file_key, text_key in [("image", "caption"), ("image_path", "text"), ("file_name", "TEXT")]:
        write_lines(tmp_path / "metadata.jsonl", [{file_key: n, text_key: "a box"} for n in names])
        assert {r.text for r in read(tmp_path)} == {"a box"}
        assert len(user_files(config(tmp_path))) == 13
        said = capsys.readouterr().out
        assert (f"{file_key!r} is read as 'file_name'" in said) == (file_key != "file_name")
        assert (f"{text_key!r} is read as 'text'" in said) == (text_key != "text")


def test_pictures_that_no_line_names_are_counted(tmp_path, capsys, t2igen):
    rows = rows_of(tmp_path / "in", 15)
    write_lines(tmp_path / "in" / "metadata.jsonl", rows[:12])
    paint(tmp_path / "in" / "run" / "samples" / "0.png")     # a run's are not meant
    (tmp_path / "in" / "run" / "params.yaml").write_text("")
    assert len(read(tmp_path / "in")) == 12
    assert "no line names 3 of the pictures, as 012.png" in capsys.readouterr().out
    code, out, error = t2igen("data", "folder", tmp_path / "in", "--out", tmp_path / "out")
    assert code == 0 and "no line names 3 of the pictures" in out, error
    as_csv(tmp_path / "in", ["file_name,text", *(f"{r['file_name']},x" for r in rows[:11])])
    (tmp_path / "in" / "metadata.jsonl").unlink()
    read(tmp_path / "in")
    assert "no line names 4 of the pictures, as 011.png" in capsys.readouterr().out
    write_lines(tmp_path / "in" / "metadata.jsonl", rows)
    read(tmp_path / "in")
    assert "no line names" not in capsys.readouterr().out

# --- splits by folders


@pytest.mark.parametrize("test", ["test", "validation", "val", "dev", "valid", "Test"])
def test_folders_say_the_splits(tmp_path, capsys, test):
    rows = []
    for i in range(12):
        name = f"{test if i > 7 else 'train'}/{i}.png"
        paint(tmp_path / name, i)
        rows.append(dict(file_name=name, text=f"a box, number {i}"))
    write_lines(tmp_path / "metadata.jsonl", rows)
    splits = {r.text: r.split for r in read(tmp_path)}
    assert Counter(splits.values()) == dict(train=8, test_seen=4)
    assert splits["a box, number 8"] == "test_seen"
    said = capsys.readouterr().out
    assert f"the splits are those of the folders' names: train 8, {test.lower()} 4" in said
    wins = [{**r, "split": "test" if i < 3 else "train"} for i, r in enumerate(rows)]
    write_lines(tmp_path / "metadata.jsonl", wins)           # the metadata's word goes before
    assert Counter(r.split for r in read(tmp_path)) == dict(train=9, test_seen=3)
    assert "folders' names" not in capsys.readouterr().out


@pytest.mark.parametrize("train, test", [
    ("train-0", "my test"), ("train2017", "val2017"), ("images/Train", "images/Test"),
    ("", "test")])
def test_folders_say_the_splits_as_hugging_face_reads_them(tmp_path, capsys, train, test):
    names = [f"{train if i < 8 else test}/{i}.png".strip("/") for i in range(12)]
    names[0] = "train/0.png"
    for i, name in enumerate(names):
        paint(tmp_path / name, i)
    rows = [dict(file_name=name, text="a box") for name in names]
    write_lines(tmp_path / "metadata.jsonl", rows)
    assert Counter(r.split for r in read(tmp_path)) == dict(train=8, test_seen=4)
    said = capsys.readouterr().out
    assert "the splits are those of the folders' names" in said
    outside = "7 lines name no folder of a split, as 1.png: they are trained on"
    assert (outside in said) == (not train) and said.count("no folder of a split") == (not train)


@pytest.mark.parametrize("names, splits, said", [
    (["train_{}.png", "test_{}.png"], dict(train=8, test_seen=4),
     "the splits are those of the files' names: train 8, test 4"),
    (["{}-train.png", "my.Val {}.png"], dict(train=8, test_seen=4),
     "the splits are those of the files' names: train 8, val 4"),
    (["photos/train_{}.png", "dev-{}.png"], dict(train=8, test_seen=4),
     "the splits are those of the files' names: train 8, dev 4"),
    (["train_{}.png", "train at {}.png"], dict(train=10, test_seen=2), ""),
    (["contest{}.png", "test{}.png"], dict(train=10, test_seen=2), ""),
])
def test_file_names_say_the_splits(tmp_path, capsys, names, splits, said):
    rows = []
    for i in range(12):
        name = names[i > 7].format(i)
        paint(tmp_path / name, i)
        rows.append(dict(file_name=name, text=f"number {i}"))
    write_lines(tmp_path / "metadata.jsonl", rows)
    found = {r.text: r.split for r in read(tmp_path)}
    assert Counter(found.values()) == splits
    told = capsys.readouterr().out
    assert said in told and ("' names" in told) == bool(said)
    if said:
        assert all(found[f"number {i}"] == "test_seen" for i in range(8, 12))


def test_file_names_of_which_some_say_no_split(tmp_path, capsys):
    names = [f"train_{i}.png" for i in range(8)]
    names += ["test pilot.png", "test_1.png", "a.png", "b.png"]
    for i, name in enumerate(names):
        paint(tmp_path / name, i)
    write_lines(tmp_path / "metadata.jsonl", [dict(file_name=name, text="x") for name in names])
    assert Counter(r.split for r in read(tmp_path)) == dict(train=10, test_seen=2)
    told = capsys.readouterr().out
    assert told.count("10 file names say a split, but 2, as a.png, say none: no name counts") == 1


@pytest.mark.parametrize("folders, splits", [
    (("Train", "Test"), dict(train=8, test_seen=4)),
    (("train-1", "val_1"), dict(train=8, test_seen=4)),
    (("train", "bus"), dict(train=10, test_seen=2)),           # a class; as many as are drawn
    (("train",), dict(train=6, test_seen=2)),
])
def test_metadata_in_folders_of_splits(tmp_path, folders, splits):
    for k, name in enumerate(folders):
        for i in range(8 - 4*k):
            paint(tmp_path / name / f"{i}.png", 8*k + i)
        lines = [dict(file_name=f"{i}.png", text=name) for i in range(8 - 4*k)]
        write_lines(tmp_path / name / "metadata.jsonl", lines)
    assert len(user_files(config(tmp_path))) == sum(splits.values()) + len(folders)
    assert Counter(r.split for r in read(tmp_path)) == splits


def test_a_key_twice_and_a_second_table_are_said(tmp_path, capsys):
    rows = rows_of(tmp_path)
    as_csv(tmp_path, ["file_name,text", f"{rows[0]['file_name']},a box"])
    assert len(read(tmp_path)) == 12
    assert "metadata.jsonl is read, and metadata.csv beside it is not" in capsys.readouterr().out
    with open(tmp_path / "metadata.jsonl", "a") as f:
        f.write('{"file_name": "000.png", "text": "a", "text": "b"}\n')
    assert "line 13: the key 'text' occurs twice; keep one of them." in refused(tmp_path)


def test_metadata_in_every_class_folder_are_read(tmp_path):
    for k, name in enumerate(["cats", "dogs", "emus"]):
        for i in range(4):
            paint(tmp_path / name / f"{i}.png", 4*k + i)
        lines = [dict(file_name=f"{i}.png", text=name) for i in range(4)]
        write_lines(tmp_path / name / "metadata.jsonl", lines)
    assert Counter(r.text for r in read(tmp_path)) == dict(cats=4, dogs=4, emus=4)
    assert len(user_files(config(tmp_path))) == 15

# --- colors

ADOBE = dict(r=(0.60974, 0.31111, 0.01947), g=(0.20528, 0.62567, 0.06087),
             b=(0.14919, 0.06322, 0.74457))


def xyz(*point: float) -> bytes:
    "A point as a tag of an ICC profile."
    return b"XYZ " + bytes(4) + b"".join(struct.pack(">i", round(65536*v)) for v in point)


def profile(space: bytes = b"RGB ", **points) -> bytes:
    "An ICC profile with a gamma of 2.2, of primaries (D50, XYZ) or of gray."
    curve = b"curv" + bytes(4) + struct.pack(">IHH", 1, 563, 0)
    tags = {b"wtpt": xyz(0.9642, 1, 0.8249), b"cprt": b"text" + bytes(4) + b"none\0\0\0\0"}
    for name, point in points.items():
        tags[f"{name}XYZ".encode()] = xyz(*point)
        tags[f"{name}TRC".encode()] = curve
    if not points:
        tags[b"kTRC"] = curve
    tags[b"desc"] = b"desc" + bytes(4) + struct.pack(">I", 5) + b"mine\0" + bytes(79)
    start = 132 + 12*len(tags)
    table = struct.pack(">I", len(tags))
    body = b""
    for name, tag in tags.items():
        table += name + struct.pack(">II", start + len(body), len(tag))
        body += tag + bytes(-len(tag) % 4)
    head = bytes(4) + struct.pack(">I", 0x02100000) + b"mntr" + space + b"XYZ " + bytes(12)
    head += b"acsp" + bytes(28) + xyz(0.9642, 1, 0.8249)[8:] + bytes(48)
    return struct.pack(">I", start + len(body)) + head + table + body


def opened(image: Image.Image, kind: str, **options) -> np.ndarray:
    "The middle pixel of a picture saved and opened."
    file = BytesIO()
    image.save(file, kind, **options)
    return np.array(open_picture(file.getvalue()).getpixel((20, 20)))


@pytest.mark.parametrize("kind, mode", [
    ("PNG", "RGB"), ("JPEG", "RGB"), ("TIFF", "RGB"), ("WEBP", "RGB"), ("PNG", "RGBA"),
    ("PNG", "P"), ("WEBP", "RGBA"),
])
def test_colors_are_those_of_the_profile(kind, mode):
    red = Image.new("RGB", (40, 40), (190, 60, 50))
    image = red.convert(mode, **({"palette": 1} if mode == "P" else {}))
    options = dict(quality=100) if kind in ("JPEG", "WEBP") else {}
    if kind == "WEBP":
        options["lossless"] = True
    found = opened(image, kind, icc_profile=profile(**ADOBE), **options)
    assert np.abs(found - (220, 57, 46)).max() <= 3, found
    for broken in (b"nonsense", profile(**ADOBE)[:150], profile(b"GRAY")):
        plain = opened(image, kind, icc_profile=broken, **options)
        assert np.abs(plain - (190, 60, 50)).max() <= 2, plain


def test_gray_profiles_and_transparent_parts():
    dark = Image.new("L", (40, 40), 40)
    gamma = opened(dark, "PNG", icc_profile=profile(b"GRAY"))
    assert len(set(gamma)) == 1 and 1 <= abs(int(gamma[0]) - 40) <= 8
    nothing = Image.new("RGBA", (40, 40), (190, 60, 50, 0))
    assert tuple(opened(nothing, "PNG", icc_profile=profile(**ADOBE))) == (255, 255, 255)

# --- letters


def test_lines_end_at_a_line_feed_only(tmp_path):
    rows = rows_of(tmp_path)
    rows[7]["text"] = "a box\u2028on\u2029a\x85table"
    write_lines(tmp_path / "metadata.jsonl", rows)
    assert "a box\u2028on\u2029a\x85table" in {r.text for r in read(tmp_path)}
    as_csv(tmp_path, ["file_name,text", *(f'{r["file_name"]},"{r["text"]}"' for r in rows)])
    (tmp_path / "metadata.jsonl").unlink()
    assert "a box\u2028on\u2029a\x85table" in {r.text for r in read(tmp_path)}
    run = Run(tmp_path / "run", load_config("tiny", {
        "data.dataset": "folder", "data.path": str(tmp_path), "data.n_train": 100}))
    make_data(run)
    assert "a box\u2028on\u2029a\x85table" in {r.text for r in load_data(run).records}


@pytest.mark.parametrize("key", ["text", "title", "file_name", "id", "odd"])
def test_half_a_character_is_named_by_its_line(tmp_path, key):
    rows = rows_of(tmp_path)
    rows[3] = {**rows[3], key: "a \ud83d box"}
    lines = [json.dumps(r) for r in rows]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    told = refused(tmp_path)
    assert "metadata.jsonl, line 4: it holds half a character" in told
    told.encode()
    records, _, left = folder_records(config(tmp_path, skip_broken=True))
    assert len(records) == 11
    write_lines(tmp_path / "failures.jsonl", left)


@pytest.mark.parametrize("line, words", [
    ('{"file_name": "000.png", "text": ' + "["*100_000 + "]"*100_000 + "}", "nested too deeply"),
    ('{"file_name": "000.png", "text": "x", "id": ' + "9"*5000 + "}", "thousands of digits"),
    ('{"file_name": "000.png", "text": ' + "9"*4000 + "}", "text must be text"),
    ('{"file_name": "000.png", "text": "x", "id": true}', "id must be text"),
    ('{"file_name": "a\\u0000.png", "text": "x"}', "is no file's name"),
    ('{"file_name": "' + "x"*5000 + '.png", "text": "x"}', "longer than files have"),
    ('{"file_name": ".", "text": "x"}', "is a folder"),
    ('{"file_name": "loop.png", "text": "x"}', "leads to itself"),
    ('{"file_name": "lost.png", "text": "x"}', "git annex get"),
], ids=range(9))
def test_strange_values_are_one_short_sentence(tmp_path, line, words):
    rows_of(tmp_path)
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "lost.png").symlink_to(".git/annex/objects/1")
    with open(tmp_path / "metadata.jsonl", "a") as f:
        f.write(line + "\n")
    told = refused(tmp_path)
    assert "line 13" in told and words in told and len(told) < 700, told

# --- files and links


def store(folder, kind: str):
    "Pictures as the hub's cache, DVC or git-annex keep them: links into a store elsewhere."
    names = pictures(folder / "store")
    seen = folder / "snapshots" / "0a1b2c"
    seen.mkdir(parents=True)
    for name in names:
        target = f"../../store/{name}" if kind == "relative" else folder / "store" / name
        (seen / name).symlink_to(target)
    rows = [dict(file_name=name, text=f"a box, {i}") for i, name in enumerate(names)]
    write_lines(folder / "store" / "list", rows)
    (seen / "metadata.jsonl").symlink_to("../../store/list")
    return seen


@pytest.mark.parametrize("kind", ["relative", "absolute"])
def test_links_of_the_owner_may_lead_anywhere(tmp_path, kind):
    seen = store(tmp_path, kind)
    assert len(read(seen)) == 12 and len(user_files(config(seen))) == 13
    write_lines(seen / "m", [])
    (seen / "metadata.jsonl").unlink()
    (seen / "m").rename(seen / "metadata.jsonl")
    write_lines(seen / "metadata.jsonl", [dict(file_name="../../store/000.png", text="x")])
    assert "leaves the folder" in refused(seen)


@pytest.mark.timeout(60)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="makes a pipe")
def test_a_pipe_is_no_picture_and_no_list(tmp_path):
    rows = rows_of(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    os.symlink("/dev/zero", tmp_path / "zero.png")
    more = [dict(file_name=name, text="x") for name in ("pipe.png", "zero.png")]
    write_lines(tmp_path / "metadata.jsonl", rows + more)
    told = refused(tmp_path)
    assert "line 13: pipe.png is a pipe" in told and "line 14: zero.png is a pipe" in told
    assert len(user_files(config(tmp_path))) == 13
    (tmp_path / "metadata.jsonl").unlink()
    os.mkfifo(tmp_path / "metadata.jsonl")
    assert "has no metadata.jsonl" in refused(tmp_path)
    with pytest.raises(InputError, match="is a pipe"):
        make_musti(tmp_path / "out", tmp_path / "pipe.png", tmp_path / "pipe.png")
    with pytest.raises(InputError, match="is a pipe"):
        open_picture(tmp_path / "pipe.png")


def test_names_as_a_mac_or_windows_writes_them(tmp_path):
    for form, other in [("NFD", "NFC"), ("NFC", "NFD")]:
        folder = tmp_path / form
        rows = []
        for i in range(12):
            name = f"Bücher/Köln_{i}.png"
            paint(folder / unicodedata.normalize(form, name), i)
            rows.append(dict(file_name=unicodedata.normalize(other, name), text="a box"))
        rows[3]["file_name"] = rows[3]["file_name"].replace("/", "\\")
        write_lines(folder / "metadata.jsonl", rows)
        assert len(read(folder)) == 12 and len(user_files(config(folder))) == 13


def test_formats_that_are_not_read_are_not_called_broken(tmp_path):
    rows = rows_of(tmp_path)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (tmp_path / "b.svg").write_text('<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>')
    (tmp_path / "c.jpg").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    more = [dict(file_name=name, text="x") for name in ("a.heic", "b.svg", "c.jpg")]
    write_lines(tmp_path / "metadata.jsonl", rows + more)
    told = refused(tmp_path)
    assert "line 13: a.heic is HEIC, and the file is whole: convert it to PNG or JPEG" in told
    assert "line 14: b.svg is SVG, and the file is whole: convert it to PNG or JPEG" in told
    assert "line 15: c.jpg is not the picture but a note where it is: run `git lfs pull`" in told

# --- all at once


def broken_folder(folder, n: int = 3):
    "A folder with `n` broken pictures and one line that is none."
    rows = rows_of(folder, 24)
    for i in range(n):
        file = folder / rows[i]["file_name"]
        file.write_bytes(file.read_bytes()[:60])
    with open(folder / "metadata.jsonl", "a") as f:
        f.write("nonsense\n")


def test_all_faults_are_told_at_once(tmp_path, t2igen):
    broken_folder(tmp_path / "in")
    told = refused(tmp_path / "in")
    assert "4 things are wrong with 4 of 25 lines" in told
    for words in ("line 1: 000.png cannot", "line 3: 002.png cannot", "line 25: not valid JSON"):
        assert words in told
    code, _, error = t2igen("data", "folder", tmp_path / "in", "--out", tmp_path / "out")
    assert code == 2 and "--skip-broken" in error and "line 25" in error
    code, out, _ = t2igen(
        "data", "folder", tmp_path / "in", "--out", tmp_path / "out", "--skip-broken")
    assert code == 0 and "4 of 25 lines are left out" in out and "21 records" in out
    left = [row for _, row in read_lines(tmp_path / "out" / "failures.jsonl")]
    assert len(left) == 4 and all(row["reason"] for row in left)
    broken_folder(tmp_path / "many", 13)
    told = refused(tmp_path / "many")
    assert "14 things are wrong" in told and "... and 4 more" in told and "013.png" not in told


def test_a_run_goes_on_without_what_is_broken(tmp_path):
    broken_folder(tmp_path / "in")
    run = Run(tmp_path / "run", load_config("tiny", {
        "data.dataset": "folder", "data.path": str(tmp_path / "in"), "data.skip_broken": "true"}))
    make_data(run)
    assert len(read_lines(run / "data" / "failures.jsonl")) == 4
    assert run.is_current("data")


FEW_FILES = """
import os
import resource
import sys

os.cpu_count = lambda: 128
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

from t2igen.data.folder import folder_records
from t2igen.data.settings import DataConfig

print(len(folder_records(DataConfig(dataset="folder", path=sys.argv[1]))[0]))
"""


def test_few_files_are_open_at_once(tmp_path):
    rows_of(tmp_path, 150)
    pytest.importorskip("resource")
    done = subprocess.run([sys.executable, "-c", FEW_FILES, str(tmp_path)], capture_output=True,
                          text=True)
    assert done.stdout.strip().endswith("150"), done.stderr[-500:]

# --- Parquet and several captions


def test_parquet_with_lists_of_captions(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq
    names = pictures(tmp_path)
    captions = [[f"a box, number {i}", "a box"] for i in range(12)]
    pq.write_table(pa.table({"image": names, "caption": captions}), tmp_path / "metadata.parquet")
    records = read(tmp_path)
    assert len(records) == 24 and len(user_files(config(tmp_path))) == 13
    splits = {}
    for r in records:
        splits.setdefault(r.image, set()).add(r.split)
    assert len(splits) == 12 and all(len(found) == 1 for found in splits.values())
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1 not")
    assert "metadata.parquet" in refused(tmp_path)
    assert len({r.id for r in records}) == 24


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    pictures(tmp_path)
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert "pip install pyarrow" in refused(tmp_path)

# --- MUSTI and addresses


def test_a_record_names_none_of_our_files(tmp_path):
    url = "http://127.0.0.1:9/0.png"
    file = tmp_path / "out" / "images" / f"{url_key(url)}.png"
    paint(file)
    row = dict(id="1", image=url, language="en", text="a rose", title="Rose",
               file_name="../../secret.png", split="test", image_path="/etc/passwd")
    write_json(tmp_path / "train.json", [row])
    bad = [{**row, "id": "2", "title": "a \ud83d box"}, {**row, "id": "\ud83d"}]
    (tmp_path / "test.json").write_text(json.dumps(bad))
    done = make_musti(tmp_path / "out", tmp_path / "train.json", tmp_path / "test.json",
                      min_share=0.3)
    assert done == dict(records=1, pictures=1, failures=2)
    _, kept = read_lines(tmp_path / "out" / "metadata.jsonl")[0]
    assert kept == {**row, "file_name": f"images/{file.name}", "split": "train"}
    reasons = [row["reason"] for _, row in read_lines(tmp_path / "out" / "failures.jsonl")]
    assert reasons == ["'title' holds half a character (as \\ud83d alone)",
                       "'id' holds half a character (as \\ud83d alone)"]


PRIVATE = ["10.0.0.1", "[::1]", "[::ffff:10.0.0.1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]",
           "[2002:7f00:1::]", "[fec0::1]", "[::ffff:0:127.0.0.1]", "[2001:0:7f00:1::1]",
           "[2606:4700::5efe:127.0.0.1]", "[5f00::1]", "127.1", "2130706433", "169.254.169.254"]


@pytest.mark.parametrize("host", PRIVATE)
def test_private_addresses_in_disguise(host):
    with pytest.raises(FetchError, match="private address"):
        fetch(f"http://{host}:9/0.png", seconds=5)


class Proxy(BaseHTTPRequestHandler):
    "Answers every request that comes through it with the same bytes."

    def do_GET(self):
        self.server.asked.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"yes")

    def log_message(self, *_):
        pass


@pytest.fixture
def proxy(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()


def test_behind_a_proxy_names_are_looked_up_before(proxy, monkeypatch):
    real = addresses.socket.getaddrinfo
    found = {"museum.example": "93.184.216.34", "inside.example": "192.168.0.1"}

    def look_up(host, port, *args, **kwargs):
        return real(found.get(host, host), port, *args, **kwargs)

    monkeypatch.setattr(addresses.socket, "getaddrinfo", look_up)
    for host in [*PRIVATE, "inside.example"]:
        with pytest.raises(FetchError, match="private address"):
            fetch(f"http://{host}/0.png", seconds=5)
    with pytest.raises(FetchError, match="not a valid URL"):
        fetch("http://museum.example\\@127.0.0.1/0.png", seconds=5)
    assert not proxy.asked
    assert fetch("http://museum.example/0.png", seconds=5) == b"yes"
    assert proxy.asked == ["http://museum.example/0.png"]
