"""
Where numbers come from: versions, device, commit, date and arguments.

Paths are kept relative to the working directory, or as names alone: results are published, home directories are not.

Next: `benchmark.py`.
"""

import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .. import __version__


PACKAGES = ("torch", "transformers")


def provenance(arguments: Mapping[str, Any], device: str | torch.device = "cpu") -> dict[str, Any]:
    """
    What to store beside results.

    Args:
        arguments (`Mapping[str, Any]`): of the run.
        device (`str` or `torch.device`, defaults to `"cpu"`): where it ran.
    """
    return {
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES}
        | {"transformers-griffin": __version__},  # known without being installed
        "device": describe_device(torch.device(device)),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
        "arguments": {name: publishable(value) for name, value in arguments.items()},
    }


def describe_device(device: torch.device) -> str:
    """For example "NVIDIA H200" or "CPU, 2 cores, x86_64, 1 thread(s)"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    return f"CPU, {os.cpu_count()} cores, {platform.machine()}, {torch.get_num_threads()} thread(s)"


def publishable(value: Any) -> Any:
    """A value for JSON; absolute paths, also after `name=`, lose what lies above the working directory."""
    if isinstance(value, Mapping):
        return {name: publishable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [publishable(item) for item in value]
    if not isinstance(value, str | Path):
        return value
    name, equals, text = str(value).partition("=") if "=" in str(value) else ("", "", str(value))
    path = Path(text)
    if not path.is_absolute():
        return str(value)
    inside = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path.name
    return f"{name}{equals}{inside}"


def _commit() -> str | None:
    """Of the checkout that this file is part of, "-dirty" if it was changed since; None if it is installed."""
    folder = str(Path(__file__).parent)
    git = ["git", "-C", folder]
    try:
        is_tracked = subprocess.run([*git, "ls-files", "--error-unmatch", __file__], capture_output=True, check=False)
        if is_tracked.returncode != 0:
            return None
        described = subprocess.run(
            [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:  # no git
        return None
    return described.stdout.strip() or None


__all__ = ["describe_device", "provenance", "publishable"]
