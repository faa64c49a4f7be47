"""GriffinTrainer as a transformers Trainer: batches, accumulation, resuming, saving, logging."""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch

from conftest import tiny_llama
from transformers_griffin import GriffinDraftModel
from transformers_griffin.training import GriffinTrainer, GriffinTrainingArguments


def rows(count: int = 16, seed: int = 0) -> datasets.Dataset:
    """Sequences of unequal length, the first two tokens without loss."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(6, 20, (count,), generator=generator).tolist()
    ids = [torch.randint(0, 61, (length,), generator=generator).tolist() for length in lengths]
    return datasets.Dataset.from_dict({"input_ids": ids, "loss_mask": [[0, 0] + [1] * (len(row) - 2) for row in ids]})


def make_trainer(output_dir: Path, **overrides) -> GriffinTrainer:
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
    target = tiny_llama()
    torch.manual_seed(1)
    return GriffinTrainer(
        model=GriffinDraftModel.from_target(target),
        target=target,
        args=GriffinTrainingArguments(output_dir=str(output_dir), **(fields | overrides)),
        train_dataset=rows(),
        eval_dataset=rows(5, seed=1),
    )


def weights_after_training(trainer: GriffinTrainer, **kwargs) -> dict[str, torch.Tensor]:
    trainer.train(**kwargs)
    return {name: weight.detach().clone() for name, weight in trainer.draft.named_parameters()}


def assert_same_weights(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=1e-6, msg=name)


def test_training_lowers_the_loss_of_every_pass(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=20, alignment_top_k=0)
    before = trainer.evaluate(trainer.train_dataset)
    trainer.train()
    after = trainer.evaluate(trainer.train_dataset)
    for number in (1, 2, 3):
        for name in ("feature_loss", "token_loss"):
            assert after[f"eval_pass_{number}/{name}"] < before[f"eval_pass_{number}/{name}"]


def test_only_the_draft_is_trained_and_saved(tmp_path):
    trainer = make_trainer(tmp_path)
    frozen = {name: weight.clone() for name, weight in trainer.target.named_parameters()}
    trained = weights_after_training(trainer)
    assert all(torch.equal(weight, frozen[name]) for name, weight in trainer.target.named_parameters())
    trainer.save_model()
    loaded = GriffinDraftModel.from_pretrained(tmp_path)
    assert_same_weights(dict(loaded.named_parameters()), trained)
    assert loaded.generation_config.num_assistant_tokens == 59


# With alignment masks a pass's own number of positions is not known beforehand, so batches are equal only without.
@pytest.mark.parametrize("settings", [{"num_passes": 1}, {"num_passes": 3, "alignment_top_k": 0}])
def test_eight_batches_of_one_train_like_one_batch_of_eight(tmp_path, settings):
    whole = make_trainer(tmp_path, per_device_train_batch_size=8, optim="sgd", learning_rate=0.1, **settings)
    parts = make_trainer(
        tmp_path,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=8,
        optim="sgd",
        learning_rate=0.1,
        **settings,
    )
    assert_same_weights(weights_after_training(parts), weights_after_training(whole))
    losses = [[entry["loss"] for entry in trainer.state.log_history if "loss" in entry] for trainer in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_an_interrupted_run_continues_as_if_it_had_not_been(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "num_passes_schedule": [0.25, 0.75], "feature_noise": 0.2}
    expected = weights_after_training(make_trainer(tmp_path / "whole", **settings))
    resumed = make_trainer(tmp_path / "resumed", **settings)
    checkpoint = str(tmp_path / "whole" / "checkpoint-2")
    assert_same_weights(weights_after_training(resumed, resume_from_checkpoint=checkpoint), expected)


def test_passes_join_on_schedule_and_every_pass_is_logged(tmp_path):
    trainer = make_trainer(tmp_path, num_passes_schedule=[0.25, 0.75])
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [sum(f"pass_{number}/accuracy" in entry for number in (1, 2, 3)) for entry in logs] == [1, 2, 2, 3]
    assert logs[0]["pass_1/kept"] == 1.0
    assert 0.0 <= logs[-1]["pass_3/kept"] <= logs[-1]["pass_2/kept"] <= 1.0
    assert "eval_pass_3/hit_rate" in trainer.evaluate()


@pytest.mark.parametrize("settings", [{"bf16": True}, {"torch_compile": True, "torch_compile_backend": "eager"}])
def test_mixed_precision_and_compilation_change_little(tmp_path, settings):
    plain, changed = make_trainer(tmp_path), make_trainer(tmp_path, **settings)
    expected, found = plain.evaluate()["eval_loss"], changed.evaluate()["eval_loss"]
    assert found == pytest.approx(expected, rel=0.02)  # bfloat16 has 8 bits
    changed.train()
    assert "forward" not in changed.draft.__dict__ or "bf16" in settings  # accelerate's own autocast stays


SCRIPT = """
import json, sys, torch
sys.path[:0] = json.loads(sys.argv[1])
from test_trainer import make_trainer, weights_after_training
torch.set_num_threads(1)
trainer = make_trainer(sys.argv[2], optim="sgd", learning_rate=0.1, **json.loads(sys.argv[3]))
weights = weights_after_training(trainer)
if trainer.is_world_process_zero():
    torch.save(weights, sys.argv[2] + "/weights.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_processes_train_like_one_with_twice_the_batch(tmp_path, accumulation):
    settings = {"num_passes": 3, "alignment_top_k": 0, "gradient_accumulation_steps": accumulation}
    (tmp_path / "script.py").write_text(SCRIPT)
    paths = json.dumps([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = [str(tmp_path / "script.py"), paths, str(tmp_path)]
    overrides = json.dumps({"per_device_train_batch_size": 2, "ddp_find_unused_parameters": False, **settings})
    subprocess.run([*launch, *script, overrides], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=200)

    one = make_trainer(tmp_path, per_device_train_batch_size=4, optim="sgd", learning_rate=0.1, **settings)
    assert_same_weights(torch.load(tmp_path / "weights.pt"), weights_after_training(one))
