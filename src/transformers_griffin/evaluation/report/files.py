"""Writes reports: every file of a results folder but the measurements themselves."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from transformers.utils import logging

from ..results import BenchmarkResults
from .comparison import html_comparison, markdown_comparison
from .markdown import markdown_report
from .page import html_report
from .plots import draw_pictures
from .spreadsheet import csv_text


logger = logging.get_logger(__name__)


def write_report(results: BenchmarkResults, folder: str | Path) -> list[Path]:
    """
    Writes `results.json`, `results.csv`, `report.md`, `report.html`, and a PNG a picture.

    Without matplotlib there are no pictures, and a warning that says so: a long benchmark does not end with an error.

    Args:
        results ([`BenchmarkResults`]): what was measured.
        folder (`str` or `Path`): made if needed; files of these names are replaced.

    Returns:
        `list[Path]`: the files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    has_matplotlib = find_spec("matplotlib") is not None
    if not has_matplotlib:
        logger.warning('The report has no pictures. They need matplotlib: pip install "transformers-griffin[plot]".')
    pictures = draw_pictures(results) if has_matplotlib else []
    results.save(folder / "results.json")
    images = [(picture.title, f"{picture.name}.png") for picture in pictures]
    for picture, (_, name) in zip(pictures, images, strict=True):
        (folder / name).write_bytes(picture.png())
    texts = {
        "results.csv": csv_text(results),
        "report.md": markdown_report(results, images),
        "report.html": html_report(results, pictures),
    }
    _write(texts, folder)
    return [folder / name for name in ("results.json", *texts, *(name for _, name in images))]


def write_comparison(runs: Mapping[str, BenchmarkResults], folder: str | Path) -> list[Path]:
    """
    Writes `comparison.md` and `comparison.html`.

    Args:
        runs (`Mapping[str, BenchmarkResults]`): at least two, by name; the others are compared with the first.
        folder (`str` or `Path`): made if needed; files of these names are replaced.

    Returns:
        `list[Path]`: the files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"comparison.md": markdown_comparison(runs), "comparison.html": html_comparison(runs)}
    _write(texts, folder)
    return [folder / name for name in texts]


def _write(texts: Mapping[str, str], folder: Path) -> None:
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
