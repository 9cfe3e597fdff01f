"Pages that are written by looking: public names, settings, commands."
import inspect
import re

import nbformat
import typer

import t2igen
from docs.pages import NBS, homes, read, source
from t2igen.cli.app import app
from t2igen.cli.config import fields_of
from t2igen.core.config import Section
from t2igen.settings import Config


def page(title: str, description: str, parts: list[str]) -> dict:
    "A notebook of Markdown alone."
    first = f"# {title}\n\n> {description}"
    cells = [nbformat.v4.new_markdown_cell(text) for text in (first, *parts)]
    for i, cell in enumerate(cells):
        cell["id"] = f"part{i}"
    return nbformat.v4.new_notebook(cells=cells)


def signature(thing) -> str:
    "Its parameters, without their types; nothing of what has none."
    try:
        parameters = inspect.signature(thing).parameters.values()
    except (TypeError, ValueError):
        return ""
    given = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
    shown = [str(p) for p in given if p.name != "self"]
    return f"({', '.join(shown)})"


def method_lines(thing) -> list[str]:
    "The public methods of a class that it documents itself."
    lines = []
    for name, method in vars(thing).items():
        function = getattr(method, "__func__", method)
        documented = callable(function) or isinstance(method, property)
        text = inspect.getdoc(function) if documented else ""
        if name.startswith("_") or not text:
            continue
        if isinstance(method, property):
            call = f".{name}"
        else:
            call = f".{name}{signature(getattr(thing, name))}"
        lines.append(f"- `{call}`: {' '.join(text.split())}")
    return lines


def names() -> dict:
    "The public names of the package, with what their docstrings say."
    parts = ["`from t2igen import Text2Image`: these names are t2igen's own; all else may change "
             "from version to version. Each links to the chapter that builds it."]
    where = homes()
    for name in t2igen.__all__:
        thing = getattr(t2igen, name)
        lines = [f"## {name}"]
        if not (inspect.isclass(thing) and issubclass(thing, Section)):
            lines.append(f"```python\n{name}{signature(thing)}\n```")
        lines.append(inspect.getdoc(thing))
        if inspect.isclass(thing) and not issubclass(thing, Section):
            lines.append("\n".join(method_lines(thing)))
        if name in where:
            title = source(read(NBS / where[name])["cells"][0]).splitlines()[0].lstrip("# ")
            lines.append(f"Built in [{title}](../{where[name]}#api-{name}).")
        parts.append("\n\n".join(line for line in lines if line))
    return page("Public names", "What a program may import, and what it may rely on.", parts)


def table(head: tuple, rows: list[tuple]) -> str:
    "A table in Markdown."
    def line(cells):
        return "| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |"

    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])


def settings() -> dict:
    "Every setting with its default and meaning."
    found = fields_of(Config())
    parts = ["Each is given with `-p KEY=VALUE`, or in a YAML file. `t2igen config KEY` shows what "
             "a run has. The defaults are those of the profile `demo`."]
    groups: dict[str, list] = {}
    for key, (value, field) in found.items():
        shown = f"`{value!r}`"
        groups.setdefault(key.partition(".")[0] if "." in key else "", []).append(
            (f"`{key}`", shown, field.description))
    for group, rows in groups.items():
        words = Config.model_fields[group].description if group else "of the run itself"
        parts.append(f"## {group or 'run'}\n\n{words}\n\n" + table(("key", "default", "is"), rows))
    return page("Settings", "Every setting of a run, its default and its meaning.", parts)


def command_parts(command, name: str) -> list[str]:
    "A command and those below it."
    context = command.make_context(name, [], resilient_parsing=True)
    help_ = re.sub(r"\s+", " ", command.help or "").strip()
    parts = []
    if getattr(command, "commands", None):
        for sub in sorted(command.commands.items()):
            parts.extend(command_parts(sub[1], f"{name} {sub[0]}"))
        return parts
    rows = []
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record and parameter.name != "help":
            rows.append((f"`{record[0]}`", record[1]))
    options = table(("option", "is"), rows) if rows else ""
    return [f"## {name}\n\n{help_}\n\n{options}".strip()]


def commands() -> dict:
    "What `t2igen --help` says, of all commands."
    top = typer.main.get_command(app)
    return page("Commands", "What can be typed, with all options.", command_parts(top, "t2igen"))


PAGES = {
    "reference/names.ipynb": names,
    "reference/settings.ipynb": settings,
    "reference/commands.ipynb": commands,
}
