"""Where kernels run, and where PyTorch does."""

import logging

import pytest
import torch

from transformers_griffin.decoding import kernels


GPU = torch.device("cuda", 0)


@pytest.fixture
def enabled(monkeypatch):
    monkeypatch.setattr(kernels, "_enabled", True)


@pytest.fixture
def no_triton(monkeypatch):
    monkeypatch.setattr(kernels, "HAS_TRITON", False)


def test_nobody_has_kernels_who_did_not_ask(monkeypatch):
    monkeypatch.delenv(kernels.VARIABLE, raising=False)
    assert not kernels.available(GPU)


@pytest.mark.parametrize(("value", "is_on"), [("1", True), ("true", True), ("0", False), ("", False)])
def test_the_environment_switches_kernels_on(monkeypatch, value, is_on):
    monkeypatch.setenv(kernels.VARIABLE, value)
    assert kernels.available(GPU) is is_on


def test_a_call_overrules_the_environment(monkeypatch):
    monkeypatch.setattr(kernels, "_enabled", None)  # put back behind the test
    monkeypatch.setenv(kernels.VARIABLE, "0")
    kernels.enable()
    assert kernels.available(GPU)
    monkeypatch.setenv(kernels.VARIABLE, "1")
    kernels.enable(False)
    assert not kernels.available(GPU)


def test_compiled_code_is_told_the_same_and_when_it_changes(monkeypatch):
    monkeypatch.setattr(kernels, "_enabled", None)
    compiled = torch.compile(lambda x: x + kernels.available(GPU), backend="eager", fullgraph=True)
    for is_on in (True, False, True):
        kernels.enable(is_on)
        assert compiled(torch.zeros(())).item() == is_on


def test_a_cpu_has_no_kernels(enabled):
    """Not even in Triton's interpreter, which is for tests."""
    assert not kernels.available(torch.device("cpu"))


def test_a_gpu_without_triton_says_so_once(enabled, no_triton, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers_griffin"), "propagate", True)
    with caplog.at_level(logging.WARNING, logger=kernels.logger.name):
        assert not kernels.available(GPU)
        assert not kernels.available(torch.device("cuda", 1))
    assert [record.message for record in caplog.records] == [
        "Triton is not installed: GRIFFIN's kernels, though enabled, are replaced by PyTorch code."
    ]
