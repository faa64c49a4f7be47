"""How a draft is made: equations, passes, features, data, arguments and the trainer, in that reading order."""

from .acceptance import AcceptanceEvaluator
from .arguments import GriffinTrainingArguments
from .callbacks import CurvesCallback
from .curves import plot_training_curves
from .data import GriffinDataCollator
from .recipe import RecipeArguments, parse_recipe, train_recipe
from .regenerate import regenerate_answers
from .sources import load_training_data, tokenize_dataset
from .stored_features import load_features, prepare_features
from .token_counts import count_tokens, frequent_tokens
from .trainer import GriffinTrainer


__all__ = [
    "AcceptanceEvaluator",
    "CurvesCallback",
    "GriffinDataCollator",
    "GriffinTrainer",
    "GriffinTrainingArguments",
    "RecipeArguments",
    "count_tokens",
    "frequent_tokens",
    "load_features",
    "load_training_data",
    "parse_recipe",
    "plot_training_curves",
    "prepare_features",
    "regenerate_answers",
    "tokenize_dataset",
    "train_recipe",
]
