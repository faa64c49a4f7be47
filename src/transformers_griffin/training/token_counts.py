"""
Which tokens a draft should be able to propose: those that the training data's answers are made of.

    counts = count_tokens(tokenize_dataset(rows, tokenizer, max_length=2048), target.config.vocab_size)
    draft.truncate_vocabulary(frequent_tokens(counts, 32768, always=tokenizer.all_special_ids))

Answers of a language and its code use a small part of a vocabulary most of the time (FR-Spec, arXiv 2502.14856).

Next: `stored_features.py`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import pyarrow as pa
import pyarrow.compute as pc
import torch


if TYPE_CHECKING:
    from datasets import Dataset

ROWS_AT_ONCE = 1000


def count_tokens(dataset: "Dataset", vocab_size: int) -> torch.Tensor:
    """
    Counts how often each token has a loss, that is, how often assistants say it.

    Args:
        dataset ([`~datasets.Dataset`]):
            Of [`tokenize_dataset`] or [`load_features`]; without a `loss_mask` all `input_ids` count.
        vocab_size (`int`): the target's.

    Returns:
        `torch.LongTensor` of shape `(vocab_size,)`.

    Raises:
        ValueError: if a token is not in the vocabulary.
    """
    counts = torch.zeros(vocab_size, dtype=torch.long)
    names = [name for name in ("input_ids", "loss_mask") if name in dataset.column_names]
    for table in dataset.select_columns(names).with_format("arrow").iter(batch_size=ROWS_AT_ONCE):
        tokens, *masks = (_flat(cast(pa.Table, table), name) for name in names)
        found = torch.bincount(tokens[masks[0] > 0] if masks else tokens, minlength=vocab_size)
        if len(found) > vocab_size:
            raise ValueError(
                f"The data have the token {len(found) - 1}, but the target has a vocabulary of {vocab_size}. Tokenize "
                "with the target's own tokenizer."
            )
        counts += found
    return counts


def _flat(table: pa.Table, column: str) -> torch.Tensor:
    # Arrow's memory cannot be written to, which torch warns of.
    return torch.tensor(pc.list_flatten(table[column]).to_numpy()).long()


def frequent_tokens(counts: torch.Tensor, num_tokens: int, always: Sequence[int] = ()) -> torch.Tensor:
    """
    The tokens that are counted most often, ties by the lower id (which tokenizers have learnt earlier).

    Args:
        counts (`torch.LongTensor` of shape `(vocab_size,)`): see [`count_tokens`].
        num_tokens (`int`): how many.
        always (`Sequence[int]`, *optional*):
            Tokens to have in any case, such as those that end an answer; they are among the `num_tokens`.

    Returns:
        `torch.LongTensor` of shape `(num_tokens,)`, rising; for [`GriffinDraftModel.truncate_vocabulary`].

    Raises:
        ValueError: if `num_tokens` is more than there are or less than `always` needs, or `always` holds others.
    """
    vocab_size, kept = len(counts), sorted(set(always))
    if outside := [token for token in kept if not 0 <= token < vocab_size]:
        raise ValueError(f"`always` holds {outside[0]}, but the target's tokens are 0 to {vocab_size - 1}.")
    if not max(1, len(kept)) <= num_tokens <= vocab_size:
        raise ValueError(
            f"`num_tokens` is {num_tokens}, but must be from {max(1, len(kept))} (tokens to have in any case) to "
            f"{vocab_size} (the target's vocabulary)."
        )
    ranks = counts.clone()
    ranks[kept] = counts.max() + 1
    return ranks.sort(descending=True, stable=True).indices[:num_tokens].sort().values


__all__ = ["count_tokens", "frequent_tokens"]
