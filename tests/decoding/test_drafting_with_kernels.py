"""
Drafting with the kernels grows the trees of drafting without them, node for node.

Growth runs in Triton's interpreter on a CPU. The draft's packed masks go to the PyTorch reference of tree attention
there, or, where a test says so, to the kernel.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import pytest
import torch
from test_candidate_generator import (
    assert_same_tree,
    draft_tree_in_chunks,
    generator_of,
    random_draft,
    random_pairs,
)

from transformers_griffin import GriffinCandidateGenerator, GriffinDraftModel
from transformers_griffin.decoding import kernels
from transformers_griffin.decoding.draft_tree import DraftTree
from transformers_griffin.decoding.kernels import int8_linear
from transformers_griffin.decoding.kernels.attention_function import TREE_IMPLEMENTATION


pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton exists for Linux only")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BATCH_SIZE = 3
SCORE_TOLERANCE = 1e-3  # both attend in float32, and what they round differently is fed back level by level
# Pairs that each of three rows reads in a round; the first round is a prompt, of which row 1 has padding in front.
ROUNDS = [[9, 9, 9], [3, 1, 2], [1, 4, 2], [2, 2, 1]]


@contextmanager
def forced_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "available", lambda device: True)
        yield


def float_draft(with_ties: bool = False, vocabulary: int | None = None) -> GriffinDraftModel:
    """Kernels read no float64. With ties every token has a twin that is as probable, at every node."""
    draft = random_draft()
    _, head = draft._borrowed()
    if with_ties:
        head.weight.data[30:60] = head.weight.data[:30]
    if vocabulary is not None:
        draft.truncate_vocabulary(range(1, 1 + 2 * vocabulary, 2))
    for module in (draft, head, draft._borrowed()[0]):
        module.to(device=DEVICE, dtype=torch.float32)
    return draft


def draft_rounds(
    generator: GriffinCandidateGenerator, mask: list[list[int]] | None, ragged: bool, num_rounds: int = len(ROUNDS)
) -> list[DraftTree]:
    """The trees of several rounds; in the fourth one row 1 has left the batch."""
    trees = []
    for index, num_new in enumerate(ROUNDS[:num_rounds]):
        tokens, features = (t.to(DEVICE) for t in random_pairs(max(num_new), BATCH_SIZE, seed=index))
        if index == len(ROUNDS) - 1:
            generator.keep_rows([0, 2])
            tokens, features, num_new = tokens[[0, 2]], features[[0, 2]], [num_new[0], num_new[2]]
        is_prompt = index == 0
        padding_mask = torch.tensor(mask, device=DEVICE) if mask is not None and is_prompt else None
        counts = num_new if ragged and not is_prompt else None
        trees.append(generator.draft_tree(tokens, features.float(), padding_mask, num_new=counts))
    return trees


ALL, LEFT, HOLE = [1] * 9, [0, 0] + [1] * 7, [1, 1, 0] + [1] * 6
TREES = {"small": (12, 4, 3), "two words": (40, 8, 9), "chain": (5, 5, 1), "one level": (4, 1, 6)}


@pytest.mark.parametrize(
    ("tree", "mask", "ragged", "with_ties", "vocabulary"),
    [
        ("small", None, False, False, None),
        ("small", None, True, True, None),
        ("small", [ALL, LEFT, ALL], True, False, None),
        ("small", [ALL, LEFT, ALL], False, False, 20),
        ("small", [ALL, HOLE, ALL], True, False, None),
        ("two words", [ALL, LEFT, ALL], True, True, None),
        ("chain", [ALL, LEFT, ALL], True, False, None),
        ("one level", None, True, False, 20),
    ],
)
def test_kernels_draft_the_same_trees(
    tree: str,
    mask: list[list[int]] | None,
    ragged: bool,
    with_ties: bool,
    vocabulary: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draft = float_draft(with_ties, vocabulary)
    expected = draft_rounds(generator_of(draft, *TREES[tree]), mask, ragged)
    with forced_kernels(monkeypatch):
        generator = generator_of(draft, *TREES[tree])
        assert generator.packs_masks
        found = draft_rounds(generator, mask, ragged)
        assert generator.packs_masks == (mask is None or HOLE not in mask)  # bounds know no holes
    for ours, wanted in zip(found, expected, strict=True):
        assert_same_tree(ours, wanted, SCORE_TOLERANCE)
    assert draft.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("mask", [None, [ALL, LEFT, ALL], [ALL, [1] * 5 + [0] + [1] * 3, ALL]])
@pytest.mark.parametrize(("depth", "chunk_size"), [(2, 4), (4, 5)])
def test_kernels_draft_the_same_trees_under_a_prompt_in_chunks(
    depth: int, chunk_size: int, mask: list[list[int]] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    9 pairs; a chunk with more of them than a cycle emits is not packed. The hole lies where chunks of 5 meet, and no
    chunk shows it by itself.
    """
    draft, (tokens, features) = float_draft(), (t.to(DEVICE) for t in random_pairs(9, BATCH_SIZE))
    prompt = [tokens, features.float()] + ([] if mask is None else [torch.tensor(mask, device=DEVICE)])
    expected = generator_of(draft, depth=depth).draft_tree(*prompt)
    is_packed = []
    draft.register_forward_pre_hook(
        lambda *_: is_packed.append(draft.config._attn_implementation == TREE_IMPLEMENTATION)
    )
    with forced_kernels(monkeypatch):
        generator = generator_of(draft, depth=depth)
        found = draft_tree_in_chunks(generator, chunk_size, *prompt)
    assert_same_tree(found, expected, SCORE_TOLERANCE)
    has_hole = mask is not None and LEFT not in mask
    assert generator.packs_masks != has_hole
    if depth == 2:  # chunks of 4, 4 and 1 pairs, where a cycle emits 3 at most
        assert is_packed[:3] == [False, False, not has_hole]


def test_the_attention_kernel_itself_drafts_the_same_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding, gaps, what a row has just read and the levels reach it as bounds and bits."""
    from transformers_griffin.decoding.kernels import tree_attention

    draft = float_draft()
    expected = draft_rounds(generator_of(draft, 6, 3, 2), [ALL, LEFT, ALL], True, num_rounds=2)
    monkeypatch.setattr(tree_attention, "tree_attention_reference", tree_attention.tree_attention)
    with forced_kernels(monkeypatch):
        found = draft_rounds(generator_of(draft, 6, 3, 2), [ALL, LEFT, ALL], True, num_rounds=2)
    for ours, wanted in zip(found, expected, strict=True):
        assert_same_tree(ours, wanted, SCORE_TOLERANCE)


def test_levels_are_packed_while_they_are_read_and_only_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round is one pass over the new pairs, and one for each level but the last; a prompt is read as ever."""
    draft = float_draft()
    seen = []
    draft.register_forward_pre_hook(lambda *_: seen.append(draft.config._attn_implementation))
    with forced_kernels(monkeypatch):
        draft_rounds(generator_of(draft, depth=4), None, ragged=False)
    assert seen == ["sdpa"] + [TREE_IMPLEMENTATION] * 3 + [TREE_IMPLEMENTATION] * 4 * (len(ROUNDS) - 1)


@pytest.mark.parametrize("reason", ["float64", "eager"])
def test_drafts_that_the_attention_kernel_does_not_serve_are_grown_without(
    reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = float_draft()
    if reason == "float64":
        draft.double()
    else:
        draft.set_attn_implementation("eager")
    with forced_kernels(monkeypatch):
        assert not generator_of(draft).packs_masks


def test_a_head_in_int8_is_read_with_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    draft, calls = float_draft(), []
    draft.generation_config.update(num_assistant_tokens=6, draft_tree_depth=3, draft_tree_top_k=2)
    draft.generation_config.draft_head_dtype = "int8"
    multiply = int8_linear.int8_linear

    def spy(*args: torch.Tensor) -> torch.Tensor:
        calls.append([args[0].shape[0], args[1].dtype])
        return multiply(*args)

    with forced_kernels(monkeypatch):
        monkeypatch.setattr(int8_linear, "int8_linear", spy)
        draft_rounds(GriffinCandidateGenerator(draft, batch_size=BATCH_SIZE), None, ragged=False, num_rounds=2)
    a_round = [[BATCH_SIZE, torch.int8]] + [[2 * BATCH_SIZE, torch.int8]] * 2
    assert calls == 2 * a_round
