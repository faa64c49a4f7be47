"""Answers that are told while they run: all tokens, who guessed them, and an end when nobody listens."""

import threading
import time

import pytest
import torch
from demo_helpers import mini_pair

from transformers_griffin.demo_page import Pair, TreeSettings, stream_answer


SETTINGS = {"max_new_tokens": 24, "do_sample": False}
TREE = TreeSettings(num_draft_tokens=10, depth=5, width=2)


@pytest.fixture(scope="module")
def pair() -> Pair:
    return mini_pair()


@pytest.fixture(scope="module")
def prompt(pair) -> torch.Tensor:
    return pair.tokenizer("A train travels 60 miles in 2 hours.", return_tensors="pt").input_ids


def last_of(states):
    return list(states)[-1]


def test_plain_and_drafted_answers_are_those_of_generate(pair, prompt):
    expected = pair.target.generate(prompt, **SETTINGS)[0, prompt.shape[1] :]
    plain, drafted = (last_of(stream_answer(pair, prompt, tree, **SETTINGS)) for tree in (None, TREE))
    assert plain.tokens == drafted.tokens == expected.tolist()
    for progress in (plain, drafted):
        text = "".join(piece for piece, _ in progress.pieces)
        assert text == pair.tokenizer.decode(expected, skip_special_tokens=True)


def test_only_tokens_on_an_accepted_path_count_as_guessed(pair, prompt):
    plain, drafted = (last_of(stream_answer(pair, prompt, tree, **SETTINGS)) for tree in (None, TREE))
    assert not any(is_guessed for _, is_guessed in plain.pieces)
    assert (plain.acceptance_lengths, plain.tree) == ([], None)
    # The token of the prefill and one of every cycle are the target's own; the last cycle may have been cut.
    num_guessed = sum(is_guessed for _, is_guessed in drafted.pieces)
    num_own = len(drafted.tokens) - num_guessed
    assert num_own in (len(drafted.acceptance_lengths), len(drafted.acceptance_lengths) + 1)
    assert sum(drafted.acceptance_lengths) == len(drafted.tokens) - 1
    assert drafted.tau == (len(drafted.tokens) - 1) / len(drafted.acceptance_lengths)


def test_a_character_of_several_tokens_arrives_whole(pair):
    """`é` and `✓` are two and three byte tokens for the mini tokenizer, which has neither."""
    from tokenizers.decoders import DecodeStream

    from transformers_griffin.demo_page.streaming import Progress, _Emitted, _extend

    tokens = pair.tokenizer.encode("é✓!", add_special_tokens=False)
    assert len(tokens) > 3
    progress, text = Progress(), DecodeStream()
    for token in tokens:
        _extend(progress, _Emitted([token], 0.1, None), text, pair.tokenizer)
    assert [piece for piece, _ in progress.pieces] == ["é", "✓", "!"]


def test_the_tree_of_the_settings_is_drafted(pair, prompt, monkeypatch):
    before = pair.draft.generation_config
    monkeypatch.setattr(before, "draft_level_cost", None)  # the whole tree in every cycle
    drafted = last_of(stream_answer(pair, prompt, TreeSettings(7, 4, 3), **SETTINGS))
    assert len(drafted.tree.tokens) == 8
    assert TreeSettings.of(pair.draft) == TreeSettings(7, 4, 3)
    pair.draft.generation_config = before


def test_settings_that_form_no_tree_are_refused_and_the_draft_keeps_its_own(pair, prompt):
    own = TreeSettings.of(pair.draft)
    with pytest.raises(ValueError, match=r"`num_assistant_tokens` is 50, but a tree of `draft_tree_depth`=2"):
        last_of(stream_answer(pair, prompt, TreeSettings(50, 2, 2), **SETTINGS))
    assert TreeSettings.of(pair.draft) == own
    assert not pair.lock.locked()


def test_what_generate_refuses_reaches_the_reader(pair):
    with pytest.raises(ValueError, match="num_beams"):
        last_of(stream_answer(pair, torch.tensor([[5, 9]]), TREE, max_new_tokens=4, num_beams=2))


def test_closing_the_iterator_ends_the_answer(pair, prompt):
    """An answer of 1,500 tokens would take many times the second that is allowed here."""
    answer = stream_answer(pair, prompt, TREE, max_new_tokens=1500, min_new_tokens=1500, do_sample=False)
    next(answer)
    started = time.perf_counter()
    answer.close()
    assert not pair.lock.locked()
    assert time.perf_counter() - started < 1


def test_two_answers_never_run_at_once(pair, prompt, monkeypatch):
    """Four readers; `generate()` notes when it is entered and left."""
    running, most = [], []
    generate = pair.target.generate

    def noted(*args, **kwargs):
        running.append(1)
        most.append(len(running))
        try:
            return generate(*args, **kwargs)
        finally:
            running.pop()

    monkeypatch.setattr(pair.target, "generate", noted)
    readers = [
        threading.Thread(target=lambda tree=tree: last_of(stream_answer(pair, prompt, tree, **SETTINGS)))
        for tree in (None, TREE) * 2
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert most == [1] * 4
