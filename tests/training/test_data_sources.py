"""Data as users have it: every source gives the same rows, and what is wrong is named."""

import gzip
import json
import logging

import datasets
import pytest
from chats import CONVERSATION, MASK, SHAREGPT, TOKENS, UNMARKED, word_tokenizer
from datasets import Dataset, DatasetDict

from conftest import tiny_llama
from transformers_griffin.training import load_training_data, tokenize_dataset
from transformers_griffin.training.data import row_messages
from transformers_griffin.training.sources import check_tokenizer


PROMPT_ONLY = {"messages": CONVERSATION["messages"][:1]}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_jsonl(path, rows) -> str:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return str(path)


def sources(directory) -> dict:
    """One conversation in every form that a source may have."""
    rows = Dataset.from_list([CONVERSATION])
    rows.save_to_disk(directory / "saved")
    DatasetDict({"train": rows, "test": rows}).save_to_disk(directory / "splits")
    (directory / "folder").mkdir()
    write_jsonl(directory / "folder" / "train.jsonl", [CONVERSATION])
    return {
        "dataset": rows,
        "dict": DatasetDict({"train": rows}),
        "jsonl": write_jsonl(directory / "a.jsonl", [CONVERSATION]),
        "gzip": write_jsonl(directory / "b.jsonl.gz", [CONVERSATION]),
        "sharegpt": write_jsonl(directory / "c.jsonl", [SHAREGPT]),
        "saved": directory / "saved",
        "splits": str(directory / "splits"),
        "folder": str(directory / "folder"),
    }


def test_every_source_gives_the_same_conversation(tmp_path):
    for name, source in sources(tmp_path).items():
        assert [row_messages(row) for row in load_training_data(source)] == [CONVERSATION["messages"]], name


def test_several_files_are_one_dataset(tmp_path):
    files = [write_jsonl(tmp_path / f"{name}.jsonl", [{"text": name}]) for name in ("hi", "no")]
    assert load_training_data(files)["text"][:] == ["hi", "no"]
    assert load_training_data(tmp_path / "*.jsonl")["text"][:] == ["hi", "no"]


def test_rows_from_files_stay_on_disk(tmp_path):
    rows = load_training_data(write_jsonl(tmp_path / "a.jsonl", [SHAREGPT]))
    tokenized = tokenize_dataset(rows, word_tokenizer(), 100)
    assert tokenized.cache_files
    assert tokenized[:] == {"input_ids": [TOKENS], "loss_mask": [MASK]}


def test_sources_that_cannot_be_used_say_why(tmp_path):
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "hi"}\n{"text": ')
    DatasetDict({"test": Dataset.from_list([CONVERSATION])}).save_to_disk(tmp_path / "splits")
    for source, error, message in (
        (tmp_path / "missing.jsonl", FileNotFoundError, "missing.jsonl does not exist"),
        (broken, ValueError, "broken.jsonl cannot be read as JSON rows"),
        (tmp_path / "splits", ValueError, "has the splits test, but not 'train'"),
        (write_jsonl(tmp_path / "a.jsonl", [{"answer": "hi"}]), ValueError, "has the columns answer, but rows need"),
        (Dataset.from_dict({"text": []}), ValueError, "The dataset has no rows"),
        (Dataset.from_list([CONVERSATION]).to_iterable_dataset(), ValueError, "is a IterableDataset"),
    ):
        with pytest.raises(error, match=message):
            load_training_data(source)


def test_rows_without_an_assistant_token_are_left_out_and_counted(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    rows = Dataset.from_list([PROMPT_ONLY, CONVERSATION, PROMPT_ONLY])
    tokenized = tokenize_dataset(rows, word_tokenizer(), max_length=6)
    assert tokenized["input_ids"][:] == [TOKENS[:6]]
    assert "2 of 3 rows have no token with a loss within 6 tokens and are left out" in caplog.text
    # The prompt alone fills four tokens.
    with pytest.raises(ValueError, match="None of 3 rows has a token with a loss within `max_length` 4"):
        tokenize_dataset(rows, word_tokenizer(), max_length=4)


def test_a_row_that_cannot_be_tokenized_is_named():
    rows = Dataset.from_list([CONVERSATION, {"messages": [{"role": "user", "content": None}]}])
    with pytest.raises(ValueError, match="Row 1 of the dataset cannot be tokenized"):
        tokenize_dataset(rows, word_tokenizer(UNMARKED), max_length=6)


def test_rows_can_be_packed_and_packed_rows_stay():
    rows = Dataset.from_list([{"text": "hi there yes"}, {"text": "no"}, {"text": "hi there"}])
    packed = tokenize_dataset(rows, word_tokenizer(), max_length=4, pack=True)
    assert packed["input_ids"][:] == [[4, 5, 6, 7], [4, 5]]
    assert packed["documents"][:] == [[1, 1, 1, 2], [1, 1]]
    assert tokenize_dataset(packed, None, max_length=4, pack=True) is packed


def test_a_tokenizer_with_more_tokens_than_the_target_is_refused():
    target = tiny_llama()  # 61 tokens
    check_tokenizer(word_tokenizer(extra_words=53), target)
    with pytest.raises(ValueError, match=r"has 62 tokens, but the target .* has a vocabulary of 61"):
        check_tokenizer(word_tokenizer(extra_words=54), target)
