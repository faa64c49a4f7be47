"""
The tables of a benchmark, as cells of text: Markdown and HTML are made of the same ones.

Next: `markdown.py` and `page.py`, which write them; `comparison.py`, which makes tables of several runs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from statistics import fmean
from typing import Literal

from ..results import ALL_DOMAINS, BenchmarkResults, Estimate, Method, Summary
from .texts import (
    MISSING,
    domain_title,
    flatten,
    write_bytes,
    write_estimate,
    write_mark,
    write_milliseconds,
    write_number,
    write_parameters,
    write_share,
)


TREE = ("num_assistant_tokens", "draft_tree_depth", "draft_tree_top_k")


@dataclass(frozen=True)
class Column:
    """A column, and the group of neighbours that it stands in."""

    title: str
    group: str = ""
    kind: Literal["number", "name", "prose"] = "number"  # numbers are set flush right, names are never broken


@dataclass(frozen=True)
class Cell:
    """What stands in one place of a table."""

    text: str
    is_best: bool = False  # set in bold


@dataclass(frozen=True)
class Section:
    """Rows that belong together; the title stands once, left of them."""

    title: str
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Table:
    """A table whose rows may come in sections."""

    title: str
    columns: list[Column]
    sections: list[Section]
    section_column: str = ""  # what the titles of the sections are; without it they have no column


LEGEND = {
    "τ": "new tokens per cycle of drafting and verification.",
    "SR": "tokens per second over those of plain eager generate(), same target, prompts, machine and run.",
    "over best plain": "the same over the fastest plain mode that was measured.",
    "cycle cost": "τ / SR, the number of plain decoding steps that one cycle takes.",
    "first token": "median time until the target has read the prompt.",
    "memory": "the most that was allocated while answering, beyond what was allocated before.",
    "identical": "answers equal to those of plain eager generate(), token for token; greedy decoding only.",
    "repeated": "share of the answers' 4-grams that occurred before; an answer that loops is easy to draft.",
    "Mean": "of the domains' figures, as in the paper.",
    "All": "all prompts of all domains together, so that long answers weigh more.",
    "[low, high]": "95 % bootstrap interval over prompts.",
    MISSING: "not measured; plain decoding has no cycles.",
}


def by_key(results: BenchmarkResults) -> dict[tuple[str, str, str], Summary]:
    """Summaries by setting, method and domain."""
    return {(summary.setting, summary.method, summary.domain): summary for summary in results.summaries}


def domains_of(results: BenchmarkResults) -> list[str]:
    """Domains in their order, all of them together last; a single one is not repeated as all."""
    domains = list(dict.fromkeys(s.domain for s in results.summaries if s.domain != ALL_DOMAINS))
    return domains if len(domains) == 1 else [*domains, ALL_DOMAINS]


def is_plain(method: Method) -> bool:
    """Whether the target decodes alone."""
    return method.kind.startswith("plain")


def notes_of(results: BenchmarkResults) -> dict[str, int]:
    """The notes on missing figures, numbered from 1 in the order of the tables."""
    notes = dict.fromkeys(summary.note for summary in results.summaries if summary.note)
    return {note: number for number, note in enumerate(notes, start=1)}


def paper_table(results: BenchmarkResults) -> Table:
    """SR and tau of every method by setting and domain, the best in bold: the layout of the paper's Table 1."""
    domains, summaries = [d for d in domains_of(results) if d != ALL_DOMAINS] or [ALL_DOMAINS], by_key(results)
    groups = [domain_title(domain) for domain in domains] + ["Mean"] * (len(domains) > 1)
    columns = [Column("Method", kind="name"), *(Column(title, group) for group in groups for title in ("SR", "τ"))]
    sections = []
    for setting in results.settings:
        found = [[summaries.get((setting.name, m.name, domain)) for domain in domains] for m in results.methods]
        cells = _bold_best([_speedups_and_taus(row) for row in found])
        labels = [_label(results, method, row) for method, row in zip(results.methods, found, strict=True)]
        rows = [[label, *row] for label, row in zip(labels, cells, strict=True)]
        sections.append(Section(setting.name, rows))
    return Table("Results", columns, sections, section_column="Setting")


def _speedups_and_taus(domains: Sequence[Summary | None]) -> list[float | None]:
    """SR and tau by turns: of every domain, then their means over domains."""
    speedups = _with_mean([summary.speedup_over_eager if summary else None for summary in domains])
    taus = _with_mean([summary.tau if summary else None for summary in domains])
    return [figure for pair in zip(speedups, taus, strict=True) for figure in pair]


def _with_mean(estimates: Sequence[Estimate | None]) -> list[float | None]:
    """The values, and their mean if there are several; it is not known while one of them is not."""
    values = [None if estimate is None else estimate.value for estimate in estimates]
    known = [value for value in values if value is not None]
    mean = fmean(known) if known and len(known) == len(values) else None
    return [*values, mean] if len(values) > 1 else values


def _bold_best(rows: Sequence[Sequence[float | None]]) -> list[list[Cell]]:
    """Marks the largest SR or tau of every column, as it is shown, where at least two can be compared."""
    shown = [[None if value is None else round(value, 2) for value in row] for row in rows]
    columns = [[value for value in column if value is not None] for column in zip(*shown, strict=True)]
    best = [max(column) if len(column) > 1 else None for column in columns]
    return [
        [
            Cell(write_number(value, unit=unit), value is not None and value == top)
            for value, top, unit in zip(row, best, cycle(("×", "")), strict=False)
        ]
        for row in shown
    ]


def _label(results: BenchmarkResults, method: Method, summaries: Sequence[Summary | None]) -> Cell:
    """The method's name with the marks of the notes that belong to its row."""
    numbers = notes_of(results)
    notes = dict.fromkeys(summary.note for summary in summaries if summary and summary.note)
    return Cell(" ".join([method.name, *(write_mark(numbers[note]) for note in notes)]))


Write = Callable[[Summary], str]
INTERVALS: dict[str, Write] = {
    "SR": lambda s: write_estimate(s.speedup_over_eager, unit="×"),
    "over best plain": lambda s: write_estimate(s.speedup_over_best_plain, unit="×"),
    "τ": lambda s: write_estimate(s.tau),
    "tokens/s": lambda s: write_estimate(s.tokens_per_second, digits=1),
}
DETAILS: dict[str, Write] = {
    "cycle cost": lambda s: write_number(s.cycle_cost),
    "draft / verify / host": lambda s: " / ".join(map(write_share, shares_of(s) or [None])),
    "first token": lambda s: write_milliseconds(s.first_token_seconds),
    "memory": lambda s: write_bytes(s.peak_memory_bytes),
    "identical": lambda s: MISSING if s.num_identical is None else f"{s.num_identical}/{s.num_answers}",
    "repeated": lambda s: write_share(s.repeated_4grams),
}


def shares_of(summary: Summary) -> tuple[float, float, float] | None:
    """Draft's, verification's and the host's share of the time, or None if that is not known."""
    if summary.draft_share is None or summary.verify_share is None:
        return None
    return summary.draft_share, summary.verify_share, 1 - summary.draft_share - summary.verify_share


def interval_table(results: BenchmarkResults) -> Table:
    """Every method over all domains: what has an interval."""
    return _overall_table(results, "{}, with intervals", INTERVALS)


def detail_table(results: BenchmarkResults) -> Table:
    """Every method over all domains: what has none."""
    return _overall_table(results, "{}, in detail", DETAILS)


def _overall_table(results: BenchmarkResults, title: str, figures: dict[str, Write]) -> Table:
    summaries, domain = by_key(results), domains_of(results)[-1]
    sections = []
    for setting in results.settings:
        rows = []
        for method in results.methods:
            summary = summaries.get((setting.name, method.name, domain))
            cells = [Cell(write(summary) if summary else MISSING) for write in figures.values()]
            rows.append([_label(results, method, [summary]), *cells])
        sections.append(Section(setting.name, rows))
    columns = [Column("Method", kind="name"), *map(Column, figures)]
    return Table(title.format(domain_title(domain)), columns, sections, section_column="Setting")


def methods_table(results: BenchmarkResults) -> Table:
    """What the methods are."""
    rows = [
        [
            Cell(method.name),
            Cell(method.description),
            Cell(write_parameters(method.num_parameters)),
            Cell("/".join(str(method.tree[name]) for name in TREE) if method.tree else MISSING),
        ]
        for method in results.methods
    ]
    titles = [Column("Method", kind="name"), Column("what it is", kind="prose"), Column("parameters")]
    return Table("Methods", [*titles, Column("tree (nodes/levels/width)")], [Section("", rows)])


def settings_table(results: BenchmarkResults) -> Table:
    """What the settings are."""
    rows = [
        [
            Cell(setting.name),
            Cell(setting.dtype),
            Cell(str(setting.batch_size)),
            Cell(", ".join(f"{name}={value}" for name, value in setting.generate_kwargs.items()) or MISSING),
        ]
        for setting in results.settings
    ]
    titles = [Column("Setting", kind="name"), Column("dtype", kind="name"), Column("batch size")]
    return Table("Settings", [*titles, Column("arguments of generate()", kind="prose")], [Section("", rows)])


def provenance_table(results: BenchmarkResults) -> Table:
    """Where the numbers come from."""
    rows = [[Cell(name), Cell(text)] for name, text in flatten({"target": results.target} | results.provenance)]
    return Table("Provenance", [Column("what", kind="name"), Column("value", kind="prose")], [Section("", rows)])


def headlines(results: BenchmarkResults) -> dict[str, str]:
    """By setting, one sentence: what is fastest over all domains, and by how much."""
    summaries, domain = by_key(results), domains_of(results)[-1]
    others = [method.name for method in results.methods if not is_plain(method)]
    return {
        setting.name: _headline([s for name in others if (s := summaries.get((setting.name, name, domain)))])
        for setting in results.settings
    }


def _headline(summaries: Sequence[Summary]) -> str:
    """Of the fastest of these methods, none of which is plain decoding."""
    speeds = [(summary.speedup_over_eager, summary) for summary in summaries if summary.speedup_over_eager]
    if not speeds:
        return "No speed-up was measured."
    over_eager, fastest = max(speeds, key=lambda entry: entry[0].value)
    text = f"{fastest.method} is {write_estimate(over_eager, unit='×')} as fast as plain eager decoding"
    over_best_plain = fastest.speedup_over_best_plain
    if over_best_plain is not None:
        text += f", {write_estimate(over_best_plain, unit='×')} as fast as the best plain mode"
    if fastest.tau is not None:
        text += f", at {fastest.tau.value:.2f} tokens per cycle"
    is_slower = (over_best_plain or over_eager).value < 1
    return f"Plain decoding is fastest. What comes closest: {text}." if is_slower else f"{text}."
