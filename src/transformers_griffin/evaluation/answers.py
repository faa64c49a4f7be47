"""
Answers a prompt and keeps what is measured about it.

Next: `metrics.py`.
"""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from ..modeling_griffin import GriffinDraftModel


@dataclass(frozen=True)
class TimedAnswer:
    """One timed answer."""

    new_tokens: list[int]
    wall_seconds: float  # of the whole `generate()` call, prefill included
    acceptance_lengths: list[int] = field(default_factory=list)  # tokens emitted by each cycle; empty without a draft

    @property
    def tokens_per_second(self) -> float:
        """New tokens over wall seconds."""
        return len(self.new_tokens) / self.wall_seconds


def answer_prompt(
    target: PreTrainedModel,
    input_ids: torch.Tensor,
    draft: GriffinDraftModel | None = None,
    **generate_kwargs: Any,
) -> TimedAnswer:
    """
    Runs `generate()` once and times it.

    Args:
        target ([`~transformers.PreTrainedModel`]): the target.
        input_ids (`torch.LongTensor` of shape `(1, length)`): the prompt, on the target's device.
        draft ([`GriffinDraftModel`], *optional*): plain decoding without it.
        generate_kwargs: further arguments of `generate()`.
    """
    if draft is not None:
        generate_kwargs["assistant_model"] = draft
    _wait_for(input_ids.device)
    start = time.perf_counter()
    output = target.generate(  # type: ignore[operator]  # every causal language model has it
        input_ids, attention_mask=torch.ones_like(input_ids), return_dict_in_generate=True, **generate_kwargs
    )
    _wait_for(input_ids.device)
    wall_seconds = time.perf_counter() - start
    return TimedAnswer(
        new_tokens=output.sequences[0, input_ids.shape[1] :].tolist(),
        wall_seconds=wall_seconds,
        acceptance_lengths=output.acceptance_lengths[0] if draft is not None else [],
    )


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
