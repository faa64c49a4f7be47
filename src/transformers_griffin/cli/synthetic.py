"""The `--synthetic` mode of `griffin bench`: what cycles cost on this machine, with random weights."""

import argparse
import json
import sys
from typing import Any

from .shared import SHAPES, default_device, positive_int


def add_options(parser: Any) -> None:
    """The mode's own options."""
    group = parser.add_argument_group("without weights (one shape at a time; bfloat16 unless --dtype says otherwise)")
    group.add_argument(
        "--synthetic", metavar="SHAPE", help=f"random weights instead of --target and --draft, shaped as {SHAPES}"
    )
    group.add_argument(
        "--prompt-lengths", metavar="N", nargs="+", type=positive_int, help="default: 128 512 2048 8192 16384"
    )
    group.add_argument(
        "--draft-vocab-size", metavar="N", type=positive_int, help="tokens that the draft can propose (default: all)"
    )
    group.add_argument("--draft-head-dtype", choices=("int8",), help="the LM head for drafting (default: as it is)")
    group.add_argument(
        "--time-budget",
        metavar="SECONDS",
        type=positive_int,
        default=600,
        help="lengths that would end later are skipped (default: %(default)s)",
    )


def refuse_options(args: argparse.Namespace) -> None:
    """Raises a ValueError if there are options that only random weights have, but no --synthetic."""
    for name in ("prompt_lengths", "draft_vocab_size", "draft_head_dtype"):
        value = getattr(args, name, None)
        if value is not None:
            option = "--" + name.replace("_", "-")
            raise ValueError(
                f"{option} is {value}, but goes with --synthetic only. What a draft proposes, and how it reads the "
                "head, is said in its config.json and generation_config.json; --prompts and --prompt choose prompts."
            )


def run(args: argparse.Namespace) -> None:
    """Measures, writes OUTPUT/synthetic.json and synthetic.md, prints the table and the JSON object."""
    import torch

    from ..evaluation.methods import PLAIN_COMPILED
    from ..evaluation.provenance import provenance
    from ..evaluation.synthetic import PROMPT_LENGTHS, as_markdown, measure_synthetic

    dtype = "bfloat16" if args.dtype[0] == "auto" else args.dtype[0]
    device = torch.device(args.device or default_device())
    results = measure_synthetic(
        args.synthetic,
        getattr(torch, dtype),
        device,
        prompt_lengths=args.prompt_lengths or PROMPT_LENGTHS,
        compiles=PLAIN_COMPILED in args.methods,
        time_budget=args.time_budget,
        draft_vocab_size=args.draft_vocab_size,
        draft_head_dtype=args.draft_head_dtype,
        provenance=provenance({name: vars(args)[name] for name in ARGUMENTS}, device),
    )
    results.save(args.output)
    print(as_markdown(results))
    for length, why in results.skipped.items():
        print(f"{length} tokens: {why}", file=sys.stderr)
    print(json.dumps(results.as_dict()))


ARGUMENTS = (
    *("synthetic", "prompt_lengths", "draft_vocab_size", "draft_head_dtype", "time_budget"),
    *("methods", "dtype", "device", "output"),
)
