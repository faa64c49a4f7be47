"""`griffin profile`: where the time of a cycle goes."""

import argparse
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from . import synthetic
from .shared import (
    DTYPES,
    SHAPES,
    add_parser,
    add_sampling,
    default_device,
    load_draft,
    load_target,
    positive_int,
    quiet_transformers,
    sampling,
)


EXAMPLES = """\
Prints the parts of a cycle, in milliseconds and shares, and writes a trace for chrome://tracing or ui.perfetto.dev.
With --synthetic no weights are needed: random ones cost as much. The last line of stdout is one JSON object.

examples:
  griffin profile --target user/target --draft my-draft
  griffin profile --target user/target --draft my-draft --prompt "Why is the sky blue?" --trace sky.json
  griffin profile --synthetic llama-3-8b --prompt-length 2048 --trace runs/llama-3-8b.json
"""


def add_to(subparsers: Any) -> None:
    """`griffin profile`"""
    parser = add_parser(subparsers, "profile", "show where the time of a cycle goes", EXAMPLES)
    parser.add_argument("--target", metavar="DIR_OR_REPO", help="required, except with --synthetic")
    parser.add_argument("--draft", metavar="DIR_OR_REPO", help="likewise")
    parser.add_argument("--prompt", metavar="TEXT", help="default: three questions of MT-bench")
    parser.add_argument("--synthetic", metavar="SHAPE", help=f"random weights in this shape: {SHAPES}")
    parser.add_argument(
        "--prompt-length", metavar="N", type=positive_int, default=512, help="of --synthetic (default: %(default)s)"
    )
    parser.add_argument(
        "--draft-vocab-size", metavar="N", type=positive_int, help="tokens that a --synthetic draft can propose"
    )
    parser.add_argument(
        "--draft-head-dtype", choices=("int8",), help="the LM head for drafting with --synthetic (default: as it is)"
    )
    parser.add_argument("--max-new-tokens", metavar="N", type=positive_int, default=64, help="default: %(default)s")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="profile the compiled cycle (static cache), of which drafting is one part",
    )
    add_sampling(parser)
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="default: the target's; bfloat16 if synthetic")
    parser.add_argument("--device", help="for example cuda or cpu (default: cuda if there is one)")
    parser.add_argument(
        "--trace", metavar="FILE", type=Path, default=Path("runs/profile/trace.json"), help="default: %(default)s"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Profiles, then prints the table and the JSON object."""
    from ..evaluation.profiling import profile_cycles
    from ..evaluation.provenance import provenance
    from ..evaluation.synthetic_pair import agreeing_target

    quiet_transformers()
    if args.synthetic is None and (args.target is None or args.draft is None):
        raise ValueError("Give --target and --draft, or --synthetic with a shape.")
    if args.synthetic is None:
        synthetic.refuse_options(args)
    target, draft, batches = synthetic_pair(args) if args.synthetic else trained_pair(args)
    with agreeing_target() if args.synthetic else nullcontext():
        result = profile_cycles(
            target,
            draft,
            batches,
            trace=args.trace,
            max_new_tokens=args.max_new_tokens,
            compiles=args.compile,
            pad_token_id=0,
            **sampling(args),
        )
    print(result.as_table())
    print(f"Wrote {args.trace}")
    arguments = {name: value for name, value in vars(args).items() if name not in ("run", "command", "debug")}
    print(json.dumps(result.as_dict() | {"provenance": provenance(arguments, target.device)}))


def synthetic_pair(args: argparse.Namespace) -> tuple[Any, Any, list[Any]]:
    """Random weights and a random prompt."""
    import torch

    from ..evaluation.synthetic_pair import build_pair

    dtype = getattr(torch, "bfloat16" if args.dtype == "auto" else args.dtype)
    device = torch.device(args.device or default_device())
    target, draft = build_pair(
        args.synthetic,
        dtype,
        device,
        draft_vocab_size=args.draft_vocab_size,
        draft_head_dtype=args.draft_head_dtype,
    )
    prompt = torch.randint(target.config.vocab_size, (1, args.prompt_length), device=target.device)
    return target, draft, [(prompt, torch.ones_like(prompt))]


def trained_pair(args: argparse.Namespace) -> tuple[Any, Any, list[Any]]:
    """The given pair with the given prompt, or some of the package's."""
    from transformers import AutoTokenizer

    from ..evaluation.prompts import Prompt, first_question_batches, load_prompts

    tokenizer = AutoTokenizer.from_pretrained(args.target)
    target = load_target(args.target, args.dtype, args.device or default_device())
    draft: Any = load_draft(args.draft, target, dtype=target.dtype)
    draft.to(target.device)
    prompts = [Prompt("own", "0", (args.prompt,))] if args.prompt else load_prompts(["mt_bench"], 3)
    return target, draft, first_question_batches(tokenizer, prompts, 1, 0, target.device)
