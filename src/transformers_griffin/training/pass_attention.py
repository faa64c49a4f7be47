"""
Attention of one training pass over several feature streams (picture in `multi_pass.py`).

The scores of pass n are one causal matrix over the true features F, shortened by n-1 columns, and n-1 diagonals; no
stream but F is ever multiplied with all columns. Queries are taken in blocks, so that columns behind a block are never
multiplied either, and the scores of a block are computed again in the backward pass instead of being kept.

The released attention gave invisible columns score 0 instead of leaving them out; this one is causal.

Notation for shapes: `batch_size`; `seq_len` positions; `num_heads`, `num_kv_heads`, `head_dim` of the draft.

Next: `multi_pass.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask
from torch.utils.checkpoint import checkpoint
from transformers.integrations.flex_attention import compile_friendly_flex_attention


QUERY_BLOCK = 256


@dataclass(frozen=True)
class StreamStates:
    """Keys and values of one feature stream, `(batch_size, num_kv_heads, seq_len, head_dim)`, positions applied."""

    keys: torch.Tensor
    values: torch.Tensor


def pass_attention(
    query: torch.Tensor,
    verified: StreamStates,
    drafted: tuple[StreamStates, ...],
    scaling: float,
    documents: torch.Tensor | None = None,
    implementation: str = "eager",
) -> torch.Tensor:
    """
    Causal attention whose newest columns come from other streams (picture in the module docstring).

    Row t scores column c <= t - len(drafted) of `verified`, and column t - j of `drafted[j]`, in one softmax, within
    its own document.

    Args:
        query (`torch.Tensor` of shape `(batch_size, num_heads, seq_len, head_dim)`): of the newest stream.
        verified ([`StreamStates`]): of the true features.
        drafted (`tuple[StreamStates, ...]`): the newest stream first; empty in pass 1.
        scaling (`float`): factor of the scores.
        documents (`torch.LongTensor` of shape `(batch_size, seq_len)`, *optional*): see [`DraftBatch`].
        implementation (`str`, defaults to `"eager"`):
            Anything else lets pass 1 use `scaled_dot_product_attention`; `"flex_attention"` is what it says for all
            passes on a GPU (there is no backward for it on a CPU).

    Returns:
        `torch.Tensor` of shape `(batch_size, seq_len, num_heads * head_dim)`.
    """
    seq_len = query.shape[2]
    if implementation == "flex_attention" and query.is_cuda:
        compiled = partial(compile_friendly_flex_attention, training=torch.is_grad_enabled())
        return flex_pass_attention(query, verified, drafted, scaling, documents, compiled)
    if implementation != "eager" and not drafted and documents is None:
        output = nn.functional.scaled_dot_product_attention(
            query, verified.keys, verified.values, is_causal=True, scale=scaling, enable_gqa=True
        )
        return output.transpose(1, 2).flatten(2)

    num_kv_heads = verified.keys.shape[1]
    grouped = (query * scaling).unflatten(1, (num_kv_heads, -1))  # (batch, num_kv_heads, groups, seq_len, head_dim)
    diagonals = tuple(_diagonal(states, offset) for offset, states in enumerate(drafted))
    blocks = []
    for start in range(0, seq_len, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, seq_len)
        # Scores are computed again in the backward pass: they would be its largest tensors.
        block = checkpoint(
            _attend_block,
            grouped[:, :, :, start:stop],
            verified,
            diagonals,
            documents,
            start,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        blocks.append(block)
    return torch.cat(blocks, dim=3).flatten(1, 2).transpose(1, 2).flatten(2)


def _diagonal(states: StreamStates, offset: int) -> StreamStates:
    """States of column t - offset at position t; zeros where there is no such column."""
    length = states.keys.shape[2] - offset
    shift = (0, 0, offset, 0)
    return StreamStates(
        nn.functional.pad(states.keys[:, :, :length], shift), nn.functional.pad(states.values[:, :, :length], shift)
    )


def _attend_block(
    query: torch.Tensor,
    verified: StreamStates,
    diagonals: tuple[StreamStates, ...],
    documents: torch.Tensor | None,
    start: int,
) -> torch.Tensor:
    """Rows from `start` on; query and output have the shape `(batch_size, num_kv_heads, groups, block, head_dim)`."""
    stop = start + query.shape[3]
    rows = query.shape[2:4]  # (groups, block): one matrix product for all queries of a key head
    scores = (query.flatten(2, 3) @ verified.keys[:, :, :stop].mT).unflatten(2, rows)
    diagonal_scores = [(query * states.keys[:, :, None, start:stop]).sum(dim=-1, keepdim=True) for states in diagonals]
    scores = torch.cat((scores, *(part.to(scores.dtype) for part in diagonal_scores)), dim=-1)
    scores = scores + _score_bias(start, stop, len(diagonals), documents, scores)
    weights = scores.softmax(dim=-1).to(verified.values.dtype)

    output = (weights[..., :stop].flatten(2, 3) @ verified.values[:, :, :stop]).unflatten(2, rows)
    for offset, states in enumerate(diagonals):
        output = output + weights[..., stop + offset, None] * states.values[:, :, None, start:stop]
    return output


def _score_bias(
    start: int, stop: int, num_diagonals: int, documents: torch.Tensor | None, scores: torch.Tensor
) -> torch.Tensor:
    """
    Zero where a row sees a column, the dtype's minimum elsewhere.

    Returns:
        `torch.Tensor` of shape `(stop - start, stop + num_diagonals)`, or with a leading `(batch_size, 1, 1)`.
    """
    rows = torch.arange(start, stop, device=scores.device).unsqueeze(1)
    offsets = torch.arange(num_diagonals, device=scores.device)
    is_verified = torch.arange(stop, device=scores.device) <= rows - num_diagonals
    is_drafted = offsets <= rows
    if documents is not None:
        own = documents[:, start:stop, None]  # (batch_size, block, 1)
        is_verified = is_verified & (own == documents[:, None, :stop])
        is_drafted = is_drafted & (own == documents[:, (rows - offsets).clamp(min=0)])
    visible = torch.cat((is_verified, is_drafted), dim=-1)
    bias = torch.zeros_like(visible, dtype=scores.dtype).masked_fill(~visible, torch.finfo(scores.dtype).min)
    return bias if documents is None else bias[:, None, None]


def flex_pass_attention(
    query: torch.Tensor,
    verified: StreamStates,
    drafted: tuple[StreamStates, ...],
    scaling: float,
    documents: torch.Tensor | None,
    flex_attention: Callable[..., Any],
) -> torch.Tensor:
    """
    [`pass_attention`] as one FlexAttention over all streams side by side::

        columns    F_0 F_1 F_2 F_3 | newest_0 .. newest_3 | second newest ...
        row 3       x   x          |            .        x|         x  .

    Args:
        flex_attention (`Callable`): with the arguments of [`torch.nn.attention.flex_attention.flex_attention`].
    """
    batch_size, _, seq_len, _ = query.shape
    num_drafted = len(drafted)

    def is_seen(batch: torch.Tensor, head: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        stream, position = column // seq_len, column % seq_len
        seen = torch.where(stream == 0, position <= row - num_drafted, position == row - (stream - 1))
        return seen if documents is None else seen & (documents[batch, row] == documents[batch, position])

    output = flex_attention(
        query,
        torch.cat([verified.keys, *(states.keys for states in drafted)], dim=2),
        torch.cat([verified.values, *(states.values for states in drafted)], dim=2),
        block_mask=create_block_mask(
            is_seen,
            None if documents is None else batch_size,
            None,
            seq_len,
            seq_len * (num_drafted + 1),
            device=query.device,
        ),
        scale=scaling,
        enable_gqa=True,
    )
    return output.transpose(1, 2).flatten(2)


__all__ = ["StreamStates", "flex_pass_attention", "pass_attention"]
