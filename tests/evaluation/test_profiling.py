"""The table of a cycle on a clock that only models move, and the trace of a real run."""

import json
from types import SimpleNamespace

import pytest
import torch
from cheap_compiler import cheap_compiler
from fake_time import FakeTime
from torch.autograd import DeviceType

from transformers_griffin.cli import main
from transformers_griffin.evaluation.profiling import CycleProfile, kernel_seconds_per_cycle, profile_cycles
from transformers_griffin.evaluation.synthetic_pair import agreeing_target, build_pair


__all__ = ["cheap_compiler"]

SETTINGS = {"max_new_tokens": 25, "do_sample": False, "pad_token_id": 0}


@pytest.fixture
def tiny():
    target, draft = build_pair("tiny", torch.float32, torch.device("cpu"))
    draft.generation_config.update(num_assistant_tokens=9, draft_tree_depth=3, draft_tree_top_k=2)
    prompt = torch.arange(2, 22).unsqueeze(0)
    return target, draft, [(prompt, torch.ones_like(prompt))]


def test_parts_of_a_cycle_add_up_and_the_first_is_left_out(tiny, monkeypatch):
    """
    A forward of the target takes 10 s and 0.5 s a token: 15 s for a tree of 10 nodes. A pass of the draft takes 2 s
    and 0.1 s a token: over the three tokens accepted before, and twice over two nodes. The first cycle, whose pass
    reads 20 tokens, would show.
    """
    FakeTime(monkeypatch, target_forward=(10.0, 0.5), draft_pass=(2.0, 0.1))
    with agreeing_target(num_levels=2):
        result = profile_cycles(*tiny, **SETTINGS)
    assert result.num_cycles == 7  # of 8, which emit 3 tokens each
    assert result.tau == 3
    expected = {"draft_pass": 6 + 0.1 * (3 + 2 + 2), "verify": 15.0}
    for name, seconds in result.part_seconds.items():
        assert seconds == pytest.approx(expected.get(name, 0.0)), name
    assert result.cycle_seconds == pytest.approx(sum(expected.values()))
    assert sum(result.as_dict()["part_shares"].values()) == pytest.approx(1)
    assert result.kernel_seconds is None


@pytest.mark.usefixtures("cheap_compiler")
def test_compiled_drafting_is_one_part(tiny):
    with agreeing_target(num_levels=2):
        result = profile_cycles(*tiny, compiles=True, **SETTINGS)
    assert list(result.part_seconds) == ["draft", "verify", "accept", "read", "compact", "rest"]
    assert min(result.part_seconds.values()) > 0
    assert sum(result.part_seconds.values()) == pytest.approx(result.cycle_seconds)
    assert "drafting, compiled" in result.as_table()


def test_the_trace_has_a_range_for_every_part(tiny, tmp_path):
    with agreeing_target(num_levels=2):
        result = profile_cycles(*tiny, trace=tmp_path / "new" / "trace.json", trace_tokens=7, **SETTINGS)
    events = json.loads((tmp_path / "new" / "trace.json").read_text())["traceEvents"]
    counts = {
        part: sum(event.get("name") == f"griffin/{part}" and event.get("ph") == "X" for event in events)
        for part in ("prefill", "draft", "draft_pass", "draft_head", "verify", "accept", "read", "compact")
    }
    # Seven tokens: one of the prefill, then two cycles of three.
    assert counts == {
        "prefill": 1,
        "draft": 2,
        "draft_pass": 6,
        "draft_head": 6,
        "verify": 2,
        "accept": 2,
        "read": 3,
        "compact": 2,
    }
    assert all(seconds >= 0 for seconds in result.part_seconds.values())


def test_kernels_count_from_the_first_drafting_on():
    """Prefill's kernel and ranges on the GPU's line are left out: 30 + 50 us in two cycles."""

    def event(name, device, start, duration):
        time_range = SimpleNamespace(start=start, elapsed_us=lambda: duration)
        return SimpleNamespace(name=name, device_type=device, time_range=time_range)

    events = [
        event("gemm", DeviceType.CUDA, 5, 1000),
        event("griffin/draft", DeviceType.CPU, 100, 40),
        event("griffin/draft", DeviceType.CUDA, 100, 40),
        event("gemm", DeviceType.CUDA, 110, 30),
        event("griffin/draft", DeviceType.CPU, 200, 40),
        event("copy", DeviceType.CUDA, 210, 50),
    ]
    assert kernel_seconds_per_cycle(events) == pytest.approx(40e-6)
    assert kernel_seconds_per_cycle(events[1:2]) is None
    assert kernel_seconds_per_cycle([]) is None


def test_the_table_shows_idle_time_of_a_gpu():
    profile = CycleProfile(4, 3.5, 0.010, {"draft_pass": 0.004, "rest": 0.006}, kernel_seconds=0.0075)
    assert profile.as_table().splitlines() == [
        "part of a cycle               ms   share",
        "draft passes               4.000   40.0%",
        "rest (host gaps)           6.000   60.0%",
        "cycle                     10.000  100.0%",
        "GPU idle, in all parts     2.500   25.0%",
        "4 cycles, tau 3.50",
    ]


def test_a_single_cycle_is_refused(tiny):
    with agreeing_target(num_levels=2), pytest.raises(ValueError, match="No answer took two cycles"):
        profile_cycles(*tiny, **SETTINGS | {"max_new_tokens": 3})


@pytest.mark.parametrize("source", ["pair", "synthetic"])
def test_the_command_prints_a_table_and_writes_a_trace(source, pair, tmp_path, capsys):
    models = ["--target", str(pair / "target"), "--draft", str(pair / "draft"), "--prompt", "w5 w9"]
    shape = ["--synthetic", "tiny", "--prompt-length", "12", "--dtype", "float32"]
    arguments = ["--max-new-tokens", "12", "--trace", str(tmp_path / "trace.json"), "--device", "cpu"]
    assert main(["profile", *(models if source == "pair" else shape), *arguments]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["part", "of", "a", "cycle", "ms", "share"]
    assert table[-1] == f"Wrote {tmp_path / 'trace.json'}"
    result = json.loads(last)
    assert sum(result["part_shares"].values()) == pytest.approx(1)
    assert result["provenance"]["arguments"]["max_new_tokens"] == 12
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


def test_profile_needs_a_pair_or_a_shape(capsys):
    assert main(["profile", "--target", "somewhere"]) == 1
    assert capsys.readouterr().err == "griffin profile: Give --target and --draft, or --synthetic with a shape.\n"
