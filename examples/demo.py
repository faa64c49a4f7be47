"""
Six real questions, answered by the mini target alone and with its GRIFFIN draft: the same tokens, sooner.

    make demo
    python examples/demo.py --max_new_tokens 200 --temperature 1.0

Tokens that the draft guessed and the target confirmed are green; those that the target had to add are plain.
Two prompts each come from MT-bench, HumanEval and GSM8K. `--target` and `--draft` take any other pair.
"""

import argparse
import os
import sys
from pathlib import Path

import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging

import transformers_griffin  # noqa: F401  # registers the draft and installs the hook
from transformers_griffin.evaluation import TimedAnswer, answer_prompt, compare, load_prompts
from transformers_griffin.evaluation.prompts import PACKAGED, encode_chat


MINI = Path(__file__).parent / "mini"
GREEN, RESET, BOLD = "\033[32m", "\033[0m", "\033[1m"


def main(args: argparse.Namespace) -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(args.target)
    target = AutoModelForCausalLM.from_pretrained(args.target, dtype=args.dtype).eval()
    draft = AutoModel.from_pretrained(args.draft, dtype=args.dtype).eval()
    settings = {"max_new_tokens": args.max_new_tokens, "pad_token_id": tokenizer.pad_token_id}
    settings |= {"do_sample": True, "temperature": args.temperature} if args.temperature else {"do_sample": False}
    warm_up(target, draft, tokenizer, settings)

    rows = []
    for domain in PACKAGED:
        plain, drafted = [], []
        for prompt in load_prompts([domain], args.prompts_per_domain):
            input_ids = torch.tensor([encode_chat(tokenizer, prompt.turns[:1])])
            print(f"\n{BOLD}{domain}{RESET}  {prompt.turns[0].strip()}\n")
            plain.append(answer_prompt(target, input_ids, **settings))
            drafted.append(answer_prompt(target, input_ids, draft, streamer=AcceptanceStreamer(tokenizer), **settings))
            print(f"\n{describe(plain[-1], drafted[-1])}")
        rows.append((domain, plain, drafted))
    print_table(rows, lossless_check=not args.temperature)


class AcceptanceStreamer(BaseStreamer):
    """Prints every cycle as it arrives: drafted tokens green, the target's own last token plain."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.is_prompt = True
        self.colours = sys.stdout.isatty() or "FORCE_COLOR" in os.environ

    def put(self, value: torch.Tensor) -> None:
        if self.is_prompt:
            self.is_prompt = False
            return
        *drafted, own = value.flatten().tolist()
        text = self.tokenizer.decode(drafted)
        print(f"{GREEN}{text}{RESET}" if self.colours else f"[{text}]" if text else "", end="")
        print(self.tokenizer.decode([own], skip_special_tokens=True), end="", flush=True)

    def end(self) -> None:
        print()


def warm_up(target, draft, tokenizer, settings: dict) -> None:
    input_ids = torch.tensor([encode_chat(tokenizer, ["Hello!"])])
    for model in (None, draft):
        answer_prompt(target, input_ids, model, **(settings | {"max_new_tokens": 16}))


def describe(plain: TimedAnswer, drafted: TimedAnswer) -> str:
    cycles = drafted.acceptance_lengths
    tau = sum(cycles) / len(cycles) if cycles else float("nan")
    return (
        f"plain {plain.tokens_per_second:.0f} tokens/s, GRIFFIN {drafted.tokens_per_second:.0f} tokens/s, "
        f"{len(drafted.new_tokens)} tokens in {len(cycles)} cycles (tau {tau:.2f})"
    )


def print_table(rows: list[tuple[str, list[TimedAnswer], list[TimedAnswer]]], lossless_check: bool) -> None:
    rows = [*rows, ("all", [a for _, p, _ in rows for a in p], [a for _, _, d in rows for a in d])]
    print(f"\n{'domain':<10} {'identical':<10} {'tau':>5} {'plain tok/s':>12} {'GRIFFIN tok/s':>14} {'SR':>6}")
    for domain, plain, drafted in rows:
        result = compare(plain, drafted)
        identical = "yes" if result.num_identical == result.num_prompts else "NO"
        print(
            f"{domain:<10} {identical if lossless_check else '(sampled)':<10} {result.tau:>5.2f} "
            f"{result.plain_tokens_per_second:>12.1f} {result.draft_tokens_per_second:>14.1f} "
            f"{result.speedup_ratio:>5.2f}x"
        )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default=str(MINI / "target"))
    parser.add_argument("--draft", default=str(MINI / "draft"))
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--prompts_per_domain", type=int, default=2)
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 decodes greedily")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_args())
