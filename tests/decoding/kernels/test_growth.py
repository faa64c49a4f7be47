"""Levels and trees are those that drafting grows without kernels, ties and overflows included."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_cases import DEVICE

from transformers_griffin.decoding import draft_tree, levels
from transformers_griffin.decoding.draft_tree import CandidatePool
from transformers_griffin.decoding.kernels import growth
from transformers_griffin.decoding.kernels.packed_mask import pack_tree_mask
from transformers_griffin.decoding.levels import Beam, join_levels, propose_children, root_beam


VOCAB_SIZE = 40
ROOTS = torch.tensor([[1], [7]], device=DEVICE)

# (depth, k, nodes): small; the paper's; a chain. In the large one nodes and level slots take two words.
TREES = [(3, 2, 6), (6, 10, 60), (5, 1, 6)]
LARGE_TREE = (8, 9, 70)
CASES = [(*tree, kind) for tree in TREES for kind in ("plain", "ties", "overflow")] + [(*LARGE_TREE, "ties")]


def level_logits(tokens: torch.Tensor, kind: str) -> torch.Tensor:
    """Logits of shape `(batch_size, beam, vocab_size)` that depend on the tokens and nothing else."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(VOCAB_SIZE, VOCAB_SIZE, generator=generator) * 3
    if kind == "ties":
        table = table.round()  # many equal scores
        table[::3, 5] = 200.0  # and certain children, whose score is their parent's
    if kind == "overflow":
        table[::4] = torch.nan
        table[1::4, 3] = torch.inf
    return table.to(DEVICE)[tokens]


def grow(grow_level: Callable[..., Any], root_sees: torch.Tensor, depth: int, k: int, kind: str) -> Any:
    """The candidates of all levels, and the beams."""
    beam, parts, beams = root_beam(root_sees), [], []
    for level in range(depth):
        tokens = ROOTS if level == 0 else beam.tokens
        beam, candidates = grow_level(*propose_children(level_logits(tokens, kind), k), beam, level)
        parts.append(candidates)
        beams.append(beam)
    return join_levels(parts, DEVICE), beams


def pack(sees: torch.Tensor) -> torch.Tensor:
    """Rows of a packed mask, of rows with 11 and 7 slots of prefix."""
    ends = torch.tensor([11, 7], device=DEVICE)
    return pack_tree_mask(sees, torch.zeros_like(sees[..., 0], dtype=torch.long), ends, ends.amax(0, True)).squeeze(1)


def grow_with_kernel(depth: int, k: int, kind: str) -> tuple[CandidatePool, list[Beam]]:
    no_slots = torch.zeros(2, 1, depth * k, dtype=torch.bool, device=DEVICE)
    return grow(growth.grow_level, pack(no_slots), depth, k, kind)


def grow_with_reference(depth: int, k: int, kind: str) -> tuple[CandidatePool, list[Beam]]:
    return grow(levels.grow_level, torch.ones(2, 1, 0, dtype=torch.bool, device=DEVICE), depth, k, kind)


def assert_equal_fields(ours: Any, theirs: Any) -> None:
    for name, tensor in vars(theirs).items():
        assert torch.equal(getattr(ours, name), tensor), name


@pytest.mark.filterwarnings("ignore:invalid value encountered in subtract")  # the interpreter's, of inf - inf
@pytest.mark.parametrize(("depth", "k", "num_nodes", "kind"), CASES)
def test_kernels_grow_and_pick_the_reference_tree(depth: int, k: int, num_nodes: int, kind: str) -> None:
    pool, beams = grow_with_kernel(depth, k, kind)
    expected_pool, expected_beams = grow_with_reference(depth, k, kind)
    assert_equal_fields(pool, expected_pool)
    for level, (beam, expected) in enumerate(zip(beams, expected_beams, strict=True)):
        sees = torch.nn.functional.pad(expected.sees, (0, (depth - level - 1) * k))  # the levels below are no columns
        assert torch.equal(beam.sees, pack(sees))
        assert_equal_fields(
            beam, Beam(expected.tokens, expected.scores, expected.pool_index, expected.rows, beam.sees)
        )
    tree = growth.build_tree(ROOTS, pool, num_nodes, depth)
    assert_equal_fields(tree, draft_tree.build_tree(ROOTS, pool, num_nodes, depth))


def test_the_best_of_equal_children_stand_first() -> None:
    """Worked by hand: scores -1, -2 | -1, -1 of parents at place 0 and 1; ties go to the lower index."""
    zeros = torch.zeros(1, 2, device=DEVICE)
    index = torch.tensor([[0, 1]], device=DEVICE)
    sees = torch.tensor([[[0, 9, 9, 0b01], [0, 9, 9, 0b10]]], device=DEVICE)
    tokens = torch.tensor([[[11, 12], [13, 14]]], device=DEVICE)
    log_probs = torch.tensor([[[-1.0, -2.0], [-1.0, -1.0]]], device=DEVICE)
    beam, candidates = growth.grow_level(tokens, log_probs, Beam(index, zeros, index, index, sees), level=1)
    assert beam.tokens.tolist() == [[11, 13]]
    assert beam.pool_index.tolist() == [[2, 4]]
    assert beam.rows.tolist() == [[0, 1]]
    assert beam.sees.tolist() == [[[0, 9, 9, 0b0101], [0, 9, 9, 0b1010]]]
    assert candidates.parents.tolist() == [[0, 0, 1, 1]]
