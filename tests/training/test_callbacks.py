"""CurvesCallback within a training."""

import importlib.util

import pytest
from acceptance_helpers import TREE, prompts, tiny_trainer
from transformers import TrainerControl, TrainerState

from transformers_griffin.training import AcceptanceEvaluator, CurvesCallback
from transformers_griffin.training import callbacks as callbacks_module
from transformers_griffin.training.curves import PANELS, read_series


NOT_DRAWN = ("runtime", "per_second", "epoch", "step", "learning_rate", "grad_norm", "total_flos", "top_token_loss")
NOT_DRAWN += ("train_loss", "repeated_4grams", "preparation_time")


def test_curves_are_drawn_at_every_evaluation_and_hold_everything_measured(tmp_path, monkeypatch):
    drawn = []

    def plot(state, path):
        drawn.append((len(state.log_history), path))
        plot_training_curves(state, path)

    plot_training_curves = callbacks_module.plot_training_curves
    monkeypatch.setattr(callbacks_module, "plot_training_curves", plot)
    trainer = tiny_trainer(
        tmp_path / "run",
        extra_metrics=[AcceptanceEvaluator(prompts(), tree=TREE, max_new_tokens=8)],
        callbacks=[CurvesCallback()],
        eval_strategy="steps",
        eval_steps=2,
    )
    trainer.train()
    # Steps 1 and 2 with an evaluation, 3 and 4 with another, the Trainer's summary.
    assert drawn == [(entries, tmp_path / "run" / "curves.png") for entries in (3, 6, 7)]
    assert (tmp_path / "run" / "curves.png").stat().st_size > 10_000

    history = trainer.state.log_history
    assert all(read_series(history, pattern) for _, pattern in PANELS), "a panel is empty"
    shown = sum(len(points) for _, pattern in PANELS for points in read_series(history, pattern).values())
    logged = sum(not name.endswith(NOT_DRAWN) for entry in history for name in entry)
    assert shown == logged


@pytest.mark.parametrize("is_first", [True, False])
def test_only_the_first_process_draws(tmp_path, is_first):
    trainer = tiny_trainer(tmp_path)
    state = TrainerState(is_world_process_zero=is_first, log_history=[{"step": 1, "loss": 1.0}])
    CurvesCallback("all.png").on_evaluate(trainer.args, state, TrainerControl())
    assert (tmp_path / "all.png").is_file() == is_first


def test_missing_matplotlib_is_an_error_before_anything_is_trained(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ImportError, match=r"matplotlib, which is not installed. Run `pip install transformers-griffin\[plot\]`"
    ):
        CurvesCallback()
