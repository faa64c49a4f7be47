"""
The shape of a draft tree, as the draft's generation config sets it.

Next: `adaptive_depth.py`.
"""

import math

from transformers import GenerationConfig

from ..modeling_griffin import DEFAULT_TREE
from .draft_tree import pool_size


MAX_DEPTH, MAX_TOP_K, MAX_NODES = 16, 32, 255


def tree_settings(generation_config: GenerationConfig, vocab_size: int) -> tuple[int, int, int]:
    """
    Reads and checks the tree settings.

    Args:
        generation_config ([`~transformers.GenerationConfig`]): where they are.
        vocab_size (`int`): tokens that the draft can propose, `proposal_vocab_size` of its configuration.

    Returns:
        `(num_assistant_tokens, draft_tree_depth, draft_tree_top_k)`

    Raises:
        ValueError: if a setting is out of range, or depth and width propose fewer candidates than are to be kept.
    """
    given = {name: getattr(generation_config, name, None) for name in DEFAULT_TREE}
    values = {name: DEFAULT_TREE[name] if value is None else value for name, value in given.items()}
    num_tokens, depth, top_k = values.values()
    for name, highest in (
        ("num_assistant_tokens", MAX_NODES - 1),
        ("draft_tree_depth", MAX_DEPTH),
        ("draft_tree_top_k", min(MAX_TOP_K, vocab_size)),
    ):
        if not isinstance(values[name], int) or not 1 <= values[name] <= highest:
            raise ValueError(
                f"`{name}` is {values[name]!r}, but must be an integer from 1 to {highest}. Set it in "
                "`draft.generation_config`."
            )
    if num_tokens > pool_size(depth, top_k):
        raise ValueError(
            f"`num_assistant_tokens` is {num_tokens}, but a tree of `draft_tree_depth`={depth} and "
            f"`draft_tree_top_k`={top_k} has only {pool_size(depth, top_k)} candidates. Lower `num_assistant_tokens` "
            "to that, or raise depth or width."
        )
    return num_tokens, depth, top_k


def tokens_per_row(generation_config: GenerationConfig, vocab_size: int, batch_size: int) -> int:
    """
    Drafted tokens that each row of a batch verifies in a cycle.

    A forward over a few tokens takes as long as one over a single token, until arithmetic is the bottleneck; from
    there on every node costs. The nodes of all rows share that room, so a batch verifies together what
    `num_assistant_tokens` says for a batch of `draft_tree_batch_size` rows (1 when not given), but each row at least
    one path down the tree::

        59 tokens for 1 row, depth 6      batch 2: 29     batch 4: 14     batch 8: 7     batch 16: 6

    Raises:
        ValueError: if a setting is out of range.
    """
    num_tokens, depth, _ = tree_settings(generation_config, vocab_size)
    made_for = getattr(generation_config, "draft_tree_batch_size", None)
    made_for = 1 if made_for is None else made_for
    if not isinstance(made_for, int) or made_for < 1:
        raise ValueError(
            f"`draft_tree_batch_size` is {made_for!r}, but must be an integer from 1 on. Set it in "
            "`draft.generation_config`."
        )
    return max(num_tokens * made_for // max(batch_size, made_for), min(num_tokens, depth))


def level_cost(generation_config: GenerationConfig) -> float | None:
    """
    What one more level costs, in cycles without any level; None where all cycles draft to `draft_tree_depth`.

    Raises:
        ValueError: if `draft_level_cost` is no positive number.
    """
    cost = getattr(generation_config, "draft_level_cost", None)
    if cost is not None and (isinstance(cost, bool) or not isinstance(cost, (int, float)) or not 0 < cost < math.inf):
        raise ValueError(
            f"`draft_level_cost` is {cost!r}, but must be a positive number: what one more level of the tree costs, "
            "in cycles without any level (`griffin tune` measures it); or None for the same depth in every cycle."
        )
    return cost


def tokens_at_depth(num_tokens: int, depth: int, top_k: int, shallower: int) -> int:
    """
    Drafted tokens of a tree with fewer levels: as many for each level.

    Args:
        num_tokens, depth, top_k (`int`): of the whole tree.
        shallower (`int`): levels, `depth` at most.
    """
    return min(math.ceil(num_tokens * shallower / depth), pool_size(shallower, top_k))


__all__ = [
    "MAX_DEPTH",
    "MAX_NODES",
    "MAX_TOP_K",
    "level_cost",
    "tokens_at_depth",
    "tokens_per_row",
    "tree_settings",
]
