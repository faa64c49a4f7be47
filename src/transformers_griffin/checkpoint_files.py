"""
The two files of a published checkpoint, from a directory or the Hub, read without running anything that is in them.

It does not know what the keys mean: that is `conversion.py`.
"""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.utils import cached_file


CONFIG_FILE, SAFETENSORS_FILE, PICKLE_FILE = "config.json", "model.safetensors", "pytorch_model.bin"
TORCH_FILE_STARTS = (b"PK", b"\x80")  # a zip archive, or the pickle of older versions


def _find_file(path_or_repo: str | os.PathLike, name: str, hub_kwargs: dict[str, Any]) -> str | None:
    if os.path.isfile(path_or_repo):
        raise ValueError(f"{path_or_repo} is a file. Give the directory that holds it and `{CONFIG_FILE}`.")
    return cached_file(path_or_repo, name, _raise_exceptions_for_missing_entries=False, **hub_kwargs)


def read_config(path_or_repo: str | os.PathLike, hub_kwargs: dict[str, Any]) -> dict[str, Any]:
    """
    The `config.json` of a local directory or Hub repository.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is not a JSON object.
    """
    file = _find_file(path_or_repo, CONFIG_FILE, hub_kwargs)
    if file is None:
        raise FileNotFoundError(
            f"{path_or_repo} has no `{CONFIG_FILE}`. A released checkpoint is a directory or Hub repository with "
            f"`{CONFIG_FILE}` and `{PICKLE_FILE}` or `{SAFETENSORS_FILE}`."
        )
    try:
        released = json.loads(Path(file).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON ({error}). Download it again.") from error
    if not isinstance(released, dict):
        raise ValueError(f"{file} holds a {type(released).__name__}, but a configuration is a JSON object.")
    return released


def read_weights(path_or_repo: str | os.PathLike, hub_kwargs: dict[str, Any]) -> dict[str, torch.Tensor]:
    """
    All tensors of `model.safetensors`, or else of `pytorch_model.bin`, by their keys in the file.

    Raises:
        FileNotFoundError: if there is neither.
        ValueError: if the file is truncated or corrupt, or holds anything but tensors.
    """
    file = _find_file(path_or_repo, SAFETENSORS_FILE, hub_kwargs)
    if file is not None:
        return _read_safetensors(file)
    file = _find_file(path_or_repo, PICKLE_FILE, hub_kwargs)
    if file is not None:
        return _read_pickle(file)
    raise FileNotFoundError(
        f"{path_or_repo} has neither `{SAFETENSORS_FILE}` nor `{PICKLE_FILE}`. Download the weights beside "
        f"`{CONFIG_FILE}`."
    )


def _read_safetensors(file: str) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise ValueError(_corrupt(file, error)) from error


def _read_pickle(file: str) -> dict[str, torch.Tensor]:
    with open(file, "rb") as stream:
        if not stream.read(2).startswith(TORCH_FILE_STARTS):
            raise ValueError(_corrupt(file, "it does not begin like a PyTorch file"))
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = next((f" ({line.strip()})" for line in str(error).splitlines() if "nsupported" in line), "")
        raise ValueError(
            f"{file} holds Python objects that are not tensors{found}. Loading them could run code, so the file is "
            "refused. Get a checkpoint of tensors only, best as safetensors."
        ) from error
    except Exception as error:  # damaged bytes can fail anywhere in the reader
        raise ValueError(_corrupt(file, error)) from error
    if not isinstance(weights, dict) or not weights:
        raise ValueError(f"{file} holds a {type(weights).__name__}, but a checkpoint is a dictionary of tensors.")
    for key, value in weights.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{file} holds a {type(value).__name__} at {key!r}, but all values must be tensors.")
    return dict(weights)


def _corrupt(file: str, error: Exception | str) -> str:
    size = os.path.getsize(file)
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return (
        f"{file} ({size} bytes) is truncated or corrupt: {reason}. Download it again; a file of about a hundred bytes "
        "is a Git LFS pointer (`git lfs pull`)."
    )


__all__ = ["CONFIG_FILE", "PICKLE_FILE", "SAFETENSORS_FILE", "read_config", "read_weights"]
