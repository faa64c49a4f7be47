"""`griffin convert`: released checkpoints in and out."""

import argparse
import os
from typing import TYPE_CHECKING, Any

from .shared import add_parser, load_draft, load_target, quiet_transformers


if TYPE_CHECKING:
    from ..modeling_griffin import GriffinDraftModel


EXAMPLES = """\
A released checkpoint is a directory or Hub repository with config.json and pytorch_model.bin or model.safetensors, in
the layout of GRIFFIN, EAGLE, EAGLE-2 or HASS. With --target its copy of the embedding is compared with the target's.

examples:
  griffin convert user/griffin-release my-draft
  griffin convert user/griffin-release my-draft --target user/target
  griffin convert my-draft released --target user/target --to released
"""


def add_to(subparsers: Any) -> None:
    """`griffin convert`"""
    parser = add_parser(subparsers, "convert", "convert a released checkpoint to a draft, or back", EXAMPLES)
    parser.add_argument("path", metavar="PATH", help="directory or Hub repository to read")
    parser.add_argument("out", metavar="OUT", help="directory to write")
    parser.add_argument("--target", metavar="DIR_OR_REPO", help="the target that the draft was trained for")
    parser.add_argument(
        "--to", choices=["griffin", "released"], default="griffin", help="format to write (default: %(default)s)"
    )
    parser.add_argument(
        "--config-only",
        action="store_true",
        help="compare with the target's config.json only, without loading its weights",
    )
    parser.add_argument("--safetensors", action="store_true", help="with --to released: write model.safetensors")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of PATH on the Hub")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Reads PATH in either format and writes OUT in the other."""
    from transformers import AutoConfig

    from ..conversion import convert_checkpoint, write_released_checkpoint

    quiet_transformers()
    if os.path.isfile(args.out):
        raise ValueError(f"{args.out} is a file. Give a directory to write to.")
    if os.path.realpath(args.path) == os.path.realpath(args.out):
        raise ValueError(f"PATH and OUT are both {args.out}. Write to another directory.")
    hub_kwargs = {"revision": args.revision} if args.revision else {}
    if args.to == "released":
        if args.target is None:
            raise ValueError("The released format stores the target's embedding. Give --target.")
        target = load_target(args.target)
        draft = load_draft(args.path, target, **hub_kwargs)
        write_released_checkpoint(draft, args.out, safe_serialization=args.safetensors)
    else:
        config = AutoConfig.from_pretrained(args.target) if args.target else None
        checked_target = load_target(args.target) if args.target and not args.config_only else None
        draft = convert_checkpoint(args.path, target_config=config, target=checked_target, **hub_kwargs)
        draft.save_pretrained(args.out)
    print(f"Wrote {args.out}: {describe_draft(draft)}")


def describe_draft(draft: "GriffinDraftModel") -> str:
    """One line: architecture, sizes, dtype."""
    config = draft.config
    heads = "two outputs" if config.dual_head else "one output"
    proposes = "" if config.draft_vocab_size is None else f" (proposes {config.draft_vocab_size})"
    return (
        f"{config.fusion} fusion, {heads}, {config.num_hidden_layers} layer(s), hidden size {config.hidden_size}, "
        f"vocabulary {config.vocab_size}{proposes}, {draft.num_parameters():,} parameters, "
        f"{str(draft.dtype).removeprefix('torch.')}"
    )
