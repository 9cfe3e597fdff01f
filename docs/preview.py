"The same pages without Quarto: nbconvert renders the processed notebooks, for looking at."
import re
import shutil
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import jinja2
import nbformat
import yaml
from nbconvert import HTMLExporter

from docs import formulas, pages

HERE = Path(__file__).parent
OPTION = re.compile(r"^#\|\s*([\w-]+):\s*(.*?)\s*$\n?", re.M)
HEADING = re.compile(r"<h([1-6])[^>]*>(.*?)</h\1>", re.S)
HREF = re.compile(r'(?<=href=")([^"#:]*\.ipynb)(#[^"]*)?(?=")')


class Text(HTMLParser):
    "The words of a piece of HTML."

    def __init__(self):
        super().__init__()
        self.words = []

    def handle_data(self, data):
        self.words.append(data)


def words_of(html: str) -> str:
    "HTML without its tags, and without the mark of an anchor."
    parser = Text()
    parser.feed(html)
    return "".join(parser.words).replace("¶", "").strip()


def frontmatter(notebook) -> dict:
    "What the first cell says of the page."
    raw = [c for c in notebook["cells"] if c["cell_type"] == "raw"]
    return yaml.safe_load(pages.source(raw[0]).strip().strip("-")) if raw else {}


def settle_options(cell):
    "Quarto's options of a cell become metadata, which the template reads."
    options = dict(OPTION.findall(cell.source))
    cell.source = OPTION.sub("", cell.source)
    fold = options.get("code-fold")
    if fold:
        cell.metadata["fold"] = fold
        cell.metadata["summary"] = options.get("code-summary", "Code").strip('"')
    cell.metadata["echo"] = options.get("echo", "true") != "false"


def unfence(text: str) -> str:
    "Pandoc's divisions as HTML's, and pictures without its attributes."
    text = re.sub(r"^:{3,}\s*\{([^}]*)\}\s*$", r'<div class="\1">\n', text, flags=re.M)
    text = re.sub(r'(?<=<div class=")([^"]*)', lambda m: m[1].replace(".", "").strip(), text)
    text = re.sub(r"^:{3,}\s*$", r"\n</div>", text, flags=re.M)
    return re.sub(r'(?<=\))\{fig-alt="[^"]*"\}', "", text)


def join_lines(output):
    "What an output says, which a notebook's file has line by line, in one piece."
    if output.output_type == "stream":
        output.text = "".join(output.text)
    for kind, value in output.get("data", {}).items():
        if isinstance(value, list):
            output.data[kind] = "".join(value)


def html_of(notebook, exporter) -> str:
    "The body of a page; links go to pages, headings have the anchors that pandoc gives them."
    plain = nbformat.from_dict({
        "cells": [dict(c) for c in notebook.cells], "metadata": {}, "nbformat": 4,
        "nbformat_minor": 5})
    for cell in plain.cells:
        for key in ("idx_", "directives_", "has_sd", "_parsed_"):
            cell.pop(key, None)
        if cell.cell_type == "code":
            settle_options(cell)
            for output in cell.outputs:
                join_lines(output)
        if cell.cell_type == "markdown":
            cell.source = unfence(cell.source)
    body, _ = exporter.from_notebook_node(plain)
    body = HREF.sub(lambda m: pages.address(m[1]) + (m[2] or ""), body)
    body = formulas.set_formulas(body)
    return HEADING.sub(
        lambda m: f'<h{m[1]} id="{pages.slug(words_of(m[2]))}">{m[2]}</h{m[1]}>', body)


def sidebar_html(entries, here: str, titles: dict, up: str) -> str:
    "The sidebar, its branch with this page open."
    parts = []
    for entry in entries:
        if isinstance(entry, str):
            mark = ' class="here" aria-current="page"' if entry == here else ""
            title = escape(titles[entry])
            parts.append(f'<li><a{mark} href="{up}{pages.address(entry)}">{title}</a></li>')
            continue
        opened = ' open data-open="1"' if here in pages.leaves([entry]) else ""
        inside = sidebar_html(entry["contents"], here, titles, up)
        parts.append(
            f"<li><details{opened}><summary>{escape(entry['section'])}</summary>{inside}"
            "</details></li>")
    return f"<ul>{''.join(parts)}</ul>"


def neighbor(order: list, path: str, by: int, titles: dict, up: str):
    "The page before or after, in the order of the sidebar."
    at = order.index(path) + by if path in order else -1
    if not 0 <= at < len(order):
        return None
    return dict(href=up + pages.address(order[at]), title=titles[order[at]])


def write(found: dict, target: Path, only=None):
    "Write the pages {path: processed notebook} into a folder, all or `only` some."
    exporter = HTMLExporter(
        extra_template_basedirs=[str(HERE)], template_name="cells", exclude_anchor_links=True)
    loader = jinja2.FileSystemLoader(HERE)
    template = jinja2.Environment(loader=loader).get_template("page.html.j2")
    entries = pages.settings()["website"]["sidebar"]["contents"]
    order = pages.leaves(entries)
    about = {path: frontmatter(notebook) for path, notebook in found.items()}
    titles = {path: pages.plain(a.get("title", path)) for path, a in about.items()}
    shutil.copy(HERE / "preview.css", target)
    for path in only or found:
        notebook = found[path]
        up = "../" * path.count("/")
        body = html_of(notebook, exporter)
        headings = [dict(id=m[0], text=words_of(m[1])) for m in
                    re.findall(r'<h2 id="([^"]*)">(.*?)</h2>', body, re.S)]
        page = template.render(
            title=titles[path], description=pages.plain(about[path].get("description", "")),
            up=up, body=body, headings=headings, math="$" in body,
            sidebar=sidebar_html(entries, path, titles, up),
            before=neighbor(order, path, -1, titles, up),
            after=neighbor(order, path, 1, titles, up))
        file = target / pages.address(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(page, encoding="utf-8")
