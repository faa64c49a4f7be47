"""
What a benchmark measures: prompts, settings, repeats.

Next: `runner.py`.
"""

import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from .prompts import Prompt
from .results import Setting


@dataclass(frozen=True)
class Plan:
    """
    What is measured; a run that goes on must have the same.

    Raises:
        ValueError: if there is no prompt or no setting, two prompts have one identifier, or a number is below 1.
    """

    prompts: list[Prompt]
    settings: list[Setting]
    max_new_tokens: int = 128
    repeats: int = 1
    allow_differences: bool = False  # report SR although greedy answers differ

    def __post_init__(self) -> None:
        if not self.prompts or not self.settings:
            raise ValueError(
                f"{len(self.prompts)} prompts in {len(self.settings)} settings; give at least one of each."
            )
        if min(self.max_new_tokens, self.repeats) < 1:
            raise ValueError(
                f"`max_new_tokens` is {self.max_new_tokens} and `repeats` is {self.repeats}; both must be 1 or more."
            )
        counts = Counter((prompt.domain, prompt.id) for prompt in self.prompts)
        if twice := [key for key, count in counts.items() if count > 1]:
            raise ValueError(f"Two prompts of {twice[0][0]!r} have the identifier {twice[0][1]!r}. Give each its own.")

    def batches(self, batch_size: int) -> Iterator[list[Prompt]]:
        """Prompts of one domain and one number of turns, in order."""
        for _, group in groupby(self.prompts, key=lambda prompt: (prompt.domain, len(prompt.turns))):
            prompts = list(group)
            for start in range(0, len(prompts), batch_size):
                yield prompts[start : start + batch_size]

    def fingerprint(self) -> dict[str, Any]:
        """Tells whether two plans measure the same."""
        prompts = repr(self.prompts).encode()
        return {
            "prompts": f"{len(self.prompts)} with checksum {zlib.crc32(prompts):08x}",
            "max_new_tokens": self.max_new_tokens,
            "repeats": self.repeats,
            "settings": [asdict(setting) for setting in self.settings],
        }


def make_settings(
    dtypes: Iterable[str],
    temperatures: Iterable[float],
    top_p: float | None = None,
    top_k: int | None = None,
    batch_sizes: Iterable[int] = (1,),
) -> list[Setting]:
    """Every combination; all settings of a dtype follow each other, as the target is loaded for each."""
    cut = {"top_p": top_p, "top_k": top_k}
    cut_name = "".join(f" {name}={value:g}" for name, value in cut.items() if value is not None)
    uncut = {"top_p": 1.0, "top_k": 0}  # said aloud: generation configurations cut by default
    settings = []
    for dtype in dtypes:
        for temperature in dict.fromkeys(temperatures):
            sampling = {"do_sample": True, "temperature": temperature} | uncut
            sampling |= {name: value for name, value in cut.items() if value is not None}
            for batch_size in dict.fromkeys(batch_sizes):
                name = f"{dtype} T={temperature:g}" + (cut_name if temperature else "")
                settings.append(
                    Setting(
                        name=name + (f" batch {batch_size}" if batch_size > 1 else ""),
                        dtype=dtype,
                        generate_kwargs=sampling if temperature else {"do_sample": False},
                        batch_size=batch_size,
                    )
                )
    return settings


__all__ = ["Plan", "make_settings"]
