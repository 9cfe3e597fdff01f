"Formulas of the preview as pictures: matplotlib's mathtext, where it knows them."
import base64
import io
import re
from html import escape, unescape

from matplotlib import rc_context
from matplotlib.mathtext import math_to_image

OUTSIDE = re.compile(r"(<pre.*?</pre>|<code.*?</code>|<[^>]+>)", re.S)
FORMULA = re.compile(r"\$\$(?P<display>.+?)\$\$|\$(?P<inline>[^$\n]+?)\$", re.S)
STYLE = {"mathtext.fontset": "cm", "font.size": 13, "savefig.transparent": True}
OTHERWISE = {                       # what TeX says in a way that mathtext does not know
    r"\\[lr]?Vert(?![a-z])": r"\\|",
    r"\\varnothing": r"\\emptyset",
    r"\\(le|ge)(?![a-z])": r"\\\1q",
    r"\\[Bb]ig+[lr]?(?![a-z])": "",
    r"\\bmod(?![a-z])": r"\\ \\mathrm{mod}\\ ",
    r"\\(mathbb|mathcal) (\w)": r"\\\1{\2}",
    r"\\frac(\w)(\w)": r"\\frac{\1}{\2}",
    r"\\frac(\w)\{": r"\\frac{\1}{",
    r"\\sqrt (\w)": r"\\sqrt{\1}",
    r"\^\\top(?![a-z])": r"^{\\top}",
    r"([_^])\\text\{": r"\1\\mathrm{",
}


def in_other_words(tex: str) -> str:
    "A formula on one line, said as mathtext knows it; a brace below loses its words."
    known = " ".join(tex.split())
    for said, other in OTHERWISE.items():
        known = re.sub(said, other, known)
    return without_braces_below(known)


def without_braces_below(tex: str) -> str:
    r"`\underbrace{a}_{b}` is `a`."
    while (start := tex.find(r"\underbrace{")) >= 0:
        first = start + len(r"\underbrace")
        inside = end_of_group(tex, first)
        after = inside
        if tex[inside:inside + 2] == "_{":
            after = end_of_group(tex, inside + 1)
        tex = tex[:start] + tex[first + 1:inside - 1] + " " + tex[after:]
    return tex


def end_of_group(tex: str, start: int) -> int:
    "Where the group that begins with the brace at `start` ends."
    depth = 0
    for k in range(start, len(tex)):
        depth += (tex[k] == "{") - (tex[k] == "}")
        if depth == 0:
            return k + 1
    return len(tex)


def picture(tex: str, display: bool) -> str:
    "An `<img>` of a formula, or the formula as it was where mathtext cannot set it."
    known = in_other_words(tex)
    out = io.BytesIO()
    try:
        with rc_context(STYLE):
            math_to_image(f"${known}$", out, format="svg")
    except ValueError:
        mark = "$$" if display else "$"
        return f"{mark}{escape(tex)}{mark}"
    svg = out.getvalue().decode()
    height = float(re.search(r'height="([\d.]+)pt"', svg)[1])
    data = base64.b64encode(svg.encode()).decode()
    kind = "math display" if display else "math"
    return (f'<img class="{kind}" style="height: {height / 12:.2f}em" alt="{escape(tex)}" '
            f'src="data:image/svg+xml;base64,{data}">')


def drawn(html: str) -> str:
    "HTML with its formulas drawn; what stands in code is left alone."
    def one(match):
        display = match["display"] is not None
        return picture(unescape(match["display"] or match["inline"]).strip(), display)

    parts = OUTSIDE.split(html)
    return "".join(p if i % 2 else FORMULA.sub(one, p) for i, p in enumerate(parts))
