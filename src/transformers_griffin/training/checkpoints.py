"""
Whether a checkpoint of the Trainer was written to its end.

The Trainer writes `trainer_state.json` last, and removes older checkpoints only after it. So a checkpoint is complete
if this file is there and whole; [`GriffinTrainer`] sees to it that no process still writes when it appears, and that
none is left over from an earlier checkpoint of the same name. A process that is killed, or a disk that is full, leaves
a checkpoint without it.

Next: `wrapping.py`.
"""

import json
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import sort_checkpoints
from transformers.utils import logging


logger = logging.get_logger(__name__)


def is_complete(checkpoint: str | Path) -> bool:
    """Whether a checkpoint was written to its end."""
    try:
        json.loads((Path(checkpoint) / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    return True


def mark_incomplete(checkpoint: str | Path) -> None:
    """Makes sure that a checkpoint about to be written does not look complete."""
    (Path(checkpoint) / TRAINER_STATE_NAME).unlink(missing_ok=True)


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """The complete checkpoint of the highest step in a Trainer's `output_dir`, None if there is none."""
    for checkpoint in reversed(sort_checkpoints(str(output_dir))):
        if is_complete(checkpoint):
            return checkpoint
        logger.warning(f"{checkpoint} is left out: it is incomplete, its writing was interrupted. You may delete it.")
    return None


def check_resumable(checkpoint: str | Path) -> None:
    """
    Checks that training can continue from a checkpoint.

    Raises:
        ValueError: if it does not exist or is incomplete.
    """
    if not Path(checkpoint).is_dir():
        raise ValueError(f"There is no checkpoint {checkpoint}. Give the path of a folder that the trainer saved.")
    if not is_complete(checkpoint):
        last = last_complete_checkpoint(Path(checkpoint).parent)
        advice = "Start again" if last is None else f"Continue from {last}"
        raise ValueError(
            f"The checkpoint {checkpoint} is incomplete: it has no readable {TRAINER_STATE_NAME}, which is written "
            f"last, so its writing was interrupted. {advice}, and delete the incomplete one."
        )


__all__ = ["check_resumable", "is_complete", "last_complete_checkpoint", "mark_incomplete"]
