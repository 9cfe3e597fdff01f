"What is done to a notebook before it is a page, beside nbdev's own processors."
import ast
import re

from execnb.nbio import mk_cell
from nbdev.frontmatter import FrontmatterProc
from nbdev.process import NBProcessor, Processor
from nbdev.processors import (
    ai_magics,
    clean_magics,
    filter_stream_,
    hide_,
    hide_line,
    populate_language,
    rm_export,
    rm_header_dash,
    strip_ansi,
    strip_hidden_metadata,
)

from docs.pages import LINK, PICTURE, defined, plain, prose, settings

PICTURES = ("image/png", "image/jpeg", "image/webp", "image/svg+xml")
INSTALL = 'run_line_magic("pip", "install -q t2igen")'
INTRODUCTION = re.compile(r"\A(#\s+[^\n]*\n*(?:>[^\n]*(?:\n>[^\n]*)*)?)(.*)\Z", re.S)
FENCED = re.compile(r"(^(?:`{3,}|~{3,}).*?^(?:`{3,}|~{3,})\s*$)", re.M | re.S)
WORD_IN_CODE = re.compile(r"(?<![\[`\w])`(\w+)(\(\))?`(?![\]`])")


def outside_fences(text: str, change) -> str:
    "Markdown whose parts outside fenced code are what `change` makes of them."
    parts = FENCED.split(text)
    return "".join(part if i % 2 else change(part) for i, part in enumerate(parts))


def folded(source: str, fold: str, summary: str) -> str:
    "A cell's code that Quarto folds (`true`), or may fold (`show`), under a summary."
    return f'#| code-fold: {fold}\n#| code-summary: "{summary}"\n{source}'


class KeepIntroduction(Processor):
    "Title and description alone in the first cell: nbdev drops what else stands there."

    def begin(self):
        first = self.nb.cells[0]
        title, rest = INTRODUCTION.match(first.source.strip()).groups()
        if rest.strip():
            first.source = title.strip()
            self.nb.cells.insert(1, mk_cell(rest.strip(), "markdown"))


class ShowExports(Processor):
    "The source of exported code is shown: definitions open, imports folded; each has an anchor."

    def begin(self):
        cells = []
        for cell in self.nb.cells:
            directives = getattr(cell, "directives_", {})
            if cell.cell_type == "code" and {"export", "exports"} & directives.keys():
                directives.pop("export", None)
                names = defined(cell.source)
                if names:
                    marks = "".join(f'<a id="api-{name}"></a>' for name in names)
                    cells.append(mk_cell(marks, "markdown"))
                fold, summary = ("show", "Exported source") if names else ("true", "Imports")
                cell.source = folded(cell.source, fold, summary)
            cells.append(cell)
        self.nb.cells = cells


class FoldImports(Processor):
    "A cell that is imports for the most part is folded; an exported one is already."

    def begin(self):
        for cell in self.nb.cells:
            has_fold = "#| code-fold" in cell.source
            if cell.cell_type == "code" and not has_fold and self.share(cell.source) > 0.7:
                cell.source = folded(cell.source, "true", "Imports")

    def share(self, source: str) -> float:
        "How much of a cell's lines are statements that import."
        try:
            statements = ast.parse(source).body
        except SyntaxError:                      # a magic, or an error that is shown
            return 0.0
        lines = 0
        for statement in statements:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                lines += statement.end_lineno - statement.lineno + 1
        return lines / max(1, len(source.split("\n")))


def first_sentence(text: str) -> str:
    "The first sentence of a paragraph of Markdown, without its marks."
    words = " ".join(plain(re.sub(r"[#>|]", "", prose(text))).split())
    return re.split(r"(?<=[.:?!])\s", words)[0].rstrip(":").replace('"', "'")[:200]


class DescribePictures(Processor):
    "A picture without `#| fig-alt:` is described by the sentence before it."

    def begin(self):
        said = ""
        for cell in self.nb.cells:
            if cell.cell_type == "markdown":
                paragraphs = [p for p in prose(cell.source).split("\n\n") if plain(p).strip()]
                said = first_sentence(paragraphs[-1]) if paragraphs else said
            elif self.shows_picture(cell):
                self.describe(cell, said)

    def shows_picture(self, cell) -> bool:
        return any(set(PICTURES) & set(o.get("data", {})) for o in cell.get("outputs", []))

    def describe(self, cell, said: str):
        given = re.search(r'^#\|\s*fig-alt:\s*"?(.*?)"?\s*$', cell.source, re.M)
        alt = given[1] if given else said
        if alt and not given:
            cell.source = f'#| fig-alt: "{alt}"\n{cell.source}'
        for output in cell.outputs:
            for kind in set(PICTURES) & set(output.get("data", {})):
                output.setdefault("metadata", {}).setdefault(kind, {})["alt"] = alt


class NameImages(Processor):
    "A picture in Markdown has its words as alternative text; Quarto makes them its caption only."

    def cell(self, cell):
        if cell.cell_type == "markdown":
            cell.source = outside_fences(cell.source, self.named)

    def named(self, text: str) -> str:
        def name(match):
            alt = match["alt"].replace('"', "'")
            return f'{match[0]}{{fig-alt="{alt}"}}' if alt else match[0]

        return PICTURE.sub(name, text)


class LinkNames(Processor):
    "A name in backticks that one chapter explains links there; two meanings are no link."

    homes: dict[str, str] = {}

    def cell(self, cell):
        if cell.cell_type == "markdown":
            cell.source = outside_fences(cell.source, self.linked)

    def linked(self, text: str) -> str:
        taken = [m.span() for m in LINK.finditer(text)]

        def link(match):
            inside = any(a <= match.start() < b for a, b in taken)
            name = match[1]
            speaks = "_" in name or re.search("[A-Z]", name[1:]) or match[2]
            home = self.homes.get(name)
            if inside or home is None or not speaks:
                return match[0]
            return f"[{match[0]}]({self.way_to(home)}#api-{name})"

        return WORD_IN_CODE.sub(link, text)

    def way_to(self, home: str) -> str:
        here = self.nb.site_path_
        if here == home:
            return ""
        return "../" * here.count("/") + home


class OpenElsewhere(Processor):
    """Where the notebook itself is, and a way to run it without installing anything: lessons have a
    cell that installs t2igen there, other chapters a word about it."""

    def end(self):
        code = [cell.source for cell in self.nb.cells if cell.cell_type == "code"]
        if not code:
            return
        installs = any(INSTALL in source for source in code)
        website = settings()["website"]
        repo = website["repo-url"].removeprefix("https://github.com/")
        notebook = f"{repo}/blob/{website['repo-branch']}/nbs/{self.nb.site_path_}"
        first = "" if installs else " (there, first: `%pip install t2igen`)"
        line = (
            f"[Open in Colab](https://colab.research.google.com/github/{notebook}){first} · "
            f"[the notebook](https://github.com/{notebook})")
        self.nb.cells.insert(1, mk_cell(f"::: {{.elsewhere}}\n{line}\n:::", "markdown"))


def processors(homes: dict[str, str]) -> list:
    "All of them, in order."
    links = type("LinkNames", (LinkNames,), {"homes": homes})
    return [
        KeepIntroduction, ShowExports, FoldImports, DescribePictures, NameImages, FrontmatterProc,
        OpenElsewhere, populate_language, strip_ansi, hide_line, filter_stream_, rm_header_dash,
        rm_export, ai_magics, clean_magics, hide_, links, strip_hidden_metadata]


def process(notebook, path: str, homes: dict[str, str]):
    "The page of a notebook: what Quarto, or the preview, renders. `path` is below `nbs`."
    notebook.site_path_ = path
    notebook.path_ = path
    NBProcessor(nb=notebook, procs=processors(homes)).process()
    return notebook
