"""A published draft loads three ways, each in a fresh interpreter that has, or has not, the package."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from hub_helpers import tiny_draft

import transformers_griffin
from conftest import tiny_llama
from transformers_griffin import push_draft_to_hub


PACKAGE = Path(transformers_griffin.__file__).parent
ROOT = Path(__file__).parents[2]
PROMPT = "torch.tensor([[5, 9, 11]])"
GENERATE = "max_new_tokens=12, do_sample=False, pad_token_id=0, return_dict_in_generate=True"


@pytest.fixture(scope="module")
def site_without_package(tmp_path_factory) -> Path:
    """All installed packages but ours, which an editable install would find through its .pth file."""
    site = tmp_path_factory.mktemp("site")
    for kind in ("purelib", "platlib"):
        for entry in Path(sysconfig.get_paths()[kind]).iterdir():
            is_ours = "transformers_griffin" in entry.name
            if not is_ours and entry.suffix != ".pth" and not (site / entry.name).exists():
                (site / entry.name).symlink_to(entry)
    return site


@pytest.fixture(scope="module")
def site_with_package(tmp_path_factory) -> Path:
    """Our package and what pip knows about it."""
    site = tmp_path_factory.mktemp("package")
    (site / "transformers_griffin").symlink_to(PACKAGE)
    info = site / "transformers_griffin-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers-griffin\nVersion: 0.1\n")
    return site


@pytest.fixture
def run(hub, tmp_path, site_without_package, site_with_package):
    """Runs a script that sees the test's Hub with an empty cache, and returns what it prints as JSON."""

    def run_script(script: str, has_package: bool) -> dict:
        paths = [site_without_package, *([site_with_package] if has_package else [])]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / f"home_{has_package}"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_CACHE": str(tmp_path / f"home_{has_package}" / "hub"),
            "HF_MODULES_CACHE": str(tmp_path / f"home_{has_package}" / "modules"),
        }
        whole_script = f"import json, sys, torch\nfound = {{}}\n{script}\nprint(json.dumps(found))"
        done = subprocess.run(
            [sys.executable, "-S", "-c", whole_script],
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run_script


@pytest.fixture
def published(hub, tmp_path) -> Path:
    """`alice/my.draft-1` and its target on the Hub, a name that is no name of a Python module; and on disk."""
    draft, target = tiny_draft(), tiny_llama()
    push_draft_to_hub(draft, "alice/my.draft-1", license="mit")
    target.save_pretrained(tmp_path / "target")
    hub.add_repo("alice/target", {path.name: path.read_bytes() for path in (tmp_path / "target").iterdir()})
    local = tmp_path / "local draft"
    for name, content in hub.files("alice/my.draft-1").items():
        (local / name).parent.mkdir(parents=True, exist_ok=True)
        (local / name).write_bytes(content)
    return local


def test_without_the_package_the_network_loads_as_remote_code(run, published):
    """By name and from a folder; the passes are those of the package's own class. Decoding says what it needs."""
    found = run(
        f"""
from transformers import AutoModel, AutoModelForCausalLM
target = AutoModelForCausalLM.from_pretrained("alice/target")
prompt = {PROMPT}
for name in ("alice/my.draft-1", {str(published)!r}):
    draft = AutoModel.from_pretrained(name, trust_remote_code=True).bind(target)
    features = torch.ones(1, 3, 32)
    found[name] = draft(input_ids=prompt, features=features).predict.sum().item()
    found["tree of " + name] = draft.generation_config.num_assistant_tokens
found["class"] = type(draft).__module__
for what, kwargs in (
    ("custom_generate", {{"custom_generate": "alice/my.draft-1", "trust_remote_code": True}}),
    ("assistant_model", {{"assistant_model": draft}}),
):
    try:
        target.generate(prompt, **kwargs)
    except Exception as error:
        found[what] = str(error)
draft.save_pretrained("again")
again = AutoModel.from_pretrained("again", trust_remote_code=True).bind(target)
found["again"] = again(input_ids=prompt, features=features).predict.sum().item()
found["ours"] = any(name.startswith("transformers_griffin") for name in sys.modules)
""",
        has_package=False,
    )
    import torch

    draft = tiny_draft().bind(tiny_llama())
    expected = draft(input_ids=torch.tensor([[5, 9, 11]]), features=torch.ones(1, 3, 32)).predict.sum().item()
    for name in ("alice/my.draft-1", str(published), "again"):
        assert found[name] == pytest.approx(expected, rel=1e-5)
    assert found["tree of alice/my.draft-1"] == found[f"tree of {published}"] == 8
    assert found["class"].startswith("transformers_modules.")
    assert not found["ours"]
    assert "Run `pip install transformers_griffin`" in found["custom_generate"]
    assert "pip install transformers-griffin" in found["assistant_model"]


def test_with_the_package_drafts_load_by_name_and_by_custom_generate(run, published, hub):
    """All ways give the target's own tokens; remote code is not run where the package is there."""
    found = run(
        f"""
from transformers import AutoModel, AutoModelForCausalLM
target = AutoModelForCausalLM.from_pretrained("alice/target")
prompt = {PROMPT}
early = AutoModel.from_pretrained("alice/my.draft-1", trust_remote_code=True)
found["plain"] = target.generate(prompt, {GENERATE}).sequences.tolist()
for name in ("alice/my.draft-1", {str(published)!r}):
    output = target.generate(prompt, custom_generate=name, trust_remote_code=True, token="hf_alice", {GENERATE})
    found[name] = output.sequences.tolist()
    found["cycles of " + name] = output.acceptance_lengths
import transformers_griffin
try:
    target.generate(prompt, assistant_model=early)
except RuntimeError as error:
    found["early"] = str(error)
for trust in (None, True):
    draft = AutoModel.from_pretrained("alice/my.draft-1", trust_remote_code=trust)
    found[f"class {{trust}}"] = type(draft).__module__
output = target.generate(prompt, assistant_model=draft, {GENERATE})
found["loaded"] = output.sequences.tolist()
found["tree"] = draft.generation_config.num_assistant_tokens
""",
        has_package=True,
    )
    assert len(found["plain"][0]) == 15
    assert found["loaded"] == found["alice/my.draft-1"] == found[str(published)] == found["plain"]
    assert sum(found["cycles of alice/my.draft-1"][0]) == sum(found[f"cycles of {published}"][0]) == 11
    assert found["tree"] == 8
    assert found["class None"] == found["class True"] == "transformers_griffin.modeling_griffin"
    assert "import transformers_griffin" in found["early"]
    downloads = [request for request in hub.requests if request.startswith("GET /lfs/")]
    assert len(downloads) == 2, "target and draft, each once"


@pytest.mark.slow
def test_a_wheel_brings_all_that_publishing_needs(tmp_path, site_without_package):
    """Built by pip as users' installations are, installed into an empty directory, run from there."""
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel], check=True)
    assert (tmp_path / "site" / "transformers_griffin" / "hub" / "templates" / "draft_card.md").is_file()
    tiny_draft().save_pretrained(tmp_path / "draft")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (site_without_package, tmp_path / "site"))),
        "HF_HUB_OFFLINE": "1",
    }
    command = ["push", "draft", "alice/mine", "--license", "mit", "--dry-run"]
    done = subprocess.run(
        [sys.executable, "-S", "-m", "transformers_griffin.cli", *command],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        check=True,
    )
    assert "in 8 files of mine would go to alice/mine" in done.stdout
    for name in ("modeling_griffin.py", "custom_generate/generate.py"):
        assert (tmp_path / "mine" / name).is_file()
