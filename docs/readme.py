"README.md from index.ipynb: `python docs/readme.py`. Links lead into `nbs/`."
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RELATIVE = re.compile(r"(?<=\]\()(?!\w+:|#|/)")


def readme(index: Path) -> str:
    "The text of README.md; the index has no code cells."
    cells = json.loads(index.read_text(encoding="utf-8"))["cells"]
    text = "\n\n".join("".join(cell["source"]).strip() for cell in cells)
    return RELATIVE.sub("nbs/", text) + "\n"


if __name__ == "__main__":
    (ROOT / "README.md").write_text(readme(ROOT / "nbs" / "index.ipynb"), encoding="utf-8")
