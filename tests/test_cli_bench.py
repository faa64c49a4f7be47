"""`griffin bench`: what it writes and prints, and how it fails."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest

from transformers_griffin.cli import main
from transformers_griffin.cli.bench import DraftArgument
from transformers_griffin.evaluation import BenchmarkResults


PROMPTS = [{"id": i, "turns": [f"w{i} w2 w3 w{i}"]} for i in range(1, 6)]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "words.jsonl"
    path.write_text("\n".join(map(json.dumps, PROMPTS)))
    return path


def bench_args(pair, prompts, output, *more: str) -> list[str]:
    fixed = ["--target", str(pair / "target"), "--prompts", str(prompts), "--output", str(output), "--device", "cpu"]
    return ["bench", *fixed, "--methods", "prompt_lookup", "--max-new-tokens", "8", *more]


def test_the_last_line_is_the_results_file_and_names_no_home_directory(pair, prompts, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    drafts = ["--draft", f"griffin={pair / 'draft'}", f"{pair / 'draft'}@4/2/2"]
    more = ["--temperature", "0", "1", "--dtype", "float32", "bfloat16", "--max-prompts", "2", "--top-p", "0.9"]
    assert main(bench_args(pair, prompts, tmp_path / "out", *drafts, *more)) == 0
    printed = capsys.readouterr().out.splitlines()
    results = BenchmarkResults.load(tmp_path / "out")
    assert json.loads(printed[-1]) == json.loads((tmp_path / "out" / "results.json").read_text())
    assert (tmp_path / "out" / "report.html").exists()
    assert printed[0].startswith("| Setting | Method |"), "the tables come first"
    assert str(tmp_path) not in printed[-1]
    assert str(pair) not in printed[-1]
    assert results.is_complete
    assert [method.name for method in results.methods] == ["plain", "prompt_lookup", "griffin", "draft"]
    assert [setting.name for setting in results.settings] == [
        "float32 T=0",
        "float32 T=1 top_p=0.9",
        "bfloat16 T=0",
        "bfloat16 T=1 top_p=0.9",
    ]
    assert len(results.summaries) == 4 * 4 * 2
    assert {(s.num_prompts, s.num_answers) for s in results.summaries} == {(2, 2)}
    exact = [s for s in results.summaries if s.setting == "float32 T=0"]
    assert all(s.num_identical == 2 and s.speedup_over_eager for s in exact)
    assert results.provenance["arguments"]["draft"] == ["griffin=draft", "draft=draft@4/2/2"]
    assert [tuple(method.tree.values()) for method in results.methods[2:]] == [(8, 3, 2), (4, 2, 2)]


@pytest.mark.slow
def test_batches_of_several_sizes_are_settings_of_one_run(pair, prompts, tmp_path):
    """Three prompts, so that the last batch of two is not full; every answer is the plain one."""
    more = ["--draft", f"griffin={pair / 'draft'}", "--batch-size", "1", "2", "--max-prompts", "3"]
    assert main(bench_args(pair, prompts, tmp_path / "out", *more)) == 0
    results = BenchmarkResults.load(tmp_path / "out")
    assert [setting.batch_size for setting in results.settings] == [1, 2]
    rows = [s for s in results.summaries if s.method == "griffin" and s.domain == results.summaries[0].domain]
    assert [(row.num_answers, row.num_identical) for row in rows] == [(3, 3)] * 2
    assert all(row.speedup_over_eager for row in rows)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--prompts", "nowhere.jsonl"], "'nowhere.jsonl' is no file and no prompt set of the package."),
        (["--draft", "a=x", "a=y"], "Two drafts are called 'a'. Give each its own name"),
        (["--draft", "a={pair}/draft@9/1/2"], "`num_assistant_tokens` is 9, but a tree of `draft_tree_depth`=1"),
        (["--draft", "plain={pair}/draft"], "A draft is called 'plain', which is another method's name."),
    ],
)
def test_bad_input_is_one_line_on_stderr(pair, prompts, tmp_path, capsys, more, message):
    more = [text.format(pair=pair) for text in more]
    assert main(bench_args(pair, prompts, tmp_path / "out", *more)) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--methods", "medusa"], r"invalid choice: '?medusa'? \(choose from"),
        (["--draft", "griffin="], "'griffin=' has no name or no path; give them as in griffin=my-draft"),
        (["--temperature", "-1"], "-1.0 is not 0 or more|expected at least one argument"),
    ],
)
def test_wrong_usage_is_told_by_the_parser(pair, prompts, tmp_path, capsys, more, message):
    with pytest.raises(SystemExit) as stopped:
        main(bench_args(pair, prompts, tmp_path / "out", *more))
    assert stopped.value.code == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.slow
def test_a_killed_run_goes_on_and_measures_every_answer_once(pair, prompts, tmp_path):
    """SIGKILL as soon as two answers are on disk; then the same command to the end."""
    output = tmp_path / "out"
    command = bench_args(pair, prompts, output, "--draft", f"griffin={pair / 'draft'}", "--repeats", "20")
    running = subprocess.Popen([sys.executable, "-m", "transformers_griffin.cli", *command], stderr=subprocess.PIPE)
    path = output / "measurements.jsonl"
    deadline = time.monotonic() + 120
    while not (path.exists() and path.read_text().count("\n") >= 2):
        assert running.poll() is None, running.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    before = path.read_text().rpartition("\n")[0].splitlines()
    assert 2 <= len(before) < 5 * 3 * 20
    assert not BenchmarkResults.load(output).is_complete

    assert main(command) == 0
    after = path.read_text().splitlines()
    assert after[: len(before)] == before
    keys = [tuple(json.loads(line)[name] for name in ("method", "prompt", "repeat")) for line in after]
    assert len(keys) == len(set(keys)) == 5 * 3 * 20
    assert BenchmarkResults.load(output).is_complete
    assert main(command) == 0
    assert path.read_text().splitlines() == after


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("my-draft", ("my-draft", "my-draft", None)),
        ("a=drafts/b@10/5/2", ("a", "drafts/b", (10, 5, 2))),
        ("a=drafts/b@10/5/2/0.25", ("a", "drafts/b", (10, 5, 2, 0.25))),
        ("user/draft@main", ("draft@main", "user/draft@main", None)),
    ],
)
def test_a_draft_is_named_with_its_tree_and_the_cost_of_a_level(text, expected):
    argument = DraftArgument.parse(text)
    assert (argument.name, argument.path, argument.tree) == expected
