"""The metrics as modules of `evaluate`: loaded from their folders without network, equal to the plain functions."""

import socket
import sys

import evaluate
import pytest

from transformers_griffin.evaluation import acceptance_by_depth, load_metric, mean_acceptance_length, misaligned_rates
from transformers_griffin.evaluation.modules import FOLDER


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a metric asked the network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_tau_as_a_module_equals_the_function(tmp_path):
    lengths = [[1, 3], [4, 4], [], [7]]
    metric = load_metric("acceptance_length", cache_dir=str(tmp_path))
    result = metric.compute(predictions=lengths)
    assert result["tau"] == mean_acceptance_length(lengths) == 19 / 5
    assert result["acceptance_by_depth"] == acceptance_by_depth(lengths, depth=6)


def test_answers_can_be_added_as_they_come_and_the_depth_be_named(tmp_path):
    metric = evaluate.load(str(FOLDER / "acceptance_length"), cache_dir=str(tmp_path))
    metric.add(prediction=[1, 3])
    metric.add_batch(predictions=[[4, 4]])
    assert metric.compute(depth=1) == {"tau": 3.0, "acceptance_by_depth": [0.75]}


def test_the_misaligned_rate_as_a_module_equals_the_function(tmp_path):
    """Chains `x .` and `. x` and `x`: the second has left the answer for good."""
    metric = load_metric("misaligned_rate", cache_dir=str(tmp_path))
    found = metric.compute(
        predictions=[[[1, 2], [3, 4]], [[1, 2], [5, 6]], [[8, 9]]], references=[[2, 7], [3, 5], [8]]
    )
    expected = misaligned_rates([[True, False], [False, True], [True]])
    assert found == {"misaligned_rate": expected} == {"misaligned_rate": [1 / 3, 1.0]}


@pytest.mark.parametrize("name", ["acceptance_length", "misaligned_rate"])
def test_modules_describe_themselves_and_their_examples_hold(name, tmp_path):
    metric = load_metric(name, cache_dir=str(tmp_path))
    assert metric.description
    assert "hu2025griffin" in metric.citation
    example, expected = metric.inputs_description.split(">>> ")[2].strip().split("\n")
    assert repr(eval(example, {"tau": metric, "misaligned": metric})) == expected


def test_unknown_metrics_and_a_missing_library_are_named(monkeypatch):
    with pytest.raises(ValueError, match="no metric 'bleu'; there are acceptance_length, misaligned_rate"):
        load_metric("bleu")
    monkeypatch.setitem(sys.modules, "evaluate", None)
    with pytest.raises(ImportError, match=r"transformers-griffin\[evaluate\]"):
        load_metric("acceptance_length")
