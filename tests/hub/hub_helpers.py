"""What the tests of publishing share: a tiny draft on disk, and results about it."""

import torch

from conftest import tiny_llama
from transformers_griffin import GriffinDraftModel
from transformers_griffin.evaluation.results import BenchmarkResults, Estimate, Method, Setting, Summary


def tiny_draft(seed: int = 0) -> GriffinDraftModel:
    """A draft for `tiny_llama()`, with a tree of 8 nodes."""
    target = tiny_llama()
    torch.manual_seed(seed)
    draft = GriffinDraftModel.from_target(target)
    draft.generation_config.num_assistant_tokens = 8
    draft.generation_config.draft_tree_depth = 3
    draft.generation_config.draft_tree_top_k = 2
    return draft


def some_results(**changes) -> BenchmarkResults:
    """A greedy and a sampled setting of one draft beside plain decoding; some figures are missing."""
    fields = {
        "title": "tiny",
        "target": "/home/somebody/models/target",
        "methods": [
            Method("plain", "plain", "eager generate()"),
            Method("griffin", "draft", "the draft in ~/drafts/mine", num_parameters=10),
        ],
        "settings": [
            Setting("float32 T=0", "float32", {"do_sample": False}),
            Setting("float32 T=1", "float32", {"do_sample": True, "temperature": 1.0}),
        ],
        "summaries": [
            Summary("float32 T=0", "plain", "all", 4, 4, 64, tokens_per_second=Estimate(100.0, 90.0, 110.0)),
            Summary(
                "float32 T=0",
                "griffin",
                "all",
                4,
                4,
                64,
                tokens_per_second=Estimate(150.0, 140.0, 160.0),
                tau=Estimate(4.0, 3.5, 4.5),
                speedup_over_eager=Estimate(1.5, 1.4, 1.6),
                cycle_cost=4.0 / 1.5,
                num_identical=4,
            ),
            Summary("float32 T=1", "griffin", "all", 4, 4, 64, tau=Estimate(1.25, 1.2, 1.3)),
        ],
        "provenance": {
            "device": "CPU, 2 cores, x86_64",
            "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
            "commit": "0123456",
            "date": "2026-11-22",
            "arguments": {"target": "/home/somebody/models/target", "output": "C:\\runs\\results", "seeds": [0]},
        },
    }
    return BenchmarkResults(**(fields | changes))
