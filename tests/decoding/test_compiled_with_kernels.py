"""
The compiled cycle with the kernels gives what plain decoding gives, is compiled once, and makes no long mask.

On a GPU the kernels run as they are. On a CPU they are forced, as operators of the captured graphs that run in
Triton's interpreter; attention is the PyTorch reference there, or, where a test says so, the kernel.
"""

from collections import Counter
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, Architecture, make_prompt, make_target
from batches import PlainBatch, decode_batch, decode_batch_plainly, pad_left
from exactness import GREEDY, SMALL_TREE, Plain, assert_exact, decode_plainly, decode_with_noisy_oracle
from test_compiled import LLAMA, TREE_ARCHITECTURES, assert_same_cycles, backend_of, compiled, fresh_compiler
from test_decoding_with_kernels import ATTENTION, DEVICE, HAS_GPU, on_device

from noisy_oracle import rows_are_followed
from transformers_griffin import GriffinDraftModel
from transformers_griffin.decoding import kernels
from transformers_griffin.modeling_griffin import DEFAULT_TREE


__all__ = ["fresh_compiler", "rows_are_followed"]

TINY_TREE = (6, 3, 2)
WINDOW = next(architecture for architecture in ARCHITECTURES if architecture.name == "Mistral, window")

pytestmark = [
    pytest.mark.skipif(find_spec("triton") is None, reason="Triton exists for Linux only"),
    pytest.mark.usefixtures("rows_are_followed"),
]


each_architecture = pytest.mark.parametrize("architecture", TREE_ARCHITECTURES, ids=lambda a: a.name)


@pytest.fixture(autouse=True)
def kernels_for_everyone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_enabled", True)
    if not HAS_GPU:
        monkeypatch.setattr(kernels, "available", lambda device: True)


@pytest.fixture
def attention_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers_griffin.decoding.kernels import tree_attention

    monkeypatch.setattr(tree_attention, ATTENTION, tree_attention.tree_attention)


def graph_nodes(settings: dict[str, Any]) -> list[torch.fx.Node]:
    return [node for graph in backend_of(settings).graphs for node in graph.graph.nodes]


def operators(settings: dict[str, Any]) -> Counter[str]:
    """How often each kernel's operator stands in the graphs."""
    names = [str(node.target).split(".") for node in graph_nodes(settings)]
    return Counter(name[1] for name in names if name[0] == "transformers_griffin")


@pytest.mark.usefixtures("attention_kernel")
@pytest.mark.parametrize("has_kernels", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_batch_is_answered_without_masks_as_long_as_the_cache(
    has_kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Windows, padding and gaps reach the attention kernel itself as bounds and bits, made of tensors that say how long
    the rows are. Without kernels there are such masks.
    """
    if not has_kernels:
        monkeypatch.setattr(kernels, "available", lambda device: False)
    plain: PlainBatch = on_device(decode_batch_plainly(WINDOW, 5, lengths=(13, 140, 16)))
    settings = compiled(fullgraph=True)
    ours, _ = decode_batch(plain, TINY_TREE, **settings)
    assert ours.sequences.tolist() == plain.sequences.tolist()
    assert len(set(map(tuple, ours.acceptance_lengths))) == 3
    expected = {
        "tree_attention": plain.target.config.num_hidden_layers + TINY_TREE[1],  # the draft has a layer, and 3 passes
        "grow_level": TINY_TREE[1],
        "build_tree": 1,
        "move_path": 2,  # the target's paths, and the draft's pairs
    }
    assert len(backend_of(settings).graphs) == 3, "drafting, verification and compaction"
    assert operators(settings) == (expected if has_kernels else {})
    assert (find_matrices(settings, num_columns=256) == []) == has_kernels


def find_matrices(settings: dict[str, Any], num_columns: int) -> list[torch.fx.Node]:
    """What the graphs compute that has several rows of `num_columns`; in these models caches alone are that long."""
    values = [(node, node.meta.get("example_value")) for node in graph_nodes(settings)]
    tensors = [(node, value) for node, value in values if isinstance(value, torch.Tensor) and value.dim() >= 3]
    return [node for node, tensor in tensors if tensor.shape[-2] > 1 and int(tensor.shape[-1]) == num_columns]


@pytest.mark.parametrize(
    "batches", [[(24,), (150,), (9,)], pytest.param([(13, 20, 16), (150, 9, 12), (7, 7, 4)], marks=pytest.mark.slow)]
)
def test_nothing_is_compiled_again_for_longer_and_shorter_prompts(batches: list[tuple[int, ...]]) -> None:
    settings, target = compiled(fullgraph=True), make_target(LLAMA).to(DEVICE)
    draft = GriffinDraftModel.from_target(target)
    draft.generation_config.update(**dict(zip(DEFAULT_TREE, TINY_TREE, strict=True)))
    for lengths in batches:
        inputs = {name: tensor.to(DEVICE) for name, tensor in pad_left([make_prompt(n) for n in lengths]).items()}
        greedy = GREEDY | {"max_new_tokens": 4}
        plain = target.generate(**inputs, **greedy)
        ours = target.generate(**inputs, assistant_model=draft, **greedy, **settings)
        assert ours.sequences.tolist() == plain.sequences.tolist()
        assert len(backend_of(settings).graphs) == 3


@pytest.mark.slow
@each_architecture
def test_greedy_answer_is_that_of_plain_decoding(architecture: Architecture) -> None:
    plain: Plain = on_device(decode_plainly(architecture, 20))
    settings = compiled()
    ours, _ = decode_with_noisy_oracle(plain, SMALL_TREE, **settings)
    assert_exact(plain, ours, SMALL_TREE[1])
    eager, _ = decode_with_noisy_oracle(plain, SMALL_TREE)
    assert_same_cycles(ours, eager)
    assert operators(settings)["move_path"] == 1  # one prompt's pairs lie in order


@pytest.mark.slow
@each_architecture
def test_rows_of_a_batch_are_those_of_plain_decoding(architecture: Architecture) -> None:
    """Three rows, padded on the left, that accept different numbers of tokens; the second one ends early."""
    plain: PlainBatch = on_device(decode_batch_plainly(architecture))
    eos, settings = plain.ends_at(1, 8), compiled()
    ours, _ = decode_batch(plain, SMALL_TREE, eos_token_id=eos, **settings)
    assert ours.sequences.tolist() == plain.cut_behind(eos)
    assert len(set(map(tuple, ours.acceptance_lengths))) == 3
    assert operators(settings)["move_path"] == 2


@pytest.mark.slow
@pytest.mark.usefixtures("attention_kernel")
def test_default_compiler_gives_the_answers_of_plain_decoding() -> None:
    """On a GPU with all that is default there, captured graphs included."""
    plain: PlainBatch = on_device(decode_batch_plainly(WINDOW, 16))
    settings = {"cache_implementation": "static"} if HAS_GPU else compiled("inductor", fullgraph=True)
    ours, _ = decode_batch(plain, SMALL_TREE, **settings)
    assert ours.sequences.tolist() == plain.sequences.tolist()
