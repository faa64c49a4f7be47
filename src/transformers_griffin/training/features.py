"""
What the frozen target contributes to a batch: its features, taken online, in the draft's pairing.

From tokens x_0..x_L and features F_0..F_L of the target, the draft's position t gets::

    input_ids[t] = x_{t+1}    features[t] = F_t    next_features[t] = F_{t+1}    labels[t] = x_{t+2}

so the last token has no position of its own, and the last position has no label.

Notation for shapes: `batch_size`; `length` tokens of the target; `seq_len` = length - 1 positions of the draft; d =
`hidden_size`.

Next: `data.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


NO_LABEL = -100


@dataclass(frozen=True)
class DraftBatch:
    """A batch as the draft sees it; the shapes begin with `(batch_size, seq_len)`."""

    input_ids: torch.Tensor  # x_{t+1}
    features: torch.Tensor  # (..., hidden_size): F_t
    next_features: torch.Tensor  # (..., hidden_size): F_{t+1}
    labels: torch.Tensor  # x_{t+2}, NO_LABEL where there is none
    loss_mask: torch.Tensor  # bool: positions to learn from
    key_mask: torch.Tensor | None = None  # bool: False where there is padding; None without padding


@torch.no_grad()
def draft_batch(
    backbone: Callable[..., Any],
    input_ids: torch.Tensor,
    loss_mask: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    loss_mask_shift: int = 0,
) -> DraftBatch:
    """
    Runs the target without its LM head and pairs tokens with features.

    Args:
        backbone (`Callable`): the target's `base_model`; its `last_hidden_state` is what the LM head reads.
        input_ids (`torch.LongTensor` of shape `(batch_size, length)`): x.
        loss_mask (`torch.Tensor` of shape `(batch_size, length)`, *optional*): tokens with a loss; all when not given.
        attention_mask (`torch.Tensor` of shape `(batch_size, length)`, *optional*): 0 where there is padding.
        loss_mask_shift (`int`, defaults to 0): position t is learnt from if token t + shift has a loss.

    Returns:
        [`DraftBatch`].
    """
    features = backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
    key_mask = None if attention_mask is None else attention_mask[:, 1:].bool()
    return DraftBatch(
        input_ids=input_ids[:, 1:],
        features=features[:, :-1],
        next_features=features[:, 1:],
        labels=next_labels(input_ids[:, 1:], key_mask),
        loss_mask=position_mask(input_ids, loss_mask, attention_mask, loss_mask_shift),
        key_mask=key_mask,
    )


def next_labels(input_ids: torch.Tensor, key_mask: torch.Tensor | None) -> torch.Tensor:
    """x_{t+2} for positions that read x_{t+1}; both of shape `(batch_size, seq_len)`."""
    if key_mask is not None:
        input_ids = input_ids.masked_fill(~key_mask, NO_LABEL)
    return nn.functional.pad(input_ids[:, 1:], (0, 1), value=NO_LABEL)


def position_mask(
    input_ids: torch.Tensor,
    loss_mask: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    loss_mask_shift: int = 0,
) -> torch.Tensor:
    """
    Which of the draft's positions have a loss: those whose token has one and that have a next feature.

    Args:
        input_ids (`torch.LongTensor` of shape `(batch_size, length)`): x.
        loss_mask (`torch.Tensor` of shape `(batch_size, length)`, *optional*): tokens with a loss.
        attention_mask (`torch.Tensor` of shape `(batch_size, length)`, *optional*): 0 where there is padding.
        loss_mask_shift (`int`, defaults to 0): see [`draft_batch`].

    Returns:
        `torch.BoolTensor` of shape `(batch_size, length - 1)`.
    """
    mask = torch.ones_like(input_ids, dtype=torch.bool) if loss_mask is None else loss_mask.bool()
    mask = nn.functional.pad(mask[:, loss_mask_shift:], (0, loss_mask_shift))[:, :-1]
    if attention_mask is not None:
        mask = mask & attention_mask[:, 1:].bool() & attention_mask[:, :-1].bool()
    return mask


def add_feature_noise(
    features: torch.Tensor,
    width: float,
    key_mask: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """
    Uniform noise `(U[0, 1) - 0.5) * width * 512 / length`, so that the draft does not rely on exact features.

    Args:
        features (`torch.Tensor` of shape `(batch_size, seq_len, hidden_size)`): F.
        width (`float`): 0 for none.
        key_mask (`torch.BoolTensor` of shape `(batch_size, seq_len)`, *optional*): False where there is padding.
        generator ([`torch.Generator`], *optional*): source of the noise.
    """
    if width == 0.0:
        return features
    lengths = features.shape[1] if key_mask is None else key_mask.sum(dim=1).clamp(min=1)[:, None, None]
    uniform = torch.rand(features.shape, generator=generator, device=features.device, dtype=features.dtype)
    return features + (uniform - 0.5) * (width * 512 / (lengths + 1))


__all__ = ["NO_LABEL", "DraftBatch", "add_feature_noise", "draft_batch", "next_labels", "position_mask"]
