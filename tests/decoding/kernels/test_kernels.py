"""Where kernels run, and where PyTorch does."""

import logging

import pytest
import torch

from transformers_griffin.decoding import kernels


@pytest.fixture
def no_triton(monkeypatch):
    kernels._has_triton.cache_clear()
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    yield
    kernels._has_triton.cache_clear()


def test_a_cpu_has_no_kernels():
    """Not even in Triton's interpreter, which is for tests."""
    assert not kernels.available(torch.device("cpu"))


def test_a_gpu_has_kernels_if_triton_is_installed():
    assert kernels.available(torch.device("cuda", 0))


def test_a_gpu_without_triton_says_so_once(no_triton, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers_griffin"), "propagate", True)
    with caplog.at_level(logging.INFO, logger=kernels.logger.name):
        assert not kernels.available(torch.device("cuda", 0))
        assert not kernels.available(torch.device("cuda", 1))
    assert [record.message for record in caplog.records] == [
        "Triton is not installed: GRIFFIN's kernels are replaced by slower PyTorch code."
    ]
