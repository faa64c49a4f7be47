"""What a draft is worth: acceptance, speed and whether the output stayed the same."""

from .answers import Answer, answer_prompt
from .metrics import Comparison, compare, mean_acceptance_length, repeated_ngram_share


__all__ = ["Answer", "Comparison", "answer_prompt", "compare", "mean_acceptance_length", "repeated_ngram_share"]
