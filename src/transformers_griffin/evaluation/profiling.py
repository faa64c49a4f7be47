"""
Where the time of a cycle goes: a table of its parts, and a trace of every operation.

The table is timed without the profiler, which would slow the host down; the trace comes from a run of its own, in
which every part of a cycle is a named range. Traces open in chrome://tracing and https://ui.perfetto.dev.

Next: `results.py`.
"""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import PreTrainedModel

from ..modeling_griffin import GriffinDraftModel
from .answers import answer_batch
from .cycle_timing import PARTS, WHOLE_PARTS, CycleTime, around_parts, record_parts
from .methods import compiled_cycle
from .tree_costs import Batch


# Rows of the table: attribute of `CycleTime` -> what it is. Compiled drafting is one row, else it has three.
ROWS = {
    "draft": "drafting, compiled",
    "draft_pass": "draft passes",
    "draft_head": "draft head",
    "draft_tree": "tree building",
    "verify": "verify",
    "accept": "accept",
    "read": "host reads the path",
    "compact": "cache compaction",
    "rest": "rest (host gaps)",
}
PARTS_OF_DRAFT = ("draft_pass", "draft_head", "draft_tree")
RANGE = "griffin/"  # begins the names of our ranges in a trace


@dataclass(frozen=True)
class CycleProfile:
    """Means over cycles, the first of each answer left out: its drafting reads the whole prompt."""

    num_cycles: int
    tau: float
    cycle_seconds: float
    part_seconds: dict[str, float]  # by row; they add up to a cycle
    kernel_seconds: float | None = None  # of a cycle: time in which the GPU computes; None on other devices

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        shares = {name: seconds / self.cycle_seconds for name, seconds in self.part_seconds.items()}
        return asdict(self) | {"part_shares": shares}

    def as_table(self) -> str:
        """Milliseconds and shares."""
        lines = [f"{'part of a cycle':<22} {'ms':>9} {'share':>7}"]
        for name, seconds in [*self.part_seconds.items(), ("cycle", self.cycle_seconds)]:
            label = ROWS.get(name, name)
            lines.append(f"{label:<22} {1000 * seconds:>9.3f} {seconds / self.cycle_seconds:>7.1%}")
        if self.kernel_seconds is not None:
            idle = max(self.cycle_seconds - self.kernel_seconds, 0.0)
            lines.append(f"{'GPU idle, in all parts':<22} {1000 * idle:>9.3f} {idle / self.cycle_seconds:>7.1%}")
        lines.append(f"{self.num_cycles} cycles, tau {self.tau:.2f}")
        return "\n".join(lines)


def profile_cycles(
    target: PreTrainedModel,
    draft: GriffinDraftModel,
    batches: Sequence[Batch],
    trace: str | Path | None = None,
    trace_tokens: int = 8,
    compiles: bool = False,
    **generate_kwargs: Any,
) -> CycleProfile:
    """
    Profiles decoding with a draft.

    Args:
        target ([`~transformers.PreTrainedModel`]): the target.
        draft ([`GriffinDraftModel`]): for this target.
        batches (`Sequence[Batch]`): prompts, on the target's device.
        trace (`str` or `Path`, *optional*): file for a Chrome trace of the first prompt's answer.
        trace_tokens (`int`, defaults to 8): tokens of that answer, at most: every operation of it is written down.
        compiles (`bool`, defaults to `False`): profile the compiled cycle, see [`compiled_cycle`].
        generate_kwargs: further arguments of `generate()`.

    Raises:
        ValueError: if no answer takes two cycles.
    """
    kwargs = {"assistant_model": draft} | (compiled_cycle() if compiles else {}) | generate_kwargs
    parts = WHOLE_PARTS if compiles else tuple(PARTS)
    short = kwargs | {"max_new_tokens": min(trace_tokens, generate_kwargs.get("max_new_tokens", trace_tokens))}
    for _ in range(2 if compiles else 1):  # warm-up
        answer_batch(target, *batches[0], **short)
    cycles: list[CycleTime] = []
    lengths: list[int] = []
    for input_ids, attention_mask in batches:
        with record_parts(target.device, parts) as recording:
            answer = answer_batch(target, input_ids, attention_mask, **kwargs)
        cycles += recording.cycles()[1:]
        lengths += [length for row in answer.acceptance_lengths or [] for length in row]
    if not cycles:
        raise ValueError(
            "No answer took two cycles, and the first drafts under the whole prompt. Give a prompt that the target "
            "answers at length, or raise `max_new_tokens`."
        )
    kernel_seconds = _trace(target, batches[0], short, Path(trace), parts) if trace is not None else None
    left_out = PARTS_OF_DRAFT if compiles else ("draft",)
    return CycleProfile(
        num_cycles=len(cycles),
        tau=statistics.fmean(lengths),
        cycle_seconds=statistics.fmean(cycle.total for cycle in cycles),
        part_seconds={
            name: statistics.fmean(getattr(cycle, name) for cycle in cycles) for name in ROWS if name not in left_out
        },
        kernel_seconds=kernel_seconds,
    )


def _trace(
    target: PreTrainedModel, batch: Batch, kwargs: dict[str, Any], path: Path, parts: Sequence[str]
) -> float | None:
    """Writes the trace; returns the GPU's computing time of a cycle, if there is a GPU."""
    activities = [ProfilerActivity.CPU]
    if target.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler, around_parts(lambda part: record_function(RANGE + part), parts):
        answer_batch(target, *batch, **kwargs)
    path.parent.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(path))
    return kernel_seconds_per_cycle(profiler.events() or [])


def kernel_seconds_per_cycle(events: Sequence[Any]) -> float | None:
    """
    Time in which a GPU computes, over the cycles of a trace; None without a GPU or a cycle.

    Args:
        events (`Sequence`): of a `torch.profiler.profile`, times in microseconds. Ranges appear on the GPU's line,
            too; they are no kernels.
    """
    drafts = [e for e in events if e.device_type == DeviceType.CPU and e.name == RANGE + "draft"]
    kernels = [e for e in events if e.device_type == DeviceType.CUDA and not e.name.startswith(RANGE)]
    if not drafts or not kernels:
        return None
    begin = min(event.time_range.start for event in drafts)
    busy = sum(kernel.time_range.elapsed_us() for kernel in kernels if kernel.time_range.start >= begin)
    return busy / len(drafts) / 1e6


__all__ = ["CycleProfile", "kernel_seconds_per_cycle", "profile_cycles"]
