"""A run that was interrupted continues bit for bit, and never from half a checkpoint."""

import errno
import os
import signal
import subprocess
import sys

import pytest
import torch
from trainer_helpers import make_trainer, training_log, weights_after_training
from transformers.trainer_utils import get_last_checkpoint

from transformers_griffin.training import GriffinTrainer
from transformers_griffin.training.checkpoints import check_resumable, is_complete, last_complete_checkpoint


# Steps 3 and 4 lie in one epoch; passes join at steps 2 and 5; noise and alignment masks are on.
SETTINGS = {
    "max_steps": 6,
    "save_strategy": "steps",
    "save_steps": 3,
    "num_passes_schedule": [0.25, 0.75],
    "feature_noise": 0.2,
    "alignment_top_k": 30,  # of 61 tokens: masks keep about half
    "warmup_steps": 2,
}


def untimed(entries: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in entry.items() if "runtime" not in name} for entry in entries]


def full_disk(*args: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_run_whose_disk_was_full_continues_bit_for_bit(tmp_path, monkeypatch):
    """Checkpoint 6 breaks off: the run says so and ends; the next one continues from checkpoint 3."""
    whole = make_trainer(tmp_path / "whole", **SETTINGS)
    expected = weights_after_training(whole)

    broken = make_trainer(tmp_path / "broken", **SETTINGS)
    save_optimizer = GriffinTrainer._save_optimizer_and_scheduler
    monkeypatch.setattr(
        GriffinTrainer,
        "_save_optimizer_and_scheduler",
        lambda self, folder: full_disk() if self.state.global_step == 6 else save_optimizer(self, folder),
    )
    with pytest.raises(RuntimeError, match=r"No space left on device.*last complete checkpoint is .*checkpoint-3"):
        broken.train()
    assert get_last_checkpoint(tmp_path / "broken").endswith("checkpoint-6")  # what would be half a checkpoint
    with pytest.raises(ValueError, match=r"checkpoint-6 is incomplete.*Continue from .*checkpoint-3"):
        broken.train(resume_from_checkpoint=str(tmp_path / "broken" / "checkpoint-6"))

    monkeypatch.setattr(GriffinTrainer, "_save_optimizer_and_scheduler", save_optimizer)
    torch.manual_seed(1234)  # whatever the state of the new process is
    resumed = make_trainer(tmp_path / "broken", **SETTINGS)
    found = weights_after_training(resumed, resume_from_checkpoint=True)
    assert resumed._initial_global_step == 3
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    assert untimed(training_log(resumed)) == untimed(training_log(whole))
    assert last_complete_checkpoint(tmp_path / "broken") == str(tmp_path / "broken" / "checkpoint-6")


def test_without_a_complete_checkpoint_nothing_is_resumed(tmp_path):
    (tmp_path / "checkpoint-2").mkdir()
    trainer = make_trainer(tmp_path)
    with pytest.raises(ValueError, match="no complete checkpoint"):
        trainer.train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="Start again"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_checkpoint_is_complete_with_a_whole_trainer_state(tmp_path):
    for step, state in ((2, '{"global_step": 2}'), (10, '{"global_step": 1'), (3, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert [is_complete(tmp_path / f"checkpoint-{step}") for step in (2, 10, 3, 4)] == [True, False, False, False]
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    check_resumable(tmp_path / "checkpoint-2")
    with pytest.raises(ValueError, match="There is no checkpoint"):
        check_resumable(tmp_path / "checkpoint-4")


KILLED = """
import os, signal, sys
from test_trainer_resume import SETTINGS
from trainer_helpers import make_trainer
from transformers_griffin.training import GriffinTrainer
class Killed(GriffinTrainer):
    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        if self.state.global_step == 6:
            os.kill(os.getpid(), signal.SIGKILL)
make_trainer(sys.argv[1], trainer_class=Killed, **SETTINGS).train()
"""


@pytest.mark.slow
def test_a_run_killed_while_it_writes_continues_bit_for_bit(tmp_path):
    expected = weights_after_training(make_trainer(tmp_path / "whole", **SETTINGS))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "killed")],
        env={
            **os.environ,
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        timeout=300,
    )
    assert killed.returncode == -signal.SIGKILL
    resumed = make_trainer(tmp_path / "killed", **SETTINGS)
    found = weights_after_training(resumed, resume_from_checkpoint=True)
    assert resumed._initial_global_step == 3
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
