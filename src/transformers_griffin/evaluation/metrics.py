"""
Metrics, each defined once.

- tau (acceptance length): new tokens emitted per cycle, over all cycles. The token that the prefill yields belongs to
  no cycle.
- acceptance by depth: share of the cycles that accept at least i draft tokens, for i = 1, 2, ...
- misaligned rate by pass: share of the chains of drafted tokens that have left the target's answer by pass n.
- SR (speedup ratio): tokens per second with the draft over tokens per second of plain decoding, same prompts, same
  run.
- cycle cost: tau / SR, the number of plain decoding steps that one cycle takes.
- repeated 4-grams: the share of an answer's token 4-grams that occurred in it before. An answer that loops makes tau
  meaningless.

Next: `intervals.py`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain

from .answers import TimedAnswer


@dataclass(frozen=True)
class Comparison:
    """A draft against plain decoding, over the same prompts."""

    num_prompts: int
    num_identical: int  # answers that are equal token for token
    tau: float
    speedup_ratio: float
    cycle_cost: float  # plain decoding steps per cycle
    plain_tokens_per_second: float
    draft_tokens_per_second: float
    repeated_4grams: float  # of the plain answers

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


def compare(plain: Sequence[TimedAnswer], drafted: Sequence[TimedAnswer]) -> Comparison:
    """
    Compares answers to the same prompts, in the same order.

    Raises:
        ValueError: if the numbers of answers differ, or there are none.
    """
    if not plain or len(plain) != len(drafted):
        raise ValueError(f"Got {len(plain)} plain and {len(drafted)} drafted answers; as many of both are needed.")
    tau = mean_acceptance_length(answer.acceptance_lengths for answer in drafted)
    speeds = [sum(len(a.new_tokens) for a in s) / sum(a.wall_seconds for a in s) for s in (plain, drafted)]
    speedup_ratio = speeds[1] / speeds[0]
    return Comparison(
        num_prompts=len(plain),
        num_identical=sum(p.new_tokens == d.new_tokens for p, d in zip(plain, drafted, strict=True)),
        tau=tau,
        speedup_ratio=speedup_ratio,
        cycle_cost=tau / speedup_ratio,
        plain_tokens_per_second=speeds[0],
        draft_tokens_per_second=speeds[1],
        repeated_4grams=sum(repeated_ngram_share(a.new_tokens) for a in plain) / len(plain),
    )


def mean_acceptance_length(acceptance_lengths: Iterable[Sequence[int]]) -> float:
    """
    tau = tokens emitted by all cycles / number of cycles; NaN when there was no cycle.

    Args:
        acceptance_lengths (`Iterable[Sequence[int]]`): for every answer, the tokens that each of its cycles emitted,
            like `acceptance_lengths` of `generate()`'s output.
    """
    lengths = list(chain.from_iterable(acceptance_lengths))
    return sum(lengths) / len(lengths) if lengths else float("nan")


def acceptance_by_depth(acceptance_lengths: Iterable[Sequence[int]], depth: int) -> list[float]:
    """
    Share of the cycles that accept at least i draft tokens, for i = 1 .. `depth`; NaN when there was no cycle.

    A cycle emits its accepted draft tokens and one token that the target adds, so it accepts `length - 1`. The shares
    add up to tau - 1 if `depth` is that of the tree. (A last cycle that is cut counts with what is left of it.)

    Args:
        acceptance_lengths (`Iterable[Sequence[int]]`): see [`mean_acceptance_length`].
        depth (`int`): levels of the draft tree.

    Returns:
        `list[float]` of length `depth`.

    Example: cycles that emit 1, 3 and 4 tokens accept 0, 2 and 3: the shares are 2/3, 2/3, 1/3.
    """
    accepted = [length - 1 for length in chain.from_iterable(acceptance_lengths)]
    return [
        sum(count >= i for count in accepted) / len(accepted) if accepted else float("nan")
        for i in range(1, depth + 1)
    ]


def misaligned_rates(hits: Sequence[Sequence[bool]]) -> list[float]:
    """
    By pass n, the share of chains in which the draft missed a token in one of the passes 1 .. n (Fig. 1c).

    A chain starts at a position of the target's answer and takes one more of its tokens with every pass. A pass hits
    if the token is among the draft's top k; after the first miss decoding cannot continue along the chain, so all
    later passes of it are misaligned as well. These are the positions that Eq. 3 masks in training.

    Args:
        hits (`Sequence[Sequence[bool]]`): for every chain, whether each pass hit. Chains near the end of an answer
            have fewer passes, and count for those they have.

    Returns:
        `list[float]`: one rate for each pass of the longest chain.

    Example: of the chains `x x .`, `x . x` and `x x` (x: hit), none, 1/3 and 2/2 are misaligned by pass 1, 2 and 3.
    """
    return [misaligned / count for misaligned, count in count_misaligned(hits)]


def count_misaligned(hits: Sequence[Sequence[bool]]) -> list[tuple[int, int]]:
    """By pass, the misaligned chains and all chains that go so far: what [`misaligned_rates`] divides."""
    num_passes = max(map(len, hits), default=0)
    reached = [[passes for passes in hits if len(passes) >= n] for n in range(1, num_passes + 1)]
    return [(sum(not all(passes[:n]) for passes in chains), len(chains)) for n, chains in enumerate(reached, start=1)]


def repeated_ngram_share(tokens: Sequence[int], n: int = 4) -> float:
    """
    Share of the n-grams of `tokens` that occurred before in `tokens`; 0 for fewer than n tokens.

    Example: `a b a b a` has the 2-grams ab, ba, ab, ba, of which 2 of 4 repeat.
    """
    ngrams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0
