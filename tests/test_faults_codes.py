"Code stores and tables from anyone: what is refused, in one sentence each, and leaves nothing."
import hashlib
import json
import shutil
import struct

import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from t2igen.blip.embed import TextFeatures
from t2igen.codes.format import block_key, code_block, data_sha256, feature_block, pack_text, sealed
from t2igen.codes.rows import read_meta
from t2igen.codes.store import CodeStore
from t2igen.codes.table import export_codes
from t2igen.codes.writer import StoreWriter
from t2igen.core.config import InputError

META = dict(count=50, captions=6, block=16, top=[2, 2], bottom=[4, 4], dtype="uint16",
            codebook_size=512, pooled=4, states=[3, 5], vqvae="a" * 64,
            vocabulary=9)
CODES = np.random.default_rng(0).integers(0, 512, (50, 20)).astype(np.uint16)
CAPTIONS = [f"caption {i}" for i in range(6)]


def features() -> TextFeatures:
    "Features of six captions."
    torch.manual_seed(0)
    return TextFeatures(torch.rand(6, 4), torch.rand(6, 3, 5), torch.rand(6, 3) > 0.5)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A whole store, and its tables."
    place = tmp_path_factory.mktemp("codes")
    with StoreWriter(place / "store", META) as writer:
        writer.put(feature_block(0, pack_text(features()), CAPTIONS, 0))
        for k, i in enumerate(range(0, 50, 16)):
            own = range(i, min(i + 16, 50))
            writer.put(code_block(k, CODES[own], [(f"id-{j}", f"{j}.png") for j in own]))
        writer.finish()
    export_codes(place / "store", place / "tables")
    return place


def refused(t2igen, *args) -> str:
    "What a command says when it ends with exit code 2: one sentence."
    code, out, err = t2igen("codes", *args)
    assert code == 2 and not out, (code, out, err)
    assert err.startswith("Error: ") and err.count("\n") == 1 and len(err) < 700, err
    assert "Traceback" not in err and "None.\n" not in err
    return err


def change_meta(folder, **new):
    "Set keys of `meta.json`; those that are `...` are taken out."
    file = folder / "meta.json"
    meta = json.loads(file.read_text(encoding="utf-8")) | new
    kept = {key: value for key, value in meta.items() if value is not ...}
    file.write_text(json.dumps(kept), encoding="utf-8")


def change_table(folder, name, column, make):
    "Replace a column of a table by `make` of its values; by None it is taken out."
    table = pq.read_table(folder / name)
    values = make(table[column].to_pylist())
    at = table.column_names.index(column)
    table = table.remove_column(at)
    if values is not None:
        table = table.add_column(at, column, [values])
    pq.write_table(table, folder / name)


def codes(column, make):
    "A change of `codes.parquet`."
    return lambda folder: change_table(folder, "codes.parquet", column, make)


def texts(column, make):
    "A change of `captions.parquet`."
    return lambda folder: change_table(folder, "captions.parquet", column, make)


def meta(**new):
    "A change of `meta.json`."
    return lambda folder: change_meta(folder, **new)


def content(name, value: bytes):
    "Other bytes in a file."
    return lambda folder: (folder / name).write_bytes(value)


def emptied(name):
    "A table without rows."
    return lambda f: pq.write_table(pq.read_table(f / name).slice(0, 0), f / name)


def cut(name):
    "A file without its end."
    return lambda f: (f / name).write_bytes((f / name).read_bytes()[:-30])


def slid(rows):
    "The first code of the second list goes to the first one."
    return [[*rows[0], rows[1][0]], rows[1][1:], *rows[2:]]


def with_first(value, number=0):
    "The first value of a list is another."
    def change(rows):
        rows[number][0] = value
        return rows
    return change


FLOATS = pa.list_(pa.float32())
TEXTS = pa.list_(pa.string())
BAD_TABLES = {
    "ragged lists": (codes("top", slid), ["'top'", "list of 4", "one has 5"]),
    "ragged features": (texts("pooled", lambda r: pa.array(slid(r), FLOATS)), ["'pooled'"]),
    "fractional codes": (codes("top", with_first(1.5)), ["'top'", "whole numbers", "double"]),
    "codes as fractions": (
        codes("bottom", lambda r: pa.array(r, pa.list_(pa.float64()))), ["'bottom'", "whole"]),
    "codes as text": (codes("top", lambda r: pa.array(r).cast(TEXTS)), ["'top'"]),
    "one code a record": (codes("top", lambda r: [row[0] for row in r]), ["'top'", "list of 4"]),
    "a missing code": (codes("top", with_first(None)), ["'top'", "1 are missing"]),
    "a missing list": (codes("top", lambda r: [None, *r[1:]]), ["'top'", "1 are missing"]),
    "a code beyond the codebook": (codes("top", with_first(512)), ["512", "has 512 entries"]),
    "a negative code": (codes("bottom", with_first(-1, 30)), ["from -1 to", "has 512 entries"]),
    "a code that wraps": (codes("top", with_first(2**16)), ["65536", "has 512 entries"]),
    "no codes": (codes("top", lambda r: None), ["no column 'top'"]),
    "no ids": (codes("id", lambda r: None), ["no column 'id'"]),
    "ids that are numbers": (codes("id", lambda r: list(range(len(r)))), ["'id' must be text"]),
    "a missing id": (codes("id", lambda r: [None, *r[1:]]), ["'id'", "1 are missing"]),
    "an id twice": (codes("id", lambda r: [r[1], *r[1:]]), ["1 values of 'id' occur before"]),
    "a missing image": (codes("image", lambda r: [None, *r[1:]]), ["'image'", "1 are missing"]),
    "a caption twice": (
        texts("caption", lambda r: [r[1], *r[1:]]), ["1 values of 'caption' occur before"]),
    "a missing caption": (texts("caption", lambda r: [*r[1:], None]), ["'caption'", "missing"]),
    "no mask": (texts("mask", lambda r: None), ["no column 'mask'"]),
    "a mask of numbers": (
        texts("mask", lambda r: pa.array(r).cast(pa.list_(pa.int64()))), ["true and false"]),
    "features not a number": (
        texts("pooled", lambda r: pa.array(with_first(float("nan"))(r), FLOATS)),
        ["'pooled'", "not finite"]),
    "features without end": (
        texts("states", lambda r: pa.array(with_first(float("inf"), 5)(r), FLOATS)),
        ["'states'", "not finite"]),
    "features too large": (
        texts("states", lambda r: pa.array(with_first(1e300)(r), pa.list_(pa.float64()))),
        ["'states'", "not finite"]),
    "no records": (emptied("codes.parquet"), ["codes.parquet has no rows"]),
    "no captions": (emptied("captions.parquet"), ["captions.parquet has no rows"]),
    "an empty file": (content("codes.parquet", b""), ["Cannot read", "codes.parquet"]),
    "no Parquet": (content("codes.parquet", b"id,image\n1,2\n"), ["Cannot read"]),
    "half a Parquet": (cut("captions.parquet"), ["Cannot read", "captions.parquet"]),
    "no table": (lambda f: (f / "codes.parquet").unlink(), ["no file", "codes.parquet"]),
    "a folder for a table": (
        lambda f: [(f / "codes.parquet").unlink(), (f / "codes.parquet").mkdir()], ["no file"]),
    "no description": (lambda f: (f / "meta.json").unlink(), ["meta.json"]),
    "no JSON": (content("meta.json", b"{"), ["meta.json", "not valid JSON"]),
    "deep JSON": (content("meta.json", b"[" * 100_000), ["meta.json", "not valid JSON"]),
    "a list": (content("meta.json", b"[1]"), ["it is a list"]),
    "a text in Latin-1": (content("meta.json", b'{"top": "\xe9"}'), ["not UTF-8"]),
    "no block": (meta(block=...), ["'block' is missing"]),
    "no states": (meta(states=...), ["'states' is missing"]),
    "no vqvae": (meta(vqvae=...), ["'vqvae' is missing"]),
    "a negative block": (meta(block=-16), ["'block'", "-16"]),
    "a block of none": (meta(block=0), ["'block'", "got 0"]),
    "a fractional block": (meta(block=1.5), ["'block'", "1.5"]),
    "a block of text": (meta(block="16"), ["'block'", "'16'"]),
    "a huge block": (meta(block=2**80), ["'block'", "less than"]),
    "an object dtype": (meta(dtype="O"), ["'dtype'", "'O'"]),
    "a dtype too narrow": (meta(dtype="uint8"), ["uint8 cannot hold"]),
    "a negative codebook": (meta(codebook_size=-5), ["'codebook_size'", "-5"]),
    "a huge codebook": (meta(codebook_size=10**9), ["'codebook_size'"]),
    "no size": (meta(codebook_size=None), ["'codebook_size'", "None"]),
    "a grid of one": (meta(top=[4]), ["'top'"]),
    "a negative grid": (meta(top=[-2, -2], bottom=[-4, -4]), ["'top.0'", "-2"]),
    "a bottom that is not twice the top": (meta(bottom=[2, 8]), ["[2, 8] is not twice"]),
    "grids of others": (meta(top=[1, 2], bottom=[2, 4]), ["'top'", "list of 2", "one has 4"]),
    "states as a number": (meta(states=15), ["'states'", "15"]),
    "states of others": (meta(states=[5, 5]), ["'states'", "list of 25", "one has 15"]),
    "another version": (meta(schema=1), ["another version"]),
}


@pytest.mark.parametrize("what", BAD_TABLES)
def test_tables_that_do_not_fit_are_told(made, tmp_path, t2igen, what):
    spoil, words = BAD_TABLES[what]
    shutil.copytree(made / "tables", tmp_path / "tables")
    spoil(tmp_path / "tables")
    place = tmp_path / "place"
    said = refused(t2igen, "import", tmp_path / "tables", "--out", place / "new.lmdb")
    assert all(word in said for word in words), said
    assert not place.exists()                      # nothing is left behind, no folder on the way


def test_a_place_that_is_taken_is_told(made, tmp_path, t2igen):
    (tmp_path / "file").write_text("a file of mine", encoding="utf-8")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for out in (tmp_path / "file", tmp_path / "link", tmp_path):
        assert "choose another place" in refused(t2igen, "import", made / "tables", "--out", out)
    assert str(tmp_path / "file") in refused(
        t2igen, "import", made / "tables", "--out", tmp_path / "file" / "new")
    assert "is a file" in refused(t2igen, "export", made / "store", "--out", tmp_path / "file")
    for folder in (tmp_path / "none", tmp_path, tmp_path / "file"):
        assert "meta.json" in refused(t2igen, "import", folder, "--out", tmp_path / "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "link"]


def test_a_table_of_other_tools_is_taken(made, tmp_path, t2igen):
    "Wider types, large lists, other columns and another order, as pandas and datasets write them."
    shutil.copytree(made / "tables", tmp_path / "tables")
    table = pq.read_table(made / "tables" / "codes.parquet")
    wide = {"more": pa.array(range(50)), "id": table["id"].cast(pa.large_string())}
    for level in ("bottom", "top"):
        wide[level] = pa.array(table[level].to_pylist(), pa.large_list(pa.int64()))
    wide["image"] = table["image"]
    pq.write_table(pa.table(wide), tmp_path / "tables" / "codes.parquet")
    assert t2igen("codes", "import", tmp_path / "tables", "--out", tmp_path / "new")[0] == 0
    assert data_sha256(tmp_path / "new" / "data.mdb") == data_sha256(made / "store" / "data.mdb")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "tables"]


def seal(store):
    "Write the checksum of a store's file as it is."
    file = store / "data.mdb"
    value = dict(size=file.stat().st_size, sha256=data_sha256(file))
    (store / "checksum.json").write_text(json.dumps(value), encoding="utf-8")


def put(*pairs, without=(), **new):
    "Other values, each with its checksum, and other settings."
    def spoil(store):
        with lmdb.open(str(store)) as env, env.begin(write=True) as txn:
            described = read_meta(txn) | new
            kept = {key: value for key, value in described.items() if value is not ...}
            for key, value in [(b"meta", json.dumps(kept).encode()), *pairs]:
                txn.put(key, sealed(key, value))
            for key in without:
                txn.delete(key)
    return spoil


def raw_meta(value: bytes):
    "A description that is none."
    return put((b"meta", value))


def at_end(store):
    "A file without its last pages."
    file = store / "data.mdb"
    file.write_bytes(file.read_bytes()[:-3 * 4096])


def replaced(value: bytes):
    "Another file for the store's."
    return lambda store: (store / "data.mdb").write_bytes(value)


def spoilt_features(value) -> tuple[bytes, bytes]:
    "The block of features with a number that is none."
    wrong = features()
    wrong.states[2, 1, 1] = value
    return feature_block(0, pack_text(wrong), CAPTIONS, 0)[0]


def caption(text: str, number: int, of: str = "") -> tuple[bytes, bytes]:
    "The entry of a caption, its feature row that of a number."
    key = b"text/" + hashlib.sha256((of or text).encode()).hexdigest().encode()
    return key, struct.pack(">Q", number) + text.encode()


def block(kind, number, value: bytes) -> tuple[bytes, bytes]:
    "A block."
    return block_key(kind, number), value


NAMES = [[f"id-{i}", ""] for i in range(16)]
TOO_HIGH = np.where(np.arange(320) == 77, 512, 5).astype(np.uint16).tobytes()
EVERYWHERE = ("verify", "export", "info")
BAD_STORES = {
    "a text": (replaced(b"no store\n" * 2000), EVERYWHERE, ["store"]),
    "an empty file": (replaced(b""), EVERYWHERE, ["store"]),
    "zeros": (replaced(bytes(40960)), EVERYWHERE, ["store"]),
    "a file that was cut": (at_end, EVERYWHERE, ["data.mdb"]),
    "a top larger than its rows": (
        put(top=[4, 4], bottom=[8, 8]), EVERYWHERE, ["640 bytes instead of 2,560"]),
    "a top beyond the file": (put(top=[400, 400], bottom=[800, 800]), EVERYWHERE, ["the file has"]),
    "a bottom that is not twice the top": (put(bottom=[2, 8]), EVERYWHERE, ["is not twice"]),
    "a grid of one": (put(top=[4]), EVERYWHERE, ["'top'"]),
    "more records": (put(count=60), EVERYWHERE, ["records 48 to 59"]),
    "very many records": (put(count=10**9), EVERYWHERE, ["the file has"]),
    "more records than numbers have": (put(count=10**30), EVERYWHERE, ["'count'"]),
    "fewer records": (put(count=40), EVERYWHERE, ["records 32 to 39"]),
    "no records": (put(count=0), EVERYWHERE, ["'count'"]),
    "more captions": (put(captions=9), EVERYWHERE, ["captions 0 to 8"]),
    "fewer captions": (put(captions=5), EVERYWHERE, ["captions 0 to 4"]),
    "a negative block": (put(block=-16), EVERYWHERE, ["'block'", "-16"]),
    "an object dtype": (put(dtype="O"), EVERYWHERE, ["'dtype'", "'O'"]),
    "a dtype too narrow": (put(dtype="uint8"), EVERYWHERE, ["uint8 cannot hold"]),
    "a smaller codebook": (put(codebook_size=100), ("verify", "export"), ["codebook of 100"]),
    "a code beyond the codebook": (
        put(block("code", 1, TOO_HIGH)), ("verify", "export"), ["records 16 to 31: code 512"]),
    "a short block": (
        put(block("code", 1, TOO_HIGH[:-40])), ("verify", "export"), ["600 bytes instead of 640"]),
    "a missing block": (
        put(without=[block_key("code", 2)]), ("verify", "export"), ["records 32 to 47"]),
    "a block too many": (
        put(block("code", 4, TOO_HIGH)), EVERYWHERE, ["a block more than there are"]),
    "features of others": (put(states=[5, 3]), EVERYWHERE, ["captions 0 to 5"]),
    "features not a number": (
        put(spoilt_features(np.nan)), ("verify", "export"), ["captions 0 to 5", "not finite"]),
    "features without end": (
        put(spoilt_features(np.inf)), ("verify", "export"), ["captions 0 to 5", "not finite"]),
    "a caption beyond the features": (
        put(caption("caption 3", 6)), ("verify", "export"), ["beyond the 6"]),
    "a caption of other features": (
        put(caption("caption 3", 2)), ("verify", "export"), ["6 captions with 5"]),
    "a caption under another's key": (
        put(caption("caption 9", 3, "caption 3")), ("verify", "export"), ["another caption"]),
    "an id twice": (
        put(block("name", 0, json.dumps([*NAMES[:15], NAMES[0]]).encode())),
        ("verify", "export"), ["2 records of the id 'id-0'"]),
    "too few names": (
        put(block("name", 0, json.dumps(NAMES[:15]).encode())), ("verify", "export"),
        ["records 0 to 15", "not a list of 16"]),
    "ragged names": (
        put(block("name", 0, json.dumps([*NAMES[:15], ["id-15"]]).encode())),
        ("verify", "export"), ["records 0 to 15", "an id and an image"]),
    "names that are none": (
        put(block("name", 0, b"[" * 100_000)), ("verify", "export"), ["records 0 to 15", "JSON"]),
    "not complete": (put(complete=False), EVERYWHERE, ["not complete"]),
    "another version": (put(schema=1), EVERYWHERE, ["another version"]),
    "no vqvae": (put(vqvae=...), EVERYWHERE, ["'vqvae' is missing"]),
    "a vqvae of numbers": (put(vqvae=3), EVERYWHERE, ["'vqvae'"]),
    "no description": (put(without=[b"meta"]), EVERYWHERE, ["version"]),
    "a list": (raw_meta(b"[1]"), EVERYWHERE, ["store"]),
    "deep JSON": (raw_meta(b"[" * 100_000), EVERYWHERE, ["store"]),
    "no JSON": (raw_meta(b"{"), EVERYWHERE, ["store"]),
}


@pytest.mark.parametrize("what", BAD_STORES)
def test_a_store_that_lies_is_told(made, tmp_path, t2igen, what):
    spoil, commands, words = BAD_STORES[what]
    store = tmp_path / "store"
    shutil.copytree(made / "store", store)
    spoil(store)
    seal(store)                                     # whoever wrote it wrote its checksum, too
    out = tmp_path / "tables"
    for name in commands:
        said = refused(t2igen, name, store, *(["--out", out] if name == "export" else []))
        assert all(word in said for word in words), said
    assert not out.exists()


READS = {
    "a top larger than its rows": lambda store: store[[0]],
    "a code beyond the codebook": lambda store: store[[40, 16]],
    "a missing block": lambda store: store[[40]],
    "more records": lambda store: store[[59]],
    "more captions": lambda store: store.text(["caption 0"]),
    "features not a number": lambda store: store.text(["caption 0"]),
    "a caption beyond the features": lambda store: store.text(["caption 3"]),
    "a caption under another's key": lambda store: store.captions,
    "too few names": lambda store: store.names,
    "fewer records": lambda store: store.names,
}


@pytest.mark.parametrize("what", READS)
def test_what_is_read_is_checked(made, tmp_path, what):
    store = tmp_path / "store"
    shutil.copytree(made / "store", store)
    BAD_STORES[what][0](store)
    seal(store)
    with pytest.raises(InputError, match="is not whole .* remove "):
        READS[what](CodeStore(store))


BAD_SEALS = ["", "[]", "null", "{", "{}", '{"size": "1", "sha256": 3}', '{"size": true}',
             '{"size": 1.5, "sha256": ""}', "[" * 100_000]


@pytest.mark.parametrize("text", BAD_SEALS, ids=range(len(BAD_SEALS)))
def test_a_seal_that_is_none_is_told(made, tmp_path, t2igen, text):
    store = tmp_path / "store"
    shutil.copytree(made / "store", store)
    (store / "checksum.json").write_text(text, encoding="utf-8")
    for name in ("verify", "info"):
        assert "checksum.json" in refused(t2igen, name, store)


def test_what_is_no_store_is_told(made, tmp_path, t2igen):
    (tmp_path / "file").write_text("a file of mine", encoding="utf-8")
    (tmp_path / "folder" / "data.mdb").mkdir(parents=True)
    for path in (tmp_path / "none", tmp_path / "file", tmp_path / "folder", tmp_path):
        for name in ("verify", "info"):
            assert "no code store" in refused(t2igen, name, path)
        out = tmp_path / "tables"
        assert "no code store" in refused(t2igen, "export", path, "--out", out)
        assert not out.exists()
