"""`griffin push`: what it lists, what it uploads and how it fails."""

import re

import pytest
from hub_helpers import some_results, tiny_draft

from conftest import GOLDEN
from transformers_griffin.cli import main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A draft in `draft`, results in `results`, in the current directory."""
    monkeypatch.chdir(tmp_path)
    tiny_draft().save_pretrained("draft")
    (tmp_path / "results").mkdir()
    some_results().save("results/results.json")
    return tmp_path


def test_a_dry_run_writes_the_folder_and_lists_it(folder, hub, capsys):
    args = ["push", "draft", "alice/mine", "--target", "user/target", "--results", "results", "--license", "mit"]
    assert main([*args, "--dry-run"]) == 0
    *lines, total = capsys.readouterr().out.splitlines()
    listed = {line.split()[2]: int(line.split()[0].replace(",", "")) for line in lines}
    written = {
        path.relative_to(folder / "mine").as_posix(): path.stat().st_size
        for path in (folder / "mine").rglob("*")
        if path.is_file()
    }
    assert listed == written
    assert {"README.md", "results.json", "model.safetensors", "custom_generate/generate.py"} <= listed.keys()
    assert re.fullmatch(rf"\s*{sum(written.values()):,} bytes  in 9 files of mine would go to alice/mine", total)
    assert hub.requests == []


def test_what_was_listed_is_what_goes_up(folder, hub, capsys):
    args = ["push", "draft", "alice/mine", "--target", "user/target", "--results", "results", "--license", "mit"]
    assert main([*args, "--dry-run", "--folder", "dry"]) == 0
    assert main([*args, "--private", "--commit-message", "Mine"]) == 0
    commit = hub.repos["alice/mine"].at("main")
    assert capsys.readouterr().out.splitlines()[-1] == f"Published {hub.url}/alice/mine/commit/{commit.oid}"
    assert commit.title == "Mine"
    assert hub.repos["alice/mine"].is_private
    for name, content in hub.files("alice/mine").items():
        assert name == ".gitattributes" or (folder / "dry" / name).read_bytes() == content, name


def test_a_branch_a_pull_request_and_shards_are_asked_for_by_options(folder, hub, capsys):
    assert main(["push", "draft", "alice/mine", "--revision", "small", "--max-shard-size", "20KB"]) == 0
    assert "model.safetensors.index.json" in hub.files("alice/mine", "small")
    assert "config.json" not in hub.files("alice/mine")
    assert main(["push", "draft", "alice/mine", "--create-pr", "--token", "hf_bob"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"Published {hub.url}/alice/mine/discussions/1"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["draft", "alice/mine", "--token", "hf_nobody"], "401"),
        (["draft", "bob/mine"], "403"),
        (["alice/nowhere", "alice/mine"], "alice/nowhere is not a local folder"),
        (["draft", "alice/mine", "--folder", "x"], "`--folder x` is for --dry-run"),
        (["draft", "alice/mine", "--dry-run", "--folder", "results"], "results is there and not empty"),
        (["draft", "alice/mine", "--results", "draft/config.json"], "has the schema version None, but 1 is read"),
        ([str(GOLDEN / "llama_gqa" / "draft_official"), "alice/mine"], "Convert a released checkpoint first"),
    ],
)
def test_a_failed_push_is_one_line_on_stderr(folder, hub, capsys, args, message):
    assert main(["push", *args]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    last = captured.err.splitlines()[-1]
    assert last.startswith("griffin push: ")
    assert not hub.repos
