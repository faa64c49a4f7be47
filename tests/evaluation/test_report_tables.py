"""What tables say, and whole files against those that were read and approved."""

from dataclasses import replace
from pathlib import Path

import pytest
from report_helpers import (
    GREEDY,
    HOSTILE,
    PageReader,
    draft_row,
    empty_results,
    large_results,
    plain_row,
    single_results,
    small_results,
)

from transformers_griffin.evaluation.report import markdown_tables
from transformers_griffin.evaluation.report.markdown import escape, markdown_report
from transformers_griffin.evaluation.report.page import html_report
from transformers_griffin.evaluation.report.spreadsheet import csv_text
from transformers_griffin.evaluation.report.tables import detail_table, headlines, interval_table, paper_table
from transformers_griffin.evaluation.report.texts import flatten, write_estimate, write_mark
from transformers_griffin.evaluation.results import Estimate


APPROVED = Path(__file__).parent / "report_files"


def shown(table) -> dict[str, list[list[str]]]:
    """Texts by section; the best between asterisks."""
    return {
        section.title: [[f"*{cell.text}*" if cell.is_best else cell.text for cell in row] for row in section.rows]
        for section in table.sections
    }


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("results.csv", csv_text),
        ("report.md", lambda results: markdown_report(results, [("A picture", "picture.png")])),
        ("report.html", html_report),
    ],
)
def test_files_are_as_approved(name, write):
    assert write(small_results()) == (APPROVED / name).read_text(encoding="utf-8")


def test_the_paper_table_has_pairs_of_columns_and_the_best_in_bold():
    """1.50 and 1.504 look the same and are both best. Mean SR of the hostile draft: (1.504 + 2.0) / 2 = 1.752."""
    table = paper_table(small_results())
    assert [(column.group, column.title) for column in table.columns] == [
        ("", "Method"),
        ("GSM8K", "SR"),
        ("GSM8K", "τ"),
        ("my <set>", "SR"),
        ("my <set>", "τ"),
        ("Mean", "SR"),
        ("Mean", "τ"),
    ]
    assert shown(table) == {
        "float32 T=0": [
            ["plain", "1.00×", "–", "1.00×", "–", "1.00×", "–"],
            ["hass", "*1.50×*", "3.00", "1.25×", "2.50", "1.38×", "2.75"],
            [HOSTILE, "*1.50×*", "*4.00*", "*2.00×*", "*4.50*", "*1.75×*", "*4.25*"],
        ],
        "float32 T=1": [
            ["plain", "*1.00×*", "–", "*1.00×*", "–", "*1.00×*", "–"],
            ["hass", "0.50×", "1.50", "0.75×", "1.75", "0.62×", "1.62"],
            [f"{HOSTILE} ¹", "–", "–", "–", "–", "–", "–"],
        ],
    }


def test_a_single_domain_is_no_mean_and_a_single_figure_is_not_the_best():
    table = paper_table(single_results())
    assert [column.group for column in table.columns] == ["", "GSM8K", "GSM8K"]
    assert shown(table) == {"float32 T=0": [["plain", "1.00×", "–"], ["hass", "*1.50×*", "3.00"]]}
    assert detail_table(single_results()).title == "GSM8K, in detail"


def test_figures_that_nobody_measured_are_dashes_and_empty_and_never_0():
    results = empty_results()
    for table in (paper_table(results), interval_table(results), detail_table(results)):
        for name, *cells in table.sections[0].rows:
            assert name.text == "plain"
            assert {cell.text for cell in cells} == {"–"}
    header, row = (line.split(",") for line in csv_text(results).splitlines())
    figures = dict(zip(header, row, strict=True))
    assert {name for name, text in figures.items() if text == "0"} == {"num_prompts", "num_answers", "num_tokens"}
    assert figures["tau"] == figures["cycle_cost"] == figures["host_share"] == ""
    assert headlines(results) == {"float32 T=0": "No speed-up was measured."}


def test_results_without_any_summary_still_make_a_report():
    results = replace(empty_results(), summaries=[])
    assert "| float32 T=0 | plain | – | – |" in markdown_tables(results)
    assert csv_text(results).count("\n") == 1
    PageReader(html_report(results))


def test_large_results_have_a_row_for_every_method_and_setting():
    sections = shown(paper_table(large_results()))
    assert list(sections) == ["float32 T=0", "float32 T=1", "bfloat16 T=0", "bfloat16 T=1"]
    for rows in sections.values():
        assert [row[0] for row in rows] == ["plain", *(f"draft{i}" for i in range(7))]
        assert rows[-1][1:] == ["*2.50×*", "*5.00*"] * 4
    assert csv_text(large_results()).count("\n") == 1 + 8 * 4 * 4


def test_details_are_those_of_all_domains():
    row = shown(detail_table(small_results()))["float32 T=0"][1]
    assert row == ["hass", "2.00", "25 % / 62 % / 12 %", "21.5 ms", "123MB", "3/3", "12 %"]
    row = shown(interval_table(small_results()))["float32 T=0"][1]
    assert row[1:4] == ["1.44× [1.19, 1.94]", "1.44× [1.19, 1.94]", "2.88 [2.62, 3.38]"]


def test_headlines_say_when_plain_decoding_is_faster():
    assert headlines(small_results()) == {
        "float32 T=0": f"{HOSTILE} is 1.62× [1.38, 2.12] as fast as plain eager decoding, 1.62× [1.38, 2.12] as fast "
        "as the best plain mode, at 4.12 tokens per cycle.",
        "float32 T=1": "Plain decoding is fastest. What comes closest: hass is 0.69× [0.44, 1.19] as fast as plain "
        "eager decoding, 0.69× [0.44, 1.19] as fast as the best plain mode, at 1.69 tokens per cycle.",
    }


def test_a_draft_that_only_beats_eager_decoding_is_not_called_faster():
    row = replace(draft_row(GREEDY.name, "hass", "all", 1, 1.5, 3.0), speedup_over_best_plain=Estimate(0.9, 0.8, 1.0))
    results = replace(single_results(), summaries=[plain_row(GREEDY.name, "all", 1), row])
    assert headlines(results)[GREEDY.name].startswith("Plain decoding is fastest. What comes closest: hass is 1.50×")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a|b", "a\\|b"),
        ("<b> & c", "&lt;b&gt; &amp; c"),
        ("*x* `y` \\", "\\*x\\* \\`y\\` \\\\"),
        ("mt_bench _x_", "mt_bench \\_x\\_"),
        ("[a](b)", "[a]\\(b)"),
        ("1.5 [1.2, 1.8]", "1.5 [1.2, 1.8]"),
        ("two\nlines", "two lines"),
    ],
)
def test_markdown_shows_texts_as_they_are(text, expected):
    assert escape(text) == expected


def test_small_texts():
    assert write_estimate(Estimate(1.234, 1, 2), unit="×") == "1.23× [1.00, 2.00]"
    assert write_mark(12) == "¹²"
    assert dict(flatten({"a": {"b": 1, "c": [1, 2]}, "d": None, "e": {}})) == {
        "a.b": "1",
        "a.c": "1, 2",
        "d": "–",
        "e": "{}",
    }
