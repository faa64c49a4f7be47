"""`griffin generate`: one answer with target and draft."""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from .shared import (
    DTYPES,
    add_parser,
    add_sampling,
    default_device,
    load_draft,
    load_target,
    positive_int,
    quiet_transformers,
    sampling,
)


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


EXAMPLES = """\
The draft may be a released checkpoint too. The tokenizer's chat template is used if it has one.

examples:
  griffin generate --target user/target --draft my-draft --prompt "Why is the sky blue?"
  griffin generate --target user/target --draft my-draft --prompt "def add(" --raw --temperature 0.8 --top-p 0.9
  cat question.txt | griffin generate --target user/target --draft my-draft --prompt -
"""


def add_to(subparsers: Any) -> None:
    """`griffin generate`"""
    parser = add_parser(subparsers, "generate", "answer a prompt with target and draft", EXAMPLES)
    parser.add_argument("--target", metavar="DIR_OR_REPO", required=True)
    parser.add_argument("--draft", metavar="DIR_OR_REPO", required=True)
    parser.add_argument("--prompt", metavar="TEXT", required=True, help="the prompt; - reads it from stdin")
    parser.add_argument("--raw", action="store_true", help="continue the prompt as it is, without chat template")
    parser.add_argument("--max-new-tokens", metavar="N", type=positive_int, default=128, help="default: %(default)s")
    add_sampling(parser)
    parser.add_argument("--seed", type=int, help="makes sampling repeatable")
    parser.add_argument("--dtype", choices=DTYPES, default="auto")
    parser.add_argument("--device", help="for example cuda or cpu (default: cuda if there is one)")
    tree = parser.add_argument_group("draft tree (default: the draft's own settings)")
    tree.add_argument("--num-draft-tokens", metavar="N", type=positive_int, help="drafted tokens verified per cycle")
    tree.add_argument("--depth", metavar="N", type=positive_int, help="levels of the tree")
    tree.add_argument("--width", metavar="N", type=positive_int, help="tokens kept per level; 1 drafts a chain")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Streams the answer, then prints what the draft achieved."""
    from transformers import AutoTokenizer, TextStreamer, set_seed

    from ..evaluation.answers import answer_prompt
    from ..evaluation.metrics import mean_acceptance_length

    quiet_transformers()
    device = args.device or default_device()
    tokenizer = AutoTokenizer.from_pretrained(args.target)
    target = load_target(args.target, args.dtype, device)
    draft = load_draft(args.draft, target, dtype=target.dtype)
    draft.to(device)  # type: ignore[arg-type]  # transformers wraps `Module.to` untyped
    for name, value in (
        ("num_assistant_tokens", args.num_draft_tokens),
        ("draft_tree_depth", args.depth),
        ("draft_tree_top_k", args.width),
    ):
        if value is not None:
            setattr(draft.generation_config, name, value)
    if args.seed is not None:
        set_seed(args.seed)

    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    input_ids = encode(tokenizer, prompt, args.raw).to(device)
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    answer = answer_prompt(
        target, input_ids, draft, streamer=streamer, max_new_tokens=args.max_new_tokens, **sampling(args)
    )
    print(
        f"[{len(answer.new_tokens)} tokens, {len(answer.acceptance_lengths)} cycles, "
        f"tau {mean_acceptance_length([answer.acceptance_lengths]):.2f}, {answer.tokens_per_second:.1f} tokens/s]"
    )


def encode(tokenizer: "PreTrainedTokenizerBase", prompt: str, raw: bool) -> Any:
    """`prompt` as a `torch.LongTensor` of shape `(1, length)`, in the chat template if there is one."""
    import torch

    from ..evaluation.prompts import encode_chat

    return torch.tensor([tokenizer(prompt).input_ids if raw else encode_chat(tokenizer, [prompt])])
