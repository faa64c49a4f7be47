"""
From rows of a dataset to right-padded batches, with a mask of the tokens that have a loss.

Three kinds of rows are understood:

- `messages`, or ShareGPT's `conversations`: rendered with the target's chat template; the loss is on assistant tokens
  (`conversations.py`);
- `text`: plain text, loss on every token;
- `input_ids`, with or without `loss_mask`: tokens as they are; with `documents` packed (`packing.py`), with `features`
  what the target made of them (`stored_features.py`).

Next: `packing.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .conversations import render, to_messages, tokenize_conversation


logger = logging.get_logger(__name__)

Row = Mapping[str, Any]
CONVERSATION_COLUMNS = ("messages", "conversations")
TOKEN_COLUMNS = ("input_ids", "loss_mask", "documents", "features")
COLUMNS = (*CONVERSATION_COLUMNS, "text", *TOKEN_COLUMNS)


def tokenize_row(
    row: Row, tokenizer: PreTrainedTokenizerBase | None, max_length: int, assistant_only_loss: bool = True
) -> tuple[list[int], list[int]]:
    """
    Tokens of a row, and which of them have a loss; both cut to `max_length`.

    Args:
        row (`Mapping`): with `messages`, `conversations`, `text` or `input_ids`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): the target's; not needed for `input_ids`.
        max_length (`int`): tokens kept.
        assistant_only_loss (`bool`, defaults to `True`): whether only assistant tokens of `messages` have a loss.

    Raises:
        ValueError: if the row has none of the columns, a tokenizer is needed and missing, or assistant tokens cannot
            be told from the others.
    """
    if "input_ids" in row:
        input_ids = torch.as_tensor(row["input_ids"]).tolist()
        loss_mask = torch.as_tensor(row["loss_mask"]).tolist() if "loss_mask" in row else [1] * len(input_ids)
    elif tokenizer is None or not {*CONVERSATION_COLUMNS, "text"} & row.keys():
        raise ValueError(
            f"A row has the columns {sorted(row)}. Rows need `input_ids`, or `messages`, `conversations` or `text` "
            "together with the target's tokenizer (`processing_class`)."
        )
    elif (messages := row_messages(row)) is None:
        input_ids = tokenizer(row["text"])["input_ids"]
        loss_mask = [1] * len(input_ids)
    elif not messages:
        input_ids, loss_mask = [], []
    elif assistant_only_loss:
        input_ids, loss_mask = tokenize_conversation(messages, tokenizer)
    else:
        input_ids = render(messages, tokenizer)
        loss_mask = [1] * len(input_ids)
    return input_ids[:max_length], loss_mask[:max_length]


def row_messages(row: Row) -> list[dict[str, Any]] | None:
    """The conversation of a row; None if it has none."""
    column = next((column for column in CONVERSATION_COLUMNS if column in row), None)
    return None if column is None else to_messages(row[column] or [])


@dataclass
class GriffinDataCollator:
    """
    Makes right-padded batches of `input_ids` and `loss_mask`, and of what else the rows have.

    - Where rows have `documents`, so has the batch, with 0 for padding.
    - Otherwise there is an `attention_mask` if anything is padded.
    - Where rows have `features`, so has the batch, with zeros for padding.

    Rows without a token that has a loss (for example a conversation whose prompt alone fills `max_length`) teach
    nothing: they are left out and counted in `num_skipped` (by each dataloader worker for itself). If a batch has no
    other row, its first one stays, without loss.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): the target's.
        max_length (`int`, defaults to 2048): tokens kept of a row.
        assistant_only_loss (`bool`, defaults to `True`): whether only assistant tokens of `messages` have a loss.
    """

    tokenizer: PreTrainedTokenizerBase | None = None
    max_length: int = 2048
    assistant_only_loss: bool = True
    num_skipped: int = field(default=0, init=False)

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """
        Args:
            rows (`Sequence[Mapping]`): of the dataset.

        Returns:
            `dict[str, torch.Tensor]`: each of shape `(batch_size, length)`; `features` of shape `(batch_size, length,
            hidden_size)`.
        """
        samples = [self._sample(row) for row in rows]
        useful = [sample for sample in samples if sample["loss_mask"].any()]
        self._count_skipped(len(samples) - len(useful))
        return self._pad(useful or samples[:1])

    def _sample(self, row: Row) -> dict[str, torch.Tensor]:
        input_ids, loss_mask = tokenize_row(row, self.tokenizer, self.max_length, self.assistant_only_loss)
        tokens = {"input_ids": input_ids, "loss_mask": loss_mask}
        sample = {name: torch.tensor(values, dtype=torch.long) for name, values in tokens.items()}
        for name in ("documents", "features"):
            if name in row:
                sample[name] = torch.as_tensor(row[name])[: self.max_length]
        return sample

    def _count_skipped(self, count: int) -> None:
        if count > 0 and self.num_skipped == 0:
            logger.warning(
                "A row has no token with a loss and is skipped; `num_skipped` of the data collator counts them."
            )
        self.num_skipped += count

    def _pad(self, samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        lengths = torch.tensor([len(sample["input_ids"]) for sample in samples])
        # Two tokens make the first (token, feature) pair.
        length = max(2, int(lengths.max()))
        pad_ids = {"input_ids": getattr(self.tokenizer, "pad_token_id", None) or 0}
        batch = {
            name: torch.stack([_pad_right(sample[name], length, pad_ids.get(name, 0)) for sample in samples])
            for name in samples[0]
        }
        if "documents" not in batch and int(lengths.min()) < length:
            batch["attention_mask"] = (torch.arange(length) < lengths.unsqueeze(1)).long()
        return batch


def _pad_right(values: torch.Tensor, length: int, padding: int) -> torch.Tensor:
    padded = values.new_full((length, *values.shape[1:]), padding)
    padded[: len(values)] = values
    return padded


__all__ = ["COLUMNS", "CONVERSATION_COLUMNS", "GriffinDataCollator", "row_messages", "tokenize_row"]
