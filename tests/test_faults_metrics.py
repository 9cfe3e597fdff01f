"Captions in any language, and few pictures: what can be measured is, the rest says why not."
import json
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import nltk
import numpy as np
import pytest
import torch
from rouge_score import rouge_scorer

from t2igen.data.records import Record
from t2igen.data.stage import Pictures
from t2igen.gallery.captions import combinations, describe
from t2igen.metrics import captions, models
from t2igen.metrics.attributes import NO_ATTRIBUTES
from t2igen.metrics.captions import bleu, rouge, text_figures, why_no_wordnet, words
from t2igen.metrics.judges import Judges
from t2igen.metrics.matching import SAME_CAPTION, mismatched
from t2igen.metrics.memory import MEMORY
from t2igen.metrics.pictures import lpips_distance, why_lpips_fails
from t2igen.metrics.samples import SAMPLE_FIGURES
from t2igen.metrics.stage import all_figures
from t2igen.metrics.statistics import bootstrap, split_missing
from t2igen.metrics.tables import (
    blip_table,
    classifier_table,
    matching_table,
    memory_table,
    prior_table,
    probe_table,
    sample_table,
    vqvae_table,
)

LANGUAGES = {
    "de": "Ein grünes Schiff fährt über das Meer",
    "fr": "Un château brûlé à l'été, près d'une forêt",
    "ru": "Красный корабль в бурю ночью",
    "zh": "一只红色的船在暴风雨中。",
    "ja": "嵐の中の赤い船、スーパー",
    "th": "เรือสีแดงในพายุยามค่ำคืน",
    "lo": "ເຮືອສີແດງ",
    "km": "ទូកក្រហម",
    "my": "သင်္ဘောအနီ",
    "hi": "तूफ़ान में एक लाल जहाज़ है",
    "ar": "سفينة حمراء في العاصفة لَيْلًا",
    "ko": "폭풍 속의 빨간 배 하나",
    "emoji": "🚢 🌊 👩‍🚀 ❤️ 👍🏽",
}


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_text_is_itself_in_any_script(language, form):
    text = LANGUAGES[language]
    written = unicodedata.normalize(form, text)
    assert bleu([written], [text]) == 1
    for spoken in ("en", language):
        found = rouge([written], [text], spoken)
        assert found["rouge1"][0] == found["rougeL"][0] == 1


def test_words_of_scripts():
    assert words("红色的船") == list("红色的船")
    assert words("एक लाल जहाज़") == ["एक", "लाल", "जहाज़"]
    assert words("เรือ") == ["เ", "รื", "อ"]
    assert words("👩‍🚀 ❤️!") == ["👩‍🚀", "❤️", "!"]
    assert rouge(["蓝船"], ["红船"], "zh")["rouge1"][0] == 0.5


def test_english_figures_are_rouge_scores_own():
    "Also with digits, punctuation and underscores, and with nothing to say."
    rng = np.random.default_rng(0)
    texts = [describe(a) for a in list(combinations())[:60]]
    alphabet = np.array(list("abcxyzABC0123456789_-.,'!?#/  \t"))
    for _ in range(300):
        texts.append("".join(rng.choice(alphabet, rng.integers(1, 40))))
    texts += ["ships sailing 42nd", "", "...", "it's snake_case -- ponies"]
    others = [texts[k] for k in rng.permutation(len(texts))]
    scorer = rouge_scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    ours = rouge(texts, others)
    for k, (said, meant) in enumerate(zip(texts, others)):
        theirs = scorer.score(meant, said)
        for kind in ours:
            assert ours[kind][k] == theirs[kind].fmeasure


def test_meteor_is_for_english_only():
    german = [LANGUAGES["de"]]*2
    found = text_figures(german, german, bootstrap, "de")
    why = "METEOR's synonyms and stems are English; the captions are in de"
    assert found["meteor"] == found["meteor_exact_stem"] == why
    assert found["bleu"]["value"] == found["rougeL"]["value"] == 1
    for language in ("", "en", "en-GB"):
        assert text_figures(german, german, bootstrap, language)["meteor_exact_stem"]["value"] > 0.9


def test_mismatched_does_what_it_can():
    texts = list("aaaab")
    order = mismatched(texts)
    assert all(texts[i] != texts[j] for i, j in enumerate(order))


def test_a_damaged_lpips_file_is_named(tmp_path):
    path = tmp_path / "alex.pth"
    torch.save({"features.0.weight": torch.zeros(2)}, path)
    whole = path.read_bytes()
    for content in (b"", whole[:len(whole)//2], whole, b"<html>not found</html>"):
        path.write_bytes(content)
        why = why_lpips_fails(weights=path)
        assert str(path) in why and "\n" not in why
        with pytest.raises(Exception, match="does not hold the LPIPS"):
            lpips_distance(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64), weights=path)
    judges = Judges(Pictures([], np.zeros((0, 8, 8, 3), np.uint8)), None, None, None,
                    SimpleNamespace(names=[]), None, None, lpips_weights=str(path))
    assert str(path) in judges.why_no_lpips


@pytest.fixture
def no_wordnet(tmp_path, monkeypatch):
    "A folder of nltk data with nothing in it, and a fresh reader of it."
    from nltk.corpus.reader.wordnet import WordNetCorpusReader
    from nltk.corpus.util import LazyCorpusLoader
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    omw = LazyCorpusLoader("omw-1.4", WordNetCorpusReader)
    fresh = LazyCorpusLoader("wordnet", WordNetCorpusReader, omw)
    monkeypatch.setattr(captions, "wordnet", fresh)
    (tmp_path / "corpora").mkdir()
    return tmp_path / "corpora"


@pytest.mark.parametrize("content", [b"", b"PK\3\4 cut off here"])
def test_a_damaged_wordnet_is_named(no_wordnet, content):
    path = no_wordnet / "wordnet.zip"
    path.write_bytes(content)
    said = ["a red ship"]*3
    found = text_figures(said, said, bootstrap)
    assert str(path) in found["meteor"] and "\n" not in found["meteor"]
    assert found["meteor_exact_stem"]["value"] > 0.9 and found["rouge1"]["value"] == 1


def test_no_wordnet_is_said(no_wordnet):
    assert "is missing" in why_no_wordnet()


class Sees:
    "A BLIP and a captioner that see mean colors and read letters."

    def embed_images(self, pixels):
        return torch.nn.functional.normalize(pixels.mean((2, 3)) + 1.5, dim=1)

    def embed_texts(self, texts):
        rows = [[1.0, text.count("e"), text.count("a")] for text in texts]
        return SimpleNamespace(pooled=torch.nn.functional.normalize(torch.tensor(rows), dim=1))

    def match(self, pixels, texts):
        return (self.embed_images(pixels)*self.embed_texts(texts).pooled).sum(1).clamp(0, 1)

    def caption(self, pixels):
        return ["a ship"]*len(pixels)


class Store:
    "Codes that are the rows' numbers."
    meta = {"codebook_size": 8}

    def __init__(self, names):
        self.names = names

    def __getitem__(self, rows):
        top = torch.tensor(rows)[:, None, None] % 8
        return {"top": top.expand(-1, 2, 2), "bottom": top.expand(-1, 4, 4)}


class Blurred(Judges):
    "Judges whose VQ-VAE gives gray pictures."

    def decode(self, positions):
        return self.data.pixels(positions)*0.5


class Says:
    "An attribute classifier of one answer."
    values = {"color": ["blue", "red"]}

    def predict(self, pixels):
        return [{"color": "red"}]*len(pixels)


def world(texts, splits, attributes=True, **kwargs):
    "Judges of tiny fakes, and the samples of their test pictures."
    rng = np.random.default_rng(0)
    records = []
    for i, (text, split) in enumerate(zip(texts, splits)):
        named = {"color": "red" if i % 2 else "blue"} if attributes else {}
        records.append(Record(id=str(i), image="p", text=text, split=split, attributes=named))
    images = rng.integers(0, 256, (len(records), 32, 32, 3), dtype=np.uint8)
    vqvae = SimpleNamespace(codebook_size=8)
    level = SimpleNamespace(length=4, exact=True)
    prior = SimpleNamespace(top=level, bottom=level)
    judges = Blurred(
        Pictures(records, images), Sees(), Sees(), vqvae, Store([r.id for r in records]), prior,
        Says() if attributes else None, dataset="folder", n_resamples=20, **kwargs)
    metadata = []
    for record in records:
        if record.split != "train":
            metadata.append(dict(
                record=record.id, prompt=record.text, split=record.split, use="metrics"))
    rows = rng.integers(0, 8, (len(metadata), 20), dtype=np.uint8)
    return judges, metadata, images[:len(metadata)], rows


@pytest.fixture(autouse=True)
def fake_models(monkeypatch):
    "Bits and vectors without a prior and a VQ-VAE."

    def bits(prior, store, data, indices, with_text):
        return {"top": np.ones(len(indices)), "bottom": np.ones(len(indices))}

    monkeypatch.setattr(models, "bits_per_code", bits)
    monkeypatch.setattr(models, "code_vectors", lambda model, top, bottom: top.flatten(1).numpy())


def same_shape(tree, keys) -> bool:
    "Whether a tree has all keys of another."
    if not isinstance(keys, dict):
        return True
    return set(keys) <= set(tree) and all(same_shape(tree[k], keys[k]) for k in keys)


def measured(judges, *samples) -> tuple[dict, dict]:
    "The figures as metrics.json has them, and the reasons; tables can be made of them."
    figures, reasons = split_missing(all_figures(judges, *samples))
    json.dumps(figures, allow_nan=False)
    for split in ("seen", "unseen"):
        assert same_shape(figures["generated"][split], SAMPLE_FIGURES["generated"])
    assert same_shape(figures["memory"], MEMORY)
    metrics = {**figures, "talk": {"blip": {"similarity": {"positive": {"std": 0.0}}}}}
    for table in (sample_table, vqvae_table, matching_table, blip_table, prior_table, memory_table,
                  classifier_table, probe_table):
        table(metrics)
    for reason in reasons.values():
        assert reason and "\n" not in reason
        assert "it could not be measured" not in reason, reason
    return figures, reasons


CAPTIONS = ["a red ship at sea", "two pears here", "a cow asleep", "a green tree"]
WORLDS = {
    "one caption": (["a red ship at sea"]*8, 4),
    "one caption, one other": (["a red ship at sea"]*7 + ["a cow"], 4),
    "one word": (["ship", "cow", "pear", "tree"]*2, 4),
    "two test pictures": (CAPTIONS*2, 6),
    "one test picture": (CAPTIONS*2, 7),
    "no caption twice": ([f"ship number {i}" for i in range(8)], 4),
    "German": (["ein rotes Schiff", "zwei grüne Äpfel"]*4, 4),
    "Chinese": (["红色的船", "一只牛"]*4, 4),
}


FOREIGN = (               # what needs the caption of another picture
    "controls.shuffled_prompts.bleu", "blip.accuracy", "blip.similarity.negative.std",
    "blip.retrieval.text_to_image.r1", "blip.baseline.captions.rouge1")


@pytest.mark.parametrize("attributes", [True, False])
@pytest.mark.parametrize("name", WORLDS)
def test_few_pictures_are_measured_as_far_as_can_be(name, attributes):
    texts, train = WORLDS[name]
    splits = ["train"]*train + ["test_seen"]*(len(texts) - train)
    figures, reasons = measured(*world(texts, splits, attributes))
    seen = figures["generated"]["seen"]
    assert seen["bleu"]["n"] == len(texts) - train
    assert figures["vqvae"]["mse"]["value"] > 0 and figures["prior"]["bits_per_code"]["top"]
    assert figures["blip"]["recall"] and figures["memory"]["generated"]["copied"]["both"]
    assert "test_unseen" in reasons["vqvae.unseen.mse"]
    if not attributes:
        assert reasons["generated.seen.exact_match"] == NO_ATTRIBUTES
    if len(set(texts[train:])) == 1:
        for path in FOREIGN:
            assert reasons[path] == SAME_CAPTION
    else:
        assert figures["controls"]["shuffled_prompts"]["bleu"] and figures["blip"]["accuracy"]


def test_one_failing_figure_leaves_the_others(monkeypatch):
    "Whatever a library raises."

    def fails(self, *args):
        raise RuntimeError("no such kernel\nand more")

    judges, *samples = world(CAPTIONS*2, ["train"]*4 + ["test_seen"]*2 + ["test_unseen"]*2)
    monkeypatch.setattr(Sees, "match", fails)
    figures, reasons = split_missing(all_figures(judges, *samples))
    said = "it could not be measured (RuntimeError: no such kernel)"
    assert reasons["generated.seen.matching"] == reasons["blip.unseen.auroc"] == said
    assert figures["blip"]["captions"]["bleu"] and figures["blip"]["retrieval"]["text_to_image"]
    assert figures["generated"]["unseen"]["bleu"] and figures["vqvae"]["unseen"]["psnr"]


def test_a_classifier_that_cannot_be_trained_is_a_reason(monkeypatch, tmp_path):
    from t2igen.metrics import stage

    def fails(*args):
        raise KeyError("module name can't contain a dot")

    class Folder(type(Path())):
        "Stands in for a run."
        classifier = SimpleNamespace(train=None)
        cfg = SimpleNamespace(metrics=SimpleNamespace(classifier=classifier), seed=0)

        def fingerprint(self, stage):
            return ""

    records = [Record(id="a", image="p", text="x", attributes={"a.b": "c"})]
    monkeypatch.setattr(stage, "train_classifier", fails)
    why = stage._train_judge(Folder(tmp_path), Pictures(records, None), "attributes")
    assert "could not be trained (KeyError" in why
