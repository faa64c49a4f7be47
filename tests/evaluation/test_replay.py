"""Replaying known answers against real decoding: the same acceptance lengths, cycle by cycle."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, GenerationConfig

from transformers_griffin.evaluation.replay import NO_TOKEN, know_answers, replay_acceptance


MINI = Path(__file__).parents[2] / "examples" / "mini"
SEED_TEXT = list(range(300, 340))


@pytest.fixture(scope="module")
def pair():
    target = AutoModelForCausalLM.from_pretrained(MINI / "target").eval()
    return target, AutoModel.from_pretrained(MINI / "draft").eval().bind(target)


@pytest.mark.parametrize("sampling", [{"do_sample": False}, {"do_sample": True, "temperature": 1.0, "top_k": 0}])
@pytest.mark.parametrize("tree", [(59, 6, 10), (10, 5, 2), (4, 4, 1)])
def test_a_replay_gives_the_acceptance_lengths_of_generate(pair, tree, sampling):
    """Answers of several lengths after prompts of several lengths; one of them ends after its first token."""
    target, draft = pair
    names = ("num_assistant_tokens", "draft_tree_depth", "draft_tree_top_k")
    draft.generation_config = GenerationConfig(**dict(zip(names, tree, strict=True)))
    sequences, expected, prompt_lengths = [], [], []
    for seed, (prompt_length, new_tokens) in enumerate([(3, 24), (12, 9), (7, 1), (20, 17)]):
        torch.manual_seed(seed)
        prompt = torch.tensor([SEED_TEXT[seed : seed + prompt_length]])
        output = target.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            assistant_model=draft,
            max_new_tokens=new_tokens,
            pad_token_id=0,
            return_dict_in_generate=True,
            **sampling,
        )
        sequences.append(output.sequences[0])
        expected.append(output.acceptance_lengths[0])
        prompt_lengths.append(prompt_length)
    answers = know_answers(target, sequences, prompt_lengths)
    assert (answers.tokens == NO_TOKEN).any()
    found = replay_acceptance(draft, answers)
    assert found == expected
    assert found[2] == []  # the prefill yields the only token
    assert max(length for lengths in found for length in lengths) > 1
