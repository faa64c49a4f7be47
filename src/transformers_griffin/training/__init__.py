"""How a draft is made: equations, passes, features, data, arguments and the trainer, in that reading order."""

from .arguments import GriffinTrainingArguments
from .data import GriffinDataCollator
from .regenerate import regenerate_answers
from .sources import load_training_data, tokenize_dataset
from .stored_features import load_features, prepare_features
from .trainer import GriffinTrainer


__all__ = [
    "GriffinDataCollator",
    "GriffinTrainer",
    "GriffinTrainingArguments",
    "load_features",
    "load_training_data",
    "prepare_features",
    "regenerate_answers",
    "tokenize_dataset",
]
