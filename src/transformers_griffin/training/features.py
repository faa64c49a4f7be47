"""
What the frozen target contributes to a batch: its features, online or from disk, in the draft's pairing.

From tokens x_0..x_L and features F_0..F_L of the target, the draft's position t gets::

    input_ids[t] = x_{t+1}    features[t] = F_t    next_features[t] = F_{t+1}    labels[t] = x_{t+2}

so the last token has no position of its own, and the last position has no label. In a packed row a position exists
only where x_t and x_{t+1} belong to the same document, and nothing is seen across documents::

    tokens      a0 a1 a2 b0 b1 pad        positions  a0a1 a1a2 a2b0 b0b1 ...
    documents    1  1  1  2  2   0        documents   1    1    0    2   0

Notation for shapes: `batch_size`; `length` tokens of the target; `seq_len` = length - 1 positions of the draft; d =
`hidden_size`.

Next: `head_loss.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..modeling_griffin import moved_to


NO_LABEL = -100


@dataclass(frozen=True)
class DraftBatch:
    """A batch as the draft sees it; the shapes begin with `(batch_size, seq_len)`."""

    input_ids: torch.Tensor  # x_{t+1}
    features: torch.Tensor  # (..., hidden_size): F_t
    next_features: torch.Tensor  # (..., hidden_size): F_{t+1}
    labels: torch.Tensor  # x_{t+2}, NO_LABEL where there is none
    loss_mask: torch.Tensor  # bool: positions to learn from
    documents: torch.Tensor | None = None  # 0 where there is no position, else a document's number; None: one a row

    @property
    def key_mask(self) -> torch.Tensor | None:
        """Bool: where there is a position; None if everywhere."""
        return None if self.documents is None else self.documents > 0


@torch.no_grad()
def draft_batch(
    backbone: Callable[..., Any],
    input_ids: torch.Tensor,
    loss_mask: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    loss_mask_shift: int = 0,
    documents: torch.Tensor | None = None,
    features: torch.Tensor | None = None,
) -> DraftBatch:
    """
    Runs the target without its LM head, unless its features are given, and pairs tokens with features.

    Args:
        backbone (`Callable`): the target's `base_model`; its `last_hidden_state` is what the LM head reads.
        input_ids (`torch.LongTensor` of shape `(batch_size, length)`): x.
        loss_mask (`torch.Tensor` of shape `(batch_size, length)`, *optional*): tokens with a loss; all when not given.
        attention_mask (`torch.Tensor` of shape `(batch_size, length)`, *optional*): 0 where there is padding.
        loss_mask_shift (`int`, defaults to 0): position t is learnt from if token t + shift has a loss.
        documents (`torch.LongTensor` of shape `(batch_size, length)`, *optional*):
            For packed rows: the number (1, 2, ...) of the document that a token belongs to, 0 where there is padding.
        features (`torch.Tensor` of shape `(batch_size, length, hidden_size)`, *optional*): stored features F.

    Returns:
        [`DraftBatch`].
    """
    if features is None:
        # transformers' masks keep sequences apart that start at position 0 again.
        packing = {} if documents is None else {"position_ids": document_positions(documents)}
        outputs = backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **packing)
        features = outputs.last_hidden_state
    if documents is None and attention_mask is not None:
        documents = attention_mask.long()
    pairs = None if documents is None else torch.where(documents[:, 1:] == documents[:, :-1], documents[:, 1:], 0)
    return DraftBatch(
        input_ids=input_ids[:, 1:],
        features=features[:, :-1],
        next_features=features[:, 1:],
        labels=next_labels(input_ids[:, 1:], pairs),
        loss_mask=position_mask(input_ids, loss_mask, documents, loss_mask_shift),
        documents=pairs,
    )


@torch.no_grad()
def check_packing(target: Any) -> None:
    """
    Checks on six tokens that the target keeps packed documents apart.

    Args:
        target ([`~transformers.PreTrainedModel`]): on the device where it will run.

    Raises:
        ValueError: if its features of a document depend on the one before, or it takes no positions.
    """
    embedding = target.get_input_embeddings()
    input_ids = moved_to(embedding, torch.arange(6).unsqueeze(0) % embedding.weight.shape[0])
    documents = torch.tensor([[1, 1, 1, 2, 2, 2]], device=input_ids.device)
    alone = target.base_model(input_ids=input_ids[:, 3:], use_cache=False).last_hidden_state
    try:
        packed = draft_batch(target.base_model, input_ids, documents=documents).next_features[:, 2:]
        tolerance = torch.finfo(alone.dtype).eps ** 0.75 * float(alone.abs().max())  # rounding, but no attention
        is_apart = torch.allclose(packed, alone, rtol=0.0, atol=tolerance)
    except TypeError:  # a forward without `position_ids`
        is_apart = False
    if not is_apart:
        raise ValueError(
            f"{type(target).__name__} does not keep packed documents apart. Train with `packing=False`, or store the "
            "features with `griffin prepare --pack`, which runs documents one by one."
        )


def document_positions(documents: torch.Tensor) -> torch.Tensor:
    """
    Counts the tokens of every document from 0; runs of padding count as documents.

    Args:
        documents (`torch.LongTensor` of shape `(batch_size, length)`): which document a token belongs to.

    Returns:
        `torch.LongTensor` of shape `(batch_size, length)`.

    Example: documents `1 1 1 2 2 0` have the positions `0 1 2 0 1 0`.
    """
    steps = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    is_start = nn.functional.pad(documents[:, 1:] != documents[:, :-1], (1, 0), value=True)
    return steps - torch.where(is_start, steps, 0).cummax(dim=1).values


def next_labels(input_ids: torch.Tensor, documents: torch.Tensor | None) -> torch.Tensor:
    """x_{t+2} for positions that read x_{t+1}, within a document; all of shape `(batch_size, seq_len)`."""
    labels = nn.functional.pad(input_ids[:, 1:], (0, 1), value=NO_LABEL)
    if documents is None:
        return labels
    next_document = nn.functional.pad(documents[:, 1:], (0, 1))
    return labels.masked_fill((next_document != documents) | (documents == 0), NO_LABEL)


def position_mask(
    input_ids: torch.Tensor, loss_mask: torch.Tensor | None, documents: torch.Tensor | None, loss_mask_shift: int = 0
) -> torch.Tensor:
    """
    Which of the draft's positions have a loss: those that exist and whose token has one.

    Args:
        input_ids (`torch.LongTensor` of shape `(batch_size, length)`): x.
        loss_mask (`torch.Tensor` of shape `(batch_size, length)`, *optional*): tokens with a loss.
        documents (`torch.Tensor` of shape `(batch_size, length)`, *optional*):
            The document of every token, 0 where there is padding; an attention mask is the same with one document.
        loss_mask_shift (`int`, defaults to 0): see [`draft_batch`]. A token of another document gives no loss.

    Returns:
        `torch.BoolTensor` of shape `(batch_size, length - 1)`.
    """

    def later(values: torch.Tensor, shift: int) -> torch.Tensor:
        return nn.functional.pad(values[:, shift:], (0, shift))[:, :-1]

    mask = later(torch.ones_like(input_ids) if loss_mask is None else loss_mask, loss_mask_shift).bool()
    if documents is None:
        return mask
    own = documents[:, :-1]
    return mask & (own > 0) & (own == documents[:, 1:]) & (own == later(documents, loss_mask_shift))


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
        key_mask (`torch.BoolTensor` of shape `(batch_size, seq_len)`, *optional*): False where there is no position.
        generator ([`torch.Generator`], *optional*): source of the noise.
    """
    if width == 0.0:
        return features
    lengths = features.shape[1] if key_mask is None else key_mask.sum(dim=1).clamp(min=1)[:, None, None]
    uniform = torch.rand(features.shape, generator=generator, device=features.device, dtype=features.dtype)
    return features + (uniform - 0.5) * (width * 512 / (lengths + 1))


__all__ = [
    "NO_LABEL",
    "DraftBatch",
    "add_feature_noise",
    "check_packing",
    "document_positions",
    "draft_batch",
    "next_labels",
    "position_mask",
]
