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

Keys and values of a stream are computed once and serve every later pass (`pass_attention.py`). Passes are connected by
nothing else, and all of them share one backward: the sum of their losses.

Notation for shapes: `batch_size`; `seq_len` positions; `num_heads`, `num_kv_heads`, `head_dim` of the draft; d =
`hidden_size`.

Next: `data.py`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.models.llama.modeling_llama import rotate_half

from ..modeling_griffin import GriffinDraftModel
from .features import document_positions
from .losses import delay
from .pass_attention import StreamStates, pass_attention


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
        implementation=draft.config._attn_implementation,
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


__all__ = ["PassOutput", "check_passes", "next_stream", "run_pass"]
