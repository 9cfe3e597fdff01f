"The pages of the site, as Quarto gets them: nothing is lost, every link leads somewhere."
import json
import re
import sys
from collections import Counter
from html.parser import HTMLParser

import pytest
import yaml
from conftest import ROOT
from make_notebooks import BESIDE
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

sys.path.insert(0, str(ROOT))

from docs import build, formulas, pages, preview, readme  # noqa: E402

TO_COME: set[str] = set()             # named by a page, and drawn by a run that is not in yet
LARGEST = 800_000                   # bytes of a notebook with its outputs
KNOWN = {
    "project": {"type", "output-dir", "resources", "render"},
    "execute": {"enabled"},
    "format": {"html"},
    "website": {
        "title", "description", "site-url", "repo-url", "repo-branch", "repo-subdir",
        "repo-actions", "page-navigation", "search", "navbar", "sidebar", "favicon",
        "page-footer", "open-graph", "twitter-card"},
}


@pytest.fixture(scope="module")
def sources():
    return build.sources()


@pytest.fixture(scope="module")
def site():
    "All pages after the processors, as JSON would have them."
    found = build.processed()
    for notebook in found.values():
        for cell in notebook.cells:
            assert isinstance(cell.source, str)
    return found


def words(text: str) -> Counter:
    "The words of Markdown, without where its links lead."
    return Counter(re.findall(r"\w+", pages.plain(text)))


def markdown(notebook) -> str:
    "All that a notebook says outside its code."
    said = [pages.source(c) for c in notebook["cells"] if c["cell_type"] == "markdown"]
    return "\n\n".join([*map(str, preview.frontmatter(notebook).values()), *said])


def test_every_word_is_still_there(sources, site):
    for path, notebook in sources.items():
        before = words(markdown(notebook))
        after = words(markdown(site[path]))
        assert not before - after, f"{path} lost {before - after}"


def test_every_page_has_a_title_and_a_description(site):
    seen = Counter()
    for path, notebook in site.items():
        about = preview.frontmatter(notebook)
        assert about["title"] and about["description"], path
        assert notebook.cells[0].cell_type == "raw"
        seen[about["title"]] += 1
    assert {title for title, n in seen.items() if n > 1} == set()


def test_exported_code_is_shown(site):
    for path in pages.notebooks():
        shown = "\n".join(c.source for c in site[path].cells if c.cell_type == "code")
        for name in pages.exported(path):
            assert re.search(rf"^\s*(def|class|async def) {name}\b", shown, re.M), (path, name)
            assert f"api-{name}" in pages.anchors(site[path])
    quantizers = site["05c_vqvae.quantizers.ipynb"]
    cells = [c.source for c in quantizers.cells if "class Quantizer(" in c.source]
    assert len(cells) == 1 and cells[0].startswith("#| code-fold: show\n")


def local_links(text: str) -> list[tuple[str, str]]:
    "The links and pictures of Markdown that stay on the site: (file, anchor)."
    text = re.sub(r"`[^`\n]*`", "`code`", pages.prose(text))
    found = [m["to"] for m in (*pages.LINK.finditer(text), *pages.PICTURE.finditer(text))]
    here = [to for to in found if not re.match(r"\w+:", to)]
    return [(to.partition("#")[0], to.partition("#")[2]) for to in here]


def resolve(path: str, to: str) -> str:
    "The file that `to` names on the page `path`."
    if not to:
        return path
    parts = path.split("/")[:-1]
    for part in to.split("/"):
        if part == "..":
            assert parts, f"{path}: {to} leaves the site"
            parts.pop()
        else:
            parts.append(part)
    return "/".join(parts)


def test_every_link_and_anchor_resolves(site):
    anchors = {path: pages.anchors(notebook) for path, notebook in site.items()}
    n = 0
    for path, notebook in site.items():
        for to, anchor in local_links(markdown(notebook)):
            file = resolve(path, to)
            known = file in site or (pages.NBS / file).exists() or file in TO_COME
            assert known, f"{path} links to {to}, which is not there"
            if anchor:
                assert anchor in anchors[file], f"{path}: {file} has no #{anchor}"
            n += 1
    assert n > 100


def test_what_is_to_come_has_not_come():
    there = {name for name in TO_COME if (pages.NBS / name).exists()}
    assert there == set(), f"strike {there} out of TO_COME"


def test_a_wrong_link_would_be_found():
    assert local_links("[a](x.ipynb#b) `[c](d)` [e](https://f.org) ![g](h.png)") == [
        ("x.ipynb", "b"), ("h.png", "")]
    assert resolve("manual/runs.ipynb", "../index.ipynb") == "index.ipynb"
    assert pages.slug("2 What `t2igen` *draws*, and why?") == "what-t2igen-draws-and-why"


def pictures(notebook) -> list:
    "The pictures among a notebook's outputs: (cell, kind)."
    kinds = ("image/png", "image/jpeg", "image/webp", "image/svg+xml")
    found = []
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            found.extend((cell, output, kind) for kind in kinds if kind in output.get("data", {}))
    return found


def with_picture(source: str) -> dict:
    "A page with one picture, drawn by `source`."
    shown = dict(output_type="display_data", data={"image/png": "AAAA"}, metadata={})
    code = dict(cell_type="code", metadata={}, outputs=[shown], execution_count=None, source=source)
    text = dict(cell_type="markdown", metadata={}, source="One code *wins*. The rest is dead:")
    title = dict(cell_type="markdown", metadata={}, source="# A\n\n> B.\n\nAn introduction.")
    return dict(cells=[title, text, code], metadata={}, nbformat=4, nbformat_minor=5)


@pytest.mark.parametrize("source, alt", [
    ("show()", "One code wins."),
    ('#| fig-alt: "Forty codes"\nshow()', "Forty codes"),
])
def test_a_picture_gets_its_words(source, alt):
    page = build.processors.process(build.dict2nb(with_picture(source)), "a.ipynb", {})
    assert "An introduction." in markdown(page)
    [(cell, output, kind)] = pictures(page)
    assert output["metadata"][kind]["alt"] == alt
    assert f'#| fig-alt: "{alt}"' in cell.source


def test_every_picture_has_an_alternative_text(site):
    for path, notebook in site.items():
        for cell, output, kind in pictures(notebook):
            assert output["metadata"][kind]["alt"], (path, cell.source[:80])
        for match in pages.PICTURE.finditer(pages.prose(markdown(notebook))):
            assert len(match["alt"].split()) > 2, (path, match[0])


def test_a_lesson_whose_outputs_are_kept_shows_pictures():
    for path in pages.lessons():
        notebook = pages.read(pages.NBS / path)
        if any(cell.get("outputs") for cell in notebook["cells"]):
            least = 1 if path.removesuffix(".ipynb") in BESIDE else 3
            assert len(pictures(notebook)) >= least, path


@pytest.mark.parametrize("path", pages.notebooks())
def test_notebooks_are_small_and_say_nothing_of_this_machine(path):
    text = (pages.NBS / path).read_text(encoding="utf-8")
    assert len(text.encode()) <= LARGEST
    for cell in json.loads(text)["cells"]:
        assert all(len(line) <= 100 for line in pages.source(cell).splitlines()
                   if cell["cell_type"] == "code")
        said = json.dumps(cell.get("outputs", []))
        assert not re.search(r"/(home|root|tmp|Users)/| at 0x[0-9a-f]{6}", said), path


def test_the_sidebar_has_every_page_once(site):
    quarto = pages.settings()
    assert set(quarto) == set(KNOWN)
    for part, keys in KNOWN.items():
        assert set(quarto[part]) <= keys
    assert list(pages.sections()) == [
        "Start", "Course", "Tutorials", "A run", "Engine room", "Reference"]
    listed = Counter(pages.leaves(quarto["website"]["sidebar"]["contents"]))
    assert {path for path, n in listed.items() if n > 1} == set()
    assert set(listed) == set(site)
    assert quarto["execute"] == {"enabled": False}
    assert set(quarto["format"]["html"]["theme"]) == {"light", "dark"}


def test_a_run_is_shown_as_it_was_executed(tmp_path, site):
    run = tmp_path / "mine"
    (run / "notebooks").mkdir(parents=True)
    link = '<a href="notebooks/1_data.ipynb">1_data.ipynb</a>'
    (run / "report.html").write_text(f"<p>figures</p>{link}", encoding="utf-8")
    said = new_output("stream", name="stdout", text=["twelve ", "pictures\n"])
    shown_html = ["<table>\n", "<tr><td>7</td></tr></table>"]
    table = new_output("execute_result", data={"text/html": shown_html}, execution_count=None)
    code = new_code_cell(f"run_dir = {str(run.resolve())!r}", outputs=[said, table])
    title = new_markdown_cell("# 1 Data\n\n> Pictures.")
    notebook = dict(cells=[title, code], metadata={}, nbformat=4, nbformat_minor=5)
    (run / "notebooks" / "1_data.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    shown = build.sources(run)["stages/1_data.ipynb"]
    assert "run_dir = 'runs/mine'" in [c.source for c in shown.cells]
    page = build.processors.process(shown, "stages/1_data.ipynb", {})
    assert "[its report](report.html)" in markdown(page)
    out = tmp_path / "pages"
    out.mkdir()
    build.copy_extras(out, run)
    preview.write(site | {"stages/1_data.ipynb": page}, out, ["stages/1_data.ipynb"])
    report = (out / "stages" / "report.html").read_text(encoding="utf-8")
    assert '<a href="data.html">1_data.ipynb</a>' in report
    text = (out / "stages" / "data.html").read_text(encoding="utf-8")
    assert "Out[" not in text
    assert "twelve pictures" in text and "<table>\n<tr><td>7</td></tr></table>" in text


def test_imports_are_folded_and_pictures_have_their_words(site):
    """Of a stage's notebook nobody wants to read forty lines of imports first, and Quarto takes the
    words of a picture in Markdown for its caption only."""
    vqvae = [c.source for c in site["stages/3_vqvae.ipynb"].cells if c.cell_type == "code"]
    folded = [text for text in vqvae if text.startswith("#| code-fold: true")]
    assert len(folded) == 1 and "from t2igen.plots import" in folded[0]
    home = markdown(site["index.ipynb"])
    alt = re.search(r"!\[([^]]+)\]\(images/unseen.png\)", home)[1]
    assert f'images/unseen.png){{fig-alt="{alt}"}}' in home
    assert preview.unfence(f'![{alt}](a.png){{fig-alt="{alt}"}}') == f"![{alt}](a.png)"


def test_a_page_says_how_it_is_opened_in_colab(site):
    "Lessons install what they need; before another chapter somebody has to."
    lesson = markdown(site["05c_vqvae.quantizers.ipynb"])
    room = markdown(site["10a_plots.ipynb"])
    for path, text in (("05c_vqvae.quantizers", lesson), ("10a_plots", room)):
        assert re.search(rf"\[Open in Colab\]\(\S+/nbs/{path}\.ipynb\)", text)
    assert "%pip install" not in lesson and "(there, first: `%pip install t2igen`)" in room
    shown = [c.source for c in site["05c_vqvae.quantizers.ipynb"].cells if c.cell_type == "code"]
    assert not [source for source in shown if "install" in source]


def test_addresses_are_unlike(site):
    found = Counter(map(pages.address, site))
    assert {name for name, n in found.items() if n > 1} == set()


class Page(HTMLParser):
    "The anchors, links and pictures of a page."

    def __init__(self):
        super().__init__()
        self.ids, self.hrefs, self.bare = Counter(), [], []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if "id" in given:
            self.ids[given["id"]] += 1
        if tag == "a" and "href" in given:
            self.hrefs.append(given["href"])
        if tag == "img" and not given.get("alt"):
            self.bare.append(given.get("src", "")[:60])


def test_the_preview_is_whole(site, tmp_path):
    some = ("index.ipynb", "05c_vqvae.quantizers.ipynb", "tutorials/vqvae_study.ipynb",
            "manual/glossary.ipynb", "reference/settings.ipynb")
    preview.write(site, tmp_path, some)
    assert len(list(tmp_path.rglob("*.html"))) == len(some)
    homes = {pages.address(path) for path in site}
    for path in some:
        page = Page()
        page.feed((tmp_path / pages.address(path)).read_text(encoding="utf-8"))
        assert page.bare == []
        for href in page.hrefs:
            to, _, anchor = href.partition("#")
            if re.match(r"\w+:", href):
                continue
            assert resolve(pages.address(path), to) in homes | {pages.address(path)}, (path, href)
            if anchor and not to:
                assert anchor in page.ids, (path, href)
    text = (tmp_path / "vqvae.quantizers.html").read_text(encoding="utf-8")
    assert 'href="#predict"' in text and '<h2 id="predict">' in text
    assert (tmp_path / "manual/glossary.html").read_text(encoding="utf-8").count("<math ") > 12
    assert re.search('<details class="fold" open(="")?><summary>Exported source</summary>', text)


def test_every_formula_of_the_pages_is_set(sources):
    found = []
    for path, notebook in sources.items():
        prose = re.sub(r"```.*?```|`[^`]*`", "", markdown(notebook), flags=re.S)
        for match in formulas.FORMULA.finditer(prose):
            tex = (match["display"] or match["inline"]).strip()
            assert "\\Big" not in tex, f"{path}: Quarto's MathML lacks {tex}; take \\left, \\right"
            found.append(formulas.mathml(tex, display=match["display"] is not None))
    assert len(found) > 100
    assert not [math for math in found if "\\" in math], "words of TeX that were left"
    html = formulas.set_formulas(r"<p>$\arg\min_k x_k &lt; 1$</p><code>$1 and $2</code>")
    assert "<mo>arg</mo>" in html and "<mo>&#x0003C;</mo>" in html
    assert html.endswith("<code>$1 and $2</code>")


def test_the_workflow_builds_the_pages_and_publishes_main():
    text = (ROOT / ".github" / "workflows" / "docs.yml").read_text(encoding="utf-8")
    flow = yaml.safe_load(text)
    assert set(flow[True]) >= {"push", "pull_request"}       # YAML reads `on` as a truth
    steps = [step.get("run", "") for step in flow["jobs"]["build"]["steps"]]
    assert any("make docs" in step for step in steps)
    assert "refs/heads/main" in flow["jobs"]["publish"]["if"]


def test_readme_is_the_index_and_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text == readme.readme(pages.NBS / "index.ipynb")
    assert len(text.split()) < 1200
    for to, _ in local_links(text):
        assert (ROOT / to).exists() or to.removeprefix("nbs/") in TO_COME, to
