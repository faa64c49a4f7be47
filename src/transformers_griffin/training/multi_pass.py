"""
The N passes of one training step, each reading what the draft itself wrote in the passes before (Eq. 4).

Pass 1 reads the target's features F. After pass n a new feature stream R_n is formed from its regress features,
detached and one position later: `R_n[0] = F_0, R_n[t] = regress_n[t-1]`. In pass n the queries and the residual come
from the newest stream, and a row sees what a drafting round of depth n would see: its own last n-1 features drafted,
all earlier ones verified. Keys and values of pass 3, by column::

    row 0   R2
    row 1   R1 R2
    row 2   F  R1 R2
    row 3   F  F  R1 R2

So the scores of pass n are one causal matrix over F, shortened by n-1 columns, and n-1 diagonals ([`pass_attention`]);
no stream but F is ever multiplied with all columns. Keys and values of a stream are computed once and serve every
later pass. Passes are connected by nothing else, and all of them share one backward: the sum of their losses.

The released attention gave invisible columns score 0 instead of leaving them out; this one is causal.

Notation for shapes: `batch_size`; `seq_len` positions; `num_heads`, `num_kv_heads`, `head_dim` of the draft; d =
`hidden_size`.

Next: `data.py`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.models.llama.modeling_llama import rotate_half

from ..modeling_griffin import GriffinDraftModel
from .features import document_positions
from .losses import delay


QUERY_BLOCK = 256


@dataclass(frozen=True)
class StreamStates:
    """Keys and values of one feature stream, `(batch_size, num_kv_heads, seq_len, head_dim)`, positions applied."""

    keys: torch.Tensor
    values: torch.Tensor


@dataclass(frozen=True)
class PassOutput:
    """One pass: both features of shape `(batch_size, seq_len, hidden_size)`, and the states it leaves behind."""

    predict: torch.Tensor
    regress: torch.Tensor
    states: tuple[StreamStates, ...]  # of F, R_1, ..., R_{n-1}; empty for several layers (one pass only)


def run_pass(
    draft: GriffinDraftModel,
    token_embeds: torch.Tensor,
    features: torch.Tensor,
    earlier_states: tuple[StreamStates, ...] = (),
    documents: torch.Tensor | None = None,
) -> PassOutput:
    """
    Runs the draft over one feature stream, with the streams of the passes before in its attention.

    Args:
        draft ([`GriffinDraftModel`]): with one decoder layer.
        token_embeds (`torch.Tensor` of shape `(batch_size, seq_len, hidden_size)`): embeddings of x_{t+1}.
        features (`torch.Tensor` of shape `(batch_size, seq_len, hidden_size)`): F in pass 1, else R_{n-1}.
        earlier_states (`tuple[StreamStates, ...]`): of F, R_1, ..., R_{n-2}; empty in pass 1.
        documents (`torch.LongTensor` of shape `(batch_size, seq_len)`, *optional*): see [`DraftBatch`].

    Returns:
        [`PassOutput`].
    """
    if draft.config.num_hidden_layers > 1:
        # The draft's causal mask keeps sequences apart that start at position 0 again.
        packing = {} if documents is None else {"position_ids": document_positions(documents)}
        predict, regress = draft(inputs_embeds=token_embeds, features=features, **packing)[:2]
        return PassOutput(predict, regress, states=())
    layer: Any = draft.layers[0]
    fused = draft.fusion(token_embeds, features.to(token_embeds.dtype))
    query, newest_states = _project(draft, layer.input_layernorm(fused))
    states = (*earlier_states, newest_states)
    attended = pass_attention(
        query,
        verified=states[0],
        drafted=states[:0:-1],
        scaling=layer.self_attn.scaling,
        documents=documents,
        use_sdpa=draft.config._attn_implementation != "eager",
    )
    predict, regress = layer.feed_forward(fused + layer.self_attn.o_proj(attended))
    return PassOutput(predict, regress, states)


def next_stream(regress: torch.Tensor, features: torch.Tensor, key_mask: torch.Tensor | None = None) -> torch.Tensor:
    """
    R_n: the regress features of a pass, detached, each at the position that will read it.

    A position without a drafted predecessor (the first one of a row or document) keeps the true feature.

    Args:
        regress (`torch.Tensor` of shape `(batch_size, seq_len, hidden_size)`): of pass n.
        features (`torch.Tensor` of shape `(batch_size, seq_len, hidden_size)`): F.
        key_mask (`torch.BoolTensor` of shape `(batch_size, seq_len)`, *optional*): False where there is no position.
    """
    stream = delay(regress.detach().to(features.dtype), features)
    if key_mask is None:
        return stream
    has_predecessor = delay(key_mask, torch.zeros_like(key_mask))
    return torch.where(has_predecessor.unsqueeze(-1), stream, features)


def check_passes(draft: GriffinDraftModel, num_passes: int) -> None:
    """
    Checks that a draft can be trained with this many passes.

    Raises:
        ValueError: if a draft with several decoder layers is to be trained with several passes.
    """
    if draft.config.num_hidden_layers > 1 and num_passes > 1:
        raise ValueError(
            f"The draft has {draft.config.num_hidden_layers} decoder layers and `num_passes` is {num_passes}, but "
            "only drafts with one decoder layer, as in the paper, can be trained with several passes. Set "
            "`num_hidden_layers=1` in the draft's configuration, or `num_passes=1`."
        )


def _project(draft: GriffinDraftModel, hidden_states: torch.Tensor) -> tuple[torch.Tensor, StreamStates]:
    """Query `(batch_size, num_heads, seq_len, head_dim)` and [`StreamStates`] of one stream."""
    attention: Any = draft.layers[0].self_attn
    heads = (*hidden_states.shape[:-1], -1, attention.head_dim)
    query = attention.q_proj(hidden_states).view(heads).transpose(1, 2)
    keys = attention.k_proj(hidden_states).view(heads).transpose(1, 2)
    values = attention.v_proj(hidden_states).view(heads).transpose(1, 2)
    positions = torch.arange(hidden_states.shape[1], device=hidden_states.device).unsqueeze(0)
    cos, sin = draft.rotary_emb(query, position_ids=positions)
    return _rotate(query, cos, sin), StreamStates(_rotate(keys, cos, sin), values)


def _rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return states * cos.unsqueeze(1) + rotate_half(states) * sin.unsqueeze(1)


def pass_attention(
    query: torch.Tensor,
    verified: StreamStates,
    drafted: tuple[StreamStates, ...],
    scaling: float,
    documents: torch.Tensor | None = None,
    use_sdpa: bool = False,
) -> torch.Tensor:
    """
    Causal attention whose newest columns come from other streams (picture in the module docstring).

    Row t scores column c <= t - len(drafted) of `verified`, and column t - j of `drafted[j]`, in one softmax, within
    its own document. Queries are taken in blocks, so that columns after a block are never multiplied.

    Args:
        query (`torch.Tensor` of shape `(batch_size, num_heads, seq_len, head_dim)`): of the newest stream.
        verified ([`StreamStates`]): of the true features.
        drafted (`tuple[StreamStates, ...]`): the newest stream first; empty in pass 1.
        scaling (`float`): factor of the scores.
        documents (`torch.LongTensor` of shape `(batch_size, seq_len)`, *optional*): see [`DraftBatch`].
        use_sdpa (`bool`, defaults to `False`): whether pass 1 may use `scaled_dot_product_attention`.

    Returns:
        `torch.Tensor` of shape `(batch_size, seq_len, num_heads * head_dim)`.
    """
    seq_len = query.shape[2]
    if use_sdpa and not drafted and documents is None:
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


__all__ = ["PassOutput", "StreamStates", "check_passes", "next_stream", "pass_attention", "run_pass"]
