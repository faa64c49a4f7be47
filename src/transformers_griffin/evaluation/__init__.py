"""What a draft is worth: acceptance, speed and whether the output stayed the same."""

from .answers import Answer, answer_prompt
from .intervals import bootstrap_interval, paired_ratio_interval
from .metrics import Comparison, compare, mean_acceptance_length, repeated_ngram_share
from .replay import KnownAnswers, know_answers, replay_acceptance


__all__ = [
    "Answer",
    "answer_prompt",
    "Comparison",
    "compare",
    "mean_acceptance_length",
    "repeated_ngram_share",
    "bootstrap_interval",
    "paired_ratio_interval",
    "KnownAnswers",
    "know_answers",
    "replay_acceptance",
]
