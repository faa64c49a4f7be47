"""Time within a run: by the host's clock on a CPU, by events of the device on a GPU."""

import pytest
import torch

from transformers_griffin.evaluation import stopwatch
from transformers_griffin.evaluation.stopwatch import Stopwatch


def test_parts_add_up_what_their_calls_take(monkeypatch):
    """The clock reads 0, 1, 2, ...: a call takes from one reading to the next."""
    monkeypatch.setattr(stopwatch, "perf_counter", iter(map(float, range(100))).__next__)
    watch = Stopwatch(torch.device("cpu"))
    draft = watch.timed("draft", lambda value: value + 1)
    assert [draft(1), draft(2)] == [2, 3]
    assert watch.seconds("draft") == 2.0
    assert watch.seconds("verify") is None, "what never ran was not measured"


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
    watch.timed("draft", lambda: None)()
    assert watch.seconds("draft") == 0.25
    assert watch.between(start, watch.mark()) == 0.75
