"""
Callbacks of a training: curves of everything that is logged.

    GriffinTrainer(..., callbacks=[CurvesCallback()])

Next: `plan.py`.
"""

import importlib.util
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .curves import plot_training_curves


class CurvesCallback(TrainerCallback):
    """
    Draws the curves of the log into the output directory, at every evaluation and at the end of the training.

    Args:
        file_name (`str`, defaults to `"curves.png"`): in `args.output_dir`; the suffix chooses the format.

    Raises:
        ImportError: if matplotlib is not installed.
    """

    def __init__(self, file_name: str = "curves.png"):
        if importlib.util.find_spec("matplotlib") is None:
            raise ImportError(
                "Curves are drawn with matplotlib, which is not installed. Run `pip install "
                "transformers-griffin[plot]`, or leave CurvesCallback out."
            )
        self.file_name = file_name

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draws, on the first process."""
        if state.is_world_process_zero:
            plot_training_curves(state, Path(args.output_dir or ".") / self.file_name)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draws, on the first process."""
        self.on_evaluate(args, state, control)


__all__ = ["CurvesCallback"]
