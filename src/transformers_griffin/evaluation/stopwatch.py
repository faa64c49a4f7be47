"""
Time within a run, read without disturbing it.

On a GPU the host runs ahead of the device; a clock read there tells when work was queued, and waiting for the device
would slow down what is measured. So marks are CUDA events there: recorded in passing, read after the run.

Next: `answers.py`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any
from unittest.mock import patch

import torch

from ..decoding.candidate_generator import GriffinCandidateGenerator
from ..decoding.target_forward import TargetForward


class Stopwatch:
    """
    Marks points in time, and adds up named parts between such marks.

    Args:
        device (`torch.device`): where the measured work is done.
    """

    def __init__(self, device: torch.device):
        self.uses_events = device.type == "cuda"
        self.parts: dict[str, list[tuple[Any, Any]]] = {}

    def mark(self) -> Any:
        """This point in time, on the device's own time line."""
        if not self.uses_events:
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: Any, end: Any) -> float:
        """Seconds between two marks; wait for the device before."""
        return start.elapsed_time(end) / 1000 if self.uses_events else end - start

    def seconds(self, name: str) -> float | None:
        """Sum over a part; None if it never ran. Wait for the device before."""
        if name not in self.parts:
            return None
        return sum(self.between(start, end) for start, end in self.parts[name])

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, whose calls add to the part `name`."""

        def call(*args: Any, **kwargs: Any) -> Any:
            start = self.mark()
            result = function(*args, **kwargs)
            self.parts.setdefault(name, []).append((start, self.mark()))
            return result

        return call

    @contextmanager
    def cycles(self) -> Iterator[None]:
        """While open, the cycles of GRIFFIN decoding add to the parts "draft" and "verify": four marks a cycle."""
        draft, verify = GriffinCandidateGenerator.draft_tree, TargetForward.verify
        with (
            patch.object(GriffinCandidateGenerator, "draft_tree", self.timed("draft", draft)),
            patch.object(TargetForward, "verify", self.timed("verify", verify)),
        ):
            yield


def wait_for(device: torch.device) -> None:
    """Returns when the device has done all work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


__all__ = ["Stopwatch", "wait_for"]
