"""
Trains the mini pair's assistant: a tiny independent Llama, for stock assisted generation beside the drafts.

    python trainers/mini_pair/train_assistant.py --data_dir runs/mini_pair --output_dir runs/mini_pair/assistant
    python trainers/mini_pair/train_assistant.py --max_steps 20 --decay_steps 10

Speculative sampling (SPS) drafts with a small model that knows nothing of the target but its tokenizer. It is trained
as the target is (`train_target.py`), on the same blocks, and written in bfloat16 to `final/`.

Measured: README.md beside this file.
"""

import argparse

import torch
import train_target
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig


def main(args: argparse.Namespace) -> None:
    train_target.main(args)
    tokenizer = AutoTokenizer.from_pretrained(args.data_dir / "tokenizer")
    assistant = AutoModelForCausalLM.from_pretrained(args.output_dir / "final", dtype=torch.bfloat16)
    assistant.config.use_cache = True
    assistant.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    assistant.save_pretrained(args.output_dir / "final")


def parse_args() -> argparse.Namespace:
    parser = train_target.make_parser(__doc__)
    parser.set_defaults(
        output_dir=parser.get_default("data_dir") / "assistant",
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        max_steps=1500,
        decay_steps=500,
    )
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_args())
