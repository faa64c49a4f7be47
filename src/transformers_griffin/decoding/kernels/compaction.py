"""
Keeps the accepted path in the caches of all layers with one launch.

Keys and values of `n` layers are `2 n` tensors anywhere in memory, so the kernel gets a table of their addresses::

    table[i] = address, batch stride, head stride, slot stride, kv_heads, head_dim, first slot

1. One program for each (tensor, batch row, head) reads the row of its tensor.
2. It loads all entries of the path, waits until every thread has, and writes them. Source and target overlap: without
   the barrier a thread could overwrite what another has yet to read.

Entries are moved as integers of their size: no number is looked at, and every dtype takes the same way.

Reference: [`move_path_reference`], a gather and a scatter for each tensor.

Notation for shapes: `batch_size`; `path` nodes of the longest path; `kv_heads`, `kv_len`, `head_dim` of each tensor.

Next: `accept_walk.py`.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# (kernels take pointers, for which Python has no type)

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .device import on_device_of


INTEGER_OF_SIZE = {1: tl.int8, 2: tl.int16, 4: tl.int32, 8: tl.int64}


@dataclass(frozen=True)
class EntryTable:
    """Where the keys and values of a cache lie. A static cache never moves, and neither does its table."""

    fields: torch.Tensor  # (num_tensors, 7), see the module
    element_size: int  # bytes
    most_heads: int  # of any tensor
    widest: int  # head_dim of any tensor


def can_tabulate(entries: Sequence[torch.Tensor]) -> bool:
    """Whether one [`entry_table`] can hold tensors: one device, one dtype, the numbers of an entry side by side."""
    kinds = {(tensor.device, tensor.dtype, tensor.stride(-1)) for tensor in entries}
    return len(kinds) == 1 and entries[0].stride(-1) == 1


def entry_table(entries: Sequence[torch.Tensor], offsets: Sequence[int] | None = None) -> EntryTable:
    """
    Writes down where the tensors of a cache lie; without waiting for the device.

    Args:
        entries (sequence of `torch.Tensor` of shape `(batch_size, kv_heads, kv_len, head_dim)`):
            Keys and values of all layers, of any sizes, on one device and of one dtype.
        offsets (sequence of `int`, *optional*): slots at the start of the sequence that each tensor has dropped.
    """
    offsets = [0] * len(entries) if offsets is None else offsets
    rows = [
        [tensor.data_ptr(), *tensor.stride()[:3], tensor.shape[1], tensor.shape[3], offset]
        for tensor, offset in zip(entries, offsets, strict=True)
    ]
    device = entries[0].device
    fields = torch.tensor(rows, pin_memory=device.type == "cuda").to(device, non_blocking=True)
    most_heads, widest = (max(tensor.shape[dim] for tensor in entries) for dim in (1, 3))
    return EntryTable(fields, entries[0].element_size(), most_heads, widest)


def move_path(table: EntryTable, sources: torch.Tensor, starts: torch.Tensor) -> None:
    """
    Moves the accepted path of every row to where the row's next entries belong.

    Args:
        table ([`EntryTable`]): of the cache's `entries` with their `offsets`.
        sources (`torch.LongTensor` of shape `(batch_size, path)`): slots of the path's nodes, from the root on.
        starts (`torch.LongTensor` of shape `(batch_size,)`): the slot to which each row's root belongs.

    Effects: `entries[i][b, :, starts[b] - offsets[i] + j] = entries[i][b, :, sources[b, j] - offsets[i]]` for all j.

    Example (prefix of 5 slots, accepted root, b, e)::

        slots     5 6 7 8 9 10 11        sources [[5, 7, 10]]
        before    root a b c d e f       starts  [5]
        after     root b e c d e f
    """
    batch_size, path = sources.shape
    with on_device_of(sources):
        _move[(table.fields.shape[0], batch_size, table.most_heads)](
            table.fields, sources.contiguous(), starts.contiguous(), path,
            NUM_FIELDS=table.fields.shape[1],
            DTYPE=INTEGER_OF_SIZE[table.element_size],
            BLOCK_PATH=1 << (path - 1).bit_length(),
            BLOCK_DIM=1 << (table.widest - 1).bit_length(),
        )  # fmt: skip


def move_path_reference(
    entries: Sequence[torch.Tensor], sources: torch.Tensor, starts: torch.Tensor, offsets: Sequence[int] | None = None
) -> None:
    """Does what [`move_path`] does with an [`entry_table`] of the same arguments, tensor by tensor."""
    offsets = [0] * len(entries) if offsets is None else offsets
    targets = starts.unsqueeze(-1) + torch.arange(sources.shape[1], device=sources.device)
    for tensor, offset in zip(entries, offsets, strict=True):
        source, target = (
            (slots - offset)[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3])
            for slots in (sources, targets)
        )
        tensor.scatter_(2, target, tensor.gather(2, source))


@triton.jit
def _move(
    table, sources, starts, path,
    NUM_FIELDS: tl.constexpr, DTYPE: tl.constexpr, BLOCK_PATH: tl.constexpr, BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    batch, head = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)

    # 1. This program's tensor.
    fields = table + tl.program_id(0) * NUM_FIELDS
    address = tl.load(fields).to(tl.pointer_type(DTYPE))
    start_of_head = address + batch * tl.load(fields + 1) + head * tl.load(fields + 2)
    slot_stride, offset = tl.load(fields + 3), tl.load(fields + 6)
    width = tl.where(head < tl.load(fields + 4), tl.load(fields + 5), 0)  # the tensor may have fewer heads than others

    # 2. All of the path is read before any of it is written.
    step = tl.arange(0, BLOCK_PATH)
    dim = tl.arange(0, BLOCK_DIM)
    source = tl.load(sources + batch * path + step, mask=step < path, other=0) - offset
    target = tl.load(starts + batch) + step - offset
    is_entry = (step < path)[:, None] & (dim < width)[None, :]
    moved = tl.load(start_of_head + source[:, None] * slot_stride + dim[None, :], mask=is_entry)
    tl.debug_barrier()
    tl.store(start_of_head + target[:, None] * slot_stride + dim[None, :], moved, mask=is_entry)


__all__ = ["EntryTable", "can_tabulate", "entry_table", "move_path", "move_path_reference"]
