"""GriffinTrainer as a transformers Trainer: batches, accumulation, saving, logging, precision."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from trainer_helpers import assert_same_weights, make_trainer, training_log, weights_after_training
from transformers import AutoModel, AutoModelForCausalLM, EarlyStoppingCallback, TrainerCallback

from conftest import tiny_llama
from transformers_griffin import GriffinDraftModel, push_draft_to_hub
from transformers_griffin.hub import TrainingFacts
from transformers_griffin.training import GriffinTrainer, objective


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
    losses = [[entry["loss"] for entry in training_log(trainer)] for trainer in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_passes_join_on_schedule_and_every_pass_is_logged(tmp_path):
    trainer = make_trainer(tmp_path, num_passes_schedule=[0.25, 0.75])
    trainer.train()
    logs = training_log(trainer)
    assert [sum(f"pass_{number}/accuracy" in entry for number in (1, 2, 3)) for entry in logs] == [1, 2, 2, 3]
    assert logs[0]["pass_1/kept"] == 1.0
    assert 0.0 <= logs[-1]["pass_3/kept"] <= logs[-1]["pass_2/kept"] <= 1.0
    assert "eval_pass_3/hit_rate" in trainer.evaluate()


def test_activation_checkpointing_recomputes_every_pass_and_changes_no_gradient(tmp_path, monkeypatch):
    passes = []
    run_pass = objective.run_pass
    monkeypatch.setattr(objective, "run_pass", lambda *args: (passes.append(1), run_pass(*args))[1])
    trainer = make_trainer(tmp_path, activation_checkpointing=True, max_steps=1)
    trainer.draft.train()
    batch = next(iter(trainer.get_train_dataloader()))

    def gradients() -> list[torch.Tensor]:
        trainer.draft.zero_grad()
        trainer.compute_loss(trainer.model, batch).backward()
        return [weight.grad for weight in trainer.draft.parameters()]

    expected = gradients()
    assert len(passes) == 3
    trainer.train()  # switches it on
    trainer.draft.load_state_dict(make_trainer(tmp_path).draft.state_dict())
    passes.clear()
    for found, wanted in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert len(passes) == 6
    embeds = trainer.target.get_input_embeddings()(batch["input_ids"])
    assert not embeds.requires_grad  # the target is left alone


def test_a_bfloat16_draft_trains_and_stays_bfloat16(tmp_path):
    target = tiny_llama().to(torch.bfloat16)
    draft = GriffinDraftModel.from_target(target)
    assert draft.dtype == torch.bfloat16
    trainer = make_trainer(tmp_path, draft, target, max_steps=10, alignment_top_k=0)
    before = trainer.evaluate(trainer.train_dataset)["eval_loss"]
    trainer.train()
    assert trainer.evaluate(trainer.train_dataset)["eval_loss"] < before
    assert {weight.dtype for weight in draft.parameters()} == {torch.bfloat16}


class Recorder(TrainerCallback):
    """Keeps what callbacks are given."""

    def __init__(self) -> None:
        self.logs: list[dict] = []
        self.metrics: list[dict] = []

    def on_log(self, args, state, control, logs, **kwargs):
        self.logs.append(dict(logs))

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self.metrics.append(dict(metrics))


def test_an_extra_metric_chooses_the_best_model_and_stops_the_training(tmp_path):
    """tau is 1, 3, 2 after steps 1, 2, 3: with patience 1 there is no step 4, and step 2 is the best."""
    seen = []

    def tau(trainer) -> dict[str, float]:
        seen.append((trainer.state.global_step, trainer.draft.training))
        return {"tau": [1.0, 3.0, 2.0][trainer.state.global_step - 1]}

    recorder = Recorder()
    trainer = make_trainer(
        tmp_path,
        trainer_kwargs={"extra_metrics": [tau], "callbacks": [EarlyStoppingCallback(1), recorder]},
        max_steps=6,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="tau",
        greater_is_better=True,
    )
    weights = weights_after_training(trainer)
    assert seen == [(1, False), (2, False), (3, False)]
    assert [entry["eval_tau"] for entry in recorder.metrics] == [1.0, 3.0, 2.0]
    assert [entry["eval_tau"] for entry in recorder.logs if "eval_tau" in entry] == [1.0, 3.0, 2.0]
    assert (trainer.state.global_step, trainer.state.best_metric) == (3, 3.0)
    best = GriffinDraftModel.from_pretrained(tmp_path / "checkpoint-2")
    assert all(torch.equal(weights[name], weight) for name, weight in best.named_parameters())


def test_a_target_with_a_place_of_its_own_stays_there(tmp_path, monkeypatch):
    moved = []
    monkeypatch.setattr(GriffinTrainer, "_move_model_to_device", lambda self, model, device: moved.append(model))
    for name, value in (("hf_device_map", {"": "cpu"}), ("is_quantized", True)):
        target = tiny_llama()
        setattr(target, name, value)
        trainer = make_trainer(tmp_path, target=target)
        assert [model is target for model in moved] == [False]  # the draft only
        assert not any(weight.requires_grad for weight in trainer.target.parameters())
        moved.clear()
    trainer = make_trainer(tmp_path)
    assert [model is trainer.target for model in moved] == [False, True]


def test_a_target_loaded_with_a_device_map_trains_a_draft(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "target")
    target = AutoModelForCausalLM.from_pretrained(tmp_path / "target", device_map={"": "cpu"})
    trainer = make_trainer(tmp_path, target=target, max_steps=1)
    trainer.train()
    assert torch.isfinite(torch.tensor(training_log(trainer)[0]["loss"]))


def test_a_model_that_is_no_draft_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`model` is a LlamaForCausalLM, but must be a GriffinDraftModel"):
        make_trainer(tmp_path, model=tiny_llama())


def test_push_to_hub_publishes_what_push_draft_to_hub_does(tmp_path, hub):
    """A checkpoint while it trains; at the end the draft with its card, the training's facts and no token."""
    settings = {"save_strategy": "steps", "save_steps": 1, "hub_strategy": "checkpoint", "max_steps": 1}
    trainer = make_trainer(tmp_path / "run", push_to_hub=True, hub_token="hf_alice", **settings)
    trainer.train()
    trainer.push_to_hub(license="mit", tags="mine")
    files = hub.files("alice/run")
    model_files = {"model.safetensors", "config.json", "generation_config.json", "training_args.bin"}
    assert model_files <= files.keys()
    assert {f"last-checkpoint/{name}" for name in model_files | {"trainer_state.json", "optimizer.pt"}} <= files.keys()
    assert {"modeling_griffin.py", "custom_generate/generate.py"} <= files.keys()
    card = ModelCard(files["README.md"].decode())
    assert card.data.license == "mit"
    assert card.data.tags == ["griffin", "speculative-decoding", "transformers_griffin", "mine"]
    assert "| Data | 16 rows |" in card.text
    assert "| `num_passes` | 3 |" in card.text
    assert TrainingFacts(**json.loads(files["training_facts.json"])).num_steps == 1
    assert not [name for name, content in files.items() if b"hf_alice" in content]
    assert_same_weights(AutoModel.from_pretrained("alice/run").state_dict(), dict(trainer.draft.named_parameters()))


def test_a_trained_draft_carries_its_training_to_a_later_push(tmp_path, hub):
    trainer = make_trainer(tmp_path / "run", max_steps=1)
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    push_draft_to_hub(GriffinDraftModel.from_pretrained(tmp_path / "run"), "alice/later", license="mit")
    card = hub.files("alice/later")["README.md"].decode()
    assert "| Steps | 1, 0.25 epochs |" in card
    assert "| `eval_loss` |" in card
    assert "runtime" not in card
    assert str(tmp_path) not in card


@pytest.mark.parametrize("settings", [{"bf16": True}, {"torch_compile": True, "torch_compile_backend": "eager"}])
def test_mixed_precision_and_compilation_change_little(tmp_path, settings):
    plain, changed = make_trainer(tmp_path), make_trainer(tmp_path, **settings)
    expected, found = plain.evaluate()["eval_loss"], changed.evaluate()["eval_loss"]
    assert found == pytest.approx(expected, rel=0.02)  # bfloat16 has 8 bits
    changed.train()
    assert "forward" not in changed.draft.__dict__ or "bf16" in settings  # accelerate's own autocast stays
