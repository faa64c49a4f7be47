"""Drafting from a copy of the LM head in int8: near the head's logits, in few bytes, and never seen in an answer."""

import logging

import pytest
import torch
from architectures import ARCHITECTURES, make_target
from exactness import GREEDY
from generation_helpers import assert_batch_lossless, assert_lossless, generate_both, golden_pair, golden_prompts
from peft import LoraConfig, get_peft_model
from test_compiled import backend_of, compiled

from conftest import tiny_llama
from transformers_griffin import GriffinDraftModel
from transformers_griffin.decoding import draft_head
from transformers_griffin.decoding.draft_head import DraftHead


TOKENS = [2, 3, 5, 7, 11, 60]
# An error of half a step in every weight adds up to this much of a logit, and bfloat16 rounds as much again.
TOLERANCE = 0.02


def make_pair(**target_fields):
    target = tiny_llama(**target_fields)
    torch.manual_seed(1)
    return target, GriffinDraftModel.from_target(target).eval()


def predictions(draft, *shape):
    torch.manual_seed(2)
    return torch.randn(*shape, draft.config.hidden_size)


def dequantised(head: DraftHead) -> torch.Tensor:
    return head.copy.weight.float() * head.copy.scales.float().unsqueeze(1)


# ---------------------------------------------------------------------- the copy


def test_every_row_is_as_near_as_255_steps_allow():
    target, draft = make_pair()
    rows, copy = target.lm_head.weight, dequantised(DraftHead(draft, "int8"))
    half_a_step = rows.abs().amax(dim=1, keepdim=True) / 127 / 2
    assert ((rows - copy).abs() <= 1.01 * half_a_step).all()
    assert not torch.equal(rows, copy)


def test_weights_that_are_multiples_of_a_step_stay_as_they_are():
    """Rows with a largest weight of 127 steps, a row of zeros, and one of a tiny and a huge step."""
    target, draft = make_pair(vocab_size=4, hidden_size=16)
    steps = torch.tensor([127, -127, 64, 1, 0, -3, 100, 5, 6, 7, 8, 9, 10, 11, 12, -90]).float()
    rows = torch.stack((steps, 0 * steps, 2.0**-60 * steps, 2.0**60 * steps))
    target.lm_head.weight.data.copy_(rows)
    head = DraftHead(draft, "int8")
    assert head.copy.weight[[0, 2, 3]].tolist() == [steps.long().tolist()] * 3
    assert torch.equal(dequantised(head), rows)


def test_parts_of_a_large_head_are_copied_one_after_the_other(monkeypatch):
    _, draft = make_pair()
    whole, few = DraftHead(draft, "int8"), DraftHead(draft.truncate_vocabulary(TOKENS), "int8")
    monkeypatch.setattr(draft_head, "ROWS_AT_A_TIME", 4)
    again = DraftHead(draft, "int8")
    assert torch.equal(dequantised(again), dequantised(whole)[TOKENS])
    assert again.copy is few.copy, "in the same memory, which captured graphs go on reading"
    assert torch.equal(dequantised(DraftHead(draft.truncate_vocabulary(None), "int8")), dequantised(whole))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "target_fields",
    [{}, {"logit_scale": 0.25}, {"final_logit_softcapping": 0.5}, {"tie_word_embeddings": True}],
    ids=lambda fields: next(iter(fields), "plain"),
)
@pytest.mark.parametrize("tokens", [None, TOKENS], ids=["whole", "truncated"])
@pytest.mark.parametrize("shape", [(5,), (2, 3), (4, 2, 10)], ids=str)
def test_logits_are_nearly_those_of_the_head(dtype, target_fields, tokens, shape):
    target, draft = make_pair(**target_fields)
    target.to(dtype)
    draft.to(dtype).truncate_vocabulary(tokens)
    predict = predictions(draft, *shape).to(dtype)
    expected = draft.compute_logits(predict).float()
    expected = expected if tokens is None else expected[..., TOKENS]
    logits = DraftHead(draft, "int8").logits(predict).float()
    assert logits.shape == expected.shape
    assert (logits - expected).abs().max() < TOLERANCE * expected.abs().max()


def test_the_heads_bias_counts():
    target, draft = make_pair()
    target.lm_head.bias = torch.nn.Parameter(torch.arange(61.0))
    predict = predictions(draft, 3)
    torch.testing.assert_close(
        DraftHead(draft, "int8").logits(predict), draft.compute_logits(predict), rtol=0, atol=TOLERANCE
    )


def test_the_copy_follows_the_head_and_gives_way_to_it():
    target, draft = make_pair()
    before = DraftHead(draft, "int8").copy
    target.lm_head.weight.data.mul_(-2.0)
    after = DraftHead(draft, "int8")
    assert after.copy is before
    torch.testing.assert_close(dequantised(after), target.lm_head.weight.data, rtol=0, atol=1e-3)
    assert DraftHead(draft).copy is None
    assert torch.equal(DraftHead(draft).logits(predictions(draft, 3)), draft.compute_logits(predictions(draft, 3)))


# ---------------------------------------------------------------------- heads that cannot be read in int8


def warnings_of(caplog, pair) -> list[str]:
    logging.Logger.warning_once.cache_clear()
    pair[1].generation_config.draft_head_dtype = "int8"
    with caplog.at_level(logging.WARNING):
        plain, ours = generate_both(pair, torch.tensor([[5, 6, 7]]), max_new_tokens=4, pad_token_id=0)
    assert ours.sequences.tolist() == plain.sequences.tolist()
    return [record.getMessage() for record in caplog.records if "draft_head_dtype" in record.getMessage()]


def test_a_width_that_the_operator_cannot_read_is_read_as_it_is(caplog):
    """It would read behind the end of the row."""
    pair = make_pair(hidden_size=24, head_dim=8)
    assert warnings_of(caplog, pair) == [
        "`draft_head_dtype` is 'int8', but the LM head is read as it is: features are 24 wide, which is no multiple "
        "of 16."
    ]
    assert DraftHead(pair[1], "int8").copy is None


def test_a_head_with_an_adapter_is_read_as_it_is(caplog):
    target, draft = make_pair()
    adapted = get_peft_model(target, LoraConfig(target_modules=["lm_head"], init_lora_weights=False))
    draft.bind(target)
    (warning,) = warnings_of(caplog, (adapted, draft))
    assert "it is offloaded, sharded, quantised already or has an adapter" in warning
    predict = predictions(draft, 3)
    assert torch.equal(DraftHead(draft, "int8").logits(predict), draft.compute_logits(predict))


def test_without_an_operator_for_its_device_a_head_is_read_as_it_is(caplog, monkeypatch):
    assert draft_head._has_operator(torch.device("cpu"))
    assert not draft_head._has_operator(torch.device("mps"))
    monkeypatch.setattr(draft_head, "_has_operator", lambda device: False)
    (warning,) = warnings_of(caplog, make_pair())
    assert "on a device of type 'cpu' only the Triton kernels could, and they are not available" in warning


@pytest.mark.parametrize("wrong", ["int4", "bfloat16", 8, True])
def test_other_formats_are_refused(wrong):
    target, draft = make_pair()
    draft.generation_config.draft_head_dtype = wrong
    with pytest.raises(ValueError, match=f"`draft_head_dtype` is {wrong!r}, but must be 'int8', which"):
        target.generate(torch.tensor([[5, 6]]), assistant_model=draft, max_new_tokens=3, pad_token_id=0)


# ---------------------------------------------------------------------- generate()


def int8_pair(token_ids=None):
    target, draft = golden_pair()
    draft.config.eos_token_id = None
    draft.generation_config.draft_head_dtype = "int8"
    return target, draft.truncate_vocabulary(token_ids)


@pytest.mark.parametrize("prompt", golden_prompts(), ids=lambda prompt: f"{prompt.shape[1]} tokens")
@pytest.mark.parametrize("token_ids", [None, range(0, 517, 2)], ids=["whole", "truncated"])
def test_greedy_answers_are_those_of_the_target(prompt, token_ids):
    plain, ours = generate_both(int8_pair(token_ids), prompt)
    assert_lossless(plain, ours, prompt.shape[1])


def test_the_drafts_are_nearly_those_of_the_head():
    """Cycles of four prompts, 40 tokens each."""
    num_cycles = []
    for pair in (golden_pair(), int8_pair()):
        answers = [generate_both(pair, prompt)[1] for prompt in golden_prompts()]
        num_cycles.append(sum(len(answer.acceptance_lengths[0]) for answer in answers))
    assert abs(num_cycles[0] - num_cycles[1]) <= 0.1 * num_cycles[0]


def test_greedy_answers_of_a_batch_are_those_of_the_target():
    assert_batch_lossless(int8_pair())


def test_a_compiled_cycle_reads_it_and_is_compiled_once():
    torch.compiler.reset()
    pair, settings = int8_pair(), compiled(fullgraph=True)
    for prompt in golden_prompts()[:2]:
        plain, ours = generate_both(pair, prompt)
        compiled_ours = pair[0].generate(
            prompt,
            assistant_model=pair[1],
            max_new_tokens=40,
            do_sample=False,
            return_dict_in_generate=True,
            **settings,
        )
        assert compiled_ours.sequences.tolist() == plain.sequences.tolist()
        assert compiled_ours.acceptance_lengths == ours.acceptance_lengths
    assert len(backend_of(settings).graphs) == 3
    torch.compiler.reset()


FEW = ("Llama", "Gemma 3, alternating windows", "GPT-2, learned positions")


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(a, id=a.name, marks=() if a.name in FEW else pytest.mark.slow) for a in ARCHITECTURES],
)
def test_greedy_answer_of_every_architecture_is_that_of_plain_decoding(architecture):
    target = make_target(architecture)
    draft = GriffinDraftModel.from_target(target)
    draft.generation_config.update(num_assistant_tokens=6, draft_tree_depth=3, draft_tree_top_k=2)
    draft.generation_config.draft_head_dtype = "int8"
    assert DraftHead(draft, "int8").copy.weight.dtype == torch.int8
    prompt = torch.arange(3, 23).unsqueeze(0)
    plain, ours = (target.generate(prompt, **GREEDY, **more) for more in ({}, {"assistant_model": draft}))
    assert ours.sequences.tolist() == plain.sequences.tolist()
