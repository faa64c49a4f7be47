"""The target's own answers: what it is asked, where a conversation ends, and that batches change nothing."""

import json

import pytest
import torch
from chats import word_tokenizer
from datasets import Dataset
from prepare_helpers import chat_rows, files_of, run_answers

from conftest import tiny_llama
from transformers_griffin import GriffinDraftModel
from transformers_griffin.training import load_training_data, regenerate_answers


TOKENIZER = word_tokenizer(extra_words=53)
END_TOKENS = list(range(0, 61, 4))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def own_answer(messages: list[dict], end_tokens: list[int]) -> tuple[str, bool]:
    """The oracle: plain greedy decoding of one prompt; the text, and whether it had no end."""
    prompt = TOKENIZER.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": end_tokens or None}
    tokens = tiny_llama().generate(**prompt, **settings)[0, prompt["input_ids"].shape[1] :].tolist()
    is_ended = bool(tokens) and tokens[-1] in end_tokens
    return TOKENIZER.decode(tokens[:-1] if is_ended else tokens, skip_special_tokens=True), not is_ended


def own_conversation(messages: list[dict], end_tokens: list[int]) -> dict:
    said: list[dict] = []
    for message in messages:
        if message["role"] != "assistant":
            said.append(message)
            continue
        text, is_truncated = own_answer(said, end_tokens)
        said.append(assistant(text))
        if is_truncated:
            return {"messages": said, "truncated": True}
    return {"messages": said, "truncated": False}


def regenerate(path, rows, target=None, **settings) -> list[dict]:
    settings = {"max_length": 100, "max_new_tokens": 6, "eos_token_id": END_TOKENS, "do_sample": False} | settings
    regenerate_answers(target or tiny_llama(), TOKENIZER, Dataset.from_list(rows), path, **settings)
    return load_training_data(path).to_list()


def test_every_turn_continues_what_was_regenerated_before_it(tmp_path):
    """Prompts of unequal length in one batch, against one prompt at a time."""
    questions = ("hi there w20", "w11", "no w33 w34 w35 yes", "w50 w51", "w9", "w17 w18")
    rows = [
        {"messages": [user(first), assistant("data"), user(second), assistant("data")]}
        for first in questions
        for second in questions[:3]
    ]
    found = regenerate(tmp_path / "out", rows)
    assert found == [own_conversation(row["messages"], END_TOKENS) for row in rows]
    assert {row["truncated"] for row in found} == {True, False}
    assert any(len(row["messages"]) == 4 for row in found)


def test_the_target_answers_questions_that_have_no_answer_yet(tmp_path):
    rows = [{"messages": [user("hi")]}, {"messages": [user("hi"), assistant("a"), assistant("b")]}]
    expected = own_conversation([user("hi"), assistant("")], END_TOKENS)
    assert regenerate(tmp_path / "out", rows) == [expected, expected]


def test_a_greeting_stays_and_the_system_speaks_first(tmp_path):
    greeted = [{"role": "system", "content": "w9"}, assistant("w40"), user("hi"), assistant("")]
    (row,) = regenerate(tmp_path / "out", [{"messages": greeted}])
    text, is_truncated = own_answer(greeted[:3], END_TOKENS)
    assert row == {"messages": [*greeted[:3], assistant(text)], "truncated": is_truncated}
    assert load_training_data(tmp_path / "out").column_names == ["messages", "truncated"]


def test_an_answer_without_an_end_ends_the_conversation(tmp_path):
    rows = [{"messages": [user("hi"), assistant(""), user("no"), assistant("")]}]
    (row,) = regenerate(tmp_path / "out", rows, eos_token_id=None)
    assert row["truncated"]
    assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
    assert len(row["messages"][1]["content"].split()) <= 6


def test_a_prompt_without_room_ends_the_conversation_before_it(tmp_path):
    """<user> hi <bot> are 3 tokens; with 6 new ones, 9 fit, and no second question does."""
    rows = [{"messages": [user("w9"), assistant(""), user("no"), assistant("")]}, {"messages": [user("hi there no")]}]
    (row,) = regenerate(tmp_path / "out", rows, max_length=9, eos_token_id=list(range(61)))
    assert row == {"messages": [user("w9"), assistant("")], "truncated": False}


def test_conversations_that_cannot_be_answered_are_left_out(tmp_path):
    rows = [
        {"messages": [user("hi"), {"role": "tool", "content": "42"}, assistant("a")]},
        {"messages": [{"role": "system", "content": "w9"}, assistant("hello")]},
        {"messages": []},
        {"messages": [user("hi")]},
    ]
    assert len(regenerate(tmp_path / "out", rows, shard_size=1)) == 1


def test_sampling_is_repeatable_and_follows_the_seed(tmp_path):
    rows = [{"messages": [user(f"w{number}")]} for number in range(8, 14)]
    settings = {"do_sample": True, "temperature": 2.0, "shard_size": 2}
    first, again, other = (
        regenerate(tmp_path / str(run), rows, seed=seed, **settings) for run, seed in enumerate((0, 0, 1))
    )
    assert first == again
    assert first != other


def test_a_draft_changes_no_answer(tmp_path):
    """Batches of unequal prompts whose answers end at different times."""
    target = tiny_llama()
    draft = GriffinDraftModel.from_target(target)
    rows = [{"messages": [user(f"w{number} hi" * (number % 4 + 1)), assistant(""), user("no")]} for number in range(9)]
    settings = {"max_new_tokens": 12, "shard_size": 3, "batch_size": 3, "eos_token_id": END_TOKENS}
    cycles = []
    handle = draft.register_forward_hook(lambda *_: cycles.append(1))
    with_draft = regenerate(tmp_path / "drafted", rows, target, draft=draft, **settings)
    handle.remove()
    assert cycles
    assert with_draft == regenerate(tmp_path / "plain", rows, target, **settings)
    with pytest.raises(ValueError, match="begun with other settings"):
        regenerate(tmp_path / "drafted", rows, target, **settings)


def test_settings_of_an_earlier_run_must_be_the_same(tmp_path):
    run_answers(tmp_path / "out")
    before = files_of(tmp_path / "out")
    run_answers(tmp_path / "out")
    assert files_of(tmp_path / "out") == before
    assert json.loads(before["manifest.json"])["settings"]["batch_size"] == 2
    for rows, settings, message in (
        (chat_rows(4), {}, "rows.num_rows is 4, was 5"),
        (chat_rows(), {"seed": 1}, "seed is 1, was 0"),
        (chat_rows(), {"temperature": 0.5}, 'generate is {"temperature": 0.5}, was {"do_sample'),
    ):
        settings = {"max_length": 60, "max_new_tokens": 4, "batch_size": 2, "shard_size": 2, **settings}
        with pytest.raises(ValueError, match="begun with other settings") as error:
            regenerate_answers(tiny_llama(), TOKENIZER, rows, tmp_path / "out", **settings)
        assert message in str(error.value)


def test_what_is_no_conversation_is_refused(tmp_path):
    texts = Dataset.from_dict({"text": ["hi"]})
    with pytest.raises(ValueError, match="has the columns text, but answers can be regenerated in messages or"):
        regenerate_answers(tiny_llama(), TOKENIZER, texts, tmp_path)
    with pytest.raises(ValueError, match="`max_new_tokens` is 512, which leaves no room for a prompt within"):
        regenerate_answers(tiny_llama(), TOKENIZER, chat_rows(), tmp_path, max_length=512)


def test_the_oracle_and_the_target_use_many_different_tokens():
    """Otherwise equal answers would prove little."""
    answers = [own_answer([user(f"w{number}")], [])[0].split() for number in range(8, 20)]
    assert len({token for answer in answers for token in answer}) > 8
    assert torch.tensor([len(answer) for answer in answers]).max() > 3
