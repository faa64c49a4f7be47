"""How a draft is made: equations, passes, features, data, arguments and the trainer, in that reading order."""

from .acceptance import AcceptanceEvaluator
from .arguments import GriffinTrainingArguments
from .callbacks import CurvesCallback
from .curves import plot_training_curves
from .data import GriffinDataCollator
from .trainer import GriffinTrainer


__all__ = [
    "AcceptanceEvaluator",
    "CurvesCallback",
    "GriffinDataCollator",
    "GriffinTrainer",
    "GriffinTrainingArguments",
    "plot_training_curves",
]
