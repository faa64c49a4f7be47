"""
Keeps the accepted path in the caches of all layers, with one launch for all tensors that are laid out alike.

Keys and values of `n` layers are `2 n` tensors anywhere in memory, and the kernel gets all of them as a tuple. In most
models they have the same shape and strides; layers with a window or other heads are a launch of their own.

1. One program for each (tensor, batch row, head) picks its tensor.
2. It loads all entries of the path, waits until every thread has, and writes them. Source and target overlap: without
   the barrier a thread could overwrite what another has yet to read.

Entries are moved as integers of their size: no number is looked at, and every dtype takes the same way.

Reference: [`move_path_reference`], a gather and a scatter for each tensor.

Notation for shapes: `batch_size`; `path` nodes of the longest path; `kv_heads`, `kv_len`, `head_dim` of each tensor.

Next: `accept_walk.py`.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# (kernels take pointers, for which Python has no type)

from collections import defaultdict
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from .device import on_device_of


INTEGER_OF_SIZE = {1: tl.int8, 2: tl.int16, 4: tl.int32, 8: tl.int64}


@torch.library.custom_op("transformers_griffin::move_path", mutates_args=("entries",))
def move_path(
    entries: Sequence[torch.Tensor],
    sources: torch.Tensor,
    starts: torch.Tensor,
    offsets: Sequence[int] | None = None,
) -> None:
    """
    Moves the accepted path of every row to where the row's next entries belong.

    Args:
        entries (sequence of `torch.Tensor` of shape `(batch_size, kv_heads, kv_len, head_dim)`):
            Keys and values of all layers, of any sizes, strides and dtypes, on one device.
        sources (`torch.LongTensor` of shape `(batch_size, path)`): slots of the path's nodes, from the root on.
        starts (`torch.LongTensor` of shape `(batch_size,)`): the slot to which each row's root belongs.
        offsets (sequence of `int`, *optional*): slots at the start of the sequence that each tensor has dropped.

    Effects: `entries[i][b, :, starts[b] - offsets[i] + j] = entries[i][b, :, sources[b, j] - offsets[i]]` for all j.

    Example (prefix of 5 slots, accepted root, b, e)::

        slots     5 6 7 8 9 10 11        sources [[5, 7, 10]]
        before    root a b c d e f       starts  [5]
        after     root b e c d e f
    """
    batch_size, path = sources.shape
    alike = defaultdict(list)
    for tensor, offset in zip(entries, offsets or [0] * len(entries), strict=True):
        alike[tensor.dtype, tensor.shape, tensor.stride(), offset].append(tensor)
    with on_device_of(sources):
        for (dtype, shape, strides, offset), tensors in alike.items():
            _move[(len(tensors), batch_size, shape[1])](
                tuple(tensors), sources.contiguous(), starts.contiguous(), path, offset, shape[3], *strides,
                DTYPE=INTEGER_OF_SIZE[dtype.itemsize],
                BLOCK_PATH=1 << (path - 1).bit_length(),
                BLOCK_DIM=1 << (shape[3] - 1).bit_length(),
            )  # fmt: skip


def move_path_reference(
    entries: Sequence[torch.Tensor], sources: torch.Tensor, starts: torch.Tensor, offsets: Sequence[int] | None = None
) -> None:
    """Does what [`move_path`] does with the same arguments, tensor by tensor."""
    targets = starts.unsqueeze(-1) + torch.arange(sources.shape[1], device=sources.device)
    for tensor, offset in zip(entries, offsets or [0] * len(entries), strict=True):
        source, target = (
            (slots - offset)[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3])
            for slots in (sources, targets)
        )
        tensor.scatter_(2, target, tensor.gather(2, source))


@triton.jit(do_not_specialize=["offset"])
def _move(
    entries, sources, starts, path, offset, head_dim, batch_stride, head_stride, slot_stride, dim_stride,
    DTYPE: tl.constexpr, BLOCK_PATH: tl.constexpr, BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    batch, head = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)

    # 1. This program's tensor.
    address = entries[0].to(tl.int64)
    for index in tl.static_range(1, len(entries)):
        address = tl.where(tl.program_id(0) == index, entries[index].to(tl.int64), address)
    start_of_head = address.to(tl.pointer_type(DTYPE)) + batch * batch_stride + head * head_stride

    # 2. All of the path is read before any of it is written.
    step = tl.arange(0, BLOCK_PATH)
    dim = tl.arange(0, BLOCK_DIM)
    source = tl.load(sources + batch * path + step, mask=step < path, other=0) - offset
    target = tl.load(starts + batch) + step - offset
    is_entry = (step < path)[:, None] & (dim < head_dim)[None, :]
    moved = tl.load(start_of_head + source[:, None] * slot_stride + dim[None, :] * dim_stride, mask=is_entry)
    tl.debug_barrier()
    tl.store(start_of_head + target[:, None] * slot_stride + dim[None, :] * dim_stride, moved, mask=is_entry)


__all__ = ["move_path", "move_path_reference"]
