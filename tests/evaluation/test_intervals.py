"""Bootstrap intervals, on draws few enough to work out by hand."""

import pytest
import torch

from transformers_griffin.evaluation import bootstrap_interval, paired_ratio_interval


def test_one_prompt_leaves_nothing_to_draw():
    assert bootstrap_interval([12], [4]) == (3.0, 3.0)


def test_two_prompts_have_three_possible_draws():
    """
    Prompts (tokens, cycles) = (10, 10) and (60, 20). A draw is both first (tau 1, probability 1/4), mixed (70 / 30,
    1/2) or both second (3, 1/4). The 2.5 % and 97.5 % points are the extremes; the 30 % and 70 % points are mixed.
    The ratio of sums is not the mean of the prompts' taus, which would be 2 for the mixed draw.
    """
    assert bootstrap_interval([10, 60], [10, 20]) == (1.0, 3.0)
    assert bootstrap_interval([10, 60], [10, 20], level=0.4) == pytest.approx((70 / 30, 70 / 30))


def test_intervals_depend_on_the_seed_alone_and_leave_the_global_one_be():
    numerators, denominators = list(range(10, 40)), list(range(5, 35))
    state = torch.get_rng_state()
    first = bootstrap_interval(numerators, denominators)
    torch.manual_seed(5)
    assert bootstrap_interval(numerators, denominators) == first
    assert bootstrap_interval(numerators, denominators, seed=1) != first
    torch.set_rng_state(state)
    bootstrap_interval(numerators, denominators)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_draw_without_cycles_is_left_out():
    """Prompts (6, 2) and (0, 0): a quarter of the draws is 0 / 0, all others have ratio 3."""
    assert bootstrap_interval([6, 0], [2, 0]) == (3.0, 3.0)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """
    300 experiments of 60 prompts, each with 20 cycles that emit 1 or 3 tokens evenly often: tau = 2. The 90 % interval
    should cover 2 in about 88-90 % of them. Fewer than 82 % or more than 96 % would be 3.5 standard deviations off
    (binomial, n = 300, p = 0.89): one false alarm in 2000 seeds, and the seed is fixed.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = (1 + 2 * torch.randint(2, (300, 60, 20), generator=generator)).sum(-1)
    covered = 0
    for row in tokens.tolist():
        low, high = bootstrap_interval(row, [20] * 60, num_resamples=400, level=0.9)
        covered += low <= 2.0 <= high
    assert 0.82 < covered / 300 < 0.96


def test_two_drafts_that_differ_by_a_constant_factor_have_no_uncertainty_when_paired():
    """b emits n tokens in n cycles (tau 1) and a 1.25 times as many, on prompts of very different length."""
    cycles = [1, 50, 3, 7, 1000]
    low, high = paired_ratio_interval([1.25 * n for n in cycles], cycles, cycles, cycles)
    assert (low, high) == pytest.approx((0.25, 0.25))


def test_paired_draws_take_the_same_prompts_for_both():
    """
    Taus of a: 2 and 8, of b: 1 and 4, one cycle a prompt. On equal draws a is always twice b. On independent draws
    a / b would lie between 2 / 4 and 8 / 1.
    """
    assert paired_ratio_interval([2, 8], [1, 1], [1, 4], [1, 1]) == pytest.approx((1.0, 1.0))


def test_a_paired_difference_of_two_prompts_by_hand():
    """
    Taus of a: 3 and 2, of b: 2 and 4, one cycle a prompt. Draws: both first 3/2 - 1 = 0.5, mixed 5/6 - 1, both second
    2/4 - 1 = -0.5.
    """
    assert paired_ratio_interval([3, 2], [1, 1], [2, 4], [1, 1]) == pytest.approx((-0.5, 0.5))
    middle = paired_ratio_interval([3, 2], [1, 1], [2, 4], [1, 1], level=0.4)
    assert middle == pytest.approx((5 / 6 - 1, 5 / 6 - 1))


@pytest.mark.parametrize(
    ("numerators", "denominators", "options", "message"),
    [
        ([], [], {}, "There is no prompt"),
        ([1, 2], [1], {}, "Got 2 numerators and 1 denominators"),
        ([1, 2], [0, 0], {}, "lie between 0 and 0"),
        ([1, 2], [3, -1], {}, "lie between -1 and 3"),
        ([1, 2], [1, 1], {"level": 95}, "`level` is 95"),
    ],
)
def test_input_without_an_interval_is_refused(numerators, denominators, options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(numerators, denominators, **options)


def test_different_prompts_cannot_be_paired():
    with pytest.raises(ValueError, match="a has 1 prompts and b has 2"):
        paired_ratio_interval([1], [1], [1, 2], [1, 1])
