"Formulas of the preview as MathML, which browsers set."
import re
from html import unescape

from latex2mathml.converter import convert

OUTSIDE = re.compile(r"(<pre.*?</pre>|<code.*?</code>|<[^>]+>)", re.S)
FORMULA = re.compile(r"\$\$(?P<display>.+?)\$\$|\$(?P<inline>[^$\n]+?)\$", re.S)
ARG = re.compile(r"\\arg(?![a-z])")       # a word of TeX that the converter does not know


def mathml(tex: str, display: bool) -> str:
    "A `<math>` of a formula, on a line of its own if `display`."
    known = ARG.sub(r"\\operatorname{arg}", tex)
    return convert(known, display="block" if display else "inline")


def set_formulas(html: str) -> str:
    "HTML with its formulas set; what stands in code is left alone."
    def one(match):
        display = match["display"] is not None
        return mathml(unescape(match["display"] or match["inline"]).strip(), display)

    parts = OUTSIDE.split(html)
    return "".join(p if i % 2 else FORMULA.sub(one, p) for i, p in enumerate(parts))
