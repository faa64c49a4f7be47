"""How a draft is made: equations, passes, features, data, arguments and the trainer, in that reading order."""

from .arguments import GriffinTrainingArguments
from .data import GriffinDataCollator
from .trainer import GriffinTrainer


__all__ = ["GriffinDataCollator", "GriffinTrainer", "GriffinTrainingArguments"]
