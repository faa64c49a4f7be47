"""The `griffin` command: what it writes, what it prints and how it fails."""

import io
import json
import re
import shutil
import subprocess
import sys

import datasets
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoTokenizer, GenerationConfig

from conftest import GOLDEN, tiny_llama
from transformers_griffin import GriffinDraftModel, __version__
from transformers_griffin.cli import build_parser, demo, main
from transformers_griffin.training import load_features, load_training_data, plan


RELEASED = GOLDEN / "llama_gqa" / "draft_official"
TARGET = GOLDEN / "llama_gqa" / "target"


def generate_args(pair, *more: str) -> list[str]:
    return ["generate", "--target", str(pair / "target"), "--draft", str(pair / "draft"), "--prompt", "w5 w9", *more]


# ---------------------------------------------------------------------- convert


def test_convert_there_and_back_is_bit_equal(tmp_path, capsys):
    draft, back = tmp_path / "draft", tmp_path / "back"
    assert main(["convert", str(RELEASED), str(draft), "--target", str(TARGET)]) == 0
    assert capsys.readouterr().out == (
        f"Wrote {draft}: token_guided fusion, two outputs, 1 layer(s), hidden size 64, vocabulary 517, "
        "104,704 parameters, float32\n"
    )
    assert AutoModel.from_pretrained(draft).config.target_model_type == "llama"
    assert main(["convert", str(draft), str(back), "--target", str(TARGET), "--to", "released", "--safetensors"]) == 0
    original, written = (load_file(path / "model.safetensors") for path in (RELEASED, back))
    assert original.keys() == written.keys()
    assert all(torch.equal(original[key], written[key]) for key in original)


def test_convert_can_check_the_config_alone(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "config.json").write_text((TARGET / "config.json").read_text())
    out = tmp_path / "draft"
    assert main(["convert", str(RELEASED), str(out), "--target", str(tmp_path / "target"), "--config-only"]) == 0
    assert (out / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["{tmp}", "{tmp}/out"], "has no `config.json`"),
        ([str(RELEASED), str(RELEASED)], "PATH and OUT are both"),
        ([str(RELEASED), str(RELEASED / "config.json")], "is a file. Give a directory to write to."),
        ([str(RELEASED), "{tmp}/out", "--to", "released"], "Give --target."),
        ([str(RELEASED), "{tmp}/out", "--target", str(GOLDEN / "qwen2_bias" / "target")], "`vocab_size` is 517, but"),
    ],
)
def test_a_failed_conversion_is_one_line_on_stderr(args, message, tmp_path, capsys):
    status = main(["convert", *(arg.replace("{tmp}", str(tmp_path)) for arg in args)])
    captured = capsys.readouterr()
    assert status == 1
    assert captured.out == ""
    assert captured.err.startswith("griffin convert: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert not (tmp_path / "out").exists()


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no `config\.json`"):
        main(["convert", str(tmp_path), str(tmp_path / "out"), "--debug"])


# ---------------------------------------------------------------------- generate


def test_generate_prints_the_targets_own_answer_and_tau(pair, capsys):
    assert main(generate_args(pair, "--max-new-tokens", "12")) == 0
    *text, statistics = capsys.readouterr().out.splitlines()
    target = tiny_llama()
    expected = target.generate(torch.tensor([[5, 9]]), max_new_tokens=12, do_sample=False, pad_token_id=0)[0, 2:]
    assert "".join(text).split() == [f"w{token}" for token in expected.tolist() if token != 0]
    assert re.fullmatch(r"\[12 tokens, \d+ cycles, tau \d+\.\d\d, \d+\.\d tokens/s\]", statistics)


def test_generate_samples_repeatably_and_takes_tree_settings(pair, capsys):
    args = generate_args(pair, "--max-new-tokens", "9", "--temperature", "1.5", "--top-p", "0.9", "--seed", "3")
    tree = ["--num-draft-tokens", "3", "--depth", "3", "--width", "1"]
    answers = []
    for _ in range(2):
        assert main(args + tree) == 0
        answers.append(capsys.readouterr().out.splitlines()[:-1])
    assert answers[0] == answers[1]


def test_generate_reads_the_prompt_from_stdin(pair, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("w5 w9\n"))
    args = generate_args(pair, "--max-new-tokens", "4")
    args[args.index("w5 w9")] = "-"
    assert main(args) == 0
    from_stdin = capsys.readouterr().out.splitlines()[0]
    assert main(generate_args(pair, "--max-new-tokens", "4")) == 0
    assert capsys.readouterr().out.splitlines()[0] == from_stdin


def test_generate_with_settings_that_form_no_tree_says_why(pair, capsys):
    assert main(generate_args(pair, "--num-draft-tokens", "50", "--depth", "2", "--width", "2")) == 1
    error = capsys.readouterr().err
    assert error.startswith("griffin generate: `num_assistant_tokens` is 50, but a tree of `draft_tree_depth`=2")


# ---------------------------------------------------------------------- demo


@pytest.fixture
def launched(monkeypatch):
    """The pages that `griffin demo` would have served, with where."""
    from transformers_griffin.demo_page import page

    pages = []
    monkeypatch.setattr(page, "launch_page", lambda *args, **kwargs: pages.append((*args, kwargs)))
    return pages


def test_demo_serves_the_page_of_a_pair(pair, launched):
    args = ["demo", "--target", str(pair / "target"), "--draft", str(pair / "draft"), "--port", "7999"]
    assert main(args) == 0
    ((page, host, port, options),) = launched
    assert (host, port, options) == ("127.0.0.1", 7999, {"inbrowser": False})
    assert page.title == "GRIFFIN: the same tokens, sooner"


def test_demo_takes_the_mini_pair_in_a_checkout_in_float32():
    args = build_parser().parse_args(["demo"])
    pair = demo.load_pair(args)
    assert (pair.target.dtype, pair.draft.dtype) == (torch.float32, torch.float32)
    assert pair.target.num_parameters() > 10_000_000


def test_demo_says_what_it_lacks(pair, capsys, monkeypatch, tmp_path):
    assert main(["demo", "--target", str(pair / "target")]) == 1
    assert capsys.readouterr().err == "griffin demo: Give --target and --draft, or neither for the mini pair.\n"
    monkeypatch.setattr(demo, "MINI_PAIR", tmp_path / "nowhere")
    assert main(["demo"]) == 1
    assert "The mini pair is part of the checkout, not of the package." in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in [name for name in sys.modules if name == "transformers_griffin.demo_page.page"]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["demo"]) == 1
    assert 'Install it: pip install "transformers-griffin[demo]".' in capsys.readouterr().err


# ---------------------------------------------------------------------- plan


def test_plan_prints_a_table_and_the_same_as_json(capsys, monkeypatch):
    monkeypatch.setattr(plan, "paper_calibration", lambda: {"LLaMA2-7B": (145.0, 150)})
    arguments = ["--num-passes", "2", "--tokens", "5000", "--batch-size", "1", "--gpu", "H100", "--stored-features"]
    assert main(["plan", "--target", str(TARGET / "config.json"), *arguments]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    settings = plan.PlanSettings(num_passes=2, tokens=5000, batch_size=1, gpu="H100", stored_features=True)
    expected = plan.plan_training(AutoConfig.from_pretrained(TARGET), settings)
    assert json.loads(last) == {"target": str(TARGET / "config.json"), **json.loads(json.dumps(expected.as_dict()))}
    assert "\n".join(table) == plan.format_plan(expected, {"LLaMA2-7B": (145.0, 150)})


def test_plan_refuses_an_unknown_gpu_in_one_line(capsys):
    assert main(["plan", "--target", str(TARGET), "--gpu", "TPU"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "griffin plan: `gpu` is 'TPU', but must be one of A100, H100, H200, L40S, RTX4090.\n"
    assert captured.out == ""


# ---------------------------------------------------------------------- prepare


@pytest.fixture
def chats(tmp_path, monkeypatch):
    """A file of three conversations, one without an answer."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    question, answer = {"role": "user", "content": "w5 w9"}, {"role": "assistant", "content": "w7 w8 w9"}
    rows = [{"messages": messages} for messages in ([question, answer], [question], [question, answer] * 2)]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "chats.jsonl"


@pytest.fixture
def chatting_pair(pair, tmp_path):
    """A copy of the pair, with a chat template."""
    copy = shutil.copytree(pair, tmp_path / "pair")
    tokenizer = AutoTokenizer.from_pretrained(copy / "target")
    tokenizer.chat_template = (
        "{% for message in messages %}{{ 'w1 ' if message['role'] == 'user' else 'w2 ' }}"
        "{{ message['content'] + ' w3 ' }}{% endfor %}{% if add_generation_prompt %}{{ 'w2' }}{% endif %}"
    )
    tokenizer.save_pretrained(copy / "target")
    return copy


def prepare_args(pair, data, output, *more: str) -> list[str]:
    return ["prepare", "--target", str(pair / "target"), "--data", str(data), "--output", str(output), *more]


def test_prepare_says_what_it_will_take_and_stores_features(chatting_pair, chats, tmp_path, capsys):
    """w1 w5 w9 w3 w2 w7 w8 w9 w3, once and twice: 27 tokens of 64 + 4 + 1 + 4 bytes, and 128 bytes for the one row."""
    args = prepare_args(chatting_pair, chats, tmp_path / "out", "--pack", "--max-length", "30", "--dtype", "float32")
    assert main(args) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path / 'out'} will take 1 rows, 27 tokens, 2.10kB of features.",
        f"Wrote {tmp_path / 'out'}: features of {chatting_pair / 'target'}",
    ]
    (row,) = load_features(tmp_path / "out", tiny_llama())
    assert row["input_ids"] == [1, 5, 9, 3, 2, 7, 8, 9, 3] * 3
    assert row["loss_mask"] == [0, 0, 0, 0, 0, 1, 1, 1, 1] * 3
    assert row["documents"] == [1] * 18 + [2] * 9
    assert row["features"].shape == (27, 32)


def test_prepare_regenerates_answers_that_features_can_be_stored_of(chatting_pair, chats, tmp_path, capsys):
    answers, more = tmp_path / "answers", ["--max-new-tokens", "5", "--max-length", "40"]
    assert main(prepare_args(chatting_pair, chats, answers, "--regenerate", *more, "--dtype", "float32")) == 0
    assert capsys.readouterr().out == f"Wrote {answers}: answers of {chatting_pair / 'target'}\n"
    assert [len(row["messages"]) for row in load_training_data(answers)] == [2, 2, 2]
    drafted, draft = tmp_path / "drafted", ["--draft", str(chatting_pair / "draft"), "--dtype", "float32"]
    assert main(prepare_args(chatting_pair, chats, drafted, "--regenerate", *more, *draft)) == 0
    assert load_training_data(drafted).to_list() == load_training_data(answers).to_list()
    assert main(prepare_args(chatting_pair, answers, tmp_path / "features", "--max-length", "40")) == 0
    assert len(load_features(tmp_path / "features", tiny_llama())) == 3


# ---------------------------------------------------------------------- truncate


def truncate_args(pair, data, output, size: int, *more: str) -> list[str]:
    args = ["truncate", str(pair / "draft"), str(output), "--target", str(pair / "target"), "--data", str(data)]
    return [*args, "--size", str(size), *more]


def test_truncate_keeps_the_tokens_that_answers_are_made_of(chatting_pair, chats, tmp_path, capsys):
    """
    Assistants say w7 w8 w9 w3, three times. Besides these there are w0 (padding), which the data lack, and w41, an
    end of answers that only the generation config names: with 5 tokens one of the four must go, ties by the higher id.
    """
    GenerationConfig(eos_token_id=[41]).save_pretrained(chatting_pair / "target")
    (chatting_pair / "target" / "model.safetensors").unlink()
    assert main(truncate_args(chatting_pair, chats, tmp_path / "out", 5)) == 0
    line, results = capsys.readouterr().out.splitlines()
    assert line.startswith(f"Wrote {tmp_path / 'out'}: token_guided fusion, two outputs, 1 layer(s), hidden size 32, ")
    assert "vocabulary 61 (proposes 5), " in line
    assert json.loads(results) == {
        "draft_vocab_size": 5,
        "vocab_size": 61,
        "num_counted": 12,
        "share_of_counted": 0.75,
    }
    assert GriffinDraftModel.from_pretrained(tmp_path / "out").token_map.tolist() == [0, 3, 7, 8, 41]


def test_truncated_drafts_answer_as_the_target_does(chatting_pair, chats, tmp_path, capsys):
    assert main(truncate_args(chatting_pair, chats, tmp_path / "out", 30)) == 0
    command = ["generate", "--target", str(chatting_pair / "target"), "--prompt", "w5 w9", "--max-new-tokens", "9"]
    capsys.readouterr()
    answers = []
    for draft in (chatting_pair / "draft", tmp_path / "out"):
        assert main([*command, "--draft", str(draft)]) == 0
        answers.append(capsys.readouterr().out.splitlines()[0])
    assert answers[0] == answers[1] != ""


def test_what_cannot_be_truncated_is_said(chatting_pair, chats, tmp_path, capsys):
    assert main(truncate_args(chatting_pair, chats, tmp_path / "out", 62)) == 1
    assert "`num_tokens` is 62, but must be from 1 (tokens to have in any case) to 61" in capsys.readouterr().err
    assert main(truncate_args(chatting_pair, chats, chatting_pair / "draft", 9)) == 1
    assert "which is a file or the draft itself" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_failed_preparation_is_one_line_on_stderr(chatting_pair, chats, tmp_path, capsys):
    assert main(prepare_args(chatting_pair, tmp_path / "missing.jsonl", tmp_path / "out")) == 1
    error = capsys.readouterr().err
    assert error == f"griffin prepare: {tmp_path / 'missing.jsonl'} does not exist.\n"
    assert main(prepare_args(chatting_pair, chats, tmp_path / "out", "--max-length", "4")) == 1
    assert "None of 3 rows has a token with a loss within `max_length` 4" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------- usage


@pytest.mark.parametrize(
    ("args", "status", "text"),
    [
        (["--version"], 0, f"transformers-griffin {__version__}"),
        (["--help"], 0, "griffin convert user/griffin-release my-draft"),
        (["convert", "--help"], 0, "in the layout of GRIFFIN, EAGLE, EAGLE-2 or HASS"),
        (["generate", "--help"], 0, "drafted tokens verified per cycle"),
        (["plan", "--help"], 0, "the last line of stdout is one JSON object"),
        ([], 2, "the following arguments are required: COMMAND"),
        (["dance"], 2, "invalid choice: 'dance'"),
        (["convert", "only-one"], 2, "the following arguments are required: OUT"),
        (["convert", "a", "b", "--to", "gguf"], 2, "invalid choice: 'gguf'"),
        (["generate", "--prompt", "x"], 2, "the following arguments are required: --target, --draft"),
        (["generate", "--temperature", "-1"], 2, "-1.0 is not 0 or more"),
        (["plan"], 2, "the following arguments are required: --target"),
        (["plan", "--target", "x", "--tokens", "0"], 2, "0 is not 1 or more"),
        (["prepare", "--help"], 0, "it continues with the next shard"),
        (["prepare"], 2, "the following arguments are required: --target, --data, --output"),
        (["generate", "--width", "0"], 2, "0 is not 1 or more"),
    ],
)
def test_help_and_wrong_usage(args, status, text, capsys):
    with pytest.raises(SystemExit) as left:
        main(args)
    captured = capsys.readouterr()
    assert left.value.code == status
    assert text in " ".join((captured.out if status == 0 else captured.err).split())


def test_a_draft_that_does_not_exist_is_named(pair, capsys):
    args = ["generate", "--target", str(pair / "target"), "--draft", "nowhere/draft", "--prompt", "w5"]
    assert main(args) == 1
    assert "nowhere/draft is no directory with a draft" in capsys.readouterr().err


def test_the_module_runs_as_a_program(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "transformers_griffin.cli",
            "convert",
            str(tmp_path / "nowhere"),
            str(tmp_path / "out"),
        ],
        capture_output=True,
        text=True,
        env={"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("griffin convert: ")  # before it, what other packages warn of
