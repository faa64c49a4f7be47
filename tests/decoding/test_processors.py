"""What shapes the target's distribution in plain `generate()` shapes it with a draft, and sees the same prefixes."""

import pytest
import torch
from generation_helpers import assert_lossless, generate_both, golden_pair, golden_prompts, new_tokens
from transformers import LogitsProcessor, LogitsProcessorList, WatermarkingConfig
from transformers.generation import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)


# The first prompt's plain answer opens 292 95 139 324 256 267 337 236 11 149 502 242 374 267 152 52 487 ...
GREEDY_SETTINGS = {
    "repetition_penalty": {"repetition_penalty": 1.3},
    "repetition_penalty_strong": {"repetition_penalty": 5.0},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 3.0},
    "no_repeat_ngram": {"no_repeat_ngram_size": 2},
    "encoder_no_repeat_ngram": {"encoder_no_repeat_ngram_size": 1},
    "min_new_tokens": {"min_new_tokens": 30, "eos_token_id": [324, 374]},
    "min_length": {"min_length": 30, "eos_token_id": [324, 374]},
    "bad_words": {"bad_words_ids": [[374], [139, 324]]},
    "forced_eos": {"forced_eos_token_id": 7, "eos_token_id": 7},
    "suppress_tokens": {"suppress_tokens": [139, 267]},
    "begin_suppress_tokens": {"begin_suppress_tokens": [292]},
    "sequence_bias": {"sequence_bias": {(374,): -8.0, (139, 324): -8.0, (95, 500): 9.0}},
    "exponential_decay": {"exponential_decay_length_penalty": (5, 1.3), "eos_token_id": 11},
    "guidance": {"guidance_scale": 2.0},
    "guidance_negative_prompt": {"guidance_scale": 1.5, "negative_prompt_ids": torch.tensor([[5, 6, 7]])},
    "watermark": {"watermarking_config": WatermarkingConfig(bias=6.0)},
    "watermark_selfhash": {"watermarking_config": WatermarkingConfig(bias=6.0, seeding_scheme="selfhash")},
    "several": {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "bad_words_ids": [[374]], "min_new_tokens": 40},
}

# Settings of sampling with the processors that they stand for.
SAMPLING_SETTINGS = {
    "temperature": ({"temperature": 0.6}, [TemperatureLogitsWarper(0.6)]),
    "top_k": ({"top_k": 5}, [TopKLogitsWarper(5)]),
    "top_p": ({"top_p": 0.7}, [TopPLogitsWarper(0.7)]),
    "min_p": ({"min_p": 0.2}, [MinPLogitsWarper(0.2)]),
    "typical": ({"typical_p": 0.5}, [TypicalLogitsWarper(0.5)]),
    "epsilon": ({"epsilon_cutoff": 0.05}, [EpsilonLogitsWarper(0.05)]),
    "eta": ({"eta_cutoff": 0.05}, [EtaLogitsWarper(0.05)]),
    "top_h": ({"top_h": 0.3}, [TopHLogitsWarper(0.3)]),
    "all": (
        {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.01},
        [TemperatureLogitsWarper(1.3), TopKLogitsWarper(20), TopPLogitsWarper(0.9), MinPLogitsWarper(0.01)],
    ),
}


@pytest.fixture(scope="module")
def pair():
    return golden_pair()


@pytest.fixture(scope="module")
def unconstrained(pair):
    """Plain answers without any setting."""
    target, _ = pair
    return [target.generate(prompt, max_new_tokens=40, do_sample=False) for prompt in golden_prompts()]


@pytest.mark.parametrize("name", GREEDY_SETTINGS)
def test_greedy_answers_equal_plain_decoding(pair, unconstrained, name):
    """Two prompts; each setting changes at least one of the answers, or it would prove nothing."""
    num_changed = 0
    for prompt, without in zip(golden_prompts()[:2], unconstrained, strict=False):
        plain, ours = generate_both(pair, prompt, **GREEDY_SETTINGS[name])
        assert_lossless(plain, ours, prompt.shape[1])
        num_changed += plain.sequences.tolist() != without.tolist()
    assert num_changed > 0


def test_forced_first_token_after_a_prompt_of_one_token(pair):
    prompt = torch.tensor([[415]])
    plain, ours = generate_both(pair, prompt, forced_bos_token_id=77)
    assert_lossless(plain, ours, 1)
    assert new_tokens(ours, prompt)[0] == 77


def test_prefix_constraint_is_asked_as_in_plain_decoding(pair):
    """The function allows 20 tokens that depend on the last one; it is always asked about batch row 0."""
    target, draft = pair
    prompt, calls = golden_prompts()[0], []

    def allowed_after(batch_id: int, prefix: torch.Tensor) -> list[int]:
        calls.append((batch_id, prefix.tolist()))
        return [(int(prefix[-1]) * 7 + i) % 517 for i in range(20)]

    answers, logs = [], []
    for assistant in ({}, {"assistant_model": draft}):
        answers.append(
            target.generate(
                prompt, max_new_tokens=24, do_sample=False, prefix_allowed_tokens_fn=allowed_after, **assistant
            ).tolist()
        )
        logs.append(calls.copy())
        calls.clear()
    assert answers[1] == answers[0]
    assert logs[1] == logs[0]
    assert {batch_id for batch_id, _ in logs[1]} == {0}


class CountingProcessor(LogitsProcessor):
    """Keeps state: writes down every prefix and forbids each call's argmax every third call."""

    def __init__(self):
        self.prefixes: list[list[int]] = []

    def __call__(self, input_ids, scores):
        self.prefixes.append(input_ids[0].tolist())
        if len(self.prefixes) % 3 == 0:
            scores = scores.scatter(1, scores.argmax(dim=-1, keepdim=True), float("-inf"))
        return scores


@pytest.mark.parametrize("ending", [{"max_new_tokens": 33}, {"eos_token_id": [502, 52, 11]}], ids=["length", "eos"])
@pytest.mark.parametrize("do_sample", [False, True])
def test_stateful_processor_sees_the_prefixes_of_plain_decoding_once_and_in_order(pair, ending, do_sample):
    """Not even a prefix that goes on behind the end; with equal seeds, samples are then equal as well."""
    target, draft = pair
    for prompt in golden_prompts():
        answers, logs = [], []
        for assistant in ({}, {"assistant_model": draft}):
            processor = CountingProcessor()
            torch.manual_seed(1)
            settings = {
                "do_sample": do_sample,
                "max_new_tokens": 40,
                "temperature": 0.5 if do_sample else None,
            } | ending
            answer = target.generate(
                prompt, logits_processor=LogitsProcessorList([processor]), **settings, **assistant
            )
            answers.append(answer[0].tolist())
            logs.append(processor.prefixes)
        assert answers[1] == answers[0]
        assert logs[1] == logs[0]
        assert logs[1] == [answers[0][:length] for length in range(prompt.shape[1], len(answers[0]))]


class InPlaceProcessor(LogitsProcessor):
    """Forbids even tokens by writing into the scores that it is given."""

    def __call__(self, input_ids, scores):
        scores[:, ::2] = float("-inf")
        return scores


def test_processor_that_writes_into_its_scores_changes_only_its_own(pair):
    """The returned logits are the target's own, not what the processor made of them."""
    prompt = golden_prompts()[1]
    processors = LogitsProcessorList([InPlaceProcessor()])
    plain, ours = generate_both(pair, prompt, logits_processor=processors, output_logits=True)
    assert_lossless(plain, ours, prompt.shape[1])
    assert all(token % 2 for token in new_tokens(ours, prompt))
    assert all(torch.isfinite(logits).all() for logits in ours.logits)


# ---------------------------------------------------------------------- sampling


@pytest.mark.parametrize("top", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}], ids=str)
def test_sampling_that_leaves_one_token_is_greedy_decoding(pair, unconstrained, top):
    target, draft = pair
    for prompt, greedy in zip(golden_prompts(), unconstrained, strict=True):
        answer = target.generate(prompt, assistant_model=draft, max_new_tokens=40, do_sample=True, **top)
        assert answer.tolist() == greedy.tolist()


@pytest.mark.parametrize("name", SAMPLING_SETTINGS)
def test_samples_are_reproducible_and_among_the_allowed_tokens(pair, name):
    """
    Equal seeds give equal answers and other seeds others; no token has score -inf under the setting's processors,
    applied here to a forward over the finished answer.
    """
    target, draft = pair
    settings, processors = SAMPLING_SETTINGS[name]
    prompt = golden_prompts()[2]
    answers = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        answers.append(
            target.generate(
                prompt, assistant_model=draft, max_new_tokens=32, do_sample=True, **({"top_k": 0} | settings)
            )
        )
    assert answers[0].tolist() == answers[1].tolist()
    assert answers[0].tolist() != answers[2].tolist()

    with torch.no_grad():
        logits = target(answers[0]).logits[0, prompt.shape[1] - 1 : -1]
    allowed = LogitsProcessorList(processors)(answers[0], logits)
    chosen = allowed.gather(1, answers[0][0, prompt.shape[1] :, None])
    assert (allowed == float("-inf")).any() == (name != "temperature")
    assert (chosen > float("-inf")).all()
