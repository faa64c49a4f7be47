"""
PEFT adapters where the draft borrows from the target, and those that a drafted answer cannot have.

Adapters in a target's layers are in `tests/decoding/test_pipeline_and_peft.py`, adapters on a draft in
`tests/training/test_trainer_peft.py`.
"""

import pytest
import torch
from answers import PROMPT, drafted_answer, plain_answer
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

from conftest import tiny_llama
from transformers_griffin import GriffinDraftModel


INSIDE = {
    "lora on embedding and head": LoraConfig(target_modules=["q_proj", "embed_tokens", "lm_head"]),
    "whole embedding and head": LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]),
    "some embeddings": LoraConfig(target_modules=["q_proj"], trainable_token_indices=[3, 5]),
}
BEFORE = {"prompt": PromptTuningConfig(num_virtual_tokens=4), "prefix": PrefixTuningConfig(num_virtual_tokens=4)}


def adapt(target, config):
    """An adapter that changes logits."""
    config.task_type = "CAUSAL_LM"
    adapted = get_peft_model(target, config).eval()
    torch.manual_seed(0)
    for weight in adapted.parameters():
        if weight.requires_grad:
            weight.data.add_(0.5 * torch.randn_like(weight))
    return adapted


def answer(model, **settings) -> list[int]:
    return model.generate(input_ids=PROMPT, max_new_tokens=20, do_sample=False, **settings)[0].tolist()


@pytest.mark.parametrize("kind", INSIDE)
@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
def test_a_draft_borrows_what_the_adapter_made_of_it(kind, tied):
    target = tiny_llama(tie_word_embeddings=tied)
    draft = GriffinDraftModel.from_target(target).eval()
    alone = target(PROMPT).logits
    adapted = adapt(target, INSIDE[kind])
    assert not torch.allclose(adapted(PROMPT).logits, alone, atol=0.01)
    assert answer(adapted, assistant_model=draft) == answer(adapted)


@pytest.mark.parametrize("kind", BEFORE)
def test_virtual_tokens_before_the_prompt_are_refused(kind):
    """They are in no tree; afterwards the target by itself is as before."""
    target = tiny_llama()
    draft = GriffinDraftModel.from_target(target).eval()
    alone = plain_answer(target)
    adapted = adapt(target, BEFORE[kind])
    assert answer(adapted) != alone
    with pytest.raises(ValueError, match=r"inputs of LlamaForCausalLM are prepared by something else, as PEFT does"):
        answer(adapted, assistant_model=draft)
    assert drafted_answer(target, draft)[0] == alone
