"""
The objective of one training step: N passes, each with a feature term, a token term and its alignment mask.

    L = sum_n  w_f mean(feature_distance_n) + w_t mean(cross_entropy_n) + w_10 mean(top_token_cross_entropy_n)

with each mean over the positions that the alignment mask leaves to pass n (`losses.py`). Gradients of the passes add
up; they are not averaged.

Notation for shapes: `batch_size`; `seq_len` positions; `n_rows` positions whose logits are wanted.

Next: `finite.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from ..modeling_griffin import GriffinDraftModel
from .arguments import GriffinTrainingArguments
from .features import DraftBatch
from .head_loss import HeadLoss, HeadSettings, head_loss
from .losses import alignment_gate, alignment_mask, feature_distance, masked_mean
from .multi_pass import PassOutput, next_stream, run_pass
from .pass_attention import StreamStates


# What a pass counts, summed over positions: the losses over the positions that the alignment mask keeps, the rates
# over all positions with a loss.
COUNTS = ("feature_loss", "token_loss", "top_token_loss", "kept", "hit_rate", "accuracy", "positions")


@dataclass(frozen=True)
class PassResult:
    """One pass of the objective."""

    loss: torch.Tensor  # scalar, differentiable
    counts: torch.Tensor  # (len(COUNTS),), float32, detached
    mask: torch.Tensor  # (batch_size, seq_len), bool: positions the pass learnt from
    is_hit: torch.Tensor  # (batch_size, seq_len), bool: hits where they were wanted, False elsewhere
    output: PassOutput


def multi_pass_objective(
    draft: GriffinDraftModel,
    batch: DraftBatch,
    args: GriffinTrainingArguments,
    num_passes: int,
    head_terms: Callable[..., tuple[torch.Tensor, ...]] | None = None,
) -> list[PassResult]:
    """
    Runs the passes of a training step and computes their losses.

    Args:
        draft ([`GriffinDraftModel`]): bound to the target.
        batch ([`DraftBatch`]): tokens and features in the draft's pairing.
        args ([`GriffinTrainingArguments`]): weights, alignment and chunk size.
        num_passes (`int`): N.
        head_terms (`Callable`, *optional*): a compiled [`terms_and_gradient`].

    Returns:
        `list[PassResult]`: one a pass. The loss of the step is the sum of theirs, and one backward serves all.
    """
    outputs = run_passes(draft, batch, num_passes)
    rows = wanted_rows(batch.loss_mask, num_passes)
    head = head_loss(
        torch.stack([_take(output.predict, rows) for output in outputs]),
        _take(batch.next_features, rows),
        _take(batch.labels, rows),
        draft.compute_logits,
        HeadSettings(
            weights=(args.token_loss_weight, args.top_token_loss_weight),
            top_k=args.top_token_loss_k,
            hit_top_k=args.alignment_top_k or 1,
            chunk_size=args.head_chunk_size,
            hard_labels=args.token_labels == "hard",
            terms=head_terms,
        ),
    )
    is_hit = torch.stack([_put(hit, rows, batch.loss_mask) for hit in head.is_hit])
    masks = alignment_masks(is_hit, batch, args)
    return [
        _result(output, HeadLoss(*columns), batch, mask, rows, hit, args.feature_loss_weight)
        for output, columns, mask, hit in zip(outputs, zip(*head, strict=True), masks, is_hit, strict=True)
    ]


def run_passes(draft: GriffinDraftModel, batch: DraftBatch, num_passes: int) -> list[PassOutput]:
    """
    The passes of a training step, each over the stream that the one before leaves behind.

    Args:
        draft ([`GriffinDraftModel`]): bound to the target.
        batch ([`DraftBatch`]): tokens and features in the draft's pairing.
        num_passes (`int`): N.
    """
    token_embeds = draft.embed_tokens(batch.input_ids)
    stream = batch.features
    states: tuple[StreamStates, ...] = ()
    one_pass = _checkpointed(run_pass, draft)
    outputs: list[PassOutput] = []
    for _ in range(num_passes):
        output = one_pass(draft, token_embeds, stream, states, batch.documents)
        stream, states = next_stream(output.regress, batch.features, batch.key_mask), output.states
        outputs.append(output)
    return outputs


def alignment_masks(is_hit: torch.Tensor, batch: DraftBatch, args: GriffinTrainingArguments) -> list[torch.Tensor]:
    """
    The positions that every pass learns from.

    Args:
        is_hit (`torch.BoolTensor` of shape `(num_passes, batch_size, seq_len)`): hits of every pass.
        batch ([`DraftBatch`]): its loss mask and documents.
        args ([`GriffinTrainingArguments`]): `alignment_top_k` (0 for no mask) and `alignment`.

    Returns:
        `list[torch.BoolTensor]`: a mask of shape `(batch_size, seq_len)` for every pass.
    """
    if not args.alignment_top_k:
        return [batch.loss_mask] * len(is_hit)
    gate, masks = torch.ones_like(batch.loss_mask), []
    for hit in is_hit:
        masks.append(batch.loss_mask & alignment_mask(gate, hit, args.alignment))
        gate = alignment_gate(gate, hit)
        if batch.key_mask is not None:
            gate = gate | ~batch.key_mask  # nothing was drafted there, so nothing was missed
    return masks


def _checkpointed(function: Callable[..., PassOutput], draft: GriffinDraftModel) -> Callable[..., PassOutput]:
    """`function`, computed again in the backward pass where the draft checkpoints its activations."""
    # The layers of a deep draft do this themselves, where they are called.
    if draft.gradient_checkpointing and draft.training and draft.config.num_hidden_layers == 1:
        return partial(draft._gradient_checkpointing_func, function)
    return function


def wanted_rows(loss_mask: torch.Tensor, num_passes: int) -> torch.Tensor:
    """
    Flat indices of the positions whose logits are wanted: those with a loss, and those whose hits may mask them.

    Pass N looks back at hits of up to N-1 positions before its own, hence with N = 3::

        loss_mask   . . . . 1 1 . .
        wanted      . . 1 1 1 1 . .

    Args:
        loss_mask (`torch.BoolTensor` of shape `(batch_size, seq_len)`): positions with a loss.
        num_passes (`int`): N.

    Returns:
        `torch.LongTensor` of shape `(n_rows,)`.
    """
    wanted = loss_mask
    for _ in range(num_passes - 1):
        wanted = wanted | nn.functional.pad(wanted[:, 1:], (0, 1))
    return wanted.flatten().nonzero().squeeze(-1)


def _result(
    output: PassOutput,
    head: HeadLoss,
    batch: DraftBatch,
    mask: torch.Tensor,
    rows: torch.Tensor,
    is_hit: torch.Tensor,
    feature_loss_weight: float,
) -> PassResult:
    distance = feature_distance(output.regress, batch.next_features)
    kept, base = _take(mask, rows).float(), _take(batch.loss_mask, rows).float()
    loss = feature_loss_weight * masked_mean(distance, mask.float()) + masked_mean(head.loss, kept)
    counts = (
        (distance.detach() * mask).sum(),
        (head.cross_entropy * kept).sum(),
        (head.top_cross_entropy * kept).sum(),
        kept.sum(),
        (head.is_hit * base).sum(),
        (head.is_agreed * base).sum(),
        base.sum(),
    )
    return PassResult(loss, torch.stack(counts), mask, is_hit, output)


def _take(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return values.flatten(0, 1).index_select(0, rows)


def _put(values: torch.Tensor, rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(like).flatten().index_copy(0, rows, values).view_as(like)


def mean_counts(counts: torch.Tensor) -> dict[str, float]:
    """
    Turns summed counts into the means that are logged.

    Args:
        counts (`torch.Tensor` of shape `(num_passes, len(COUNTS))`): of all batches and processes.

    Returns:
        `dict[str, float]`: `pass_n/feature_loss`, `pass_n/token_loss` and `pass_n/top_token_loss` (means over the
        positions kept; left out where none is), `pass_n/kept` (share of positions that the alignment mask keeps),
        `pass_n/hit_rate` (the data's token is in the draft's top k) and `pass_n/accuracy` (draft and target agree on
        the most likely token).
    """
    metrics = {}
    for number, row in enumerate(counts.tolist(), start=1):
        values = dict(zip(COUNTS, row, strict=True))
        for name in COUNTS[:3] if values["kept"] else ():
            metrics[f"pass_{number}/{name}"] = values[name] / values["kept"]
        for name in COUNTS[3:6]:
            metrics[f"pass_{number}/{name}"] = values[name] / max(values["positions"], 1.0)
    return metrics


__all__ = ["COUNTS", "PassResult", "mean_counts", "multi_pass_objective", "wanted_rows"]
