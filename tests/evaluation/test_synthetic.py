"""Random pairs in published shapes, and their cycle cost on a clock that only models move."""

import json
import warnings

import pytest
import torch
from fake_time import FakeTime

from transformers_griffin.cli import main
from transformers_griffin.decoding.draft_head import DraftHead
from transformers_griffin.evaluation import synthetic
from transformers_griffin.evaluation.answers import TimedBatch, answer_batch
from transformers_griffin.evaluation.synthetic import SyntheticResults, SyntheticRow, as_markdown, measure_synthetic
from transformers_griffin.evaluation.synthetic_pair import SHAPES, agreeing_target, build_pair
from transformers_griffin.evaluation.weight_reads import WeightReads


CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("shape", "billions", "draft_billions"),
    [("llama-3-8b", 8.03, 0.487), ("llama-2-7b", 6.74, 0.416), ("qwen2-7b", 7.62, 0.530)],
)
def test_shapes_have_the_published_sizes_and_are_made_on_the_device(shape, billions, draft_billions):
    """
    On the meta device nothing is allocated: a weight made elsewhere first would show, and take 15 GB.

    A draft has the fusion's input, 2 d^2, the attention, and seven matrices between d and the FFN's width; in millions
    33.6 + 41.9 + 7 * 58.7, 33.6 + 67.1 + 7 * 45.1 and 25.7 + 29.4 + 7 * 67.9.
    """
    target, draft = build_pair(shape, torch.bfloat16, torch.device("meta"))
    for model, expected in ((target, billions), (draft, draft_billions)):
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        assert model.num_parameters() / 1e9 == pytest.approx(expected, abs=0.006)
    assert draft.config.intermediate_size == target.config.intermediate_size


def test_an_agreeing_target_accepts_a_path_of_every_tree():
    """A random draft is nearly uniform, so its trees are two levels deep: three tokens a cycle."""
    target, draft = build_pair("tiny", torch.float32, CPU)
    prompt = torch.tensor([[5, 9, 3]])
    settings = {"assistant_model": draft, "max_new_tokens": 31, "do_sample": False, "pad_token_id": 0}
    alone = answer_batch(target, prompt, torch.ones_like(prompt), **settings)
    with agreeing_target():
        agreeing = answer_batch(target, prompt, torch.ones_like(prompt), **settings)
    with agreeing_target(num_levels=1):
        shallow = answer_batch(target, prompt, torch.ones_like(prompt), **settings)
    after = answer_batch(target, prompt, torch.ones_like(prompt), **settings)
    assert alone.new_tokens == after.new_tokens
    assert set(alone.acceptance_lengths[0]) == {1}
    assert agreeing.acceptance_lengths == [[3] * 10]
    assert shallow.acceptance_lengths == [[2] * 15]


def test_cycle_cost_is_a_cycle_over_a_plain_step(monkeypatch):
    """
    A forward of the target takes 10 s and 0.5 s a token, a pass of the draft 2 s and 0.1 s a token: a step 10.5 s,
    verifying 60 nodes 40 s, drafting a pass over the 3 tokens accepted before and five over 10 nodes, 17.3 s.
    """
    FakeTime(monkeypatch, target_forward=(10.0, 0.5), draft_pass=(2.0, 0.1))
    results = measure_synthetic(
        "tiny", torch.float32, CPU, prompt_lengths=(8, 20), compiles=False, repeats=1, new_tokens=25, time_budget=1e6
    )
    assert [row.prompt_length for row in results.rows] == [8, 20]
    for row in results.rows:
        assert row.plain_step_seconds == pytest.approx(10.5)
        assert row.verify_seconds == pytest.approx(40)
        assert row.draft_seconds == pytest.approx(17.3)
        assert row.host_seconds == pytest.approx(0)
        assert row.cycle_cost == pytest.approx(57.3 / 10.5)
        assert row.tokens_per_cycle == 3
        assert (row.compiled_step_seconds, row.compiled_cycle_cost, row.host_waits_per_cycle) == (None, None, None)
    assert results.skipped == {}
    assert results.tree == {"num_assistant_tokens": 59, "draft_tree_depth": 6, "draft_tree_top_k": 10}


def test_a_synthetic_draft_may_propose_fewer_tokens():
    """16 of 512: the head that drafting reads is as small."""
    _, draft = build_pair("tiny", torch.float32, CPU, draft_vocab_size=16)
    assert draft.token_map.tolist() == list(range(16))
    assert DraftHead(draft).logits(torch.zeros(1, 64)).shape == (1, 16)
    results = measure_synthetic(
        "tiny", torch.float32, CPU, prompt_lengths=(8,), compiles=False, repeats=1, new_tokens=8, draft_vocab_size=16
    )
    assert results.as_dict()["draft_vocab_size"] == 16
    assert as_markdown(results).splitlines()[0].endswith("(tokens/levels/width), 16 draft tokens")
    assert results.rows[0].tokens_per_cycle > 1
    assert results.as_dict()["weight_reads"]["draft_head_bytes"] == 16 * 64 * 4


def test_a_synthetic_draft_may_read_the_head_in_int8():
    _, draft = build_pair("tiny", torch.float32, CPU, draft_head_dtype="int8")
    assert draft.generation_config.draft_head_dtype == "int8"
    results = measure_synthetic(
        "tiny",
        torch.float32,
        CPU,
        prompt_lengths=(8,),
        compiles=False,
        repeats=1,
        new_tokens=8,
        draft_head_dtype="int8",
    )
    assert results.as_dict()["draft_head_dtype"] == "int8"
    assert as_markdown(results).splitlines()[0].endswith("(tokens/levels/width), draft head in int8")
    assert results.rows[0].tokens_per_cycle > 1
    assert results.as_dict()["weight_reads"]["draft_head_bytes"] == 512 * (64 + 2)


def test_the_table_says_what_the_floor_of_the_cost_is_and_that_it_is_computed():
    """5 GB of 10 in each of two passes: a cycle reads as much as two steps."""
    reads = WeightReads(10_000_000_000, 1_000_000_000, 5_000_000_000, num_passes=2)
    results = SyntheticResults("tiny", "float32", {"n": 59}, 1, 1, [], {}, None, weight_reads=reads)
    assert as_markdown(results).splitlines()[4] == (
        "Computed, not measured: a plain step reads 10.00 GB of weights, a draft pass 5.00 GB (1.00 GB of them the LM "
        "head's), a cycle 20.00 GB. If weights alone took time, a cycle would cost 2.00 steps."
    )


def test_lengths_without_time_left_are_skipped_and_named(monkeypatch):
    """A length takes hundreds of seconds of this clock, more than is left after the first."""
    FakeTime(monkeypatch, target_forward=(10.0, 0.0))
    results = measure_synthetic(
        "tiny", torch.float32, CPU, prompt_lengths=(8, 9), compiles=False, repeats=1, new_tokens=10, time_budget=300
    )
    assert [row.prompt_length for row in results.rows] == [8]
    assert list(results.skipped) == [9]
    assert "s were left of 300" in results.skipped[9]
    assert "| 9 | not measured: " in as_markdown(results)


def test_compiled_decoding_that_fails_is_left_out(monkeypatch):
    def no_compiler(*args, **kwargs):
        raise RuntimeError("no compiler found")

    monkeypatch.setattr(torch, "compile", no_compiler)
    results = measure_synthetic(
        "tiny", torch.float32, CPU, prompt_lengths=(8,), compiles=True, repeats=1, new_tokens=8
    )
    assert results.rows[0].compiled_step_seconds is None
    assert results.rows[0].cycle_cost > 0


def test_host_waits_are_those_by_which_a_longer_answer_exceeds_a_shorter(monkeypatch):
    """The prefill waits 5 times, every cycle twice; 10 and 20 cycles."""
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)

    def answer(num_tokens):
        for _ in range(5 + 2 * num_tokens):
            warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=1)
        warnings.warn("something else", UserWarning, stacklevel=1)
        return TimedBatch([[1] * num_tokens], 1.0, None, [[1] * num_tokens], None, None, None)

    assert synthetic._host_waits_per_cycle(answer, 20, torch.device("cuda")) == 2
    assert modes == ["warn", 0, "warn", 0]
    assert synthetic._host_waits_per_cycle(answer, 20, CPU) is None


def test_the_table_has_the_papers_cost_beside_ours():
    row = SyntheticRow(512, True, 0.020, 0.010, 0.030, 0.006, 0.022, 0.002, 4.5, 1.0, 2**30, 3 * 2**29)
    results = SyntheticResults("llama-3-8b", "bfloat16", {"n": 59}, 8_030_000_000, 430_000_000, [row], {}, 1.62)
    assert as_markdown(results).splitlines()[-1] == (
        "| 512 | compiled | 20.00 | 10.00 | 30.00 | 6.00 | 22.00 | 2.00 | 1.50 | 3.00 | 1.62 | 1.00 "
        "| 1.00 GiB | 1.50 GiB |"
    )
    assert results.as_dict()["rows"][0]["compiled_cycle_cost"] == pytest.approx(3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("huge", (8,)), "Unknown shape 'huge'; give one of"),
        (("tiny", (40000,)), "A prompt of 40000 tokens"),
    ],
)
def test_unknown_shapes_and_prompts_without_room_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        measure_synthetic(arguments[0], torch.float32, CPU, prompt_lengths=arguments[1])


def test_the_command_writes_json_and_a_table(tmp_path, capsys):
    args = ["--synthetic", "tiny", "--methods", "plain", "--dtype", "float32", "--device", "cpu"]
    assert main(["bench", *args, "--prompt-lengths", "16", "--output", str(tmp_path / "out")]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    results = json.loads(last)
    assert results == json.loads((tmp_path / "out" / "synthetic.json").read_text())
    assert "\n".join(table).strip() == (tmp_path / "out" / "synthetic.md").read_text().strip()
    assert results["rows"][0]["prompt_length"] == 16
    assert results["rows"][0]["tokens_per_cycle"] > 2
    assert results["provenance"]["arguments"]["synthetic"] == "tiny"


def test_the_help_names_every_shape(capsys):
    with pytest.raises(SystemExit):
        main(["profile", "--help"])
    assert " or ".join((", ".join([*SHAPES][:-1]), [*SHAPES][-1])) in " ".join(capsys.readouterr().out.split())


def test_bench_needs_a_target_or_a_shape(capsys):
    assert main(["bench"]) == 1
    assert capsys.readouterr().err == (
        "griffin bench: Give --target (and drafts for it with --draft), or --synthetic with a shape.\n"
    )


@pytest.mark.parametrize("command", ["bench", "profile"])
@pytest.mark.parametrize(("option", "value"), [("--draft-head-dtype", "int8"), ("--draft-vocab-size", "16")])
def test_options_of_random_weights_are_refused_for_trained_ones(command, option, value, capsys):
    args = [command, "--target", "some-target", "--draft", "some-draft", option, value]
    assert main(args) == 1
    error = capsys.readouterr().err
    assert f"griffin {command}: {option} is {value}, but goes with --synthetic only." in error
