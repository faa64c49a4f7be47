"""Drafts work where users meet `generate()` indirectly: in a pipeline, and behind a PEFT adapter."""

import pytest
import torch
from generation_helpers import golden_pair, golden_prompts
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, pipeline

from transformers_griffin import GriffinDraftModel


@pytest.fixture
def pair():
    return golden_pair()


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Token i is the word w<i>."""
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(517)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0")


def count_passes(draft: GriffinDraftModel) -> list[int]:
    """Grows by one entry for every pass of the draft."""
    passes: list[int] = []
    draft.register_forward_hook(lambda *_: passes.append(1))
    return passes


@pytest.mark.parametrize("make_draft", ["converted", "from_target"])
def test_pipeline_takes_a_draft_as_assistant(pair, make_draft):
    target, draft = pair
    if make_draft == "from_target":
        draft = GriffinDraftModel.from_target(target).eval()
    passes = count_passes(draft)
    text = " ".join(f"w{token}" for token in golden_prompts()[0][0].tolist())
    answers = [
        pipeline("text-generation", model=target, tokenizer=word_tokenizer(), **assistant)(
            text, max_new_tokens=20, do_sample=False
        )
        for assistant in ({}, {"assistant_model": draft})
    ]
    assert answers[1] == answers[0]
    assert len(passes) > 0


def test_pipeline_answers_batches_with_a_draft(pair):
    target, draft = pair
    tokenizer = word_tokenizer()
    tokenizer.padding_side = "left"
    texts = [" ".join(f"w{token}" for token in prompt[0].tolist()) for prompt in golden_prompts()[:3]]
    passes = count_passes(draft)
    answers = [
        pipeline("text-generation", model=target, tokenizer=tokenizer, batch_size=3, **assistant)(
            texts, max_new_tokens=20, do_sample=False
        )
        for assistant in ({}, {"assistant_model": draft})
    ]
    assert answers[1] == answers[0]
    assert 0 < len(passes) < 20 * 4 * 2, "all three prompts share the passes of the draft"


def with_adapter(target, **lora) -> PeftModel:
    """A LoRA adapter with weights large enough to change the answer."""
    adapted = get_peft_model(target, LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **lora)).eval()
    torch.manual_seed(0)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return adapted


@pytest.mark.parametrize(
    "lora", [{"target_modules": ["q_proj", "v_proj", "down_proj"]}, {"target_modules": ["lm_head", "o_proj"]}], ids=str
)
def test_target_with_an_adapter_is_the_target(pair, lora):
    """The adapter's answers differ from the base model's, and are those of plain decoding with the adapter."""
    target, draft = pair
    prompt, settings = golden_prompts()[1], {"max_new_tokens": 24, "do_sample": False}
    base = target.generate(prompt, **settings)
    adapted = with_adapter(target, **lora)
    plain = adapted.generate(input_ids=prompt, **settings)
    assert plain.tolist() != base.tolist()
    passes = count_passes(draft)
    assert adapted.generate(input_ids=prompt, assistant_model=draft, **settings).tolist() == plain.tolist()
    assert len(passes) > 0
    with adapted.disable_adapter():
        assert adapted.generate(input_ids=prompt, assistant_model=draft, **settings).tolist() == base.tolist()


def test_adapter_stays_as_it_is(pair):
    """Borrowing embedding and head neither merges nor trains nor renames anything."""
    target, draft = pair
    adapted = with_adapter(target, target_modules=["q_proj"])
    before = {name: weight.clone() for name, weight in adapted.state_dict().items()}
    adapted.generate(input_ids=golden_prompts()[1], assistant_model=draft, max_new_tokens=8, do_sample=False)
    after = adapted.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any("lora" in name for name in draft.state_dict())
