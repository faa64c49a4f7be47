"""
Features of the target, computed once and kept on disk.

`prepare_features` runs the frozen target without its LM head over tokenized rows; `load_features` opens the result for
training, after checking that it belongs to this target and tokenizer. Arrow has no bfloat16, so a row's features are
stored as their bytes and come back as a tensor of shape `(length, hidden_size)`.

The documents of a packed row go through the target one by one, so that none can see another, whatever the target's
attention. Rows, shards and batches are the same in every run, so a continued run writes the bytes of an uninterrupted
one.

Next: `regenerate.py`.
"""

import hashlib
import itertools
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset, Features, Value
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..modeling_griffin import moved_to
from .fingerprints import describe_target, describe_tokenizer, differences
from .shards import MANIFEST, Columns, ShardWriter, load_shards, read_manifest
from .sources import check_tokenizer


KIND = "features"
DTYPE = torch.bfloat16
BYTES_PER_ROW = 128  # Arrow's offsets and padding
MASK_COLUMNS = ("loss_mask", "documents")

Span = tuple[int, int, int]  # a document: the row, and from which token to which


@dataclass(frozen=True)
class StoragePlan:
    """What `prepare_features` will write."""

    num_rows: int
    num_tokens: int
    num_bytes: int

    def __str__(self) -> str:
        return f"{self.num_rows:,} rows, {self.num_tokens:,} tokens, {readable(self.num_bytes)} of features"


def readable(num_bytes: float) -> str:
    """Bytes with a decimal unit, for example `1.50GB`."""
    return tqdm.format_sizeof(num_bytes, suffix="B")


def plan_features(rows: Dataset, hidden_size: int) -> StoragePlan:
    """
    Counts the bytes that the features of tokenized rows will take.

    Args:
        rows ([`~datasets.Dataset`]): of [`tokenize_dataset`].
        hidden_size (`int`): of the target.
    """
    num_tokens = sum(pc.sum(pc.list_value_length(batch["input_ids"])).as_py() for batch in _arrow_batches(rows))
    bytes_per_token = DTYPE.itemsize * hidden_size + sum(
        column.feature.pa_type.bit_width // 8 for column in _columns(rows).values()
    )
    return StoragePlan(len(rows), num_tokens, num_tokens * bytes_per_token + len(rows) * BYTES_PER_ROW)


def prepare_features(
    target: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    path: str | os.PathLike,
    batch_size: int = 8,
    shard_size: int = 256,
    force: bool = False,
) -> None:
    """
    Writes the target's features of tokenized rows, shard by shard; continues where a killed run stopped.

    Args:
        target ([`~transformers.PreTrainedModel`]): the frozen target, on its device and in its dtype.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): that made the tokens.
        rows ([`~datasets.Dataset`]): of [`tokenize_dataset`].
        path (`os.PathLike`): directory to write.
        batch_size (`int`, defaults to 8): rows that the target reads at once.
        shard_size (`int`, defaults to 256): rows of a shard, the most that a kill can lose.
        force (`bool`, defaults to `False`): whether to start although the disk has too little space.

    Raises:
        OSError: if the disk has, or comes to have, too little space. Finished shards stay.
        ValueError: if tokenizer and target do not fit, an earlier run in this directory had other settings, or the
            target makes features that are not finite.
    """
    check_tokenizer(tokenizer, target)
    settings = {
        "target": describe_target(target),
        "tokenizer": describe_tokenizer(tokenizer),
        "dtype": str(target.dtype).removeprefix("torch."),
        "rows": describe_rows(rows, target.config.get_text_config().vocab_size),
        "batch_size": batch_size,
        "shard_size": shard_size,
    }
    num_shards = -(-len(rows) // shard_size)
    if not force:
        _check_space(plan_features(rows, hidden_size_of(target)), Path(path))
    writer = ShardWriter(path, KIND, settings, num_shards, about={"target": target.config.name_or_path})
    features = Features({**_columns(rows), "features": Value("large_binary")})
    compute = partial(_with_features, target, tokenizer)
    tokens = rows.select_columns(list(_columns(rows))).with_format(None)
    writer.write_all(tokens, compute, features, batch_size, shard_size, "Features")


def hidden_size_of(target: PreTrainedModel) -> int:
    """The width of the target's features."""
    return target.config.get_text_config().hidden_size


def _check_space(plan: StoragePlan, path: Path) -> None:
    finished = read_manifest(path, KIND)["shards"] if (path / MANIFEST).is_file() else []
    missing = plan.num_bytes - sum(shard["num_bytes"] for shard in finished)
    existing = next(directory for directory in (path, *path.absolute().parents) if directory.exists())
    free = shutil.disk_usage(existing).free
    if missing > free:
        raise OSError(
            f"The features take {readable(missing)} more, but the disk of {path} has {readable(free)} "
            "free. Free some space, prepare fewer rows, give another directory, or `force` it."
        )


# ---------------------------------------------------------------------- rows


def _columns(rows: Dataset) -> Features:
    """The types of the columns that are stored beside the features."""
    names = ["input_ids", *(name for name in MASK_COLUMNS if name in rows.column_names)]
    return Features({name: rows.features[name] for name in names})


def _arrow_batches(rows: Dataset) -> Iterator[pa.Table]:
    columns = rows.select_columns(list(_columns(rows))).with_format("arrow")
    yield from columns.iter(batch_size=1000)


def describe_rows(rows: Dataset, vocab_size: int) -> dict[str, Any]:
    """
    How many tokenized rows there are, their columns, and a fingerprint of what is in them.

    Raises:
        ValueError: if a token is none of the target's.
    """
    digest = hashlib.sha256()
    num_seen = 0
    for table in _arrow_batches(rows):
        for name in table.column_names:
            lengths, values = pc.list_value_length(table[name]), pc.list_flatten(table[name])
            digest.update(lengths.to_numpy().astype("int64").tobytes() + values.to_numpy().astype("int64").tobytes())
        largest = pc.max(pc.list_flatten(table["input_ids"])).as_py() or 0
        if largest >= vocab_size:
            raise ValueError(
                f"Rows {num_seen} to {num_seen + len(table) - 1} of the tokenized data contain token {largest}, but "
                f"the target has a vocabulary of {vocab_size}. Tokenize with the target's own tokenizer."
            )
        num_seen += len(table)
    return {"num_rows": len(rows), "columns": list(_columns(rows)), "sha256": digest.hexdigest()}


# ---------------------------------------------------------------------- features


def _with_features(
    target: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, columns: Columns, first_row: int
) -> Columns:
    """The columns of some rows, and the features of each row as bytes."""
    features = target_features(target, columns["input_ids"], columns.get("documents"))
    for number, (input_ids, row) in enumerate(zip(columns["input_ids"], features, strict=True), start=first_row):
        if not row.isfinite().all():
            raise ValueError(
                f"The target's features of row {number} of the tokenized data are not finite. It begins "
                f"{tokenizer.decode(input_ids[:32])!r}. Leave it out, or run the target in another dtype."
            )
    return {**columns, "features": [row.view(torch.uint8).numpy().tobytes() for row in features]}


@torch.no_grad()
def target_features(
    target: PreTrainedModel, input_ids: Sequence[Sequence[int]], documents: Sequence[Sequence[int]] | None = None
) -> list[torch.Tensor]:
    """
    Runs the target without its LM head over rows of unequal length, each document for itself.

    Args:
        target ([`~transformers.PreTrainedModel`]): the frozen target.
        input_ids (`Sequence[Sequence[int]]`): tokens of every row.
        documents (`Sequence[Sequence[int]]`, *optional*): the document of every token; one a row when not given.

    Returns:
        `list[torch.Tensor]`: for every row `(length, hidden_size)`, in bfloat16 on the CPU.
    """
    spans = [
        span
        for row, numbers in enumerate(documents or [[1] * len(ids) for ids in input_ids])
        for span in _spans(row, numbers)
    ]
    features: list[Any] = [None] * len(input_ids)
    for group in _group_by_length(spans, max_tokens=len(input_ids) * max(map(len, input_ids))):
        outputs = _run(target, [input_ids[row][start:end] for row, start, end in group])
        for (row, start, end), output in zip(group, outputs, strict=True):
            if features[row] is None:
                features[row] = torch.empty(len(input_ids[row]), output.shape[-1], dtype=DTYPE)
            features[row][start:end] = output[: end - start]
    return features


def _spans(row: int, documents: Sequence[int]) -> Iterator[Span]:
    start = 0
    for _, tokens in itertools.groupby(documents):
        end = start + len(list(tokens))
        yield row, start, end
        start = end


def _group_by_length(spans: list[Span], max_tokens: int) -> Iterator[list[Span]]:
    """Groups spans of similar length such that a padded group has at most `max_tokens` tokens."""
    group: list[Span] = []
    for span in sorted(spans, key=lambda span: span[1] - span[2]):  # the longest first
        longest = group[0][2] - group[0][1] if group else 0
        if (len(group) + 1) * longest > max_tokens:
            yield group
            group = []
        group.append(span)
    yield group


def _run(target: PreTrainedModel, token_lists: list[list[int]]) -> torch.Tensor:
    """Features of right-padded lists of tokens, `(batch_size, length, hidden_size)`."""
    lengths = torch.tensor([len(tokens) for tokens in token_lists])
    length = int(lengths.max())
    input_ids = torch.tensor([[*tokens, *[0] * (length - len(tokens))] for tokens in token_lists])
    input_ids = moved_to(target.get_input_embeddings(), input_ids)  # of the first layer, if layers are spread
    attention_mask = (torch.arange(length) < lengths.unsqueeze(1)).long().to(input_ids.device)
    outputs = target.base_model(
        input_ids=input_ids, attention_mask=None if attention_mask.all() else attention_mask, use_cache=False
    )
    return outputs.last_hidden_state.to(DTYPE).cpu()


# ---------------------------------------------------------------------- loading


def load_features(
    path: str | os.PathLike,
    target: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    verify_checksums: bool = True,
) -> Dataset:
    """
    Opens stored features, memory-mapped.

    Args:
        path (`os.PathLike`): directory of [`prepare_features`].
        target ([`~transformers.PreTrainedModel`]): the target that the draft is trained for.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): its tokenizer, to be compared too.
        verify_checksums (`bool`, defaults to `True`): whether to read every shard once to compare its SHA-256. Sizes
            are compared in any case.

    Returns:
        [`~datasets.Dataset`]: rows of `input_ids`, `loss_mask`, `documents` if packed, and `features`, a bfloat16
        tensor of shape `(length, hidden_size)`.

    Raises:
        FileNotFoundError: if there are no features, or a shard is missing.
        ValueError: if they are of another target, revision or tokenizer, incomplete or damaged.
    """
    settings = read_manifest(path, KIND)["settings"]
    found: dict[str, Any] = {"target": describe_target(target)}
    if tokenizer is not None:
        found["tokenizer"] = describe_tokenizer(tokenizer)
    if None in (found["target"]["revision"], settings["target"]["revision"]):
        del found["target"]["revision"]  # a local directory has none
    changed = differences(found, settings)
    if changed:
        raise ValueError(
            f"The features in {Path(path)} are not those of this target and tokenizer: {'; '.join(changed)}. Load "
            "what they were made with, or prepare features again."
        )
    rows = load_shards(path, KIND, verify_checksums)
    return rows.with_transform(partial(_decode_features, hidden_size=hidden_size_of(target)))


def _decode_features(columns: dict[str, list[Any]], hidden_size: int) -> dict[str, list[Any]]:
    if "features" not in columns:
        return columns
    # A bytearray is writable, which `frombuffer` asks for.
    decoded = [torch.frombuffer(bytearray(data), dtype=DTYPE).view(-1, hidden_size) for data in columns["features"]]
    return {**columns, "features": decoded}


__all__ = ["StoragePlan", "load_features", "plan_features", "prepare_features", "readable", "target_features"]
