"""
In bfloat16 outputs may part from plain decoding, but only where the target itself could not tell two tokens apart.

A forward over one token and one over a tree sum in another order, and bfloat16 keeps 8 bits: a logit near 10 is a
multiple of 1/16. Where the two best logits are that close, either forward may put either token first.
"""

from dataclasses import dataclass

import pytest
import torch

from conftest import GOLDEN_CASES, golden_case, golden_json


NUM_NEW_TOKENS = 96


@dataclass(frozen=True)
class Comparison:
    """Plain decoding and ours of one prompt, up to the first token in which they differ."""

    parted_at: int | None  # index of that token in the answer
    margin: float | None  # lead of plain decoding's best logit there
    noise: float  # largest difference of a logit after the same tokens, in steps of bfloat16 at the largest logit


def compare(case: str, prompt: list[int]) -> Comparison:
    target, draft = golden_case(case)
    target, draft = target.bfloat16(), draft.bfloat16()
    draft.generation_config.update(num_assistant_tokens=15, draft_tree_depth=4, draft_tree_top_k=4)
    settings = {
        "max_new_tokens": NUM_NEW_TOKENS,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
        "pad_token_id": 0,
        "eos_token_id": None,
    }
    plain = target.generate(torch.tensor([prompt]), **settings)
    ours = target.generate(torch.tensor([prompt]), assistant_model=draft, **settings)
    differs = (plain.sequences != ours.sequences)[0, len(prompt) :]
    parted_at = int(differs.long().argmax()) if differs.any() else None
    common = len(differs) if parted_at is None else parted_at + 1  # logits after the same tokens
    plain_logits, our_logits = torch.cat(plain.logits[:common]), torch.cat(ours.logits[:common])
    step = torch.finfo(torch.bfloat16).eps * 2.0 ** plain_logits.abs().max().log2().floor()
    noise = ((plain_logits - our_logits).abs().max() / step).item()
    margin = None
    if parted_at is not None:
        best, second = plain_logits[-1].topk(2).values
        margin = (best - second).item()
    return Comparison(parted_at, margin, noise)


@pytest.mark.slow
def test_bf16_outputs_part_only_at_near_ties(record_testsuite_property):
    """
    Twelve answers of 96 tokens: how many part, at what margin, and how far apart the logits were until then.

    The figures go to the test report (`--junit-xml`) as `bf16_*`.
    """
    results = [
        compare(case, run["prompt_ids"]) for case in GOLDEN_CASES for run in golden_json(case, "generate")["prompts"]
    ]
    margins = [result.margin for result in results if result.margin is not None]
    noise = max(result.noise for result in results)
    record_testsuite_property("bf16_answers", len(results))
    record_testsuite_property("bf16_answers_that_part", len(margins))
    record_testsuite_property("bf16_parting_margins", sorted(margins))
    record_testsuite_property("bf16_noise_in_steps", noise)
    assert len(results) == 12
    assert noise <= 4
    assert all(margin <= 0.25 for margin in margins)
