"""
Metrics over timed answers, each defined once.

- tau (acceptance length): new tokens emitted per cycle, over all cycles. The token that the prefill yields belongs to
  no cycle.
- SR (speedup ratio): tokens per second with the draft over tokens per second of plain decoding, same prompts, same
  run.
- cycle cost: tau / SR, the number of plain decoding steps that one cycle takes.
- repeated 4-grams: the share of an answer's token 4-grams that occurred in it before. An answer that loops makes tau
  meaningless.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from .answers import Answer


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


def compare(plain: Sequence[Answer], drafted: Sequence[Answer]) -> Comparison:
    """
    Compares answers to the same prompts, in the same order.

    Raises:
        ValueError: if the numbers of answers differ, or there are none.
    """
    if not plain or len(plain) != len(drafted):
        raise ValueError(f"Got {len(plain)} plain and {len(drafted)} drafted answers; as many of both are needed.")
    tau = mean_acceptance_length(drafted)
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


def mean_acceptance_length(answers: Sequence[Answer]) -> float:
    """tau = tokens emitted by all cycles / number of cycles; NaN when there was no cycle."""
    lengths = [length for answer in answers for length in answer.acceptance_lengths]
    return sum(lengths) / len(lengths) if lengths else float("nan")


def repeated_ngram_share(tokens: Sequence[int], n: int = 4) -> float:
    """
    Share of the n-grams of `tokens` that occurred before in `tokens`; 0 for fewer than n tokens.

    Example: `a b a b a` has the 2-grams ab, ba, ab, ba, of which 2 of 4 repeat.
    """
    ngrams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0
