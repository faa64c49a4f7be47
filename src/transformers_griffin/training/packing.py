"""
Packs tokenized documents into rows of at most `max_length` tokens.

A row keeps apart what it holds: `documents` numbers them 1, 2, ..., and neither the target nor the draft sees one
document from another (`features.py`)::

    input_ids   a0 a1 a2 b0 b1
    loss_mask    0  1  1  0  1
    documents    1  1  1  2  2

Next: `fingerprints.py`.
"""

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from itertools import chain


Columns = dict[str, list[list[int]]]


def pack_columns(columns: Mapping[str, Sequence[Sequence[int]]], max_length: int) -> Columns:
    """
    Packs rows; a batched function for [`datasets.Dataset.map`].

    Args:
        columns (`Mapping[str, Sequence]`): `input_ids` and `loss_mask`; longer rows are cut to `max_length`.
        max_length (`int`): tokens that a packed row holds at most.

    Returns:
        `dict[str, list]`: `input_ids`, `loss_mask` and `documents` of fewer rows.
    """
    cut = {name: [row[:max_length] for row in columns[name]] for name in ("input_ids", "loss_mask")}
    packs = best_fit_decreasing([len(row) for row in cut["input_ids"]], max_length)
    packed = {name: [list(chain.from_iterable(rows[i] for i in pack)) for pack in packs] for name, rows in cut.items()}
    packed["documents"] = [
        [number for number, i in enumerate(pack, start=1) for _ in cut["input_ids"][i]] for pack in packs
    ]
    return packed


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """
    Distributes items over few bins: from the longest on, each goes where it leaves the least space.

    Args:
        lengths (`Sequence[int]`): none above `capacity`.
        capacity (`int`): of a bin.

    Returns:
        `list[list[int]]`: the items of every bin.
    """
    bins: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # (free, bin), ascending
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        best = bisect_left(spaces, (lengths[item], 0))
        if best == len(spaces):
            free, chosen = capacity, len(bins)
            bins.append([])
        else:
            free, chosen = spaces.pop(best)
        bins[chosen].append(item)
        insort(spaces, (free - lengths[item], chosen))
    return bins


__all__ = ["best_fit_decreasing", "pack_columns"]
