"""A run of `prepare_features` or `regenerate_answers` that is small, the same every time, and can be killed."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from datasets import Dataset


sys.path.append(str(Path(__file__).parents[1]))  # for the script of test_prepare_killed.py

from chats import word_tokenizer

from conftest import tiny_llama
from transformers_griffin.training import prepare_features, regenerate_answers
from transformers_griffin.training.packing import pack_columns


def token_rows(count: int = 10) -> Dataset:
    """Rows of 3 to 12 tokens of tiny_llama's 61, the first without loss."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 13, (count,), generator=generator).tolist()
    ids = [torch.randint(0, 61, (length,), generator=generator).tolist() for length in lengths]
    return Dataset.from_dict({"input_ids": ids, "loss_mask": [[0] + [1] * (len(row) - 1) for row in ids]})


def packed_rows() -> Dataset:
    return Dataset.from_dict(pack_columns(token_rows()[:], max_length=16))


def chat_rows(count: int = 5) -> Dataset:
    """Conversations of one to three turns."""
    turn = [{"role": "user", "content": "hi there"}, {"role": "assistant", "content": "yes"}]
    return Dataset.from_list([{"messages": turn * (1 + number % 3)} for number in range(count)])


def run_features(path: Path) -> None:
    prepare_features(tiny_llama(), word_tokenizer(), token_rows(), path, batch_size=2, shard_size=3)


def run_answers(path: Path) -> None:
    # Half of the answers end, because half of the tokens do.
    regenerate_answers(
        tiny_llama(),
        word_tokenizer(extra_words=53),
        chat_rows(),
        path,
        max_length=60,
        max_new_tokens=4,
        batch_size=2,
        shard_size=2,
        do_sample=True,
        eos_token_id=list(range(0, 61, 4)),
    )


def files_of(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def kill_at_call(owner: object, name: str, number: int) -> None:
    """Replaces a function such that its call `number` (from 1) kills this process in its middle."""
    function: Callable = getattr(owner, name)
    calls = 0

    def killing(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    setattr(owner, name, killing)
