"""Benchmark results survive a round trip through their file."""

import json

import pytest

from transformers_griffin.evaluation.results import (
    BenchmarkResults,
    Estimate,
    Method,
    Setting,
    Summary,
)


def some_results() -> BenchmarkResults:
    return BenchmarkResults(
        title="mini pair",
        target="examples/mini/target",
        methods=[Method("griffin", "draft", "GRIFFIN", num_parameters=10, tree={"num_assistant_tokens": 10})],
        settings=[Setting("float32 T=0", "float32", {"do_sample": False})],
        summaries=[Summary("float32 T=0", "griffin", "all", 1, 1, 8, tau=Estimate(2.0, 1.5, 2.5))],
        provenance={"versions": {"torch": "2.13.0"}},
    )


def test_results_come_back_as_they_were_saved(tmp_path):
    some_results().save(tmp_path / "results.json")
    assert BenchmarkResults.load(tmp_path) == some_results()
    assert BenchmarkResults.load(tmp_path / "results.json") == some_results()
    assert not [*tmp_path.glob("*.part")]


def test_a_file_of_another_kind_is_refused_by_name(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps([1]))
    with pytest.raises(ValueError, match=r"results\.json has the schema version None, but 1 is read"):
        BenchmarkResults.load(tmp_path)


def test_a_setting_is_greedy_unless_it_samples():
    assert Setting("a", "float32", {}).is_greedy
    assert not Setting("b", "float32", {"do_sample": True}).is_greedy


def test_a_missing_file_is_named_with_what_to_give(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"results\.json does not exist\. Give the results\.json"):
        BenchmarkResults.load(tmp_path)
