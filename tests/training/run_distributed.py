"""Trains the tiny draft as one of several CPU processes; `test_trainer_distributed.py` starts it with torchrun."""

import json
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, DistributedType, PartialState
from trainer_helpers import make_trainer, training_log

from transformers_griffin.training import GriffinTrainer


def allow_fsdp_on_cpu() -> None:
    """accelerate offers FSDP on accelerators only; that is a rule of its own, not of FSDP."""
    original = AcceleratorState.__init__

    def init(self, *args, fsdp_plugin=None, **kwargs):
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = init


def tau(trainer: GriffinTrainer) -> dict[str, float]:
    """Every process decodes another number of tokens: nobody may wait for the others in here."""
    prompt = torch.tensor([[5, 6, 7, 8 + trainer.args.process_index]])
    output = trainer.target.generate(
        prompt,
        assistant_model=trainer.draft,
        max_new_tokens=8 + 8 * trainer.args.process_index,
        do_sample=False,
        return_dict_in_generate=True,
    )
    lengths = output.acceptance_lengths[0]
    return {"tau": sum(lengths) / len(lengths)}


def train(output_dir: str, settings: dict, resume_from_checkpoint: str | None = None) -> dict:
    """Trains, evaluating and saving at step 2, and returns what was logged."""
    trainer = make_trainer(
        Path(output_dir),
        trainer_kwargs={"extra_metrics": [tau]},
        adam_epsilon=0.01,  # smooth: Adam's first steps would turn rounding into signs
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        **settings,
    )
    trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    trainer.save_model()
    names = ("loss", "grad_norm", "pass_1/feature_loss", "pass_3/accuracy")
    taus = [entry["eval_tau"] for entry in trainer.state.log_history if "eval_tau" in entry]
    models = {"draft": trainer.draft, "target": trainer.target}
    kinds = {name: type(next(model.parameters()).data).__name__ for name, model in models.items()}
    return {"kinds": kinds, "log": [[entry[name] for name in names] for entry in training_log(trainer)], "tau": taus}


def main(output_dir: str, settings: dict) -> None:
    torch.set_num_threads(1)
    if "fsdp" in settings:
        allow_fsdp_on_cpu()
    whole = train(f"{output_dir}/whole", settings)
    resumed = train(f"{output_dir}/resumed", settings, f"{output_dir}/whole/checkpoint-2")
    if PartialState().is_main_process:
        Path(output_dir, "result.json").write_text(json.dumps({"whole": whole, "resumed": resumed}))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
