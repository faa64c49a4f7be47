"""
GriffinTrainer: a transformers Trainer whose model is the draft, and which knows the frozen target beside it.

What differs from [`~transformers.Trainer`]:

- the loss is the sum of N passes over features that the target computes online (`objective.py`). One backward serves
  all passes, so gradients are synchronised once, and gradient accumulation and mixed precision are the Trainer's own;
- losses are weighted by the share of positions that a micro-batch contributes to the optimizer step, over all
  processes: 8 batches of 1 train like 1 batch of 8. (Exact while the alignment masks keep the same share everywhere;
  they are known only after the passes.)
- `evaluate()` and the training log report every pass: its losses, accuracy, hit rate and share of positions kept.
  `extra_metrics` add to `evaluate()` whatever `metric_for_best_model`, callbacks and `report_to` are to see;
- a loss that is not finite stops the training before it changes a weight, and names the samples (`finite.py`);
- a checkpoint whose writing was interrupted is never resumed from (`checkpoints.py`).

Only the draft is trained, wrapped (`wrapping.py`) and saved. It may be a PEFT model around a [`GriffinDraftModel`].

Next: `callbacks.py`.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import compile_regions
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, TrainOutput, unwrap_peft_model

from ..hub import complete_draft_folder, draft_facts
from ..modeling_griffin import GriffinDraftModel
from .arguments import GriffinTrainingArguments
from .checkpoints import check_resumable, last_complete_checkpoint, mark_incomplete
from .data import COLUMNS, GriffinDataCollator
from .features import add_feature_noise, check_packing, draft_batch, position_mask
from .finite import finite_rows, non_finite_error
from .head_loss import terms_and_gradient
from .multi_pass import check_passes
from .objective import COUNTS, PassResult, mean_counts, multi_pass_objective
from .record import training_facts
from .sources import check_tokenizer, tokenize_dataset
from .wrapping import call_through, shard_as_one_unit


class GriffinTrainer(Trainer):
    """
    Trains a draft for a target.

    Args:
        model ([`GriffinDraftModel`] or [`~peft.PeftModel`]): the draft, or adapters on a draft.
        target ([`~transformers.PreTrainedModel`]): the model it drafts for.
        args ([`GriffinTrainingArguments`], *optional*): see there.
        data_collator (`Callable`, *optional*): a [`GriffinDataCollator`] by default.
        extra_metrics (`Sequence[Callable]`, defaults to none): functions of the trainer that return
            `dict[str, float]`. `evaluate()` calls them on every process, with the draft in evaluation mode, and adds
            what they return under `eval_<name>`: one that returns `{"tau": ...}` serves `metric_for_best_model="tau"`.
        kwargs: further arguments of [`~transformers.Trainer`], for example `train_dataset` with rows of `messages`,
            `text` or `input_ids`, and `processing_class`, the target's tokenizer.

    Effects:
        Binds the draft to the target. The target is frozen, set to evaluation and moved to the training device (unless
        it is spread over devices or quantised, in which case it stays where it is).

    Raises:
        ValueError: if the model is no draft, the draft does not fit the target, or it has several layers and is to be
            trained with several passes; if the tokenizer knows more tokens than the target; or if rows cannot be
            tokenized.

    Example:

    ```python
    >>> draft = GriffinDraftModel.from_target(target)  # doctest: +SKIP
    >>> trainer = GriffinTrainer(model=draft, target=target, train_dataset=conversations, processing_class=tokenizer)
    ... # doctest: +SKIP
    >>> trainer.train()  # doctest: +SKIP
    ```
    """

    args: GriffinTrainingArguments

    def __init__(
        self,
        model: GriffinDraftModel | nn.Module,
        target: PreTrainedModel,
        args: GriffinTrainingArguments | None = None,
        data_collator: Callable[..., dict[str, torch.Tensor]] | None = None,
        extra_metrics: Sequence[Callable[["GriffinTrainer"], dict[str, float]]] = (),
        **kwargs: Any,
    ):
        args = GriffinTrainingArguments(output_dir="griffin_draft") if args is None else args
        draft = unwrap_peft_model(model)
        if not isinstance(draft, GriffinDraftModel):
            raise ValueError(
                f"`model` is a {type(draft).__name__}, but must be a GriffinDraftModel or a PEFT model around one. "
                "Make a fresh draft with `GriffinDraftModel.from_target(target)`."
            )
        check_passes(draft, args.num_passes)
        tokenizer = kwargs.get("processing_class")
        if tokenizer is not None:
            check_tokenizer(tokenizer, target)
        if data_collator is None:
            data_collator = GriffinDataCollator(tokenizer, args.max_length, args.assistant_only_loss)
        with args.main_process_first(desc="tokenizing"):  # the others read what `datasets` has cached
            for name in ("train_dataset", "eval_dataset"):
                kwargs[name] = _tokenized(kwargs.get(name), tokenizer, args)
        super().__init__(model=model, args=args, data_collator=data_collator, **kwargs)
        # The loss is already normalised over the whole optimizer step (see `compute_loss`).
        self.loss_is_scaled_for_ga = True
        self.extra_metrics = extra_metrics
        if self.is_fsdp_enabled:
            shard_as_one_unit(self.accelerator.state.fsdp_plugin)
        self.draft = draft
        self.target = self._freeze(target)
        self.draft.bind(target)
        columns = getattr(self.train_dataset, "column_names", None) or ()
        if "documents" in columns and "features" not in columns:
            check_packing(self.target)
        self._backbone: Callable[..., Any] = target.base_model
        self._head_terms: Callable[..., Any] = terms_and_gradient
        if args.torch_compile:
            self._compile()
        self._counts = {"train": self._no_counts(), "eval": self._no_counts()}

    def _compile(self) -> None:
        """
        Compiles the target's repeated blocks (one graph for all layers) and what happens between logits and loss.

        The draft's single layer is not worth its compilation: its time is matrix products.
        """
        options: dict[str, Any] = {"backend": self.args.torch_compile_backend, "mode": self.args.torch_compile_mode}
        self._backbone = compile_regions(self.target.base_model, **options)
        self._head_terms = torch.compile(terms_and_gradient, **options)

    def _freeze(self, target: PreTrainedModel) -> PreTrainedModel:
        target.requires_grad_(False)
        target.eval()
        is_placed = getattr(target, "hf_device_map", None) is not None or getattr(target, "is_quantized", False)
        if not is_placed:
            self._move_model_to_device(target, self.args.device)
        return target

    # ------------------------------------------------------------------ the loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """
        The objective of one micro-batch, as its share of the optimizer step.

        Args:
            model (`nn.Module`): the draft as the Trainer wrapped it.
            inputs (`dict[str, torch.Tensor]`): `input_ids`, and where given `loss_mask` and `attention_mask`.
            return_outputs (`bool`, defaults to `False`): whether to return the passes too.
            num_items_in_batch (`torch.Tensor`, *optional*): positions with a loss in the whole optimizer step.

        Returns:
            The loss, or `(loss, list[PassResult])`.
        """
        with self.accelerator.autocast():
            loss, passes = call_through(model, self.draft, self._loss_and_passes, inputs)
        self._count(passes)
        if num_items_in_batch is not None:
            positions = passes[0].counts[COUNTS.index("positions")]
            # Data-parallel wrappers average gradients over processes; the share is one of the whole step.
            num_averaged = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            loss = loss * (num_averaged * positions / num_items_in_batch.clamp(min=1))
        return (loss, passes) if return_outputs else loss

    def _loss_and_passes(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, list[PassResult]]:
        args, is_training = self.args, self.draft.training
        batch = draft_batch(
            self._backbone,
            inputs["input_ids"],
            inputs.get("loss_mask"),
            inputs.get("attention_mask"),
            args.loss_mask_shift,
            inputs.get("documents"),
            inputs.get("features"),
        )
        num_passes = args.num_passes
        if is_training:
            batch = replace(batch, features=add_feature_noise(batch.features, args.feature_noise, batch.key_mask))
            num_passes = args.num_passes_at(self.state.global_step, self.state.max_steps)
        passes = multi_pass_objective(self.draft, batch, args, num_passes, self._head_terms)
        self._finite_rows = finite_rows(batch, passes)
        # A tensor of its own, since data-parallel wrappers look for tensors, and do not look into a PassResult.
        return torch.stack([result.loss for result in passes]).sum(), passes

    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, torch.Tensor]], device: torch.device
    ) -> torch.Tensor | None:
        """Positions with a loss in all micro-batches of an optimizer step, on all processes."""
        if not batch_samples:
            return None
        counts = [
            position_mask(
                batch["input_ids"],
                batch.get("loss_mask"),
                batch.get("documents", batch.get("attention_mask")),
                self.args.loss_mask_shift,
            ).sum()
            for batch in batch_samples
        ]
        total = torch.stack(counts).sum().to(device)
        if self.args.average_tokens_across_devices and self.accelerator.num_processes > 1:
            total = self.accelerator.gather(total).sum()
        return total

    def training_step(
        self, model: nn.Module, inputs: dict[str, torch.Tensor], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The Trainer's step, which ends the training if the loss is not finite."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        # With this filter the Trainer itself waits for every loss right after this.
        if self.args.logging_nan_inf_filter:
            self._check_finite(loss, inputs)
        return loss

    def _check_finite(self, loss: torch.Tensor, inputs: dict[str, torch.Tensor]) -> None:
        if not torch.isfinite(loss):
            raise non_finite_error(
                loss, self.state.global_step, inputs["input_ids"], self._finite_rows, self.processing_class
            )

    # ------------------------------------------------------------------ evaluation and log

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor, None, None]:
        """The loss of one evaluation batch; all `num_passes` passes, no noise."""
        with torch.no_grad():
            loss: torch.Tensor = self.compute_loss(model, self._prepare_inputs(inputs))
        self._check_finite(loss, inputs)
        return loss, None, None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """The Trainer's loop, with the metrics of every pass and the extra metrics added."""
        self._counts["eval"] = self._no_counts()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        added = self._pop("eval")
        for extra in self.extra_metrics:
            added.update(extra(self))
        prefixed = {f"{metric_key_prefix}_{name}": value for name, value in added.items()}
        return output._replace(metrics={**(output.metrics or {}), **prefixed})

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs, with the metrics of every pass since the last training log."""
        if "loss" in logs:
            if not math.isfinite(logs["loss"]):
                raise FloatingPointError(
                    f"The loss is {logs['loss']} since the last log, at step {self.state.global_step}. Set "
                    "`logging_nan_inf_filter=True` to stop before a weight is changed, and to have the samples named."
                )
            logs.update(self._pop("train"))
        super().log(logs, start_time)

    def _no_counts(self) -> torch.Tensor:
        return torch.zeros(self.args.num_passes, len(COUNTS), device=self.args.device)

    def _count(self, passes: list[PassResult]) -> None:
        counts = self._counts["train" if self.draft.training else "eval"]
        counts[: len(passes)] += torch.stack([result.counts for result in passes])

    def _pop(self, mode: str) -> dict[str, float]:
        """Means over all processes since the last call; passes that did not run are left out."""
        counts = self.accelerator.reduce(self._counts[mode], reduction="sum").cpu()
        self._counts[mode] = self._no_counts()
        return mean_counts(counts[: int((counts[:, -1] > 0).sum())])

    # ------------------------------------------------------------------ checkpoints

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """
        Trains the draft, as [`~transformers.Trainer.train`] does.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): True continues from the last complete checkpoint.
            args, kwargs: see there.

        Raises:
            ValueError: if the checkpoint is incomplete, or there is none that is complete.
            FloatingPointError: if the loss becomes NaN or infinite.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(self._get_output_dir(trial=None))
            if resume_from_checkpoint is None:
                raise ValueError(
                    f"There is no complete checkpoint in {self.args.output_dir}. Call `train()` to start from the "
                    "beginning, or give the path of a checkpoint."
                )
        elif resume_from_checkpoint:
            check_resumable(resume_from_checkpoint)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        checkpoint = os.path.join(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        if self.args.should_save:
            mark_incomplete(checkpoint)
        try:
            super()._save_checkpoint(model, trial)
        except Exception as error:
            last = last_complete_checkpoint(self._get_output_dir(trial))
            raise RuntimeError(
                f"Writing the checkpoint {checkpoint} failed ({error}). Make sure that there is space on the disk and "
                f"that it can be written to. The last complete checkpoint is {last}; "
                "`train(resume_from_checkpoint=True)` continues from there."
            ) from error

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # The first process writes `trainer_state.json` next, which says that the checkpoint is complete.
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            training_facts(self).save(str(output_dir or self.args.output_dir))

    def create_model_card(  # type: ignore[override]  # further facts are known here, or not about drafts
        self,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Writes the card that `push_draft_to_hub` writes, and what else a published draft needs, into `output_dir`.

        Args:
            license (`str`, *optional*): identifier of a licence; by default the one that the target's card names.
            tags (`str` or `list[str]`, *optional*): further tags.
            model_name (`str`, *optional*): the draft's name, if the repository is not known.
            kwargs: for adapters, whose card is transformers' own.
        """
        if self.model is not self.draft:
            super().create_model_card(license=license, tags=tags, model_name=model_name, **kwargs)
        elif self.is_world_process_zero():
            output_dir = str(self.args.output_dir)
            name = self.hub_model_id or model_name or os.path.basename(os.path.abspath(output_dir))
            facts = draft_facts(self.draft, name, self.target, license=license, token=self.args.hub_token)
            more_tags = [tags] if isinstance(tags, str) else (tags or [])
            complete_draft_folder(output_dir, replace(facts, training=training_facts(self)), more_tags)

    # ------------------------------------------------------------------ columns

    def _set_signature_columns_if_needed(self) -> None:
        # What the collator reads, not what the draft's forward takes.
        self._signature_columns: Any = list(COLUMNS)


def _tokenized(rows: Any, tokenizer: Any, args: GriffinTrainingArguments) -> Any:
    """Tokenizes datasets of text once and for all; what is tokenized already, or no `Dataset`, stays as it is."""
    if isinstance(rows, Mapping):
        return {name: _tokenized(part, tokenizer, args) for name, part in rows.items()}
    if not isinstance(rows, Dataset) or "input_ids" in rows.column_names:
        return rows
    return tokenize_dataset(rows, tokenizer, args.max_length, args.assistant_only_loss, pack=args.packing)


__all__ = ["GriffinTrainer"]
