"""Counting the tokens that answers are made of, and choosing the most frequent ones."""

import re

import pytest
import torch
from chats import CONVERSATION, word_tokenizer
from datasets import Dataset
from prepare_helpers import packed_rows, run_features, token_rows

from conftest import tiny_llama
from transformers_griffin.training import count_tokens, frequent_tokens, load_features, token_counts, tokenize_dataset


def test_only_what_assistants_say_is_counted():
    """Answers of the conversation: yes <end>, hi <end>."""
    tokens = tokenize_dataset(Dataset.from_list([CONVERSATION] * 3), word_tokenizer(), max_length=64)
    assert count_tokens(tokens, vocab_size=9).tolist() == [0, 0, 0, 6, 3, 0, 3, 0, 0]


@pytest.mark.parametrize("rows_at_once", [1, 3, 1000])
def test_counts_are_those_of_a_loop_over_all_tokens(monkeypatch, rows_at_once):
    monkeypatch.setattr(token_counts, "ROWS_AT_ONCE", rows_at_once)
    for rows in (token_rows(), packed_rows(), token_rows().select([4, 2])):
        expected = [0] * 61
        for row in rows:
            for token, has_loss in zip(row["input_ids"], row["loss_mask"], strict=True):
                expected[token] += has_loss
        assert count_tokens(rows, 61).tolist() == expected


def test_without_a_mask_all_tokens_count():
    rows = Dataset.from_dict({"input_ids": [[1, 2], [2]]})
    assert count_tokens(rows, 4).tolist() == [0, 1, 2, 0]


def test_stored_features_can_be_counted_too(tmp_path):
    run_features(tmp_path)
    counts = count_tokens(load_features(tmp_path, tiny_llama()), 61)
    assert counts.tolist() == count_tokens(token_rows(), 61).tolist()


def test_tokens_of_another_tokenizer_are_refused():
    with pytest.raises(ValueError, match="The data have the token 60, but the target has a vocabulary of 59"):
        count_tokens(Dataset.from_dict({"input_ids": [[60, 3]]}), 59)


def test_the_most_frequent_tokens_are_chosen_ties_by_the_lower_id():
    counts = torch.tensor([5, 0, 9, 5, 0, 1])
    assert [frequent_tokens(counts, n).tolist() for n in (1, 2, 3, 5)] == [[2], [0, 2], [0, 2, 3], [0, 1, 2, 3, 5]]
    assert frequent_tokens(counts, 6).tolist() == [0, 1, 2, 3, 4, 5]


def test_some_tokens_are_chosen_whatever_their_counts():
    counts = torch.tensor([5, 0, 9, 5, 0, 1])
    assert frequent_tokens(counts, 3, always=[4, 1, 4]).tolist() == [1, 2, 4]
    assert frequent_tokens(counts, 2, always=[4, 1]).tolist() == [1, 4]


@pytest.mark.parametrize(
    ("num_tokens", "always", "message"),
    [
        (0, (), "`num_tokens` is 0, but must be from 1 (tokens to have in any case) to 3"),
        (4, (), "`num_tokens` is 4, but must be from 1 (tokens to have in any case) to 3 (the target's vocabulary)."),
        (1, (0, 2), "`num_tokens` is 1, but must be from 2 (tokens to have in any case) to 3"),
        (2, (3,), "`always` holds 3, but the target's tokens are 0 to 2."),
    ],
)
def test_impossible_choices_are_refused(num_tokens, always, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        frequent_tokens(torch.tensor([1, 2, 3]), num_tokens, always)
