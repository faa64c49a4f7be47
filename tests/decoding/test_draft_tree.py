"""Trees and masks agree with slow oracles that look at one node at a time."""

import math
from dataclasses import dataclass, replace
from random import Random

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from transformers_griffin.decoding.draft_tree import (
    CandidatePool,
    ancestor_mask,
    as_attention_mask,
    build_tree,
    pool_size,
    stable_top_k,
    tree_attention_mask,
)


many = settings(deadline=None, derandomize=True, max_examples=60)
few = settings(deadline=None, derandomize=True, max_examples=25)

ROOT = -1  # parent of level 1 in the pool

# Log-probabilities of children: sums of them are exact in float32, so that a tie in the oracle is a tie in the code.
# 0 is what a saturated head gives its certain token, -inf what it gives all others.
CERTAIN, IMPOSSIBLE = 0.0, -math.inf
LOG_PROBS = {
    "varied": [-0.25, -0.5, -1.0, -2.0, -3.75],
    "ties": [-1.0],
    "saturated": [CERTAIN, CERTAIN, -0.25],
    "impossible": [CERTAIN, IMPOSSIBLE, IMPOSSIBLE],
}


@dataclass
class Candidate:
    """An entry of the pool, as the oracle sees it."""

    token: int
    score: float
    parent: int  # pool index
    level: int


def best(indices: list[int], scores: list[float], count: int) -> list[int]:
    """The `count` best of `indices`, ties by the lower index: what every selection must do."""
    return sorted(indices, key=lambda i: (-scores[i], i))[:count]


def grow_slowly(depth: int, top_k: int, kind: str, random: Random) -> list[Candidate]:
    """A pool as `depth` drafting passes would make it, one candidate at a time."""

    def children(parent: int, score: float, level: int) -> list[Candidate]:
        # A draft lists its children in falling order, each with a token of its own.
        log_probs = sorted((random.choice(LOG_PROBS[kind]) for _ in range(top_k)), reverse=True)
        tokens = random.sample(range(2 * top_k), top_k)
        return [Candidate(tokens[i], score + log_probs[i], parent, level) for i in range(top_k)]

    pool = children(ROOT, 0.0, level=1)
    beam = list(range(top_k))
    for level in range(2, depth + 1):
        first_new = len(pool)
        for node in beam:
            pool += children(node, pool[node].score, level)
        beam = best(list(range(first_new, len(pool))), [c.score for c in pool], top_k)
    return pool


def as_tensors(pools: list[list[Candidate]]) -> CandidatePool:
    return CandidatePool(
        tokens=torch.tensor([[c.token for c in pool] for pool in pools]),
        scores=torch.tensor([[c.score for c in pool] for pool in pools]),
        parents=torch.tensor([[c.parent for c in pool] for pool in pools]),
    )


def ancestors_slowly(parents: list[int], node: int) -> set[int]:
    """The node, its parent, ..., the root."""
    seen = {node}
    while node != 0:
        node = parents[node]
        seen.add(node)
    return seen


@st.composite
def pools(draw):
    """Depth, width, tree size and a batch of pools."""
    depth, top_k = draw(st.sampled_from([(1, 32), (2, 9), (3, 4), (4, 2), (5, 1), (6, 10), (7, 3), (16, 1), (16, 6)]))
    num_nodes = draw(st.integers(2, min(255, pool_size(depth, top_k) + 1)))
    kinds = draw(st.lists(st.sampled_from(sorted(LOG_PROBS)), min_size=1, max_size=3))
    return depth, num_nodes, [grow_slowly(depth, top_k, kind, draw(st.randoms())) for kind in kinds]


# ---------------------------------------------------------------------- choosing


SCORES_WITH_TIES = st.lists(st.sampled_from([0.0, -1.0, -2.0, -math.inf]), min_size=7, max_size=7)


@many
@given(st.lists(SCORES_WITH_TIES, min_size=1, max_size=3), st.data())
def test_stable_top_k_prefers_the_lower_index_among_equals(rows, data):
    k = data.draw(st.integers(1, 7))
    values, indices = stable_top_k(torch.tensor(rows), k)
    expected = [best(list(range(7)), row, k) for row in rows]
    assert indices.tolist() == expected
    assert values.tolist() == [[row[i] for i in chosen] for row, chosen in zip(rows, expected, strict=True)]


# ---------------------------------------------------------------------- trees


@many
@given(pools())
@example((16, 255, [grow_slowly(16, 32, "varied", Random(0)), grow_slowly(16, 32, "saturated", Random(1))]))
def test_tree_keeps_the_best_candidates_connected(case):
    """
    Against a tree that is selected and linked one node at a time.

    Held for every pool, with certain children (score of the parent), impossible ones (-inf) and ties throughout.
    """
    depth, num_nodes, slow_pools = case
    roots = torch.arange(len(slow_pools)).unsqueeze(1)
    tree = build_tree(roots, as_tensors(slow_pools), num_nodes, depth)

    shape = (len(slow_pools), num_nodes)
    assert tree.tokens.shape == tree.parents.shape == tree.depths.shape == tree.scores.shape == shape
    assert tree.ancestors.shape == (*shape, num_nodes)
    for row, pool in enumerate(slow_pools):
        kept = sorted(best(list(range(len(pool))), [c.score for c in pool], num_nodes - 1))
        node_of = {ROOT: 0} | {index: node for node, index in enumerate(kept, start=1)}
        parents = [0] + [node_of[pool[index].parent] for index in kept]  # a KeyError: the parent was not kept
        assert tree.tokens[row].tolist() == [row] + [pool[index].token for index in kept]
        assert tree.parents[row].tolist() == parents
        assert tree.depths[row].tolist() == [0] + [pool[index].level for index in kept]
        assert tree.scores[row].tolist() == [0.0] + [pool[index].score for index in kept]
        for node in range(1, num_nodes):
            assert parents[node] < node
            assert tree.scores[row, node] <= tree.scores[row, parents[node]]
        siblings = list(zip(parents[1:], tree.tokens[row, 1:].tolist(), strict=True))
        assert len(set(siblings)) == len(siblings)


def test_tree_keeps_a_certain_child_only_together_with_its_parent():
    """
    k = 2, depth 2: root -> A 0.0, B -0.5; A -> AC 0.0, AD -inf; B -> BE -0.5, BF -inf.

    A and AC tie at 0, B and BE at -0.5. Three of them are A, AC and B: BE must wait for B.
    """
    pool = CandidatePool(
        tokens=torch.tensor([[1, 2, 3, 4, 5, 6]]),
        scores=torch.tensor([[0.0, -0.5, 0.0, -math.inf, -0.5, -math.inf]]),
        parents=torch.tensor([[-1, -1, 0, 0, 1, 1]]),
    )
    tree = build_tree(torch.tensor([[9]]), pool, num_nodes=4, depth=2)
    assert tree.tokens.tolist() == [[9, 1, 2, 3]]
    assert tree.parents.tolist() == [[0, 0, 0, 1]]
    assert tree.depths.tolist() == [[0, 1, 1, 2]]


@pytest.mark.parametrize("depth", [1, 7, 16])
def test_width_one_makes_a_chain(depth):
    """Each node hangs on the one before it, and sees all before it."""
    pool = CandidatePool(
        tokens=torch.arange(1, depth + 1).unsqueeze(0),
        scores=torch.zeros(1, depth),
        parents=torch.arange(-1, depth - 1).unsqueeze(0),
    )
    tree = build_tree(torch.tensor([[0]]), pool, num_nodes=depth + 1, depth=depth)
    assert tree.tokens[0].tolist() == list(range(depth + 1))
    assert tree.parents[0].tolist() == [0, *range(depth)]
    assert torch.equal(tree.ancestors[0], torch.ones(depth + 1, depth + 1).tril().bool())


@st.composite
def parent_lists(draw, max_nodes=40):
    """A batch of trees of equal size as parent lists, and a bound on their depth."""
    num_nodes = draw(st.integers(1, max_nodes))
    batch = [
        [0] + [draw(st.integers(0, node - 1)) for node in range(1, num_nodes)] for _ in range(draw(st.integers(1, 3)))
    ]
    depth = max(len(ancestors_slowly(parents, node)) - 1 for parents in batch for node in range(num_nodes))
    return batch, depth + draw(st.integers(0, 2))


@few
@given(parent_lists())
@example(([[0, *range(16)]], 16))
@example(([[0] * 255], 1))
def test_ancestor_mask_is_a_climb_to_the_root(case):
    batch, depth = case
    mask = ancestor_mask(torch.tensor(batch), depth)
    for row, parents in enumerate(batch):
        for node in range(len(parents)):
            assert set(mask[row, node].nonzero().flatten().tolist()) == ancestors_slowly(parents, node)


# ---------------------------------------------------------------------- who sees whom


def tree_of(batch: list[list[int]], depth: int):
    """A tree with these parents and arbitrary tokens."""
    parents = torch.tensor(batch)
    ancestors = ancestor_mask(parents, depth)
    pool = CandidatePool(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1), torch.full((1, 1), ROOT))
    some_tree = build_tree(torch.zeros(1, 1, dtype=torch.long), pool, num_nodes=2, depth=1)
    return replace(
        some_tree,
        tokens=torch.zeros_like(parents),
        parents=parents,
        depths=ancestors.sum(dim=-1) - 1,
        ancestors=ancestors,
        scores=torch.zeros(parents.shape),
    )


def seen_slots_slowly(parents, node, prefix_length, sliding_window, padding) -> set[int]:
    """
    What plain decoding of the node's path would see: the path is laid out behind the prefix as a sequence of its own,
    of which the newest `sliding_window` entries are seen, less the padding.
    """
    slots = list(range(prefix_length)) + [prefix_length + n for n in sorted(ancestors_slowly(parents, node))]
    if sliding_window is not None:
        slots = slots[-sliding_window:]
    return {slot for slot in slots if slot >= prefix_length or padding is None or padding[slot]}


@many
@given(
    parent_lists(max_nodes=12),
    st.integers(0, 20),
    st.none() | st.integers(1, 24),
    st.booleans(),
    st.booleans(),
    st.integers(0, 5),
    st.data(),
)
def test_tree_mask_shows_what_plain_decoding_of_each_path_shows(
    case, prefix_length, window, padded, ragged, tail, data
):
    """
    Offsets (the forgotten start of a sliding layer), the empty rest of a static cache, left padding, a batch whose
    rows have different lengths: the oracle's tree begins at the row's own end, and ours behind the longest row's.
    """
    batch, depth = case
    tree = tree_of(batch, depth)
    offset = data.draw(st.integers(0, prefix_length), label="offset")
    gaps = [data.draw(st.integers(0, prefix_length), label="gap") if ragged else 0 for _ in batch]
    kv_length = prefix_length - offset + len(batch[0]) + tail
    padding = None
    if padded:
        lefts = [data.draw(st.integers(0, prefix_length), label="padding") for _ in batch]
        padding = [[int(slot >= left) for slot in range(prefix_length)] for left in lefts]

    mask = tree_attention_mask(
        tree,
        prefix_length,
        kv_length,
        kv_offset=offset,
        sliding_window=window,
        padding_mask=None if padding is None else torch.tensor(padding).reshape(len(batch), prefix_length),
        gaps=torch.tensor(gaps).unsqueeze(1) if ragged else None,
    )

    assert mask.shape == (len(batch), 1, len(batch[0]), kv_length)
    for row, parents in enumerate(batch):
        for node in range(len(parents)):
            seen = {offset + column for column in mask[row, 0, node].nonzero().flatten().tolist()}
            row_padding = None if padding is None else padding[row]
            own_end = prefix_length - gaps[row]
            own_slots = seen_slots_slowly(parents, node, own_end, window, row_padding and row_padding[:own_end])
            expected = {slot + (gaps[row] if slot >= own_end else 0) for slot in own_slots}
            assert seen == {slot for slot in expected if slot >= offset}


def test_tree_mask_of_the_docstring():
    """root -- a -- b, c beside a; 3 in the prefix, 2 empty slots behind; window 3 lets b see root, a and itself."""
    tree = tree_of([[0, 0, 1, 0]], depth=2)
    rows = [[1, 1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0, 0, 0]]
    rows.append([1, 1, 1, 1, 0, 0, 1, 0, 0])
    assert tree_attention_mask(tree, 3, 9)[0, 0].int().tolist() == rows
    windowed = tree_attention_mask(tree, 3, 9, sliding_window=3)[0, 0].int().tolist()
    assert windowed[2] == [0, 0, 0, 1, 1, 1, 0, 0, 0]
    assert windowed[3] == [0, 0, 1, 1, 0, 0, 1, 0, 0]


def test_every_attention_implementation_reads_the_same_mask():
    """sdpa reads booleans, eager adds the lowest number, flex asks a block mask; nothing else takes a tree mask."""
    allowed = torch.tensor([[1, 0, 1], [1, 1, 0]]).bool()[None, None]
    assert as_attention_mask(allowed, "sdpa", torch.float32) is allowed
    added = as_attention_mask(allowed, "eager", torch.float16)
    assert added.dtype == torch.float16
    assert torch.equal(added == 0, allowed)
    assert (added[~allowed] == torch.finfo(torch.float16).min).all()
    block_mask = as_attention_mask(allowed, "flex_attention", torch.float32)
    asked = [[bool(block_mask.mask_mod(0, 0, q, kv)) for kv in range(3)] for q in range(2)]
    assert asked == allowed[0, 0].tolist()
    with pytest.raises(ValueError, match="'flash_attention_2' takes no tree mask; use 'sdpa', 'eager'"):
        as_attention_mask(allowed, "flash_attention_2", torch.float32)
