"""The metrics, against values worked by hand."""

import math

import pytest

from transformers_griffin.evaluation import (
    TimedAnswer,
    acceptance_by_depth,
    compare,
    mean_acceptance_length,
    misaligned_rates,
    repeated_ngram_share,
)


def test_tau_is_the_mean_over_cycles_not_over_answers():
    """(3 + 1) + (2) tokens in 3 cycles: tau = 6 / 3 = 2; the mean of the answers' means would be 2 as well, so a third
    answer with one long cycle tells them apart: (3 + 1 + 2 + 6) / 4 = 3."""
    assert mean_acceptance_length([[3, 1], [2], [6]]) == 3.0


def test_tau_of_no_cycle_is_not_a_number():
    assert math.isnan(mean_acceptance_length([[]]))


def test_acceptance_by_depth_counts_the_cycles_that_reach_a_depth():
    """Cycles emit 1, 3, 4 and 4 tokens, so they accept 0, 2, 3 and 3 draft tokens."""
    lengths = [[1, 3], [4, 4]]
    by_depth = acceptance_by_depth(lengths, depth=4)
    assert by_depth == [3 / 4, 3 / 4, 2 / 4, 0.0]
    assert sum(by_depth) == mean_acceptance_length(lengths) - 1
    assert math.isnan(acceptance_by_depth([[]], depth=1)[0])


def test_a_chain_is_misaligned_from_its_first_miss_on():
    """
    By pass 1, one of 4 chains has missed; by pass 2 two of the 3 that go so far (the first miss of `. x x` counts on);
    by pass 3 both that are left, though each of them hit in its third pass.
    """
    hits = [[False, True, True], [True, False, True], [True, True], [True]]
    assert misaligned_rates(hits) == [1 / 4, 2 / 3, 2 / 2]
    assert misaligned_rates([]) == []


def test_speedup_is_a_ratio_of_total_tokens_per_total_second():
    """
    Plain: 10 tokens in 2 s and 30 in 2 s = 10 tokens/s. Drafted: the same tokens in 1 s each = 20 tokens/s. SR 2;
    tau = (9 + 29) / (3 + 7) = 3.8; one cycle costs 3.8 / 2 = 1.9 plain steps.
    """
    plain = [TimedAnswer(list(range(10)), 2.0), TimedAnswer(list(range(30)), 2.0)]
    drafted = [TimedAnswer(list(range(10)), 1.0, [3] * 3), TimedAnswer(list(range(30)), 1.0, [4] * 6 + [5])]
    result = compare(plain, drafted)
    assert result.speedup_ratio == pytest.approx(2.0)
    assert result.tau == pytest.approx(3.8)
    assert result.cycle_cost == pytest.approx(1.9)
    assert (result.num_identical, result.num_prompts) == (2, 2)


def test_a_differing_answer_is_counted():
    assert compare([TimedAnswer([1, 2], 1.0)], [TimedAnswer([1, 3], 1.0, [1])]).num_identical == 0


def test_comparing_different_numbers_of_answers_is_refused():
    with pytest.raises(ValueError, match="Got 1 plain and 0 drafted answers"):
        compare([TimedAnswer([1], 1.0)], [])


@pytest.mark.parametrize(
    ("tokens", "n", "share"),
    [
        ([1, 2, 1, 2, 1], 2, 0.5),  # 12, 21, 12, 21: two of four were there before
        ([1, 2, 3, 4, 5], 4, 0.0),
        ([7] * 8, 4, 0.8),  # five equal 4-grams, four repeat
        ([1, 2, 3], 4, 0.0),  # no 4-gram at all
    ],
)
def test_repeated_ngrams_are_those_that_occurred_before(tokens, n, share):
    assert repeated_ngram_share(tokens, n) == pytest.approx(share)
