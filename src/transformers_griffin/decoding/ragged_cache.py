"""
A key-value cache whose rows have different lengths.

Rows of a batch accept different numbers of tokens. Each row is stored from the left, and the cache is as long as its
longest row; what lies between a shorter row and the next tree is its *gap*, hidden by the mask and overwritten by what
the row accepts next::

    long row     x x x x x x x | root a b c
    short row    x x x x . . . | root a b c        gap 3
    both kept    x x x x x x x | r a               accepted: root, a
                 x x x x r a b | c                 accepted: root, a, b, c

So the cache grows with the longest row, nothing is moved but the accepted path, and nothing is left behind.
`kv_cache.keep_path` does the moving; here is what else such a cache needs: sliding-window layers that serve rows of
different lengths, and a place for rows that have finished.

Next: `loop.py`.
"""

from collections.abc import Iterator
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer, StaticLayer


class RaggedSlidingLayer(DynamicLayer):
    """
    A dynamic sliding-window layer for rows of different lengths: it keeps what the shortest row's window reaches.

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
        if num_dropped > 0 and self.is_initialized:
            self.keys, self.values = self.keys[:, :, num_dropped:], self.values[:, :, num_dropped:]
            self.offset += num_dropped


def use_ragged_windows(cache: Cache) -> None:
    """Replaces dynamic sliding-window layers, with what they hold, by [`RaggedSlidingLayer`]s, in place."""
    for idx, layer in _layers(cache):
        if type(layer) is DynamicSlidingWindowLayer:
            ragged = RaggedSlidingLayer(layer.sliding_window)
            if layer.is_initialized:
                ragged.lazy_initialization(layer.keys, layer.values)
                ragged.keys, ragged.values = layer.keys, layer.values
                ragged.offset = layer.cumulative_length - layer.keys.shape[-2]
            cache.layers[idx] = ragged


def use_plain_windows(cache: Cache) -> None:
    """Ends what [`use_ragged_windows`] began: the layers hold the window of the longest row."""
    for idx, layer in _layers(cache):
        if type(layer) is RaggedSlidingLayer:
            plain = DynamicSlidingWindowLayer(layer.sliding_window)
            if layer.is_initialized:
                plain.lazy_initialization(layer.keys, layer.values)
                plain.cumulative_length = layer.get_seq_length()
                plain.keys = layer.keys[:, :, -layer.sliding_window + 1 :]
                plain.values = layer.values[:, :, -layer.sliding_window + 1 :]
            cache.layers[idx] = plain


def forget_behind_windows(cache: Cache, shortest: int) -> None:
    """Lets sliding-window layers drop what the window of the shortest row, of `shortest` tokens, no longer reaches."""
    for _, layer in _layers(cache):
        if type(layer) is RaggedSlidingLayer:
            layer.forget(shortest)


def can_drop_rows(cache: Cache) -> bool:
    """Whether the batch of `cache` may shrink: static layers keep their shape, for which code may be compiled."""
    return not any(isinstance(layer, StaticLayer) for layer in cache.layers)


class FinishedRows:
    """
    The cache entries of rows that have left the batch, for a cache that outlives the call.

    Args:
        cache ([`~transformers.Cache`]): with layers that can hold a tree, none of them static.
    """

    def __init__(self, cache: Cache):
        self.cache = cache
        # row -> for each layer its keys and values, each (1, heads, length, head_dim), and their first slot
        self.entries: dict[int, list[tuple[torch.Tensor, torch.Tensor, int] | None]] = {}

    def take(self, index: int, row: int, length: int) -> None:
        """Copies the first `length` slots of the batch's row `index`, which is known as `row` from now on."""
        self.entries[row] = [self._entries_of(layer, index, length) for _, layer in _layers(self.cache)]

    def put_back(self, rows: list[int], lengths: list[int]) -> None:
        """
        Makes the cache hold all rows again, those in the batch (`rows`, with `lengths`) and those taken out of it, in
        their order and as long as the longest; slots behind a row's own end are zero.

        Effects: replaces the entries of every layer.
        """
        if not self.entries:
            return
        for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            self.take(index, row, length)
        for idx, layer in _layers(self.cache):
            of_rows = [entry for _, entries in sorted(self.entries.items()) if (entry := entries[idx]) is not None]
            if of_rows:
                longest = max(first + keys.shape[2] for keys, _, first in of_rows)
                offset = max(longest - layer.sliding_window + 1, 0) if type(layer) is RaggedSlidingLayer else 0
                layer.keys = torch.cat([_slots(keys, first, offset, longest) for keys, _, first in of_rows])
                layer.values = torch.cat([_slots(values, first, offset, longest) for _, values, first in of_rows])
                if type(layer) is RaggedSlidingLayer:
                    layer.offset = offset

    @staticmethod
    def _entries_of(layer: Any, index: int, length: int) -> tuple[torch.Tensor, torch.Tensor, int] | None:
        if not isinstance(layer, DynamicLayer) or not layer.is_initialized:
            return None  # reads another layer's entries
        first = layer.offset if type(layer) is RaggedSlidingLayer else 0
        rows = slice(index, index + 1)
        return layer.keys[rows, :, : length - first].clone(), layer.values[rows, :, : length - first].clone(), first


def _slots(entries: torch.Tensor, first: int, start: int, end: int) -> torch.Tensor:
    """The slots `start` .. `end - 1` of a row whose entries begin at slot `first`, zero where it has none."""
    return torch.nn.functional.pad(entries, (0, 0, first - start, end - first - entries.shape[2]))


def _layers(cache: Cache) -> Iterator[tuple[int, Any]]:
    yield from enumerate(cache.layers)


__all__ = [
    "FinishedRows",
    "RaggedSlidingLayer",
    "can_drop_rows",
    "forget_behind_windows",
    "use_plain_windows",
    "use_ragged_windows",
]
