"""
Cache layers that write what is new behind what they hold.

A dynamic layer of transformers copies all that it holds into a longer tensor at every forward, and a tree's nodes are
cut off it again. These layers keep room behind their entries, and copy when it is used up::

    store    p p p p p a b c . . . .      keys, values: views of the slots in use
    cut      p p p p p|a . . . . . .      the next tree is written behind a

With a window the view wanders, and is moved to the front of a new store at the end of the old one::

    store    . . . p p a b c . . . .

They live as long as a call of `generate()`: before and behind it the cache has the layers of transformers.

Next: `transfers.py`.
"""

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


# Slots that a new store has behind what it holds (our choice): memory for one tree of the paper, some fifteen cycles
# until it is copied.
SPARE_SLOTS = 64


class GrowingLayer(DynamicLayer):
    """A dynamic layer whose keys and values are views of larger tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.stores: dict[str, torch.Tensor] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends new entries; returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._append("keys", self.keys, key_states)
        self.values = self._append("values", self.values, value_states)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps the rows `indices` of the batch."""
        self.stores = {}
        super().batch_select_indices(indices)

    def reset(self) -> None:
        """Forgets everything."""
        self.stores = {}
        super().reset()

    def _append(self, name: str, entries: torch.Tensor | None, new: torch.Tensor) -> torch.Tensor:
        """`entries` and `new` in one store: a new one where `entries` are in none, or theirs is full."""
        assert entries is not None  # the layer is initialized
        store = self.stores.get(name)
        length = entries.shape[-2] if entries.numel() > 0 else 0
        start, num_all = _first_slot(entries, store), length + new.shape[-2]
        if store is None or start is None or start + num_all > store.shape[-2]:
            store = new.new_empty(*new.shape[:-2], num_all + SPARE_SLOTS, new.shape[-1])
            if length > 0:
                store[..., :length, :] = entries
            self.stores[name], start = store, 0
        store[..., start + length : start + num_all, :] = new
        return store[..., start : start + num_all, :]


class GrowingSlidingLayer(GrowingLayer):
    """
    A growing sliding-window layer, whose rows may have different lengths: it keeps what the shortest row's window
    reaches.

    Args:
        sliding_window (`int`): tokens that a token sees, itself included.
    """

    is_sliding = True

    def __init__(self, sliding_window: int):
        super().__init__()
        self.sliding_window = sliding_window
        self.offset = 0  # slots that were dropped, in front of the first one that is stored

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length of what attention reads, and its first slot."""
        return self.get_seq_length() - self.offset + query_length, self.offset

    def get_seq_length(self) -> int:
        """Slots so far, dropped ones included."""
        return self.offset + super().get_seq_length()

    def forget(self, shortest: int) -> None:
        """
        Drops what the window of a row of `shortest` tokens, the next one not included, no longer reaches.

        Effects: cuts the layer in place.
        """
        num_dropped = shortest - self.sliding_window + 1 - self.offset
        if num_dropped > 0 and self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[:, :, num_dropped:], self.values[:, :, num_dropped:]
            self.offset += num_dropped


def as_growing(layer: Any) -> Any:
    """A growing layer that holds what a dynamic layer holds, which it copies before it writes; others as they are."""
    if type(layer) is DynamicLayer:
        return _with_entries(GrowingLayer(), layer)
    if type(layer) is DynamicSlidingWindowLayer:
        growing = _with_entries(GrowingSlidingLayer(layer.sliding_window), layer)
        growing.offset = layer.cumulative_length - (0 if layer.keys is None else layer.keys.shape[-2])
        return growing
    return layer


def as_dynamic(layer: Any) -> Any:
    """A dynamic layer that holds what a growing layer holds, or the longest row's window; others as they are."""
    if type(layer) is GrowingLayer:
        return _with_entries(DynamicLayer(), layer)
    if type(layer) is GrowingSlidingLayer:
        dynamic = DynamicSlidingWindowLayer(layer.sliding_window)
        if layer.keys is not None and layer.values is not None:
            dynamic.update(layer.keys, layer.values)
            dynamic.cumulative_length = layer.get_seq_length()
        return dynamic
    return layer


def _with_entries(layer: Any, source: Any) -> Any:
    """`layer`, which is empty, with the entries of `source`, if there are any."""
    if source.is_initialized:
        layer.lazy_initialization(source.keys, source.values)
        layer.keys, layer.values = source.keys, source.values
    return layer


def _first_slot(entries: torch.Tensor, store: torch.Tensor | None) -> int | None:
    """The slot of `store` with which `entries` begin; None if they are elsewhere."""
    if store is None or entries.untyped_storage().data_ptr() != store.untyped_storage().data_ptr():
        return None
    return entries.storage_offset() // store.stride(-2)


__all__ = ["GrowingLayer", "GrowingSlidingLayer", "as_dynamic", "as_growing"]
