"""Prompts from the package, from files and from the Hub; what is malformed is named."""

import json
import re
from pathlib import Path

import datasets
import pytest
import torch
from transformers import AutoTokenizer

from transformers_griffin.evaluation import Prompt, load_prompts
from transformers_griffin.evaluation.prompts import encode_chat, first_question_batches, pad_left


MINI_TARGET = Path(__file__).parents[2] / "examples/mini/target"


def write(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_the_package_holds_half_of_each_released_set():
    prompts = load_prompts(["mt_bench", "humaneval", "gsm8k"])
    by_domain = {domain: [p for p in prompts if p.domain == domain] for domain in ("mt_bench", "humaneval", "gsm8k")}
    assert {domain: len(found) for domain, found in by_domain.items()} == dict.fromkeys(by_domain, 40)
    assert {domain: {len(p.turns) for p in found} for domain, found in by_domain.items()} == {
        "mt_bench": {2},
        "humaneval": {1},
        "gsm8k": {1},
    }
    assert by_domain["mt_bench"][0].id == "81"
    assert [p.id for p in load_prompts(["mt_bench", "gsm8k"], max_prompts=1)] == ["81", "0"]


def test_a_file_may_hold_turns_prompts_or_questions(tmp_path):
    path = write(
        tmp_path / "mine.jsonl",
        {"question_id": 7, "turns": ["One?", "Two?"]},
        "",
        {"prompt": "Three?", "task_id": "t/1"},
        {"question": "Four?"},
    )
    assert load_prompts([path]) == [
        Prompt("mine", "7", ("One?", "Two?")),
        Prompt("mine", "t/1", ("Three?",)),
        Prompt("mine", "2", ("Four?",)),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"turns": ["Three?"', "mine.jsonl, line 2: no JSON"),
        (["Three?"], "mine.jsonl, line 2: no question in it. A row is a JSON object with one of turns, prompt,"),
        ({"text": 3}, "mine.jsonl, line 2: `text` is 3, but must be a text, or a list of texts; none empty."),
        ({"turns": []}, "mine.jsonl, line 2: `turns` is [], but must be"),
        ({"turns": ["One?", " "]}, "mine.jsonl, line 2: `turns` is ['One?', ' '], but must be"),
        ({"id": 1, "turns": ["One?"]}, "mine.jsonl, line 2: the identifier '1' was used before."),
    ],
)
def test_a_malformed_line_is_named(tmp_path, row, message):
    path = write(tmp_path / "mine.jsonl", {"id": 1, "turns": ["One?"]}, row)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_prompts([path])


def test_sources_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"'mtbench' is no file and no prompt set of the package\. Give one of mt_bench"
    ):
        load_prompts(["mtbench"])
    with pytest.raises(ValueError, match=r"nowhere/mine\.jsonl' is no file"):
        load_prompts([tmp_path / "nowhere" / "mine.jsonl"])
    with pytest.raises(ValueError, match="holds no prompt"):
        load_prompts([write(tmp_path / "empty.jsonl", "")])
    with pytest.raises(ValueError, match="Two sources of prompts are called 'gsm8k'"):
        load_prompts(["gsm8k", write(tmp_path / "gsm8k.jsonl", {"prompt": "One?"})])


def test_a_dataset_of_the_hub_is_read_by_name_config_and_split(monkeypatch):
    asked = []
    rows = datasets.Dataset.from_dict({"question": ["One?", "Two?"], "answer": ["1", "2"]})

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        return rows if split else datasets.DatasetDict(train=rows.select([1]), test=rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    expected = [Prompt("gsm8k", "0", ("One?",)), Prompt("gsm8k", "1", ("Two?",))]
    assert load_prompts(["openai/gsm8k:main:train"]) == load_prompts(["openai/gsm8k:main"]) == expected
    assert asked == [("openai/gsm8k", "main", "train"), ("openai/gsm8k", "main", None)]


def test_a_chat_is_rendered_with_the_template_and_the_answers_in_between():
    tokenizer = AutoTokenizer.from_pretrained(MINI_TARGET)
    first = encode_chat(tokenizer, ["One?"])
    second = encode_chat(tokenizer, ["One?", "Two?"], ["Yes."])
    assert tokenizer.decode(first) == "<|user|>One?<|end|><|assistant|>"
    assert tokenizer.decode(second) == tokenizer.decode(first) + "Yes.<|end|><|user|>Two?<|end|><|assistant|>"
    tokenizer.chat_template = None
    assert tokenizer.decode(encode_chat(tokenizer, ["One?", "Two?"], ["Yes."])) == "One?\n\nYes.\n\nTwo?"


def test_batches_are_padded_on_the_left():
    input_ids, mask = pad_left([[5], [6, 7, 8]], pad_token_id=0)
    assert torch.equal(input_ids, torch.tensor([[0, 0, 5], [6, 7, 8]]))
    assert torch.equal(mask, torch.tensor([[0, 0, 1], [1, 1, 1]]))


def test_prompts_that_fill_no_batch_are_left_out():
    tokenizer = AutoTokenizer.from_pretrained(MINI_TARGET)
    prompts = [Prompt("own", str(i), (f"{i} " * (i + 1), "a second question")) for i in range(5)]
    batches = first_question_batches(tokenizer, prompts, 2, 0, "cpu")
    rows = [ids[m.bool()].tolist() for input_ids, mask in batches for ids, m in zip(input_ids, mask, strict=True)]
    assert rows == [encode_chat(tokenizer, prompt.turns[:1]) for prompt in prompts[:4]]
    assert len(batches) == 2
    with pytest.raises(ValueError, match="There are 5 prompts, but a batch takes 6"):
        first_question_batches(tokenizer, prompts, 6, 0, "cpu")
