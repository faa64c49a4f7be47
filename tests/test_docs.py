"""The documentation tells the truth: everything public is described, code runs, and commands exist."""

import importlib
import re
import runpy
import shlex
import subprocess
import sys
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlparse

import pytest

from transformers_griffin.cli import SUBCOMMANDS, build_parser
from transformers_griffin.training import GriffinTrainingArguments, RecipeArguments
from transformers_griffin.training.recipe import read_recipe


ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
ROOMS = (
    "transformers_griffin",
    "transformers_griffin.evaluation",
    "transformers_griffin.evaluation.report",
    "transformers_griffin.hub",
    "transformers_griffin.training",
)
hooks = runpy.run_path(str(DOCS / "hooks.py"))


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [block for name, block in found if name == language]


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_public_name_is_in_the_reference_and_nothing_else():
    described = [
        name
        for path in DOCS.glob("reference/*.md")
        for name in re.findall(r"^::: (\S+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    ]
    assert len(described) == len(set(described))
    package, *rooms = ROOMS
    at_the_top = importlib.import_module(package).__all__
    expected = {f"{package}.{name}" for name in at_the_top}
    for room in rooms:  # what the package offers at the top is described there
        expected |= {f"{room}.{name}" for name in importlib.import_module(room).__all__ if name not in at_the_top}
    assert set(described) == expected


@pytest.mark.parametrize("path", [path for path in PAGES if blocks(path, "python")], ids=page_id)
def test_the_python_of_a_page_runs_from_the_root_of_the_checkout(path, monkeypatch):
    """All blocks in order, in one namespace, as a reader would paste them."""
    monkeypatch.chdir(ROOT)
    namespace: dict = {}
    for block in blocks(path, "python"):
        exec(compile(block, str(path), "exec"), namespace)


def griffin_lines(path: Path) -> list[str]:
    text = "\n".join(blocks(path, "bash")).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.startswith("griffin ")]


@pytest.mark.parametrize("path", [*PAGES, ROOT / "README.md", ROOT / "trainers/README.md"], ids=page_id)
def test_every_griffin_command_of_a_document_can_be_parsed(path):
    parser = build_parser()
    for line in griffin_lines(path):
        parser.parse_args(shlex.split(line, comments=True)[1:])


def test_commands_are_found_in_the_documents():
    assert sum(len(griffin_lines(path)) for path in PAGES) >= 10


def test_the_recipe_in_the_training_guide_has_only_keys_that_exist(tmp_path):
    (recipe,) = blocks(DOCS / "training.md", "yaml")
    (tmp_path / "recipe.yaml").write_text(recipe)
    assert read_recipe(str(tmp_path / "recipe.yaml"))["objective"] == "griffin"


def test_the_notebooks_that_the_quickstart_lists_are_those_that_exist():
    listed = re.findall(r"`(\d\d_\w+\.ipynb)`", (DOCS / "quickstart.md").read_text(encoding="utf-8"))
    assert listed == sorted(path.name for path in (ROOT / "examples").glob("*.ipynb"))


# ---------------------------------------------------------------------- what is generated


def test_the_command_reference_holds_the_help_of_every_subcommand():
    page = hooks["on_page_markdown"]((DOCS / "reference/commands.md").read_text(encoding="utf-8"))
    assert "{{" not in page
    for module in SUBCOMMANDS:
        name = module.__name__.rpartition(".")[2]
        assert f"## griffin {name}\n\n```text\nusage: griffin {name} " in page
        assert module.EXAMPLES.splitlines()[-1] in page


@pytest.mark.parametrize("kind", [GriffinTrainingArguments, RecipeArguments])
def test_the_tables_of_arguments_hold_every_field_of_ours_with_its_help(kind):
    page = hooks["on_page_markdown"]((DOCS / "training.md").read_text(encoding="utf-8"))
    own = [item for item in fields(kind) if item.name in vars(kind)["__annotations__"]]
    assert len(own) > 10
    for item in own:
        assert f"| `{item.name}` | `{item.default}` | {item.metadata['help']} |" in page


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        (
            "see [<code>GriffinDraftModel</code>]",
            'see <autoref identifier="transformers_griffin.GriffinDraftModel" optional>'
            "<code>GriffinDraftModel</code></autoref>",
        ),
        ("[<code>~transformers.Trainer</code>]", "<code>Trainer</code>"),
        ("(<code>[`~transformers.Trainer`], *optional*</code>)", "(<code>Trainer, *optional*</code>)"),
        ("an [index] of <code>a</code>", "an [index] of <code>a</code>"),
    ],
)
def test_names_in_docstrings_become_links_where_there_is_something_to_link_to(html, expected):
    assert hooks["on_page_content"](html) == expected


# ---------------------------------------------------------------------- the built site


class Loads(HTMLParser):
    """Hosts that a page fetches from by itself; links that a reader may click do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.hosts: set[str | None] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "a":
            self.hosts |= {urlparse(value).hostname for name, value in attrs if name in ("src", "href") and value}


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) >= len(PAGES)
    for page in pages:
        loads = Loads()
        loads.feed(page.read_text(encoding="utf-8"))
        assert loads.hosts <= {None}, page
    reference = (tmp_path / "site/reference/index.html").read_text(encoding="utf-8")
    assert "[<code>" not in reference
    assert 'id="transformers_griffin.GriffinDraftModel.from_target"' in reference
