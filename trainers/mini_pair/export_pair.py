"""
Writes the trained pair to `examples/mini/`: bfloat16 weights, tokenizer, chat template and tree settings.

    python trainers/mini_pair/export_pair.py --draft_dir runs/mini_pair/draft/final

The tree settings are those that were fastest on two CPU cores (see README.md beside this file).
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from transformers_griffin import GriffinDraftModel


MINI = Path(__file__).parents[2] / "examples/mini"


def main(args: argparse.Namespace) -> None:
    tokenizer = AutoTokenizer.from_pretrained(args.data_dir / "tokenizer")
    target = AutoModelForCausalLM.from_pretrained(args.target_dir, dtype=torch.bfloat16)
    target.config.use_cache = True
    target.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    target.save_pretrained(args.output_dir / "target")
    tokenizer.save_pretrained(args.output_dir / "target")
    if args.draft_dir is None:
        return
    draft = GriffinDraftModel.from_pretrained(args.draft_dir, dtype=torch.bfloat16)
    draft.config.target_name_or_path = "examples/mini/target"
    draft.generation_config.num_assistant_tokens = args.num_assistant_tokens
    draft.generation_config.draft_tree_depth = args.draft_tree_depth
    draft.generation_config.draft_tree_top_k = args.draft_tree_top_k
    draft.save_pretrained(args.output_dir / "draft")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=Path("runs/mini_pair"))
    parser.add_argument("--target_dir", type=Path, default=Path("runs/mini_pair/target/final"))
    parser.add_argument("--draft_dir", type=Path, default=None, help="without it only the target is written")
    parser.add_argument("--output_dir", type=Path, default=MINI)
    parser.add_argument("--num_assistant_tokens", type=int, default=14)
    parser.add_argument("--draft_tree_depth", type=int, default=6)
    parser.add_argument("--draft_tree_top_k", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_args())
