"Every command that README, the pages and the chapters advise: it parses, and what it names exists."
import re
import shlex
import shutil
import sys

import pytest
import typer
import yaml
from conftest import ROOT

sys.path.insert(0, str(ROOT))

from docs import pages  # noqa: E402
from t2igen.cli.app import app  # noqa: E402
from t2igen.core.config import InputError, parse_overrides  # noqa: E402
from t2igen.settings import load_config  # noqa: E402

NAMED_BY_USERS = ("my/", "runs/", "models/", "musti", "vqvae2.pt", "train.json", "test.json")
TOOLS = {"t2igen", "make", "python", "pip", "papermill", "torchrun", "snakemake",
         ".venv/bin/jupyter", ".venv/bin/t2igen", ".venv/bin/nbdev_test"}
RUN = [     # on the tiny run: fast ones, as they stand on the pages
    'generate "a red ship in a storm at night" --run-dir runs/demo -n 4 -o ship.png',
    'generate "a red ship in a storm at night" --run-dir runs/demo --rerank 16 -n 4 -o ship.png',
    'generate "a red ship at sunset" --run-dir runs/demo --picture ship-1.png --redraw top '
    "-o new.png",
    "config", "config prior", "config prior.top --run-dir runs/demo", "notebooks my/notebooks",
    "verify runs/demo", "verify runs/demo --json", "doctor", "doctor --json",
    "codes info runs/demo/codes.lmdb", "codes verify runs/demo/codes.lmdb",
    "codes export runs/demo/codes.lmdb --out tables", "codes import tables --out mine.lmdb",
    "export-workflow --profile demo -p seed=0,1,2 --run-dir runs/seeds",
]


def blocks(text: str, language: str) -> list[str]:
    "The fenced blocks of a language."
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def texts() -> dict[str, str]:
    "The Markdown of README, CONTRIBUTING and every notebook."
    found = {name: (ROOT / name).read_text(encoding="utf-8")
             for name in ("README.md", "CONTRIBUTING.md")}
    for path in pages.notebooks():
        cells = pages.read(pages.NBS / path)["cells"]
        found[path] = "\n\n".join(
            pages.source(c) for c in cells if c["cell_type"] == "markdown")
    return found


def advised() -> list[tuple[str, str]]:
    "All commands in blocks of shell: (where, command)."
    found = []
    for path, text in texts().items():
        for block in blocks(text, "sh"):
            lines = block.replace("\\\n", " ").splitlines()
            found.extend((path, line) for line in lines if line.strip())
    return found


ADVISED = advised()


def parse(words: list[str]):
    "Parse a command of t2igen without running it: raises where an option or argument is wrong."
    command, name = typer.main.get_command(app), "t2igen"
    while getattr(command, "commands", None):
        assert words and words[0] in command.commands, f"there is no command {name} {words[:1]}"
        name, command, words = words[0], command.commands[words[0]], words[1:]
    return command.make_context(name, list(words))


def known_settings(params: dict):
    "The settings of a parsed command exist, and each of their values is one."
    profile = params.get("profile") or "demo"
    for given in params.get("set_") or params.get("grid") or []:
        key, _, values = given.partition("=")
        for value in values.split(","):
            load_config(profile, parse_overrides([f"{key}={value}"]))


@pytest.mark.parametrize("where, line", ADVISED, ids=lambda x: x.split("#")[0].strip()[:60])
def test_an_advised_command_exists(where, line):
    words = shlex.split(line, comments=True)
    while words and "=" in words[0]:
        words = words[1:]                                   # settings of the environment
    assert words[0] in TOOLS, f"{where}: {line}"
    if words[0].endswith("t2igen") and words[1:2] != ["--install-completion"]:
        known_settings(parse(words[1:]).params)
    if "t2igen.cli" in words:
        parse(words[words.index("t2igen.cli") + 1:])
    if words[0] == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
        assert words[1] in targets
    for word in words[1:]:
        if re.search(r"\.(ipynb|py)$", word) and not word.startswith(NAMED_BY_USERS):
            made = words[0] == "papermill" and word == words[2]
            assert made or (ROOT / word).exists(), f"{where} names {word}"


def test_a_wrong_command_would_be_found():
    wrong = {"paint": "AssertionError", "run --prof tiny": "NoSuchOption",
             "codes export": "MissingParameter"}
    for line, kind in wrong.items():
        with pytest.raises((AssertionError, RuntimeError, Exception)) as caught:
            parse(line.split())
        assert type(caught.value).__name__ == kind
    with pytest.raises(InputError, match="codebok"):
        known_settings(parse(["run", "-p", "vqvae.codebok_size=3"]).params)


def test_enough_commands_are_found():
    by_page = {where for where, _ in ADVISED}
    assert len(ADVISED) > 40
    assert {"README.md", "manual/runs.ipynb", "manual/sweeps.ipynb"} <= by_page


def test_what_is_run_below_is_advised():
    lines = {line.split("#")[0].strip() for _, line in ADVISED}
    for line in RUN:
        assert f"t2igen {line}" in lines, line


def test_advised_commands_run(t2igen, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny, tmp_path / "runs" / "demo")
    for line in RUN:
        code, out, err = t2igen(*shlex.split(line))
        assert code == 0, (line, err)
        assert out, line
    made = ("ship-4.png", "ship-candidates.png", "new.png", "mine.lmdb", "runs/seeds/Snakefile")
    for name in made:
        assert (tmp_path / name).exists(), name


def test_options_that_are_named_exist():
    "In the tables of the page on drawing."
    options = re.findall(r"^\| `(--[a-z-]+)", texts()["manual/drawing.ipynb"], re.M)
    params = {o for p in parse(["generate", "a"]).command.params for o in p.opts}
    assert len(options) > 5 and set(options) <= params


def test_snippets_of_python_compile_and_import():
    n = 0
    for where, text in texts().items():
        for block in blocks(text, "python"):
            compile(block, where, "exec")
            for line in re.findall(r"^from t2igen[\w.]* import .*$", block, re.M):
                exec(line, {})
                n += 1
    assert n >= 3


def test_the_snippet_on_drawing_draws(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny, tmp_path / "runs" / "demo")
    space: dict = {}
    exec(blocks(texts()["manual/drawing.ipynb"], "python")[0], space)
    assert tuple(space["pixels"].shape) == (1, 3, 64, 64)


@pytest.mark.skipif(not (ROOT / "t2igen" / "weights").exists(), reason="no weights in the package")
def test_the_snippet_of_the_readme_draws():
    space: dict = {}
    exec(blocks(texts()["README.md"], "python")[0], space)
    assert space["picture"].size == (64, 64)


def test_the_release_says_what_it_needs():
    "The Python of the README is that of settings.ini."
    text = (ROOT / "settings.ini").read_text(encoding="utf-8")
    least = re.search(r"^min_python = (\S+)$", text, re.M)[1]
    assert f"Python {least}" in texts()["README.md"]
    assert yaml.safe_load(least) is not None
