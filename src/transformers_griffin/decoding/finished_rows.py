"""
A place for the cache entries of rows that have left the batch, for caches that outlive the call.

Next: `choice.py`.
"""

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer, StaticLayer

from .growing_layers import GrowingSlidingLayer


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
        self.lengths: dict[int, int] = {}

    def take(self, index: int, row: int, length: int) -> None:
        """Copies the first `length` slots of the batch's row `index`, which is known as `row` from now on."""
        self.lengths[row] = length
        of_layers = [self._entries_of(layer, index, length) for layer in self.cache.layers]
        self.entries[row] = [e if e is None else (e[0].clone(), e[1].clone(), e[2]) for e in of_layers]

    def put_back(self, rows: list[int], lengths: list[int]) -> list[int]:
        """
        Makes the cache hold all rows again, those in the batch (`rows`, with `lengths`) and those taken out of it, in
        their order and as long as the longest; slots behind a row's own end are zero.

        Returns:
            the lengths of all rows.

        Effects: replaces the entries of every layer if there were rows to put back.
        """
        if not self.entries:
            return lengths
        self.lengths.update(zip(rows, lengths, strict=True))
        longest, shortest = max(self.lengths.values()), min(self.lengths.values())
        layers: list[Any] = self.cache.layers
        for layer in layers:
            # Both kinds of rows are freed layer by layer, so that no second cache exists meanwhile.
            entries = {row: of_layers.pop(0) for row, of_layers in self.entries.items()}
            for index, row in enumerate(rows):
                entries[row] = self._entries_of(layer, index, self.lengths[row])
            of_rows = [entry for _, entry in sorted(entries.items()) if entry is not None]
            if of_rows:
                offset = max(shortest - layer.sliding_window + 1, 0) if type(layer) is GrowingSlidingLayer else 0
                keys = torch.cat([_slots(keys, first, offset, longest) for keys, _, first in of_rows])
                values = torch.cat([_slots(values, first, offset, longest) for _, values, first in of_rows])
                layer.reset()
                layer.update(keys, values)
                if type(layer) is GrowingSlidingLayer:
                    layer.offset = offset
        return [length for _, length in sorted(self.lengths.items())]

    @staticmethod
    def _entries_of(layer: Any, index: int, length: int) -> tuple[torch.Tensor, torch.Tensor, int] | None:
        if not isinstance(layer, DynamicLayer) or layer.keys is None or layer.values is None:
            return None  # reads another layer's entries
        first = layer.offset if type(layer) is GrowingSlidingLayer else 0
        rows = slice(index, index + 1)
        return layer.keys[rows, :, : length - first], layer.values[rows, :, : length - first], first


def _slots(entries: torch.Tensor, first: int, start: int, end: int) -> torch.Tensor:
    """The slots `start` .. `end - 1` of a row whose entries begin at slot `first`, zero where it has none."""
    held = entries[:, :, max(start - first, 0) :]
    in_front = max(first - start, 0)
    return torch.nn.functional.pad(held, (0, 0, in_front, end - start - in_front - held.shape[2]))


__all__ = ["FinishedRows", "can_drop_rows"]
