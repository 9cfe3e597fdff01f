"""The documentation: `python -m docs.build` processes all notebooks into `_proc`, for Quarto;
with `--preview` they are rendered without Quarto into `_preview`. `--run RUN` shows a finished
run: its executed stage notebooks and its report."""
import argparse
import re
import shutil
from pathlib import Path

from execnb.nbio import dict2nb, read_nb, write_nb

from docs import pages, preview, processors, reference


def note(run: Path | None) -> str:
    "What the first stage's page says of the run that is shown."
    if run is None:
        return ("These are the notebooks as they are in the repository, not executed: "
                "`t2igen run` executes them, and `make docs RUN=runs/demo` shows a run of yours.")
    return ("These are the seven notebooks as the run executed them, each with its pictures; "
            "[its report](report.html) has all figures on one page.")


def forget_where(notebook, run: Path):
    "A run's folder is on every page `runs/NAME`, wherever it lies on this machine."
    for cell in notebook.cells:
        cell.source = cell.source.replace(str(run.resolve()), f"runs/{run.name}")


def sources(run: Path | None = None) -> dict:
    "All notebooks of the site: {path: notebook}."
    found = {}
    for path in pages.notebooks():
        file = pages.NBS / path
        executed = run / "notebooks" / Path(path).name if run else None
        if path.startswith("stages/") and executed and executed.exists():
            file = executed
        found[path] = read_nb(file)
        if file == executed:
            forget_where(found[path], run)
        if path == "stages/1_data.ipynb":
            found[path].cells[0].source += f"\n\n{note(run)}"
    for path, make in reference.PAGES.items():
        found[path] = dict2nb(make())
    return found


def processed(run: Path | None = None) -> dict:
    "All pages: {path: processed notebook}."
    homes = pages.homes()
    return {path: processors.process(nb, path, homes) for path, nb in sources(run).items()}


def to_pages(report: str) -> str:
    "A report whose links to executed notebooks lead to their pages, which lie beside it."
    link = re.compile(r'(?<=href=")notebooks/([^"]*\.ipynb)(?=")')
    return link.sub(lambda match: pages.address(match[1]), report)


def copy_extras(target: Path, run: Path | None):
    "Pictures, style, and the report of the run."
    images = pages.NBS / "images"
    if images.exists():
        shutil.copytree(images, target / "images")
    shutil.copy(pages.ROOT / "docs" / "style.css", target)
    if run and (run / "report.html").exists():
        (target / "stages").mkdir(exist_ok=True)
        report = (run / "report.html").read_text(encoding="utf-8")
        (target / "stages" / "report.html").write_text(to_pages(report), encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preview", action="store_true", help="render without Quarto")
    parser.add_argument("--run", type=Path, help="a finished run to show")
    given = parser.parse_args()
    run = given.run if given.run and (given.run / "report.html").exists() else None
    target = pages.ROOT / ("_preview" if given.preview else "_proc")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    copy_extras(target, run)
    found = processed(run)
    if given.preview:
        preview.write(found, target)
        print(f"{len(found)} pages: open {target / 'index.html'}")
        return
    for path, notebook in found.items():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        write_nb(notebook, target / path)
    shutil.copy(pages.ROOT / "_quarto.yml", target)
    print(f"{len(found)} notebooks are processed into {target}")


if __name__ == "__main__":
    main()
