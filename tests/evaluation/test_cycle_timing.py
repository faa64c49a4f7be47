"""Splitting calls into cycles by hand, and recording real decoding on a clock that is known."""

import itertools
from contextlib import contextmanager

import pytest
import torch

from conftest import tiny_llama
from transformers_griffin import GriffinDraftModel
from transformers_griffin.decoding.target_forward import TargetForward
from transformers_griffin.evaluation.cycle_timing import (
    PARTS,
    CycleTime,
    Span,
    around_parts,
    cycle_times,
    record_parts,
)


@pytest.fixture(scope="module")
def pair():
    target = tiny_llama()
    draft = GriffinDraftModel.from_target(target).eval()
    draft.generation_config.update(num_assistant_tokens=6, draft_tree_depth=3, draft_tree_top_k=2)
    return target, draft


def generate(pair, **settings):
    target, draft = pair
    return target.generate(
        torch.tensor([[5, 9, 3]]),
        assistant_model=draft,
        do_sample=False,
        pad_token_id=0,
        return_dict_in_generate=True,
        **({"max_new_tokens": 8} | settings),
    )


def test_cycles_last_from_draft_to_draft_and_end_with_their_answer():
    """
    Answer 1: prefill 0-2, read 2-3, then a cycle from 3 to 12 and one from 12 to its last call's end at 20.
    Answer 2: prefill 30-31 and one cycle, 32-37. Between 9 and 12 nothing is recorded: the rest is 2 + 1 seconds.
    """
    spans = [
        Span("prefill", 0, 2),
        Span("read", 2, 3),
        Span("draft", 3, 6),
        Span("draft_pass", 3, 4),
        Span("draft_head", 4, 4.5),
        Span("draft_pass", 4.5, 5),
        Span("verify", 7, 9),
        Span("accept", 9, 10),
        Span("draft", 12, 14),
        Span("verify", 14, 18),
        Span("compact", 18, 20),
        Span("prefill", 30, 31),
        Span("draft", 32, 33),
        Span("verify", 33, 37),
    ]
    first, second, third = cycle_times(spans)
    assert first == CycleTime(total=9, draft=3, draft_pass=1.5, draft_head=0.5, verify=2, accept=1)
    assert first.draft_tree == 1
    assert first.rest == 3
    assert second == CycleTime(total=8, draft=2, verify=4, compact=2)
    assert second.rest == 0
    assert third == CycleTime(total=5, draft=1, verify=4)


def test_no_call_is_no_cycle():
    assert cycle_times([]) == []
    assert cycle_times([Span("prefill", 0, 1), Span("read", 1, 2)]) == []


def test_recording_finds_every_part_of_every_cycle(pair, monkeypatch):
    """Depth 3: one pass over what was verified and two over levels, a head after each; a look at the clock ticks."""
    ticks = itertools.count(0.0)
    monkeypatch.setattr("transformers_griffin.evaluation.stopwatch.perf_counter", lambda: next(ticks))
    with record_parts(torch.device("cpu")) as recording:
        output = generate(pair)
    spans, cycles = recording.spans(), recording.cycles()
    assert {span.part for span in spans} == set(PARTS)
    assert len(cycles) == len(output.acceptance_lengths[0])
    for cycle in cycles:
        assert (cycle.draft_pass, cycle.draft_head) == (3, 3)  # start and end are neighbours, 3 times
        assert cycle.draft == 13  # 6 calls inside take 12 looks
        assert cycle.draft_tree == 7
        assert (cycle.verify, cycle.accept, cycle.read, cycle.compact) == (1, 1, 1, 1)
    # Between the parts there is one look from each end to the next start; the last cycle has no next drafting.
    assert [cycle.rest for cycle in cycles] == [5.0] * (len(cycles) - 1) + [4.0]


def test_answers_do_not_change_and_parts_are_put_back(pair):
    originals = {(owner, name): getattr(owner, name) for names in PARTS.values() for owner, name in names}
    plain = generate(pair)
    with record_parts(torch.device("cpu")) as recording:
        recorded = generate(pair)
        assert TargetForward.verify is not originals[TargetForward, "verify"]
    assert torch.equal(plain.sequences, recorded.sequences)
    assert all(getattr(owner, name) is original for (owner, name), original in originals.items())
    assert all(cycle.total >= cycle.draft + cycle.verify > 0 for cycle in recording.cycles())


def test_parts_are_put_back_after_an_error(pair):
    original = TargetForward.verify

    @contextmanager
    def failing(part):
        if part == "verify":
            raise RuntimeError("stop here")
        yield

    with pytest.raises(RuntimeError, match="stop here"), around_parts(failing):
        generate(pair)
    assert TargetForward.verify is original
