"""`griffin report`: tables, pictures and a page of a benchmark, or a comparison of several."""

import argparse
from pathlib import Path
from typing import Any

from .shared import add_parser


EXAMPLES = """\
One run: writes results.csv, report.md, report.html and the plots next to its results.json (with --output: there).
Several runs: prints how they differ from the first one; --output also writes comparison.md and comparison.html.

examples:
  griffin report runs/bench
  griffin report results.json --output report
  griffin report runs/before runs/after
  griffin report runs/a100/results.json runs/h200/results.json --output compared
"""


def add_to(subparsers: Any) -> None:
    """`griffin report`"""
    parser = add_parser(subparsers, "report", "report what a benchmark measured, or compare several", EXAMPLES)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a results folder, or the JSON file in it")
    parser.add_argument("--output", metavar="DIR", help="folder to write to")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Writes the report of one run, or compares several."""
    from ..evaluation.report import markdown_comparison, write_comparison, write_report
    from ..evaluation.results import BenchmarkResults

    runs = {path: BenchmarkResults.load(path) for path in args.runs}
    if len(runs) < len(args.runs):
        raise ValueError(f"A run is named twice: {' '.join(args.runs)}. Name every run once.")
    if len(runs) == 1:
        written = write_report(runs[args.runs[0]], args.output or default_output(Path(args.runs[0])))
    else:
        print(markdown_comparison(runs))
        written = write_comparison(runs, args.output) if args.output else []
    if written:
        print(f"Wrote {written[0].parent}: {', '.join(path.name for path in written)}")


def default_output(run: Path) -> Path:
    """The results folder itself; for a file of another name a folder named after it, so that nothing is replaced."""
    if run.is_dir():
        return run
    return run.parent if run.name == "results.json" else run.with_suffix("")
