"""
Acceptance length tau of drafts on known answers of the mini target, by replay: exact, and without running the target.

    python trainers/mini_pair/replay_drafts.py --answers runs/mini_pair/shipped_ablations/answers-T0.json \\
        --drafts examples/mini/draft runs/mini_pair/draft/final --trees 59/6/10 10/5/2

The answers are those that `ablations.py` writes. Measured: README.md beside this file, "Which draft is the best".
"""

import argparse
import json
from pathlib import Path

import torch
from ablations import acceptance
from transformers import AutoModel, AutoModelForCausalLM
from transformers.utils import logging

from transformers_griffin.modeling_griffin import DEFAULT_TREE


def main(args: argparse.Namespace) -> None:
    logging.disable_progress_bar()
    target = AutoModelForCausalLM.from_pretrained(args.target_dir, dtype=torch.float32).eval()
    answers = json.loads(args.answers.read_text())[: args.max_prompts]
    for path in args.drafts:
        draft = AutoModel.from_pretrained(path, dtype=torch.float32).eval().bind(target)
        for tree in args.trees:
            settings = dict(zip(DEFAULT_TREE, map(int, tree.split("/")), strict=True))
            found = acceptance(draft, target, answers, settings)
            print(f"{path} {tree}: tau {sum(found['tokens']) / sum(found['cycles']):.2f}", flush=True)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target_dir", type=Path, default=Path("examples/mini/target"))
    parser.add_argument("--answers", type=Path, required=True, help="of `ablations.py`")
    parser.add_argument("--drafts", type=Path, nargs="+", required=True)
    parser.add_argument("--trees", nargs="+", default=["59/6/10"], help="tokens/levels/width")
    parser.add_argument("--max_prompts", type=int, help="all by default")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_args())
