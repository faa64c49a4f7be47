"""The benchmark on a target whose costs and cycles are known: every figure worked by hand."""

import json
import re

import pytest
from fake_target import FakeClock, FakeTarget, FakeTokenizer, fake_decoders

from transformers_griffin.evaluation.benchmark import run_benchmark
from transformers_griffin.evaluation.methods import Decoder
from transformers_griffin.evaluation.plan import Plan, make_settings
from transformers_griffin.evaluation.prompts import Prompt
from transformers_griffin.evaluation.results import BenchmarkResults, Method


FLOAT32 = make_settings(["float32"], [0.0])
PROMPTS = [Prompt("x", "A", ("a",)), Prompt("x", "B", ("b",))]
CYCLES = {"a": [3, 3, 3], "b": [2, 2]}


@pytest.fixture
def clock(monkeypatch):
    return FakeClock(monkeypatch)


@pytest.fixture
def target(clock):
    return FakeTarget(clock, CYCLES)


def run(target, plan=None, output_dir=None, decoders=None):
    plan = plan or Plan(PROMPTS, FLOAT32)
    return run_benchmark(lambda _: (target, decoders or fake_decoders()), FakeTokenizer(), plan, output_dir)


def row(results, method, domain="all", setting="float32 T=0"):
    found = [s for s in results.summaries if (s.setting, s.method, s.domain) == (setting, method, domain)]
    assert len(found) == 1
    return found[0]


def test_every_figure_comes_out_as_worked_by_hand(target):
    """
    A prompt takes 2 s. Plain decoding adds 1 s a token: 2 + 9 = 11 s for A (10 tokens) and 2 + 4 = 6 s for B (5
    tokens). A cycle takes 0.5 + 0.75 + 0.25 = 1.5 s: 2 + 3 * 1.5 = 6.5 s for A and 2 + 2 * 1.5 = 5 s for B.

    Two prompts are drawn as AA, AB, BA or BB, so the ends of a 95 % interval are the ratios of A and B alone.
    """
    results = run(target)
    plain, griffin = row(results, "plain"), row(results, "griffin")
    assert results.is_complete
    assert (plain.num_prompts, plain.num_answers, plain.num_tokens) == (2, 2, 15)
    assert plain.tokens_per_second.value == pytest.approx(15 / 17)
    assert plain.tau is plain.cycle_cost is plain.draft_share is plain.acceptance_by_depth is None
    assert (plain.speedup_over_eager.value, plain.speedup_over_eager.low, plain.speedup_over_eager.high) == (1, 1, 1)

    assert griffin.tau.value == pytest.approx(13 / 5)
    assert (griffin.tau.low, griffin.tau.high) == (2, 3)
    speedup = griffin.speedup_over_eager
    assert speedup.value == pytest.approx((15 / 11.5) / (15 / 17))
    assert (speedup.low, speedup.high) == (pytest.approx(6 / 5), pytest.approx(11 / 6.5))
    assert griffin.speedup_over_best_plain == speedup
    assert griffin.cycle_cost == pytest.approx(2.6 / (17 / 11.5))
    assert griffin.first_token_seconds == 2.0
    assert griffin.acceptance_by_depth == [5 / 5, 3 / 5, 0]
    assert griffin.draft_share == pytest.approx(0.5 / 1.5)
    assert griffin.verify_share == pytest.approx(0.75 / 1.5)
    assert griffin.num_identical == 2
    assert griffin.peak_memory_bytes is griffin.misaligned_rates is griffin.note is None


def test_all_methods_answer_a_prompt_before_the_next_and_the_order_rotates(target):
    """After a warm-up of each method."""
    run(target, decoders=fake_decoders("hass", "griffin"))
    assert target.calls[:3] == [(name, "a") for name in ("plain", "hass", "griffin")]
    assert target.calls[3:6] == [(name, "a") for name in ("plain", "hass", "griffin")]
    assert target.calls[6:] == [(name, "b") for name in ("hass", "griffin", "plain")]


def test_a_machine_that_slows_down_from_prompt_to_prompt_leaves_the_speedup_as_it_is(clock, target):
    """The clock halves its speed with B: 11 + 12 s against 6.5 + 10 s, where A and B alone keep their ratios."""
    answer = target.generate

    def slower(input_ids, **kwargs):
        clock.speed = 2.0 if chr(input_ids[0, 0]) == "b" else 1.0
        return answer(input_ids, **kwargs)

    target.generate = slower
    speedup = row(run(target), "griffin").speedup_over_eager
    assert speedup.value == pytest.approx(23 / 16.5)
    assert (speedup.low, speedup.high) == (pytest.approx(6 / 5), pytest.approx(11 / 6.5))


def test_of_repeats_the_median_time_counts(clock, target):
    """The second of three repeats is disturbed: ten times slower. It moves the mean, not the median."""
    answer, count = target.generate, iter(range(1000))

    def disturbed(input_ids, **kwargs):
        call = next(count) - 2  # after two warm-ups
        clock.speed = 10.0 if call // 2 % 3 == 1 else 1.0
        return answer(input_ids, **kwargs)

    target.generate = disturbed
    results = run(target, Plan(PROMPTS, FLOAT32, repeats=3))
    assert row(results, "griffin").speedup_over_eager.value == pytest.approx(17 / 11.5)
    assert row(results, "griffin").num_answers == 6
    assert row(results, "griffin").tau.value == pytest.approx(13 / 5)


def test_the_second_turn_goes_on_from_the_first_answer(target):
    """A chat of "a" and "b": its second prompt holds "10", the answer of ten tokens. It is one prompt."""
    results = run(target, Plan([Prompt("x", "chat", ("a", "b"))], FLOAT32))
    assert {prompt for _, prompt in target.calls} == {"a", "a\n\n10\n\nb"}
    assert (row(results, "griffin").num_prompts, row(results, "griffin").num_answers) == (1, 2)
    assert row(results, "griffin").speedup_over_eager.value == pytest.approx(17 / 11.5)


def test_domains_have_rows_of_their_own(target):
    results = run(target, Plan([Prompt("x", "A", ("a",)), Prompt("y", "B", ("b",))], FLOAT32))
    assert [(s.method, s.domain) for s in results.summaries] == [
        *(("plain", domain) for domain in ("x", "y", "all")),
        *(("griffin", domain) for domain in ("x", "y", "all")),
    ]
    assert row(results, "griffin", "x").speedup_over_eager.value == pytest.approx(11 / 6.5)
    assert row(results, "griffin", "y").tau.value == 2


# ---------------------------------------------------------------------- what is refused


def test_no_speedup_is_reported_where_greedy_float32_answers_differ(target):
    target.wrong_tokens["griffin"] = 1
    griffin = row(run(target), "griffin")
    assert griffin.speedup_over_eager is griffin.speedup_over_best_plain is griffin.cycle_cost is None
    assert griffin.tau.value == pytest.approx(2.6)
    assert griffin.num_identical == 0
    assert griffin.note.startswith("no SR: 2 of 2 greedy float32 answers differ from plain decoding's")


def test_a_difference_in_one_domain_is_one_in_all(target, clock):
    """The method does not decode as it should; that it did by chance in domain y is no reason to praise it there."""
    target.wrong_tokens["griffin"] = 1
    answer = target.generate
    target.generate = lambda input_ids, method, **kwargs: answer(
        input_ids, method="plain" if (chr(input_ids[0, 0]), method) == ("b", "griffin") else method, **kwargs
    )
    results = run(target, Plan([Prompt("x", "A", ("a",)), Prompt("y", "B", ("b",))], FLOAT32))
    assert row(results, "griffin", "y").num_identical == 1
    assert row(results, "griffin", "y").speedup_over_eager is None


@pytest.mark.parametrize("case", ["allowed", "bfloat16", "sampled"])
def test_a_speedup_is_reported_where_differences_are_allowed_or_expected(target, case):
    target.wrong_tokens["griffin"] = 1
    settings = make_settings(["bfloat16" if case == "bfloat16" else "float32"], [1.0 if case == "sampled" else 0.0])
    results = run(target, Plan(PROMPTS, settings, allow_differences=case == "allowed"))
    griffin = row(results, "griffin", setting=settings[0].name)
    assert griffin.speedup_over_eager.value == pytest.approx(17 / 11.5)
    assert griffin.num_identical == (None if case == "sampled" else 0)
    assert griffin.note is None


def test_a_method_that_takes_no_batches_is_listed_without_figures(target):
    decoders = [*fake_decoders(), Decoder(Method("pld", "prompt_lookup", ""), lambda *_: {}, max_batch_size=1)]
    prompts = [Prompt("x", name, ("a",)) for name in "AB"]
    results = run(target, Plan(prompts, make_settings(["float32"], [0.0], batch_sizes=[2])), decoders=decoders)
    missing = row(results, "pld", setting="float32 T=0 batch 2")
    assert missing.note == "not measured: takes batches of 1 only"
    assert missing.tokens_per_second is missing.tau is missing.num_identical is None
    griffin = row(results, "griffin", setting="float32 T=0 batch 2")
    assert (griffin.num_prompts, griffin.num_answers, griffin.num_identical, griffin.num_tokens) == (2, 2, 2, 20)
    assert griffin.tau.value == 3
    assert griffin.tokens_per_second.value == pytest.approx(20 / 6.5), "both rows in the time of one"


def test_plain_decoding_that_does_not_compile_is_left_out(target):
    """And the run goes on without it."""

    def no_compiler(*_):
        raise RuntimeError("no C++ compiler")

    decoders = [*fake_decoders(), Decoder(Method("plain_compiled", "plain_compiled", ""), no_compiler)]
    results = run(target, decoders=decoders)
    assert results.is_complete
    assert row(results, "plain_compiled").note == "not measured: does not compile here (RuntimeError)"
    assert row(results, "griffin").speedup_over_eager is not None


def test_the_best_plain_mode_is_the_faster_one(target):
    """A compiled mode that decodes like the draft does: 11.5 s against 17 s; the draft gains nothing over it."""
    compiled = Decoder(Method("plain_compiled", "plain_compiled", ""), lambda *_: {"method": "plain_compiled"})
    results = run(target, decoders=[*fake_decoders(), compiled])
    assert row(results, "griffin").speedup_over_best_plain.value == pytest.approx(1)
    assert row(results, "plain").speedup_over_best_plain.value == pytest.approx(11.5 / 17)


def test_a_plain_mode_whose_ties_fall_otherwise_is_still_the_best_plain_mode(target):
    """It has no SR of its own, but what others gain is not measured against a slower mode for it."""
    target.wrong_tokens["plain_compiled"] = 1
    compiled = Decoder(Method("plain_compiled", "plain_compiled", ""), lambda *_: {"method": "plain_compiled"})
    results = run(target, decoders=[*fake_decoders(), compiled])
    assert row(results, "plain_compiled").speedup_over_eager is None
    assert row(results, "griffin").speedup_over_best_plain.value == pytest.approx(1)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"prompts": []}, "0 prompts in 1 settings"),
        ({"repeats": 0}, "`repeats` is 0; both must be 1 or more"),
        ({"prompts": [PROMPTS[0], PROMPTS[0]]}, "Two prompts of 'x' have the identifier 'A'"),
    ],
)
def test_a_plan_without_sense_is_refused(plan, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Plan(**({"prompts": PROMPTS, "settings": FLOAT32} | plan))


# ---------------------------------------------------------------------- interrupted runs


def test_an_interrupted_run_keeps_what_it_has_and_goes_on_to_the_same_table(clock, target, tmp_path):
    """Ctrl-C in the last of the six calls: A is done, of B only the draft's answer."""
    whole = run(FakeTarget(clock, CYCLES), output_dir=tmp_path / "whole")
    target.fail_at = 6
    with pytest.raises(KeyboardInterrupt):
        run(target, output_dir=tmp_path / "part")
    part = BenchmarkResults.load(tmp_path / "part")
    assert not part.is_complete
    assert row(part, "griffin").num_prompts == 1, "B is no prompt that both methods answered"
    assert row(part, "griffin").speedup_over_eager.value == pytest.approx(11 / 6.5)

    target.fail_at = None
    resumed = run(target, output_dir=tmp_path / "part")
    assert len(target.calls) == 6 + 2 + 1, "two warm-ups, and the one answer that was missing"
    assert resumed.is_complete
    assert resumed.summaries == whole.summaries
    assert BenchmarkResults.load(tmp_path / "part").summaries == whole.summaries


def test_a_run_killed_in_the_middle_of_a_line_goes_on_to_the_same_table(clock, tmp_path):
    chats = Plan([Prompt("x", "chat", ("a", "b")), *PROMPTS], FLOAT32, repeats=2)
    whole = run(FakeTarget(clock, CYCLES), chats, tmp_path)
    lines = (tmp_path / "measurements.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == (2 + 1 + 1) * 2 * 2
    (tmp_path / "measurements.jsonl").write_text("".join(lines[:5]) + lines[5][:40])
    (tmp_path / "results.json").write_text(json.dumps(whole.as_dict() | {"summaries": [], "is_complete": False}))
    target = FakeTarget(clock, CYCLES)
    assert run(target, chats, tmp_path).summaries == whole.summaries
    assert len(target.calls) == 2 + len(lines) - 5
    assert (tmp_path / "measurements.jsonl").read_text().splitlines(keepends=True)[:5] == lines[:5]


def test_a_finished_run_is_not_measured_again(target, tmp_path):
    first = run(target, output_dir=tmp_path)
    calls = len(target.calls)
    assert run(target, output_dir=tmp_path) == first
    assert len(target.calls) == calls


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"max_new_tokens": 64}, "max_new_tokens: 128, not 64"),
        ({"prompts": PROMPTS[:1]}, "prompts: 2 with checksum"),
        ({"settings": make_settings(["float32"], [1.0])}, "settings: "),
    ],
)
def test_a_folder_with_another_run_is_refused(target, tmp_path, change, named):
    run(target, output_dir=tmp_path)
    with pytest.raises(ValueError, match=re.escape(f"holds measurements with other {named}")):
        run(target, Plan(**({"prompts": PROMPTS, "settings": FLOAT32} | change)), tmp_path)
    with pytest.raises(ValueError, match="holds measurements with other methods"):
        run(target, output_dir=tmp_path, decoders=fake_decoders("hass"))


def test_measurements_of_nobody_knows_what_are_refused(target, tmp_path):
    run(target, output_dir=tmp_path)
    (tmp_path / "results.json").unlink()
    with pytest.raises(ValueError, match=r"holds measurements\.jsonl, but no results\.json to say of what"):
        run(target, output_dir=tmp_path)


def test_a_broken_line_in_the_middle_is_named(target, tmp_path):
    run(target, output_dir=tmp_path)
    path = tmp_path / "measurements.jsonl"
    path.write_text("{}\n" + path.read_text())
    with pytest.raises(ValueError, match=r"measurements\.jsonl, line 1: no measurement"):
        run(target, output_dir=tmp_path)


# ---------------------------------------------------------------------- settings


def test_settings_are_named_after_what_differs():
    settings = make_settings(["float32", "bfloat16"], [0.0, 1.0], top_p=0.9, batch_sizes=[1, 4])
    assert [setting.name for setting in settings[:4]] == [
        "float32 T=0",
        "float32 T=0 batch 4",
        "float32 T=1 top_p=0.9",
        "float32 T=1 top_p=0.9 batch 4",
    ]
    assert settings[0].generate_kwargs == {"do_sample": False}
    assert settings[2].generate_kwargs == {"do_sample": True, "temperature": 1.0, "top_p": 0.9, "top_k": 0}
    assert len({setting.name for setting in settings}) == 8
