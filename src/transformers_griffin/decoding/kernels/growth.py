"""
Grows the draft tree by a level, and picks its nodes from all candidates, each in one launch.

The vocabulary-wide work (top-k and log-softmax of the draft's logits) stays with PyTorch; what follows it is small and
would be a dozen launches a level::

    scores of k x k children -> rank -> the k best are the next beam, with all that it needs

1. Ranks are counted, not sorted: rank(i) = how many candidates beat i. One with the higher score beats another, and of
   equal ones that with the lower index. That is the order of a stable sort (`stable_top_k` in `draft_tree.py`), and
   whoever has rank r < k writes itself to place r of the beam.
2. The tree keeps the candidates with rank < n_nodes - 1, numbered in pool order by a running count.
3. In a level, ancestors are bits: the parent's and its own, with the parent's bounds a row of the packed mask that the
   draft's attention reads next. In the tree every node climbs to the root and marks whom it meets.

References: `grow_level` in `../levels.py`; `build_tree` in `../draft_tree.py`.

Notation for shapes: `batch_size`; `beam` nodes of the level above (1 for the root, else k); `pool` candidates.

Next: `int8_linear.py`.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# (kernels take pointers, for which Python has no type)

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from ..draft_tree import CandidatePool, DraftTree
from ..levels import Beam, first_in_pool
from .device import on_device_of
from .packed_mask import BITS, NUM_BOUNDS


MAX_COMPARED = 8192  # pairs of candidates that one program compares at a time


def grow_level(tokens: torch.Tensor, log_probs: torch.Tensor, beam: Beam, level: int) -> tuple[Beam, CandidatePool]:
    """
    Does what `grow_level` in `levels.py` does, with the same arguments.

    `beam.sees` are rows of a packed mask (see `packed_mask.py`), of shape `(batch_size, beam, 3 + words)`: bit
    `level * k + j` of the words is the slot of node j of a level. The root's row has room for all levels.
    """
    batch_size, width, k = tokens.shape
    mask_size = beam.sees.shape[-1]
    new_tokens, new_index, new_rows = (beam.tokens.new_empty(batch_size, k) for _ in range(3))
    new_scores, new_sees = beam.scores.new_empty(batch_size, k), beam.sees.new_empty(batch_size, k, mask_size)
    scores, parents = (like.new_empty(batch_size, width * k) for like in (beam.scores, beam.pool_index))
    tokens = tokens.contiguous()
    _launch_grow(
        [tokens, log_probs.contiguous(), beam.scores, beam.pool_index, beam.sees],
        [scores, parents, new_tokens, new_scores, new_index, new_rows, new_sees],
        level,
    )
    new_beam = Beam(new_tokens, new_scores, new_index, new_rows, new_sees)
    return new_beam, CandidatePool(tokens.flatten(1), scores, parents)


def build_tree(root_tokens: torch.Tensor, pool: CandidatePool, num_nodes: int, depth: int) -> DraftTree:
    """Does what `build_tree` in `draft_tree.py` does, with the same arguments."""
    batch_size, pool_size = pool.tokens.shape
    tokens, parents, depths = (pool.tokens.new_empty(batch_size, num_nodes) for _ in range(3))
    scores = pool.scores.new_empty(batch_size, num_nodes)
    ancestors = torch.zeros(batch_size, num_nodes, num_nodes, dtype=torch.bool, device=pool.tokens.device)
    node_of = pool.tokens.new_empty(batch_size, pool_size)
    _launch_pick(
        [root_tokens.contiguous(), pool.tokens, pool.scores, pool.parents],
        [node_of, tokens, parents, depths, ancestors, scores],
        depth,
    )
    return DraftTree(tokens, parents, depths, ancestors, scores)


@torch.library.custom_op("transformers_griffin::grow_level", mutates_args=("written",))
def _launch_grow(read: Sequence[torch.Tensor], written: Sequence[torch.Tensor], level: int) -> None:
    """`_grow` with its pointers in order."""
    batch_size, width, k = read[0].shape
    with on_device_of(read[0]):
        _grow[(batch_size,)](
            *read, *written, NUM_BOUNDS * BITS + level * k, first_in_pool(level, k),
            WIDTH=width, K=k, MASK_SIZE=read[-1].shape[-1], BITS=BITS, **_blocks(width * k),
        )  # fmt: skip


@torch.library.custom_op("transformers_griffin::build_tree", mutates_args=("written",))
def _launch_pick(read: Sequence[torch.Tensor], written: Sequence[torch.Tensor], depth: int) -> None:
    """`_pick` with its pointers in order."""
    node_of, tokens, parents, depths, ancestors, scores = written
    batch_size, pool_size = node_of.shape
    with on_device_of(node_of):
        _pick[(batch_size,)](
            *read, node_of, tokens, parents, depths, ancestors.view(torch.uint8), scores,
            pool_size, tokens.shape[1], depth,
            **_blocks(pool_size),
        )  # fmt: skip


def _blocks(num_candidates: int) -> dict[str, int]:
    block = 1 << (num_candidates - 1).bit_length()
    return {"BLOCK": block, "RANK_BLOCK": max(1, MAX_COMPARED // block), "num_warps": 8}


@triton.jit(do_not_specialize=["first_bit", "first_index"])
def _grow(
    tokens, log_probs, beam_scores, beam_index, beam_sees,
    scores, parents, new_tokens, new_scores, new_index, new_rows, new_sees, first_bit, first_index,
    WIDTH: tl.constexpr, K: tl.constexpr, MASK_SIZE: tl.constexpr, BITS: tl.constexpr, RANK_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(0).to(tl.int64)
    child = tl.arange(0, BLOCK)
    is_child = child < WIDTH * K
    place = child // K  # of the parent in its level

    # All children are candidates.
    in_level = batch * WIDTH * K + child
    token = tl.load(tokens + in_level, mask=is_child)
    score = _child_score(log_probs, beam_scores, batch, child, WIDTH, K)
    parent = tl.load(beam_index + batch * WIDTH + place, mask=is_child)
    tl.store(scores + in_level, score, mask=is_child)
    tl.store(parents + in_level, parent, mask=is_child)

    # 1. The best k take their places in the next beam.
    rank = tl.zeros((BLOCK,), tl.int32)
    for block in range(0, WIDTH * K, RANK_BLOCK):
        rival = block + tl.arange(0, RANK_BLOCK)
        rival_score = _child_score(log_probs, beam_scores, batch, rival, WIDTH, K)
        rank += _num_better(score, child, rival_score, rival, rival < WIDTH * K)
    is_chosen = is_child & (rank < K)
    in_beam = batch * K + rank
    tl.store(new_tokens + in_beam, token, mask=is_chosen)
    tl.store(new_scores + in_beam, score, mask=is_chosen)
    tl.store(new_index + in_beam, (first_index + child).to(tl.int64), mask=is_chosen)
    tl.store(new_rows + in_beam, place.to(tl.int64), mask=is_chosen)

    # 3. A node sees what its parent sees, and itself.
    own_bit = first_bit + rank
    for word in tl.static_range(MASK_SIZE):
        sees = tl.load(beam_sees + (batch * WIDTH + place) * MASK_SIZE + word, mask=is_chosen, other=0)
        own = tl.full((BLOCK,), 1, tl.int64) << (own_bit % BITS).to(tl.int64)
        sees = sees | tl.where(own_bit // BITS == word, own, 0)
        tl.store(new_sees + in_beam * MASK_SIZE + word, sees, mask=is_chosen)


@triton.jit
def _pick(
    root_tokens, pool_tokens, pool_scores, pool_parents, node_of,
    tokens, parents, depths, ancestors, scores, pool_size, num_nodes, depth,
    RANK_BLOCK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(0).to(tl.int64)
    candidate = tl.arange(0, BLOCK)
    is_candidate = candidate < pool_size
    in_pool = batch * pool_size + candidate
    score = tl.load(pool_scores + in_pool, mask=is_candidate, other=-float("inf"))

    # 2. The best are numbered in pool order, behind the root.
    rank = tl.zeros((BLOCK,), tl.int32)
    for block in range(0, pool_size, RANK_BLOCK):
        rival = block + tl.arange(0, RANK_BLOCK)
        is_rival = rival < pool_size
        rival_score = tl.load(pool_scores + batch * pool_size + rival, mask=is_rival, other=-float("inf"))
        rank += _num_better(score, candidate, rival_score, rival, is_rival)
    is_kept = is_candidate & (rank < num_nodes - 1)
    node = tl.cumsum(is_kept.to(tl.int32), axis=0)
    tl.store(node_of + in_pool, node.to(tl.int64), mask=is_kept)
    tl.debug_barrier()  # every node looks up its ancestors' numbers

    # 3. Every node climbs to the root. A parent that is kept was written above, and no other is asked for.
    in_tree = batch * num_nodes + node
    sees = ancestors + in_tree * num_nodes
    climber = tl.load(pool_parents + in_pool, mask=is_kept, other=-1)
    parent_node = tl.load(node_of + batch * pool_size + climber, mask=climber >= 0, other=0)
    climber_node, node_depth = parent_node, tl.zeros((BLOCK,), tl.int64) + 1
    tl.store(sees + node, tl.full((BLOCK,), 1, tl.uint8), mask=is_kept)
    for _ in range(depth):
        tl.store(sees + climber_node, tl.full((BLOCK,), 1, tl.uint8), mask=is_kept)
        is_below_root = climber >= 0
        node_depth += is_below_root.to(tl.int64)
        climber = tl.load(pool_parents + batch * pool_size + climber, mask=is_below_root, other=-1)
        climber_node = tl.load(node_of + batch * pool_size + climber, mask=climber >= 0, other=0)
    tl.store(tokens + in_tree, tl.load(pool_tokens + in_pool, mask=is_kept), mask=is_kept)
    tl.store(parents + in_tree, parent_node, mask=is_kept)
    tl.store(depths + in_tree, node_depth, mask=is_kept)
    tl.store(scores + in_tree, score, mask=is_kept)

    root = batch * num_nodes
    tl.store(tokens + root, tl.load(root_tokens + batch))
    tl.store(parents + root, tl.full((), 0, tl.int64))
    tl.store(depths + root, tl.full((), 0, tl.int64))
    tl.store(scores + root, 0.0)
    tl.store(ancestors + root * num_nodes, tl.full((), 1, tl.uint8))


@triton.jit
def _child_score(log_probs, beam_scores, batch, child, WIDTH: tl.constexpr, K: tl.constexpr):
    """Cumulative log-probability, -inf where that is undefined; never above the parent's."""
    is_child = child < WIDTH * K
    log_prob = tl.load(log_probs + batch * WIDTH * K + child, mask=is_child, other=-float("inf"))
    log_prob = tl.where(log_prob == log_prob, log_prob, -float("inf"))
    return tl.load(beam_scores + batch * WIDTH + child // K, mask=is_child, other=0.0) + tl.minimum(log_prob, 0.0)


@triton.jit
def _num_better(score, index, rival_score, rival, is_rival):
    """How many rivals beat each candidate; ties go to the lower index."""
    is_higher = rival_score[None, :] > score[:, None]
    is_first = (rival_score[None, :] == score[:, None]) & (rival[None, :] < index[:, None])
    return tl.sum(((is_higher | is_first) & is_rival[None, :]).to(tl.int32), axis=1)


__all__ = ["build_tree", "grow_level"]
