"""
Tree attention behind transformers' attention interface.

While a tree is verified, the target's attention implementation is `"griffin_tree"` and its `attention_mask` a packed
tree mask (see `packed_mask.py`). Every model that asks the interface for its attention function then calls
[`tree_attention_forward`] with its own scaling, soft cap and sinks; sliding windows are in the mask already.

The interface for masks is not needed: a 4-D mask passes it as it is, and any other would be a bug. Prompts are read
with the implementation that the user chose.

Next: `compaction.py`.
"""

from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel

from .device import on_device_of


TREE_IMPLEMENTATION = "griffin_tree"
UNSUPPORTED = ("position_bias", "score_mod", "sinks")  # as some models call what changes their scores


def tree_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """
    Attends from the nodes of a tree; has the signature that transformers' models call.

    Args:
        query (`torch.Tensor` of shape `(batch_size, heads, n_nodes, head_dim)`):
        key, value (`torch.Tensor` of shape `(batch_size, kv_heads, kv_len, head_dim)`): the cache with the tree.
        attention_mask (`torch.LongTensor` of shape `(batch_size, 1, n_nodes, 3 + words)`): a packed tree mask.
        s_aux (`torch.Tensor` of shape `(heads,)`, *optional*): attention sinks.

    Returns:
        `torch.Tensor` of shape `(batch_size, n_nodes, heads, value_dim)`, and None for the weights.

    Raises:
        ValueError: without a tree mask, or if the model asks for what tree attention does not compute.
    """
    if attention_mask is None or attention_mask.dtype != torch.long or attention_mask.shape[2] != query.shape[2]:
        raise ValueError(
            f"{TREE_IMPLEMENTATION!r} attention of {type(module).__name__} got {_describe(attention_mask)} for "
            f"{query.shape[2]} queries instead of a packed tree mask. It only verifies drafted trees: load the model "
            "with another `attn_implementation`, and the trees will find their way."
        )
    asked = [name for name in UNSUPPORTED if kwargs.get(name) is not None] + ["dropout"] * (dropout > 0)
    if asked:
        raise ValueError(
            f"{type(module).__name__} asks its attention for {', '.join(asked)}, which {TREE_IMPLEMENTATION!r} does "
            "not compute. Verify its trees with 'sdpa' or 'eager' attention."
        )
    from .tree_attention import tree_attention, tree_attention_reference  # needs Triton

    attend = tree_attention if query.is_cuda else tree_attention_reference
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    with on_device_of(query):
        return attend(query, key, value, attention_mask, scaling, softcap, s_aux), None


def serves_trees_of(target: PreTrainedModel) -> bool:
    """Whether a model takes its attention function from transformers' interface."""
    supports_other_than_eager = target._supports_attention_backend or target._supports_sdpa
    return supports_other_than_eager and target._can_set_attn_implementation()


def _describe(mask: torch.Tensor | None) -> str:
    return "no mask" if mask is None else f"a {mask.dtype} mask of shape {tuple(mask.shape)}"


AttentionInterface.register(TREE_IMPLEMENTATION, tree_attention_forward)


__all__ = ["TREE_IMPLEMENTATION", "serves_trees_of", "tree_attention_forward"]
