"""
Turns the training text into what the mini pair's recipes read: a tokenizer and packed token blocks.

Run it first; it needs no network and about five minutes on one core::

    python trainers/mini_pair/prepare_data.py --output_dir runs/mini_pair
    python trainers/mini_pair/prepare_data.py --output_dir runs/mini_pair --vocab_size 8192

It reads `data/*.jsonl.gz` beside this file (licences: `data/README.md`), adds Python function completions from the
standard library and from permissively licensed packages that are installed (`python_functions.py`), and writes

- `tokenizer/`: a byte-level BPE with a chat template whose assistant turns carry generation markers;
- `train/`, `valid/`: `datasets` of blocks of `block_size` token ids. Documents are shuffled, rendered with the chat
  template and packed end to end;
- `chats.jsonl`: the first exchange of `num_chats` different conversations, for `griffin prepare --regenerate`.

Measured: README.md beside this file.
"""

import argparse
import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path

import datasets
from python_functions import function_completions
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast


DATA_DIR = Path(__file__).parent / "data"

# How often an epoch shows a file: maths and code are thin beside conversation.
REPEATS = {"math_gsm8k": 3, "math_short": 2, "code_problems_mbpp": 4}

SPECIAL_TOKENS = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]

CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|' + message['role'] + '|>' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}
            {{- message['content'] + '<|end|>' }}
        {%- endgeneration %}
    {%- else %}
        {{- message['content'] + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}
"""


def main(args: argparse.Namespace) -> None:
    train = load_conversations(seed=args.seed)
    valid = list(read_jsonl(DATA_DIR / "valid.jsonl.gz"))
    tokenizer = train_tokenizer(train, vocab_size=args.vocab_size)
    tokenizer.save_pretrained(args.output_dir / "tokenizer")

    for name, rows in {"train": train, "valid": valid}.items():
        blocks = pack(rows, tokenizer, args.block_size)
        datasets.Dataset.from_dict({"input_ids": blocks}).save_to_disk(args.output_dir / name)
        print(f"{name}: {len(rows):,} conversations, {len(blocks) * args.block_size:,} tokens")
    write_first_exchanges(train, args.output_dir / "chats.jsonl", args.num_chats)


def load_conversations(seed: int) -> list[dict]:
    """Reads every training row, repeats the thin domains (`REPEATS`) and shuffles."""
    sources = {path.name.removesuffix(".jsonl.gz"): list(read_jsonl(path)) for path in sorted(training_files())}
    sources["python_functions"] = list(function_completions())
    rows = [row for name, source in sources.items() for row in source * REPEATS.get(name, 1)]
    random.Random(seed).shuffle(rows)
    return rows


def training_files() -> list[Path]:
    return [path for path in DATA_DIR.glob("*.jsonl.gz") if path.name != "valid.jsonl.gz"]


def read_jsonl(path: Path) -> Iterator[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def train_tokenizer(rows: list[dict], vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE on the message texts; digits stay single so that arithmetic is visible."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((message["content"] for row in rows for message in row["messages"]), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=SPECIAL_TOKENS[2:],
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
        padding_side="left",
    )


def pack(rows: list[dict], tokenizer: PreTrainedTokenizerFast, block_size: int) -> list[list[int]]:
    """Renders rows with the chat template and cuts the endless token stream into blocks of `block_size`."""
    texts = [tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in rows]
    stream = [token for ids in tokenizer(texts, add_special_tokens=False)["input_ids"] for token in ids]
    return [stream[start : start + block_size] for start in range(0, len(stream) - block_size + 1, block_size)]


def write_first_exchanges(rows: list[dict], path: Path, count: int) -> None:
    """Questions that occur once, in the order of `rows`."""
    exchanges = {row["messages"][0]["content"]: row["messages"][:2] for row in rows}
    chats = [{"messages": messages} for messages in list(exchanges.values())[:count]]
    path.write_text("".join(json.dumps(chat) + "\n" for chat in chats), encoding="utf-8")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/mini_pair"))
    parser.add_argument("--vocab_size", type=int, default=4096)
    parser.add_argument("--block_size", type=int, default=512)
    parser.add_argument("--num_chats", type=int, default=768)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_args())
