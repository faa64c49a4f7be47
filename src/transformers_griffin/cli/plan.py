"""`griffin plan`: what a training takes."""

import argparse
import json
from dataclasses import fields
from typing import Any

from .shared import add_parser, positive_int, quiet_transformers


EXAMPLES = """\
Only the target's config.json is read. All numbers but the parameter counts are estimates; the last line of stdout is
one JSON object.

examples:
  griffin plan --target user/target
  griffin plan --target path/to/config.json --stored-features --gpu H100
  griffin plan --target user/target --tokens 500000000 --epochs 2 --target-bits 4 --batch-size 1
"""


def add_to(subparsers: Any) -> None:
    """`griffin plan`"""
    parser = add_parser(subparsers, "plan", "estimate what training a draft takes, before anything starts", EXAMPLES)
    parser.add_argument("--target", metavar="DIR_OR_REPO", required=True, help="or the path of a config.json")
    parser.add_argument("--num-passes", metavar="N", type=positive_int, help="passes of a training step (default: 3)")
    parser.add_argument(
        "--tokens", metavar="N", type=positive_int, help="tokens of the data (default: ShareGPT, 102 million)"
    )
    parser.add_argument("--epochs", metavar="N", type=positive_int, help="how often they are seen (default: 20)")
    parser.add_argument("--max-length", metavar="N", type=positive_int, help="tokens of a row (default: 2048)")
    parser.add_argument("--batch-size", metavar="N", type=positive_int, help="rows a device and step (default: 4)")
    parser.add_argument("--target-bits", metavar="N", type=int, help="16, 8 or 4 bits a target weight (default: 16)")
    parser.add_argument("--gpu", help="A100, H100, H200, L40S or RTX4090 (default: A100)")
    parser.add_argument("--stored-features", action="store_true", help="features from disk, not computed online")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Prints the plan as a table, then as one JSON object."""
    from transformers import AutoConfig

    from ..training.plan import PlanSettings, format_plan, paper_calibration, plan_training

    given = {field.name: getattr(args, field.name) for field in fields(PlanSettings) if hasattr(args, field.name)}
    settings = PlanSettings(**{name: value for name, value in given.items() if value is not None})
    quiet_transformers()
    plan = plan_training(AutoConfig.from_pretrained(args.target), settings)
    print(format_plan(plan, paper_calibration()))
    print(json.dumps({"target": args.target} | plan.as_dict()))
