"""A loss that is not finite ends the training before a weight changes, and names the sample."""

import datasets
import pytest
import torch
from trainer_helpers import make_trainer, rows

from conftest import tiny_llama
from transformers_griffin.training import GriffinTrainer


BAD_TOKEN = 60


@pytest.fixture
def data() -> dict[str, datasets.Dataset]:
    """Eight rows of the token 7; the sixth one ends with a token whose embedding is NaN in `broken_target`."""
    ids = [[7] * 8 for _ in range(5)] + [[3, 4, 5, 7, 7, 7, 7, BAD_TOKEN]] + [[7] * 8 for _ in range(2)]
    dataset = datasets.Dataset.from_dict({"input_ids": ids})
    return {"train_dataset": dataset, "eval_dataset": dataset}


def broken_target():
    target = tiny_llama()
    target.get_input_embeddings().weight.data[BAD_TOKEN] = torch.nan
    return target


def trainer_in_order(tmp_path, data, **settings) -> GriffinTrainer:
    settings = {"train_sampling_strategy": "sequential", "per_device_train_batch_size": 4} | settings
    return make_trainer(tmp_path, target=broken_target(), trainer_kwargs=data, **settings)


def copy_of(trainer: GriffinTrainer) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in trainer.draft.parameters()]


def test_a_target_with_a_feature_that_is_nan_names_the_sample(tmp_path, data):
    """The sixth row is row 1 of the second batch: one step is done, the second one changes nothing."""
    expected = trainer_in_order(tmp_path, data, max_steps=1, lr_scheduler_type="constant")
    expected.train()
    trainer = trainer_in_order(tmp_path, data, lr_scheduler_type="constant")
    with pytest.raises(FloatingPointError, match=r"nan after 1 steps.*target's features.*1 of 4 rows.*row 1") as error:
        trainer.train()
    assert "the tokens [3, 4, 5, 7, 7, 7, 7, 60]" in str(error.value)
    assert all(torch.equal(*pair) for pair in zip(copy_of(trainer), copy_of(expected), strict=True))


def test_evaluation_names_the_sample_too(tmp_path, data):
    trainer = trainer_in_order(tmp_path, data, per_device_eval_batch_size=4)
    with pytest.raises(FloatingPointError, match="target's features are not finite in 1 of 4 rows"):
        trainer.evaluate()


def test_a_draft_that_diverged_is_told_from_a_bad_sample(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.draft.fusion.fc.weight.data[0, 0] = torch.inf
    with pytest.raises(FloatingPointError, match=r"draft's outputs are not finite in \d of \d rows.*lower `learning_"):
        trainer.train()


def test_overflowing_logits_are_told_from_both(tmp_path):
    """Half of the LM head's rows are the float's maximum: features and outputs are finite, logits are not."""
    target = tiny_llama()
    target.lm_head.weight.data[:30] = torch.finfo(torch.float32).max
    with pytest.raises(FloatingPointError, match="the logits of the LM head are not"):
        make_trainer(tmp_path, target=target).train()


def test_without_the_filter_the_next_log_stops_the_training(tmp_path, data):
    trainer = trainer_in_order(tmp_path, data, logging_nan_inf_filter=False, logging_steps=3)
    with pytest.raises(FloatingPointError, match="Set `logging_nan_inf_filter=True`"):
        trainer.train()
    assert trainer.state.global_step == 3


def test_rows_without_any_loss_are_no_error(tmp_path):
    empty = rows().map(lambda row: {"loss_mask": [0] * len(row["input_ids"])})
    trainer = make_trainer(tmp_path, trainer_kwargs={"train_dataset": empty}, max_steps=1)
    before = copy_of(trainer)
    trainer.train()
    assert all(torch.equal(*pair) for pair in zip(copy_of(trainer), before, strict=True))
