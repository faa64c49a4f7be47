"""The methods with real (tiny, random) models: what they ask of `generate()`, and what is measured of it."""

import logging
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import transformers_griffin as tg
from conftest import tiny_llama
from transformers_griffin.evaluation import Prompt
from transformers_griffin.evaluation.answers import CycleCounter, answer_batch, cut_at_end
from transformers_griffin.evaluation.methods import make_decoders


PROMPTS = [Prompt("words", "1", ("w1 w2 w3 w1 w2", "w7 w8")), Prompt("words", "2", ("w4 w5 w6 w4 w5 w6 w4", "w9"))]


@pytest.fixture(scope="module")
def loaded(pair):
    target = AutoModelForCausalLM.from_pretrained(pair / "target").eval()
    draft = tg.GriffinDraftModel.from_pretrained(pair / "draft").eval()
    return target, AutoTokenizer.from_pretrained(pair / "target"), draft


@pytest.fixture
def stock_assistance():
    """transformers' own assisted decoding calls what transformers deprecates; that is not ours to mend."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


def rows_of(results):
    return {(s.setting, s.method): s for s in results.summaries if s.domain == "all"}


def test_all_methods_give_the_same_greedy_answers_and_what_has_cycles_has_a_tau(loaded, stock_assistance):
    target, tokenizer, draft = loaded
    results = tg.benchmark(
        target,
        tokenizer,
        {"griffin": draft},
        assistant=tiny_llama(seed=1),
        methods=["prompt_lookup"],
        prompts=PROMPTS,
        max_new_tokens=12,
        temperatures=[0.0, 1.0],
    )
    rows = rows_of(results)
    assert [method for setting, method in rows if setting == "float32 T=0"] == [
        *("plain", "prompt_lookup", "sps", "griffin")
    ]
    for (setting, method), row in rows.items():
        assert (row.num_prompts, row.num_answers, row.num_tokens) == (2, 4, 48)
        assert row.num_identical == (4 if setting == "float32 T=0" else None)
        assert (row.tau is None) == (method == "plain")
        assert row.speedup_over_eager is not None
        assert row.first_token_seconds > 0
        assert (row.draft_share is None) == (method != "griffin")
    griffin = rows["float32 T=0", "griffin"]
    assert 0 < griffin.draft_share + griffin.verify_share < 1
    assert sum(griffin.acceptance_by_depth) == pytest.approx(griffin.tau.value - 1)
    assert len(griffin.misaligned_rates) == 3
    assert griffin.misaligned_rates == sorted(griffin.misaligned_rates), "who has left an answer does not come back"
    assert griffin.peak_memory_bytes is None, "measured on CUDA only"
    assert results.methods[3].tree == {"num_assistant_tokens": 8, "draft_tree_depth": 3, "draft_tree_top_k": 2}
    assert results.methods[3].num_parameters == sum(p.numel() for p in draft.parameters())


def test_cycles_of_stock_assisted_decoding_add_up_to_the_answer(loaded, stock_assistance):
    """A target as its own assistant: every draft is right, so cycles are long, and their tokens are all of it."""
    target, _, _ = loaded
    prompt = torch.tensor([[1, 2, 3]])
    answer = answer_batch(
        target,
        prompt,
        torch.ones_like(prompt),
        assistant_model=tiny_llama(),
        streamer=CycleCounter(),
        max_new_tokens=20,
        do_sample=False,
        pad_token_id=0,
    )
    assert sum(answer.acceptance_lengths[0]) == len(answer.new_tokens[0]) == 20
    assert max(answer.acceptance_lengths[0]) > 1
    assert answer.draft_seconds is None, "only our own drafts are timed"


def test_plain_decoding_in_batches_is_what_single_rows_give(loaded):
    target, tokenizer, _ = loaded
    settings = {"methods": [], "prompts": PROMPTS, "max_new_tokens": 8}
    rows = rows_of(tg.benchmark(target, tokenizer, batch_sizes=[1, 2], **settings))
    assert rows["float32 T=0", "plain"].num_tokens == rows["float32 T=0 batch 2", "plain"].num_tokens == 32
    assert rows["float32 T=0 batch 2", "plain"].num_answers == 4


def test_a_row_ends_where_its_answer_ends():
    assert cut_at_end([5, 7, 0, 0], {7}) == [5, 7]
    assert cut_at_end([5, 6], {7}) == [5, 6]
    assert cut_at_end([5, 6], set()) == [5, 6]


def test_the_static_cache_is_made_once_and_is_empty_for_every_answer(loaded):
    """Of 70 tokens and batch size 1: rounded up to 128; a longer answer takes a new one."""
    target, _, _ = loaded
    compiled = make_decoders(target, ["plain_compiled"])[1]
    first = compiled.generate_kwargs(1, 70)
    cache = first["past_key_values"]
    target.generate(
        torch.tensor([[1, 2, 3]]), past_key_values=cache, max_new_tokens=4, do_sample=False, pad_token_id=0
    )
    assert cache.get_seq_length() > 0
    again = compiled.generate_kwargs(1, 128)
    assert again["past_key_values"] is cache
    assert cache.get_seq_length() == 0
    assert again["compile_config"] is first["compile_config"], "another one would compile again"
    assert compiled.generate_kwargs(1, 129)["past_key_values"] is not cache
    assert compiled.generate_kwargs(2, 70)["past_key_values"] is not cache


def test_a_draft_runs_a_second_time_with_a_compiled_cycle(loaded, monkeypatch):
    """Compilation itself is tested elsewhere: here it is asked for, and the answers and their cycles are the same."""
    target, tokenizer, draft = loaded
    asked = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: asked.append(function.__name__) or function)
    settings = {"methods": [], "prompts": PROMPTS, "max_new_tokens": 8}
    rows = rows_of(tg.benchmark(target, tokenizer, {"mine": draft}, compiles_drafts=True, **settings))
    assert {"_round", "_forward_tree", "_keep_path"} == set(asked)
    eager, compiled = (rows["float32 T=0", name] for name in ("mine", "mine_compiled"))
    assert compiled.num_identical == eager.num_identical == 4
    assert compiled.tau == eager.tau
    assert compiled.draft_share is not None
    with pytest.raises(ValueError, match="A draft is called 'mine_compiled', which is another method's name"):
        make_decoders(target, [], drafts={"mine": draft, "mine_compiled": draft}, compiles_drafts=True)


@pytest.mark.slow
def test_plain_compiled_runs_compiled_on_a_cpu_and_gives_the_same_answers(loaded):
    target, tokenizer, _ = loaded
    settings = {"methods": ["plain_compiled"], "prompts": PROMPTS, "max_new_tokens": 8}
    row = rows_of(tg.benchmark(target, tokenizer, **settings))["float32 T=0", "plain_compiled"]
    assert "_compiled_call" in vars(target), "generate() compiled the forward"
    assert row.num_identical == row.num_answers == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": ["medusa"]}, "Unknown method 'medusa'; give plain, plain_compiled, prompt_lookup"),
        ({"drafts": {"sps": None}}, "A draft is called 'sps', which is another method's name."),
        ({"assistant": tiny_llama(vocab_size=60)}, "The assistant has a vocabulary of 60 tokens, the target of 61."),
        (
            {"drafts": {"griffin": tg.GriffinDraftModel.from_target(tiny_llama(hidden_size=64))}},
            "made for a target with hidden size 64, but the target's is 32",
        ),
    ],
    ids=["method", "name", "assistant", "draft"],
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(loaded, arguments, message):
    target, tokenizer, _ = loaded
    with pytest.raises(ValueError, match=re.escape(message)):
        tg.benchmark(target, tokenizer, **arguments)
