"""
The dynamic draft tree: keep the best nodes of those that were grown, and say who sees whom.

Pure functions of tensors: no model, no cache, no configuration, and no question to the host. A cycle grows a *pool* of
`k + (depth - 1) * k * k` candidates (`levels.py`), of which the `num_nodes - 1` most probable become the tree::

    level 1      the k best tokens after the root                          pool 0 .. k-1
    level i+1    each of the k beam nodes of level i proposes k children   pool k + (i-1) k^2 ..
                 and the best k of these k^2 are the next beam

Tree nodes are numbered in pool order, root first, so a parent always precedes its child. Scores are cumulative
log-probabilities; ties go to the lower pool index, which keeps the tree connected even when a child is certain.

Notation for shapes: `batch_size`; `n_nodes` tree nodes with root; `pool` candidates.

Next: `levels.py`.
"""

from dataclasses import dataclass

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask


@dataclass(frozen=True)
class DraftTree:
    """A drafted tree; node 0 is the root, and every parent precedes its children."""

    tokens: torch.Tensor  # (batch_size, n_nodes): token at each node
    parents: torch.Tensor  # (batch_size, n_nodes): the root is its own parent
    depths: torch.Tensor  # (batch_size, n_nodes): 0 at the root
    ancestors: torch.Tensor  # (batch_size, n_nodes, n_nodes): row sees column, that is itself, ancestors and root
    scores: torch.Tensor  # (batch_size, n_nodes): cumulative log-probability under the draft; 0 at the root


@dataclass(frozen=True)
class CandidatePool:
    """All candidates of one drafting round, in pool order."""

    tokens: torch.Tensor  # (batch_size, pool)
    scores: torch.Tensor  # (batch_size, pool): cumulative log-probability
    parents: torch.Tensor  # (batch_size, pool): pool index of the parent, -1 for children of the root


def pool_size(depth: int, top_k: int) -> int:
    """Number of candidates that `depth` levels of width `top_k` propose."""
    return top_k + (depth - 1) * top_k**2


def stable_top_k(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The k largest entries of the last dimension in falling order, ties by the lower index (`torch.topk` promises none).

    Args:
        scores (`torch.Tensor` of shape `(..., n)`): n >= k.

    Returns:
        values and indices, each of shape `(..., k)`.
    """
    values, indices = torch.sort(scores, dim=-1, descending=True, stable=True)
    return values[..., :k], indices[..., :k]


def build_tree(root_tokens: torch.Tensor, pool: CandidatePool, num_nodes: int, depth: int) -> DraftTree:
    """
    Keeps the `num_nodes - 1` best candidates of the pool as a tree under the root.

    A child scores at most what its parent scores and stands behind it in the pool, so the best candidates always form
    a connected tree.

    Args:
        root_tokens (`torch.LongTensor` of shape `(batch_size, 1)`): the newest token chosen by the target.
        num_nodes (`int`): nodes of the tree, root included.
        depth (`int`): levels below the root.

    Returns:
        [`DraftTree`]

    Example (k = 2, depth = 2, num_nodes = 5)::

        pool      A -0.2   B -2.0 | AC -0.5   AD -1.0   BE -2.5   BF -3.0
        kept      A, B, AC, AD            root -- A -- C
        parents   [0, 0, 0, 1, 1]              |    `- D
                                               `- B
    """
    _, kept = stable_top_k(pool.scores, num_nodes - 1)
    kept, _ = kept.sort(dim=-1)  # pool order, (batch_size, n_nodes - 1)
    batch_size, num_kept = kept.shape

    # node_of[pool index + 1] is the tree node of a pool entry; slot 0 stands for the root.
    node_of = torch.zeros(batch_size, pool.scores.shape[1] + 1, dtype=torch.long, device=kept.device)
    new_nodes = torch.arange(1, num_kept + 1, device=kept.device).expand(batch_size, -1)
    node_of.scatter_(1, kept + 1, new_nodes)

    parents = node_of.gather(1, pool.parents.gather(1, kept) + 1)
    parents = torch.nn.functional.pad(parents, (1, 0))
    ancestors = ancestor_mask(parents, depth)
    return DraftTree(
        tokens=torch.cat((root_tokens, pool.tokens.gather(1, kept)), dim=1),
        parents=parents,
        depths=ancestors.sum(dim=-1) - 1,
        ancestors=ancestors,
        scores=torch.nn.functional.pad(pool.scores.gather(1, kept), (1, 0)),
    )


def ancestor_mask(parents: torch.Tensor, depth: int) -> torch.Tensor:
    """
    Who is an ancestor of whom, itself included.

    Args:
        parents (`torch.LongTensor` of shape `(batch_size, n_nodes)`): the root is its own parent.
        depth (`int`): levels below the root; that many steps up reach the root from everywhere.

    Returns:
        `torch.BoolTensor` of shape `(batch_size, n_nodes, n_nodes)`.

    Example: parents [0, 0, 1, 0]::

        root -- a -- b        root  1 0 0 0
             `- c                a  1 1 0 0
                                 b  1 1 1 0
                                 c  1 0 0 1
    """
    batch_size, n_nodes = parents.shape
    itself = torch.eye(n_nodes, dtype=torch.bool, device=parents.device).expand(batch_size, -1, -1)
    ancestors, rows = itself, parents.unsqueeze(-1).expand(-1, -1, n_nodes)
    for _ in range(depth):
        ancestors = itself | ancestors.gather(1, rows)
    return ancestors


def first_nodes(tree: DraftTree, num_nodes: int) -> DraftTree:
    """The first `num_nodes` nodes of a tree, root included, or all if it has fewer; parents come before children."""
    return DraftTree(
        tokens=tree.tokens[:, :num_nodes],
        parents=tree.parents[:, :num_nodes],
        depths=tree.depths[:, :num_nodes],
        ancestors=tree.ancestors[:, :num_nodes, :num_nodes],
        scores=tree.scores[:, :num_nodes],
    )


def cache_mask(
    sees: torch.Tensor,
    slots: torch.Tensor,
    prefix_length: int | torch.Tensor,
    padding_mask: torch.Tensor | None = None,
    gaps: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    What queries see of the slots of a key-value cache that holds a prefix and then entries of which each query sees
    some. Arguments are those of [`tree_attention_mask`], except for:

    Args:
        sees (`torch.BoolTensor` of shape `(batch_size, n_queries, n_entries)`): who sees which entry.
        slots (`torch.LongTensor` of shape `(n_slots,)`): the slots that are asked about.

    Returns:
        `torch.BoolTensor` of shape `(batch_size, n_queries, n_slots)`.
    """
    batch_size, n_queries, n_entries = sees.shape
    in_prefix = slots < prefix_length
    entry = slots - prefix_length
    is_entry = ~in_prefix & (entry < n_entries)
    entry = entry.clamp(0, n_entries - 1).expand(batch_size, n_queries, -1)
    if padding_mask is not None:
        is_real = torch.nn.functional.pad(padding_mask.bool(), (0, 1))  # every slot behind the mask reads the pad
        slots = slots.clamp(max=padding_mask.shape[1])
        in_prefix = in_prefix & is_real.gather(1, slots.expand(batch_size, -1)).unsqueeze(1)
    if gaps is not None:
        in_prefix = in_prefix & (slots < prefix_length - gaps.to(slots.device)).unsqueeze(1)
    return in_prefix | (sees.gather(2, entry) & is_entry)


def tree_attention_mask(
    tree: DraftTree,
    prefix_length: int | torch.Tensor,
    kv_length: int,
    kv_offset: int = 0,
    sliding_window: int | None = None,
    padding_mask: torch.Tensor | None = None,
    gaps: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    What each tree node sees of a key-value cache that holds a prefix and then the tree's nodes.

    Cache slots are counted from the start of the sequence; the returned columns are the slots `kv_offset` ..
    `kv_offset + kv_length - 1`. A node sees the prefix, its ancestors and itself; within a sliding window distances
    are counted along the path, not in slots. Slots behind the tree (the empty rest of a static cache) are hidden::

                     prefix        root a b c    rest
        node b    1 1 1 1 1 1 1      1  1 1 0   0 0 0

    Where rows have different lengths, the slots between the end of a shorter row and the tree are its gap: nobody sees
    them, and positions go on as if they were not there::

        gap 2     1 1 1 1 1 0 0      1  1 1 0   0 0 0

    Args:
        prefix_length (`int`, or `torch.LongTensor` without dimensions): slots before the root.
        sliding_window (`int`, *optional*): a node at distance `sliding_window` or more is not seen.
        padding_mask (`torch.Tensor` of shape `(batch_size, prefix_length)` or longer, *optional*): zero where padded.
        gaps (`torch.LongTensor` of shape `(batch_size, 1)`, *optional*): slots of the prefix that a row lacks.

    Returns:
        `torch.BoolTensor` of shape `(batch_size, 1, n_nodes, kv_length)`.
    """
    batch_size, n_nodes = tree.tokens.shape
    slots = kv_offset + torch.arange(kv_length, device=tree.tokens.device)
    allowed = cache_mask(tree.ancestors, slots, prefix_length, padding_mask, gaps)  # (batch_size, n_nodes, kv_length)
    if sliding_window is not None:
        row_length = prefix_length if gaps is None else prefix_length - gaps.to(slots.device)
        node_of_slot = (slots - prefix_length).clamp(0, n_nodes - 1).expand(batch_size, -1)
        slot_positions = torch.where(slots < prefix_length, slots, row_length + tree.depths.gather(1, node_of_slot))
        distance = (row_length + tree.depths).unsqueeze(-1) - slot_positions.unsqueeze(1)
        allowed = allowed & (distance < sliding_window)
    return allowed.unsqueeze(1)


def as_attention_mask(allowed: torch.Tensor, attn_implementation: str, dtype: torch.dtype) -> torch.Tensor | BlockMask:
    """
    Writes a boolean mask of shape `(batch_size, 1, q_len, kv_len)` in the form an attention implementation reads.

    Raises:
        ValueError: if the implementation takes no arbitrary mask.
    """
    if attn_implementation == "sdpa":
        return allowed
    if attn_implementation == "eager":
        return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
    if attn_implementation == "flex_attention":
        batch_size, _, q_len, kv_len = allowed.shape
        return create_block_mask(
            lambda b, h, q, kv: allowed[b, 0, q, kv], batch_size, None, q_len, kv_len, device=allowed.device
        )
    raise ValueError(
        f"Attention implementation {attn_implementation!r} takes no tree mask; use 'sdpa', 'eager' or "
        "'flex_attention'."
    )
