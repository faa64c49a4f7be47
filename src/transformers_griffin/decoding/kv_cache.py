"""
Keeps the accepted path in a key-value cache and forgets the rest of the tree, in place and on the device.

After verification every attention layer holds the prefix and then one entry per tree node. The accepted nodes move
to the front of the tree, and the layer is cut behind them::

    prefix | root a b c d e f      accepted: root, b, e
    prefix | root b e | c d e f    moved
    prefix | root b e              cut

Rows of a batch accept different numbers of nodes. Each row is stored from the left, and the cache is as long as its
longest row; what lies between the end of a shorter row and the next tree is its *gap*, hidden by the mask and
overwritten by what the row accepts next::

    long row     x x x x x x x | root a b c
    short row    x x x x . . . | root a b c        gap 3
    both kept    x x x x x x x   root a . .        accepted: root, a
                 x x x x root a b c                accepted: root, a, b, c

So the cache grows with its longest row: nothing is left behind, and nothing is moved but the accepted paths. It knows
caches and paths, nothing of trees or models.

Next: `verification.py`.
"""

from typing import Any

import torch
from transformers.cache_utils import (
    BaseQuantizedLayer,
    Cache,
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from . import kernels
from .growing_layers import GrowingLayer, GrowingSlidingLayer, as_dynamic, as_growing


class StaticFullSlidingLayer(StaticLayer):
    """
    A static layer that remembers a sliding-window layer's whole sequence, the window being the mask's affair.

    transformers' own static window overwrites its oldest entries while a tree is written, and they cannot be had back
    when the tree's nodes are rejected. This one costs the memory of a full-attention layer instead.
    """

    is_sliding = True


# Layers whose entries can be moved and cut one by one. Subclasses hold more than keys and values and do not qualify.
BRANCHING_LAYERS = (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
    StaticFullSlidingLayer,
    GrowingLayer,
    GrowingSlidingLayer,
    DummyLayer,
)
STATIC_LAYERS = (StaticLayer, StaticFullSlidingLayer)


def can_branch(cache: Cache) -> bool:
    """Whether every layer of `cache` can hold a tree and keep one path of it."""
    return not cache.offloading and all(type(layer) in BRANCHING_LAYERS for layer in cache.layers)


def can_roll_back(cache: Cache) -> bool:
    """Whether every layer of `cache` can forget its newest entries, which is what a chain needs."""
    # Quantized layers call themselves croppable, but `crop` leaves what is quantized already, and the count of it.
    is_quantized = any(isinstance(layer, BaseQuantizedLayer) for layer in cache.layers)
    return not (cache.offloading or is_quantized) and cache.is_croppable


def prepare_for_tree(cache: Cache, num_nodes: int, max_length: int, capacity_step: int = 1) -> None:
    """
    Makes room for a tree behind the longest sequence in static layers; to be called before the prefill.

    Args:
        num_nodes (`int`): nodes of a tree, root included.
        max_length (`int`): tokens of the longest sequence that will be generated, prompt included.
        capacity_step (`int`): capacities of new static layers are multiples of this.

    Effects:
        Empty layers get room for what will be generated and a tree; those of a user's own cache keep theirs if it is
        enough, those of `generate()`, which last as long as the longest answer so far, do not. Layers with a sliding
        window are replaced by [`StaticFullSlidingLayer`].

    Raises:
        ValueError: if a static cache that already holds tokens is too small for a tree behind `max_length`.
    """
    needed = max_length + num_nodes - 1
    capacity = needed + -needed % capacity_step
    is_users = getattr(cache, "_is_user_defined", False)
    for idx, layer in enumerate(_layers(cache)):
        if type(layer) is StaticSlidingWindowLayer:
            if layer.get_seq_length() > 0:
                raise ValueError(
                    "A static cache with sliding-window layers that already holds tokens cannot verify trees. Pass an "
                    "empty StaticCache, or a DynamicCache."
                )
            cache.layers[idx] = StaticFullSlidingLayer(max_cache_len=capacity)
        elif type(layer) not in STATIC_LAYERS:
            continue
        elif layer.max_cache_len < needed:
            if layer.get_seq_length() > 0:
                raise ValueError(
                    f"The static cache holds {layer.max_cache_len} tokens, but {max_length} tokens and a tree of "
                    f"{num_nodes} nodes behind them need {needed}. Make it with max_cache_len={needed} or more, or "
                    "lower `max_new_tokens` or the draft's `num_assistant_tokens`."
                )
            cache.layers[idx] = type(layer)(max_cache_len=capacity)
        elif layer.max_cache_len > capacity and not (is_users or layer.is_initialized):
            cache.layers[idx] = type(layer)(max_cache_len=capacity)


def start_growing(cache: Cache) -> None:
    """
    Makes layers able to take in drafts and to forget them; to be called after the prefill.

    Effects: replaces dynamic layers by growing ones, until [`stop_growing`]; others record what they may have to undo.
    """
    cache.layers = [as_growing(layer) for layer in cache.layers]
    cache.activate_past_recording()


def stop_growing(cache: Cache) -> None:
    """
    Ends what [`start_growing`] began.

    Effects: replaces growing layers by dynamic ones, which have dropped what lies behind their window.
    """
    cache.layers = [as_dynamic(layer) for layer in cache.layers]


def crop_last(cache: Cache, num_tokens: int | torch.Tensor) -> None:
    """
    Forgets the newest `num_tokens` entries of every layer; 0 still lets sliding layers drop what they no longer need.
    A tensor is read on the device, which static layers alone can do.

    Effects: cuts every layer of `cache` in place.
    """
    for layer in _layers(cache):
        if type(layer) in STATIC_LAYERS:
            if layer.is_initialized:
                layer.cumulative_length.sub_(num_tokens)
        else:
            layer.crop(-num_tokens)


def forget_behind_windows(cache: Cache, shortest: int) -> None:
    """Lets sliding-window layers drop what the window of the shortest row, of `shortest` tokens, no longer reaches."""
    for layer in _layers(cache):
        if type(layer) is GrowingSlidingLayer:
            layer.forget(shortest)


def keep_path(
    cache: Cache, path: torch.Tensor, num_kept: int | torch.Tensor, num_nodes: int, gaps: torch.Tensor | None = None
) -> None:
    """
    Keeps `num_kept` nodes of a verified tree, whose entries are the newest `num_nodes` of every layer.

    Args:
        path (`torch.LongTensor` of shape `(batch_size, path)`): node indices from the root on; `path <= num_nodes`.
        num_kept (`int`, or `torch.LongTensor` without dimensions for static layers):
            How many of them stay; with gaps, by how many entries the longest row grows.
        num_nodes (`int`): nodes of the tree, root included.
        gaps (`torch.LongTensor` of shape `(batch_size, 1)`, *optional*):
            Slots between the end of each row and the tree, where the row's path goes.

    Effects: moves and cuts the entries of every layer in place.
    """
    path = path[:, :num_nodes]
    layers = [layer for layer in _layers(cache) if type(layer) is not DummyLayer and layer.is_initialized]
    if layers and kernels.available(layers[0].keys.device) and _are_alike(layers):
        _move_all_to_front(layers, path.to(layers[0].keys.device), num_nodes, gaps)
    else:
        for layer in layers:
            for entries in (layer.keys, layer.values):
                _move_to_front(entries, path.to(entries.device), _length(layer) - num_nodes, gaps)
    crop_last(cache, num_nodes - num_kept)


def _layers(cache: Cache) -> list[Any]:
    """The layers, each of one of `BRANCHING_LAYERS`, whose attributes differ."""
    return cache.layers


def _length(layer: Any) -> int | torch.Tensor:
    """Entries of a layer; on the device if it is static."""
    return layer.cumulative_length if type(layer) in STATIC_LAYERS else layer.keys.shape[-2]


def _move_all_to_front(layers: list[Any], path: torch.Tensor, num_nodes: int, gaps: torch.Tensor | None) -> None:
    """[`_move_to_front`] in one launch. All layers end with the tree; those with a window may begin later."""
    from .kernels.compaction import move_path

    entries = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
    if type(layers[0]) in STATIC_LAYERS:
        longest, offsets = layers[0].cumulative_length, None
    else:
        lengths = [tensor.shape[-2] for tensor in entries]
        longest = max(lengths)
        offsets = [longest - length for length in lengths]
    roots = torch.zeros_like(path[:, :1]) + (longest - num_nodes)  # (batch_size, 1)
    starts = roots if gaps is None else roots - gaps.to(roots.device)
    move_path(entries, roots + path, starts.squeeze(1), offsets)


def _are_alike(layers: list[Any]) -> bool:
    """Whether the entries of all layers can be moved together: all are on one device, and all or none are static."""
    return len({(layer.keys.device, type(layer) in STATIC_LAYERS) for layer in layers}) == 1


def _move_to_front(
    entries: torch.Tensor, path: torch.Tensor, start: int | torch.Tensor, gaps: torch.Tensor | None
) -> None:
    """
    `entries[:, :, start - gaps + i] = entries[:, :, start + path[:, i]]` for `(batch_size, heads, kv_len, head_dim)`.
    """
    _, heads, _, head_dim = entries.shape
    source = (start + path)[:, None, :, None].expand(-1, heads, -1, head_dim)
    target = start + torch.arange(path.shape[1], device=path.device)
    if gaps is None:
        entries.index_copy_(2, target, entries.gather(2, source))
    else:
        of_rows = (target - gaps.to(path.device))[:, None, :, None].expand(-1, heads, -1, head_dim)
        entries.scatter_(2, of_rows, entries.gather(2, source))


__all__ = [
    "StaticFullSlidingLayer",
    "can_branch",
    "can_roll_back",
    "crop_last",
    "forget_behind_windows",
    "keep_path",
    "prepare_for_tree",
    "start_growing",
    "stop_growing",
]
