"""
Attention of a tree's nodes over a long prefix and the tree itself, without a mask that is as long as the cache.

1. Query heads that share a key-value head are packed: their rows, node by node, form one tile, so keys and values are
   read once for all of them.
2. The prefix is cut into `num_splits` equal runs, one program each, and the last program adds the tree. The cuts are
   computed on the device from `first` and `end`: empty slots of a static cache, padding and what lies before a sliding
   window cost nothing, and the host need not know any length.
3. Prefix slots are compared with two bounds; tree slots look up one bit of the ancestor words. See `packed_mask.py`.
4. A second, small launch merges the runs by their log-sum-exp and adds the attention sink to the denominator.

Scores are kept in base 2: `exp2(score * log2(e))` is one instruction. fp32 inputs are multiplied in full fp32.

Reference: [`tree_attention_reference`], plain attention under the unpacked mask.

Notation for shapes: `batch_size`; `n_nodes`; `heads` = `kv_heads * group`; `rows` = `n_nodes * group`; `kv_len` slots.

Next: `compaction.py`.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# (kernels take pointers, for which Python has no type)

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl

from .device import device_limits, on_device_of
from .packed_mask import BITS, NUM_BOUNDS, unpack_tree_mask
from .product import MIN_SIDE, must_widen, product


LOG2_E = 1.4426950408889634


@torch.library.custom_op("transformers_griffin::tree_attention", mutates_args=())
def tree_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    num_splits: int | None = None,
) -> torch.Tensor:
    """
    Attends from every node of a tree to what its packed mask shows.

    Args:
        query (`torch.Tensor` of shape `(batch_size, heads, n_nodes, head_dim)`): fp32, fp16 or bf16.
        key (`torch.Tensor` of shape `(batch_size, kv_heads, kv_len, head_dim)`): `heads` is a multiple of `kv_heads`.
        value (`torch.Tensor` of shape `(batch_size, kv_heads, kv_len, value_dim)`):
        mask (`torch.LongTensor` of shape `(batch_size, 1, n_nodes, 3 + words)`): from `pack_tree_mask`.
        scaling (`float`): factor of the scores.
        softcap (`float`, *optional*): c of `c * tanh(score / c)`.
        sinks (`torch.Tensor` of shape `(heads,)`, *optional*): a score in each denominator without a value (GPT-OSS).
        num_splits (`int`, *optional*): runs of the prefix; by default as many as keep the device busy.

    Returns:
        `torch.Tensor` of shape `(batch_size, n_nodes, heads, value_dim)`.
    """
    batch_size, heads, n_nodes, head_dim = query.shape
    kv_heads, kv_len, value_dim = key.shape[1], key.shape[2], value.shape[3]
    query, key, value, mask = (_last_dim_dense(tensor) for tensor in (query, key, value, mask.contiguous()))
    group = heads // kv_heads
    rows = n_nodes * group
    num_processors, shared_memory = device_limits(query.device)
    tile = _choose_tile(query, value_dim, rows, shared_memory)
    num_tiles = -(-rows // tile.rows)
    if num_splits is None:
        idle = num_processors // (batch_size * kv_heads * num_tiles)
        num_splits = max(1, min(idle, kv_len // (4 * tile.slots)))

    partial = query.new_empty(batch_size, heads, n_nodes, num_splits, value_dim, dtype=torch.float32)
    lse = query.new_empty(batch_size, heads, n_nodes, num_splits, dtype=torch.float32)
    output = query.new_empty(batch_size, n_nodes, heads, value_dim)
    num_rows = batch_size * heads * n_nodes
    with on_device_of(query):
        _attend_to_run[(num_tiles, num_splits, batch_size * kv_heads)](
            query, key, value, mask, partial, lse,
            scaling, 1.0 if softcap is None else softcap,
            *query.stride()[:3], *key.stride()[:3], *value.stride()[:3],
            kv_heads, n_nodes, kv_len, head_dim, value_dim, num_splits,
            HAS_SOFTCAP=softcap is not None,
            WIDEN=must_widen(query.dtype),
            GROUP=group,
            WORDS=mask.shape[-1] - NUM_BOUNDS,
            NUM_BOUNDS=NUM_BOUNDS,
            BITS=BITS,
            LOG2_E=LOG2_E,
            BLOCK_ROWS=tile.rows,
            BLOCK_SLOTS=tile.slots,
            BLOCK_DIM=_padded(head_dim),
            BLOCK_VALUE=_padded(value_dim),
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )  # fmt: skip
        _merge_runs[(-(-num_rows // MIN_SIDE),)](
            partial, lse, query if sinks is None else sinks, output,
            num_rows, heads, n_nodes, value_dim, num_splits,
            HAS_SINKS=sinks is not None,
            LOG2_E=LOG2_E,
            BLOCK_ROWS=MIN_SIDE,
            BLOCK_VALUE=_padded(value_dim),
        )  # fmt: skip
    return output


@tree_attention.register_fake
def _(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scaling: float, *_: object
) -> torch.Tensor:
    batch_size, heads, n_nodes = query.shape[:3]
    return query.new_empty(batch_size, n_nodes, heads, value.shape[3])


def tree_attention_reference(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Computes what [`tree_attention`] computes, in fp32 and with a mask of shape `(n_nodes, kv_len)`."""
    allowed = unpack_tree_mask(mask, key.shape[2])
    group = query.shape[1] // key.shape[1]
    key, value = (entries.float().repeat_interleave(group, dim=1) for entries in (key, value))
    scores = query.float() @ key.transpose(-1, -2) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~allowed, -torch.inf)
    if sinks is not None:
        sink_scores = sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat((scores, sink_scores), dim=-1)
    probabilities = scores.softmax(dim=-1)[..., : key.shape[2]]
    return (probabilities @ value).transpose(1, 2).to(query.dtype).contiguous()


@triton.jit(do_not_specialize=["kv_len", "num_splits"])
def _attend_to_run(
    query, key, value, mask, partial, lse,
    scaling, softcap,
    q_batch, q_head, q_node, k_batch, k_head, k_slot, v_batch, v_head, v_slot,
    kv_heads, n_nodes, kv_len, head_dim, value_dim, num_splits,
    HAS_SOFTCAP: tl.constexpr, WIDEN: tl.constexpr, GROUP: tl.constexpr, WORDS: tl.constexpr,
    NUM_BOUNDS: tl.constexpr, BITS: tl.constexpr, LOG2_E: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_SLOTS: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_VALUE: tl.constexpr,
):  # fmt: skip
    split = tl.program_id(1)
    batch = (tl.program_id(2) // kv_heads).to(tl.int64)
    kv_head = tl.program_id(2) % kv_heads

    # 1. The packed rows of this tile.
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_row = row < n_nodes * GROUP
    node = row // GROUP
    head = kv_head * GROUP + row % GROUP
    dim = tl.arange(0, BLOCK_DIM)
    value_index = tl.arange(0, BLOCK_VALUE)
    q_rows = query + batch * q_batch + head * q_head + node * q_node
    q = tl.load(q_rows[:, None] + dim[None, :], mask=is_row[:, None] & (dim < head_dim)[None, :], other=0.0)
    k_start = key + batch * k_batch + kv_head.to(tl.int64) * k_head
    v_start = value + batch * v_batch + kv_head.to(tl.int64) * v_head

    # 2. This program's run of the prefix.
    bounds = mask + (batch * n_nodes + node) * (NUM_BOUNDS + WORDS)
    first = tl.load(bounds, mask=is_row, other=kv_len).to(tl.int32)
    end = tl.load(mask + batch * n_nodes * (NUM_BOUNDS + WORDS) + 1).to(tl.int32)
    start = tl.load(mask + batch * n_nodes * (NUM_BOUNDS + WORDS) + 2).to(tl.int32)
    lowest = tl.min(first, axis=0)
    run = tl.cdiv(tl.cdiv(tl.maximum(end - lowest, 0), num_splits), BLOCK_SLOTS) * BLOCK_SLOTS
    run_start = lowest + split * run
    run_end = tl.minimum(run_start + run, end)

    highest = tl.full((BLOCK_ROWS,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    mixed = tl.zeros((BLOCK_ROWS, BLOCK_VALUE), tl.float32)
    for block in range(run_start, run_end, BLOCK_SLOTS):
        slot = block + tl.arange(0, BLOCK_SLOTS)
        sees = (slot[None, :] >= first[:, None]) & (slot < run_end)[None, :]
        highest, total, mixed = _add_slots(
            q, k_start, v_start, k_slot, v_slot, slot, slot < run_end, sees, highest, total, mixed,
            scaling, softcap, head_dim, value_dim, HAS_SOFTCAP, WIDEN, LOG2_E, BLOCK_DIM, BLOCK_VALUE,
        )  # fmt: skip

    # 3. The tree, in the last program.
    num_tree_slots = tl.where(split == num_splits - 1, WORDS * BITS, 0)
    for block in range(0, num_tree_slots, BLOCK_SLOTS):
        bit = block + tl.arange(0, BLOCK_SLOTS)
        slot = start + bit
        word = tl.load(bounds + NUM_BOUNDS + block // BITS, mask=is_row, other=0)  # a block lies within one word
        sees = ((word[:, None] >> (bit % BITS).to(tl.int64)[None, :]) & 1) == 1
        highest, total, mixed = _add_slots(
            q, k_start, v_start, k_slot, v_slot, slot, slot < kv_len, sees, highest, total, mixed,
            scaling, softcap, head_dim, value_dim, HAS_SOFTCAP, WIDEN, LOG2_E, BLOCK_DIM, BLOCK_VALUE,
        )  # fmt: skip

    out_row = ((batch * kv_heads * GROUP + head) * n_nodes + node) * num_splits + split
    mean = mixed / tl.where(total > 0.0, total, 1.0)[:, None]
    is_output = is_row[:, None] & (value_index < value_dim)[None, :]
    tl.store(partial + out_row[:, None] * value_dim + value_index[None, :], mean, mask=is_output)
    # Empty runs weigh 2 ** -inf.
    log_sum = tl.where(total > 0.0, highest + tl.log2(tl.where(total > 0.0, total, 1.0)), -float("inf"))
    tl.store(lse + out_row, log_sum, mask=is_row)


@triton.jit
def _add_slots(
    q, k_start, v_start, k_slot, v_slot, slot, is_slot, sees, highest, total, mixed,
    scaling, softcap, head_dim, value_dim,
    HAS_SOFTCAP: tl.constexpr, WIDEN: tl.constexpr, LOG2_E: tl.constexpr,
    BLOCK_DIM: tl.constexpr, BLOCK_VALUE: tl.constexpr,
):  # fmt: skip
    """One step of the online softmax: rows whose highest score is still -inf have seen nothing."""
    dim = tl.arange(0, BLOCK_DIM)
    value_index = tl.arange(0, BLOCK_VALUE)
    far = slot.to(tl.int64)
    k = tl.load(
        k_start + far[None, :] * k_slot + dim[:, None], mask=is_slot[None, :] & (dim < head_dim)[:, None], other=0.0
    )
    scores = product(q, k, WIDEN) * scaling
    if HAS_SOFTCAP:
        scores = softcap * (2.0 * tl.sigmoid(2.0 * scores / softcap) - 1.0)  # tanh(x) = 2 sigmoid(2x) - 1
    scores = tl.where(sees, scores * LOG2_E, -float("inf"))
    new_highest = tl.maximum(highest, tl.max(scores, axis=1))
    finite = tl.where(new_highest == -float("inf"), 0.0, new_highest)
    weights = tl.exp2(scores - finite[:, None])
    shrink = tl.exp2(highest - finite)
    v = tl.load(
        v_start + far[:, None] * v_slot + value_index[None, :],
        mask=is_slot[:, None] & (value_index < value_dim)[None, :],
        other=0.0,
    )
    mixed = mixed * shrink[:, None] + product(weights.to(v.dtype), v, WIDEN)
    return new_highest, total * shrink + tl.sum(weights, axis=1), mixed


@triton.jit(do_not_specialize=["num_rows", "num_splits"])
def _merge_runs(
    partial, lse, sinks, output, num_rows, heads, n_nodes, value_dim, num_splits,
    HAS_SINKS: tl.constexpr, LOG2_E: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_VALUE: tl.constexpr,
):  # fmt: skip
    """4. The runs' means, weighted by the sums of their exponentials; a row is one (batch row, head, node)."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_row = row < num_rows
    node, head, batch = row % n_nodes, (row // n_nodes) % heads, row // (n_nodes * heads)
    value_index = tl.arange(0, BLOCK_VALUE)
    is_output = is_row[:, None] & (value_index < value_dim)[None, :]

    highest = tl.full((BLOCK_ROWS,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    if HAS_SINKS:
        highest = tl.load(sinks + head).to(tl.float32) * LOG2_E
        total = tl.full((BLOCK_ROWS,), 1.0, tl.float32)
    mixed = tl.zeros((BLOCK_ROWS, BLOCK_VALUE), tl.float32)
    for behind in range(num_splits):
        split = num_splits - 1 - behind  # from the last one, which is not empty: its node sees itself
        run = row.to(tl.int64) * num_splits + split
        log_sum = tl.load(lse + run, mask=is_row, other=0.0)
        mean = tl.load(partial + run[:, None] * value_dim + value_index[None, :], mask=is_output, other=0.0)
        new_highest = tl.maximum(highest, log_sum)
        shrink, weight = tl.exp2(highest - new_highest), tl.exp2(log_sum - new_highest)
        mixed = mixed * shrink[:, None] + mean * weight[:, None]
        total = total * shrink + weight
        highest = new_highest
    out_row = (batch.to(tl.int64) * n_nodes + node) * heads + head
    out = output + out_row[:, None] * value_dim + value_index[None, :]
    tl.store(out, (mixed / total[:, None]).to(output.dtype.element_ty), mask=is_output)


@dataclass(frozen=True)
class _Tile:
    rows: int
    slots: int  # divides the bits of a word, so that a block of tree slots reads one word
    num_stages: int
    num_warps: int


# From the fastest to the smallest, which fits everywhere. fp32 products become long scalar code, so they stay small.
TILES = (_Tile(128, 64, 3, 8), _Tile(64, 64, 2, 4), _Tile(32, 32, 2, 4), _Tile(16, 32, 1, 4))


def _choose_tile(query: torch.Tensor, value_dim: int, rows: int, shared_memory: int) -> _Tile:
    """The first tile whose queries, keys and values leave a fifth of the shared memory (bytes) to the compiler."""
    dim, value_dim = _padded(query.shape[-1]), _padded(value_dim)
    for tile in TILES if query.element_size() < 4 else TILES[2:]:
        numbers = tile.rows * dim + tile.num_stages * tile.slots * (dim + value_dim)
        if numbers * query.element_size() <= 0.8 * shared_memory:
            break
    return replace(tile, rows=min(tile.rows, _padded(rows)))


def _padded(size: int) -> int:
    """The next power of two, or the smallest side of a matrix product."""
    return max(1 << (size - 1).bit_length(), MIN_SIDE)


def _last_dim_dense(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


__all__ = ["tree_attention", "tree_attention_reference"]
