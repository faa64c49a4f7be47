"""The mini pair that ships with the project: it loads, it is small, and it keeps its promise on real prompts."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

import transformers_griffin  # noqa: F401  # registers the draft
from transformers_griffin.evaluation import BenchmarkResults, answer_prompt, compare, load_prompts
from transformers_griffin.evaluation.prompts import PACKAGED, encode_chat


EXAMPLES = Path(__file__).parents[1] / "examples"
MINI = EXAMPLES / "mini"
sys.path.insert(0, str(EXAMPLES))
import demo  # noqa: E402  # a script, not a package


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MINI / "target")


def load_pair(dtype=torch.float32):
    target = AutoModelForCausalLM.from_pretrained(MINI / "target", dtype=dtype).eval()
    return target, AutoModel.from_pretrained(MINI / "draft", dtype=dtype).eval()


def test_the_pair_stays_below_40_megabytes():
    assert sum(path.stat().st_size for path in MINI.rglob("*.*") if path.is_file()) < 40_000_000


def test_the_assistant_is_tiny_and_speaks_the_targets_tokens():
    assert (MINI / "assistant" / "model.safetensors").stat().st_size < 4_000_000
    assistant, target = (AutoConfig.from_pretrained(MINI / name) for name in ("assistant", "target"))
    assert assistant.vocab_size == target.vocab_size
    assert assistant.eos_token_id == target.eos_token_id


def test_answers_to_real_prompts_are_the_same_tokens_in_fewer_steps(tokenizer):
    """One prompt a domain, 64 tokens: identical, and clearly more than one token a cycle."""
    target, draft = load_pair()
    settings = {"max_new_tokens": 64, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
    prompts = [torch.tensor([encode_chat(tokenizer, prompt.turns[:1])]) for prompt in load_prompts(PACKAGED, 1)]
    plain = [answer_prompt(target, prompt, **settings) for prompt in prompts]
    result = compare(plain, [answer_prompt(target, prompt, draft, **settings) for prompt in prompts])
    assert result.num_identical == result.num_prompts == 3
    assert result.tau > 2.0


def test_the_chat_template_marks_what_the_assistant_said(tokenizer):
    chat = [
        {"role": "user", "content": "Two plus two?"},
        {"role": "assistant", "content": "Four."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes."},
    ]
    encoded = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    said = [token for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(said) == "Four.<|end|>Yes.<|end|>"


def test_the_demo_prints_a_row_for_every_domain(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["demo.py", "--prompts_per_domain", "1", "--max_new_tokens", "12"])
    demo.main(demo.parse_args())
    last_lines = capsys.readouterr().out.splitlines()[-5:]
    assert [line.split()[0] for line in last_lines] == ["domain", *PACKAGED, "all"]
    assert all(line.split()[1] == "yes" for line in last_lines[1:])


def test_the_streamer_marks_what_the_draft_guessed(tokenizer, capsys):
    """The prompt is not printed; of a cycle's tokens all but the last were drafted."""
    streamer = demo.AcceptanceStreamer(tokenizer)
    streamer.colours = False
    for text in ("a prompt", "one two three"):
        streamer.put(tokenizer(text, return_tensors="pt").input_ids)
    streamer.end()
    tokens = tokenizer("one two three").input_ids
    assert capsys.readouterr().out == f"[{tokenizer.decode(tokens[:-1])}]{tokenizer.decode(tokens[-1:])}\n"


def test_the_committed_results_are_lossless_and_say_where_they_come_from():
    """160 answers: 80 prompts of one turn and 40 of two."""
    results = BenchmarkResults.load(MINI / "bench")
    assert results.is_complete
    assert results.provenance["versions"]["transformers"]
    exact = [row for row in results.summaries if (row.setting, row.domain) == ("float32 T=0", "all")]
    assert [row.method for row in exact] == ["plain", "plain_compiled", "prompt_lookup", "griffin", "griffin_compiled"]
    assert all(row.num_prompts == 120 and row.num_identical == row.num_answers == 160 for row in exact)
