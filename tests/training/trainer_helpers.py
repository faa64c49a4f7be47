"""What the tests of GriffinTrainer share: rows, a tiny trainer, and its weights."""

from pathlib import Path

import datasets
import torch

from conftest import tiny_llama
from transformers_griffin import GriffinDraftModel
from transformers_griffin.training import GriffinTrainer, GriffinTrainingArguments


def rows(count: int = 16, seed: int = 0) -> datasets.Dataset:
    """Sequences of unequal length whose loss masks have holes; one row has no token with a loss."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(6, 20, (count,), generator=generator).tolist()
    ids = [torch.randint(0, 61, (length,), generator=generator).tolist() for length in lengths]
    masks = [[0, 0, *torch.randint(0, 2, (length - 2,), generator=generator).tolist()] for length in lengths]
    masks[3] = [0] * lengths[3]
    return datasets.Dataset.from_dict({"input_ids": ids, "loss_mask": masks})


def make_trainer(
    output_dir: Path, model=None, target=None, trainer_kwargs=None, trainer_class=GriffinTrainer, **overrides
) -> GriffinTrainer:
    """A trainer of a tiny draft on `rows()`; `overrides` are training arguments."""
    fields = {
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "feature_noise": 0.0,
        "max_steps": 4,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
    }
    target = target or tiny_llama()
    torch.manual_seed(1)
    data = {"train_dataset": rows(), "eval_dataset": rows(5, seed=1)}
    return trainer_class(
        model=model or GriffinDraftModel.from_target(target),
        target=target,
        args=GriffinTrainingArguments(output_dir=str(output_dir), **(fields | overrides)),
        **(data | (trainer_kwargs or {})),
    )


def training_log(trainer: GriffinTrainer) -> list[dict[str, float]]:
    """What was logged about training steps."""
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def weights_after_training(trainer: GriffinTrainer, **kwargs) -> dict[str, torch.Tensor]:
    trainer.train(**kwargs)
    return {name: weight.detach().clone() for name, weight in trainer.draft.named_parameters()}


def assert_same_weights(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=1e-6, msg=name)
