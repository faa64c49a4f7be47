"""The documents tell the truth: README code runs, and everything public is documented."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
from transformers import LlamaConfig

import transformers_griffin as tg
from transformers_griffin.cli import build_parser


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def code_blocks(language: str) -> list[str]:
    """The fenced blocks of one language, in order; "" for those that name none."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
    return [block for name, block in blocks if name == language]


def test_the_readme_examples_run_from_the_root_of_the_checkout(monkeypatch, capsys):
    """All Python blocks in order, in one namespace, as a reader would paste them."""
    monkeypatch.chdir(ROOT)
    namespace: dict = {}
    for block in code_blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["output"].acceptance_lengths[0], "the example decodes in cycles"
    assert str(namespace["output"].acceptance_lengths) in capsys.readouterr().out


def test_the_readme_names_only_make_targets_that_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"^make ([\w-]+)", "\n".join(code_blocks("bash")), flags=re.MULTILINE))
    assert {"demo", "test"} <= named
    assert named <= set(re.findall(r"^([\w-]+):", makefile, flags=re.MULTILINE))


def test_the_readme_names_only_commands_that_exist():
    parser = build_parser()
    named = re.findall(r"^griffin (\w+)", "\n".join(code_blocks("bash")), flags=re.MULTILINE)
    assert named
    for command in named:
        with pytest.raises(SystemExit) as stopped:
            parser.parse_args([command, "--help"])
        assert stopped.value.code == 0


def test_the_annotated_tree_of_the_readme_matches_the_source_tree():
    tree = next(block for block in code_blocks("") if "loop.py" in block)
    source = ROOT / "src" / "transformers_griffin"
    modules = {path.name for path in [*source.glob("*.py"), *source.glob("decoding/*.py")]} - {"__init__.py"}
    missing = {name for name in modules if name not in tree}
    assert not missing, f"not in the README's tree: {missing}"


def test_every_path_that_the_paper_map_names_exists():
    for path in re.findall(r"`((?:\w+/)*\w+\.py)(?::(\w+))?`", README):
        file, name = path
        matches = [p for p in (ROOT / "src").rglob("*.py") if p.as_posix().endswith("/" + file)]
        assert matches, f"README names {file}, which does not exist"
        if name:
            assert re.search(rf"^\s*(def|class) {name}\b", matches[0].read_text(), flags=re.MULTILINE), path


@pytest.mark.parametrize("name", tg.__all__)
def test_every_public_name_has_a_docstring_of_its_own(name):
    documented = getattr(tg, name)
    assert documented.__doc__
    assert not documented.__doc__.startswith(f"{name}("), "an automatic dataclass signature is no docstring"


def test_every_field_of_the_draft_configuration_is_documented():
    own = {field.name for field in fields(tg.GriffinDraftConfig)} - {field.name for field in fields(LlamaConfig)}
    assert own
    for name in own:
        assert f"{name} (" in tg.GriffinDraftConfig.__doc__, f"{name} is not documented"
