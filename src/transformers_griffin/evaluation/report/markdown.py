"""
Tables and reports in GitHub's Markdown, which has no cells that span columns or rows.

Next: `page.py`, the same as one HTML file.
"""

import re
from collections.abc import Sequence

from ..results import BenchmarkResults
from .tables import (
    LEGEND,
    Cell,
    Section,
    Table,
    detail_table,
    headlines,
    interval_table,
    methods_table,
    notes_of,
    paper_table,
    provenance_table,
    settings_table,
)
from .texts import write_mark


INCOMPLETE = "This benchmark is not complete: the figures are of what has been measured so far."


def markdown_tables(results: BenchmarkResults) -> str:
    """
    The tables of a benchmark with their legend, for a README or a model card.

    Args:
        results ([`BenchmarkResults`]): what `griffin bench` left behind.

    Returns:
        `str`: Markdown without headings: SR and tau in the layout of the paper's Table 1, details, what the methods
        are, the notes on missing figures, and what the words mean.
    """
    return "\n\n".join(
        [
            markdown_table(paper_table(results)),
            *(
                f"{table.title}:\n\n{markdown_table(table)}"
                for table in (interval_table(results), detail_table(results))
            ),
            *([markdown_notes(results)] if notes_of(results) else []),
            markdown_table(methods_table(results)),
            markdown_legend(LEGEND),
        ]
    )


def markdown_report(results: BenchmarkResults, pictures: Sequence[tuple[str, str]] = ()) -> str:
    """
    A whole report.

    Args:
        results ([`BenchmarkResults`]): what `griffin bench` left behind.
        pictures (`Sequence[tuple[str, str]]`): title and path of each, relative to the report.
    """
    parts = [f"# {escape(results.title)}", *([f"**{INCOMPLETE}**"] if not results.is_complete else [])]
    parts += ["\n".join(f"- **{escape(name)}**: {escape(text)}" for name, text in headlines(results).items())]
    parts += [markdown_tables(results)]
    parts += [f"![{escape(title)}]({path})" for title, path in pictures]
    tables = (settings_table(results), provenance_table(results))
    parts += [f"## {table.title}\n\n{markdown_table(table)}" for table in tables]
    return "\n\n".join(parts) + "\n"


def markdown_table(table: Table) -> str:
    """A table; the title of a section stands in its first row."""
    titles = [f"{escape(column.group)} {escape(column.title)}".strip() for column in table.columns]
    rules = ["---:" if column.kind == "number" else "---" for column in table.columns]
    rows = [[_write(cell) for cell in row] for section in table.sections for row in section.rows]
    if table.section_column:
        titles, rules = [escape(table.section_column), *titles], ["---", *rules]
        firsts = [title for section in table.sections for title in _first_column(section)]
        rows = [[first, *row] for first, row in zip(firsts, rows, strict=True)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [titles, rules, *rows])


def _first_column(section: Section) -> list[str]:
    return [escape(section.title), *[""] * (len(section.rows) - 1)][: len(section.rows)]


def markdown_notes(results: BenchmarkResults) -> str:
    """Why figures are missing."""
    return "\n".join(f"- {write_mark(number)} {escape(note)}" for note, number in notes_of(results).items())


def markdown_legend(legend: dict[str, str]) -> str:
    """What the words mean."""
    return "\n".join(f"- **{escape(word)}**: {escape(meaning)}" for word, meaning in legend.items())


def escape(text: str) -> str:
    """Text that Markdown shows as it is, also within a table."""
    text = text.replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([|*`]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", text)
    return " ".join(text.replace("](", "]\\(").split())


def _write(cell: Cell) -> str:
    return f"**{escape(cell.text)}**" if cell.is_best else escape(cell.text)
