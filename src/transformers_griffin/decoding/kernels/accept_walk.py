"""
Walks down a verified tree along the target's own choices, all rows in one launch.

1. One program for each row starts at the root.
2. At each step it looks at all nodes at once for a child of its node that carries the target's choice after it, goes
   there, or stays where it is for the rest of the path.

The choice after every node is given: the argmax of its logits, or a sample drawn for it. Whoever samples at all nodes
draws more than plain decoding does, from the same distributions.

Reference: `accept_path` in `verification.py`.

Notation for shapes: `batch_size`; `n_nodes` tree nodes; `path` = depth + 1, the longest root path.

Next: `growth.py`.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# (kernels take pointers, for which Python has no type)

import torch
import triton
import triton.language as tl

from .device import on_device_of


def accept_walk(
    parents: torch.Tensor, draft_tokens: torch.Tensor, target_tokens: torch.Tensor, path_length: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Accepts the longest path on which every node is the target's own choice after its parent.

    Args:
        parents (`torch.LongTensor` of shape `(batch_size, n_nodes)`): the root is its own parent.
        draft_tokens (`torch.LongTensor` of shape `(batch_size, n_nodes)`): siblings carry different tokens.
        target_tokens (`torch.LongTensor` of shape `(batch_size, n_nodes)`): the target's choice *after* each node.
        path_length (`int`): depth of the tree + 1.

    Returns:
        nodes and tokens, each of shape `(batch_size, path)`, and lengths of shape `(batch_size,)`: the fields of
        `Acceptance`.

    Example (A, B are drafted; the target wants A, then C)::

        root -- A -- B        nodes = [root, A, A]   tokens = [A, C, C]   lengths = 2
    """
    batch_size, n_nodes = parents.shape
    nodes, tokens = (parents.new_empty(batch_size, path_length) for _ in range(2))
    lengths = parents.new_empty(batch_size)
    with on_device_of(parents):
        _walk[(batch_size,)](
            parents.contiguous(), draft_tokens.contiguous(), target_tokens.contiguous(),
            nodes, tokens, lengths, n_nodes, path_length,
            BLOCK_NODES=1 << (n_nodes - 1).bit_length(),
        )  # fmt: skip
    return nodes, tokens, lengths


@triton.jit
def _walk(
    parents, draft_tokens, target_tokens, nodes, tokens, lengths, n_nodes, path_length, BLOCK_NODES: tl.constexpr
):
    # 1. The row's tree.
    batch = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, BLOCK_NODES)
    is_child = (index > 0) & (index < n_nodes)  # the root is nobody's child
    parent = tl.load(parents + batch * n_nodes + index, mask=is_child, other=-1)
    token = tl.load(draft_tokens + batch * n_nodes + index, mask=is_child, other=-1)

    # 2. One step for each node of the longest path.
    node = (batch * 0).to(tl.int32)
    length = node + 1
    for step in range(path_length):
        choice = tl.load(target_tokens + batch * n_nodes + node)
        tl.store(nodes + batch * path_length + step, node.to(tl.int64))
        tl.store(tokens + batch * path_length + step, choice)
        found = (parent == node) & (token == choice)
        child = tl.min(tl.where(found, index, BLOCK_NODES), axis=0)
        has_child = child < BLOCK_NODES
        length += has_child.to(tl.int32)
        node = tl.where(has_child, child, node)
    tl.store(lengths + batch, length.to(tl.int64))


__all__ = ["accept_walk"]
