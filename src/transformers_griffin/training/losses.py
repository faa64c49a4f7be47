"""
The equations of GRIFFIN training as functions of tensors: two distances, one token loss, the alignment mask.

They know no model, no optimizer and no batch. `head_loss.py` computes the token terms without ever holding the logits
of a whole batch; these functions say what it must compute.

Notation for shapes: `batch_size`; `seq_len` positions of the draft; d = `hidden_size`; `vocab_size`. A mask is a float
tensor of ones and zeros.

Where the training departs from the paper's text it follows the code that made the published weights:

1. Pass 1 is not masked (Eq. 2 masks it by its own hits), and pass n is masked by the hits of the passes before it only
   (`alignment_gate`, `ALIGNMENTS`).
2. The feature distance is SmoothL1 instead of L1.
3. The token loss is the cross-entropy against the target's distribution instead of the data's token, and a second
   term restricts it to the target's ten most likely tokens (from HASS, arXiv 2408.15766).
4. The weights of the three terms, 1.0 / 0.1 / 0.5, are not in the paper.

Next: `features.py`.
"""

import torch
from torch import nn


ALIGNMENTS = ("released", "consumed", "paper")
EPS = 1e-5


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """
    Averages where the mask is one: `sum(values * mask) / (sum(mask) + 1e-5)`.

    Args:
        values (`torch.Tensor` of any shape): one value a position.
        mask (`torch.Tensor` of the same shape): which positions count.
    """
    return (values * mask).sum() / (mask.sum() + EPS)


def feature_distance(regress: torch.Tensor, next_features: torch.Tensor) -> torch.Tensor:
    """
    SmoothL1 distance of regress to the target's next feature, averaged over the d channels (L_reg, Sec. 4.1).

    `e = regress - next_features;  mean(0.5 * e^2 if |e| < 1 else |e| - 0.5)`

    Args:
        regress (`torch.Tensor` of shape `(batch_size, seq_len, hidden_size)`): the draft's estimate of F_{t+1}.
        next_features (`torch.Tensor` of shape `(batch_size, seq_len, hidden_size)`): F_{t+1}.

    Returns:
        `torch.Tensor` of shape `(batch_size, seq_len)`, float32.
    """
    distance = nn.functional.smooth_l1_loss(regress.float(), next_features.float(), reduction="none", beta=1.0)
    return distance.mean(dim=-1)


def soft_cross_entropy(logits: torch.Tensor, target_logits: torch.Tensor) -> torch.Tensor:
    """
    Cross-entropy of the draft's distribution q against the target's p: `-sum_v p_v log q_v` (L_token, Sec. 4.1).

    Args:
        logits (`torch.Tensor` of shape `(..., vocab_size)`): LM head of predict.
        target_logits (`torch.Tensor` of shape `(..., vocab_size)`): LM head of F_{t+1}.

    Returns:
        `torch.Tensor` of shape `(...)`, float32.
    """
    p = target_logits.float().softmax(dim=-1)
    return -(p * logits.float().log_softmax(dim=-1)).sum(dim=-1)


def top_token_cross_entropy(logits: torch.Tensor, target_logits: torch.Tensor, top_k: int = 10) -> torch.Tensor:
    """
    The same sum over the target's `top_k` most likely tokens only, not renormalised (HASS, arXiv 2408.15766, Eq. 2).

    `-sum_{v in top_k(p)} p_v log q_v`

    Args:
        logits (`torch.Tensor` of shape `(..., vocab_size)`): LM head of predict.
        target_logits (`torch.Tensor` of shape `(..., vocab_size)`): LM head of F_{t+1}.
        top_k (`int`, defaults to 10): number of tokens (released code).

    Returns:
        `torch.Tensor` of shape `(...)`, float32.
    """
    p, tokens = target_logits.float().softmax(dim=-1).topk(top_k, dim=-1)
    log_q = logits.float().log_softmax(dim=-1).gather(-1, tokens)
    return -(p * log_q).sum(dim=-1)


def top_k_hit(logits: torch.Tensor, labels: torch.Tensor, top_k: int) -> torch.Tensor:
    """
    Whether the data's token is among the draft's `top_k` most likely ones: fewer than `top_k` logits exceed its own.

    Args:
        logits (`torch.Tensor` of shape `(..., vocab_size)`): LM head of predict.
        labels (`torch.LongTensor` of shape `(...)`): the token x_{t+2}; a negative one is never a hit.
        top_k (`int`): the k of the alignment mask.

    Returns:
        `torch.BoolTensor` of shape `(...)`.
    """
    own = logits.gather(-1, labels.clamp(min=0).unsqueeze(-1))
    return ((logits > own).sum(dim=-1) < top_k) & (labels >= 0)


def delay(values: torch.Tensor, fill: torch.Tensor) -> torch.Tensor:
    """
    Moves a sequence one position later; position 0 takes `fill`'s::

        values  a b c d        result  F a b c
        fill    F . . .

    Args:
        values (`torch.Tensor` of shape `(batch_size, seq_len, ...)`): what moves.
        fill (`torch.Tensor` of shape `(batch_size, seq_len, ...)`): only its position 0 is read.
    """
    return torch.cat((fill[:, :1], values[:, :-1]), dim=1)


def alignment_gate(gate: torch.Tensor, hit: torch.Tensor) -> torch.Tensor:
    """
    The hits along the chain of passes that leads to a position, one pass and one position at a time.

    `gate_1 = 1;  gate_{n+1}[t] = hit_n[t] * gate_n[t-1]`, hence `gate_n[t] = prod_{j<n} hit_j[t-(n-1-j)]`::

        hit_1   . . x .
        hit_2   . . . x         gate_3[t] = hit_1[t-1] * hit_2[t]

    Before position 0 nothing was drafted, so nothing was missed: the gate there is open. (The released code wraps
    around to the end of the row instead, where the loss mask is zero anyway.)

    Args:
        gate (`torch.BoolTensor` of shape `(batch_size, seq_len)`): gate_n.
        hit (`torch.BoolTensor` of shape `(batch_size, seq_len)`): hit_n.

    Returns:
        `torch.BoolTensor` of shape `(batch_size, seq_len)`: gate_{n+1}.
    """
    return hit & delay(gate, torch.ones_like(gate))


def alignment_mask(gate: torch.Tensor, hit: torch.Tensor, alignment: str) -> torch.Tensor:
    """
    Which positions pass n learns from, given the chain of hits before it (Eq. 3 and its readings).

    - `"released"`: `gate_n[t]`. Pass 1 learns everywhere, pass n from n-1 factors, the newest of which is whether the
      token that it should *output* was found by the pass before.
    - `"consumed"`: `gate_n[t-1]`. The same number of factors, the newest about the token that it *reads*.
    - `"paper"`: `hit_n[t] * gate_n[t-1]`. Eq. 3: n factors including the pass's own hit; masks pass 1 too (Eq. 2).

    Args:
        gate (`torch.BoolTensor` of shape `(batch_size, seq_len)`): gate_n, see [`alignment_gate`].
        hit (`torch.BoolTensor` of shape `(batch_size, seq_len)`): hit_n, the pass's own.
        alignment (`str`): one of `"released"`, `"consumed"`, `"paper"`.

    Returns:
        `torch.BoolTensor` of shape `(batch_size, seq_len)`.
    """
    if alignment == "released":
        return gate
    if alignment == "consumed":
        return delay(gate, torch.ones_like(gate))
    return alignment_gate(gate, hit)


__all__ = [
    "ALIGNMENTS",
    "alignment_gate",
    "alignment_mask",
    "delay",
    "feature_distance",
    "masked_mean",
    "soft_cross_entropy",
    "top_k_hit",
    "top_token_cross_entropy",
]
