"""
What drafting reads of the target's LM head: the rows of the tokens that a draft can propose, in few bytes.

Drafting reads the head once a level, and with a large vocabulary that takes longer than the draft itself::

    the whole head, as it is     read where it is
    the rows in `token_map`      copied (FR-Spec, arXiv 2502.14856)
    int8                         copied, with a scale for every row, and read with activations in bfloat16

Outputs stay exact with either: the target chooses from all tokens with its own head. A copy is made anew whenever
drafting begins, so a head that has changed (a merged adapter, training) is seen.

Notation for shapes: `rows` tokens that the draft can propose; d = `hidden_size`.

Next: `kv_cache.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import GenerationConfig
from transformers.utils import logging

from ..modeling_griffin import GriffinDraftModel
from . import kernels


logger = logging.get_logger(__name__)

INT8 = "int8"
HEAD_DTYPES = (None, INT8)

INT8_LARGEST = 127
SCALE_DTYPE = torch.bfloat16  # and that of what the rows are multiplied with
# PyTorch's operator on a CPU reads this many inputs at a time, and does not look whether there are as many.
INT8_INPUTS = 16
# Rows that are made int8 at a time: what exists in between is small.
ROWS_AT_A_TIME = 4096


def head_dtype(generation_config: GenerationConfig) -> str | None:
    """
    The format in which drafting reads the LM head: `"int8"`, or None for the target's own.

    Raises:
        ValueError: if `draft_head_dtype` is something else.
    """
    dtype: Any = getattr(generation_config, "draft_head_dtype", None)
    if dtype not in HEAD_DTYPES:
        raise ValueError(
            f"`draft_head_dtype` is {dtype!r}, but must be {INT8!r}, which drafts from a copy of the LM head in int8, "
            "or None, which drafts from the head itself. Set it in `draft.generation_config`."
        )
    return cast("str | None", dtype)


def row_bytes(weight: torch.Tensor, dtype: str | None) -> int:
    """Bytes that drafting reads of each row of a head's `weight` in the format `dtype`."""
    width = weight.shape[1]
    return width + SCALE_DTYPE.itemsize if dtype == INT8 else width * weight.element_size()


@dataclass(frozen=True)
class HeadCopy:
    """Rows of a head. They stay in their memory, which captured graphs go on reading."""

    head: nn.Module  # whose rows they are
    weight: torch.Tensor  # (rows, d)
    bias: torch.Tensor | None  # (rows,)
    scales: torch.Tensor | None  # (rows,), of weights in int8

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All that drafting reads."""
        return [tensor for tensor in (self.weight, self.bias, self.scales) if tensor is not None]


_copies: "WeakKeyDictionary[GriffinDraftModel, HeadCopy]" = WeakKeyDictionary()


class DraftHead:
    """
    The head of one drafting, as it is when drafting begins.

    Heads without plain rows (offloaded, sharded, quantised, with an adapter) are not copied: all their logits are
    computed, and those of the token map picked.

    Args:
        draft ([`GriffinDraftModel`]): bound to the target.
        dtype (`str`, *optional*): `"int8"`, or the head's own format.

    Raises:
        ValueError: if the draft's token map does not belong to the target.
    """

    def __init__(self, draft: GriffinDraftModel, dtype: str | None = None):
        draft.check_token_map()
        self.draft = draft
        is_int8 = dtype == INT8 and _reads_int8(draft)
        self.copy: HeadCopy | None = None
        if (is_int8 or draft.token_map is not None) and _has_plain_rows(draft):
            self.copy = _copy_rows(draft, is_int8, _copies.get(draft))
            _copies[draft] = self.copy
        else:
            _copies.pop(draft, None)

    def logits(self, predict: torch.Tensor) -> torch.Tensor:
        """
        Like `draft.compute_logits`, for the tokens that the draft can propose: what drafting chooses from.

        Args:
            predict (`torch.Tensor` of shape `(..., d)`): predict features.

        Returns:
            `torch.Tensor` of shape `(..., rows)`. [`~GriffinDraftModel.to_target_ids`] tells which token an entry is.
        """
        copy, token_map = self.copy, self.draft.token_map
        if copy is None:
            logits = self.draft.compute_logits(predict)
            return logits if token_map is None else logits.index_select(-1, token_map.to(logits.device))
        predict = predict.to(copy.weight.device)
        if copy.scales is None:
            logits = nn.functional.linear(predict.to(copy.weight.dtype), copy.weight, copy.bias)
        else:
            logits = int8_linear(predict, copy.weight, copy.scales)
            logits = logits if copy.bias is None else logits + copy.bias
        return self.draft.scale_logits(logits)


def int8_linear(inputs: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """
    A linear layer whose weight is int8 with a scale for every row.

    Args:
        inputs (`torch.Tensor` of shape `(..., d)`): rounded to bfloat16.
        weight (`torch.Tensor` of shape `(rows, d)`): int8.
        scales (`torch.Tensor` of shape `(rows,)`): in bfloat16.

    Returns:
        `torch.Tensor` of shape `(..., rows)`: in bfloat16, or with kernels in fp32.
    """
    flat = inputs.to(SCALE_DTYPE).flatten(0, -2).contiguous()
    if kernels.available(weight.device):
        from .kernels import int8_linear as kernel

        logits = kernel.int8_linear(flat, weight, scales)
    else:
        logits = torch._weight_int8pack_mm(flat, weight, scales)
    return logits.view(*inputs.shape[:-1], -1)


def _copy_rows(draft: GriffinDraftModel, is_int8: bool, old: HeadCopy | None) -> HeadCopy:
    """The rows that drafting reads, in the memory of an `old` copy where they fit in."""
    head = draft.target_head
    copy = old if old is not None and _fits(old, draft, is_int8) else _room_for_copy(draft, is_int8)
    # Without gradient, but no inference tensors either: the next call may write to them.
    with torch.inference_mode(False), torch.no_grad():
        for place, tokens in _parts(draft):
            rows = head.weight[tokens]
            if copy.scales is not None:
                largest = rows.abs().amax(dim=1).float()
                copy.scales[place] = (largest / INT8_LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
                steps = copy.scales[place].float().unsqueeze(1)  # as rounded: 127 steps stay within 127.5
                rows = rows.mul(steps.reciprocal()).round_()
            copy.weight[place] = rows
            if copy.bias is not None:
                copy.bias[place] = head.bias[tokens]
    return copy


def _fits(old: HeadCopy, draft: GriffinDraftModel, is_int8: bool) -> bool:
    weight = draft.target_head.weight
    return (
        old.head is draft.target_head
        and (old.scales is not None) == is_int8
        and old.weight.shape == (draft.config.proposal_vocab_size, weight.shape[1])
        and old.weight.device == weight.device
        and (is_int8 or old.weight.dtype == weight.dtype)
        and (old.bias is None) == (draft.target_head.bias is None)
    )


def _room_for_copy(draft: GriffinDraftModel, is_int8: bool) -> HeadCopy:
    head, num_rows = draft.target_head, draft.config.proposal_vocab_size
    with torch.inference_mode(False):
        weight = head.weight.new_empty(
            num_rows, head.weight.shape[1], dtype=torch.int8 if is_int8 else head.weight.dtype
        )
        bias = None if head.bias is None else head.bias.new_empty(num_rows)
        scales = weight.new_empty(num_rows, dtype=SCALE_DTYPE) if is_int8 else None
    return HeadCopy(head, weight, bias, scales)


def _parts(draft: GriffinDraftModel) -> Iterator[tuple[slice, slice | torch.Tensor]]:
    """Places of rows in a copy, and where they are in the head."""
    token_map, num_rows = draft.token_map, draft.config.proposal_vocab_size
    token_map = None if token_map is None else token_map.to(draft.target_head.weight.device)
    for start in range(0, num_rows, ROWS_AT_A_TIME):
        place = slice(start, min(start + ROWS_AT_A_TIME, num_rows))
        yield place, place if token_map is None else token_map[place]


def why_not_int8(draft: GriffinDraftModel) -> str | None:
    """Why the head of a bound draft cannot be read in int8, or None."""
    weight = cast("torch.Tensor", draft.target_head.weight)
    if not _has_plain_rows(draft):
        return "it is offloaded, sharded, quantised already or has an adapter"
    if weight.shape[1] % INT8_INPUTS:
        return f"features are {weight.shape[1]} wide, which is no multiple of {INT8_INPUTS}"
    if not _has_operator(weight.device):
        return f"on a device of type {weight.device.type!r} only the Triton kernels could, and they are not available"
    return None


def _reads_int8(draft: GriffinDraftModel) -> bool:
    """Whether the head is read in int8, as it shall be; a warning says why not."""
    why = why_not_int8(draft)
    if why is not None:
        logger.warning_once(f"`draft_head_dtype` is {INT8!r}, but the LM head is read as it is: {why}.")
    return why is None


def _has_plain_rows(draft: GriffinDraftModel) -> bool:
    """Whether the head's logits are its weight's rows times its inputs, and all rows are here."""
    head, weight = draft.target_head, cast("torch.Tensor", draft.target_head.weight)
    is_plain = type(head).forward is nn.Linear.forward and type(weight) in (nn.Parameter, torch.Tensor)
    return is_plain and not weight.is_meta and weight.shape[0] == draft.config.vocab_size


def _has_operator(device: torch.device) -> bool:
    return device.type == "cpu" or kernels.available(device)


__all__ = ["INT8", "DraftHead", "HeadCopy", "head_dtype", "int8_linear", "row_bytes", "why_not_int8"]
