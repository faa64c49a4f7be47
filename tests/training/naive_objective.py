"""
A training step in its plainest form: the oracle of the efficient one, and what that is measured against.

Every pass projects all streams anew, multiplies the queries with every column of every stream and picks the wanted
scores afterwards, holds the logits of the whole batch, and has its own backward: as the released code does it.
"""

import torch
from torch import nn

from transformers_griffin import GriffinDraftModel
from transformers_griffin.training.arguments import GriffinTrainingArguments
from transformers_griffin.training.features import DraftBatch
from transformers_griffin.training.losses import (
    alignment_gate,
    alignment_mask,
    feature_distance,
    masked_mean,
    soft_cross_entropy,
    top_k_hit,
    top_token_cross_entropy,
)
from transformers_griffin.training.multi_pass import _project, next_stream


def naive_step(
    draft: GriffinDraftModel, batch: DraftBatch, args: GriffinTrainingArguments, num_passes: int
) -> list[float]:
    """Adds the gradients of all passes to the draft's; returns the loss of every pass."""
    token_embeds = draft.embed_tokens(batch.input_ids)
    streams, losses = [batch.features], []
    gate = torch.ones_like(batch.loss_mask)
    for _ in range(num_passes):
        predict, regress = naive_pass(draft, token_embeds, streams)
        logits, target_logits = draft.compute_logits(predict), draft.compute_logits(batch.next_features)
        hit = top_k_hit(logits, batch.labels, args.alignment_top_k)
        mask = (batch.loss_mask & alignment_mask(gate, hit, args.alignment)).float()
        distance = feature_distance(regress, batch.next_features)
        token_loss = args.token_loss_weight * soft_cross_entropy(logits, target_logits)
        top_loss = top_token_cross_entropy(logits, target_logits, args.top_token_loss_k)
        token_loss = token_loss + args.top_token_loss_weight * top_loss
        loss = args.feature_loss_weight * masked_mean(distance, mask) + masked_mean(token_loss, mask)
        loss.backward()
        losses.append(loss.item())
        streams.append(next_stream(regress, batch.features))
        gate = alignment_gate(gate, hit)
    return losses


def naive_pass(
    draft: GriffinDraftModel, token_embeds: torch.Tensor, streams: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """One pass over the newest stream; row t reads column t - j from stream -1 - j, older columns from the first."""
    layer, seq_len = draft.layers[0], token_embeds.shape[1]
    groups = draft.config.num_attention_heads // draft.config.num_key_value_heads
    fused = [draft.fusion(token_embeds, stream) for stream in streams]
    projected = [_project(draft, layer.input_layernorm(hidden)) for hidden in fused]
    query = projected[-1][0]
    keys = [states.keys.repeat_interleave(groups, dim=1) for _, states in projected]
    values = [states.values.repeat_interleave(groups, dim=1) for _, states in projected]

    distance = torch.arange(seq_len).unsqueeze(1) - torch.arange(seq_len)
    stream_of = torch.where(distance < len(streams) - 1, len(streams) - 1 - distance, 0)
    scores = query.new_zeros(())
    for index, key in enumerate(keys):
        scores = scores + torch.where(stream_of == index, query @ key.mT * layer.self_attn.scaling, 0.0)
    weights = scores.masked_fill(distance < 0, -torch.inf).softmax(dim=-1)
    parts = [torch.where(stream_of == index, weights, 0.0) @ value for index, value in enumerate(values)]
    attended = torch.stack(parts).sum(dim=0).transpose(1, 2).flatten(2)
    return layer.feed_forward(fused[-1] + nn.functional.linear(attended, layer.self_attn.o_proj.weight))
