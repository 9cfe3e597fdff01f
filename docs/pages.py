"The pages of the site: which notebooks, in which order, under which address."
import ast
import json
import re
from functools import cache
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
GENERATED = ("reference/names.ipynb", "reference/settings.ipynb", "reference/commands.ipynb")
FENCE = re.compile(r"^(`{3,}|~{3,}).*?^\1\s*$", re.M | re.S)
LINK = re.compile(r"(?<!!)\[(?P<text>(?:[^\]\[]|\[[^\]]*\])*)\]\((?P<to>[^)\s]+)\)")
PICTURE = re.compile(r"!\[(?P<alt>[^\]]*)\]\((?P<to>[^)\s]+)\)")
HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*\s*$", re.M)


def read(path) -> dict:
    "A notebook as JSON."
    return json.loads(Path(path).read_text(encoding="utf-8"))


def source(cell) -> str:
    "A cell's text."
    return "".join(cell["source"])


def notebooks() -> list[str]:
    "All notebooks of the site below `nbs`, as `stages/1_data.ipynb`."
    found = [p.relative_to(NBS).as_posix() for p in NBS.rglob("*.ipynb")]
    return sorted(name for name in found if not re.search(r"(^|/)[._]", name))


@cache
def settings() -> dict:
    "`_quarto.yml`."
    return yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))


def leaves(entries) -> list[str]:
    "The files of a part of the sidebar, in order."
    found = []
    for entry in entries:
        if isinstance(entry, str):
            found.append(entry)
        else:
            found.extend(leaves(entry.get("contents", [])))
    return found


def sections() -> dict[str, list]:
    "The sidebar's sections: {title: its entries}."
    parts = settings()["website"]["sidebar"]["contents"]
    return {part["section"]: part["contents"] for part in parts}


def lessons() -> list[str]:
    "The chapters of the course."
    return leaves(sections()["Course"])


def address(path: str) -> str:
    "Where nbdev puts the page of a notebook: `05e_vqvae.model.ipynb` is `vqvae.model.html`."
    folder, _, name = path.rpartition("/")
    name = re.sub(r"^\d+[a-zA-Z0-9]*_", "", name.lower()).removesuffix(".ipynb") + ".html"
    return f"{folder}/{name}" if folder else name


def plain(text: str) -> str:
    "Markdown without the marks of links, code and emphasis."
    text = LINK.sub(lambda m: m["text"], text)
    text = PICTURE.sub(lambda m: m["alt"], text)
    return re.sub(r"[`*]", "", text)


def slug(heading: str) -> str:
    "A heading's anchor, as pandoc makes it."
    text = re.sub(r"[^\w\s.-]", "", plain(heading)).strip().lower()
    text = re.sub(r"\s+", "-", text)
    return re.sub(r"^[^a-z]+", "", text) or "section"


def prose(text: str) -> str:
    "Markdown without its blocks of code."
    return FENCE.sub("", text)


def anchors(notebook) -> set[str]:
    "The anchors of a page."
    found = set()
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            text = prose(source(cell))
            found.update(slug(h) for h in HEADING.findall(text))
            found.update(re.findall(r'<a id="([^"]+)"', text))
    return found


def defined(text: str) -> list[str]:
    "The public functions and classes that a cell of code defines."
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    try:
        body = ast.parse(text).body
    except SyntaxError:
        return []
    return [n.name for n in body if isinstance(n, kinds) and not n.name.startswith("_")]


def exported(path: str) -> list[str]:
    "The public functions and classes that a chapter exports."
    cells = read(NBS / path)["cells"]
    found = []
    for cell in cells:
        if cell["cell_type"] == "code" and re.match(r"#\|\s*exports?\b", source(cell)):
            found.extend(defined(source(cell)))
    return found


def homes() -> dict[str, str]:
    "Where a public name is explained: {name: notebook}, without names that two chapters have."
    found, twice = {}, set()
    for path in notebooks():
        for name in exported(path):
            if name in found:
                twice.add(name)
            found[name] = path
    return {name: path for name, path in found.items() if name not in twice}
