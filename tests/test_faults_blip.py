"Files and texts from anywhere: what BLIP and the trainings say of them, in one sentence each."
import json
import os
import pickle
import shutil
import unicodedata
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval

from t2igen.blip.dataset import tokenize_once
from t2igen.blip.embed import Blip
from t2igen.blip.matcher import Matcher
from t2igen.blip.models import small_config, small_processor
from t2igen.blip.pretrained import load_pretrained
from t2igen.blip.settings import BlipConfig
from t2igen.blip.tokenizer import count_cut, train_tokenizer
from t2igen.core.config import InputError, TrainConfig, is_whole_text, whole_text
from t2igen.gallery.scene import scene
from t2igen.training.checkpoint import Checkpoint, load_model, read_history, save_model
from t2igen.training.optim import Ema, make_optimizer
from t2igen.training.weights import read_weights
from t2igen.vqvae.shared_layout import import_shared

WORLD = [
    "Ein Schiff in der Nähe, früh – groß und schön",
    "L'été à Noël : « déjà ! » (1642)",
    "Натюрморт: ёлка, чайник и ещё йод",
    "一艘红船,在2020年。红 ship",
    "日本の船が、ガラスの「海」に",
    "เรือสีแดงในทะเล",
    "लाल जहाज़ समुद्र में।",
    "배가 바다에 있다",
    "a 🚢 and 👩‍🎨 on a ❤️ day",
    'a "red" ship - or two, well-known 3,5 m; it\'s do not (sic) 50% #1',
    "Cafe\u0301 with\u00a0 wide   space",
]


def written(text: str) -> str:
    "As a caption comes back: lower case, composed, single spaces."
    return " ".join(unicodedata.normalize("NFC", text.lower()).split())


@pytest.fixture(scope="module")
def world():
    "A tokenizer of many languages."
    return train_tokenizer(WORLD, 200)


@pytest.mark.parametrize("text", WORLD)
def test_a_caption_comes_back(world, text):
    ids = world(text)["input_ids"]
    assert world.unk_token_id not in ids
    assert world.decode(ids, skip_special_tokens=True) == written(text)


def test_scripts_without_spaces_are_read_by_character(world):
    assert world.tokenize("一艘红船") == list("一艘红船")
    assert len(world.tokenize("เรือ")) == 4
    other = world("Nahe")["input_ids"]
    assert world("Nähe")["input_ids"] != other and world("früh")["input_ids"] != other


def test_english_keeps_its_vocabulary():
    "Words, letters and their numbers as BERT's splitting had them; unknown accents are dropped."
    captions = [text for i in range(60) for text in (scene(i).text, scene(i).title)]
    tokenizer = train_tokenizer(captions, 32)
    first = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)[:44]
    letters = "0123456789abcdefghijklmnopqrstuvwxyz"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
    assert first == [*special, *letters, "##0", "##1"]
    assert tokenizer("Café")["input_ids"] == tokenizer("cafe")["input_ids"]
    for caption in captions:
        ids = tokenizer(caption)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == caption.lower()


HALF = "a ship \ud83d at sea"


def one_sentence(error) -> str:
    "What an `InputError` says, checked to be one line without foreign advice."
    said = str(error.value)
    assert "\n" not in said and "weights_only" not in said and len(said) < 800, said
    return said


def test_half_a_character_is_told(folders):
    assert whole_text(HALF) == "a ship \ufffd at sea" and not is_whole_text(HALF)
    model, processor = load_pretrained(BlipForImageTextRetrieval, str(folders/"matching"))
    blip = Blip(Matcher(model), processor, 12)
    pixels = torch.zeros(2, 3, 64, 64)
    for use in (
        lambda: train_tokenizer(["a", HALF], 12),
        lambda: count_cut(processor.tokenizer, ["a", HALF], 12),
        lambda: tokenize_once(processor.tokenizer, ["a", HALF], 12),
        lambda: blip.tokenize(["a", HALF]),
        lambda: blip.embed_texts(["a", HALF]),
        lambda: blip.match(pixels, ["a", HALF]),
    ):
        with pytest.raises(InputError, match="half of a character") as e:
            use()
        assert "Text 2 of 2" in one_sentence(e)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    "A matching and a captioning model."
    out = tmp_path_factory.mktemp("blip")
    tokenizer = train_tokenizer(["a red ship in a storm", "a blue ship at sunset"], 12)
    cfg = BlipConfig(hidden=32, vision_layers=1, text_layers=1, heads=2, patch=16, embed_dim=16)
    kinds = {"matching": BlipForImageTextRetrieval, "captioning": BlipForConditionalGeneration}
    for name, cls in kinds.items():
        cls(small_config(cfg, 64, tokenizer)).save_pretrained(out/name)
        small_processor(64, tokenizer).save_pretrained(out/name)
    return out


def change(path, **new):
    "Set keys of a JSON file; `text_config__x` is `x` of `text_config`."
    values = json.loads(path.read_text(encoding="utf-8"))
    for key, value in new.items():
        *parents, last = key.split("__")
        part = values
        for name in parents:
            part = part[name]
        part[last] = value
    path.write_text(json.dumps(values), encoding="utf-8")


def index(folder, name):
    "An index that names `name` instead of the weights."
    weights = {"weight_map": {"vision_proj.weight": name}}
    file = folder/"model.safetensors.index.json"
    file.write_text(json.dumps(weights), encoding="utf-8")
    (folder/"model.safetensors").unlink()


def cut(path, n=60):
    "Cut off the end of a file."
    path.write_bytes(path.read_bytes()[:-n])


def pickled(folder):
    "Weights as a pickle only."
    (folder/"model.safetensors").unlink()
    torch.save({}, folder/"pytorch_model.bin")


CODE = {"AutoTokenizer": ["mine.Mine", None], "AutoModel": "mine.Mine"}
PADDING = {"strategy": {"Fixed": 10**12}, "direction": "Right", "pad_to_multiple_of": None,
           "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
REGEX = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}
BAD_FOLDERS = {
    "code in config.json": (
        lambda f: change(f/"config.json", auto_map=CODE), ["config.json", "custom code"]),
    "code in tokenizer_config.json": (
        lambda f: change(f/"tokenizer_config.json", auto_map=CODE),
        ["tokenizer_config.json", "custom code"]),
    "code in processor_config.json": (
        lambda f: change(f/"processor_config.json", image_processor__auto_map=CODE),
        ["processor_config.json", "custom code"]),
    "a class of its own": (
        lambda f: change(f/"tokenizer_config.json", tokenizer_class="MineTokenizer"),
        ["custom class 'MineTokenizer'"]),
    "a Python file": (
        lambda f: change(f/"config.json", code="mine.py"), ["Python file"]),
    "an index of pickles": (lambda f: index(f, "model.bin"), ["index.json", "model.bin"]),
    "an index of elsewhere": (
        lambda f: index(f, "../matching/model.safetensors"), ["index.json", "same folder"]),
    "an index of the root": (
        lambda f: index(f, "/model.safetensors"), ["index.json", "same folder"]),
    "a pickle": (pickled, ["pytorch_model.bin", "could run code"]),
    "no heads": (
        lambda f: change(f/"config.json", text_config__num_attention_heads=0),
        ["config.json", "num_attention_heads"]),
    "heads that do not fit": (
        lambda f: change(f/"config.json", vision_config__num_attention_heads=3),
        ["config.json", "vision_config.hidden_size=32 is not divisible"]),
    "a text as width": (
        lambda f: change(f/"config.json", text_config__hidden_size="x"), ["config.json"]),
    "a huge model": (
        lambda f: change(f/"config.json", text_config__vocab_size=2**24,
                         text_config__hidden_size=2**12), ["config.json", "GiB"]),
    "a list for settings": (
        lambda f: (f/"config.json").write_text("[1]"), ["config.json", "not a list"]),
    "long numbers": (
        lambda f: (f/"config.json").write_text('{"a": ' + "9"*5000 + "}"),
        ["config.json", "not valid JSON"]),
    "deep settings": (
        lambda f: (f/"config.json").write_text("["*100_000), ["config.json", "not valid JSON"]),
    "deep tokenizer": (
        lambda f: (f/"tokenizer.json").write_text('{"a":'*100_000),
        ["tokenizer.json", "not valid JSON"]),
    "half a tokenizer": (lambda f: cut(f/"tokenizer.json"), ["tokenizer.json"]),
    "a tokenizer of a list": (
        lambda f: (f/"tokenizer.json").write_text("[]"), ["tokenizer.json", "not whole"]),
    "a regex without end": (
        lambda f: change(f/"tokenizer.json", normalizer=REGEX), ["tokenizer.json", "Regex"]),
    "a tokenizer of others": (
        lambda f: change(f/"config.json", text_config__bos_token_id=500), ["number 500"]),
    "a pipe for weights": (
        lambda f: [(f/"model.safetensors").unlink(), os.mkfifo(f/"model.safetensors")],
        ["model.safetensors is a folder, a pipe"]),
    "a pipe for words": (lambda f: os.mkfifo(f/"vocab.txt"), ["vocab.txt is a folder, a pipe"]),
    "texts without end": (
        lambda f: change(f/"tokenizer.json", padding=PADDING), ["tokenizer.json", "padding"]),
    "weights of another config": (
        lambda f: (f/"config.json").unlink(), ["other shapes than config.json says"]),
    "half the weights": (lambda f: cut(f/"model.safetensors"), ["model.safetensors"]),
    "no weights": (lambda f: (f/"model.safetensors").write_bytes(b""), ["model.safetensors"]),
    "pictures without height": (
        lambda f: change(f/"processor_config.json", image_processor__size={"shortest_edge": 64}),
        ["processor_config.json"]),
    "no spread": (
        lambda f: change(f/"processor_config.json", image_processor__image_std=[0, 0, 0]),
        ["image_std"]),
}


@pytest.mark.timeout(60)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="makes a pipe")
@pytest.mark.parametrize("what", BAD_FOLDERS)
def test_a_folder_that_is_no_blip_is_told(folders, tmp_path, monkeypatch, capfd, what):
    spoil, words = BAD_FOLDERS[what]
    folder = tmp_path/"model"
    shutil.copytree(folders/"matching", folder)
    (folder/"mine.py").write_text(f"open({str(tmp_path/'ran')!r}, 'w')\n", encoding="utf-8")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    spoil(folder)
    with pytest.raises(InputError) as e:
        load_pretrained(BlipForImageTextRetrieval, str(folder))
    said = one_sentence(e)
    assert all(word in said for word in words), said
    assert not (tmp_path/"ran").exists()
    assert "panicked" not in capfd.readouterr().err


class Runs:
    "A pickle that writes a file when it is loaded."

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.timeout(60)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="makes a pipe")
def test_weights_that_are_none_are_told(tmp_path):
    deep = []
    for _ in range(150):
        deep = [deep]
    values = {
        "code": {"w": Runs(tmp_path/"ran")},
        "list": [torch.ones(2)],
        "number": 3,
        "deep": deep,
        "texts": {"w": "text"},
        "numbers for names": {3: torch.ones(2)},
        "stride 0": {"w": torch.ones(1).expand(1200, 1000, 1000)},
        "overlapping": {"w": torch.ones(99).as_strided((50, 50), (1, 1))},
        "sparse": {"w": torch.eye(3).to_sparse()},
        "meta": {"w": torch.empty(3, device="meta")},
    }
    for name, value in values.items():
        torch.save(value, tmp_path/f"{name}.pt")
    with open(tmp_path/"plain pickle.bin", "wb") as f:
        pickle.dump({"w": Runs(tmp_path/"ran")}, f)
    (tmp_path/"empty.pt").write_bytes(b"")
    save_file({"w": torch.ones(99)}, tmp_path/"cut.safetensors")
    cut(tmp_path/"cut.safetensors")
    os.mkfifo(tmp_path/"pipe.pt")
    os.mkfifo(tmp_path/"pipe.safetensors")
    for path in [*tmp_path.iterdir(), tmp_path/"none.pt", tmp_path]:
        for read in (read_weights, import_shared):
            with pytest.raises(InputError) as e:
                read(path)
            assert str(path) in one_sentence(e)
    assert not (tmp_path/"ran").exists()


def test_a_shared_file_of_wrong_shapes_takes_no_memory(tmp_path):
    huge = torch.empty(10**9, 0)
    names = ("enc_b.blocks.4.weight", "enc_b.blocks.5.conv.1.weight")
    state = {name: huge for name in names}
    for level in ("quantize_t", "quantize_b"):
        for part in ("embed", "embed_avg", "cluster_size"):
            state[f"{level}.{part}"] = huge
    torch.save(state, tmp_path/"huge.pt")
    with pytest.raises(InputError, match="not in the VQ-VAE-2 layout") as e:
        import_shared(tmp_path/"huge.pt")
    one_sentence(e)


class Layer(nn.Linear):
    "A model with settings."

    def __init__(self, n):
        super().__init__(n, n)
        self.config = dict(n=n)


BAD_CONFIGS = ["[1]", "3", "{}", '{"n": 0}', '{"n": "x"}', '{"n": 9}', '{"n": 1000000000}',
               '{"n": 1e400}', '{"n": ' + "9"*5000 + "}", "["*100_000, "{"]


@pytest.mark.parametrize("text", BAD_CONFIGS, ids=range(len(BAD_CONFIGS)))
def test_a_trained_model_that_does_not_fit_is_told(tmp_path, text):
    save_model(tmp_path, Layer(3))
    assert isinstance(load_model(tmp_path, Layer), Layer)
    (tmp_path/"config.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as e:
        load_model(tmp_path, Layer)
    assert str(tmp_path) in one_sentence(e)


def training():
    "A model, its average and its optimizer."
    model = Layer(2)
    return model, Ema(model, 0.9), make_optimizer(model, TrainConfig(muon=0.02))


def spoilt(**new):
    "A checkpoint of the key `k` with other contents."
    def spoil(path):
        state = torch.load(path, weights_only=True)
        torch.save(state | new, path)
    return spoil


BAD_CHECKPOINTS = {
    "rubbish": lambda p: p.write_bytes(b"rubbish"),
    "empty": lambda p: p.write_bytes(b""),
    "cut": lambda p: cut(p, 600),
    "list": lambda p: torch.save([1], p),
    "code": lambda p: torch.save({"key": "k", "step": Runs(p.parent/"ran")}, p),
    "no step": spoilt(step=None),
    "no model": spoilt(model=3),
    "another model": spoilt(model=Layer(3).state_dict()),
    "half an average": spoilt(ema={"weight": torch.ones(2, 2)}),
    "no optimizer": spoilt(optimizer={}),
    "another optimizer": spoilt(optimizer=torch.optim.SGD(Layer(3).parameters()).state_dict()),
    "no history": spoilt(history=7),
}


@pytest.mark.parametrize("what", BAD_CHECKPOINTS)
def test_a_checkpoint_that_does_not_fit_starts_over(tmp_path, capsys, what):
    path = tmp_path/"toy_checkpoint.pt"
    checkpoint = Checkpoint(path, "k")
    state = training()
    checkpoint.save(7, *state, [{"step": 7}])
    BAD_CHECKPOINTS[what](path)
    model, ema, optimizer = training()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    assert checkpoint.load(model, ema, optimizer) == (0, [])
    assert all(before[name].equal(weight) for name, weight in model.state_dict().items())
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "training starts over" in said
    assert not optimizer.state and not (tmp_path/"ran").exists()


def test_a_history_that_is_none_is_told(tmp_path):
    for text in (b"step\nx\n", b"step\n1,2,3\n", b"\xff\xfe", b'a"\0\n"\n'):
        (tmp_path/"history.csv").write_bytes(text)
        with pytest.raises(InputError, match="not a table of numbers"):
            read_history(tmp_path/"history.csv")
    with pytest.raises(InputError, match="Cannot read"):
        read_history(tmp_path/"none.csv")
