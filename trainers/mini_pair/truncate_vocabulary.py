"""
What a truncated vocabulary costs and saves the mini pair's draft: `griffin bench` over drafts that propose less.

    python trainers/mini_pair/truncate_vocabulary.py
    python trainers/mini_pair/truncate_vocabulary.py --max_prompts 2 --max_new_tokens 16

Tokens are counted in the training blocks of `prepare_data.py`. Drafts are called after the tokens that they propose.
Tables and results are those of `griffin bench`: tau, cycle cost and SR of every draft from one interleaved run, and
whether all answers are the target's. With `--synthetic` the costs at real sizes, which need no weights:

    griffin bench --synthetic llama-3-8b --output runs/8b
    griffin bench --synthetic llama-3-8b --draft-vocab-size 32768 --output runs/8b_32k

Measured: docs/training.md. tau of these drafts, by replay: docs/training.md.
"""

import argparse
import sys
from pathlib import Path

from datasets import load_from_disk
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging

from transformers_griffin.cli import main as griffin
from transformers_griffin.training import count_tokens, frequent_tokens


MINI = Path(__file__).parents[2] / "examples" / "mini"


def main(args: argparse.Namespace) -> int:
    logging.disable_progress_bar()
    paths = write_drafts(args)
    command = ["bench", "--target", str(MINI / "target"), "--output", str(args.output_dir / "bench")]
    command += ["--draft", *(f"{name}={path}" for name, path in paths.items())]
    command += ["--methods", "plain", "--dtype", *args.dtype, "--max-new-tokens", str(args.max_new_tokens)]
    command += ["--title", "Truncated draft vocabularies", "--repeats", str(args.repeats)]
    if args.max_prompts is not None:
        command += ["--max-prompts", str(args.max_prompts)]
    return griffin(command)


def write_drafts(args: argparse.Namespace) -> dict[str, Path]:
    """One draft for every share of the vocabulary, by name; says which share of the training tokens each covers."""
    special_ids = AutoTokenizer.from_pretrained(MINI / "target").all_special_ids
    vocab_size = AutoConfig.from_pretrained(MINI / "draft").vocab_size
    counts = count_tokens(load_from_disk(args.data_dir / "train"), vocab_size)
    paths = {}
    for percent in args.percents:
        kept = frequent_tokens(counts, round(vocab_size * percent / 100), special_ids)
        draft = AutoModel.from_pretrained(MINI / "draft", dtype="auto")
        draft.generation_config.draft_level_cost = None  # the same tree in every cycle
        name = f"tokens_{len(kept)}"
        paths[name] = args.output_dir / name
        draft.truncate_vocabulary(None if len(kept) == vocab_size else kept).save_pretrained(paths[name])
        covered = float(counts[kept].sum() / counts.sum())
        print(f"{name}: {percent:g} % of the vocabulary, {covered:.2%} of the training tokens", flush=True)
    return paths


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=Path("runs/mini_pair"))
    parser.add_argument("--output_dir", type=Path, default=Path("runs/mini_pair/vocabulary"))
    parser.add_argument("--percents", type=float, nargs="+", default=[100, 50, 25, 12.5])
    parser.add_argument("--dtype", nargs="+", default=["float32"])
    parser.add_argument("--max_prompts", type=int, help="of each of the three sources; all when not given")
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main(parse_args()))
