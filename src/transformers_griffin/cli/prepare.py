"""`griffin prepare`: the target's features, or its own answers, on disk."""

import argparse
from typing import Any

from .shared import (
    DTYPES,
    add_data,
    add_parser,
    add_sampling,
    default_device,
    load_data,
    load_draft,
    load_target,
    positive_int,
    quiet_transformers,
    sampling,
    tokenize_data,
)


EXAMPLES = """\
Data are JSON-lines files, a `datasets` directory or a dataset on the Hub, with rows of `messages` (or ShareGPT's
`conversations`) or `text`. Run the same command again after an interruption: it continues with the next shard.

examples:
  griffin prepare --target user/target --data chats.jsonl --output answers --regenerate
  griffin prepare --target user/target --data chats.jsonl --output answers --regenerate --draft my-draft
  griffin prepare --target user/target --data answers --output features --pack
  griffin prepare --target user/target --data user/chats --split "train[:10%]" --output features --max-length 4096
"""


def add_to(subparsers: Any) -> None:
    """`griffin prepare`"""
    parser = add_parser(
        subparsers, "prepare", "store the target's features, or its own answers, for training", EXAMPLES
    )
    parser.add_argument("--target", metavar="DIR_OR_REPO", required=True)
    add_data(parser)
    parser.add_argument("--output", metavar="DIR", required=True, help="directory to write, or to continue")
    parser.add_argument("--pack", action="store_true", help="pack conversations into rows of --max-length tokens")
    parser.add_argument(
        "--batch-size", metavar="N", type=positive_int, default=8, help="rows at once (default: %(default)s)"
    )
    parser.add_argument(
        "--shard-size", metavar="N", type=positive_int, default=256, help="rows of a shard (default: %(default)s)"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the target (default: %(default)s)")
    parser.add_argument("--device", help="for example cuda or cpu (default: cuda if there is one)")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of the target on the Hub")
    parser.add_argument("--force", action="store_true", help="start although the disk has too little space")
    answers = parser.add_argument_group("the target's own answers")
    answers.add_argument("--regenerate", action="store_true", help="write conversations answered by the target")
    answers.add_argument("--draft", metavar="DIR_OR_REPO", help="speeds the target up and changes no answer")
    answers.add_argument("--max-new-tokens", metavar="N", type=positive_int, default=512, help="default: %(default)s")
    add_sampling(answers)
    answers.add_argument("--seed", type=int, default=0, help="of sampling (default: %(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Stores features of the data, or regenerates its answers."""
    from transformers import AutoConfig, AutoTokenizer

    from ..training.regenerate import regenerate_answers
    from ..training.stored_features import plan_features, prepare_features

    quiet_transformers()
    hub_kwargs = {"revision": args.revision} if args.revision else {}
    rows = load_data(args)
    tokenizer = AutoTokenizer.from_pretrained(args.target, **hub_kwargs)
    batches = {"batch_size": args.batch_size, "shard_size": args.shard_size}
    if args.regenerate:
        target = load_target(args.target, args.dtype, args.device or default_device(), **hub_kwargs)
        draft = load_draft(args.draft, target, dtype=target.dtype) if args.draft else None
        if draft is not None:
            draft.to(target.device)  # type: ignore[arg-type]  # transformers wraps `Module.to` untyped
        lengths = {"max_length": args.max_length, "max_new_tokens": args.max_new_tokens}
        regenerate_answers(
            target, tokenizer, rows, args.output, seed=args.seed, draft=draft, **lengths, **batches, **sampling(args)
        )
    else:
        tokens = tokenize_data(args, rows, tokenizer, pack=args.pack)
        hidden_size = AutoConfig.from_pretrained(args.target, **hub_kwargs).get_text_config().hidden_size
        print(f"{args.output} will take {plan_features(tokens, hidden_size)}.", flush=True)
        target = load_target(args.target, args.dtype, args.device or default_device(), **hub_kwargs)
        prepare_features(target, tokenizer, tokens, args.output, force=args.force, **batches)
    print(f"Wrote {args.output}: {'answers' if args.regenerate else 'features'} of {args.target}")
