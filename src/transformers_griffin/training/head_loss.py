"""
Token losses through the frozen LM head, a few hundred rows at a time.

The logits of a batch are the largest tensor of the training, and nothing needs them whole: the head is frozen, so the
gradient of the loss with respect to predict can be computed together with the loss, and then only that (one row of
width d a position) is kept for the backward pass. The target's distribution is the same in every pass and is computed
once a batch ([`TargetDistribution`]).

With z the draft's logits, q = softmax(z), p the target's distribution, T its top tokens, P_T = sum_{v in T} p_v and
the weights a, b of the two terms::

    loss    = a (lse(z) - <p, z>)  +  b (P_T lse(z) - <p, z>_T)
    dloss/dz = (a + b P_T) q - a p - b p|_T

With hard labels the first term reads the data's token instead of p, where there is one.

Notation for shapes: `n_rows` positions whose logits are wanted; d = `hidden_size`; `vocab_size`.

Next: `multi_pass.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from .losses import top_k_hit


ComputeLogits = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class TargetDistribution:
    """What the target predicts at the wanted positions; see [`target_distribution`]."""

    probs: torch.Tensor  # (n_rows, vocab_size): p
    top_probs: torch.Tensor  # (n_rows, top_k): its largest entries, float32, descending
    top_tokens: torch.Tensor  # (n_rows, top_k): and whose they are


class HeadLoss(NamedTuple):
    """What [`head_loss`] returns, each of shape `(n_rows,)`."""

    loss: torch.Tensor  # weighted sum of the two terms; the only differentiable one
    cross_entropy: torch.Tensor  # against the target's distribution
    top_cross_entropy: torch.Tensor  # the part of its top tokens
    is_hit: torch.Tensor  # the data's token is among the draft's top k
    is_agreed: torch.Tensor  # draft and target have the same most likely token


@torch.no_grad()
def target_distribution(
    compute_logits: ComputeLogits, next_features: torch.Tensor, top_k: int, chunk_size: int
) -> TargetDistribution:
    """
    Reads the target's features with its own LM head.

    Args:
        compute_logits (`Callable`): [`GriffinDraftModel.compute_logits`].
        next_features (`torch.Tensor` of shape `(n_rows, hidden_size)`): F_{t+1}.
        top_k (`int`): number of top tokens.
        chunk_size (`int`): rows whose logits exist at the same time.
    """
    probs, top_probs, top_tokens = [], [], []
    for features in next_features.split(chunk_size):
        logits = compute_logits(features)
        p = logits.float().softmax(dim=-1)
        values, tokens = p.topk(top_k, dim=-1)
        probs.append(p.to(logits.dtype))
        top_probs.append(values)
        top_tokens.append(tokens)
    return TargetDistribution(torch.cat(probs), torch.cat(top_probs), torch.cat(top_tokens))


def head_loss(
    predict: torch.Tensor,
    labels: torch.Tensor,
    target: TargetDistribution,
    compute_logits: ComputeLogits,
    weights: tuple[float, float],
    hit_top_k: int,
    chunk_size: int,
    hard_labels: bool = False,
    terms: Callable[..., tuple[torch.Tensor, ...]] | None = None,
) -> HeadLoss:
    """
    Cross-entropy terms of `predict`, row by row, differentiable in `predict` only.

    Args:
        predict (`torch.Tensor` of shape `(n_rows, hidden_size)`): predict features.
        labels (`torch.LongTensor` of shape `(n_rows,)`): the data's tokens x_{t+2}; negative where there is none.
        target ([`TargetDistribution`]): of the same rows.
        compute_logits (`Callable`): [`GriffinDraftModel.compute_logits`]; its parameters get no gradient.
        weights (`tuple[float, float]`): of the full and the top-token cross-entropy.
        hit_top_k (`int`): k of the hits.
        chunk_size (`int`): rows whose logits exist at the same time.
        hard_labels (`bool`, defaults to `False`): whether the full cross-entropy is against `labels`.
        terms (`Callable`, *optional*): [`terms_and_gradient`], possibly compiled.

    Returns:
        [`HeadLoss`].
    """
    settings = (weights, hit_top_k, chunk_size, hard_labels, terms or terms_and_gradient)
    return HeadLoss(*_ChunkedHeadLoss.apply(predict, labels, target, compute_logits, *settings))


class _ChunkedHeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        predict: torch.Tensor,
        labels: torch.Tensor,
        target: TargetDistribution,
        compute_logits: ComputeLogits,
        weights: tuple[float, float],
        hit_top_k: int,
        chunk_size: int,
        hard_labels: bool,
        terms: Callable[..., tuple[torch.Tensor, ...]],
    ) -> tuple[torch.Tensor, ...]:
        needs_gradient = ctx.needs_input_grad[0]
        gradient = torch.empty_like(predict) if needs_gradient else None
        rows = []
        for start in range(0, max(1, predict.shape[0]), chunk_size):
            part = slice(start, start + chunk_size)
            with torch.set_grad_enabled(needs_gradient):
                features = predict[part].detach().requires_grad_(needs_gradient)
                logits = compute_logits(features)
            p, top_p, top_v = target.probs[part], target.top_probs[part], target.top_tokens[part]
            z = logits.detach().float()
            *row, gradient_z = terms(z, labels[part], p, top_p, top_v, weights, hit_top_k, hard_labels)
            rows.append(row)
            if gradient is not None:
                (gradient[part],) = torch.autograd.grad(logits, features, gradient_z.to(logits.dtype))
        cross_entropy, top_cross_entropy, is_hit, is_agreed = (torch.cat(column) for column in zip(*rows, strict=True))
        loss = weights[0] * cross_entropy + weights[1] * top_cross_entropy
        if gradient is not None:
            ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(cross_entropy, top_cross_entropy, is_hit, is_agreed)
        return loss, cross_entropy, top_cross_entropy, is_hit, is_agreed

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (grad_loss.unsqueeze(-1) * gradient).to(gradient.dtype), *(None,) * 8


def terms_and_gradient(
    z: torch.Tensor,
    labels: torch.Tensor,
    p: torch.Tensor,
    top_p: torch.Tensor,
    top_tokens: torch.Tensor,
    weights: tuple[float, float],
    hit_top_k: int,
    hard_labels: bool = False,
) -> tuple[torch.Tensor, ...]:
    """The two terms, the two indicators and the gradient with respect to the logits `z` (module docstring)."""
    lse = z.logsumexp(dim=-1)
    top_mass = top_p.sum(dim=-1)
    has_token = (labels >= 0).float() if hard_labels else torch.ones_like(lse)
    if hard_labels:
        p = torch.zeros_like(z).scatter_(-1, labels.clamp(min=0).unsqueeze(-1), has_token.unsqueeze(-1))
    cross_entropy = has_token * lse - (p * z).sum(dim=-1)
    top_cross_entropy = top_mass * lse - (top_p * z.gather(-1, top_tokens)).sum(dim=-1)
    is_hit = top_k_hit(z, labels, hit_top_k)
    is_agreed = z.argmax(dim=-1) == top_tokens[:, 0]

    a, b = weights
    gradient = (z - lse.unsqueeze(-1)).exp() * (a * has_token + b * top_mass).unsqueeze(-1) - a * p
    gradient = gradient.scatter_add(-1, top_tokens, -b * top_p)
    return cross_entropy, top_cross_entropy, is_hit, is_agreed, gradient


__all__ = ["HeadLoss", "TargetDistribution", "head_loss", "target_distribution", "terms_and_gradient"]
