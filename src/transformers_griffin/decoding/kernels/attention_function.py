"""
Tree attention behind transformers' attention interface.

While the target verifies a tree, or the draft reads a level of it, the model's attention implementation is
`"griffin_tree"` and its `attention_mask` a packed tree mask (see `packed_mask.py`). Every model that asks the
interface for its attention function then calls [`tree_attention_forward`] with its own scaling, soft cap and sinks;
sliding windows are in the mask already.

Meanwhile another thread may run the same model on something else. It gets sdpa's masks, and sdpa, whenever the switch
comes: that is why only models that run with sdpa are switched.

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

from .. import kernels


TREE_IMPLEMENTATION = "griffin_tree"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
UNSUPPORTED = ("position_bias", "score_mod", "sinks")  # as some models call what changes their scores

_lock = threading.Lock()
_num_reading: Counter[int] = Counter()  # id of a configuration -> threads in which its model reads trees now


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
    return attend(query, key, value, attention_mask, scaling, softcap, s_aux), None


def attn_implementation(config: Any) -> str:
    """The attention implementation of a model: sdpa, too, while another thread has switched it to packed masks."""
    implementation: str = config._attn_implementation
    return "sdpa" if implementation == TREE_IMPLEMENTATION else implementation


def can_read_packed_masks(model: PreTrainedModel) -> bool:
    """
    Whether the kernel can attend for a model: it runs with sdpa, takes its attention function from transformers'
    interface, and is on a device and in a dtype of the kernel's.
    """
    config = model.config.get_text_config(decoder=True)
    if not kernels.available(model.device) or attn_implementation(config) != "sdpa":
        return False
    supports_other_than_eager = model._supports_attention_backend or model._supports_sdpa
    return supports_other_than_eager and model._can_set_attn_implementation() and model.dtype in DTYPES


@contextmanager
def reading_packed_masks(config: Any) -> Iterator[None]:
    """
    While open, a model that otherwise runs with sdpa takes packed tree masks. Several threads may read trees with the
    same model: the first one switches the implementation, the last one switches back.
    """
    with _lock:
        _num_reading[id(config)] += 1
        config._attn_implementation = {"": TREE_IMPLEMENTATION}  # its own, not that of its sub-configurations
    try:
        yield
    finally:
        with _lock:
            _num_reading[id(config)] -= 1
            if not _num_reading[id(config)]:
                del _num_reading[id(config)]
                config._attn_implementation = {"": "sdpa"}


AttentionInterface.register(TREE_IMPLEMENTATION, tree_attention_forward)
AttentionMaskInterface.register(TREE_IMPLEMENTATION, sdpa_mask)


__all__ = [
    "TREE_IMPLEMENTATION",
    "attn_implementation",
    "can_read_packed_masks",
    "reading_packed_masks",
    "tree_attention_forward",
]
