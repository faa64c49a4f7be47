"""
A tree's attention mask in a few numbers per node instead of one for every cache slot.

A node sees a run of prefix slots and those tree nodes that are its ancestors or itself. Both fit into one row of int64
numbers, whatever the length of the prefix::

    slots       . . P P P P P P P P | root a b c | rest          P: a prefix slot that the node sees
                    ^               ^ ^
                  first           end start                      words: bit j says whether it sees slot start + j

    mask[row, 0, node] = first, end, start, word 0 (bits 0..63), word 1 (bits 64..127), ...

`end` and `start` are the same for all nodes of a row. Left padding and sliding windows only move `first` and clear
bits, so whoever reads the mask knows neither. It is a 4-D tensor because transformers hands a 4-D attention mask to
the attention function as it is (`masking_utils.py`, `_preprocess_mask_arguments`), alone or in a dict of one mask for
each kind of layer, whatever its columns mean.

Notation for shapes: `batch_size`; `n_nodes` nodes that attend; `n_slots` tree slots; `words` = ceil(n_slots / 64).

Next: `product.py`.
"""

import torch


NUM_BOUNDS = 3  # first, end, start
BITS = 64


def pack_tree_mask(
    ancestors: torch.Tensor,
    depths: torch.Tensor,
    ends: torch.Tensor,
    starts: torch.Tensor | None = None,
    num_padded: torch.Tensor | None = None,
    sliding_window: int | None = None,
    kv_offset: int = 0,
) -> torch.Tensor:
    """
    Packs what every node of a tree sees.

    Args:
        ancestors (`torch.BoolTensor` of shape `(batch_size, n_nodes, n_slots)`):
            Row sees column. The columns are the rows, too, unless there is no window.
        depths (`torch.LongTensor` of shape `(batch_size, n_nodes)`): 0 at the root.
        ends (`torch.LongTensor` of shape `(batch_size,)` or `(1,)`): length of each row's prefix, padding included.
        starts (`torch.LongTensor` of shape `(batch_size,)` or `(1,)`, *optional*):
            Slot of each row's root; directly behind the prefix by default.
        num_padded (`torch.LongTensor` of shape `(batch_size,)`, *optional*): slots of padding in front of each row.
        sliding_window (`int`, *optional*): what is at that distance or farther along the path is hidden.
        kv_offset (`int`): slots at the start of the sequence that the layer's cache has dropped.

    Returns:
        `torch.LongTensor` of shape `(batch_size, 1, n_nodes, 3 + words)`.

    Example (prefix of 5 slots, the first one padding; root -- a -- b; window of 4)::

        root   first 2, end 5, start 5, bits 0b001
        a      first 3, end 5, start 5, bits 0b011
        b      first 4, end 5, start 5, bits 0b111
    """
    first = torch.zeros_like(depths) if num_padded is None else num_padded.unsqueeze(-1).expand_as(depths)
    if sliding_window is not None:
        first = torch.maximum(first, ends.unsqueeze(-1) + depths - sliding_window + 1)
        ancestors = ancestors & (depths.unsqueeze(-1) - depths.unsqueeze(1) < sliding_window)
    bounds = [bound.unsqueeze(-1).expand_as(first) for bound in (ends, ends if starts is None else starts)]
    packed = (torch.stack((first, *bounds), dim=-1) - kv_offset).clamp(min=0)
    return torch.cat((packed, pack_bits(ancestors)), dim=-1).unsqueeze(1)


def is_left_padded(padding_mask: torch.Tensor | None) -> bool:
    """Whether each row's padding, if there is any, is in front, where bounds can say so; the host waits to know."""
    return padding_mask is None or not (padding_mask.long().diff(dim=1) < 0).any()


def pack_bits(flags: torch.Tensor) -> torch.Tensor:
    """`(..., n)` booleans as `(..., ceil(n / 64))` words of int64; flag j is bit j % 64 of word j // 64."""
    num_words = -(-flags.shape[-1] // BITS)
    padded = torch.nn.functional.pad(flags, (0, num_words * BITS - flags.shape[-1]))
    bit_values = torch.ones((), dtype=torch.long, device=flags.device) << torch.arange(BITS, device=flags.device)
    return (padded.unflatten(-1, (num_words, BITS)) * bit_values).sum(dim=-1)


def unpack_tree_mask(mask: torch.Tensor, kv_length: int) -> torch.Tensor:
    """
    The mask that [`pack_tree_mask`] packed, as `torch.BoolTensor` of shape `(batch_size, 1, n_nodes, kv_length)`.
    """
    first, end, start = mask[..., :NUM_BOUNDS].unsqueeze(-2).unbind(dim=-1)  # each (batch_size, 1, n_nodes, 1)
    words = mask[..., NUM_BOUNDS:]
    slots = torch.arange(kv_length, device=mask.device)
    node = slots - start  # (batch_size, 1, n_nodes, kv_length)
    in_tree = (node >= 0) & (node < words.shape[-1] * BITS)
    node = node.clamp(0, words.shape[-1] * BITS - 1)
    sees_node = (words.gather(-1, node // BITS) >> (node % BITS)) & 1 == 1
    return ((slots >= first) & (slots < end)) | (in_tree & sees_node)


__all__ = [
    "BITS",
    "NUM_BOUNDS",
    "is_left_padded",
    "pack_bits",
    "pack_tree_mask",
    "unpack_tree_mask",
]
