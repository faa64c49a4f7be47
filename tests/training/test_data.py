"""Rows in, right-padded batches out."""

import pytest
import torch
from chats import CONVERSATION, FORGETFUL, MARKED, MASK, SHAREGPT, TOKENS, UNMARKED, word_tokenizer

from transformers_griffin.training.data import GriffinDataCollator, tokenize_row


@pytest.fixture
def tokenizer():
    return word_tokenizer()


@pytest.mark.parametrize("template", [MARKED, UNMARKED], ids=["marked", "unmarked"])
@pytest.mark.parametrize("row", [CONVERSATION, SHAREGPT], ids=["messages", "conversations"])
def test_only_assistant_tokens_of_a_conversation_have_a_loss(template, row):
    """<user> hi there <bot> yes <end> <user> no <bot> hi <end>"""
    tokenizer = word_tokenizer(template)
    assert tokenize_row(row, tokenizer, max_length=100) == (TOKENS, MASK)
    assert tokenize_row(row, tokenizer, 5, assistant_only_loss=False) == (TOKENS[:5], [1] * 5)


def test_arrows_empty_fields_of_a_message_do_not_reach_the_template(tokenizer):
    messages = [{**message, "from": None, "tool_calls": None} for message in CONVERSATION["messages"]]
    assert tokenize_row({"messages": messages}, tokenizer, 100) == (TOKENS, MASK)


def test_a_greeting_that_nobody_asked_for_is_context():
    """<bot> hi <end> <user> no <bot> yes <end>"""
    greeting = {"role": "assistant", "content": "hi"}
    messages = [greeting, {"role": "user", "content": "no"}, {"role": "assistant", "content": "yes"}]
    input_ids, loss_mask = tokenize_row({"messages": messages}, word_tokenizer(UNMARKED), 100)
    assert input_ids == [2, 4, 3, 1, 7, 2, 6, 3]
    assert loss_mask == [0, 0, 0, 0, 0, 0, 1, 1]


def test_a_template_that_rewrites_earlier_answers_is_refused_unless_there_are_none():
    tokenizer = word_tokenizer(FORGETFUL)
    one_turn = {"messages": CONVERSATION["messages"][:2]}
    assert tokenize_row(one_turn, tokenizer, 100) == (TOKENS[:6], MASK[:6])
    with pytest.raises(ValueError, match=r"up to message 1 is rendered as .*yes <end>.*\(from token 4\)") as error:
        tokenize_row(CONVERSATION, tokenizer, 100)
    assert "{% generation %}" in str(error.value)
    assert tokenize_row(CONVERSATION, tokenizer, 100, assistant_only_loss=False)[1] == [1] * 10


def test_a_generation_prompt_that_answers_do_not_begin_with_is_refused():
    head, _, tail = UNMARKED.rpartition("<bot>")
    tokenizer = word_tokenizer(f"{head}no{tail}")
    with pytest.raises(ValueError, match="before message 1 is rendered as"):
        tokenize_row(CONVERSATION, tokenizer, 100)


def test_all_tokens_of_a_text_and_of_a_block_have_a_loss(tokenizer):
    assert tokenize_row({"text": "hi no"}, tokenizer, 100) == ([4, 7], [1, 1])
    assert tokenize_row({"input_ids": torch.tensor([4, 7])}, None, 100) == ([4, 7], [1, 1])
    assert tokenize_row({"input_ids": [4, 7], "loss_mask": [0, 1]}, None, 100) == ([4, 7], [0, 1])
    assert tokenize_row({"messages": None}, tokenizer, 100) == ([], [])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": "hi"}, r"columns \['answer'\]"),
        ({"conversations": [{"from": "martian", "value": "hi"}]}, "from 'martian', but must be from one of human"),
        ({"conversations": [{"speaker": "me"}]}, r"fields \['speaker'\], but needs `role` and `content`"),
    ],
)
def test_rows_that_cannot_be_understood_say_what_to_do(tokenizer, row, message):
    with pytest.raises(ValueError, match=message):
        tokenize_row(row, tokenizer, 100)


def test_text_needs_a_tokenizer():
    with pytest.raises(ValueError, match="processing_class"):
        tokenize_row({"text": "hi"}, None, 100)


def test_a_batch_is_padded_on_the_right_and_rows_without_loss_are_counted(tokenizer):
    collator = GriffinDataCollator(tokenizer, max_length=6)
    prompt_only = {"messages": CONVERSATION["messages"][:1]}
    batch = collator([CONVERSATION, prompt_only, {"text": "hi no"}])
    assert batch["input_ids"].tolist() == [TOKENS[:6], [4, 7, 0, 0, 0, 0]]
    assert batch["loss_mask"].tolist() == [MASK[:6], [1, 1, 0, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1] * 6, [1, 1, 0, 0, 0, 0]]
    assert collator.num_skipped == 1
    batch = collator([prompt_only, prompt_only])
    assert batch["loss_mask"].tolist() == [[0, 0, 0]]
    assert collator.num_skipped == 3


def test_blocks_of_one_length_need_no_attention_mask():
    batch = GriffinDataCollator()([{"input_ids": [1, 2, 3]}, {"input_ids": [4, 5, 6]}])
    assert batch.keys() == {"input_ids", "loss_mask"}


def test_a_single_token_is_padded_to_a_pair():
    batch = GriffinDataCollator()([{"input_ids": [7]}])
    assert batch["input_ids"].tolist() == [[7, 0]]
    assert batch["attention_mask"].tolist() == [[1, 0]]


def test_documents_of_packed_rows_take_the_place_of_the_attention_mask():
    rows = [{"input_ids": [4, 5, 6], "documents": [1, 1, 2]}, {"input_ids": [7, 7], "documents": [1, 2]}]
    batch = GriffinDataCollator()(rows)
    assert batch.keys() == {"input_ids", "loss_mask", "documents"}
    assert batch["documents"].tolist() == [[1, 1, 2], [1, 2, 0]]
    assert batch["loss_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


def test_stored_features_are_padded_with_zeros_and_cut_like_the_tokens():
    features = torch.arange(8, dtype=torch.bfloat16).view(4, 2)
    rows = [{"input_ids": [4, 5, 6, 7], "features": features}, {"input_ids": [7, 7], "features": features[:2]}]
    batch = GriffinDataCollator(max_length=3)(rows)
    assert batch["features"].dtype == torch.bfloat16
    assert batch["features"].tolist() == [[[0, 1], [2, 3], [4, 5]], [[0, 1], [2, 3], [0, 0]]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
