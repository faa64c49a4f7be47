"""
Decoding with the kernels gives what plain decoding gives.

On a GPU they run as they are. On a CPU they are forced: growth, walk and compaction run in Triton's interpreter, and
the packed masks go through the attention interface to the PyTorch reference, or, where a test says so, to the kernel.
"""

import threading
from collections import Counter
from copy import deepcopy
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, Architecture, make_prompt, make_target
from batches import PlainBatch, decode_batch, decode_batch_plainly, tau_of
from exactness import GREEDY, PAPER_TREE, SMALL_TREE, Plain, assert_exact, decode_plainly, decode_with_noisy_oracle
from torch.utils._python_dispatch import TorchDispatchMode

from noisy_oracle import noisy_oracle, rows_are_followed
from transformers_griffin.decoding import kernels
from transformers_griffin.decoding.kernels.attention_function import TREE_IMPLEMENTATION, can_read_packed_masks
from transformers_griffin.decoding.kernels.packed_mask import is_left_padded
from transformers_griffin.decoding.target_forward import TargetForward


__all__ = ["rows_are_followed"]

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
ATTENTION = "tree_attention" if HAS_GPU else "tree_attention_reference"
BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}
TREE_ARCHITECTURES = [architecture for architecture in ARCHITECTURES if architecture.mode == "tree"]
# Full attention, windows, both, and learned positions; the last one runs without sdpa, and so without packed masks.
FEW = [
    BY_NAME[name]
    for name in (
        "Llama",
        "Mistral, window",
        "Gemma 3, alternating windows",
        "GPT-2, learned positions",
        "GPT-OSS, sinks, alternating windows",
    )
]
few_architectures = pytest.mark.parametrize("architecture", FEW, ids=lambda a: a.name)

pytestmark = [
    pytest.mark.skipif(find_spec("triton") is None, reason="Triton exists for Linux only"),
    pytest.mark.usefixtures("rows_are_followed"),
]


@pytest.fixture(autouse=True)
def launches(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Kernels for everyone; counts their calls."""
    from transformers_griffin.decoding.kernels import accept_walk, compaction, growth, tree_attention

    monkeypatch.setattr(kernels, "_enabled", True)
    if not HAS_GPU:
        monkeypatch.setattr(kernels, "available", lambda device: True)
    counter: Counter[str] = Counter()
    for module, name in (
        (growth, "grow_level"),
        (growth, "build_tree"),
        (accept_walk, "accept_walk"),
        (compaction, "move_path"),
        (tree_attention, ATTENTION),
    ):
        monkeypatch.setattr(module, name, counted(getattr(module, name), name, counter))
    return counter


def counted(function: Any, name: str, counter: Counter[str]) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        counter[name] += 1
        return function(*args, **kwargs)

    return call


def on_device(plain: Any) -> Any:
    """The same question to a target on the GPU, if there is one."""
    if not HAS_GPU:
        return plain
    moved: dict[str, Any] = {"target": deepcopy(plain.target).to(DEVICE)}
    for name in ("prompt", "prompts", "mask", "sequences"):
        if hasattr(plain, name):
            moved[name] = getattr(plain, name).to(DEVICE)
    return replace(plain, **moved)


def assert_answer_is_exact(architecture: Architecture, launches: Counter[str]) -> None:
    """
    With the paper's tree and the default cache. In a cycle one launch grows each of the 6 levels, one builds the tree,
    one walks, and one keeps the path in all layers; the draft's one layer attends to a tree 6 times, but not to the
    prompt, and each layer of the target once.
    """
    plain: Plain = on_device(decode_plainly(architecture, 20))
    launches.clear()
    ours, _ = decode_with_noisy_oracle(plain, PAPER_TREE)
    assert_exact(plain, ours, depth=6)
    num_cycles = len(ours.acceptance_lengths[0])
    assert launches["grow_level"] == 6 * num_cycles
    assert launches["build_tree"] == launches["accept_walk"] == launches["move_path"] == num_cycles
    num_layers = plain.target.config.get_text_config(decoder=True).num_hidden_layers
    of_target = num_layers * num_cycles if can_read_packed_masks(plain.target) else 0
    assert launches[ATTENTION] == 6 * num_cycles - 1 + of_target


@few_architectures
def test_greedy_answer_is_the_plain_one(architecture: Architecture, launches: Counter[str]) -> None:
    assert_answer_is_exact(architecture, launches)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", TREE_ARCHITECTURES, ids=lambda a: a.name)
def test_greedy_answer_is_the_plain_one_everywhere(architecture: Architecture, launches: Counter[str]) -> None:
    assert_answer_is_exact(architecture, launches)


def test_the_few_architectures_do_not_all_take_packed_masks() -> None:
    assert [can_read_packed_masks(make_target(architecture)) for architecture in FEW] == [True] * 4 + [False]


def assert_batch_is_exact(architecture: Architecture, cache: str, launches: Counter[str], num_new: int = 32) -> None:
    """Three rows, padded on the left, that accept different numbers of tokens; the second one ends early."""
    plain: PlainBatch = on_device(decode_batch_plainly(architecture, num_new))
    eos = plain.ends_at(1, 10)
    launches.clear()
    ours, _ = decode_batch(plain, SMALL_TREE, eos_token_id=eos, cache_implementation=cache)
    assert ours.sequences.tolist() == plain.cut_behind(eos)
    assert 1.3 < tau_of(ours) < 4.8
    num_cycles = max(map(len, ours.acceptance_lengths))
    assert launches["build_tree"] == launches["accept_walk"] == num_cycles
    # The draft's cache closes gaps with it, too; and once more, rows that ended before others read their last tokens.
    assert num_cycles <= launches["move_path"] <= 2 * num_cycles + 1
    # 4 passes of the draft in a cycle; every target has two layers or more.
    assert (launches[ATTENTION] >= 6 * num_cycles - 1) == can_read_packed_masks(plain.target)


@few_architectures
def test_greedy_answers_of_a_batch_are_the_plain_ones(architecture: Architecture, launches: Counter[str]) -> None:
    assert_batch_is_exact(architecture, "dynamic", launches)


def test_greedy_answers_of_a_batch_are_the_plain_ones_with_a_static_cache(launches: Counter[str]) -> None:
    assert_batch_is_exact(BY_NAME["Gemma 3, alternating windows"], "static", launches)


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("architecture", TREE_ARCHITECTURES, ids=lambda a: a.name)
def test_greedy_answers_of_a_batch_are_the_plain_ones_everywhere(
    architecture: Architecture, cache: str, launches: Counter[str]
) -> None:
    assert_batch_is_exact(architecture, cache, launches)


def test_a_batch_is_answered_with_the_attention_kernel_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows, padding and gaps reach the kernel as bounds and bits."""
    from transformers_griffin.decoding.kernels import tree_attention

    monkeypatch.setattr(tree_attention, ATTENTION, tree_attention.tree_attention)
    plain: PlainBatch = on_device(decode_batch_plainly(BY_NAME["Mistral, window"], 16))
    ours, _ = decode_batch(plain, SMALL_TREE)
    assert ours.sequences.tolist() == plain.sequences.tolist()
    assert len(set(map(tuple, ours.acceptance_lengths))) == 3


def test_two_threads_may_verify_trees_with_one_target() -> None:
    """The inner answer begins and ends within one forward of the outer one, which goes on with packed masks."""
    target, prompt, other_prompt = make_target(BY_NAME["Llama"]).to(DEVICE), make_prompt(9), make_prompt(5, seed=1)
    prompt, other_prompt = prompt.to(DEVICE), other_prompt.to(DEVICE)
    plain, other_plain = (target.generate(p, **GREEDY).sequences for p in (prompt, other_prompt))
    draft, other_draft = (noisy_oracle(target, answer, SMALL_TREE) for answer in (plain, other_plain))
    generating, found, seen = threading.get_ident(), [], set()

    def answer_other() -> None:
        found.append(target.generate(other_prompt, assistant_model=other_draft, **GREEDY).sequences.tolist())

    def run_another(*_: Any) -> None:
        seen.add(target.config._attn_implementation)
        if threading.get_ident() == generating and len(found) < 2:
            other = threading.Thread(target=answer_other)
            other.start()
            other.join()

    handle = target.get_input_embeddings().register_forward_pre_hook(run_another)
    ours = target.generate(prompt, assistant_model=draft, **GREEDY).sequences
    handle.remove()
    assert ours.tolist() == plain.tolist()
    assert found == [other_plain.tolist()] * 2  # within the outer prefill, and within its first verification
    assert seen == {"sdpa", TREE_IMPLEMENTATION}
    assert target.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("mask", "expected"),
    [(None, True), ([[1, 1, 1], [0, 0, 1]], True), ([[1, 1, 1], [1, 0, 1]], False), ([[1, 1, 0]], False)],
)
def test_only_padding_on_the_left_can_be_packed(mask: list[list[int]] | None, expected: bool) -> None:
    assert is_left_padded(None if mask is None else torch.tensor(mask, device=DEVICE)) is expected


def test_masks_are_packed_for_sdpa_and_dtypes_of_the_kernel_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    target = make_target(BY_NAME["Llama"]).to(DEVICE)
    assert can_read_packed_masks(target)
    assert not can_read_packed_masks(target.double())
    assert not can_read_packed_masks(make_target(BY_NAME["Llama"], "eager").to(DEVICE))
    monkeypatch.setattr(kernels, "available", lambda device: False)
    assert not can_read_packed_masks(target.float())


class NoLongMasks(TorchDispatchMode):
    """Fails as soon as an operator makes a tensor with several rows that are as long as a cache."""

    def __init__(self, lengths: range):
        super().__init__()
        self.lengths = lengths
        self.num_matrices = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.dim() > 1 and tensor.shape[-2] > 1:
                self.num_matrices += 1
                assert tensor.shape[-1] not in self.lengths, f"{func} makes {tuple(tensor.shape)}"
        return result


def decode_watched(monkeypatch: pytest.MonkeyPatch) -> int:
    """
    Number of cycles of a short answer, watched from the first verification on.

    The cache has 130 slots and some more; nothing else in these models is as wide.
    """
    plain: Plain = on_device(decode_plainly(BY_NAME["Llama"], 130))
    mode, verify, num_cycles = NoLongMasks(range(130, 150)), TargetForward.verify, 0

    def watched(self: TargetForward, *args: Any) -> Any:
        nonlocal num_cycles
        if num_cycles == 0:
            mode.__enter__()
        num_cycles += 1
        return verify(self, *args)

    monkeypatch.setattr(TargetForward, "verify", watched)
    try:
        ours, _ = decode_with_noisy_oracle(plain, (6, 3, 2), max_new_tokens=6)
    finally:
        mode.__exit__(None, None, None)
    assert ours.sequences.tolist() == plain.output.sequences[:, :136].tolist()
    assert mode.num_matrices > 100
    return num_cycles


def test_no_mask_as_long_as_the_cache_is_ever_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """By target and draft, with the attention kernel itself."""
    from transformers_griffin.decoding.kernels import tree_attention

    monkeypatch.setattr(tree_attention, ATTENTION, tree_attention.tree_attention)
    assert decode_watched(monkeypatch) >= 2


def test_without_kernels_such_a_mask_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch itself."""
    monkeypatch.setattr(kernels, "available", lambda device: False)
    with pytest.raises(AssertionError, match=r"makes \(1, 7, 13\d\)"):
        decode_watched(monkeypatch)
