"""What pages have from the code itself: options of commands, published models, drawings, docstrings as they are."""

import contextlib
import inspect
import io
import os
import re
from collections.abc import Iterable, Iterator
from typing import Annotated, ClassVar, NamedTuple, get_origin
from unittest import mock

from docutils import nodes
from docutils.parsers.rst import directives
from drawings import DRAWINGS
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from elmo_jax import commands
from elmo_jax.published import MODELS


def inline(text: str) -> list[nodes.Node]:
    """Plain text in which what stands between backticks is code."""
    parts = re.split(r"`([^`]+)`", text)
    return [nodes.literal(text=part) if number % 2 else nodes.Text(part) for number, part in enumerate(parts) if part]


def paragraph(text: str) -> nodes.paragraph:
    return nodes.paragraph("", "", *inline(text))


class Option(NamedTuple):
    """An option of a command, or the title of a group of them (without a form): what is typed, and what it does."""

    form: str
    about: str


def help_of(command: list[str]) -> str:
    """What `elmo-jax COMMAND --help` prints, on lines as long as they need to be."""
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # else the boxes are drawn in ASCII
    with (
        mock.patch.dict(os.environ, {"COLUMNS": "2000", "NO_COLOR": "1", "ELMO_JAX_COMPILATION_CACHE": "0"}),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        commands.main([*command, "--help"])
    printed.seek(0)
    return printed.read()


def options_of(text: str) -> Iterator[Option]:
    """The options of such a text, read from its boxes."""
    lines = [row[2:-1].rstrip() for row in text.splitlines() if row.startswith("│")]
    found: list[Option] = []
    for row in lines:
        form, _, about = re.sub(" {2,}", "\0", row.strip(), count=1).partition("\0")
        if re.fullmatch("─+", row):
            found[-1] = Option("", found[-1].form)  # what stands above the rule is of the group
        elif row.startswith(" ") and found:
            found[-1] = found[-1]._replace(about=f"{found[-1].about} {row.strip()}".strip())
        else:
            found.append(Option(form, about))
    return (option for option in found if not option.form.startswith("-h,"))


def named(options: Iterable[Option], command: list[str]) -> Iterator[Option]:
    """Options in which what has a place rather than a name is called as it is in the command's signature."""
    function = commands.PICTURES[command[1]] if command[0] == "draw" else commands.COMMANDS[command[0]]
    parameters = inspect.signature(function).parameters.values()
    names = (parameter.name.upper() for parameter in parameters if get_origin(parameter.annotation) is Annotated)
    return (option if option.form[:2] in ("", "--") else option._replace(form=next(names)) for option in options)


def definitions(options: Iterable[Option]) -> list[nodes.Node]:
    """Options as lists of terms and definitions, a paragraph before each group that has one."""
    made: list[nodes.Node] = []
    for form, about in options:
        if not form:
            made.append(paragraph(about))
            continue
        if not made or not isinstance(made[-1], nodes.definition_list):
            made.append(nodes.definition_list())
        form = re.sub(r"\{None\}\||(?<=\{)None,", "", form)
        about = re.sub(r" ?\(default: (None)?\)$", "", about)
        about = re.sub(r" ?\(default: (.*)\)$", r" Default: `\1`.", about)
        about = about.replace(" (required)", " Required.")
        term = nodes.term("", "", nodes.literal(text=form))
        made[-1] += nodes.definition_list_item("", term, nodes.definition("", paragraph(about)))
    return made


class Options(SphinxDirective):
    """`{options} embed`: the options of a command, from its parser; `:only: train.` those that begin so."""

    required_arguments, final_argument_whitespace = 1, True
    option_spec: ClassVar = {"only": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        command = self.arguments[0].split()
        found = list(named(options_of(help_of(command)), command))
        if "only" in self.options:
            found = [option for option in found if option.form.startswith(f"--{self.options['only']}")]
        if not found:
            raise self.error(f"elmo-jax {self.arguments[0]} has no such options")
        return definitions(found)


class PublishedModels(SphinxDirective):
    """`{published-models}`: a table of all models that have names."""

    def run(self) -> list[nodes.Node]:
        rows = [
            (f"`{name}`", model.what, "?" if model.size is None else f"{model.size / 1e6:,.0f} MB", model.licence)
            for name, model in MODELS.items()
        ]
        return [table(("name", "what it is", "size", "licence"), rows)]


def table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> nodes.table:
    group = nodes.tgroup(cols=len(header))
    group += [nodes.colspec(colwidth=1) for _ in header]
    of_row = lambda row: nodes.row("", *(nodes.entry("", paragraph(cell)) for cell in row))
    group += nodes.thead("", of_row(header))
    group += nodes.tbody("", *map(of_row, rows))
    return nodes.table("", group)


class Drawing(SphinxDirective):
    """`{drawing} streams`: a drawing in the page itself, so that it has the page's colours."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        return [nodes.raw("", DRAWINGS[self.arguments[0]](), format="html")]


def plain_signature(
    app: Sphinx, what: str, name: str, obj: object, options: object, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Arrays of NumPy by their numbers alone; Flax modules without the fields that Flax adds."""

    def plain(text: str | None) -> str | None:
        text = text and re.sub(r"~?(numpy\.)?ndarray\[.*?dtype\[(~?[\w.]+)(\[.*?\])?\]\]", r"ndarray[\2]", text)
        return text and re.sub(r"(, )?parent: [^=]*= <[^>]*>, name: [^=]*= None", "", text)

    return plain(signature), plain(returns)


def plain_docstring(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Writes a docstring, which is plain English, in reStructuredText.

    Paragraphs stay; what lies further in is code; lines "name   what it is" become a list of definitions.
    """
    made: list[str] = []
    for block in re.split(r"\n\s*\n", "\n".join(lines).strip("\n")):
        rows = block.split("\n")
        columns = [re.match(r"(\S+) {2,}(\S.*)", row) for row in rows]
        if columns[0] and all(match or row.startswith(" ") for match, row in zip(columns, rows, strict=True)):
            for match, row in zip(columns, rows, strict=True):
                made += [f"``{match[1]}``", f"    {escaped(match[2])}"] if match else [f"    {escaped(row.strip())}"]
        elif rows[0].startswith("    "):
            made += ["::", "", *(f"    {row}" for row in rows)]
        else:
            made += [escaped(row.strip()) for row in rows]
        made.append("")
    lines[:] = made


def escaped(text: str) -> str:
    """Plain text in which only what stands between backticks means something."""
    parts = re.split(r"`([^`]+)`", text)
    return "".join(
        f"``{part}``" if number % 2 else re.sub(r"([*|_\\])", r"\\\1", part) for number, part in enumerate(parts)
    )


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("options", Options)
    app.add_directive("published-models", PublishedModels)
    app.add_directive("drawing", Drawing)
    app.connect("autodoc-process-signature", plain_signature)
    app.connect("autodoc-process-docstring", plain_docstring)
    return {"parallel_read_safe": True}
