"""
Trains a draft by a recipe; `griffin train` as a script, for launchers that start one.

    python trainers/train_griffin.py trainers/configs/mini_pair.yaml --max_steps 20 --output_dir runs/mini_quick
    accelerate launch trainers/train_griffin.py trainers/configs/qwen3_8b.yaml

Keys: `griffin train --help`, and README.md beside this file. Measured: see the head of each recipe.
"""

import sys

from transformers_griffin.training.recipe import parse_recipe, train_recipe


if __name__ == "__main__":
    train_recipe(*parse_recipe(sys.argv[1:]))
