"""Runs side by side."""

from dataclasses import replace

from report_helpers import GREEDY, HOSTILE, PageReader, draft_row, single_results, small_results

from transformers_griffin.evaluation.report import markdown_comparison, write_comparison
from transformers_griffin.evaluation.report.comparison import OTHER_DEVICES, comparison_tables, warnings
from transformers_griffin.evaluation.results import BenchmarkResults, Estimate


def run_with(speedup: Estimate | None, tau: Estimate | None, **changes) -> BenchmarkResults:
    row = replace(draft_row(GREEDY.name, "hass", "all", 2, 1.5, 3.0), speedup_over_eager=speedup, tau=tau)
    return replace(single_results(), summaries=[row], **changes)


def tables(**runs) -> dict[str, dict[str, list[list[str]]]]:
    """Texts by title and section; what is clearly different between asterisks."""
    return {
        table.title: {
            section.title: [[f"*{c.text}*" if c.is_best else c.text for c in row] for row in section.rows]
            for section in table.sections
        }
        for table in comparison_tables(runs)
    }


def test_figures_stand_beside_each_other_with_the_difference_to_the_first():
    """tau: 3.0 to 3.3 is + 10 %, and the intervals touch no more."""
    before = run_with(Estimate(1.5, 1.4, 1.6), Estimate(3.0, 2.9, 3.1))
    after = run_with(Estimate(1.56, 1.46, 1.66), Estimate(3.3, 3.2, 3.4))
    found = tables(before=before, after=after, later=run_with(None, Estimate(2.4, 2.0, 2.9)))
    assert found["SR"] == {"float32 T=0 · hass": [["All", "1.50 [1.40, 1.60]", "1.56 [1.46, 1.66] (+4.0 %)", "–"]]}
    assert found["τ"] == {
        "float32 T=0 · hass": [
            ["All", "3.00 [2.90, 3.10]", "*3.30 [3.20, 3.40] (+10.0 %)*", "2.40 [2.00, 2.90] (-20.0 %)"]
        ]
    }
    assert found["cycle cost"] == {"float32 T=0 · hass": [["All", "2.00", "2.00 (+0.0 %)", "2.00 (+0.0 %)"]]}


def test_a_figure_that_the_first_run_lacks_has_no_difference():
    found = tables(a=run_with(None, Estimate(3, 2, 4)), b=run_with(Estimate(1.5, 1.4, 1.6), Estimate(3, 2, 4)))
    assert found["SR"] == {"float32 T=0 · hass": [["All", "–", "1.50 [1.40, 1.60]"]]}


def test_a_figure_that_no_run_has_has_no_table():
    assert "SR" not in tables(a=run_with(None, None), b=run_with(None, None))


def test_what_differs_is_named_and_dates_do_not():
    first, second = small_results(), small_results()
    second = replace(
        second,
        provenance=second.provenance | {"versions": {"torch": "2.14.0"}, "date": "2027-01-01", "commit": "abc"},
        settings=[GREEDY, replace(second.settings[1], batch_size=4)],
    )
    assert tables(a=first, b=second)["What differs"] == {
        "": [
            ["versions.torch", "2.13.0", "2.14.0"],
            ["commit", "–", "abc"],
            [
                "settings.float32 T=1",
                "dtype float32; generate_kwargs.do_sample True; generate_kwargs.temperature 1.0; batch_size 2",
                "dtype float32; generate_kwargs.do_sample True; generate_kwargs.temperature 1.0; batch_size 4",
            ],
        ]
    }
    assert "What differs" not in tables(a=first, b=small_results())


def test_methods_of_one_run_only_are_shown_as_missing_in_the_other():
    found = tables(a=single_results(), b=small_results())
    assert found["τ"][f"float32 T=0 · {HOSTILE}"][0] == ["GSM8K", "–", "4.00 [3.75, 4.50]"]


def test_speeds_of_different_machines_come_with_a_warning():
    other = replace(small_results(), provenance={"device": "NVIDIA H200"}, is_complete=True)
    assert warnings({"a": small_results(), "b": other}) == [OTHER_DEVICES, "a is not complete."]
    assert warnings({"a": other, "b": other}) == []
    assert f"**{OTHER_DEVICES}**" in markdown_comparison({"a": small_results(), "b": other})


def test_a_comparison_is_two_files(tmp_path):
    written = write_comparison({"a|1": small_results(), "<b>": single_results()}, tmp_path / "new")
    assert [path.name for path in written] == ["comparison.md", "comparison.html"]
    assert "| Method | Domain | a\\|1 | &lt;b&gt; |" in written[0].read_text(encoding="utf-8")
    page = written[1].read_text(encoding="utf-8")
    assert HOSTILE in PageReader(page).text
    assert PageReader(page).loads == []
