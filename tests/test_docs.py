"""The pages of docs/: the site builds, every block of code runs, every message and public name is one of the code."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import ROOT, SMALL, script_environment, write_random_model
from test_published import OPTIONS, WEIGHTS, Server

import elmo_jax
from elmo_jax import commands, published

DOCS = ROOT / "docs"
PAGES = sorted(path.stem for path in DOCS.glob("*.md"))
# Of blocks that no test runs, what they lack.
LACKING = (
    "it installs packages",
    "it takes hours",
    "there is no such mirror",
    "it needs a cluster with GPUs",
    "it needs GPUs",
    "it needs a TPU",
    "it needs TensorBoard",
    "it needs PyTorch",
)
BLOCK = re.compile(r"(?:^<!-- ([^>]*) -->\n)?^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A block of code of a page: its language, what a comment before it says, and what it prints, if that is there."""

    language: str
    comment: str
    code: str
    printed: str | None


def blocks(page: str) -> list[Block]:
    """The blocks that are run, and those that are not, in their order; "…" in what is printed stands for anything."""
    found: list[Block] = []
    for comment, language, code in BLOCK.findall((DOCS / f"{page}.md").read_text()):
        if language == "text":
            assert found[-1].printed is None, code
            found[-1] = found[-1]._replace(printed=code)
        elif not language.startswith("{"):
            assert language in ("sh", "python"), (page, language)
            found.append(Block(language, comment, code, None))
    return found


def rows(page: str) -> list[Block]:
    """The middle column of a page's table of three, as blocks; the last says of which shape it is, if it is code."""
    found = []
    for code, gives in re.findall(
        r"^\|[^|]*\| `([^|]*)` \| ([^|]*) \|$", (DOCS / f"{page}.md").read_text(), re.MULTILINE
    ):
        language = "sh" if code.startswith("elmo-jax ") else "python"
        if gives.startswith("`"):
            code, gives = f"print(tuple(({code}).shape))", gives.strip("`")
            found.append(Block(language, "", code, gives))
        else:
            found.append(Block(language, "", code, None))
    return found


# Runs blocks in one process and one folder, Python's in one namespace; prints what each gave.
RUN = """
import contextlib, io, json, subprocess, sys
import matplotlib

matplotlib.use("agg")
names = {"__name__": "__main__"}
for language, code in json.load(sys.stdin):
    printed, failure, code_of_exit = io.StringIO(), "", 0
    if language == "sh":
        done = subprocess.run(["bash", "-eo", "pipefail", "-c", code], capture_output=True, text=True)
        printed, failure, code_of_exit = io.StringIO(done.stdout), done.stderr, done.returncode
    else:
        try:
            with contextlib.redirect_stdout(printed):
                exec(compile(code, "block", "exec"), names)
        except Exception as error:
            failure, code_of_exit = str(error), 2 if type(error).__name__ == "InputError" else 1
            if code_of_exit == 1:
                raise
    print(json.dumps([printed.getvalue(), failure, code_of_exit]), file=sys.__stdout__, flush=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the pages find: the project's files and a tiny model, which is hardly trained; "small" comes from here."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("README.md", "CONTRIBUTING.md"):
        shutil.copy2(ROOT / name, folder)
    shutil.copytree(ROOT / "configs", folder / "configs")
    server, small = Server(), write_random_model(folder / "small", SMALL)
    server.files = {OPTIONS: (small / "options.json").read_bytes(), WEIGHTS: (small / "weights.hdf5").read_bytes()}
    shutil.rmtree(small)
    environment = script_environment() | {
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        "PYTHONWARNINGS": "error",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",  # most of the time is compiling
        "XDG_CACHE_HOME": str(folder / "cache"),
        published.MIRROR: server.address,
    }
    train = "elmo-jax train tiny --workdir runs/demo --train.steps 20"
    subprocess.run(train.split(), cwd=folder, env=environment, check=True, capture_output=True)
    yield folder, environment
    server.close()


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_every_block_runs(page, folder):
    """In the order of the page, with what it says that they print; then what stands in the last column of tables."""
    where, environment = folder
    run = [block for block in blocks(page) if not block.comment.startswith("not run")]
    run += rows(page) if page == "coming_from" else []
    code = json.dumps([(block.language, block.code) for block in run])
    done = subprocess.run(
        [sys.executable, "-c", RUN], cwd=where, env=environment, input=code, capture_output=True, text=True
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(run), (run[len(results)], done.stderr[-3000:])
    for block, (printed, failure, exit_code) in zip(run, results, strict=True):
        fails = block.comment == "fails"
        assert exit_code == (2 if fails else 0), (block, printed, failure[-3000:])
        if block.printed is not None:
            shown = failure.strip().splitlines()[-1] if fails else printed.strip()
            assert re.fullmatch(re.escape(block.printed.strip()).replace("…", ".*"), shown), (block, shown)


def test_blocks_that_are_not_run_say_what_they_lack():
    comments = [block.comment for page in PAGES for block in blocks(page) if block.comment]
    assert {comment.removeprefix("not run: ") for comment in comments if comment != "fails"} == set(LACKING)
    assert len([comment for comment in comments if comment != "fails"]) == len(LACKING)


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path):
    """Links within it are checked by that. The models' table and the commands' options are those of the code."""
    build = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", DOCS, tmp_path]
    done = subprocess.run(build, capture_output=True, text=True, env=script_environment())
    assert done.returncode == 0, done.stderr[-3000:]
    html = {path.stem: path.read_text() for path in tmp_path.glob("*.html")}
    assert html.keys() >= {*PAGES}
    for name in published.MODELS:
        assert f">{name}</span>" in html["models"], name
    for command in set(commands.COMMANDS) - {"train", "embed", "draw"}:
        for parameter in commands.COMMANDS[command].__annotations__.keys() - {"return"}:
            assert re.search(rf">(--{parameter}|{parameter.upper()}),?</span>", html["commands"]), parameter
    for option in ("--model.cell_dim", "--data.heldout", "--train.learning_rate", "--distributed.process_id"):
        assert f">{option}</span>" in html["pretraining"], option
    assert html["how_it_works"].count("<svg viewBox") == 3
    for name in elmo_jax.__all__:
        assert f'id="elmo_jax.{name}"' in html["api"], name


def test_links_have_the_form_of_links():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)]*)\)", (DOCS / f"{page}.md").read_text()):
            picture = target.startswith("static/") and (DOCS / target).is_file()
            assert picture or re.fullmatch(r"https://[\w.-]+\.\w+(/[\w./%-]*)?|\w+\.md(#[\w-]+)?", target), (
                page,
                target,
            )


def messages() -> list[str]:
    """All strings of the package, what is formatted into them cut out."""
    found = []
    for path in (ROOT / "elmo_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_every_picture_is_shown():
    pages = "".join((DOCS / f"{page}.md").read_text() for page in PAGES)
    pictures = [path.relative_to(DOCS).as_posix() for path in (DOCS / "static" / "results").rglob("*.*")]
    assert pictures
    assert [path for path in pictures if f"({path})" not in pages] == []


def test_the_messages_are_those_of_the_code():
    """Each message of the page is in the package, in its words: "…" stands for what is formatted into it."""
    known = messages()
    terms = re.findall(r"^`(.*)`\n: ", (DOCS / "errors.md").read_text(), re.MULTILINE)
    assert len(terms) > 40
    for term in terms:
        for part in filter(None, map(str.strip, term.split("…"))):
            assert any(part in message for message in known), (term, part)
