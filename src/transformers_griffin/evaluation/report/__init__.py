"""
Reports of a benchmark: tables, pictures and pages made of [`BenchmarkResults`], and comparisons of several runs.

Start with `files.py`; `tables.py` decides what is shown, `markdown.py` and `page.py` how it is written.
"""

from .comparison import markdown_comparison
from .files import write_comparison, write_report
from .markdown import markdown_tables


__all__ = ["markdown_comparison", "markdown_tables", "write_comparison", "write_report"]
