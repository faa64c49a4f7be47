"""`import transformers_griffin` stays light, and modules import each other one way only."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import transformers_griffin


SRC = Path(transformers_griffin.__file__).parent
PACKAGE = transformers_griffin.__name__

# The reading order: a module may import from its own room and from rooms before it.
ROOMS = (
    "configuration_griffin",
    "modeling_griffin",
    "checkpoint_files",
    "conversion",
    "decoding",
    "evaluation",
    "hub",
    "training",
    "demo_page",
    "cli",
)
# Within decoding, too.
DECODING = (
    "draft_tree",
    "levels",
    "kernels",
    "draft_head",
    "growing_layers",
    "transfers",
    "kv_cache",
    "verification",
    "tree_settings",
    "adaptive_depth",
    "candidate_generator",
    "finished_rows",
    "choice",
    "answer",
    "target_forward",
    "compiled",
    "outputs",
    "prompt_pairs",
    "loop",
    "generate_hook",
)
HEAVY = (
    "datasets",
    "accelerate",
    "matplotlib",
    "peft",
    "gradio",
    "triton",
    "pandas",
    "sklearn",
    "transformers.trainer",
)


def imports_of(path: Path) -> set[str]:
    """Modules of ours that a file imports anywhere, relative to the package: "decoding.loop", "modeling_griffin"."""
    package = [PACKAGE, *path.relative_to(SRC).parent.parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from . import x` may name a module or an attribute of the package.
            found |= {f"{module}.{alias.name}" for alias in node.names} if is_package(module) else {module}
    ours = {name.removeprefix(f"{PACKAGE}.") for name in found if name.startswith(f"{PACKAGE}.")}
    return {name for name in ours if is_module(name)} | {
        name.rpartition(".")[0] for name in ours if not is_module(name)
    }


def is_package(name: str) -> bool:
    return name == PACKAGE or (SRC / name.removeprefix(f"{PACKAGE}.").replace(".", "/") / "__init__.py").is_file()


def is_module(name: str) -> bool:
    path = SRC / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def room_of(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def modules() -> list[Path]:
    return sorted(path for path in SRC.rglob("*.py") if room_of(path) != "__init__")


def test_import_reader_finds_every_form_of_import(tmp_path, monkeypatch):
    """The reader itself, on `from ..x import y`, `from . import a`, `from .a import b` and `import p.x`."""
    room = tmp_path / "decoding"
    room.mkdir()
    for name in (
        "__init__",
        "modeling_griffin",
        "conversion",
        "decoding/__init__",
        "decoding/loop",
        "decoding/choice",
    ):
        (tmp_path / f"{name}.py").touch()
    file = room / "reader.py"
    file.write_text(
        "import torch\n"
        "from ..modeling_griffin import GriffinDraftModel\n"
        "from . import loop\n"
        "def late():\n"
        "    from .choice import StopChecker\n"
        "    import transformers_griffin.conversion\n"
    )
    monkeypatch.setattr(sys.modules[__name__], "SRC", tmp_path)
    assert imports_of(file) - {""} == {"modeling_griffin", "decoding.loop", "decoding.choice", "conversion"}


def test_every_module_has_a_room():
    assert {room_of(path) for path in modules()} <= set(ROOMS)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SRC)))
def test_modules_import_only_from_their_own_room_and_earlier_ones(path):
    """DESIGN: configuration -> modeling -> decoding -> evaluation -> hub -> training -> cli."""
    own = ROOMS.index(room_of(path))
    for imported in imports_of(path) - {""}:
        assert ROOMS.index(imported.split(".")[0]) <= own, f"{path.name} imports {imported}"


@pytest.mark.parametrize("position", range(len(DECODING)), ids=DECODING)
def test_decoding_is_read_from_trees_to_hook(position):
    path = SRC / "decoding" / DECODING[position]
    files = path.glob("*.py") if path.is_dir() else [path.with_suffix(".py")]
    imported = set().union(*(imports_of(file) for file in files))
    own_room = {name.split(".")[1] for name in imported if name.startswith("decoding.")}
    assert own_room - {DECODING[position]} <= set(DECODING[:position])


def test_model_file_can_travel_alone():
    """The Hub carries `modeling_griffin.py` and `configuration_griffin.py` as remote code, nothing else of ours."""
    assert imports_of(SRC / "modeling_griffin.py") == {"configuration_griffin"}
    assert imports_of(SRC / "configuration_griffin.py") == set()


@pytest.fixture(scope="module")
def loaded_by_the_package() -> set[str]:
    """What `import transformers_griffin` loads in a fresh interpreter beyond transformers' own generation."""
    code = (
        "import json, sys, transformers.generation.utils, transformers.models.llama.modeling_llama\n"
        "before = set(sys.modules)\n"
        f"import {PACKAGE}\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("heavy", HEAVY)
def test_importing_the_package_loads_nothing_heavy(loaded_by_the_package, heavy):
    assert not {name for name in loaded_by_the_package if name == heavy or name.startswith(f"{heavy}.")}


def test_importing_the_package_loads_only_model_and_decoding(loaded_by_the_package):
    ours = {name.removeprefix(f"{PACKAGE}.") for name in loaded_by_the_package if name.startswith(f"{PACKAGE}.")}
    assert {name.split(".")[0] for name in ours} == {"configuration_griffin", "modeling_griffin", "decoding"}


def test_every_public_name_can_be_imported_and_listed():
    for name in transformers_griffin.__all__:
        assert getattr(transformers_griffin, name).__name__ == name
    assert set(transformers_griffin.__all__) <= set(dir(transformers_griffin))


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'transformers_griffin' has no attribute 'GriffinDraft'"):
        transformers_griffin.GriffinDraft  # noqa: B018


def test_contract_names_are_public():
    """DESIGN section 3."""
    assert {
        "GriffinDraftConfig",
        "GriffinDraftModel",
        "GriffinCandidateGenerator",
        "GriffinGenerateOutput",
        "GriffinTrainer",
        "GriffinTrainingArguments",
        "convert_checkpoint",
        "push_draft_to_hub",
    } <= set(transformers_griffin.__all__)
