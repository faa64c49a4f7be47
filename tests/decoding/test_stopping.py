"""An answer ends where plain decoding ends it: to the token, and after the same questions to the same criteria."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from generation_helpers import CASE, assert_lossless, generate_both, golden_pair, golden_prompts, new_tokens
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerFast, StoppingCriteria
from transformers.generation import StoppingCriteriaList, stopping_criteria

from conftest import golden_json


@pytest.fixture(scope="module")
def pair():
    return golden_pair()


@pytest.mark.parametrize("run", range(len(golden_json(CASE, "generate_eos")["runs"])))
def test_end_of_sequence_token_inside_a_cycle_ends_the_answer(pair, run):
    """The released code goes on for up to 4 tokens; the golden file says where the answer ends."""
    target, draft = pair
    golden = golden_json(CASE, "generate_eos")["runs"][run]
    output = target.generate(
        torch.tensor([golden["prompt_ids"]]),
        assistant_model=draft,
        max_new_tokens=96,
        do_sample=False,
        eos_token_id=golden["eos_token_id"],
        return_dict_in_generate=True,
    )
    assert output.sequences[0].tolist() == golden["expected_trimmed_output_ids"]
    assert sum(output.acceptance_lengths[0]) == output.sequences.shape[1] - len(golden["prompt_ids"]) - 1


@pytest.mark.parametrize("eos_token_id", [374, [374], [502, 374], [9, 139, 374], 292], ids=str)
def test_the_first_of_several_end_of_sequence_tokens_ends_the_answer(pair, eos_token_id):
    """The answer opens 292 95 139 324 256 267 337 236 11 149 502 242 374; 292 is the prefill's token."""
    prompt = golden_prompts()[0]
    plain, ours = generate_both(pair, prompt, eos_token_id=eos_token_id)
    assert_lossless(plain, ours, prompt.shape[1])
    assert new_tokens(ours, prompt)[-1] in (eos_token_id if isinstance(eos_token_id, list) else [eos_token_id])


@pytest.mark.parametrize("max_new_tokens", [1, 2, 3, 5, 64])
def test_length_limits_are_met_to_the_token(pair, max_new_tokens):
    for prompt in golden_prompts()[:2]:
        for limit in ({"max_new_tokens": max_new_tokens}, {"max_length": prompt.shape[1] + max_new_tokens}):
            plain, ours = generate_both(pair, prompt, **({"max_new_tokens": None} | limit))
            assert_lossless(plain, ours, prompt.shape[1])
            assert ours.sequences.shape[1] == prompt.shape[1] + max_new_tokens


def test_without_a_limit_twenty_tokens_are_generated_as_in_plain_decoding(pair):
    prompt = golden_prompts()[0]
    plain, ours = generate_both(pair, prompt, max_new_tokens=None)
    assert_lossless(plain, ours, prompt.shape[1])
    assert ours.sequences.shape[1] == prompt.shape[1] + 20


# ---------------------------------------------------------------------- criteria


def two_letter_tokenizer() -> PreTrainedTokenizerFast:
    """Token i is written as two letters, aa, ab, ac, ... (the last 26 as one), and texts have no gaps."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [letters[i // 26] + letters[i % 26] for i in range(517 - 26)] + list(letters)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="aa"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_stop_strings_end_the_answer_even_across_two_tokens(pair):
    """
    Tokens 256 and 267, the fifth and sixth of the answer, read "jw" and "kh": "wk" ends the answer after the sixth.
    """
    prompt, tokenizer = golden_prompts()[0], two_letter_tokenizer()
    for stop_strings, length in ((["wk"], 6), (["zzzz", "jwk"], 6), (["zzzz"], 40)):
        plain, ours = generate_both(pair, prompt, stop_strings=stop_strings, tokenizer=tokenizer)
        assert_lossless(plain, ours, prompt.shape[1])
        assert len(new_tokens(ours, prompt)) == length


class Log:
    """Writes down, in one list, what a processor and a stopping criterion are shown."""

    def __init__(self, stop_at: int | None, as_tensor: bool):
        self.events: list[tuple[str, list[int], int | None]] = []
        self.stop_at, self.as_tensor = stop_at, as_tensor
        log = self

        class Criterion(StoppingCriteria):
            def __call__(self, input_ids, scores, **kwargs):
                log.events.append(("criterion", input_ids[0].tolist(), None if scores is None else len(scores)))
                is_done = log.stop_at is not None and input_ids.shape[1] >= log.stop_at
                return torch.tensor([is_done]) if log.as_tensor else is_done

        class Processor(LogitsProcessor):
            def __call__(self, input_ids, scores):
                log.events.append(("processor", input_ids[0].tolist(), None))
                return scores

        self.criteria = StoppingCriteriaList([Criterion()])
        self.processors = LogitsProcessorList([Processor()])


@pytest.mark.parametrize("output_scores", [False, True])
@pytest.mark.parametrize("with_processor", [False, True])
@pytest.mark.parametrize(
    "ending",
    [{"stop_at": 19}, {"stop_at": 20, "as_tensor": False}, {"max_new_tokens": 21}, {"eos_token_id": 52}],
    ids=str,
)
def test_criteria_and_processors_see_what_plain_decoding_shows_them(pair, ending, with_processor, output_scores):
    """The same sequences with as many scores, once each, in the same order, the last token included."""
    target, draft = pair
    prompt, settings = golden_prompts()[0], dict(ending)
    stop_at, as_tensor = settings.pop("stop_at", None), settings.pop("as_tensor", True)
    answers, logs = [], []
    for assistant in ({}, {"assistant_model": draft}):
        log = Log(stop_at, as_tensor)
        answer = target.generate(
            prompt,
            stopping_criteria=log.criteria,
            logits_processor=log.processors if with_processor else None,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=output_scores,
            **({"max_new_tokens": 40} | settings),
            **assistant,
        )
        answers.append(answer.sequences.tolist())
        logs.append(log.events)
    assert answers[1] == answers[0]
    assert logs[1] == logs[0]
    assert len(logs[1]) == (2 if with_processor else 1) * (len(answers[1][0]) - prompt.shape[1])


def test_criteria_are_asked_while_sampling(pair):
    """Once about each token; the criterion ends the answer at the 13th."""
    target, draft = pair
    prompt = golden_prompts()[0]
    log = Log(prompt.shape[1] + 13, as_tensor=True)
    answer = target.generate(
        prompt, assistant_model=draft, do_sample=True, max_new_tokens=40, stopping_criteria=log.criteria
    )
    assert answer.shape[1] == prompt.shape[1] + 13
    assert [event[1] for event in log.events] == [answer[0, : prompt.shape[1] + i].tolist() for i in range(1, 14)]


def test_time_limit_ends_the_answer_at_the_token_at_which_time_is_up(pair, monkeypatch):
    """Every look at the clock takes a second, one for the start and one a token: time is up at token 8."""
    target, draft = pair
    prompt, lengths = golden_prompts()[0], []
    for assistant in ({}, {"assistant_model": draft}):
        clock = itertools.count()
        monkeypatch.setattr(stopping_criteria, "time", SimpleNamespace(time=lambda clock=clock: next(clock)))
        answer = target.generate(prompt, max_time=7.5, max_new_tokens=40, do_sample=False, **assistant)
        lengths.append(answer.shape[1] - prompt.shape[1])
    assert lengths == [8, 8]
