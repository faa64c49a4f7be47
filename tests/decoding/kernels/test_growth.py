"""Levels and trees are those that drafting grows without kernels, ties and overflows included."""

import pytest
import torch
from kernel_cases import DEVICE

from transformers_griffin.decoding.draft_tree import CandidatePool, build_tree, pool_size, propose_children
from transformers_griffin.decoding.kernels.growth import grow_level, pick_nodes
from transformers_griffin.decoding.kernels.levels import Beam, Pool, empty_pool, grow_level_reference, root_beam
from transformers_griffin.decoding.kernels.packed_mask import join_bounds, pack_bits, unpack_tree_mask


VOCAB_SIZE = 40

# (depth, k, nodes): small; the paper's; a chain. In the large one nodes and level slots take two words.
TREES = [(3, 2, 6), (6, 10, 60), (5, 1, 6)]
LARGE_TREE = (8, 9, 70)
CASES = [(*tree, kind) for tree in TREES for kind in ("plain", "ties", "overflow")] + [(*LARGE_TREE, "ties")]


def level_logits(beam: Beam, kind: str) -> torch.Tensor:
    """Logits of shape `(batch_size, beam, vocab_size)` that depend on the beam's tokens and nothing else."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(VOCAB_SIZE, VOCAB_SIZE, generator=generator) * 3
    if kind == "ties":
        table = table.round()  # many equal scores
        table[::3, 5] = 200.0  # and certain children, whose score is their parent's
    if kind == "overflow":
        table[::4] = torch.nan
        table[1::4, 3] = torch.inf
    return table.to(DEVICE)[beam.tokens]


def grow(grow_one_level, depth: int, k: int, kind: str) -> tuple[Pool, list[Beam]]:
    roots = torch.tensor([[1], [7]], device=DEVICE)
    beam, pool, beams = root_beam(roots, depth * k), empty_pool(2, pool_size(depth, k), DEVICE), []
    for level in range(depth):
        logits = level_logits(beam, kind)
        top_logits, tokens = logits.topk(k, dim=-1)
        beam = grow_one_level(top_logits, tokens, logits.float().logsumexp(dim=-1), beam, pool, level)
        beams.append(beam)
    return pool, beams


def assert_equal_fields(ours, theirs) -> None:
    for name, tensor in vars(theirs).items():
        assert torch.equal(getattr(ours, name), tensor), name


@pytest.mark.filterwarnings("ignore:invalid value encountered in subtract")  # the interpreter's, of inf - inf
@pytest.mark.parametrize(("depth", "k", "num_nodes", "kind"), CASES)
def test_kernels_grow_and_pick_the_reference_tree(depth, k, num_nodes, kind):
    pool, beams = grow(grow_level, depth, k, kind)
    expected_pool, expected_beams = grow(grow_level_reference, depth, k, kind)
    assert_equal_fields(pool, expected_pool)
    for beam, expected in zip(beams, expected_beams, strict=True):
        assert_equal_fields(beam, expected)

    roots = torch.tensor([[1], [7]], device=DEVICE)
    tree = build_tree(roots, CandidatePool(pool.tokens, pool.scores, pool.parents), num_nodes, depth)
    tokens, parents, depths, words, scores = pick_nodes(roots, pool, num_nodes, depth)
    assert torch.equal(tokens, tree.tokens)
    assert torch.equal(parents, tree.parents)
    assert torch.equal(depths, tree.depths)
    assert torch.equal(words, pack_bits(tree.ancestors))
    assert torch.equal(scores, tree.scores)


@pytest.mark.parametrize("kind", ["plain", "ties", "overflow"])
def test_reference_proposes_what_drafting_proposes(kind):
    pool, beams = grow(grow_level_reference, depth=3, k=4, kind=kind)
    tokens, scores = propose_children(level_logits(beams[1], kind), beams[1].scores, 4)
    assert torch.equal(pool.tokens[:, 4 + 16 :], tokens.flatten(1))
    assert torch.equal(pool.scores[:, 4 + 16 :], scores.flatten(1))
    assert torch.equal(pool.parents[:, 4 + 16 :], beams[1].pool_index.repeat_interleave(4, dim=1))
    assert torch.equal(beams[2].scores, scores.flatten(1).sort(descending=True).values[:, :4])


def test_levels_see_what_drafting_shows_them():
    """The columns are gathered from the parents' and a diagonal is appended, level by level, as drafting does."""
    k, prefix_length = 4, 5
    _, beams = grow(grow_level, depth=3, k=k, kind="plain")
    itself = torch.eye(k, dtype=torch.bool, device=DEVICE).expand(2, -1, -1)
    sees_levels = itself
    for beam in beams[1:]:
        parent_sees = sees_levels.gather(1, beam.rows.unsqueeze(-1).expand(-1, -1, sees_levels.shape[-1]))
        sees_levels = torch.cat((parent_sees, itself), dim=-1)

    first, ends = torch.tensor([[0], [2]], device=DEVICE).expand(-1, k), torch.tensor([prefix_length], device=DEVICE)
    seen = unpack_tree_mask(join_bounds(first, ends, ends, beams[-1].sees), prefix_length + 3 * k)
    sees_prefix = torch.arange(prefix_length, device=DEVICE) >= first.unsqueeze(-1)
    assert torch.equal(seen[:, 0], torch.cat((sees_prefix, sees_levels), dim=-1))


def test_the_best_of_equal_children_stand_first():
    """Worked by hand: scores -1, -2 | -1, -1 of parents at place 0 and 1; ties go to the lower index."""
    zeros = torch.zeros(1, 2, device=DEVICE)
    index = torch.tensor([[0, 1]], device=DEVICE)
    sees = torch.tensor([[[0b01], [0b10]]], device=DEVICE)
    pool = empty_pool(1, 6, DEVICE)
    beam = grow_level(
        torch.tensor([[[-1.0, -2.0], [-1.0, -1.0]]], device=DEVICE),
        torch.tensor([[[11, 12], [13, 14]]], device=DEVICE),
        zeros,
        Beam(index, zeros, index, index, sees),
        pool,
        level=1,
    )
    assert beam.tokens.tolist() == [[11, 13]]
    assert beam.pool_index.tolist() == [[2, 4]]
    assert beam.rows.tolist() == [[0, 1]]
    assert beam.sees.tolist() == [[[0b0101], [0b1010]]]
    assert pool.parents[:, 2:].tolist() == [[0, 0, 1, 1]]
