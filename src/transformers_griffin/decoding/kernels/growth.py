"""
Grows the draft tree by a level, and picks its nodes from all candidates, each in one launch.

The vocabulary-wide work (top-k and log-sum-exp of the draft's logits) stays with PyTorch; what follows it is small and
would be a dozen launches a level::

    scores of k x k children -> rank -> the k best are the next beam, with all that it needs

1. Ranks are counted, not sorted: rank(i) = how many candidates beat i. One with the higher score beats another, and of
   equal ones that with the lower index. That is the order of a stable sort (`stable_top_k` in `draft_tree.py`), and
   whoever has rank r < k writes itself to place r of the beam.
2. The tree keeps the candidates with rank < n_nodes - 1, numbered in pool order by a running count.
3. Ancestors are bits (see `packed_mask.py`). In a level they are its parent's and its own; in the tree, every node
   climbs to the root.

References: `grow_level_reference` in `levels.py`; `build_tree` in `draft_tree.py`.

Notation for shapes: `batch_size`; `beam` nodes of the level above (1 for the root, else k); `pool` candidates.

Next: `../draft_tree.py`.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# (kernels take pointers, for which Python has no type)

import torch
import triton
import triton.language as tl

from .device import on_device_of
from .levels import Beam, Pool
from .packed_mask import BITS


MAX_COMPARED = 8192  # pairs of candidates that one program compares at a time


def grow_level(
    top_logits: torch.Tensor, tokens: torch.Tensor, log_norms: torch.Tensor, beam: Beam, pool: Pool, level: int
) -> Beam:
    """
    Proposes k children of every beam node and makes the k best of them the next beam.

    Args:
        top_logits (`torch.Tensor` of shape `(batch_size, beam, k)`): the k largest logits, in falling order.
        tokens (`torch.LongTensor` of shape `(batch_size, beam, k)`): their tokens.
        log_norms (`torch.Tensor` of shape `(batch_size, beam)`): log-sum-exp of all logits, in fp32.
        beam ([`Beam`]): the nodes that were read.
        level (`int`): 0 for the children of the root.

    Returns:
        [`Beam`] of k nodes.

    Effects: writes the children into `pool`, behind those of the levels above.
    """
    batch_size, width, k = top_logits.shape
    new_shape = (batch_size, k)
    new_tokens, new_index, new_rows = (tokens.new_empty(new_shape) for _ in range(3))
    new_scores = beam.scores.new_empty(new_shape)
    new_sees = beam.sees.new_empty(*new_shape, beam.sees.shape[-1])
    with on_device_of(tokens):
        _grow[(batch_size,)](
            top_logits.contiguous(), tokens.contiguous(), log_norms.contiguous(),
            beam.scores, beam.pool_index, beam.sees,
            pool.tokens, pool.scores, pool.parents, pool.tokens.shape[1],
            new_tokens, new_scores, new_index, new_rows, new_sees,
            level,
            WIDTH=width, K=k, WORDS=beam.sees.shape[-1], BITS=BITS, **_blocks(width * k),
        )  # fmt: skip
    return Beam(new_tokens, new_scores, new_index, new_rows, new_sees)


def pick_nodes(
    root_tokens: torch.Tensor, pool: Pool, num_nodes: int, depth: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Keeps the `num_nodes - 1` best candidates of the pool as a tree under the root.

    Args:
        root_tokens (`torch.LongTensor` of shape `(batch_size, 1)`): the newest token chosen by the target.
        num_nodes (`int`): nodes of the tree, root included.
        depth (`int`): levels below the root.

    Returns:
        tokens, parents, depths, ancestors as words of shape `(batch_size, num_nodes, words)`, and scores: the fields
        of `DraftTree`, the others of shape `(batch_size, num_nodes)`.
    """
    batch_size, pool_size = pool.tokens.shape
    tokens, parents, depths = (pool.tokens.new_empty(batch_size, num_nodes) for _ in range(3))
    scores = pool.scores.new_empty(batch_size, num_nodes)
    words = pool.tokens.new_empty(batch_size, num_nodes, -(-num_nodes // BITS))
    node_of = pool.tokens.new_empty(batch_size, pool_size)
    with on_device_of(root_tokens):
        _pick[(batch_size,)](
            root_tokens.contiguous(), pool.tokens, pool.scores, pool.parents, node_of,
            tokens, parents, depths, words, scores,
            pool_size, num_nodes, depth,
            WORDS=words.shape[-1], BITS=BITS, **_blocks(pool_size),
        )  # fmt: skip
    return tokens, parents, depths, words, scores


def _blocks(num_candidates: int) -> dict[str, int]:
    block = 1 << (num_candidates - 1).bit_length()
    return {"BLOCK": block, "RANK_BLOCK": max(1, MAX_COMPARED // block), "num_warps": 8}


@triton.jit
def _grow(
    top_logits, tokens, log_norms, beam_scores, beam_index, beam_sees,
    pool_tokens, pool_scores, pool_parents, pool_size,
    new_tokens, new_scores, new_index, new_rows, new_sees, level,
    WIDTH: tl.constexpr, K: tl.constexpr, WORDS: tl.constexpr, BITS: tl.constexpr, RANK_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(0).to(tl.int64)
    child = tl.arange(0, BLOCK)
    is_child = child < WIDTH * K
    place = child // K  # of the parent in its level
    first_index = tl.where(level == 0, 0, K + (level - 1) * K * K)

    # All children go into the pool.
    token = tl.load(tokens + batch * WIDTH * K + child, mask=is_child)
    score = _child_score(top_logits, log_norms, beam_scores, batch, child, WIDTH, K)
    parent = tl.load(beam_index + batch * WIDTH + place, mask=is_child)
    in_pool = batch * pool_size + first_index + child
    tl.store(pool_tokens + in_pool, token, mask=is_child)
    tl.store(pool_scores + in_pool, score, mask=is_child)
    tl.store(pool_parents + in_pool, parent, mask=is_child)

    # 1. The best k take their places in the next beam.
    rank = tl.zeros((BLOCK,), tl.int32)
    for block in range(0, WIDTH * K, RANK_BLOCK):
        rival = block + tl.arange(0, RANK_BLOCK)
        rival_score = _child_score(top_logits, log_norms, beam_scores, batch, rival, WIDTH, K)
        rank += _num_better(score, child, rival_score, rival, rival < WIDTH * K)
    is_chosen = is_child & (rank < K)
    in_beam = batch * K + rank
    tl.store(new_tokens + in_beam, token, mask=is_chosen)
    tl.store(new_scores + in_beam, score, mask=is_chosen)
    tl.store(new_index + in_beam, (first_index + child).to(tl.int64), mask=is_chosen)
    tl.store(new_rows + in_beam, place.to(tl.int64), mask=is_chosen)

    # 3. A node sees what its parent sees, and itself.
    own_slot = level * K + rank
    for word in tl.static_range(WORDS):
        sees = tl.load(beam_sees + (batch * WIDTH + place) * WORDS + word, mask=is_chosen, other=0)
        tl.store(new_sees + in_beam * WORDS + word, sees | _bit_in_word(own_slot, word, BITS), mask=is_chosen)


@triton.jit
def _pick(
    root_tokens, pool_tokens, pool_scores, pool_parents, node_of,
    tokens, parents, depths, words, scores, pool_size, num_nodes, depth,
    WORDS: tl.constexpr, BITS: tl.constexpr, RANK_BLOCK: tl.constexpr, BLOCK: tl.constexpr,
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
    ancestor = tl.load(pool_parents + in_pool, mask=is_kept, other=-1)
    parent_node = tl.load(node_of + batch * pool_size + ancestor, mask=ancestor >= 0, other=0)
    node_depth = tl.zeros((BLOCK,), tl.int64)
    in_tree = batch * num_nodes + node
    for word in tl.static_range(WORDS):
        bits = _bit_in_word(node, word, BITS) | _bit_in_word(node * 0, word, BITS)
        climber = ancestor
        node_depth = tl.zeros((BLOCK,), tl.int64) + 1
        for _ in range(depth - 1):
            is_below_root = climber >= 0
            climber_node = tl.load(node_of + batch * pool_size + climber, mask=is_below_root, other=0)
            bits = bits | _bit_in_word(climber_node.to(tl.int32), word, BITS)
            node_depth += is_below_root.to(tl.int64)
            climber = tl.load(pool_parents + batch * pool_size + climber, mask=is_below_root, other=-1)
        tl.store(words + in_tree * WORDS + word, bits, mask=is_kept)
        tl.store(words + batch * num_nodes * WORDS + word, tl.full((), 1 if word == 0 else 0, tl.int64))
    tl.store(tokens + in_tree, tl.load(pool_tokens + in_pool, mask=is_kept), mask=is_kept)
    tl.store(parents + in_tree, parent_node, mask=is_kept)
    tl.store(depths + in_tree, node_depth, mask=is_kept)
    tl.store(scores + in_tree, score, mask=is_kept)

    root = batch * num_nodes
    tl.store(tokens + root, tl.load(root_tokens + batch))
    tl.store(parents + root, tl.full((), 0, tl.int64))
    tl.store(depths + root, tl.full((), 0, tl.int64))
    tl.store(scores + root, 0.0)


@triton.jit
def _child_score(top_logits, log_norms, beam_scores, batch, child, WIDTH: tl.constexpr, K: tl.constexpr):
    """`beam_scores + log softmax(logits)`, -inf where that is undefined; never above the parent's."""
    is_child = child < WIDTH * K
    place = batch * WIDTH + child // K
    logit = tl.load(top_logits + batch * WIDTH * K + child, mask=is_child, other=-float("inf")).to(tl.float32)
    log_prob = logit - tl.load(log_norms + place, mask=is_child, other=0.0)
    log_prob = tl.where(log_prob == log_prob, log_prob, -float("inf"))
    return tl.load(beam_scores + place, mask=is_child, other=0.0) + tl.minimum(log_prob, 0.0)


@triton.jit
def _num_better(score, index, rival_score, rival, is_rival):
    """How many rivals beat each candidate; ties go to the lower index."""
    is_higher = rival_score[None, :] > score[:, None]
    is_first = (rival_score[None, :] == score[:, None]) & (rival[None, :] < index[:, None])
    return tl.sum(((is_higher | is_first) & is_rival[None, :]).to(tl.int32), axis=1)


@triton.jit
def _bit_in_word(bit, word, BITS: tl.constexpr):
    """The bit as an int64 if it belongs to the word, else 0."""
    one = tl.full(bit.shape, 1, tl.int64)
    return tl.where(bit // BITS == word, one << (bit % BITS).to(tl.int64), 0)


__all__ = ["grow_level", "pick_nodes"]
