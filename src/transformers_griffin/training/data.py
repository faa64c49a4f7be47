"""
From rows of a dataset to right-padded batches, with a mask of the tokens that have a loss.

Three kinds of rows are understood:

- `messages`: a conversation, rendered with the target's chat template; the loss is on assistant tokens, which the
  template marks with `{% generation %}`;
- `text`: plain text, loss on every token;
- `input_ids`, with or without `loss_mask`: tokens as they are, for example packed blocks.

Next: `trainer.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging


logger = logging.get_logger(__name__)

Row = Mapping[str, Any]
COLUMNS = ("messages", "text", "input_ids", "loss_mask", "documents", "features")


def tokenize_row(
    row: Row, tokenizer: PreTrainedTokenizerBase | None, max_length: int, assistant_only_loss: bool = True
) -> tuple[list[int], list[int]]:
    """
    Tokens of a row, and which of them have a loss; both cut to `max_length`.

    Args:
        row (`Mapping`): with `messages`, `text` or `input_ids`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): the target's; not needed for `input_ids`.
        max_length (`int`): tokens kept.
        assistant_only_loss (`bool`, defaults to `True`): whether only assistant tokens of `messages` have a loss.

    Raises:
        ValueError: if the row has none of the columns, a tokenizer is needed and missing, or the chat template does
            not mark assistant tokens.
    """
    if "input_ids" in row:
        input_ids = torch.as_tensor(row["input_ids"]).tolist()
        loss_mask = torch.as_tensor(row["loss_mask"]).tolist() if "loss_mask" in row else [1] * len(input_ids)
    elif tokenizer is None or not {"messages", "text"} & row.keys():
        raise ValueError(
            f"A row has the columns {sorted(row)}. Rows need `input_ids`, or `messages` or `text` together with the "
            "target's tokenizer (`processing_class`)."
        )
    elif "messages" in row:
        input_ids, loss_mask = _tokenize_messages(row["messages"], tokenizer, assistant_only_loss)
    else:
        input_ids = tokenizer(row["text"])["input_ids"]
        loss_mask = [1] * len(input_ids)
    return input_ids[:max_length], loss_mask[:max_length]


def _tokenize_messages(
    messages: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, assistant_only_loss: bool
) -> tuple[list[int], list[int]]:
    if assistant_only_loss and "generation" not in (tokenizer.get_chat_template() or ""):
        raise ValueError(
            "The chat template does not mark assistant tokens. Put `{% generation %}` ... `{% endgeneration %}` "
            "around the assistant's text in `tokenizer.chat_template`, or set `assistant_only_loss=False`."
        )
    rendered: Any = tokenizer.apply_chat_template(
        [dict(message) for message in messages],
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=assistant_only_loss,
    )
    input_ids = rendered["input_ids"]
    return input_ids, rendered["assistant_masks"] if assistant_only_loss else [1] * len(input_ids)


@dataclass
class GriffinDataCollator:
    """
    Makes right-padded batches of `input_ids`, `loss_mask` and, if anything is padded, `attention_mask`.

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
            `dict[str, torch.Tensor]`: each of shape `(batch_size, length)`.
        """
        tokenized = [tokenize_row(row, self.tokenizer, self.max_length, self.assistant_only_loss) for row in rows]
        useful = [pair for pair in tokenized if any(pair[1])]
        self._count_skipped(len(tokenized) - len(useful))
        return self._pad(useful or tokenized[:1])

    def _count_skipped(self, count: int) -> None:
        if count > 0 and self.num_skipped == 0:
            logger.warning("A row has no token with a loss and is skipped; later ones are skipped silently.")
        self.num_skipped += count

    def _pad(self, pairs: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
        lengths = [len(input_ids) for input_ids, _ in pairs]
        # Two tokens make the first (token, feature) pair.
        length = max(2, *lengths)
        pad_id = getattr(self.tokenizer, "pad_token_id", None) or 0
        input_ids = torch.tensor([ids + [pad_id] * (length - len(ids)) for ids, _ in pairs])
        batch = {
            "input_ids": input_ids,
            "loss_mask": torch.tensor([mask + [0] * (length - len(mask)) for _, mask in pairs]),
        }
        if min(lengths) < length:
            batch["attention_mask"] = (torch.arange(length) < torch.tensor(lengths).unsqueeze(1)).long()
        return batch


__all__ = ["COLUMNS", "GriffinDataCollator", "tokenize_row"]
