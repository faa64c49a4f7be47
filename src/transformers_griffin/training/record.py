"""
What a training says about itself: the facts that go into a draft's card.

Next: `trainer.py`.
"""

import os
import platform
import re
from collections.abc import Iterable, Sized
from typing import TYPE_CHECKING, Any

import torch
import transformers

from ..hub import TrainingFacts


if TYPE_CHECKING:
    from .trainer import GriffinTrainer

RECIPE = (
    "objective",
    "num_passes",
    "num_passes_schedule",
    "alignment",
    "alignment_top_k",
    "feature_loss_weight",
    "token_loss_weight",
    "top_token_loss_weight",
    "token_labels",
    "feature_noise",
    "loss_mask_shift",
    "max_length",
    "packing",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "optim",
    "bf16",
    "fp16",
    "seed",
)
HUB_FILE = re.compile(r"hf://datasets/([\w.-]+(?:/[\w.-]+)?)@")
SPEED_METRICS = ("runtime", "samples_per_second", "steps_per_second")


def training_facts(trainer: "GriffinTrainer") -> TrainingFacts:
    """What is known about a trainer's run so far."""
    args, state = trainer.args, trainer.state
    batch_size = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    recipe = {name: getattr(args, name) for name in RECIPE} | {"total_train_batch_size": batch_size}
    return TrainingFacts(
        datasets=_hub_datasets(trainer.train_dataset),
        num_rows=len(trainer.train_dataset) if isinstance(trainer.train_dataset, Sized) else None,
        recipe={name: str(getattr(value, "value", value)) for name, value in recipe.items()},
        num_steps=state.global_step,
        num_epochs=state.epoch,
        hardware=_hardware(args.device, args.world_size),
        versions={"torch": torch.__version__, "transformers": transformers.__version__},
        metrics=_last_evaluation(state.log_history),
    )


def _hub_datasets(rows: Any) -> list[str]:
    """The names of the Hub's datasets that the rows were read from; files on this machine have none."""
    checksums = getattr(getattr(rows, "info", None), "download_checksums", None) or {}
    return sorted({match.group(1) for url in checksums if (match := HUB_FILE.match(url))})


def _hardware(device: torch.device, world_size: int) -> str:
    if device.type == "cpu":
        return f"CPU, {os.cpu_count()} cores, {platform.machine()}"
    name = torch.get_device_module(device).get_device_name(device)
    return f"{world_size} x {name}"


def _last_evaluation(log_history: Iterable[dict[str, float]]) -> dict[str, float]:
    evaluations = [entry for entry in log_history if "eval_loss" in entry]
    last = evaluations[-1] if evaluations else {}
    return {
        name: value
        for name, value in last.items()
        if name.startswith("eval_") and name.removeprefix("eval_") not in SPEED_METRICS
    }


__all__ = ["training_facts"]
