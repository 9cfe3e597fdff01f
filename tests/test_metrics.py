"Our figures against the field's own tools, and metrics.json as a whole."
import math

import numpy as np, pytest, torch
from nltk.translate.meteor_score import meteor_score
from rouge_score import rouge_scorer
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from sklearn import metrics as sk

from t2igen import metrics as m
from t2igen.core import InputError
from t2igen.gallery import combinations, describe
from t2igen.vqvae import BACKBONES

TEXTS = [describe(a) for a in combinations()]


@pytest.fixture
def captions():
    "60 references and hypotheses in which words were dropped, swapped and replaced."
    rng = np.random.default_rng(0)
    references = [TEXTS[i] for i in rng.choice(len(TEXTS), 60)]
    def spoil(text):
        words = text.split()
        for _ in range(rng.integers(0, 5)): words[rng.integers(len(words))] = rng.choice(["red", "ships", "a", "stormy", "tables"])
        if rng.random() < 0.5: del words[rng.integers(len(words))]
        return " ".join(words)
    return [spoil(r) for r in references], references


@pytest.fixture
def pictures():
    g = torch.Generator().manual_seed(0)
    a = torch.rand(4, 3, 64, 64, generator=g)*2 - 1
    return a, (a + 0.2*torch.randn(a.shape, generator=g)).clamp(-1, 1)


def sacrebleu_of(hypotheses, references):
    import sacrebleu
    tokens = [[" ".join(m.words(t)) for t in ts] for ts in (hypotheses, references)]
    return sacrebleu.corpus_bleu(tokens[0], [tokens[1]], tokenize="none", smooth_method="exp", force=True).score/100


@pytest.mark.parametrize("n", [1, 3, 60])
def test_bleu_is_sacrebleus(captions, n):
    hypotheses, references = (c[:n] for c in captions)
    assert math.isclose(m.bleu(hypotheses, references), sacrebleu_of(hypotheses, references), abs_tol=1e-9)


@pytest.mark.parametrize("pair", [("a red cow", "a red cow in a pen"), ("one two three four five", "one x three y five"),
                                  ("Nothing, in common here!", "all else differs"), ("a", "a"), ("the the the the the", "the cat")])
def test_bleu_edge_cases_are_sacrebleus(pair):
    assert math.isclose(m.bleu([pair[0]], [pair[1]]), sacrebleu_of([pair[0]], [pair[1]]), abs_tol=1e-9)


def test_bleu_bootstrap_is_that_of_resampled_captions(captions):
    "A resample by sums of statistics equals BLEU of the captions drawn."
    rows, draws = m.bleu_statistics(*captions), m._resamples(60, 5, 0).astype(int)
    for draw in draws:
        hypotheses, references = ([t for t, k in zip(ts, draw) for _ in range(k)] for ts in captions)
        assert math.isclose(m.bleu_score(draw @ rows), m.bleu(hypotheses, references), abs_tol=1e-12)


def test_rouge_is_rouge_scores(captions):
    ours, scorer = m.rouge(*captions), rouge_scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    for i, (h, r) in enumerate(zip(*captions)):
        theirs = scorer.score(r, h)
        for k in ours: assert ours[k][i] == theirs[k].fmeasure


def test_meteor_is_nltks(captions):
    class Empty:
        def synsets(self, word): return []
    theirs = [meteor_score([m.words(r)], m.words(h), wordnet=Empty()) for h, r in zip(*captions)]
    assert np.allclose(m.meteor_exact_stem(*captions), theirs)
    if m.no_wordnet(): assert m.meteor(*captions) is None
    else: assert np.allclose(m.meteor(*captions), [meteor_score([m.words(r)], m.words(h)) for h, r in zip(*captions)])


def test_pictures_are_scikit_images(pictures):
    a, b = pictures
    for i in range(4):
        x, y = (t[i].permute(1, 2, 0).double().numpy() for t in pictures)
        assert math.isclose(m.ssim(a, b)[i], structural_similarity(x, y, channel_axis=2, data_range=2), abs_tol=1e-9)
        assert math.isclose(m.psnr(a, b)[i], peak_signal_noise_ratio(x, y, data_range=2), abs_tol=1e-9)
    assert math.isclose(10*math.log10(4/0.008), 26.99, abs_tol=0.01)       # the 27 dB / 0.008


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_lpips_is_the_packages(pictures, net, tmp_path, monkeypatch):
    "With (random) weights in torch hub's cache, and with the same weights as a file."
    import lpips
    from torchvision import models
    torch.manual_seed(0)
    backbone = {"alex": models.alexnet, "squeeze": models.squeezenet1_1}[net](weights=None)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert m.lpips_distance(*pictures, net=net) is None and BACKBONES[net] in m.no_lpips(net)
    path = tmp_path/"checkpoints"/BACKBONES[net]
    path.parent.mkdir()
    torch.save(backbone.state_dict(), path)
    assert not m.no_lpips(net)
    with pytest.warns(UserWarning): model = lpips.LPIPS(net=net, verbose=False)
    theirs = model(*pictures).flatten().detach().numpy()
    assert np.allclose(m.lpips_distance(*pictures, net=net), theirs, atol=1e-6)
    other = path.rename(tmp_path/"mine.pth")
    assert np.allclose(m.lpips_distance(*pictures, net=net, weights=other), theirs, atol=1e-6)


def test_matching_is_scikit_learns():
    rng = np.random.default_rng(0)
    positive, negative = rng.beta(4, 2, 80).round(2), rng.beta(2, 4, 80).round(2)
    labels, scores = np.repeat([1, 0], 80), np.concatenate([positive, negative])
    ours, yes = m.matching_figures(positive, negative), scores >= 0.5
    theirs = dict(accuracy=sk.accuracy_score(labels, yes), precision=sk.precision_score(labels, yes), recall=sk.recall_score(labels, yes),
                  f1=sk.f1_score(labels, yes), auroc=sk.roc_auc_score(labels, scores))
    for name, value in theirs.items():
        assert math.isclose(ours[name]["value"], value, abs_tol=1e-6), name
        assert ours[name]["low"] <= value <= ours[name]["high"] and ours[name]["n"] == 80


def test_a_judge_that_always_says_yes_is_found_out():
    figures = m.matching_figures(np.ones(20), np.ones(20))
    assert figures["recall"]["value"] == 1 and figures["accuracy"]["value"] == 0.5 and figures["auroc"]["value"] == 0.5


def test_frechet_distance_is_the_formula():
    "Against the matrix root of scipy, with more and with fewer pictures than features."
    from scipy.linalg import sqrtm
    rng = np.random.default_rng(0)
    for n, size in ((60, 8), (300, 12)):
        a, b = rng.normal(size=(n, size)) @ rng.normal(size=(size, size)), rng.normal(0.5, 2, (n + 20, size))
        ca, cb = np.cov(a.T), np.cov(b.T)
        theirs = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(ca + cb - 2*sqrtm(ca @ cb).real)
        assert math.isclose(m.frechet_distance(a, b), theirs, rel_tol=1e-6)
    few = rng.normal(size=(5, 30))
    assert m.frechet_distance(few, few) < 1e-9 and math.isclose(m.frechet_distance(few, few + 1), 30, rel_tol=1e-9)


def test_manifold_is_scikit_learns_neighbours():
    from sklearn.neighbors import NearestNeighbors
    rng = np.random.default_rng(0)
    real, drawn = rng.normal(size=(80, 4)), rng.normal(0.7, 0.6, (90, 4))
    radius = NearestNeighbors(n_neighbors=4).fit(real).kneighbors(real)[0][:, 3]
    theirs = [any(np.linalg.norm(x - r) <= d for r, d in zip(real, radius)) for x in drawn]
    assert m.in_manifold(drawn, real).tolist() == theirs and 0 < np.mean(theirs) < 1


def test_bootstrap_covers_the_truth():
    "The 95 % interval of a mean of 50 draws contains the true mean about as often as it says."
    rng = np.random.default_rng(0)
    inside = [f["low"] <= 0.3 <= f["high"] for f in (m.bootstrap(rng.random(50) < 0.3, 400) for _ in range(300))]
    assert 0.90 <= np.mean(inside) <= 0.98


def test_mismatched_gives_nobody_its_own_text():
    rng = np.random.default_rng(0)
    texts = [TEXTS[i] for i in rng.choice(40, 500)]
    order = m.mismatched(texts, 3)
    assert sorted(order) == list(range(500)) and not any(texts[i] == texts[j] for i, j in enumerate(order))
    assert (order == m.mismatched(texts, 3)).all()
    with pytest.raises(InputError): m.mismatched(["a", "a", "b"])
    with pytest.raises(InputError): m.mismatched([])


def test_retrieval_does_not_punish_equal_captions():
    similarity = np.array([[1, 0.2], [0.9, 0.1], [0.3, 0.8]])
    assert all((r == 0).all() for r in m.retrieval(similarity, [0, 0, 1]).values())
    flat = m.retrieval(np.zeros((4, 4)), range(4))                       # a model that knows nothing gets no credit for ties
    assert all((r == 3).all() for r in flat.values())


@pytest.mark.parametrize("call", [lambda: m.bleu([], []), lambda: m.rouge(["a"], ["a", "b"]), lambda: m.meteor_exact_stem("a", "a"),
                                  lambda: m.mse(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 9)), lambda: m.ssim(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)),
                                  lambda: m.no_lpips("resnet"), lambda: m.frechet_distance([[0]], [[1]]), lambda: m.in_manifold([[0]], [[1]])])
def test_bad_input_is_one_sentence(call):
    with pytest.raises(InputError) as e: call()
    assert "\n" not in str(e.value)
