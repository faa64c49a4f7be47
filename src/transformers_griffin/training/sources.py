"""
Training data as users have it: opened with `datasets`, tokenized, packed, and checked against the target.

Datasets stay on disk: rows are read, tokenized and written in batches.

Next: `stored_features.py`.
"""

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import datasets
from datasets import Dataset, DatasetDict, Features, List, Value
from datasets.exceptions import DatasetGenerationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from .data import CONVERSATION_COLUMNS, tokenize_row
from .packing import pack_columns
from .shards import MANIFEST, load_shards


logger = logging.get_logger(__name__)

Source: TypeAlias = str | os.PathLike | Sequence[str | os.PathLike] | Dataset | DatasetDict
ROW_COLUMNS = (*CONVERSATION_COLUMNS, "text", "input_ids")
JSON_SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
TOKEN_FEATURES = Features({"input_ids": List(Value("int32")), "loss_mask": List(Value("int8"))})
PACKED_FEATURES = Features({**TOKEN_FEATURES, "documents": List(Value("int32"))})


def load_training_data(source: Source, split: str = "train", **load_kwargs: Any) -> Dataset:
    """
    Opens rows of `messages`, `conversations`, `text` or `input_ids`.

    Args:
        source (`str`, `os.PathLike`, a sequence of them, [`~datasets.Dataset`] or [`~datasets.DatasetDict`]):
            JSON or JSON-lines files (also `.gz`, and patterns such as `chats/*.jsonl`), a directory written by
            `save_to_disk` or by `griffin prepare --regenerate`, a dataset on the Hub, or a dataset that is already
            open.
        split (`str`, defaults to `"train"`): of a dataset that has splits, for example `"train[:1%]"`.
        load_kwargs: further arguments of [`~datasets.load_dataset`], for example `name` or `revision`.

    Returns:
        [`~datasets.Dataset`]: memory-mapped unless it was given in memory.

    Raises:
        FileNotFoundError: if a file does not exist.
        ValueError: if there is no such split, a file cannot be read, there are no rows, or they have none of the
            columns.
    """
    rows = _open(source, split, load_kwargs)
    if isinstance(rows, DatasetDict):
        if split not in rows:
            raise ValueError(f"{_name(source)} has the splits {', '.join(rows)}, but not {split!r}.")
        rows = rows[split]
    if not isinstance(rows, Dataset):
        raise ValueError(f"{_name(source)} is a {type(rows).__name__}. Give a `datasets.Dataset`.")
    if not set(ROW_COLUMNS) & set(rows.column_names):
        raise ValueError(
            f"{_name(source)} has the columns {', '.join(rows.column_names)}, but rows need one of "
            f"{', '.join(ROW_COLUMNS)}. Rename a column (`Dataset.rename_column`)."
        )
    if len(rows) == 0:
        raise ValueError(f"{_name(source)} has no rows.")
    return rows


def _open(source: Source, split: str, load_kwargs: dict[str, Any]) -> Any:
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if (path / MANIFEST).is_file():
            return load_shards(path, kind="conversations")
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            return datasets.load_from_disk(path)
        if not str(source).endswith(JSON_SUFFIXES):
            return datasets.load_dataset(str(source), split=split, **load_kwargs)
        source = [source]
    return _open_json(source) if isinstance(source, Sequence) else source


def _open_json(files: Sequence[str | os.PathLike]) -> Dataset:
    names = [name for file in files for name in sorted(glob.glob(str(file))) or [str(file)]]
    missing = [name for name in names if not os.path.isfile(name)]
    if missing:
        raise FileNotFoundError(f"{', '.join(missing)} does not exist.")
    try:
        return datasets.load_dataset("json", data_files=names, split="train")
    except DatasetGenerationError as error:
        raise ValueError(
            f"{', '.join(names)} cannot be read as JSON rows of one schema: {error.__cause__ or error}"
        ) from error


def _name(source: Source) -> str:
    return "The dataset" if isinstance(source, (Dataset, DatasetDict)) else str(source)


def tokenize_dataset(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase | None,
    max_length: int,
    assistant_only_loss: bool = True,
    pack: bool = False,
    num_proc: int | None = None,
) -> Dataset:
    """
    Tokenizes rows once; what has no token with a loss is left out, and how much that was is logged.

    Args:
        rows ([`~datasets.Dataset`]):
            With `messages`, `conversations`, `text` or `input_ids`. Rows that are packed already stay as they are.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): the target's; not needed for `input_ids`.
        max_length (`int`): tokens kept of a row.
        assistant_only_loss (`bool`, defaults to `True`): whether only assistant tokens of conversations have a loss.
        pack (`bool`, defaults to `False`): whether to pack several rows into one of at most `max_length` tokens.
        num_proc (`int`, *optional*): processes that tokenize.

    Returns:
        [`~datasets.Dataset`]: of `input_ids`, `loss_mask` and, if packed, `documents`.

    Raises:
        ValueError: if a row cannot be tokenized (with its number), or none has a token with a loss.
    """
    if "documents" in rows.column_names:
        return rows
    tokenized = rows.with_format(None).map(
        _tokenize_columns,
        batched=True,
        with_indices=True,
        fn_kwargs={"tokenizer": tokenizer, "max_length": max_length, "assistant_only_loss": assistant_only_loss},
        remove_columns=rows.column_names,
        features=TOKEN_FEATURES,
        num_proc=num_proc,
        desc="Tokenizing",
    )
    num_skipped = len(rows) - len(tokenized)
    if num_skipped == len(rows):
        raise ValueError(
            f"None of {len(rows)} rows has a token with a loss within `max_length` {max_length}. Conversations need "
            "a message of the role `assistant`."
        )
    if num_skipped:
        logger.warning(
            f"{num_skipped} of {len(rows)} rows have no token with a loss within {max_length} tokens and are left out."
        )
    if not pack:
        return tokenized
    return tokenized.map(
        pack_columns,
        batched=True,
        fn_kwargs={"max_length": max_length},
        remove_columns=tokenized.column_names,
        features=PACKED_FEATURES,
        num_proc=num_proc,
        desc="Packing",
    )


def _tokenize_columns(
    columns: dict[str, list[Any]], indices: list[int], **tokenize_kwargs: Any
) -> dict[str, list[list[int]]]:
    kept: dict[str, list[list[int]]] = {"input_ids": [], "loss_mask": []}
    for number, values in zip(indices, zip(*columns.values(), strict=True), strict=True):
        row = dict(zip(columns, values, strict=True))
        try:
            input_ids, loss_mask = tokenize_row(row, **tokenize_kwargs)
        except Exception as error:  # templates raise errors of their own
            raise ValueError(f"Row {number} of the dataset cannot be tokenized: {error}") from error
        if any(loss_mask):
            kept["input_ids"].append(input_ids)
            kept["loss_mask"].append(loss_mask)
    return kept


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, target: PreTrainedModel) -> None:
    """
    Checks that the target has an embedding for every token.

    Raises:
        ValueError: if the tokenizer knows more tokens than the target.
    """
    vocab_size = target.config.get_text_config().vocab_size
    if len(tokenizer) > vocab_size:
        raise ValueError(
            f"The tokenizer {tokenizer.name_or_path or ''} has {len(tokenizer)} tokens, but the target "
            f"{target.config.name_or_path or ''} has a vocabulary of {vocab_size}. Use the target's own tokenizer."
        )


__all__ = ["check_tokenizer", "load_training_data", "tokenize_dataset"]
