"""
All figures of a benchmark as CSV: one row for each setting, method and domain; what nobody measured is empty.
"""

import csv
import io
from collections.abc import Sequence
from typing import Any

from ..results import ESTIMATES, BenchmarkResults, Estimate, Summary
from .tables import shares_of


# Figures of one number, in the order of the columns.
PLAIN_FIGURES = (
    "num_prompts",
    "num_answers",
    "num_tokens",
    "cycle_cost",
    "first_token_seconds",
    "draft_share",
    "verify_share",
    "host_share",
    "peak_memory_bytes",
    "num_identical",
    "repeated_4grams",
)
# Figures of several numbers, with the name of each one's column.
SERIES = {"acceptance_by_depth": "acceptance_depth_{}", "misaligned_rates": "misaligned_pass_{}"}


def csv_text(results: BenchmarkResults) -> str:
    """
    The CSV file's content.

    Args:
        results ([`BenchmarkResults`]): what `griffin bench` left behind.
    """
    settings = {setting.name: setting for setting in results.settings}
    methods = {method.name: method for method in results.methods}
    rows = [
        {
            "setting": summary.setting,
            "dtype": settings[summary.setting].dtype,
            "batch_size": settings[summary.setting].batch_size,
            "method": summary.method,
            "kind": methods[summary.method].kind,
            "domain": summary.domain,
        }
        | _figures(summary)
        for summary in results.summaries
    ]
    file = io.StringIO()
    writer = csv.DictWriter(file, fieldnames=_columns(results), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _columns(results: BenchmarkResults) -> list[str]:
    named = ["setting", "dtype", "batch_size", "method", "kind", "domain"]
    estimates = [f"{name}{end}" for name in ESTIMATES for end in ("", "_low", "_high")]
    series = []
    for figure, column in SERIES.items():
        length = max((len(getattr(summary, figure) or ()) for summary in results.summaries), default=0)
        series += [column.format(number) for number in range(1, length + 1)]
    return [*named, *estimates, *PLAIN_FIGURES, *series, "note"]


def _figures(summary: Summary) -> dict[str, Any]:
    shares = shares_of(summary)
    row = {name: getattr(summary, name) for name in PLAIN_FIGURES if name != "host_share"}
    row |= {"host_share": shares[2] if shares else None, "note": summary.note}
    for name in ESTIMATES:
        estimate: Estimate | None = getattr(summary, name)
        if estimate is not None:
            row |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    for figure, column in SERIES.items():
        values: Sequence[float] = getattr(summary, figure) or ()
        row |= {column.format(number): value for number, value in enumerate(values, start=1)}
    return row
