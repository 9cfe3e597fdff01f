"Our figures against the field's own tools."
import math

import numpy as np
import pytest
import torch
from nltk.translate.meteor_score import meteor_score
from rouge_score import rouge_scorer
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from sklearn import metrics as sk

from t2igen.core.config import InputError
from t2igen.data.pixels import mse, psnr
from t2igen.gallery.captions import combinations, describe
from t2igen.metrics.captions import (
    bleu,
    bleu_score,
    bleu_statistics,
    meteor,
    meteor_exact_stem,
    rouge,
    why_no_wordnet,
    words,
)
from t2igen.metrics.matching import matching_figures, mismatched, retrieval
from t2igen.metrics.pictures import lpips_distance, ssim
from t2igen.metrics.sets import frechet_distance, in_manifold
from t2igen.metrics.statistics import bootstrap, resample_counts
from t2igen.vqvae.perceptual import BACKBONES, why_no_lpips

TEXTS = [describe(a) for a in combinations()]
STRAY = ["red", "ships", "a", "stormy", "tables"]


@pytest.fixture
def captions():
    "60 references and hypotheses in which words were dropped, swapped and replaced."
    rng = np.random.default_rng(0)
    references = [TEXTS[i] for i in rng.choice(len(TEXTS), 60)]

    def spoil(text):
        parts = text.split()
        for _ in range(rng.integers(0, 5)):
            parts[rng.integers(len(parts))] = rng.choice(STRAY)
        if rng.random() < 0.5:
            del parts[rng.integers(len(parts))]
        return " ".join(parts)

    return [spoil(r) for r in references], references


@pytest.fixture
def pictures():
    g = torch.Generator().manual_seed(0)
    a = torch.rand(4, 3, 64, 64, generator=g)*2 - 1
    return a, (a + 0.2*torch.randn(a.shape, generator=g)).clamp(-1, 1)


def tokens(texts) -> list[str]:
    return [" ".join(words(text)) for text in texts]


def sacrebleu_of(hypotheses, references) -> float:
    import sacrebleu
    found = sacrebleu.corpus_bleu(
        tokens(hypotheses), [tokens(references)], tokenize="none", smooth_method="exp", force=True)
    return found.score/100


@pytest.mark.parametrize("n", [1, 3, 60])
def test_bleu_is_sacrebleus(captions, n):
    hypotheses, references = (c[:n] for c in captions)
    theirs = sacrebleu_of(hypotheses, references)
    assert math.isclose(bleu(hypotheses, references), theirs, abs_tol=1e-9)


EDGES = [
    ("a red cow", "a red cow in a pen"),
    ("one two three four five", "one x three y five"),
    ("Nothing, in common here!", "all else differs"),
    ("a", "a"),
    ("the the the the the", "the cat"),
]


@pytest.mark.parametrize("said, meant", EDGES)
def test_bleu_edge_cases_are_sacrebleus(said, meant):
    assert math.isclose(bleu([said], [meant]), sacrebleu_of([said], [meant]), abs_tol=1e-9)


def test_bleu_bootstrap_is_that_of_resampled_captions(captions):
    "A resample by sums of statistics equals BLEU of the captions drawn."
    rows = bleu_statistics(*captions)
    for draw in resample_counts(60, 5, 0).astype(int):
        hypotheses, references = (np.repeat(texts, draw).tolist() for texts in captions)
        assert math.isclose(bleu_score(draw @ rows), bleu(hypotheses, references), abs_tol=1e-12)


def test_rouge_is_rouge_scores(captions):
    ours = rouge(*captions)
    scorer = rouge_scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    for i, (said, meant) in enumerate(zip(*captions)):
        theirs = scorer.score(meant, said)
        for kind in ours:
            assert ours[kind][i] == theirs[kind].fmeasure


class Empty:
    "A WordNet without words."

    def synsets(self, word):
        return []


def meteor_of(captions, **wordnet) -> list[float]:
    return [meteor_score([words(r)], words(h), **wordnet) for h, r in zip(*captions)]


def test_meteor_is_nltks(captions):
    assert np.allclose(meteor_exact_stem(*captions), meteor_of(captions, wordnet=Empty()))
    if why_no_wordnet():
        assert meteor(*captions) is None
    else:
        assert np.allclose(meteor(*captions), meteor_of(captions))


def test_pictures_are_scikit_images(pictures):
    ours = ssim(*pictures)
    loud = psnr(*pictures)
    for i in range(4):
        x, y = (t[i].permute(1, 2, 0).double().numpy() for t in pictures)
        theirs = structural_similarity(x, y, channel_axis=2, data_range=2)
        assert math.isclose(ours[i], theirs, abs_tol=1e-9)
        assert math.isclose(loud[i], peak_signal_noise_ratio(x, y, data_range=2), abs_tol=1e-9)
    assert math.isclose(10*math.log10(4/0.008), 26.99, abs_tol=0.01)  # the 27 dB / 0.008


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_lpips_is_the_packages(pictures, net, tmp_path, monkeypatch):
    "With (random) weights in torch hub's cache, and with the same weights as a file."
    import lpips
    from torchvision import models
    torch.manual_seed(0)
    build = {"alex": models.alexnet, "squeeze": models.squeezenet1_1}[net]
    backbone = build(weights=None)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert lpips_distance(*pictures, net=net) is None and BACKBONES[net] in why_no_lpips(net)
    path = tmp_path / "checkpoints" / BACKBONES[net]
    path.parent.mkdir()
    torch.save(backbone.state_dict(), path)
    assert not why_no_lpips(net)
    with pytest.warns(UserWarning):
        model = lpips.LPIPS(net=net, verbose=False)
    theirs = model(*pictures).flatten().detach().numpy()
    assert np.allclose(lpips_distance(*pictures, net=net), theirs, atol=1e-6)
    other = path.rename(tmp_path / "mine.pth")
    assert np.allclose(lpips_distance(*pictures, net=net, weights=other), theirs, atol=1e-6)


def test_matching_is_scikit_learns():
    rng = np.random.default_rng(0)
    positive = rng.beta(4, 2, 80).round(2)
    negative = rng.beta(2, 4, 80).round(2)
    labels = np.repeat([1, 0], 80)
    scores = np.concatenate([positive, negative])
    yes = scores >= 0.5
    theirs = dict(
        accuracy=sk.accuracy_score(labels, yes), precision=sk.precision_score(labels, yes),
        recall=sk.recall_score(labels, yes), f1=sk.f1_score(labels, yes),
        auroc=sk.roc_auc_score(labels, scores))
    ours = matching_figures(positive, negative)
    for name, value in theirs.items():
        assert math.isclose(ours[name]["value"], value, abs_tol=1e-6), name
        assert ours[name]["low"] <= value <= ours[name]["high"] and ours[name]["n"] == 80


def test_a_judge_that_always_says_yes_is_found_out():
    figures = matching_figures(np.ones(20), np.ones(20))
    assert figures["recall"]["value"] == 1
    assert figures["accuracy"]["value"] == 0.5 and figures["auroc"]["value"] == 0.5


def frechet_by_root(a, b) -> float:
    "The formula as it is printed, with scipy's root of a matrix."
    from scipy.linalg import sqrtm
    ca = np.cov(a.T)
    cb = np.cov(b.T)
    between = np.square(a.mean(0) - b.mean(0)).sum()
    return between + np.trace(ca + cb - 2*sqrtm(ca @ cb).real)


def test_frechet_distance_is_the_formula():
    "Against the matrix root of scipy, with more and with fewer pictures than features."
    rng = np.random.default_rng(0)
    for n, size in ((60, 8), (300, 12)):
        a = rng.normal(size=(n, size)) @ rng.normal(size=(size, size))
        b = rng.normal(0.5, 2, (n + 20, size))
        assert math.isclose(frechet_distance(a, b), frechet_by_root(a, b), rel_tol=1e-6)
    few = rng.normal(size=(5, 30))
    assert frechet_distance(few, few) < 1e-9
    assert math.isclose(frechet_distance(few, few + 1), 30, rel_tol=1e-9)


def test_manifold_is_scikit_learns_neighbours():
    from sklearn.neighbors import NearestNeighbors
    rng = np.random.default_rng(0)
    real = rng.normal(size=(80, 4))
    drawn = rng.normal(0.7, 0.6, (90, 4))
    radius = NearestNeighbors(n_neighbors=4).fit(real).kneighbors(real)[0][:, 3]
    theirs = [bool((np.linalg.norm(x - real, axis=1) <= radius).any()) for x in drawn]
    assert in_manifold(drawn, real).tolist() == theirs and 0 < np.mean(theirs) < 1


def test_bootstrap_covers_the_truth():
    "The 95 % interval of a mean of 50 draws contains the true mean about as often as it says."
    rng = np.random.default_rng(0)
    figures = [bootstrap(rng.random(50) < 0.3, 400) for _ in range(300)]
    inside = [f["low"] <= 0.3 <= f["high"] for f in figures]
    assert 0.90 <= np.mean(inside) <= 0.98


def test_mismatched_gives_nobody_its_own_text():
    rng = np.random.default_rng(0)
    texts = [TEXTS[i] for i in rng.choice(40, 500)]
    order = mismatched(texts, 3)
    assert sorted(order) == list(range(500))
    assert not any(texts[i] == texts[j] for i, j in enumerate(order))
    assert (order == mismatched(texts, 3)).all()
    with pytest.raises(InputError):
        mismatched(["a", "a"])
    with pytest.raises(InputError):
        mismatched([])


def test_retrieval_does_not_punish_equal_captions():
    similarity = np.array([[1, 0.2], [0.9, 0.1], [0.3, 0.8]])
    assert all((r == 0).all() for r in retrieval(similarity, [0, 0, 1]).values())
    flat = retrieval(np.zeros((4, 4)), range(4))     # a model that knows nothing gets no credit
    assert all((r == 3).all() for r in flat.values())


BAD = [
    lambda: bleu([], []),
    lambda: rouge(["a"], ["a", "b"]),
    lambda: meteor_exact_stem("a", "a"),
    lambda: mse(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 9)),
    lambda: ssim(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)),
    lambda: why_no_lpips("resnet"),
    lambda: frechet_distance([[0]], [[1]]),
    lambda: in_manifold([[0]], [[1]]),
]


@pytest.mark.parametrize("call", BAD)
def test_bad_input_is_one_sentence(call):
    with pytest.raises(InputError) as e:
        call()
    assert "\n" not in str(e.value)
