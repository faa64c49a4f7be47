"""
Checks `griffin tune` against a full grid: every tree for real, interleaved prompt by prompt, then the tuning.

    python trainers/mini_pair/check_tuning.py --output runs/check_tuning.json
    python trainers/mini_pair/check_tuning.py --num_tokens 4 10 --depths 3 5 --widths 2 --prompts_per_domain 1

The tuned tree must reach 95 % of the best tree of the grid in a tenth of the grid's time. Its speed is taken from the
grid's own runs, so that both numbers stand under the same conditions. The last line of stdout is one JSON object;
the exit status is 1 if the check fails.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from transformers_griffin.evaluation.answers import TimedBatch, answer_batch
from transformers_griffin.evaluation.prompts import PACKAGED, first_question_batches, load_prompts
from transformers_griffin.evaluation.provenance import provenance
from transformers_griffin.evaluation.tree_acceptance import TreeSettings
from transformers_griffin.evaluation.tree_costs import TreeGrid, draft_has, rotated
from transformers_griffin.evaluation.tuning import tokens_per_second, tune_tree


ROOT = Path(__file__).parents[2]
MINI = ROOT / "examples" / "mini"
WANTED_SHARE, ALLOWED_TIME = 0.95, 0.1


def main(args: argparse.Namespace) -> int:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(args.target)
    target = AutoModelForCausalLM.from_pretrained(args.target, dtype=args.dtype).eval()
    draft = AutoModel.from_pretrained(args.draft, dtype=args.dtype).eval().bind(target)
    prompts = load_prompts(PACKAGED, args.prompts_per_domain)
    batches = first_question_batches(tokenizer, prompts, 1, tokenizer.pad_token_id, target.device)
    settings = {"max_new_tokens": args.max_new_tokens, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
    grid = TreeGrid(args.num_tokens, args.depths, args.widths)

    start = time.perf_counter()
    tuned = tune_tree(target, draft, batches, grid, **settings)
    tuning_seconds = time.perf_counter() - start
    start = time.perf_counter()
    trees = list(dict.fromkeys([*grid.trees(target.config.vocab_size), tuned.best.tree]))
    speeds = run_grid(target, draft, batches, trees, settings)
    grid_seconds = time.perf_counter() - start

    best = max(speeds, key=lambda tree: speeds[tree])
    share, time_share = speeds[tuned.best.tree] / speeds[best], tuning_seconds / grid_seconds
    print_table(speeds, tuned.best.tree)
    results = {
        "share_of_best": share,
        "share_of_time": time_share,
        "tuning_seconds": tuning_seconds,
        "grid_seconds": grid_seconds,
        "grid": [asdict(tree) | {"tokens_per_second": speed} for tree, speed in speeds.items()],
        "tuned": tuned.as_dict(),
        "provenance": provenance(vars(args), target.device),
    }
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    is_good = share >= WANTED_SHARE and time_share <= ALLOWED_TIME
    print(f"{'passed' if is_good else 'FAILED'}: {share:.1%} of the best tree's speed in {time_share:.1%} of the time")
    print(json.dumps(results))
    return 0 if is_good else 1


def run_grid(target, draft, batches, trees: list[TreeSettings], settings: dict) -> dict[TreeSettings, float]:
    """Tokens per second of every tree; all trees answer a prompt before the next one comes."""
    answers: dict[TreeSettings, list[TimedBatch]] = {tree: [] for tree in trees}
    for index, batch in enumerate(tqdm(batches, desc=f"grid of {len(trees)} trees")):
        for tree in rotated(trees, index * len(trees) // len(batches)):
            with draft_has(draft, tree):
                answers[tree].append(answer_batch(target, *batch, assistant_model=draft, **settings))
    return {tree: tokens_per_second(runs) for tree, runs in answers.items()}


def print_table(speeds: dict[TreeSettings, float], tuned: TreeSettings) -> None:
    for rank, (tree, speed) in enumerate(sorted(speeds.items(), key=lambda item: -item[1]), start=1):
        if rank <= 10 or tree == tuned:
            print(f"{rank:>3}. {tree!s:<32} {speed:>7.1f} tokens/s{'  <- tuned' if tree == tuned else ''}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default=str(MINI / "target"))
    parser.add_argument("--draft", default=str(MINI / "draft"))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--num_tokens", type=int, nargs="+", default=[4, 8, 16, 32, 59])
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 4, 6, 8])
    parser.add_argument("--widths", type=int, nargs="+", default=[2, 4, 10])
    parser.add_argument("--prompts_per_domain", type=int, default=4)
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main(parse_args()))
