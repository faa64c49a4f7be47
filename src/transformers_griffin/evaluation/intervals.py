"""
Confidence intervals over prompts, by the percentile bootstrap.

tau, rates and shares are ratios of sums over prompts: `sum(numerators) / sum(denominators)`, for tau the tokens that
the cycles of a prompt emitted over its cycles. Cycles of one prompt resemble each other, so prompts are what is drawn
again, with replacement, and the ratio is taken of the sums of each draw.

Two drafts are compared on the same draws of prompts (paired): what is easy for both cancels.

Draws come from a generator of their own: the same seed gives the same interval, and no other random state is touched.

Notation for shapes: `num_prompts`.
"""

from collections.abc import Sequence

import torch


def bootstrap_interval(
    numerators: Sequence[float],
    denominators: Sequence[float],
    num_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """
    Percentile bootstrap interval of `sum(numerators) / sum(denominators)`.

    Args:
        numerators (`Sequence[float]` of length `num_prompts`): for tau, tokens emitted by the cycles of each prompt.
        denominators (`Sequence[float]` of length `num_prompts`): for tau, cycles of each prompt.
        num_resamples (`int`, defaults to 2000): draws of `num_prompts` prompts.
        level (`float`, defaults to 0.95): share of the draws whose ratio lies inside.
        seed (`int`, defaults to 0): of the draws.

    Returns:
        `tuple[float, float]`: lower and upper end.

    Raises:
        ValueError: if there is no prompt, the lengths differ, a denominator is negative or all are 0, or `level` is
            not between 0 and 1.

    Example:

    ```python
    >>> bootstrap_interval([30, 30, 30], [10, 10, 10])  # every draw has tau 3
    (3.0, 3.0)

    ```
    """
    draws = _draws(len(numerators), num_resamples, seed)
    return _percentiles(_ratios(numerators, denominators, draws), level)


def paired_ratio_interval(
    numerators_a: Sequence[float],
    denominators_a: Sequence[float],
    numerators_b: Sequence[float],
    denominators_b: Sequence[float],
    num_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """
    Percentile bootstrap interval of `ratio_a / ratio_b - 1`: by how much a is better than b on the same prompts.

    Args:
        numerators_a, denominators_a (`Sequence[float]` of length `num_prompts`): see [`bootstrap_interval`].
        numerators_b, denominators_b (`Sequence[float]` of length `num_prompts`): of the same prompts, in the same
            order.
        num_resamples (`int`, defaults to 2000): draws of `num_prompts` prompts, the same for a and b.
        level (`float`, defaults to 0.95): share of the draws whose value lies inside.
        seed (`int`, defaults to 0): of the draws.

    Returns:
        `tuple[float, float]`: lower and upper end; 0.08 is 8 % more.

    Raises:
        ValueError: as [`bootstrap_interval`], and if a and b have different numbers of prompts.
    """
    if len(numerators_a) != len(numerators_b):
        raise ValueError(
            f"a has {len(numerators_a)} prompts and b has {len(numerators_b)}; a paired comparison needs the same "
            "prompts for both, in the same order."
        )
    draws = _draws(len(numerators_a), num_resamples, seed)
    ratios = _ratios(numerators_a, denominators_a, draws) / _ratios(numerators_b, denominators_b, draws)
    return _percentiles(ratios - 1, level)


def _draws(num_prompts: int, num_resamples: int, seed: int) -> torch.Tensor:
    """`torch.LongTensor` of shape `(num_resamples, num_prompts)`: prompts drawn with replacement."""
    if num_prompts == 0:
        raise ValueError("There is no prompt; an interval needs at least 1, and a useful one many more.")
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(num_prompts, (num_resamples, num_prompts), generator=generator)


def _ratios(numerators: Sequence[float], denominators: Sequence[float], draws: torch.Tensor) -> torch.Tensor:
    """The ratio of sums of every draw; NaN for a draw without any denominator (`0 / 0`)."""
    if len(numerators) != len(denominators):
        raise ValueError(
            f"Got {len(numerators)} numerators and {len(denominators)} denominators; every prompt needs one of each."
        )
    if min(denominators) < 0 or sum(denominators) == 0:
        raise ValueError(
            f"The denominators lie between {min(denominators)} and {max(denominators)}; none may be negative, and "
            "one at least must be positive."
        )
    top = torch.tensor(numerators, dtype=torch.float64)[draws].sum(dim=1)
    return top / torch.tensor(denominators, dtype=torch.float64)[draws].sum(dim=1)


def _percentiles(values: torch.Tensor, level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ValueError(f"`level` is {level}, but must be between 0 and 1, for example 0.95.")
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=values.dtype)
    low, high = values.nanquantile(tails).tolist()
    return low, high


__all__ = ["bootstrap_interval", "paired_ratio_interval"]
