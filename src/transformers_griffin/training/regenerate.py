"""
Replaces the answers of conversations by the target's own: a draft must imitate the target, not the data.

The target answers wherever the assistant spoke, and after a last message of the user; each answer continues what was
regenerated before it. A conversation ends early, and is marked `truncated`, with an answer that fills
`max_new_tokens`; and before a prompt that leaves no room for one.

    data           user  assistant  user  assistant        user
    regenerated    user  ANSWER     user  ANSWER           user  ANSWER

Next: `trainer.py`.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.utils import logging

from ..modeling_griffin import GriffinDraftModel, moved_to
from .conversations import Message, render
from .data import CONVERSATION_COLUMNS, row_messages
from .fingerprints import describe_target, describe_tokenizer
from .shards import Columns, ShardWriter
from .sources import check_tokenizer


logger = logging.get_logger(__name__)

KIND = "conversations"
FEATURES = Features(
    {"messages": List({"role": Value("string"), "content": Value("string")}), "truncated": Value("bool")}
)
SPEAKERS = ("system", "developer", "user", "assistant")


class _Conversation:
    """A conversation on its way: what was said, and what is still to be said or answered."""

    def __init__(self, messages: list[Message]):
        self.said: list[Message] = []
        self.is_truncated = False
        self._num_kept = 0  # messages up to the target's last answer
        ends_with_question = bool(messages) and messages[-1]["role"] == "user"
        self._coming = [*messages, *([{"role": "assistant"}] if ends_with_question else [])]

    def advance(self) -> bool:
        """Moves to the next answer; False if there is none."""
        while self._coming:
            message = self._coming.pop(0)
            if message["role"] != "assistant" or not self._is_asked():
                self.said.append(message)
            elif self.said[-1]["role"] != "assistant":  # one question has one answer
                return True
        return False

    def _is_asked(self) -> bool:
        return any(message["role"] == "user" for message in self.said)

    def answer(self, text: str, is_truncated: bool) -> None:
        """Adds an answer of the target; one without an end ends the conversation."""
        self.said.append({"role": "assistant", "content": text})
        self._num_kept = len(self.said)
        if is_truncated:
            self.is_truncated = True
            self.stop()

    def stop(self) -> None:
        """Ends the conversation; what was to come does not."""
        self._coming = []

    def row(self) -> dict[str, Any] | None:
        """What comes of it, up to the target's last answer; None without one."""
        return {"messages": self.said[: self._num_kept], "truncated": self.is_truncated} if self._num_kept else None


def regenerate_answers(
    target: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    path: str | os.PathLike,
    max_length: int = 2048,
    max_new_tokens: int = 512,
    batch_size: int = 8,
    shard_size: int = 256,
    seed: int = 0,
    draft: GriffinDraftModel | None = None,
    **generate_kwargs: Any,
) -> None:
    """
    Writes conversations with answers of the target, shard by shard; continues where a killed run stopped.

    [`load_training_data`] opens the result: rows of `messages` and `truncated`.

    Args:
        target ([`~transformers.PreTrainedModel`]): the target, on its device and in its dtype.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): the target's, with a chat template.
        rows ([`~datasets.Dataset`]): with `messages` or `conversations`. Rows with other speakers than system, user
            and assistant (tools) are left out, and so are rows without an answer; both are counted in the log.
        path (`os.PathLike`): directory to write.
        max_length (`int`, defaults to 2048): tokens of a conversation, prompt and answer together.
        max_new_tokens (`int`, defaults to 512): tokens of an answer.
        batch_size (`int`, defaults to 8): conversations answered at once.
        shard_size (`int`, defaults to 256): rows of a shard, the most that a kill can lose.
        seed (`int`, defaults to 0): of sampling, to which every batch adds the number of its first row.
        draft ([`GriffinDraftModel`], *optional*):
            Speeds the target up and leaves its answers as they are: greedy ones token for token in float32, sampled
            ones in their law. For a second round of training with the draft of the first.
        generate_kwargs: further arguments of `generate()`, for example `do_sample`, `temperature`, `top_p`.

    Effects:
        Seeds the global random number generators.

    Raises:
        OSError: if the disk comes to have too little space. Finished shards stay.
        ValueError: if the rows are no conversations, tokenizer and target do not fit, or an earlier run in this
            directory had other settings.
    """
    check_tokenizer(tokenizer, target)
    if max_new_tokens >= max_length:
        raise ValueError(
            f"`max_new_tokens` is {max_new_tokens}, which leaves no room for a prompt within `max_length` "
            f"{max_length}."
        )
    if not set(CONVERSATION_COLUMNS) & set(rows.column_names):
        raise ValueError(
            f"The data has the columns {', '.join(rows.column_names)}, but answers can be regenerated in "
            f"{' or '.join(CONVERSATION_COLUMNS)} only."
        )
    settings = {
        "target": describe_target(target),
        "tokenizer": describe_tokenizer(tokenizer),
        "dtype": str(target.dtype).removeprefix("torch."),
        "rows": {"num_rows": len(rows), "sha256": _fingerprint(rows)},
        "max_length": max_length,
        "batch_size": batch_size,
        "shard_size": shard_size,
        "seed": seed,
        "max_new_tokens": max_new_tokens,
        "generate": json.dumps(generate_kwargs, sort_keys=True),
        # With another draft an interrupted run would go on with other random numbers.
        "draft": None if draft is None else draft.config.name_or_path,
    }
    num_shards = -(-len(rows) // shard_size)
    writer = ShardWriter(path, KIND, settings, num_shards, about={"target": target.config.name_or_path})
    answerer = _Answerer(target, tokenizer, max_length, max_new_tokens, generate_kwargs, draft)
    compute = partial(_with_answers, answerer, seed)
    writer.write_all(rows.with_format(None), compute, FEATURES, batch_size, shard_size, "Answers")
    num_written = sum(shard["num_rows"] for shard in writer.shards)
    if num_written < len(rows):
        logger.warning(f"{len(rows) - num_written} of {len(rows)} conversations have no answer and are left out.")


def _fingerprint(rows: Dataset) -> str:
    column = next(column for column in CONVERSATION_COLUMNS if column in rows.column_names)
    digest = hashlib.sha256()
    for batch in rows.select_columns(column).with_format(None).iter(batch_size=1000):
        digest.update(json.dumps(batch).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Answerer:
    """The target with all that decides how it answers."""

    target: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    max_new_tokens: int
    generate_kwargs: dict[str, Any]
    draft: GriffinDraftModel | None

    @property
    def end_tokens(self) -> list[int]:
        """What ends an answer: as `generate()` has it, else the tokenizer's."""
        ids = self.generate_kwargs.get("eos_token_id", self.target.generation_config.eos_token_id)
        ids = self.tokenizer.eos_token_id if ids is None else ids
        return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)

    def answer_all(self, conversations: list[_Conversation]) -> None:
        """Answers a batch of conversations, all their next turns at a time."""
        while waiting := [conversation for conversation in conversations if conversation.advance()]:
            prompts = [
                render(conversation.said, self.tokenizer, add_generation_prompt=True) for conversation in waiting
            ]
            fitting = []
            for conversation, prompt in zip(waiting, prompts, strict=True):
                if len(prompt) + self.max_new_tokens <= self.max_length:
                    fitting.append((conversation, prompt))
                else:
                    conversation.stop()
            if fitting:
                answers = self._generate([prompt for _, prompt in fitting])
                for (conversation, _), tokens in zip(fitting, answers, strict=True):
                    self._add(conversation, tokens)

    def _generate(self, prompts: list[list[int]]) -> list[list[int]]:
        """The new tokens of left-padded prompts, padded on the right."""
        embedding = self.target.get_input_embeddings()
        padding = [max(map(len, prompts)) - len(prompt) for prompt in prompts]
        pad_id = next(iter([*_known(self.tokenizer.pad_token_id), *self.end_tokens]), 0)
        input_ids = [[pad_id] * n + prompt for n, prompt in zip(padding, prompts, strict=True)]
        attention_mask = [[0] * n + [1] * len(prompt) for n, prompt in zip(padding, prompts, strict=True)]
        output = self.target.generate(  # type: ignore[operator]  # every causal language model has it
            moved_to(embedding, torch.tensor(input_ids)),
            attention_mask=moved_to(embedding, torch.tensor(attention_mask)),
            **{
                "pad_token_id": pad_id,
                **self.generate_kwargs,
                "max_new_tokens": self.max_new_tokens,
                "eos_token_id": self.end_tokens or None,
                **({} if self.draft is None else {"assistant_model": self.draft}),
            },
        )
        return output[:, max(map(len, prompts)) :].tolist()

    def _add(self, conversation: _Conversation, tokens: list[int]) -> None:
        end = next((i for i, token in enumerate(tokens) if token in self.end_tokens), None)
        text: Any = self.tokenizer.decode(tokens[:end], skip_special_tokens=True)
        conversation.answer(text, is_truncated=end is None)


def _known(value: int | None) -> list[int]:
    return [] if value is None else [value]


def _with_answers(answerer: _Answerer, seed: int, columns: Columns, first_row: int) -> Columns:
    """The regenerated conversations of some rows."""
    set_seed(seed + first_row)
    of_rows = [row_messages(dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True)]
    conversations = [
        _Conversation(messages)
        for messages in of_rows
        if messages and all(message["role"] in SPEAKERS and "tool_calls" not in message for message in messages)
    ]
    answerer.answer_all(conversations)
    answered = [row for conversation in conversations if (row := conversation.row())]
    return {name: [row[name] for row in answered] for name in FEATURES}


__all__ = ["regenerate_answers"]
