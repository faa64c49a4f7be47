"""
What a benchmark leaves behind: measurements line by line, and the summary made of them.

A results folder holds `measurements.jsonl`, one [`Measurement`] a line, appended as soon as it is known, so that a run
that was killed goes on where it ended; and `results.json`, one [`BenchmarkResults`], which every table, plot and page
is made of. A figure that nobody measured is None, never 0.

Next: `benchmark.py`.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any


SCHEMA_VERSION = 1
ALL_DOMAINS = "all"


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % bootstrap interval over prompts."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Measurement:
    """One answer of one method to one turn of one prompt, or the answers to a batch of prompts."""

    setting: str  # name of a `Setting`
    method: str  # name of a `Method`
    domain: str
    prompt: str  # identifier of the prompt within its domain; those of a batch are joined by "+"
    turn: int  # 0 for the first question of a chat
    repeat: int
    num_prompt_tokens: int  # of the longest row
    new_tokens: list[list[int]]  # of every row; what follows the end of a row's answer is cut
    wall_seconds: float  # of the whole `generate()` call
    first_token_seconds: float | None = None  # from the call until the target has read the prompt
    acceptance_lengths: list[list[int]] | None = None  # of every row; None for a method without cycles
    draft_seconds: float | None = None  # of all cycles
    verify_seconds: float | None = None
    misaligned_chains: list[tuple[int, int]] | None = None  # by pass: misaligned ones, all (see `misaligned_rates`)
    peak_memory_bytes: int | None = None  # beyond what was allocated before the call

    @property
    def key(self) -> tuple[str, str, str, str, int, int]:
        """What tells one measurement from all others of a run."""
        return self.setting, self.method, self.domain, self.prompt, self.turn, self.repeat


@dataclass(frozen=True)
class Method:
    """A way to decode."""

    name: str
    kind: str  # "plain", "plain_compiled", "prompt_lookup", "assistant" or "draft"
    description: str  # one line for a table's legend
    num_parameters: int | None = None  # of the draft or assistant, its own only
    tree: dict[str, int] | None = None  # tree settings of a draft


@dataclass(frozen=True)
class Setting:
    """How the target chooses tokens, and in which arithmetic."""

    name: str  # for example "float32 T=0"
    dtype: str
    generate_kwargs: dict[str, Any]  # do_sample, temperature, ...
    batch_size: int = 1

    @property
    def is_greedy(self) -> bool:
        """Whether all lossless methods must give the same tokens."""
        return not self.generate_kwargs.get("do_sample", False)


@dataclass(frozen=True)
class Summary:
    """One method under one setting in one domain, or in all of them."""

    setting: str
    method: str
    domain: str  # or ALL_DOMAINS
    num_prompts: int
    num_answers: int  # of every prompt, turn and repeat
    num_tokens: int
    tokens_per_second: Estimate | None = None
    tau: Estimate | None = None
    speedup_over_eager: Estimate | None = None  # SR
    speedup_over_best_plain: Estimate | None = None
    cycle_cost: float | None = None  # tau / SR
    first_token_seconds: float | None = None  # median
    acceptance_by_depth: list[float] | None = None
    misaligned_rates: list[float] | None = None  # by pass
    draft_share: float | None = None  # of the time after the first token; what draft and verify leave is the host's
    verify_share: float | None = None
    peak_memory_bytes: int | None = None  # largest; CUDA only, without a static cache that all answers share
    num_identical: int | None = None  # greedy: answers equal to plain eager ones, token for token
    repeated_4grams: float | None = None
    note: str | None = None  # why a figure is missing


@dataclass(frozen=True)
class BenchmarkResults:
    """A whole benchmark."""

    title: str
    target: str
    methods: list[Method]
    settings: list[Setting]
    summaries: list[Summary]
    provenance: dict[str, Any]  # versions, device, commit, date, arguments
    is_complete: bool = True  # False: some measurements are still missing
    schema_version: int = SCHEMA_VERSION
    extra: dict[str, Any] = field(default_factory=dict)  # results of other kinds, such as measured cost curves

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def save(self, path: str | Path) -> None:
        """Writes one JSON object, all of it or nothing."""
        path = Path(path)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(self.as_dict(), indent=1) + "\n", encoding="utf-8")
        part.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> "BenchmarkResults":
        """
        Reads what [`~BenchmarkResults.save`] wrote.

        Args:
            path (`str` or `Path`): the file, or the results folder that holds it as `results.json`.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is no JSON, of another kind or of another schema.
        """
        path = Path(path)
        path = path / "results.json" if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist. Give the results.json of `griffin bench`, or its folder.")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is no JSON file ({error}). Give the results.json of `griffin bench`.") from error
        version = content.get("schema_version") if isinstance(content, dict) else None
        if version != SCHEMA_VERSION:
            raise ValueError(
                f"{path} has the schema version {version!r}, but {SCHEMA_VERSION} is read. Give the results.json of "
                "`griffin bench`, written by this version of the package."
            )
        return cls(
            **content
            | {
                "methods": [Method(**method) for method in content["methods"]],
                "settings": [Setting(**setting) for setting in content["settings"]],
                "summaries": [_read_summary(summary) for summary in content["summaries"]],
            }
        )


ESTIMATES = tuple(f.name for f in fields(Summary) if "Estimate" in str(f.type))


def _read_summary(content: dict[str, Any]) -> Summary:
    given = {name: Estimate(**content[name]) for name in ESTIMATES if content.get(name) is not None}
    return Summary(**content | given)
