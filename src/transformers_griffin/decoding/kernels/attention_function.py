"""
Tree attention behind transformers' attention interface.

While a tree is verified, the target's attention implementation is `"griffin_tree"` and its `attention_mask` a packed
tree mask (see `packed_mask.py`). Every model that asks the interface for its attention function then calls
[`tree_attention_forward`] with its own scaling, soft cap and sinks; sliding windows are in the mask already.

Meanwhile another thread may run the same target on something else. It gets sdpa's masks, and sdpa, whenever the switch
comes: that is why only targets that run with sdpa are switched.

Next: `compaction.py`.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .device import on_device_of


TREE_IMPLEMENTATION = "griffin_tree"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
UNSUPPORTED = ("position_bias", "score_mod", "sinks")  # as some models call what changes their scores

_lock = threading.Lock()
_num_verifying: Counter[int] = Counter()  # id of a text configuration -> threads that verify trees of its model now


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
    Attends from the nodes of a tree, or under sdpa's mask; has the signature that transformers' models call.

    Args:
        query (`torch.Tensor` of shape `(batch_size, heads, n_nodes, head_dim)`):
        key, value (`torch.Tensor` of shape `(batch_size, kv_heads, kv_len, head_dim)`): the cache with the tree.
        attention_mask (`torch.LongTensor` of shape `(batch_size, 1, n_nodes, 3 + words)`):
            A packed tree mask; any other mask, or none, gets sdpa.
        s_aux (`torch.Tensor` of shape `(heads,)`, *optional*): attention sinks.

    Returns:
        `torch.Tensor` of shape `(batch_size, n_nodes, heads, value_dim)`, and None for the weights.

    Raises:
        ValueError: if the model asks for what tree attention does not compute.
    """
    if attention_mask is None or attention_mask.dtype != torch.long:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, softcap=softcap, s_aux=s_aux, **kwargs
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    asked = [name for name in UNSUPPORTED if kwargs.get(name) is not None] + ["dropout"] * (dropout > 0)
    if asked:
        raise ValueError(
            f"{type(module).__name__} asks its attention for {', '.join(asked)}, which the kernels do "
            "not compute. Switch them off for this target: `transformers_griffin.decoding.kernels.enable(False)`."
        )
    from .tree_attention import tree_attention, tree_attention_reference  # needs Triton

    attend = tree_attention if query.is_cuda else tree_attention_reference
    with on_device_of(query):
        return attend(query, key, value, attention_mask, scaling, softcap, s_aux), None


def serves_trees_of(target: PreTrainedModel) -> bool:
    """Whether a model takes its attention function from transformers' interface, and the kernel reads its dtype."""
    supports_other_than_eager = target._supports_attention_backend or target._supports_sdpa
    return supports_other_than_eager and target._can_set_attn_implementation() and target.dtype in DTYPES


@contextmanager
def verifying_trees(text_config: Any) -> Iterator[None]:
    """
    While open, a text model that otherwise runs with sdpa takes packed tree masks. Several threads may verify trees
    with the same target: the first one switches the implementation, the last one switches back.
    """
    with _lock:
        _num_verifying[id(text_config)] += 1
        text_config._attn_implementation = {"": TREE_IMPLEMENTATION}  # its own, not that of its sub-configurations
    try:
        yield
    finally:
        with _lock:
            _num_verifying[id(text_config)] -= 1
            if not _num_verifying[id(text_config)]:
                del _num_verifying[id(text_config)]
                text_config._attn_implementation = {"": "sdpa"}


AttentionInterface.register(TREE_IMPLEMENTATION, tree_attention_forward)
AttentionMaskInterface.register(TREE_IMPLEMENTATION, sdpa_mask)


__all__ = ["TREE_IMPLEMENTATION", "serves_trees_of", "tree_attention_forward", "verifying_trees"]
