"""
Every processor and criterion of transformers shapes and ends the answers of a batch as in plain decoding.

A trained pair and prompts of 6 to 90 tokens, padded on the left, as in `test_batch_settings.py`.
"""

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from generation_helpers import golden_pair, golden_prompts
from test_batch_settings import ENDS, assert_lossless, batch, generate_both
from test_outputs import TOLERANCE
from test_processors import GREEDY_SETTINGS, SAMPLING_SETTINGS
from transformers import LogitsProcessorList, SynthIDTextWatermarkingConfig
from transformers.generation import (
    ConfidenceCriteria,
    LogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
    logits_process,
    stopping_criteria,
)

from transformers_griffin.decoding.choice import TokenChooser
from transformers_griffin.decoding.target_forward import TargetForward


@pytest.fixture(scope="module")
def pair():
    target, draft = golden_pair()
    draft.generation_config.draft_tree_batch_size = 4
    return target, draft


def num_pads() -> torch.Tensor:
    """Of each prompt of the batch."""
    return (batch()["attention_mask"] == 0).sum(dim=1)


# ---------------------------------------------------------------------- processors

SYNTH_ID = SynthIDTextWatermarkingConfig(ngram_len=4, keys=[65, 80, 14, 50], context_history_size=64)
MORE_SETTINGS: dict[str, dict[str, Any]] = {
    "renormalized": {"renormalize_logits": True, "repetition_penalty": 1.3},
    "invalid_values_removed": {"remove_invalid_values": True, "repetition_penalty": 1.3},
    "guidance_negative_prompts": {
        "guidance_scale": 1.5,
        "negative_prompt_ids": torch.tensor([[5, 6, 7], [7, 6, 5], [0, 8, 9], [8, 9, 8]]),
        "negative_prompt_attention_mask": torch.tensor([[1, 1, 1], [1, 1, 1], [0, 1, 1], [1, 1, 1]]),
    },
}


@pytest.mark.parametrize("name", MORE_SETTINGS)
def test_greedy_answers_equal_plain_decoding(pair, name):
    """Other settings are in `test_batch_settings.py`."""
    plain, ours = generate_both(pair, eos_token_id=[*ENDS, 11], **MORE_SETTINGS[name])
    assert ours.sequences.tolist() == plain.sequences.tolist()


def test_forced_first_tokens_after_prompts_of_one_token(pair):
    inputs = {"input_ids": torch.tensor([[415], [7], [99]])}
    plain, ours = generate_both(pair, inputs=inputs, forced_bos_token_id=77, repetition_penalty=1.3)
    assert_lossless(plain, ours, num_rows=3)
    assert ours.sequences[:, 1].tolist() == [77] * 3


def test_repetition_penalty_that_ignores_another_part_of_each_prompt(pair):
    """The rows that stay keep their part when others end."""
    ignored = batch()["input_ids"].shape[1] - torch.tensor([0, 2, 4, 1])
    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.5, prompt_ignore_length=ignored)])
    plain, ours = generate_both(pair, eos_token_id=ENDS, logits_processor=processors)
    assert_lossless(plain, ours)
    assert len(set(map(len, ours.acceptance_lengths))) > 1
    without, _ = generate_both(pair, eos_token_id=ENDS, repetition_penalty=1.5)
    assert plain.sequences.tolist() != without.sequences.tolist()


def test_watermark_with_a_memory_marks_a_batch_as_in_plain_decoding(pair):
    """All rows advance in step, with as many random numbers a token, so that equal seeds give equal answers."""
    answers = []
    for assistant in ({}, {"assistant_model": pair[1]}):
        torch.manual_seed(0)
        answer = pair[0].generate(
            **batch(),
            watermarking_config=SYNTH_ID,
            do_sample=True,
            max_new_tokens=16,
            eos_token_id=ENDS,
            **assistant,
        )
        answers.append(answer.tolist())
    assert answers[1] == answers[0]


# Their models decode codebooks, speech, or with an encoder.
OF_OTHER_MODELS = {
    "AlternatingCodebooksLogitsProcessor",
    "BarkEosPrioritizerLogitsProcessor",
    "ClassifierFreeGuidanceLogitsProcessor",
    "DiaClassifierFreeGuidanceLogitsProcessor",
    "DiaEOSChannelFilterLogitsProcessor",
    "DiaEOSDelayPatternLogitsProcessor",
    "WhisperNoSpeechDetection",
    "WhisperTimeStampLogitsProcessor",
}


class _Seen(Exception):
    """Nothing has to be decoded."""


def test_no_processor_of_transformers_is_left_out(pair, monkeypatch):
    """What the settings here and in `test_batch_settings.py` stand for, against the classes that there are."""
    tried: set[str] = set()

    def init(self: TokenChooser, processors: LogitsProcessorList, *_: Any) -> None:
        tried.update(type(processor).__name__ for processor in processors)
        raise _Seen

    monkeypatch.setattr(TokenChooser, "__init__", init)
    greedy = [*GREEDY_SETTINGS.values(), *MORE_SETTINGS.values(), {"forced_bos_token_id": 77}]
    sampled = [settings for settings, _ in SAMPLING_SETTINGS.values()] + [{"watermarking_config": SYNTH_ID}]
    for settings in [
        *({"do_sample": False} | settings for settings in greedy),
        {"do_sample": False, "prefix_allowed_tokens_fn": lambda *_: [1]},
        *({"do_sample": True} | settings for settings in sampled),
    ]:
        with pytest.raises(_Seen):
            pair[0].generate(**batch(), assistant_model=pair[1], max_new_tokens=60, **settings)
    there_are = {
        name
        for name, cls in inspect.getmembers(logits_process, inspect.isclass)
        if issubclass(cls, LogitsProcessor) and cls is not LogitsProcessor
    }
    assert there_are - tried == OF_OTHER_MODELS


# ---------------------------------------------------------------------- criteria


@pytest.mark.parametrize("with_eos", [False, True])
def test_time_limit_ends_every_row_at_its_next_token(pair, monkeypatch, with_eos):
    """
    Time is up while the third tree is verified: every row keeps the first token of this cycle and no more, or, in step
    without an end of sequence, all rows keep one.
    """
    target, draft = pair
    unlimited, full = generate_both(pair)
    clock = SimpleNamespace(now=0.0, time=lambda: clock.now)
    num_cycles = 0
    original = TargetForward.verify

    def verify(self: TargetForward, *args: Any) -> Any:
        nonlocal num_cycles
        num_cycles += 1
        clock.now = 60.0 * (num_cycles == 3)
        return original(self, *args)

    monkeypatch.setattr(TargetForward, "verify", verify)
    monkeypatch.setattr(stopping_criteria, "time", clock)
    ours = target.generate(
        **batch(),
        assistant_model=draft,
        max_time=30.0,
        max_new_tokens=24,
        do_sample=False,
        return_dict_in_generate=True,
        eos_token_id=516 if with_eos else None,
    )
    length = batch()["input_ids"].shape[1]
    assert [cycles[-1] for cycles in ours.acceptance_lengths] == [1] * 4
    for row, (limited, whole) in enumerate(zip(ours.acceptance_lengths, full.acceptance_lengths, strict=True)):
        assert len(limited) == 3
        assert limited[:2] == whole[:2] or not with_eos
        end = length + 1 + sum(limited)
        assert ours.sequences[row, :end].tolist() == unlimited.sequences[row, :end].tolist()
        assert not ours.sequences[row, end:].any()


def test_confidence_is_asked_about_as_in_plain_decoding(pair):
    """A criterion of transformers that looks at the newest scores of the first row."""
    wanted = {"output_scores": True, "return_dict_in_generate": True, "do_sample": False, "max_new_tokens": 24}
    plain = pair[0].generate(**batch(), **wanted)
    confidence = [float(s[0].softmax(dim=-1).max()) for s in plain.scores]
    threshold = min(confidence) + 1e-4
    criteria = StoppingCriteriaList([ConfidenceCriteria(threshold)])
    plain, ours = generate_both(pair, output_scores=True, stopping_criteria=criteria)
    assert plain.sequences.shape[1] - batch()["input_ids"].shape[1] == confidence.index(min(confidence)) + 1
    assert ours.sequences.tolist() == plain.sequences.tolist()


# ---------------------------------------------------------------------- sampling, and what it was drawn from


def test_scores_of_the_samples_of_a_batch_are_those_they_were_drawn_from(pair):
    """Temperature 0.5 doubles the logits and top-k 3 leaves three; the logits are those of each answer by itself."""
    target, draft = pair
    torch.manual_seed(0)
    output = target.generate(
        **batch(),
        assistant_model=draft,
        max_new_tokens=20,
        do_sample=True,
        temperature=0.5,
        top_k=3,
        eos_token_id=list(range(9, 517, 25)),
        output_scores=True,
        output_logits=True,
        return_dict_in_generate=True,
    )
    length, num_new = batch()["input_ids"].shape[1], [1 + sum(cycles) for cycles in output.acceptance_lengths]
    assert len(set(num_new)) > 1
    assert len(output.scores) == len(output.logits) == max(num_new)
    for row, (pads, count) in enumerate(zip(num_pads().tolist(), num_new, strict=True)):
        scores, logits = (
            torch.stack([step[row] for step in steps[:count]]) for steps in (output.scores, output.logits)
        )
        answer = output.sequences[row : row + 1, pads : length + count]
        with torch.no_grad():
            alone = target(answer).logits[0, -count - 1 : -1]
        torch.testing.assert_close(logits, alone, **TOLERANCE)
        kept = scores > float("-inf")
        assert kept.sum(dim=1).tolist() == [3] * count
        assert kept.gather(1, answer[0, -count:, None]).all()
        torch.testing.assert_close(scores[kept], 2 * logits[kept])


@pytest.mark.parametrize("settings", [{"num_return_sequences": 2}, {"num_return_sequences": 3, "max_length": 99}])
def test_several_greedy_answers_are_refused_as_in_plain_decoding(pair, settings):
    for assistant in ({}, {"assistant_model": pair[1]}):
        with pytest.raises(ValueError, match="num_return_sequences"):
            pair[0].generate(golden_prompts()[0], do_sample=False, **settings, **assistant)
