"""`griffin train`: a draft by a recipe."""

import argparse
from pathlib import Path
from typing import Any

from .shared import add_parser


EXAMPLES = """\
RECIPE is a YAML file; trainers/configs in the repository has one for each of twelve targets. Everything behind it
overrides a key of the file; RECIPE --help lists all keys. A run that was interrupted continues when the same command
is started again; the draft is in <output_dir>/final. On several devices: accelerate launch -m transformers_griffin.cli
train RECIPE.

examples:
  griffin train trainers/configs/mini_pair.yaml --max_steps 20 --output_dir runs/mini_quick
  griffin train trainers/configs/qwen3_8b.yaml --per_device_train_batch_size 2 --gradient_accumulation_steps 2
  griffin train my_recipe.yaml --draft released-griffin --num_passes 3 --num_passes_schedule 0 0
"""


def add_to(subparsers: Any) -> None:
    """`griffin train`"""
    parser = add_parser(subparsers, "train", "train a draft by a recipe", EXAMPLES)
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file with target, data and settings")
    parser.add_argument(
        "overrides", nargs=argparse.REMAINDER, metavar="--KEY VALUE ...", help="keys of the recipe to replace"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Trains; prints what transformers' Trainer prints."""
    from ..training.recipe import parse_recipe, train_recipe

    if not args.recipe.endswith((".yaml", ".yml")):
        raise ValueError(f"{args.recipe} is no recipe. Give a YAML file; `griffin train --help` shows examples.")
    if not Path(args.recipe).is_file():
        raise ValueError(f"{args.recipe} is no file. Give a YAML file; `griffin train --help` shows examples.")
    train_recipe(*parse_recipe([args.recipe, *args.overrides]))
