"""What a draft is worth: acceptance, speed and whether the output stayed the same."""

from .answer_hits import answer_hits, chains
from .answers import TimedAnswer, answer_prompt
from .benchmark import benchmark
from .cycle_trees import CycleTree, cycle_trees, record_trees
from .intervals import bootstrap_interval, paired_ratio_interval
from .metrics import (
    Comparison,
    acceptance_by_depth,
    compare,
    mean_acceptance_length,
    misaligned_rates,
    repeated_ngram_share,
)
from .modules import load_metric
from .profiling import CycleProfile, profile_cycles
from .prompts import Prompt, load_prompts
from .replay import KnownAnswers, know_answers, replay_acceptance
from .results import BenchmarkResults
from .synthetic import SyntheticResults, measure_synthetic
from .tree_costs import TreeGrid
from .tree_drawing import draw_tree
from .tuning import TuningResult, tune_tree
from .weight_reads import WeightReads, weight_reads


__all__ = [
    "TimedAnswer",
    "answer_prompt",
    "Comparison",
    "compare",
    "mean_acceptance_length",
    "acceptance_by_depth",
    "misaligned_rates",
    "repeated_ngram_share",
    "bootstrap_interval",
    "paired_ratio_interval",
    "KnownAnswers",
    "know_answers",
    "replay_acceptance",
    "answer_hits",
    "chains",
    "load_metric",
    "Prompt",
    "load_prompts",
    "benchmark",
    "BenchmarkResults",
    "CycleTree",
    "record_trees",
    "cycle_trees",
    "draw_tree",
    "TreeGrid",
    "TuningResult",
    "tune_tree",
    "SyntheticResults",
    "measure_synthetic",
    "WeightReads",
    "weight_reads",
    "CycleProfile",
    "profile_cycles",
]
