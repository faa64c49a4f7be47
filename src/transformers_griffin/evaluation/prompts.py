"""
The questions of a benchmark: MT-bench, HumanEval and GSM8K as released for this field, a file of one's own, or a
dataset of the Hub.

The released format is one JSON object a line, with `question_id` and `turns`, the user's messages of a chat. MT-bench
has two: the second goes on from what the model answered to the first. `prompts_data/` holds the odd-numbered half of
each 80-question file that the paper evaluates on (sources and licences: `prompts_data/README.md`).

Next: `methods.py`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase


PROMPTS_DATA = Path(__file__).parent / "prompts_data"
PACKAGED = ("mt_bench", "humaneval", "gsm8k")
TEXT_FIELDS = ("turns", "prompt", "question", "text")  # the first of them that a row has is read
ID_FIELDS = ("question_id", "task_id", "prompt_id", "id")


@dataclass(frozen=True)
class Prompt:
    """The user's side of a chat."""

    domain: str
    id: str  # unique within its domain
    turns: tuple[str, ...]


def load_prompts(sources: Iterable[str | Path], max_prompts: int | None = None) -> list[Prompt]:
    """
    Reads prompts; each source is a domain.

    Args:
        sources (`Iterable[str | Path]`):
            `"mt_bench"`, `"humaneval"` and `"gsm8k"` ship with the package. Others are JSONL files, or datasets of the
            Hub as `NAME[:CONFIG[:SPLIT]]`, for example `"openai/gsm8k:main:test"`. A row has `turns` (a list), or
            `prompt`, `question` or `text` (a text or a list of them).
        max_prompts (`int`, *optional*): the first ones of each source.

    Raises:
        ValueError: if a source does not exist, a row is malformed (its file and line are named), two rows of a domain
            have one identifier, or two sources one name.
    """
    domains: dict[str, list[Prompt]] = {}
    for source in sources:
        prompts = _load_source(source)[:max_prompts]
        if not prompts:
            raise ValueError(f"{source} holds no prompt. Give a source with at least one.")
        if prompts[0].domain in domains:
            raise ValueError(
                f"Two sources of prompts are called {prompts[0].domain!r}. Rename one of the files: results are kept "
                "by this name."
            )
        domains[prompts[0].domain] = prompts
    return [prompt for prompts in domains.values() for prompt in prompts]


def _load_source(source: str | Path) -> list[Prompt]:
    path = Path(source)
    if source in PACKAGED:
        path = PROMPTS_DATA / f"{source}.jsonl"
    if path.is_file():
        return read_prompt_file(path)
    name = str(source)
    if path.suffix in (".jsonl", ".json") or "/" not in name or name.startswith((".", "/", "~")):
        raise ValueError(
            f"{name!r} is no file and no prompt set of the package. Give one of {', '.join(PACKAGED)}, a JSONL file, "
            "or a dataset of the Hub such as openai/gsm8k:main:test."
        )
    return _load_from_hub(*name.split(":"))


def read_prompt_file(path: Path) -> list[Prompt]:
    """Reads a JSONL file; the domain is the file's name."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            where = f"{path.name}, line {number}"
            try:
                rows.append((where, json.loads(line)))
            except json.JSONDecodeError as error:
                raise ValueError(f"{where}: no JSON ({error}). Every line must be one JSON object.") from None
    return _as_prompts(path.stem, rows)


def _load_from_hub(name: str, config: str | None = None, split: str | None = None) -> list[Prompt]:
    import datasets

    loaded: Any = datasets.load_dataset(name, config, split=split)
    if split is None:
        loaded = loaded["test" if "test" in loaded else next(iter(loaded))]
    return _as_prompts(name.rpartition("/")[2], [(f"{name}, row {i}", row) for i, row in enumerate(loaded)])


def _as_prompts(domain: str, rows: Sequence[tuple[str, Any]]) -> list[Prompt]:
    prompts: dict[str, Prompt] = {}
    for index, (where, row) in enumerate(rows):
        name = next((str(row[field]) for field in ID_FIELDS if field in row), str(index)) if row else str(index)
        prompt = Prompt(domain, name, _turns_of(row, where))
        if name in prompts:
            raise ValueError(f"{where}: the identifier {name!r} was used before. Every prompt needs its own.")
        prompts[name] = prompt
    return list(prompts.values())


def _turns_of(row: Any, where: str) -> tuple[str, ...]:
    if not isinstance(row, Mapping) or not (found := [field for field in TEXT_FIELDS if field in row]):
        raise ValueError(f"{where}: no question in it. A row is a JSON object with one of {', '.join(TEXT_FIELDS)}.")
    turns = row[found[0]]
    turns = [turns] if isinstance(turns, str) else turns
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise ValueError(f"{where}: `{found[0]}` is {turns!r}, but must be a text, or a list of texts; none empty.")
    return tuple(turns)


# ---------------------------------------------------------------------- as tokens


def encode_chat(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], answers: Sequence[str] = ()
) -> list[int]:
    """
    The tokens that the target reads before it answers the last question.

    Without a chat template the messages are joined by blank lines.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): the target's.
        questions (`Sequence[str]`): of the user, so far.
        answers (`Sequence[str]`): of the target, to all questions but the last.
    """
    if tokenizer.chat_template is None:
        texts = [text for pair in zip(questions, [*answers, ""], strict=True) for text in pair]
        return tokenizer("\n\n".join(texts[:-1])).input_ids
    chat = [{"role": "user", "content": questions[0]}]
    for answer, question in zip(answers, questions[1:], strict=True):
        chat += [{"role": "assistant", "content": answer}, {"role": "user", "content": question}]
    encoded: Any = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)
    return encoded["input_ids"]


def pad_left(rows: Sequence[Sequence[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    A batch of prompts of different lengths.

    Returns:
        `(input_ids, attention_mask)`, each a `torch.LongTensor` of shape `(len(rows), longest)`.
    """
    longest = max(map(len, rows))
    input_ids = [[pad_token_id] * (longest - len(row)) + list(row) for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(input_ids), torch.tensor(mask)


def first_question_batches(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], batch_size: int, pad_token_id: int, device: Any
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """
    The first question of every chat, in batches of [`pad_left`] on `device`; prompts that fill no batch are left out.

    Raises:
        ValueError: if there are fewer prompts than one batch takes.
    """
    if len(prompts) < batch_size:
        raise ValueError(
            f"There are {len(prompts)} prompts, but a batch takes {batch_size}. Give more prompts, or a smaller batch."
        )
    rows = [encode_chat(tokenizer, prompt.turns[:1]) for prompt in prompts]
    starts = range(0, len(rows) - batch_size + 1, batch_size)
    batches = [pad_left(rows[start : start + batch_size], pad_token_id) for start in starts]
    return [(input_ids.to(device), mask.to(device)) for input_ids, mask in batches]


__all__ = [
    "PACKAGED",
    "PROMPTS_DATA",
    "Prompt",
    "encode_chat",
    "first_question_batches",
    "load_prompts",
    "pad_left",
    "read_prompt_file",
]
