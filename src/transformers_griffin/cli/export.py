"""`griffin export`: a draft for vLLM or SGLang."""

import argparse
import os
from typing import Any

from .convert import describe_draft
from .shared import add_parser, load_draft, quiet_transformers


EXAMPLES = """\
The engines load drafts with EAGLE's network: made with fusion="concat", dual_head=False and, for vLLM,
fusion_bias=False. Others are refused with what to train instead. Of the target only config.json is read.
SGLang keeps a truncated vocabulary (OUT/token_map.pt), vLLM and speculators propose from all tokens.

examples:
  griffin export my-draft served --target user/target
  griffin export my-draft served --target user/target --engine sglang
  griffin export my-draft served --target user/target --format speculators
  python -m sglang.launch_server --model-path user/target --speculative-algorithm EAGLE \
    --speculative-draft-model-path served --speculative-token-map served/token_map.pt
  vllm serve user/target --speculative-config '{"method": "eagle", "model": "served", "num_speculative_tokens": 4}'
"""


def add_to(subparsers: Any) -> None:
    """`griffin export`"""
    parser = add_parser(subparsers, "export", "write a draft for a serving engine", EXAMPLES)
    parser.add_argument("draft", metavar="DRAFT", help="directory or Hub repository of the draft")
    parser.add_argument("out", metavar="OUT", help="directory to write")
    parser.add_argument("--target", metavar="DIR_OR_REPO", required=True, help="what the draft was trained for")
    parser.add_argument(
        "--format", choices=["eagle", "speculators"], default="eagle", help="layout to write (default: %(default)s)"
    )
    parser.add_argument(
        "--engine", choices=["vllm", "sglang"], default="vllm", help="reader of eagle (default: %(default)s)"
    )
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of DRAFT on the Hub")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Writes DRAFT into OUT."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from ..hub.export import export_draft

    quiet_transformers()
    if os.path.isfile(args.out) or os.path.realpath(args.draft) == os.path.realpath(args.out):
        raise ValueError(f"OUT is {args.out}, which is a file or the draft itself. Give another directory.")
    with torch.device("meta"):
        target = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(args.target))
    draft = load_draft(args.draft, target, **({"revision": args.revision} if args.revision else {}))
    export_draft(draft, args.out, target, format=args.format, engine=args.engine)
    print(f"Wrote {args.out}: {describe_draft(draft)}")
