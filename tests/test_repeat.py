"Another seed gives other pictures, and a sample is what its line says; that whole runs repeat is seen in test_resume."
from t2igen.core import Run, load_config
from t2igen.data import read_records
from t2igen.sampling import load_generator, load_samples

def test_another_seed_other_pictures(tiny, tmp_path):
    from t2igen.data import make_data
    other = Run(tmp_path/"other", load_config("tiny", {"seed": 1}))
    make_data(other)
    images = {name: {r.image for r in read_records(run/"data"/"records.jsonl")} for name, run in (("first", Run.open(tiny)), ("other", other))}
    assert not images["first"] & images["other"]

def test_a_sample_is_what_its_line_says(tiny):
    run = Run.open(tiny)
    lines, pictures = load_samples(run)
    draw = load_generator(run)
    codes = [draw.codes([line["prompt"]], [line["seed"]], **{k: line[k] for k in ("temperature", "bottom_temperature", "top_k", "top_p", "guidance")}) for line in lines[:2]]
    assert codes[0][0].shape == (1, 8, 8) and codes[0][1].shape == (1, 16, 16)
    assert not all(a.equal(b) for a, b in zip(*codes))             # two prompts, two seeds: two grids
    assert len({p.tobytes() for p in pictures}) == len(pictures)   # no picture twice
