"""Streamers receive the same text as in plain decoding, while it is generated."""

import threading

import pytest
import torch
from batches import pad_left
from generation_helpers import golden_pair, golden_prompts
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, TextIteratorStreamer, TextStreamer
from transformers.generation.streamers import BaseStreamer


@pytest.fixture(scope="module")
def pair():
    return golden_pair()


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Token i is the word w<i>."""
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(517)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


class RecordingStreamer(BaseStreamer):
    def __init__(self):
        self.pieces: list[list[int]] = []
        self.num_ends = 0

    def put(self, value):
        assert self.num_ends == 0
        assert value.device.type == "cpu"
        self.pieces.append(value.flatten().tolist())

    def end(self):
        self.num_ends += 1


@pytest.mark.parametrize("settings", [{}, {"eos_token_id": 374}, {"max_new_tokens": 1}, {"do_sample": True}], ids=str)
def test_streamer_gets_the_prompt_then_each_cycle_then_the_end(pair, settings):
    """One piece for the prompt, one for the prefill's token, one for each cycle; nothing behind the end."""
    target, draft = pair
    prompt, streamer = golden_prompts()[0], RecordingStreamer()
    output = target.generate(
        prompt,
        assistant_model=draft,
        streamer=streamer,
        return_dict_in_generate=True,
        **({"max_new_tokens": 30, "do_sample": False} | settings),
    )
    assert [token for piece in streamer.pieces for token in piece] == output.sequences[0].tolist()
    assert [len(piece) for piece in streamer.pieces] == [prompt.shape[1], 1, *output.acceptance_lengths[0]]
    assert streamer.num_ends == 1


@pytest.mark.parametrize("skip_prompt", [False, True])
def test_text_streamer_prints_the_text_of_plain_decoding(pair, skip_prompt, capsys):
    target, draft = pair
    prompt, printed = golden_prompts()[1], []
    for assistant in ({}, {"assistant_model": draft}):
        streamer = TextStreamer(word_tokenizer(), skip_prompt=skip_prompt)
        answer = target.generate(prompt, streamer=streamer, max_new_tokens=20, do_sample=False, **assistant)
        printed.append(capsys.readouterr().out)
    assert printed[1] == printed[0]
    first = prompt.shape[1] if skip_prompt else 0
    assert printed[1] == " ".join(f"w{token}" for token in answer[0, first:].tolist()) + "\n"


def test_iterator_streamer_hands_text_to_another_thread(pair):
    target, draft = pair
    prompt = golden_prompts()[1]
    streamer = TextIteratorStreamer(word_tokenizer(), skip_prompt=True, timeout=60)
    settings = {"max_new_tokens": 20, "do_sample": False}
    thread = threading.Thread(
        target=target.generate, args=(prompt,), kwargs={"streamer": streamer, "assistant_model": draft} | settings
    )
    thread.start()
    text = "".join(streamer)
    thread.join()
    plain = target.generate(prompt, **settings)
    assert text == " ".join(f"w{token}" for token in plain[0, prompt.shape[1] :].tolist())


def test_text_streamer_refuses_a_batch_as_in_plain_decoding(pair):
    target, draft = pair
    batch = torch.ones(2, 3, dtype=torch.long)
    for assistant in ({}, {"assistant_model": draft}):
        with pytest.raises(ValueError, match="only supports batch size 1"):
            target.generate(batch, streamer=TextStreamer(word_tokenizer()), max_new_tokens=4, **assistant)


@pytest.mark.parametrize("in_step", [False, True])
def test_streamer_that_takes_a_batch_gets_a_token_of_every_row_at_a_time(pair, in_step):
    """As in plain decoding: padding for a row that has ended (token 139 is the first one's third) or is not there."""
    target, draft = pair
    batch = pad_left(golden_prompts()[:3])
    criteria = [lambda input_ids, scores, **_: torch.zeros(len(input_ids), dtype=torch.bool)] if in_step else None
    pieces = []
    for assistant in ({}, {"assistant_model": draft}):
        streamer = RecordingStreamer()
        target.generate(
            **batch,
            streamer=streamer,
            max_new_tokens=20,
            eos_token_id=139,
            do_sample=False,
            stopping_criteria=criteria,
            **assistant,
        )
        assert streamer.num_ends == 1
        pieces.append(streamer.pieces)
    assert pieces[1] == pieces[0]
    assert [len(piece) for piece in pieces[1][1:]] == [3] * 20
