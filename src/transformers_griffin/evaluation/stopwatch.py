"""
Time within a run, read without disturbing it.

On a GPU the host runs ahead of the device; a clock read there tells when work was queued, and waiting for the device
would slow down what is measured. So marks are CUDA events there: recorded in passing, read after the run.

Next: `cycle_timing.py`.
"""

from time import perf_counter
from typing import Any

import torch


class Stopwatch:
    """
    Marks points in time.

    Args:
        device (`torch.device`): where the measured work is done.
    """

    def __init__(self, device: torch.device):
        self.uses_events = device.type == "cuda"

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


def wait_for(device: torch.device) -> None:
    """Returns when the device has done all work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


__all__ = ["Stopwatch", "wait_for"]
