"""
Answers a prompt, or a batch of them, and keeps what is measured about it.

Next: `metrics.py`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from ..modeling_griffin import GriffinDraftModel
from .cycle_timing import record_parts
from .stopwatch import Stopwatch, wait_for


CYCLE_PARTS = ("draft", "verify")  # what is recorded of a cycle: two calls, not inside compiled code


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


@dataclass(frozen=True)
class TimedBatch:
    """The timed answers to a batch of prompts; what was not measured is None."""

    new_tokens: list[list[int]]  # of every row, up to the token that ends it
    wall_seconds: float  # of the whole `generate()` call, prefill included
    first_token_seconds: float | None  # from the call until the target has read the prompt
    acceptance_lengths: list[list[int]] | None  # of every row; None for plain decoding
    draft_seconds: float | None  # of all cycles of a GRIFFIN draft
    verify_seconds: float | None
    peak_memory_bytes: int | None  # beyond what was allocated before; CUDA only


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
    batch = answer_batch(target, input_ids, torch.ones_like(input_ids), **generate_kwargs)
    return TimedAnswer(batch.new_tokens[0], batch.wall_seconds, (batch.acceptance_lengths or [[]])[0])


def answer_batch(
    target: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor, **generate_kwargs: Any
) -> TimedBatch:
    """
    Runs `generate()` once for a batch of prompts and times it, and what happens within, without waits of its own.

    Args:
        target ([`~transformers.PreTrainedModel`]): the target.
        input_ids (`torch.LongTensor` of shape `(batch_size, length)`): padded on the left, on the target's device.
        attention_mask (`torch.LongTensor` of shape `(batch_size, length)`): 0 where there is padding.
        generate_kwargs: further arguments of `generate()`. With a [`CycleCounter`] as `streamer`, the acceptance
            lengths of transformers' own assisted decoding are kept as well.
    """
    device = input_ids.device
    clock, device_clock = Stopwatch(torch.device("cpu")), Stopwatch(device)
    memory_before = _start_counting_memory(device)
    wait_for(device)
    start, start_on_device = clock.mark(), device_clock.mark()
    with _marks_first_forward(target, device_clock) as prefill_end, record_parts(device, CYCLE_PARTS) as recording:
        output = target.generate(  # type: ignore[operator]  # every causal language model has it
            input_ids, attention_mask=attention_mask, return_dict_in_generate=True, **generate_kwargs
        )
        wait_for(device)
    wall_seconds = clock.between(start, clock.mark())
    rows = output.sequences[:, input_ids.shape[1] :].tolist()
    new_tokens = [cut_at_end(row, end_tokens(target)) for row in rows]
    cycles = recording.cycles()
    return TimedBatch(
        new_tokens=new_tokens,
        wall_seconds=wall_seconds,
        first_token_seconds=device_clock.between(start_on_device, prefill_end[0]) if prefill_end else None,
        acceptance_lengths=_acceptance_lengths(output, generate_kwargs.get("streamer"), new_tokens),
        draft_seconds=sum(cycle.draft for cycle in cycles) if cycles else None,
        verify_seconds=sum(cycle.verify for cycle in cycles) if cycles else None,
        peak_memory_bytes=_peak_memory(device, memory_before),
    )


class CycleCounter(BaseStreamer):
    """
    Counts what each cycle of transformers' own assisted decoding emits: it streams cycle by cycle.

    That loop knows no first token of its own, so unlike a GRIFFIN draft's, its first cycle counts.
    """

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.has_seen_prompt = False

    def put(self, value: torch.Tensor) -> None:
        """Called with the prompt, then with the tokens of every cycle."""
        if self.has_seen_prompt:
            self.lengths.append(value.numel())
        self.has_seen_prompt = True

    def end(self) -> None:
        """Nothing to do."""


def end_tokens(target: PreTrainedModel) -> set[int]:
    """The tokens that end an answer."""
    ends = target.generation_config.eos_token_id  # type: ignore[union-attr]  # as above
    return set() if ends is None else set(ends) if isinstance(ends, list) else {ends}


def cut_at_end(tokens: Sequence[int], ends: set[int]) -> list[int]:
    """A row of a batch without what fills it up behind its end: `[5, 7, 0, 0]` is `[5, 7]` where 7 ends answers."""
    length = next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))
    return list(tokens[:length])


def _acceptance_lengths(output: Any, streamer: Any, new_tokens: list[list[int]]) -> list[list[int]] | None:
    if isinstance(streamer, CycleCounter):
        return [streamer.lengths]
    return getattr(output, "acceptance_lengths", None)  # a field of our outputs only


@contextmanager
def _marks_first_forward(target: PreTrainedModel, stopwatch: Stopwatch) -> Iterator[list[Any]]:
    """While open, the end of the target's first forward is marked: once, as the hook then removes itself."""
    marks: list[Any] = []

    def hook(*args: Any) -> None:
        marks.append(stopwatch.mark())
        handle.remove()

    handle = target.base_model.register_forward_hook(hook)
    try:
        yield marks
    finally:
        handle.remove()


def _start_counting_memory(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _peak_memory(device: torch.device, allocated_before: int | None) -> int | None:
    return None if allocated_before is None else torch.cuda.max_memory_allocated(device) - allocated_before


__all__ = ["CycleCounter", "TimedAnswer", "TimedBatch", "answer_batch", "answer_prompt", "cut_at_end", "end_tokens"]
