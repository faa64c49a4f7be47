"""`griffin tune`: what it prints, what it writes and what it refuses."""

import json
import shutil

import pytest
from safetensors.torch import load_file
from transformers import GenerationConfig

from conftest import GOLDEN
from transformers_griffin.cli import main
from transformers_griffin.decoding.tree_settings import tokens_per_row


RELEASED = GOLDEN / "llama_gqa" / "draft_official"


@pytest.fixture
def copied(pair, tmp_path):
    """A copy of the pair that a test may write into, with two prompts."""
    copy = shutil.copytree(pair, tmp_path / "pair")
    (copy / "my.jsonl").write_text('{"prompt": "w5 w9 w3"}\n{"turns": ["w7 w8", "w1"]}\n')
    return copy


def tune_args(copied, *more: str) -> list[str]:
    args = [
        "tune",
        "--target",
        str(copied / "target"),
        "--draft",
        str(copied / "draft"),
        "--prompts",
        str(copied / "my.jsonl"),
    ]
    return [*args, "--max-new-tokens", "8", "--num-tokens", "2", "4", "--depths", "2", "--widths", "1", "2", *more]


def test_tune_saves_the_winner_and_nothing_else(copied, capsys):
    weights = load_file(copied / "draft" / "model.safetensors")
    config = (copied / "draft" / "config.json").read_text()
    assert main(tune_args(copied, "--save", "--finalists", "1")) == 0
    *text, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert result["num_trees"] == 4  # (2, 2, 1), (2, 2, 2), (4, 2, 2) and the draft's own
    assert result["saved"]
    assert result["provenance"]["arguments"]["num_tokens"] == [2, 4]
    # One tree, and the draft's own if it is another; the best with the head in int8 too.
    same_depth = [row["tree"] for row in result["confirmed"] if row["tree"]["draft_level_cost"] is None]
    assert [tree["draft_head_dtype"] for tree in same_depth].count("int8") == 1
    assert len(same_depth) in (2, 3)
    assert any(line.startswith("plain decoding ") for line in text)
    saved = GenerationConfig.from_pretrained(copied / "draft")
    assert {name: getattr(saved, name) for name in result["best"]["tree"]} == result["best"]["tree"]
    assert (copied / "draft" / "config.json").read_text() == config
    written = load_file(copied / "draft" / "model.safetensors")
    assert all((written[name] == weights[name]).all() for name in weights)


def test_a_tree_tuned_for_a_batch_is_saved_with_the_size_of_the_batch(copied):
    one_tree = ["--num-tokens", "2", "--widths", "1", "--finalists", "1", "--max-new-tokens", "4"]
    assert main(tune_args(copied, "--save", "--batch-size", "2", *one_tree)) == 0
    saved = GenerationConfig.from_pretrained(copied / "draft")
    assert saved.draft_tree_batch_size == 2
    assert tokens_per_row(saved, vocab_size=61, batch_size=2) == saved.num_assistant_tokens


def test_a_useless_draft_is_recommended_against_and_nothing_is_written(copied, capsys):
    """A random draft costs passes and is never right: plain decoding must win."""
    before = (copied / "draft" / "generation_config.json").read_text()
    assert main(tune_args(copied, "--max-new-tokens", "24", "--depths", "4", "--num-tokens", "4")) == 0
    *text, last = capsys.readouterr().out.splitlines()
    assert json.loads(last)["is_recommended"] is False
    assert json.loads(last)["speedup_ratio"] < 1
    assert "Do not use this draft here." in " ".join(text)
    assert (copied / "draft" / "generation_config.json").read_text() == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--draft", str(RELEASED), "--save"], "is a released checkpoint, which has no place for tree settings"),
        (["--draft", "user/draft", "--save"], "writes into the draft's directory, but user/draft is none"),
        (["--num-tokens", "99"], "No tree has 99 tokens, 2 levels and a width of 1 or 2"),
        (["--prompts", "missing.jsonl"], "'missing.jsonl' is no file and no prompt set"),
    ],
)
def test_what_cannot_be_tuned_is_one_line_on_stderr(copied, more, message, capsys):
    assert main(tune_args(copied, *more)) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("griffin tune: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
