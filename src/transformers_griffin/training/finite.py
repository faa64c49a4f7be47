"""
Which samples made a loss NaN or infinite.

Whether rows are finite is computed on the device at every step and read by the host only when a loss is not finite, so
watching costs no synchronisation.

Next: `checkpoints.py`.
"""

from typing import Any

import torch

from .features import DraftBatch
from .objective import PassResult


NUM_SHOWN = 16  # tokens that tell a sample
ADVICE = {
    "target's features": "Leave these samples out, or load the target in bfloat16 or float32: float16 overflows.",
    "draft's outputs": "If all rows are, the training diverged: go back to a checkpoint and lower `learning_rate`.",
}


def finite_rows(batch: DraftBatch, passes: list[PassResult]) -> dict[str, torch.Tensor]:
    """
    Where all numbers are finite, for each of the causes in `ADVICE`.

    Returns:
        `dict[str, torch.BoolTensor]`: each of shape `(batch_size,)`.
    """
    outputs = [tensor for result in passes for tensor in (result.output.predict, result.output.regress)]
    groups = ((batch.features, batch.next_features), outputs)
    return {
        cause: torch.stack([tensor.detach().isfinite().flatten(1).all(dim=1) for tensor in group]).all(dim=0)
        for cause, group in zip(ADVICE, groups, strict=True)
    }


def non_finite_error(
    loss: torch.Tensor, step: int, input_ids: torch.Tensor, rows: dict[str, torch.Tensor], tokenizer: Any = None
) -> FloatingPointError:
    """
    The error that names the samples behind a loss.

    Args:
        loss (`torch.Tensor`): scalar, NaN or infinite.
        step (`int`): steps done before.
        input_ids (`torch.LongTensor` of shape `(batch_size, length)`): the batch.
        rows (`dict[str, torch.BoolTensor]`): from [`finite_rows`].
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): the target's, to show text.
    """
    head = f"The loss is {loss.item()} after {step} steps; no weight was changed by it."
    for cause, is_finite in rows.items():
        bad = (~is_finite).nonzero().flatten().tolist()
        if bad:
            samples = "; ".join(f"row {row} begins with {_beginning(input_ids[row], tokenizer)}" for row in bad)
            where = f"The {cause} are not finite in {len(bad)} of {len(is_finite)} rows of the batch: {samples}."
            return FloatingPointError(f"{head} {where} {ADVICE[cause]}")
    return FloatingPointError(
        f"{head} Features and outputs of all {len(input_ids)} rows are finite, so the logits of the LM head are not. "
        "Load the target in bfloat16 or float32."
    )


def _beginning(input_ids: torch.Tensor, tokenizer: Any) -> str:
    tokens = input_ids[:NUM_SHOWN].tolist()
    return f"the tokens {tokens}" if tokenizer is None else f"{tokenizer.decode(tokens)!r}"


__all__ = ["ADVICE", "finite_rows", "non_finite_error"]
