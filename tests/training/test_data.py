"""Rows in, right-padded batches out."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from transformers_griffin.training.data import GriffinDataCollator, tokenize_row


WORDS = ["<pad>", "<user>", "<bot>", "<end>", "hi", "there", "yes", "no"]
TEMPLATE = (
    "{%- for message in messages %}{%- if message['role'] == 'assistant' %}{{- '<bot> ' }}{%- generation %}"
    "{{- message['content'] + ' <end>' }}{%- endgeneration %}{{- ' ' }}{%- else %}"
    "{{- '<user> ' + message['content'] + ' ' }}{%- endif %}{%- endfor %}"
)
CONVERSATION = {
    "messages": [
        {"role": "user", "content": "hi there"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "no"},
        {"role": "assistant", "content": "hi"},
    ]
}


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", additional_special_tokens=WORDS[1:4], chat_template=TEMPLATE
    )


def test_only_assistant_tokens_of_a_conversation_have_a_loss(tokenizer):
    """<user> hi there <bot> yes <end> <user> no <bot> hi <end>"""
    input_ids, loss_mask = tokenize_row(CONVERSATION, tokenizer, max_length=100)
    assert input_ids == [1, 4, 5, 2, 6, 3, 1, 7, 2, 4, 3]
    assert loss_mask == [0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1]
    assert tokenize_row(CONVERSATION, tokenizer, 5, assistant_only_loss=False) == ([1, 4, 5, 2, 6], [1] * 5)


def test_all_tokens_of_a_text_and_of_a_block_have_a_loss(tokenizer):
    assert tokenize_row({"text": "hi no"}, tokenizer, 100) == ([4, 7], [1, 1])
    assert tokenize_row({"input_ids": torch.tensor([4, 7])}, None, 100) == ([4, 7], [1, 1])
    assert tokenize_row({"input_ids": [4, 7], "loss_mask": [0, 1]}, None, 100) == ([4, 7], [0, 1])


def test_rows_that_cannot_be_understood_say_what_to_do(tokenizer):
    with pytest.raises(ValueError, match="processing_class"):
        tokenize_row({"text": "hi"}, None, 100)
    with pytest.raises(ValueError, match="columns"):
        tokenize_row({"answer": "hi"}, tokenizer, 100)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(ValueError, match="generation"):
        tokenize_row(CONVERSATION, tokenizer, 100)


def test_a_batch_is_padded_on_the_right_and_rows_without_loss_are_counted(tokenizer):
    collator = GriffinDataCollator(tokenizer, max_length=6)
    prompt_only = {"messages": CONVERSATION["messages"][:1]}
    batch = collator([CONVERSATION, prompt_only, {"text": "hi no"}])
    assert batch["input_ids"].tolist() == [[1, 4, 5, 2, 6, 3], [4, 7, 0, 0, 0, 0]]
    assert batch["loss_mask"].tolist() == [[0, 0, 0, 0, 1, 1], [1, 1, 0, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1] * 6, [1, 1, 0, 0, 0, 0]]
    assert collator.num_skipped == 1
    batch = collator([prompt_only, prompt_only])
    assert batch["loss_mask"].tolist() == [[0, 0, 0]]
    assert collator.num_skipped == 3


def test_blocks_of_one_length_need_no_attention_mask():
    batch = GriffinDataCollator()([{"input_ids": [1, 2, 3]}, {"input_ids": [4, 5, 6]}])
    assert batch.keys() == {"input_ids", "loss_mask"}
