"Data sets of other people: folders, MUSTI's JSON, and downloads from servers that misbehave."
import io
import json
import multiprocessing
import os
import shutil
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from email.utils import formatdate
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import psutil
import pytest
from PIL import Image

from t2igen.core.config import InputError
from t2igen.core.files import read_json, read_lines, write_lines
from t2igen.core.run import Run
from t2igen.data import addresses
from t2igen.data import download as download_room
from t2igen.data import fetch as fetch_room
from t2igen.data.addresses import FetchError
from t2igen.data.download import download, url_key
from t2igen.data.fetch import fetch
from t2igen.data.folder import folder_records, user_files
from t2igen.data.musti import make_musti
from t2igen.data.pictures import open_picture
from t2igen.data.records import SPLITS
from t2igen.data.settings import DataConfig
from t2igen.data.stage import data_records, load_data, make_data
from t2igen.settings import load_config


def picture(shade: int = 0, size=(48, 40), kind: str = "JPEG", **options) -> bytes:
    "A picture of one color as a file's bytes."
    file = io.BytesIO()
    Image.new("RGB", size, (shade % 256, 90, 200)).save(file, kind, **options)
    return file.getvalue()


@lru_cache
def bomb() -> bytes:
    return picture(size=(9000, 9000), kind="PNG")


def json_lines(path) -> list[dict]:
    return [value for _, value in read_lines(path)]


class Server(ThreadingHTTPServer):
    "A server on this machine that counts what it is asked for."
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = Counter()
        self.times = {}
        self.bomb = bomb()
        self.secure_port = 0

    def handle_error(self, *_):
        pass

    def url(self, path):
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(BaseHTTPRequestHandler):
    "Answers by the path that it is asked for."

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        every = {"Content-Type": "image/jpeg", "Content-Length": len(body), **given}
        for name, value in every.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def number(self) -> int:
        "The number in `/good12.jpg`, 0 if there is none."
        return int(self.path[5:].split(".")[0] or 0)

    def do_GET(self):
        path = self.path
        server = self.server
        server.asked[path] += 1
        server.times.setdefault(path, []).append(time.monotonic())
        if path.startswith("/good"):
            self.answer(200, picture(self.number()*7))
        elif path.startswith("/slow"):
            time.sleep(0.3)
            self.answer(200, picture(self.number()*7))
        elif path in self.AT_FIRST and server.asked[path] == 1:
            self.AT_FIRST[path](self)
        elif path in self.AT_FIRST:
            self.answer(200, picture(101 + list(self.AT_FIRST).index(path)))
        elif path in self.ALWAYS:
            self.ALWAYS[path](self)
        else:
            self.answer(404)

    def date(self):
        self.answer(429, Retry_After=formatdate(time.time() + 2, usegmt=True))

    def broken(self):
        self.send_response(200)
        self.send_header("Content-Length", "5000")
        self.end_headers()
        self.wfile.write(picture(5))

    def secure(self):
        location = f"https://127.0.0.1:{self.server.secure_port}/good31.jpg"
        self.answer(302, Location=location)

    def endless(self):
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(bytes(1 << 20))

    def drip(self):
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(b"x")
            self.wfile.flush()
            time.sleep(0.2)

    AT_FIRST = {
        "/flaky.jpg": lambda self: self.answer(500),
        "/busy.jpg": lambda self: self.answer(429, Retry_After=1),
        "/date.jpg": date,
    }
    ALWAYS = {
        "/hour.jpg": lambda self: self.answer(503, Retry_After=3600),
        "/truncated.jpg": lambda self: self.answer(200, picture(5, (300, 300), quality=95)[:900]),
        "/broken.jpg": broken,
        "/page.jpg": lambda self: self.answer(200, b"<html>Not here</html>"),
        "/file.jpg": lambda self: self.answer(302, Location="file:///etc/passwd"),
        "/moved.jpg": lambda self: self.answer(301, Location="/good30.jpg"),
        "/secure.jpg": secure,
        "/loop.jpg": lambda self: self.answer(302, Location="/loop.jpg"),
        "/huge.jpg": lambda self: self.answer(200, b"", Content_Length=1 << 40),
        "/bomb.png": lambda self: self.answer(200, self.server.bomb),
        "/endless.jpg": endless,
        "/drip.jpg": drip,
        "/stall.jpg": lambda self: time.sleep(30),
    }


def no_proxy(monkeypatch):
    "Ask every server directly."
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server(monkeypatch):
    no_proxy(monkeypatch)
    s = Server()
    threading.Thread(target=s.serve_forever, daemon=True).start()
    yield s
    s.shutdown()
    s.server_close()


def record(id, url, **more):
    row = dict(id=id, image=url, language="en", subtask1_label="YES",
               subtask2_labels=["rose", "smoke"], text=f"The text of {id}.", title=f"Title {id}")
    return row | more


BAD = {
    "/gone.jpg": "404",
    "/truncated.jpg": "decoded",
    "/broken.jpg": "connection",
    "/page.jpg": "decoded",
    "/file.jpg": "only http",
    "/loop.jpg": "redirects",
    "/endless.jpg": "larger than 25 MiB",
    "/huge.jpg": "larger than 25 MiB",
    "/bomb.png": "50 million",
    "/stall.jpg": "took longer",
    "/drip.jpg": "took longer",
    "/hour.jpg": "asked to wait 3600",
}


def test_downloads_end_as_they_should(server, tmp_path):
    good = ["/good1.jpg", "/good2.jpg", "/flaky.jpg", "/busy.jpg", "/date.jpg", "/moved.jpg"]
    options = dict(allow_private=True, seconds=3, pause=0.05, tries=3)
    urls = [server.url(p) for p in [*good, *BAD]]
    files, failed = download(urls, tmp_path / "images", per_host=20, **options)
    assert set(files) == {server.url(p) for p in good}
    for path, words in BAD.items():
        assert words in str(failed[server.url(path)]), (path, failed[server.url(path)])
    before, after = server.times["/busy.jpg"]
    assert after - before >= 0.95
    assert server.asked["/gone.jpg"] == 1 and server.asked["/flaky.jpg"] == 2
    assert len(list((tmp_path / "images").iterdir())) == len(good)       # nothing half written
    asked = server.asked.total()
    again, _ = download([server.url(p) for p in good], tmp_path / "images", **options)
    assert again == files and server.asked.total() == asked     # a second run downloads nothing


def test_a_musti_file_with_all_of_these(server, tmp_path):
    good = [record(f"g{i}", server.url(f"/good{i}.jpg")) for i in range(8)]
    good += [record(name, server.url(f"/{name}.jpg")) for name in ("flaky", "busy")]
    bad = [record(path, server.url(path)) for path in BAD]
    train = tmp_path / "train.json"
    test = tmp_path / "test.json"
    train.write_text(json.dumps(bad + good[:6]))
    test.write_text(json.dumps(good[6:]))
    options = dict(allow_private=True, seconds=2, pause=0.05, tries=2, per_host=20)
    done = make_musti(tmp_path / "out", train, test, min_share=0.4, **options)
    assert done == dict(records=len(good), pictures=len(good), failures=len(BAD))
    found = json_lines(tmp_path / "out" / "failures.jsonl")
    failures = {f["id"]: f["reason"] for f in found}
    assert set(failures) == set(BAD)
    assert all(words in failures[path] for path, words in BAD.items()), failures
    kept = json_lines(tmp_path / "out" / "metadata.jsonl")
    assert {r["id"] for r in kept} == {r["id"] for r in good}


def make_certificate(folder):
    "A certificate for 127.0.0.1 and its key, in `folder`."
    subprocess.run([
        "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
        "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
        "-keyout", folder / "key.pem", "-out", folder / "certificate.pem",
    ], check=True, capture_output=True)
    return folder / "certificate.pem", folder / "key.pem"


@pytest.mark.skipif(not shutil.which("openssl"), reason="makes its certificate with openssl")
def test_a_redirect_to_https_is_followed_if_the_certificate_is_valid(
        server, tmp_path, monkeypatch):
    certificate, key = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    secure = Server()
    secure.socket = context.wrap_socket(secure.socket, server_side=True)
    threading.Thread(target=secure.serve_forever, daemon=True).start()
    server.secure_port = secure.server_port
    url = server.url("/secure.jpg")
    try:
        monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
        monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
        with pytest.raises(FetchError, match="certificate is not valid"):
            fetch(url, allow_private=True, seconds=10)
        assert not secure.asked
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        assert fetch(url, allow_private=True, seconds=10) == picture(31*7)
    finally:
        secure.shutdown()
        secure.server_close()


def test_at_most_two_requests_a_host_at_once(server, tmp_path, monkeypatch):
    now = [0]
    most = [0]
    lock = threading.Lock()

    def counted(*args, **kwargs):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        try:
            time.sleep(0.02)
            return fetch(*args, **kwargs)
        finally:
            with lock:
                now[0] -= 1

    monkeypatch.setattr(download_room, "fetch", counted)
    urls = [server.url(f"/good{i}.jpg") for i in range(12)]
    files, _ = download(urls, tmp_path, allow_private=True)
    assert len(files) == 12 and most[0] == 2


def test_private_addresses_are_refused_at_every_hop(server, tmp_path, monkeypatch):
    with pytest.raises(FetchError, match="private address"):
        fetch(server.url("/good1.jpg"))
    found = [(2, 1, 6, "", (address, 80)) for address in ("93.184.216.34", "10.0.0.1")]
    monkeypatch.setattr(addresses.socket, "getaddrinfo", lambda host, *a, **k: found)
    with pytest.raises(FetchError, match="10.0.0.1 is a private"):       # one of several addresses
        fetch("http://museum.example/x.jpg")
    monkeypatch.undo()
    no_proxy(monkeypatch)
    # A name that is answered differently the second time:
    monkeypatch.setattr(fetch_room, "check_url", lambda *a: None)
    with pytest.raises(FetchError, match="private address"):
        fetch(server.url("/good1.jpg"))
    assert not server.asked


def musti_files(folder, **parts):
    "Write train.json and test.json; the arguments of `t2igen data musti` for them."
    for name, rows in parts.items():
        text = json.dumps(rows, ensure_ascii=False)
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    return ("data", "musti", "--train", folder / "train.json", "--test", folder / "test.json",
            "--out", folder / "out")


def strange_records(url) -> tuple[list[dict], list[dict]]:
    "A list for training and one for testing, with most of what may be wrong in such lists."
    train = [record(f"t{i}", url(f"/good{i}.jpg")) for i in range(20)]
    no_image = record("none", url("/good7.jpg"))
    del no_image["image"]
    train += [
        record("twin", url("/good3.jpg"), title="Ein Röschen — 薔薇"),
        record("long", url("/good4.jpg"), text="word " * 20_000),
        record("t0", url("/good5.jpg")),
        record("de", url("/good6.jpg"), language="de"),
        no_image,
        record("type", url("/good8.jpg"), text=7),
        record("gone", url("/gone.jpg")),
        record("page", url("/page.jpg")),
    ]
    test = [record(f"e{i}", url(f"/good{i}.jpg")) for i in range(25, 30)]
    return train, test + [record("leak", url("/good9.jpg"))]


def assert_a_run_reads(folder, run_folder):
    "A run makes its data of what was fetched, and no picture is in two splits."
    settings = {"data.path": str(folder), "data.caption": "title"}
    run = Run(run_folder, load_config("musti", settings))
    make_data(run)
    pictures = load_data(run)
    by_id = {r.id: (r, image) for r, image in zip(pictures.records, pictures.images)}
    twin = by_id["twin"][0]
    assert twin.text == "Ein Röschen — 薔薇" and twin.subtask2_labels == ["rose", "smoke"]
    assert by_id["leak"][0].split == "test_seen" and "t9" not in by_id
    assert "same picture" in (run / "data" / "failures.jsonl").read_text()
    seen = {split: set() for split in SPLITS}
    for r, image in by_id.values():
        seen[r.split].add(image.tobytes())
    assert not seen["train"] & seen["test_seen"]
    assert len(user_files(run.cfg.data)) == 1 + 25           # the pictures and what names them


def test_musti_from_the_command_line(server, tmp_path, t2igen):
    train, test = strange_records(server.url)
    args = musti_files(tmp_path, train=train, test=test)
    metadata = tmp_path / "out" / "metadata.jsonl"
    code, _, error = t2igen(*args)                           # private, and nothing was asked
    assert code == 2 and "could be had" in error and not metadata.exists()
    assert not server.asked
    code, _, error = t2igen(*args, "--allow-private", "--min-share", "0.95")
    assert code == 2 and "28 of 33 records (85%)" in error, error
    before = server.asked.total()
    code, out, error = t2igen(
        *args, "--allow-private", "--min-share", "0.8", "--caption", "both")
    assert code == 0, out + error
    assert "28 records on 25 pictures; 5 could not be had" in out and "data.caption=both" in out
    assert server.asked.total() == before                    # not even what failed for good
    failures = {f["id"]: f["reason"] for f in json_lines(tmp_path / "out" / "failures.jsonl")}
    assert failures == {
        "t0": "id 't0' occurs a second time",
        "none": "image is missing",
        "type": "text must be text, got 7",
        "gone": "the server answered 404",
        "page": "it cannot be decoded as a picture",
    }
    rows = {r["id"]: r for r in json_lines(metadata)}
    for r in [*train[:22], *test]:
        assert r.items() <= rows[r["id"]].items()            # every field as published
    assert rows["twin"]["file_name"] == rows["t3"]["file_name"]
    assert "薔薇" in metadata.read_text(encoding="utf-8")
    assert_a_run_reads(tmp_path / "out", tmp_path / "run")


def test_a_download_that_was_killed_goes_on(server, tmp_path, t2igen):
    paths = [f"/slow{i}.jpg" for i in range(12)]
    rows = [record(p, server.url(p)) for p in paths]
    args = (*musti_files(tmp_path, train=rows[:8], test=rows[8:]), "--allow-private")
    images = tmp_path / "out" / "images"
    metadata = tmp_path / "out" / "metadata.jsonl"
    process = subprocess.Popen([sys.executable, "-m", "t2igen.cli", *map(str, args)],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def arrived():
        return {file.stem for file in images.glob("[0-9a-f]*.jpg")} if images.exists() else set()

    while len(arrived()) < 4 and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    assert process.wait() != 0
    before = arrived()
    assert 4 <= len(before) < 12 and not metadata.exists()
    for file in images.glob("[0-9a-f]*.jpg"):
        open_picture(file)                                   # each is whole
    # What a kill in the middle of a write leaves:
    (images / f".{'0'*64}.1.tmp.jpg").write_bytes(b"half")
    server.asked.clear()
    assert t2igen(*args)[0] == 0
    missing = [p for p in paths if url_key(server.url(p)) not in before]
    assert server.asked == dict.fromkeys(missing, 1)         # only what was missing, once
    assert arrived() == {url_key(server.url(p)) for p in paths}
    assert len(list(images.iterdir())) == 12
    assert len(metadata.read_text().splitlines()) == 12

# --- folders


def folder_of(path, n=12, csv=False, **more):
    "A folder of `n` pictures with metadata, and its settings; `more` are fields by number."
    path.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(n):
        (path / f"{i}.jpg").write_bytes(picture(i*20))
        rows.append(dict(file_name=f"{i}.jpg", text=f"shade, number {i}"))
        rows[-1].update({key: value(i) for key, value in more.items()})
    if csv:
        lines = [f'{r["file_name"]},"{r["text"]}"\n' for r in rows]
        (path / "metadata.csv").write_text("file_name,text\n" + "".join(lines))
    else:
        write_lines(path / "metadata.jsonl", rows)
    return DataConfig(dataset="folder", path=str(path), image_size=32), rows


def run_of(folder, cfg, **more) -> Run:
    "A tiny run in `folder` on the pictures of `cfg`."
    settings = {"data.dataset": "folder", "data.path": cfg.path, **more}
    return Run(folder, load_config("tiny", settings))


def test_csv_and_jsonl_give_the_same(tmp_path):
    of_csv = folder_records(folder_of(tmp_path / "csv", csv=True)[0])
    of_jsonl = folder_records(folder_of(tmp_path / "jsonl")[0])
    assert of_csv[0] == of_jsonl[0]
    assert (of_csv[1] == of_jsonl[1]).all()


def test_splits_as_given_or_in_subfolders(tmp_path):
    cfg, _ = folder_of(tmp_path / "a", split=lambda i: "validation" if i > 8 else "train")
    assert Counter(r.split for r in folder_records(cfg)[0]) == dict(train=9, test_seen=3)
    folder_of(tmp_path / "b" / "train", 8)
    cfg, _ = folder_of(tmp_path / "b" / "test", 12)
    rows = [dict(file_name=f"{i}.jpg", text="x") for i in range(8, 12)]
    write_lines(tmp_path / "b" / "test" / "metadata.jsonl", rows)
    both = cfg.model_copy(update={"path": str(tmp_path / "b")})
    records, _, left = folder_records(both)
    assert Counter(r.split for r in records) == dict(train=8, test_seen=4) and not left


@pytest.mark.parametrize("line, words", [
    ('{"file_name": "../out.jpg", "text": "x"}', "leaves the folder"),
    ('{"file_name": "/etc/passwd", "text": "x"}', "leaves the folder"),
    ('{"file_name": "a/../../out.jpg", "text": "x"}', "leaves the folder"),
    ('{"file_name": "C:\\\\out.jpg", "text": "x"}', "leaves the folder"),
    ('{"file_name": "none.jpg", "text": "x"}', "There is no file"),
    ('{"file_name": "page.jpg", "text": "x"}', "page.jpg cannot be read as a picture"),
    ('{"file_name": "0.jpg"}', "there is no text"),
    ('{"text": "x"}', "file_name is missing"),
    ('{"file_name": "0.jpg", "text": 3}', "text must be text"),
    ("nonsense", "line 13: not valid JSON"),
    ("[]", "must be an object"),
    ('{"file_name": "0.jpg", "text": "x", "split": "tset"}', "did you mean 'test'"),
    ('{"file_name": "0.jpg", "text": "x", "split": "test"}', "no split"),
])
def test_bad_lines_are_one_sentence(tmp_path, line, words):
    (tmp_path / "out.jpg").write_bytes(picture())
    cfg, _ = folder_of(tmp_path / "in")
    (tmp_path / "in" / "page.jpg").write_text("<html>")
    with open(tmp_path / "in" / "metadata.jsonl", "a") as f:
        f.write(line + "\n")
    with pytest.raises(InputError, match=words) as e:
        folder_records(cfg)
    assert "\n" not in str(e.value)
    files = user_files(cfg)                                  # asked before anything is checked
    assert files[0].name == "metadata.jsonl" and "out.jpg" not in {f.resolve().name for f in files}


def test_data_folder_command(tmp_path, t2igen):
    cfg, _ = folder_of(tmp_path / "in")
    out = tmp_path / "out"
    assert t2igen("data", "folder", tmp_path / "in", "--out", out, "--size", 64)[0] == 0
    before = folder_records(cfg)[0]
    after = folder_records(cfg.model_copy(update={"path": str(out)}))[0]
    assert [(r.text, r.split) for r in before] == [(r.text, r.split) for r in after]
    assert t2igen("data", "folder", tmp_path / "in", "--out", out)[0] == 2


def test_changed_captions_make_the_data_stage_stale(tmp_path):
    cfg, rows = folder_of(tmp_path / "in")
    run = run_of(tmp_path / "run", cfg)
    make_data(run)
    assert run.is_current("data")
    write_lines(tmp_path / "in" / "metadata.jsonl", [{**r, "text": "new"} for r in rows])
    assert not run.is_current("data")


def test_a_replaced_picture_makes_the_data_stage_stale(tmp_path):
    cfg, _ = folder_of(tmp_path / "in")
    run = run_of(tmp_path / "in" / "run", cfg)         # a run below the folder does not count
    make_data(run)
    before = run.fingerprint("blip")
    file = tmp_path / "in" / "3.jpg"
    file.touch()
    assert run.is_current("data")
    stat = file.stat()
    file.write_bytes(picture(77))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert not run.is_current("data") and run.fingerprint("blip") != before
    make_data(run)
    assert run.is_current("data")
    (tmp_path / "in" / "12.jpg").write_bytes(picture(240))
    file.with_name("4.jpg").unlink()
    assert not run.is_current("data")


def test_other_files_in_the_folder_change_nothing(tmp_path):
    cfg, _ = folder_of(tmp_path / "in")
    run = run_of(tmp_path / "run", cfg)
    make_data(run)
    files = user_files(cfg)
    fingerprint = run.fingerprint("data")
    assert {f.name for f in files} == {"metadata.jsonl", *(f"{i}.jpg" for i in range(12))}
    (tmp_path / "in" / "Thumbs.db").write_bytes(b"\0\1\2")
    (tmp_path / "in" / "run.log").write_text("so far so good\n")
    (tmp_path / "in" / "ship.png").write_bytes(picture(1, kind="PNG"))
    (tmp_path / "in" / "later").mkdir()
    (tmp_path / "in" / "later" / "0.jpg").write_bytes(picture(2))
    assert user_files(cfg) == files
    assert run.fingerprint("data") == fingerprint and run.is_current("data")
    make_data(run)
    assert len(load_data(run)) == 12 and run.is_current("data")
    folder_of(tmp_path / "in" / "test", 4)                   # but these are pictures of the set
    assert run.fingerprint("data") != fingerprint


def test_captions_that_are_cut_are_counted(tmp_path, capsys):
    from t2igen.blip.stage import make_blip
    cfg, rows = folder_of(tmp_path / "in")
    long = {**rows[0], "text": "word " * 20_000}
    write_lines(tmp_path / "in" / "metadata.jsonl", [long, *rows[1:]])
    short = {"blip.matcher.train.steps": 1, "blip.captioner.train.steps": 1}
    run = run_of(tmp_path / "run", cfg, **short)
    make_data(run)
    make_blip(run)
    assert "1 of 12 captions are longer than 32 tokens" in capsys.readouterr().out
    expected = {"captions": 12, "cut": 1, "max_tokens": 32}
    assert read_json(run / "blip" / "captions.json") == expected


@pytest.mark.parametrize("dataset", ["gallery", "digits", "folder"])
def test_splits_share_no_picture(tmp_path, dataset):
    path = folder_of(tmp_path / "in", 40)[0].path if dataset == "folder" else ""
    cfg = DataConfig(dataset=dataset, path=path, image_size=32, n_train=150, n_test_seen=40,
                     n_test_unseen=20)
    records, images, _ = data_records(cfg)
    pictures = {split: set() for split in SPLITS}
    for r, image in zip(records, images):
        pictures[r.split].add(image.tobytes())
    train, seen, unseen = pictures.values()
    assert train and seen
    assert not (train & seen or train & unseen or seen & unseen)


def test_a_photograph_turned_and_in_four_inks(tmp_path):
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, :20] = (255, 0, 0)                               # red on the left
    exif = Image.Exif()
    exif[0x112] = 3                                          # upside down
    Image.fromarray(wide).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    assert open_picture(tmp_path / "turned.jpg").getpixel((35, 10))[0] > 240
    Image.fromarray(wide).convert("CMYK").save(tmp_path / "inks.jpg", quality=95)
    red = open_picture(tmp_path / "inks.jpg").getpixel((5, 10))
    assert red[0] > 230 and red[1] < 30
    deep = np.linspace(0, 65535, 40*20).reshape(20, 40).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    found = np.asarray(open_picture(tmp_path / "deep.tif"))[..., 0].astype(int)
    assert np.abs(found - deep/257).max() <= 1

# --- the gallery


PAINTING = """
import multiprocessing
import sys

from t2igen.data.paint import paint_all, plan_gallery
from t2igen.data.settings import DataConfig

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    paint_all(plan_gallery(DataConfig(n_train=3000)), 512)
"""


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_painters_end_with_their_parent(tmp_path, method):
    script = tmp_path / "painting.py"
    script.write_text(PAINTING)
    parent = subprocess.Popen([sys.executable, script, method])
    try:
        family = psutil.Process(parent.pid)
        started = []
        while len(started) < (os.cpu_count() or 1) and parent.poll() is None:
            time.sleep(0.1)
            started = family.children(recursive=True)
        time.sleep(1)
        started = family.children(recursive=True)
        assert parent.poll() is None and started
    finally:
        parent.kill()
        parent.wait()
    gone, alive = psutil.wait_procs(started, timeout=20)
    assert gone and not alive


def test_the_gallery_is_the_same_however_its_painters_start(tmp_path):
    script = tmp_path / "same.py"
    script.write_text("""
import hashlib
import multiprocessing
import sys

from t2igen.data.paint import paint_all, plan_gallery
from t2igen.data.settings import DataConfig

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    cfg = DataConfig(n_train=120, n_test_seen=8, n_test_unseen=8)
    h = hashlib.sha256()
    for painted in paint_all(plan_gallery(cfg), 32, alone=int(sys.argv[2])):
        h.update(painted.image.tobytes() + painted.text.encode() + painted.title.encode())
    print(h.hexdigest())
""")
    found = set()
    for method, alone in [("spawn", 0), ("spawn", 1000)]:
        done = subprocess.run([sys.executable, script, method, str(alone)], capture_output=True,
                              text=True, check=True)
        found.add(done.stdout)
    assert len(found) == 1
