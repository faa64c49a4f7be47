"""Time within a run: by the host's clock on a CPU, by events of the device on a GPU."""

import pytest
import torch

from transformers_griffin.evaluation import stopwatch
from transformers_griffin.evaluation.stopwatch import Stopwatch


def test_on_a_cpu_marks_are_readings_of_the_clock(monkeypatch):
    monkeypatch.setattr(stopwatch, "perf_counter", iter([1.0, 3.5]).__next__)
    watch = Stopwatch(torch.device("cpu"))
    start = watch.mark()
    assert watch.between(start, watch.mark()) == 2.5


def test_on_a_gpu_events_are_recorded_in_passing_and_read_afterwards(monkeypatch):
    """Events count milliseconds; nothing waits for the device in between."""

    class Event:
        now = 0.0

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            Event.now += 250.0
            self.at = Event.now

        def elapsed_time(self, end):
            return end.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda *_: pytest.fail("waited for the device"))
    watch = Stopwatch(torch.device("cuda"))
    start = watch.mark()
    assert watch.between(start, watch.mark()) == 0.25
