"""Trainers on tiny random models, and on the mini pair, whose draft is worth something."""

from pathlib import Path

import datasets
import torch
from transformers import AutoModel, AutoModelForCausalLM, GenerationConfig

from conftest import tiny_llama
from transformers_griffin import GriffinDraftModel
from transformers_griffin.training import GriffinTrainer, GriffinTrainingArguments


MINI = Path(__file__).parents[2] / "examples" / "mini"
TREE = GenerationConfig(num_assistant_tokens=8, draft_tree_depth=4, draft_tree_top_k=3)
FIELDS = {
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "max_steps": 4,
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "logging_steps": 1,
}


def prompts(count: int = 3, vocab_size: int = 61) -> list[list[int]]:
    """Token ids of unequal length."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(1, vocab_size, (5 + 2 * i,), generator=generator).tolist() for i in range(count)]


def tiny_trainer(output_dir: Path | str, model=None, extra_metrics=(), callbacks=(), **overrides) -> GriffinTrainer:
    """On tiny random models, with the same weights at every call."""
    target = tiny_llama()
    torch.manual_seed(1)
    draft = GriffinDraftModel.from_target(target)
    return GriffinTrainer(
        model=draft if model is None else model(draft),
        target=target,
        args=GriffinTrainingArguments(output_dir=str(output_dir), **(FIELDS | overrides)),
        train_dataset=datasets.Dataset.from_dict({"input_ids": prompts(12)}),
        eval_dataset=datasets.Dataset.from_dict({"input_ids": prompts(2)}),
        extra_metrics=extra_metrics,
        callbacks=list(callbacks),
    )


def mini_trainer(output_dir: Path, **overrides) -> GriffinTrainer:
    """On the mini pair, in float32: in bfloat16 logits tie, and top k depends on who breaks the tie."""
    return GriffinTrainer(
        model=AutoModel.from_pretrained(MINI / "draft", dtype=torch.float32),
        target=AutoModelForCausalLM.from_pretrained(MINI / "target", dtype=torch.float32),
        args=GriffinTrainingArguments(output_dir=str(output_dir), **(FIELDS | overrides)),
    )
