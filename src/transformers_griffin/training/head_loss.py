"""
Token losses of all passes through the frozen LM head, a few hundred rows of logits at a time.

The logits of a batch would be the largest tensors of the training, and nothing needs them whole: the head is frozen,
so the gradient of the loss with respect to predict can be computed together with the loss, and then only that (one
row of width d a position) is kept for the backward pass. Passes are connected by regress features alone, so the head
comes after all of them, and a chunk of positions reads the target's logits once for every pass.

With z the draft's logits, q = softmax(z), p the target's distribution, T its top tokens, P_T = sum_{v in T} p_v and
the weights a, b of the two terms::

    loss    = a (lse(z) - <p, z>)  +  b (P_T lse(z) - <p, z>_T)
    dloss/dz = (a + b P_T) q - a p - b p|_T

With hard labels the first term reads the data's token instead of p, where there is one.

Notation for shapes: `num_passes`; `n_rows` positions whose logits are wanted; d = `hidden_size`; `vocab_size`.

Next: `pass_attention.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from .losses import top_k_hit


ComputeLogits = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class HeadSettings:
    """What the token losses are made of."""

    weights: tuple[float, float]  # of the full and the top-token cross-entropy
    top_k: int  # the target's most likely tokens that the second term reads
    hit_top_k: int  # k of the hits
    chunk_size: int  # rows of logits, of the draft and of the target, that exist at the same time
    hard_labels: bool = False  # whether the full cross-entropy is against the data's token
    terms: Callable[..., tuple[torch.Tensor, ...]] | None = None  # a compiled [`terms_and_gradient`]


class HeadLoss(NamedTuple):
    """What [`head_loss`] returns, each of shape `(num_passes, n_rows)`."""

    loss: torch.Tensor  # weighted sum of the two terms; the only differentiable one
    cross_entropy: torch.Tensor  # the full term
    top_cross_entropy: torch.Tensor  # the part of the target's top tokens
    is_hit: torch.Tensor  # the data's token is among the draft's top k
    is_agreed: torch.Tensor  # draft and target have the same most likely token


def head_loss(
    predicts: torch.Tensor,
    next_features: torch.Tensor,
    labels: torch.Tensor,
    compute_logits: ComputeLogits,
    settings: HeadSettings,
) -> HeadLoss:
    """
    Cross-entropy terms of every pass, row by row, differentiable in `predicts` only.

    Args:
        predicts (`torch.Tensor` of shape `(num_passes, n_rows, hidden_size)`): predict features of the passes.
        next_features (`torch.Tensor` of shape `(n_rows, hidden_size)`): F_{t+1}, whose logits are the target's.
        labels (`torch.LongTensor` of shape `(n_rows,)`): the data's tokens x_{t+2}; negative where there is none.
        compute_logits (`Callable`): [`GriffinDraftModel.compute_logits`]; its parameters get no gradient.
        settings ([`HeadSettings`]): weights and sizes.

    Returns:
        [`HeadLoss`].
    """
    return HeadLoss(*_ChunkedHeadLoss.apply(predicts, next_features, labels, compute_logits, settings))


class _ChunkedHeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        predicts: torch.Tensor,
        next_features: torch.Tensor,
        labels: torch.Tensor,
        compute_logits: ComputeLogits,
        settings: HeadSettings,
    ) -> tuple[torch.Tensor, ...]:
        terms = settings.terms or terms_and_gradient
        needs_gradient = ctx.needs_input_grad[0]
        gradient = torch.empty_like(predicts) if needs_gradient else None
        num_positions = max(1, settings.chunk_size // (len(predicts) + 1))
        chunks = []
        for start in range(0, max(1, len(labels)), num_positions):
            part = slice(start, start + num_positions)
            p = compute_logits(next_features[part]).float().softmax(dim=-1)
            top_p, top_tokens = p.topk(settings.top_k, dim=-1)
            with torch.set_grad_enabled(needs_gradient):
                features = predicts[:, part].detach().requires_grad_(needs_gradient)
                logits = compute_logits(features)
            rows, gradients = [], []
            for z in logits.detach():
                *row, gradient_z = terms(
                    z.float(),
                    labels[part],
                    p,
                    top_p,
                    top_tokens,
                    settings.weights,
                    settings.hit_top_k,
                    settings.hard_labels,
                )
                rows.append(row)
                gradients.append(gradient_z.to(logits.dtype))
            chunks.append([torch.stack(column) for column in zip(*rows, strict=True)])
            if gradient is not None:
                (gradient[:, part],) = torch.autograd.grad(logits, features, torch.stack(gradients))
        columns = [torch.cat(column, dim=1) for column in zip(*chunks, strict=True)]
        cross_entropy, top_cross_entropy, is_hit, is_agreed = columns
        loss = settings.weights[0] * cross_entropy + settings.weights[1] * top_cross_entropy
        if gradient is not None:
            ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(cross_entropy, top_cross_entropy, is_hit, is_agreed)
        return loss, cross_entropy, top_cross_entropy, is_hit, is_agreed

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (grad_loss.unsqueeze(-1) * gradient).to(gradient.dtype), *(None,) * 4


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
    """
    The two terms, the two indicators and the gradient with respect to the logits `z` (module docstring).

    Few sweeps over the vocabulary, in place where possible: q becomes the gradient.
    """
    q = z.softmax(dim=-1)
    highest, best = q.max(dim=-1)
    lse = z.gather(-1, best.unsqueeze(-1)).squeeze(-1) - highest.log()
    is_agreed = best == top_tokens[:, 0]
    is_hit = top_k_hit(z, labels, hit_top_k)

    top_mass = top_p.sum(dim=-1)
    top_cross_entropy = top_mass * lse - (top_p * z.gather(-1, top_tokens)).sum(dim=-1)
    a, b = weights
    if hard_labels:
        has_token, token = (labels >= 0).to(lse.dtype), labels.clamp(min=0).unsqueeze(-1)
        cross_entropy = has_token * (lse - z.gather(-1, token).squeeze(-1))
        gradient = q.mul_((a * has_token + b * top_mass).unsqueeze(-1))
        gradient.scatter_add_(-1, token, -a * has_token.unsqueeze(-1))
    else:
        cross_entropy = lse - (p * z).sum(dim=-1)
        gradient = q.mul_((a + b * top_mass).unsqueeze(-1)).add_(p, alpha=-a)
    gradient.scatter_add_(-1, top_tokens, -b * top_p)
    return cross_entropy, top_cross_entropy, is_hit, is_agreed, gradient


__all__ = ["HeadLoss", "HeadSettings", "head_loss", "terms_and_gradient"]
