"""
A report as one HTML file that needs no network: styles and pictures are inside, and it follows the reader's choice of
light or dark.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from string import Template

from ..results import BenchmarkResults
from .markdown import INCOMPLETE
from .pictures import Picture
from .tables import (
    LEGEND,
    Cell,
    Column,
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


TEMPLATE = Path(__file__).with_name("page.html")


def html_report(results: BenchmarkResults, pictures: Sequence[Picture] = ()) -> str:
    """
    A whole report as one HTML file.

    Args:
        results ([`BenchmarkResults`]): what `griffin bench` left behind.
        pictures (`Sequence[Picture]`): from [`draw_pictures`].
    """
    known = [results.provenance.get(name) for name in ("device", "date")]
    facts = [results.target, *(str(fact) for fact in known if fact is not None)]
    notes = [f"{write_mark(number)} {note}" for note, number in notes_of(results).items()]
    parts = [
        html_head(results.title, facts, [] if results.is_complete else [INCOMPLETE]),
        _definitions(headlines(results), "headlines"),
        html_table(paper_table(results)),
        html_notes(notes),
        *map(html_picture, pictures),
        html_table(interval_table(results)),
        html_table(detail_table(results)),
        html_notes(notes),
        _definitions(LEGEND, "legend"),
        *(html_table(make(results)) for make in (methods_table, settings_table, provenance_table)),
    ]
    return html_page(results.title, parts)


def html_page(title: str, parts: Iterable[str]) -> str:
    """The file around the parts of a body."""
    template = Template(TEMPLATE.read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), body="\n".join(part for part in parts if part))


def html_head(title: str, facts: Sequence[str], warnings: Sequence[str]) -> str:
    """Title, what it is about in a line, and what the reader must know first."""
    lines = [f"<h1>{escape(title)}</h1>", f'<p class="facts">{escape(" · ".join(facts))}</p>']
    return "\n".join([*lines, *(f'<p class="warning">{escape(warning)}</p>' for warning in warnings)])


def html_table(table: Table) -> str:
    """A table under its title; titles of groups and sections span their columns and rows."""
    columns = ([Column(table.section_column, kind="name")] if table.section_column else []) + table.columns
    lines = [f"<h2>{escape(table.title)}</h2>", '<div class="wide">', "<table>", "<thead>"]
    if any(column.group for column in columns):
        groups = [(group, len(list(members))) for group, members in groupby(columns, lambda column: column.group)]
        lines.append(_row(f'<th class="group" colspan="{size}">{escape(group)}</th>' for group, size in groups))
    lines += [_row(f'<th{_kind(column)} scope="col">{escape(column.title)}</th>' for column in columns), "</thead>"]
    lines += [_section(section, table) for section in table.sections]
    return "\n".join([*lines, "</table>", "</div>"])


def _section(section: Section, table: Table) -> str:
    rows = [[_cell(cell, column) for cell, column in zip(row, table.columns, strict=True)] for row in section.rows]
    if table.section_column and rows:
        title = f'<th class="name section" scope="rowgroup" rowspan="{len(rows)}">{escape(section.title)}</th>'
        rows[0].insert(0, title)
    return "\n".join(["<tbody>", *map(_row, rows), "</tbody>"])


def _row(cells: Iterable[str]) -> str:
    return f"<tr>{''.join(cells)}</tr>"


def _cell(cell: Cell, column: Column) -> str:
    text = escape(cell.text)
    return f"<td{_kind(column)}>{f'<b>{text}</b>' if cell.is_best else text}</td>"


def _kind(column: Column) -> str:
    return "" if column.kind == "number" else f' class="{column.kind}"'


def html_notes(notes: Sequence[str]) -> str:
    """Lines below a table."""
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<ul class="notes">{items}</ul>' if notes else ""


def html_picture(picture: Picture) -> str:
    """A picture under its title, as SVG in the page's colours."""
    svg = picture.svg().replace("<svg ", f'<svg role="img" aria-label="{escape(picture.title)}" ', 1)
    return f"<h2>{escape(picture.title)}</h2>\n<figure>\n{svg.strip()}\n</figure>"


def _definitions(texts: Mapping[str, str], kind: str) -> str:
    items = [f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in texts.items()]
    if kind == "headlines":
        items = [f"<div>{item}</div>" for item in items]
    return "\n".join([f'<dl class="{kind}">', *items, "</dl>"])
