"""The host waits for the device at most once a cycle."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from batches import pad_left
from generation_helpers import golden_pair, golden_prompts
from torch.utils._python_dispatch import TorchDispatchMode

from transformers_griffin.decoding import answer
from transformers_griffin.decoding.target_forward import TargetForward


# What reads a tensor's values on the host. On a GPU each of them waits until everything queued before is done.
READING_METHODS = ("item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__", "cpu")
READING_OPERATORS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.unique_dim.default,
    torch.ops.aten._unique2.default,
}


class HostWaits(TorchDispatchMode):
    """
    Counts reads of tensor values between `start` and the end, from Python and from inside operators.

    One read may pass through several of the counted doors (`bool(x)` ends in `_local_scalar_dense`): only the
    outermost counts. `tensor[mask]` reaches `nonzero` inside an operator, below what a dispatch mode sees, so boolean
    indices are counted at `index`.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        super().__init__()
        self.reads: Counter[str] = Counter()
        self.depth = 0
        for name in READING_METHODS:
            original = getattr(torch.Tensor, name)
            monkeypatch.setattr(torch.Tensor, name, self._counted(name, original))

    def _counted(self, name: str, original: Callable) -> Callable:
        def counted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.reads[name] += self.depth == 0
            self.depth += 1
            try:
                return original(tensor, *args, **kwargs)
            finally:
                self.depth -= 1

        return counted

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        has_mask = func is torch.ops.aten.index.Tensor and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        if self.depth == 0 and (func in READING_OPERATORS or has_mask):
            self.reads[str(func)] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def count_waits(monkeypatch):
    """Runs `generate()`; returns reads by kind after the prefill, and the number of cycles."""
    target, draft = golden_pair()
    after_prefill = {}

    def run(prompt: torch.Tensor | None = None, **settings: Any) -> tuple[Counter[str], int]:
        waits = HostWaits(monkeypatch)
        original = TargetForward.verify

        def verify(self, *args: Any) -> Any:
            after_prefill.setdefault("reads", waits.reads.copy())  # at the first cycle
            return original(self, *args)

        monkeypatch.setattr(TargetForward, "verify", verify)
        with waits:
            output = target.generate(
                golden_prompts()[0] if prompt is None else prompt,
                assistant_model=draft,
                return_dict_in_generate=True,
                **({"max_new_tokens": 40, "do_sample": False} | settings),
            )
        return waits.reads - after_prefill["reads"], max(map(len, output.acceptance_lengths))

    run.target = target
    return run


SETTINGS = {
    "greedy": {},
    "eos": {"eos_token_id": [9, 7]},
    "repetition_penalty": {"repetition_penalty": 1.2},
    "min_new_tokens": {"min_new_tokens": 20, "eos_token_id": 9},
    "scores": {"output_scores": True, "output_logits": True, "output_hidden_states": True},
    "sampling": {"do_sample": True},
    "temperature": {"do_sample": True, "temperature": 0.7},
    "temperature_top_p": {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 20, "min_p": 0.01},
    "typical": {"do_sample": True, "typical_p": 0.9},
}


@pytest.mark.parametrize("cache_implementation", [None, "static"])
@pytest.mark.parametrize("name", SETTINGS)
def test_host_reads_device_values_once_a_cycle(count_waits, name, cache_implementation):
    """After the prefill only `tolist` is called, to learn which path was accepted."""
    reads, num_cycles = count_waits(cache_implementation=cache_implementation, **SETTINGS[name])
    assert num_cycles >= 8
    assert reads == {"tolist": num_cycles}


def test_padded_prompt_costs_no_further_waits(count_waits):
    prompt = golden_prompts()[0]
    mask = torch.nn.functional.pad(torch.ones_like(prompt), (2, 0))[:, : prompt.shape[1]]
    reads, num_cycles = count_waits(attention_mask=mask)
    assert reads == {"tolist": num_cycles}


@pytest.mark.parametrize("cache_implementation", [None, "static"])
@pytest.mark.parametrize("name", ["greedy", "eos", "temperature_top_p", "repetition_penalty"])
def test_batch_costs_no_further_waits(count_waits, name, cache_implementation):
    """One read a cycle tells what every row accepted; 9 and 7 end two of the rows early."""
    inputs = pad_left(golden_prompts()[:3])
    reads, num_cycles = count_waits(
        inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        cache_implementation=cache_implementation,
        **SETTINGS[name],
    )
    assert num_cycles >= 8
    assert reads == {"tolist": num_cycles}


def test_a_wait_in_the_cycle_is_found(count_waits, monkeypatch):
    """The counter itself: one more read in the loop is one more wait a cycle."""
    original = answer.accept_path

    def slow_accept(tree, tokens, path_length):
        assert int(tree.depths.max()) < path_length
        return original(tree, tokens, path_length)

    monkeypatch.setattr(answer, "accept_path", slow_accept)
    reads, num_cycles = count_waits()
    assert reads == {"tolist": num_cycles, "__int__": num_cycles}


def test_mask_indexing_in_the_cycle_is_found(count_waits, monkeypatch):
    """The counter itself: `tensor[mask]` must know how many entries there are."""
    original = answer.accept_path

    def slow_accept(tree, tokens, path_length):
        tree.tokens[tree.depths > 0]
        return original(tree, tokens, path_length)

    monkeypatch.setattr(answer, "accept_path", slow_accept)
    reads, num_cycles = count_waits()
    assert reads == {"tolist": num_cycles, "aten.index.Tensor": num_cycles}
