"Data sets of other people: folders, MUSTI's JSON, and downloads from servers that misbehave."
import io, json, os, shutil, ssl, subprocess, sys, threading, time
from collections import Counter
from email.utils import formatdate
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np, pytest
from PIL import Image

from t2igen import data as d
from t2igen.blip import make_blip
from t2igen.core import DataConfig, InputError, Run, load_config, read_json

def picture(shade:int=0, size=(48, 40), format="JPEG", **options) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (shade % 256, 90, 200)).save(file, format, **options)
    return file.getvalue()

@lru_cache
def bomb() -> bytes: return picture(size=(9000, 9000), format="PNG")

class Server(ThreadingHTTPServer):
    daemon_threads = True
    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.times, self.bomb = Counter(), {}, bomb()
    def handle_error(self, *_): pass
    def url(self, path): return f"http://127.0.0.1:{self.server_port}{path}"

class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def answer(self, status, body=b"", type="image/jpeg", **headers):
        self.send_response(status)
        for k, v in {"Content-Type": type, "Content-Length": len(body), **{k.replace("_", "-"): v for k, v in headers.items()}}.items(): self.send_header(k, str(v))
        self.end_headers(); self.wfile.write(body)
    def do_GET(self):
        path, server = self.path, self.server
        server.asked[path] += 1; server.times.setdefault(path, []).append(time.monotonic())
        first = server.asked[path] == 1
        if path.startswith("/good"): self.answer(200, picture(int(path[5:].split(".")[0] or 0)*7))
        elif path.startswith("/slow"): time.sleep(0.3); self.answer(200, picture(int(path[5:].split(".")[0])*7))
        elif path == "/flaky.jpg": self.answer(500) if first else self.answer(200, picture(101))
        elif path == "/busy.jpg": self.answer(429, Retry_After=1) if first else self.answer(200, picture(102))
        elif path == "/date.jpg": self.answer(429, Retry_After=formatdate(time.time() + 2, usegmt=True)) if first else self.answer(200, picture(103))
        elif path == "/hour.jpg": self.answer(503, Retry_After=3600)
        elif path == "/truncated.jpg": self.answer(200, picture(5, (300, 300), quality=95)[:900])
        elif path == "/broken.jpg": self.send_response(200); self.send_header("Content-Length", "5000"); self.end_headers(); self.wfile.write(picture(5))
        elif path == "/page.jpg": self.answer(200, b"<html>Not here</html>")
        elif path == "/file.jpg": self.answer(302, Location="file:///etc/passwd")
        elif path == "/moved.jpg": self.answer(301, Location="/good30.jpg")
        elif path == "/secure.jpg": self.answer(302, Location=f"https://127.0.0.1:{server.secure_port}/good31.jpg")
        elif path == "/loop.jpg": self.answer(302, Location="/loop.jpg")
        elif path == "/huge.jpg": self.answer(200, b"", Content_Length=1 << 40)
        elif path == "/bomb.png": self.answer(200, server.bomb)
        elif path == "/endless.jpg":
            self.send_response(200); self.end_headers()
            while True: self.wfile.write(bytes(1 << 20))
        elif path == "/drip.jpg":
            self.send_response(200); self.end_headers()
            while True: self.wfile.write(b"x"); self.wfile.flush(); time.sleep(0.2)
        elif path == "/stall.jpg": time.sleep(30)
        else: self.answer(404)

@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*"); monkeypatch.setenv("no_proxy", "*")
    s = Server(); threading.Thread(target=s.serve_forever, daemon=True).start()
    yield s
    s.shutdown(); s.server_close()

def record(id, url, **more):
    return dict(id=id, image=url, language="en", subtask1_label="YES", subtask2_labels=["rose", "smoke"], text=f"The text of {id}.", title=f"Title {id}") | more

BAD = {"/gone.jpg": "404", "/truncated.jpg": "decoded", "/broken.jpg": "connection", "/page.jpg": "decoded", "/file.jpg": "only http", "/loop.jpg": "redirects",
       "/endless.jpg": "larger than 25 MiB", "/huge.jpg": "larger than 25 MiB", "/bomb.png": "50 million", "/stall.jpg": "took longer", "/drip.jpg": "took longer", "/hour.jpg": "asked to wait 3600"}

def test_downloads_end_as_they_should(server, tmp_path):
    good = ["/good1.jpg", "/good2.jpg", "/flaky.jpg", "/busy.jpg", "/date.jpg", "/moved.jpg"]
    options = dict(allow_private=True, seconds=3, pause=0.05, tries=3)
    files, failed = d.download([server.url(p) for p in [*good, *BAD]], tmp_path/"images", per_host=20, **options)
    assert set(files) == {server.url(p) for p in good}
    for path, words in BAD.items(): assert words in str(failed[server.url(path)]), (path, failed[server.url(path)])
    a, b = server.times["/busy.jpg"]; assert b - a >= 0.95
    assert server.asked["/gone.jpg"] == 1 and server.asked["/flaky.jpg"] == 2
    assert len(list((tmp_path/"images").iterdir())) == len(good)                     # nothing half written
    before = server.asked.total()
    again, _ = d.download([server.url(p) for p in good], tmp_path/"images", **options)
    assert again == files and server.asked.total() == before                         # a second run downloads nothing

def test_a_musti_file_with_all_of_these(server, tmp_path):
    good = [record(f"g{i}", server.url(f"/good{i}.jpg")) for i in range(8)] + [record("flaky", server.url("/flaky.jpg")), record("busy", server.url("/busy.jpg"))]
    (tmp_path/"train.json").write_text(json.dumps([record(path, server.url(path)) for path in BAD] + good[:6]))
    (tmp_path/"test.json").write_text(json.dumps(good[6:]))
    options = dict(allow_private=True, seconds=2, pause=0.05, tries=2, per_host=20)
    done = d.make_musti(tmp_path/"out", tmp_path/"train.json", tmp_path/"test.json", min_share=0.4, **options)
    assert done == dict(records=len(good), pictures=len(good), failures=len(BAD))
    failures = {f["id"]: f["reason"] for f in map(json.loads, (tmp_path/"out"/"failures.jsonl").read_text().splitlines())}
    assert set(failures) == set(BAD) and all(words in failures[path] for path, words in BAD.items()), failures
    assert {r["id"] for r in map(json.loads, (tmp_path/"out"/"metadata.jsonl").read_text().splitlines())} == {r["id"] for r in good}

@pytest.mark.skipif(not shutil.which("openssl"), reason="makes its certificate with openssl")
def test_a_redirect_to_https_is_followed_if_the_certificate_is_valid(server, tmp_path, monkeypatch):
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
                    "-keyout", tmp_path/"key.pem", "-out", tmp_path/"certificate.pem"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER); context.load_cert_chain(tmp_path/"certificate.pem", tmp_path/"key.pem")
    secure = Server(); secure.socket = context.wrap_socket(secure.socket, server_side=True)
    threading.Thread(target=secure.serve_forever, daemon=True).start(); server.secure_port = secure.server_port
    try:
        monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False); monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
        with pytest.raises(d.FetchError, match="certificate is not valid"): d.fetch(server.url("/secure.jpg"), allow_private=True, seconds=10)
        assert not secure.asked
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path/"certificate.pem"))
        assert d.fetch(server.url("/secure.jpg"), allow_private=True, seconds=10) == picture(31*7)
    finally: secure.shutdown(); secure.server_close()

def test_at_most_two_requests_a_host_at_once(server, tmp_path, monkeypatch):
    now, most, lock, fetch = [0], [0], threading.Lock(), d.fetch
    def counted(*args, **kwargs):
        with lock: now[0] += 1; most[0] = max(most[0], now[0])
        try: time.sleep(0.02); return fetch(*args, **kwargs)
        finally:
            with lock: now[0] -= 1
    monkeypatch.setattr(d, "fetch", counted)
    files, _ = d.download([server.url(f"/good{i}.jpg") for i in range(12)], tmp_path, allow_private=True)
    assert len(files) == 12 and most[0] == 2

def test_private_addresses_are_refused_at_every_hop(server, tmp_path, monkeypatch):
    with pytest.raises(d.FetchError, match="private address"): d.fetch(server.url("/good1.jpg"))
    public = [(2, 1, 6, "", ("93.184.216.34", 80))]
    monkeypatch.setattr(d.socket, "getaddrinfo", lambda host, *a, **k: public + [(2, 1, 6, "", ("10.0.0.1", 80))])
    with pytest.raises(d.FetchError, match="10.0.0.1 is a private"): d.fetch("http://museum.example/x.jpg")       # one of several addresses
    monkeypatch.undo(); monkeypatch.setenv("NO_PROXY", "*"); monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(d, "_check_url", lambda *a: None)                             # a name that is answered differently the second time
    with pytest.raises(d.FetchError, match="private address"): d.fetch(server.url("/good1.jpg"))
    assert not server.asked

def test_musti_from_the_command_line(server, tmp_path, t2igen):
    url = server.url
    train = [record(f"t{i}", url(f"/good{i}.jpg")) for i in range(20)]
    train += [record("twin", url("/good3.jpg"), title="Ein Röschen — 薔薇"), record("long", url("/good4.jpg"), text="word " * 20_000), record("t0", url("/good5.jpg")),
              record("de", url("/good6.jpg"), language="de"), {k: v for k, v in record("none", url("/good7.jpg")).items() if k != "image"},
              record("type", url("/good8.jpg"), text=7), record("gone", url("/gone.jpg")), record("page", url("/page.jpg"))]
    test = [record(f"e{i}", url(f"/good{i}.jpg")) for i in range(25, 30)] + [record("leak", url("/good9.jpg"))]
    for name, rows in (("train", train), ("test", test)): (tmp_path/f"{name}.json").write_text(json.dumps(rows, ensure_ascii=False))
    args = ("data", "musti", "--train", tmp_path/"train.json", "--test", tmp_path/"test.json", "--out", tmp_path/"out")
    code, _, error = t2igen(*args)
    assert code == 2 and "could be had" in error and not (tmp_path/"out"/"metadata.jsonl").exists()    # private, and nothing was asked
    assert not server.asked
    code, _, error = t2igen(*args, "--allow-private", "--min-share", "0.95")
    assert code == 2 and "28 of 33 records (85%)" in error, error
    before = server.asked.total()
    code, out, error = t2igen(*args, "--allow-private", "--min-share", "0.8", "--caption", "both")
    assert code == 0 and "28 records on 25 pictures; 5 could not be had" in out and "data.caption=both" in out, out + error
    assert server.asked.total() == before                                             # not even what failed for good
    failures = {f["id"]: f["reason"] for f in map(json.loads, (tmp_path/"out"/"failures.jsonl").read_text().splitlines())}
    assert failures == {"t0": "id 't0' occurs a second time", "none": "image is missing", "type": "text must be text, got 7",
                        "gone": "the server answered 404", "page": "it cannot be decoded as a picture"}
    rows = {r["id"]: r for r in map(json.loads, (tmp_path/"out"/"metadata.jsonl").read_text().splitlines())}
    for r in [*train[:22], *test]: assert r.items() <= rows[r["id"]].items()          # every field as published
    assert rows["twin"]["file_name"] == rows["t3"]["file_name"] and "薔薇" in (tmp_path/"out"/"metadata.jsonl").read_text()

    run = Run(tmp_path/"run", load_config("musti", {"data.path": str(tmp_path/"out"), "data.caption": "title"}))
    d.make_data(run); pictures = d.load_data(run)
    by_id = {r.id: (r, image) for r, image in zip(pictures.records, pictures.images)}
    assert by_id["twin"][0].text == "Ein Röschen — 薔薇" and by_id["twin"][0].subtask2_labels == ["rose", "smoke"]
    assert by_id["leak"][0].split == "test_seen" and "t9" not in by_id and "same picture" in (run/"data"/"failures.jsonl").read_text()
    seen = {s: {i.tobytes() for r, i in by_id.values() if r.split == s} for s in ("train", "test_seen")}
    assert not seen["train"] & seen["test_seen"]

def test_a_download_that_was_killed_goes_on(server, tmp_path, t2igen):
    paths = [f"/slow{i}.jpg" for i in range(12)]
    for name, some in (("train", paths[:8]), ("test", paths[8:])): (tmp_path/f"{name}.json").write_text(json.dumps([record(p, server.url(p)) for p in some]))
    out, command = tmp_path/"out", ("data", "musti", "--train", tmp_path/"train.json", "--test", tmp_path/"test.json", "--out", tmp_path/"out", "--allow-private")
    process = subprocess.Popen([sys.executable, "-m", "t2igen.cli", *map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    arrived = lambda: {f.stem for f in (out/"images").glob("[0-9a-f]*.jpg")} if out.exists() else set()
    while len(arrived()) < 4 and process.poll() is None: time.sleep(0.02)
    process.kill(); assert process.wait() == -9
    before = arrived()
    assert 4 <= len(before) < 12 and not (out/"metadata.jsonl").exists()
    for file in (out/"images").glob("[0-9a-f]*.jpg"): d.open_picture(file)                       # each is whole
    (out/"images"/f".{'0'*64}.1.tmp.jpg").write_bytes(b"half")                                  # what a kill in the middle of a write leaves
    server.asked.clear()
    assert t2igen(*command)[0] == 0
    assert server.asked == {p: 1 for p in paths if d.url_key(server.url(p)) not in before}      # only what was missing, once
    assert arrived() == {d.url_key(server.url(p)) for p in paths} and len(list((out/"images").iterdir())) == 12
    assert len((out/"metadata.jsonl").read_text().splitlines()) == 12

# --- folders

def folder_of(path, n=12, csv=False, **more):
    path.mkdir(parents=True, exist_ok=True)
    for i in range(n): (path/f"{i}.jpg").write_bytes(picture(i*20))
    rows = [dict(file_name=f"{i}.jpg", text=f"shade, number {i}", **{k: v(i) for k, v in more.items()}) for i in range(n)]
    if csv: (path/"metadata.csv").write_text("file_name,text\n" + "".join(f'{r["file_name"]},"{r["text"]}"\n' for r in rows))
    else: d.write_lines(path/"metadata.jsonl", rows)
    return DataConfig(dataset="folder", path=str(path), image_size=32), rows

def test_csv_and_jsonl_give_the_same(tmp_path):
    a, b = (d.folder_records(folder_of(tmp_path/str(csv), csv=csv)[0]) for csv in (True, False))
    assert a[0] == b[0] and (a[1] == b[1]).all()

def test_splits_as_given_or_in_subfolders(tmp_path):
    cfg, _ = folder_of(tmp_path/"a", split=lambda i: "validation" if i > 8 else "train")
    assert Counter(r.split for r in d.folder_records(cfg)[0]) == dict(train=9, test_seen=3)
    folder_of(tmp_path/"b"/"train", 8); (cfg, _) = folder_of(tmp_path/"b"/"test", 12)
    d.write_lines(tmp_path/"b"/"test"/"metadata.jsonl", [dict(file_name=f"{i}.jpg", text="x") for i in range(8, 12)])
    records, _, left = d.folder_records(cfg.model_copy(update={"path": str(tmp_path/"b")}))
    assert Counter(r.split for r in records) == dict(train=8, test_seen=4) and not left

@pytest.mark.parametrize("line, words", [
    ('{"file_name": "../out.jpg", "text": "x"}', "leaves the folder"), ('{"file_name": "/etc/passwd", "text": "x"}', "leaves the folder"),
    ('{"file_name": "link.jpg", "text": "x"}', "leaves the folder"), ('{"file_name": "none.jpg", "text": "x"}', "There is no file"),
    ('{"file_name": "page.jpg", "text": "x"}', "page.jpg cannot be read as a picture"), ('{"file_name": "0.jpg"}', "there is no text"),
    ('{"text": "x"}', "file_name is missing"), ('{"file_name": "0.jpg", "text": 3}', "text must be text"), ("nonsense", "line 13: not valid JSON"),
    ("[]", "must be an object"), ('{"file_name": "0.jpg", "text": "x", "split": "tset"}', "did you mean 'test'"), ('{"file_name": "0.jpg", "text": "x", "split": "test"}', "no split")])
def test_bad_lines_are_one_sentence(tmp_path, line, words):
    (tmp_path/"out.jpg").write_bytes(picture())
    cfg, _ = folder_of(tmp_path/"in")
    (tmp_path/"in"/"page.jpg").write_text("<html>"); (tmp_path/"in"/"link.jpg").symlink_to(tmp_path/"out.jpg")
    with open(tmp_path/"in"/"metadata.jsonl", "a") as f: f.write(line + "\n")
    with pytest.raises(InputError, match=words) as e: d.folder_records(cfg)
    assert "\n" not in str(e.value)

def test_data_folder_command(tmp_path, t2igen):
    cfg, _ = folder_of(tmp_path/"in")
    assert t2igen("data", "folder", tmp_path/"in", "--out", tmp_path/"out", "--size", 64)[0] == 0
    before, after = d.folder_records(cfg)[0], d.folder_records(cfg.model_copy(update={"path": str(tmp_path/"out")}))[0]
    assert [(r.text, r.split) for r in before] == [(r.text, r.split) for r in after]
    assert t2igen("data", "folder", tmp_path/"in", "--out", tmp_path/"out")[0] == 2

def test_changed_captions_make_the_data_stage_stale(tmp_path):
    cfg, rows = folder_of(tmp_path/"in")
    run = Run(tmp_path/"run", load_config("tiny", {"data.dataset": "folder", "data.path": cfg.path}))
    d.make_data(run); assert run.is_current("data")
    d.write_lines(tmp_path/"in"/"metadata.jsonl", [{**r, "text": "new"} for r in rows]); assert not run.is_current("data")

def test_a_replaced_picture_makes_the_data_stage_stale(tmp_path):
    cfg, _ = folder_of(tmp_path/"in")
    run = Run(tmp_path/"in"/"run", load_config("tiny", {"data.dataset": "folder", "data.path": cfg.path}))      # a run below the folder does not count
    d.make_data(run); before = run.fingerprint("blip")
    (tmp_path/"in"/"3.jpg").touch(); assert run.is_current("data")
    stat = (tmp_path/"in"/"3.jpg").stat()
    (tmp_path/"in"/"3.jpg").write_bytes(picture(77)); os.utime(tmp_path/"in"/"3.jpg", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert not run.is_current("data") and run.fingerprint("blip") != before

def test_captions_that_are_cut_are_counted(tmp_path, capsys):
    cfg, rows = folder_of(tmp_path/"in")
    d.write_lines(tmp_path/"in"/"metadata.jsonl", [{**rows[0], "text": "word " * 20_000}, *rows[1:]])
    run = Run(tmp_path/"run", load_config("tiny", {"data.dataset": "folder", "data.path": cfg.path, "blip.matcher.steps": 1, "blip.captioner.steps": 1}))
    make_blip(run)
    assert "1 of 12 captions are longer than 32 tokens" in capsys.readouterr().out
    assert read_json(run/"blip"/"captions.json") == {"captions": 12, "cut": 1, "max_tokens": 32}

@pytest.mark.parametrize("dataset", ["gallery", "digits", "folder"])
def test_splits_share_no_picture(tmp_path, dataset):
    path = folder_of(tmp_path/"in", 40)[0].path if dataset == "folder" else ""
    records, images, _ = d.data_records(DataConfig(dataset=dataset, path=path, image_size=32, n_train=150, n_test_seen=40, n_test_unseen=20))
    seen = {s: {i.tobytes() for r, i in zip(records, images) if r.split == s} for s in d.SPLITS}
    assert seen["train"] and seen["test_seen"]
    assert not (seen["train"] & seen["test_seen"] or seen["train"] & seen["test_unseen"] or seen["test_seen"] & seen["test_unseen"])

def test_a_photograph_turned_and_in_four_inks(tmp_path):
    wide = np.zeros((20, 40, 3), np.uint8); wide[:, :20] = (255, 0, 0)                # red on the left
    exif = Image.Exif(); exif[0x112] = 3                                              # upside down
    Image.fromarray(wide).save(tmp_path/"turned.jpg", exif=exif, quality=95)
    assert d.open_picture(tmp_path/"turned.jpg").getpixel((35, 10))[0] > 240
    Image.fromarray(wide).convert("CMYK").save(tmp_path/"inks.jpg", quality=95)
    red = d.open_picture(tmp_path/"inks.jpg").getpixel((5, 10)); assert red[0] > 230 and red[1] < 30
    deep = np.linspace(0, 65535, 40*20).reshape(20, 40).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path/"deep.tif")
    assert np.abs(np.asarray(d.open_picture(tmp_path/"deep.tif"))[..., 0].astype(int) - deep/257).max() <= 1
