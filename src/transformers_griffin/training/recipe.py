"""
A training as a file: which target, what data, which settings.

    griffin train trainers/configs/qwen3_8b.yaml --per_device_train_batch_size 2
    griffin train trainers/configs/mini_pair.yaml --max_steps 20 --output_dir runs/mini_quick

Keys are the fields of [`RecipeArguments`] below and of [`GriffinTrainingArguments`], hence all of transformers'
`TrainingArguments`. A run that was interrupted continues from its newest checkpoint; the result is in
`<output_dir>/final`. The passes rise from 1 to `num_passes` within one run; the paper's way, one run for every number
of passes, is three commands::

    griffin train RECIPE --num_passes 1 --output_dir runs/step1
    griffin train RECIPE --num_passes 2 --num_passes_schedule 0 --draft runs/step1/final --output_dir runs/step2
    griffin train RECIPE --num_passes 3 --num_passes_schedule 0 0 --draft runs/step2/final --output_dir runs/step3

Next: `plan.py`.
"""

import difflib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import torch
import yaml
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    HfArgumentParser,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from ..conversion import load_draft
from ..modeling_griffin import GriffinDraftModel
from .acceptance import AcceptanceEvaluator
from .arguments import GriffinTrainingArguments
from .checkpoints import last_complete_checkpoint
from .data import tokenize_row
from .sources import load_training_data
from .stored_features import load_features
from .trainer import GriffinTrainer


QUANTIZATIONS: dict[str, dict[str, Any]] = {
    "8bit": {"load_in_8bit": True},
    "4bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16},
}


@dataclass
class RecipeArguments:
    """What is trained on what: the target, the draft and the data."""

    target: str = field(
        default=None,  # type: ignore[assignment]  # checked below, with a better message
        metadata={"help": "Directory or Hub repository of the target."},
    )
    target_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the target on the Hub."}
    )
    target_dtype: str = field(default="auto", metadata={"help": "The target's dtype, for example `bfloat16`."})
    target_device_map: str | None = field(
        default=None, metadata={"help": "`auto` spreads the target over all devices; then start one process only."}
    )
    target_quantization: str | None = field(
        default=None, metadata={"help": "`8bit` or `4bit`: load the target quantised by bitsandbytes."}
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "The target's attention, for example `sdpa`."}
    )
    chat_template: str | None = field(
        default=None, metadata={"help": "File with a chat template, for a tokenizer that has none."}
    )
    features: str | None = field(
        default=None, metadata={"help": "Directory of features that `griffin prepare` wrote, instead of `dataset`."}
    )
    draft: str | None = field(
        default=None, metadata={"help": "Draft to start from, ours or a released checkpoint; a fresh one without it."}
    )
    draft_config: dict | str | None = field(
        default=None, metadata={"help": "Fields of `GriffinDraftConfig` for a fresh draft; JSON on the command line."}
    )
    dataset: list[str] | None = field(
        default=None, metadata={"help": "JSON files, a saved dataset's directory, or a dataset on the Hub."}
    )
    dataset_split: str = field(default="train", metadata={"help": "Split of a dataset that has several."})
    eval_dataset: list[str] | None = field(
        default=None, metadata={"help": "Data to evaluate on; rows are held out of `dataset` without it."}
    )
    eval_rows: int = field(default=512, metadata={"help": "Rows to evaluate on; 0 for no evaluation."})
    tau_prompts: int = field(
        default=0, metadata={"help": "Of these rows, how many are answered with the draft to measure tau."}
    )

    def __post_init__(self) -> None:
        if self.target is None:
            raise ValueError("`target` is not given. Name a recipe of trainers/configs, or give --target.")
        if self.dataset is None and self.features is None:
            raise ValueError("Neither `dataset` nor `features` is given. Give --dataset, or name a recipe.")
        if self.tau_prompts > self.eval_rows:
            raise ValueError(
                f"`tau_prompts` is {self.tau_prompts}, but they are taken from {self.eval_rows} `eval_rows`. Give "
                "fewer, or more rows."
            )
        if self.target_quantization not in (None, *QUANTIZATIONS):
            raise ValueError(
                f"`target_quantization` is {self.target_quantization!r}, but must be one of "
                f"{', '.join(QUANTIZATIONS)}."
            )
        if isinstance(self.draft_config, str):
            self.draft_config = json.loads(self.draft_config)
        for name in ("dataset", "eval_dataset"):
            if isinstance(getattr(self, name), str):
                setattr(self, name, [getattr(self, name)])


def parse_recipe(argv: Sequence[str]) -> tuple[RecipeArguments, GriffinTrainingArguments]:
    """
    Reads a YAML file, if the first argument is one, and `--key value` pairs, which win.

    Args:
        argv (`Sequence[str]`): for example `["recipe.yaml", "--max_steps", "20"]`.

    Raises:
        ValueError: if a key does not exist, or what a training needs is not given.
    """
    kinds: Any = (RecipeArguments, GriffinTrainingArguments)
    parser = HfArgumentParser(kinds, allow_abbrev=False)
    parser.set_defaults(use_cpu=not torch.accelerator.is_available())  # bf16 on a CPU asks for it
    if argv and argv[0].endswith((".yaml", ".yml")):
        parser.set_defaults(**read_recipe(argv[0]))
        argv = argv[1:]
    recipe, args = parser.parse_args_into_dataclasses(list(argv), look_for_args_file=False)
    return recipe, args


def read_recipe(path: str) -> dict[str, Any]:
    """
    Keys and values of a YAML file.

    Raises:
        ValueError: if a key is none of the two argument classes'.
    """
    values: dict[str, Any] = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    known = [item.name for kind in (RecipeArguments, GriffinTrainingArguments) for item in fields(kind) if item.init]
    for key in values:
        if key not in known:
            near = ", ".join(difflib.get_close_matches(key, known)) or "see --help"
            raise ValueError(f"{path} has the key {key!r}, which is no argument. Did you mean: {near}?")
    return values


def train_recipe(recipe: RecipeArguments, args: GriffinTrainingArguments) -> None:
    """
    Trains, evaluates, and saves the draft as `<output_dir>/final`; continues from the newest complete checkpoint.
    """
    set_seed(args.seed)
    tokenizer = load_tokenizer(recipe)
    target = load_target(recipe)
    train_rows, eval_rows = load_data(recipe, args.seed, target, tokenizer)
    trainer = GriffinTrainer(
        model=make_draft(recipe, target),
        target=target,
        args=args,
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        processing_class=tokenizer,
        extra_metrics=make_metrics(recipe, args, eval_rows, tokenizer),
    )
    output_dir = str(args.output_dir)
    has_started = os.path.isdir(output_dir)
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(output_dir) if has_started else None)
    if eval_rows is not None:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    trainer.save_model(os.path.join(output_dir, "final"))


def load_tokenizer(recipe: RecipeArguments) -> PreTrainedTokenizerBase:
    """The target's tokenizer, with the recipe's chat template if it has one."""
    tokenizer = AutoTokenizer.from_pretrained(recipe.target, revision=recipe.target_revision)
    if recipe.chat_template is not None:
        tokenizer.chat_template = Path(recipe.chat_template).read_text(encoding="utf-8")
    return tokenizer


def load_target(recipe: RecipeArguments) -> PreTrainedModel:
    """The target in the dtype, on the devices and with the quantisation that the recipe asks for."""
    settings: dict[str, Any] = {
        "revision": recipe.target_revision,
        "device_map": recipe.target_device_map,
        "attn_implementation": recipe.attn_implementation,
    }
    if recipe.target_quantization is not None:
        settings["quantization_config"] = BitsAndBytesConfig(**QUANTIZATIONS[recipe.target_quantization])
    given = {name: value for name, value in settings.items() if value is not None}
    return AutoModelForCausalLM.from_pretrained(recipe.target, dtype=recipe.target_dtype, **given)


def make_draft(recipe: RecipeArguments, target: PreTrainedModel) -> GriffinDraftModel:
    """A fresh draft or the given one, in float32: small updates vanish in half precision."""
    if recipe.draft is not None:
        return load_draft(recipe.draft, target).float()
    config: Any = recipe.draft_config or {}  # parsed where it was JSON
    return GriffinDraftModel.from_target(target, **config).float()


def load_data(
    recipe: RecipeArguments, seed: int, target: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """Rows to train on and, if `eval_rows` is not 0, rows to evaluate on."""
    if recipe.features is not None:
        rows = load_features(recipe.features, target, tokenizer)
    else:
        rows = load_training_data(recipe.dataset, split=recipe.dataset_split)
    if recipe.eval_rows == 0:
        return rows, None
    if recipe.eval_dataset is not None:
        eval_rows = load_training_data(recipe.eval_dataset, split=recipe.dataset_split)
        return rows, eval_rows.take(min(recipe.eval_rows, len(eval_rows)))
    parts = rows.train_test_split(test_size=recipe.eval_rows, seed=seed)
    return parts["train"], parts["test"]


def make_metrics(
    recipe: RecipeArguments,
    args: GriffinTrainingArguments,
    eval_rows: datasets.Dataset | None,
    tokenizer: PreTrainedTokenizerBase,
) -> list[AcceptanceEvaluator]:
    """Tau over the beginnings of held-out rows, up to their first token that has a loss."""
    if eval_rows is None or recipe.tau_prompts == 0:
        return []
    tokenized = (tokenize_row(row, tokenizer, args.max_length, args.assistant_only_loss) for row in eval_rows)
    prompts = (input_ids[: loss_mask.index(1)] for input_ids, loss_mask in tokenized if any(loss_mask))
    return [AcceptanceEvaluator(list(islice(filter(None, prompts), recipe.tau_prompts)))]


__all__ = ["RecipeArguments", "parse_recipe", "train_recipe"]
