"""
Where a cycle's time goes, seen from outside: the parts of decoding are wrapped while they are measured, not before.

    prefill | draft                                | verify | accept | read | compact | (rest) | draft ...
              draft_pass, draft_head, ... in turns

A cycle lasts from the start of its drafting to the start of the next. What no part accounts for is the *rest*: Python
between the parts and, on a GPU, the gaps in which the device waits for the host.

Parts are wrapped for the whole process: measure in one thread at a time.

Next: `answers.py`.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..decoding import loop
from ..decoding.candidate_generator import GriffinCandidateGenerator
from ..decoding.draft_head import DraftHead
from ..decoding.target_forward import TargetForward
from ..modeling_griffin import GriffinDraftModel
from .stopwatch import Stopwatch, wait_for


# part -> what is called for it: (owner, name).
PARTS: dict[str, tuple[tuple[Any, str], ...]] = {
    "prefill": ((TargetForward, "prefill"),),
    "draft": ((GriffinCandidateGenerator, "draft_tree"),),
    "draft_pass": ((GriffinDraftModel, "forward"),),
    "draft_head": ((DraftHead, "logits"),),
    "verify": ((TargetForward, "verify"),),
    "accept": ((loop.Answer, "accept"),),
    "read": ((loop.Answer, "append"),),  # the host waits for the device here
    "compact": ((TargetForward, "keep"),),
}

WHOLE_PARTS = tuple(part for part in PARTS if part not in ("draft_pass", "draft_head"))  # none is inside compiled code


@dataclass(frozen=True)
class Span:
    """One call of a part, in seconds since the recording began."""

    part: str
    start: float
    end: float


@dataclass(frozen=True)
class CycleTime:
    """Seconds of one cycle."""

    total: float
    draft: float = 0.0  # all of drafting; the next two are inside
    draft_pass: float = 0.0  # the draft's forwards
    draft_head: float = 0.0  # the LM head on what they predict
    verify: float = 0.0
    accept: float = 0.0
    read: float = 0.0  # the host learns which path it is
    compact: float = 0.0  # the KV cache keeps that path

    @property
    def draft_tree(self) -> float:
        """What drafting does besides the model: masks, top-k, the tree."""
        return self.draft - self.draft_pass - self.draft_head

    @property
    def rest(self) -> float:
        """What no part accounts for."""
        return self.total - self.draft - self.verify - self.accept - self.read - self.compact


class Recording:
    """Calls of parts, readable when the recording has ended."""

    def __init__(self, device: torch.device):
        self.device = device
        self.stopwatch = Stopwatch(device)
        self.begin = self.stopwatch.mark()
        self.calls: list[tuple[str, list[Any]]] = []  # part, marks of its start and end; in the order of their starts

    @contextmanager
    def span(self, part: str) -> Iterator[None]:
        """Records what runs inside as one call of `part`."""
        marks = [self.stopwatch.mark()]
        self.calls.append((part, marks))
        try:
            yield
        finally:
            marks.append(self.stopwatch.mark())

    def spans(self) -> list[Span]:
        """All calls, in the order in which they started."""
        wait_for(self.device)
        since = functools.partial(self.stopwatch.between, self.begin)
        return [Span(part, *map(since, marks)) for part, marks in self.calls]

    def cycles(self) -> list[CycleTime]:
        """All cycles, in order."""
        return cycle_times(self.spans())


@contextmanager
def record_parts(device: torch.device, parts: Iterable[str] = tuple(PARTS)) -> Iterator[Recording]:
    """
    Records every part of every cycle of all `generate()` calls inside.

    Args:
        device (`torch.device`): of the target.
        parts (`Iterable[str]`, defaults to all):
            What to record. Of compiled cycles `WHOLE_PARTS`: what is inside compiled code would be compiled again.

    Effects: the parts of decoding are wrapped until the end.

    Example:

    ```python
    >>> with record_parts(target.device) as recording:  # doctest: +SKIP
    ...     target.generate(**inputs, assistant_model=draft)
    >>> sum(cycle.verify for cycle in recording.cycles())  # doctest: +SKIP
    ```
    """
    recording = Recording(device)
    with around_parts(recording.span, parts):
        yield recording


@contextmanager
def around_parts(
    enter: Callable[[str], AbstractContextManager[Any]], parts: Iterable[str] = tuple(PARTS)
) -> Iterator[None]:
    """
    While open, every call of one of the parts runs inside `enter(part)`.

    Effects: methods and functions are replaced, for all threads, and put back at the end.
    """
    originals = [(part, owner, name, getattr(owner, name)) for part in parts for owner, name in PARTS[part]]
    try:
        for part, owner, name, original in originals:
            setattr(owner, name, _inside(original, enter, part))
        yield
    finally:
        for _, owner, name, original in originals:
            setattr(owner, name, original)


def _inside(function: Callable, enter: Callable[[str], AbstractContextManager[Any]], part: str) -> Callable:
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with enter(part):
            return function(*args, **kwargs)

    return wrapped


def cycle_times(spans: Sequence[Span]) -> list[CycleTime]:
    """
    Splits calls of parts into cycles.

    Args:
        spans (`Sequence[Span]`): in the order in which they started, of any number of answers.

    Returns:
        `list[CycleTime]`: what runs before the first drafting of an answer (prefill, first token) is in none of them.
    """
    cycles: list[CycleTime] = []
    members: list[Span] = []
    for span in spans:
        if span.part in ("prefill", "draft"):  # ends the cycle before; after a prefill none is open
            cycles += _as_cycle(members, span.start if span.part == "draft" else None)
            members = [span] if span.part == "draft" else []
        elif members:
            members.append(span)
    return cycles + _as_cycle(members, None)


def _as_cycle(members: list[Span], next_draft: float | None) -> list[CycleTime]:
    """The cycle of these calls, up to the next drafting or, in the last cycle of an answer, to its own last call."""
    if not members:
        return []
    end = max(span.end for span in members) if next_draft is None else next_draft
    seconds: dict[str, float] = {}
    for span in members:
        seconds[span.part] = seconds.get(span.part, 0.0) + span.end - span.start
    return [CycleTime(total=end - members[0].start, **seconds)]


__all__ = [
    "WHOLE_PARTS",
    "CycleTime",
    "Recording",
    "Span",
    "around_parts",
    "cycle_times",
    "record_parts",
]
