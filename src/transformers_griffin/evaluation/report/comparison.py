"""
Several runs side by side: figures with their differences, and what else differs between the runs.

Next: `files.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict

from ..results import BenchmarkResults, Estimate, Summary
from .markdown import escape, markdown_table
from .page import html_head, html_page, html_table
from .tables import Cell, Column, Section, Table, by_key, domains_of
from .texts import MISSING, domain_title, flatten, write_estimate, write_number


Runs = Mapping[str, BenchmarkResults]  # by the name that tables give them; the first is what others are compared with

FIGURES: dict[str, Callable[[Summary], Estimate | float | None]] = {
    "SR": lambda s: s.speedup_over_eager,
    "τ": lambda s: s.tau,
    "cycle cost": lambda s: s.cycle_cost,
    "tokens/s": lambda s: s.tokens_per_second,
}
TITLE = "Benchmarks compared"
LEGEND = "In brackets: the difference to the first run; in bold where the 95 % intervals do not overlap."
OTHER_DEVICES = (
    "The runs are of different devices. Tokens per second, seconds and memory do not compare between machines; SR and "
    "cycle cost compare each run with plain decoding on its own machine."
)


def markdown_comparison(runs: Runs) -> str:
    """
    Compares runs.

    Args:
        runs (`Mapping[str, BenchmarkResults]`): at least two, by name; the others are compared with the first.

    Returns:
        `str`: Markdown: which versions, devices, arguments, methods and settings differ, with a warning if absolute
        speeds do not compare, and a table a figure.
    """
    parts = [f"# {TITLE}", *(f"**{escape(warning)}**" for warning in warnings(runs))]
    tables = [f"## {escape(table.title)}\n\n{markdown_table(table)}" for table in comparison_tables(runs)]
    return "\n\n".join([*parts, LEGEND, *tables]) + "\n"


def html_comparison(runs: Runs) -> str:
    """The same as one HTML file."""
    head = html_head(TITLE, list(runs), warnings(runs))
    return html_page(TITLE, [head, f'<p class="facts">{LEGEND}</p>', *map(html_table, comparison_tables(runs))])


def comparison_tables(runs: Runs) -> list[Table]:
    """What differs between the runs, then a table for every figure that was measured."""
    tables = [_difference_table(runs), *(_figure_table(runs, *figure) for figure in FIGURES.items())]
    return [table for table in tables if table.sections]


def warnings(runs: Runs) -> list[str]:
    """What a reader must know before comparing."""
    devices = {tuple(flatten(results.provenance.get("device"))) for results in runs.values()}
    incomplete = [f"{name} is not complete." for name, results in runs.items() if not results.is_complete]
    return [*([OTHER_DEVICES] if len(devices) > 1 else []), *incomplete]


def _figure_table(runs: Runs, title: str, choose: Callable[[Summary], Estimate | float | None]) -> Table:
    summaries = [by_key(results) for results in runs.values()]
    sections: dict[str, list[list[Cell]]] = {}
    for setting, method, domain in _keys(runs):
        found = [run.get((setting, method, domain)) for run in summaries]
        figures = [choose(summary) if summary else None for summary in found]
        if any(figure is not None for figure in figures):
            cells = [_compare(figure, figures[0]) for figure in figures[1:]]
            row = [Cell(domain_title(domain)), Cell(_write(figures[0])), *cells]
            sections.setdefault(f"{setting} · {method}", []).append(row)
    columns = [Column("Domain", kind="name"), *map(Column, runs)]
    return Table(title, columns, [Section(name, rows) for name, rows in sections.items()], section_column="Method")


def _keys(runs: Runs) -> list[tuple[str, str, str]]:
    """Settings, methods and domains of all runs, in the order of their first appearance."""
    keys = [
        (setting.name, method.name, domain)
        for results in runs.values()
        for setting in results.settings
        for method in results.methods
        for domain in domains_of(results)
    ]
    return list(dict.fromkeys(keys))


def _compare(figure: Estimate | float | None, first: Estimate | float | None) -> Cell:
    if figure is None or first is None:
        return Cell(_write(figure))
    difference = _value(figure) / _value(first) - 1
    is_clear = (
        isinstance(figure, Estimate)
        and isinstance(first, Estimate)
        and (figure.low > first.high or figure.high < first.low)
    )
    return Cell(f"{_write(figure)} ({100 * difference:+.1f} %)", is_best=is_clear)


def _value(figure: Estimate | float) -> float:
    return figure.value if isinstance(figure, Estimate) else figure


def _write(figure: Estimate | float | None) -> str:
    return write_estimate(figure) if isinstance(figure, Estimate) else write_number(figure)


def _difference_table(runs: Runs) -> Table:
    """Facts of the runs that are not the same for all; when they were made is no difference."""
    facts = [dict(flatten(_facts(results))) for results in runs.values()]
    names = [name for name in dict.fromkeys(name for run in facts for name in run) if name != "date"]
    rows = [
        [Cell(name), *(Cell(run.get(name, MISSING)) for run in facts)]
        for name in names
        if len({run.get(name) for run in facts}) > 1
    ]
    columns = [Column("what", kind="name"), *(Column(run, kind="prose") for run in runs)]
    return Table("What differs", columns, [Section("", rows)] if rows else [])


def _facts(results: BenchmarkResults) -> dict[str, object]:
    """Target and provenance, and each method and setting in a line."""
    methods = {method.name: _in_a_line(asdict(method)) for method in results.methods}
    settings = {setting.name: _in_a_line(asdict(setting)) for setting in results.settings}
    return {"target": results.target} | results.provenance | {"methods": methods, "settings": settings}


def _in_a_line(fields: dict[str, object]) -> str:
    return "; ".join(f"{name} {text}" for name, text in flatten(fields) if name != "name")
