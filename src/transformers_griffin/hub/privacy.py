"""
What must not leave this machine: its paths, and access tokens.

Paths are shortened to their last part wherever they may have slipped into a file; a token stops the push.

Next: `facts.py`.
"""

import re
from pathlib import Path, PureWindowsPath
from typing import Any


ABSOLUTE = re.compile(r"~?/|[A-Za-z]:\\")
# Within a text: "/home/user/x", "~/x/y" or "C:\\x", but neither the path of a URL nor "and/or".
ABSOLUTE_WITHIN = re.compile(r"(?<![\w:/.~-])(?:~?/(?:[\w.+@-]+/)+[\w.+@-]+|[A-Za-z]:\\[\w.+@\\-]+)")
ACCESS_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{16,}")
WEIGHTS = ".safetensors"


def is_local_path(name: str) -> bool:
    """Whether a string is a path: absolute, or one of something that is here."""
    try:
        return bool(name) and (ABSOLUTE.match(name) is not None or Path(name).exists())
    except (OSError, ValueError):  # a text too long or too strange for a path
        return False


def without_paths(value: Any) -> Any:
    """A copy of what JSON can hold in which every local path is shortened to its last part."""
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_paths(item) for item in value]
    if not isinstance(value, str):
        return value
    if ("/" in value or "\\" in value) and is_local_path(value):
        return _last_part(value)
    return ABSOLUTE_WITHIN.sub(lambda match: _last_part(match.group()), value)


def check_no_token(folder: str | Path, token: str | None = None) -> None:
    """
    Looks for access tokens in everything that is not weights.

    Args:
        folder (`str` or `Path`): what is about to go up.
        token (`str`, *optional*): the token in use, whatever it looks like.

    Raises:
        ValueError: if a file contains a token.
    """
    for path in sorted(Path(folder).rglob("*")):
        if not path.is_file() or path.suffix == WEIGHTS:
            continue
        content = path.read_bytes()
        if ACCESS_TOKEN.search(content) or (token and token.encode() in content):
            raise ValueError(
                f"{path.relative_to(folder)} contains an access token, so nothing was uploaded. Take it out of the "
                "draft's configuration or the results, and revoke the token if it went anywhere else."
            )


def _last_part(path: str) -> str:
    return PureWindowsPath(path).name  # understands both kinds of slashes


__all__ = ["check_no_token", "is_local_path", "without_paths"]
