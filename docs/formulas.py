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
OTHERWISE = {r"\lVert": r"\|", r"\rVert": r"\|", r"\varnothing": r"\emptyset"}


def picture(tex: str, display: bool) -> str:
    "An `<img>` of a formula, or the formula as it was where mathtext cannot set it."
    known = " ".join(tex.split())
    for name, other in OTHERWISE.items():
        known = known.replace(name, other)
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
