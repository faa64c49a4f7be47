"""The `griffin report` command."""

import json
from pathlib import Path

import pytest
from report_helpers import single_results, small_results

from transformers_griffin.cli import main
from transformers_griffin.cli.report import default_output


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A results folder `one`, and a file `other.json`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one").mkdir()
    single_results().save(tmp_path / "one" / "results.json")
    small_results().save(tmp_path / "other.json")
    return tmp_path


def test_the_report_of_one_run_is_written_and_named(runs, capsys):
    assert main(["report", "one"]) == 0
    assert (runs / "one" / "report.html").is_file()
    assert capsys.readouterr().out == (
        "Wrote one: results.json, results.csv, report.md, report.html, speed_and_acceptance.png, "
        "acceptance_by_depth.png, misaligned_by_pass.png, cycle_time.png\n"
    )


@pytest.mark.parametrize(("run", "folder"), [("one", "one"), ("one/results.json", "one"), ("other.json", "other")])
def test_a_report_stands_beside_its_results_and_replaces_no_others(runs, run, folder):
    assert default_output(Path(run)) == Path(folder)


def test_several_runs_are_compared_on_stdout_and_in_files_if_wanted(runs, capsys):
    assert main(["report", "one", "other.json"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("# Benchmarks compared\n")
    assert "| Method | Domain | one | other.json |" in printed
    assert not [*runs.rglob("comparison*")]
    assert main(["report", "one", "other.json", "--output", "compared"]) == 0
    assert capsys.readouterr().out.endswith("Wrote compared: comparison.md, comparison.html\n")
    assert (runs / "compared" / "comparison.md").read_text(encoding="utf-8") in printed + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "missing does not exist. Give the results.json"),
        (["wrong.json"], "wrong.json has the schema version None, but 1 is read."),
        (["text.json"], "text.json is no JSON file"),
        (["one", "one"], "A run is named twice: one one. Name every run once."),
    ],
)
def test_what_cannot_be_reported_is_one_line_on_stderr(runs, capsys, arguments, message):
    (runs / "wrong.json").write_text(json.dumps({"a": 1}))
    (runs / "text.json").write_text("tau = 3")
    assert main(["report", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("griffin report: ")
    assert message in error
    assert error.count("\n") == 1


def test_help_names_both_uses(capsys):
    with pytest.raises(SystemExit):
        main(["report", "--help"])
    assert "griffin report runs/before runs/after" in capsys.readouterr().out
