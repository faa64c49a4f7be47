"""
GriffinTrainer: a transformers Trainer whose model is the draft, and which knows the frozen target beside it.

What differs from [`~transformers.Trainer`]:

- the loss is the sum of N passes over features that the target computes online (`objective.py`). One backward serves
  all passes, so gradients are synchronised once, and gradient accumulation and mixed precision are the Trainer's own;
- losses are weighted by the share of positions that a micro-batch contributes to the optimizer step, over all
  processes: 8 batches of 1 train like 1 batch of 8. (Exact while the alignment masks keep the same share everywhere;
  they are known only after the passes.)
- `evaluate()` and the training log report every pass: its losses, accuracy, hit rate and share of positions kept.

Only the draft is trained, wrapped and saved.

Next: `hub/`.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import compile_regions, is_compiled_module
from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import EvalLoopOutput

from ..modeling_griffin import GriffinDraftModel
from .arguments import GriffinTrainingArguments
from .data import COLUMNS, GriffinDataCollator
from .features import add_feature_noise, draft_batch, position_mask
from .head_loss import terms_and_gradient
from .multi_pass import check_passes
from .objective import COUNTS, PassResult, mean_counts, multi_pass_objective


class GriffinTrainer(Trainer):
    """
    Trains a draft for a target.

    Args:
        model ([`GriffinDraftModel`]): the draft.
        target ([`~transformers.PreTrainedModel`]): the model it drafts for.
        args ([`GriffinTrainingArguments`], *optional*): see there.
        data_collator (`Callable`, *optional*): a [`GriffinDataCollator`] by default.
        kwargs: further arguments of [`~transformers.Trainer`], for example `train_dataset` with rows of `messages`,
            `text` or `input_ids`, and `processing_class`, the target's tokenizer.

    Effects:
        Binds the draft to the target. The target is frozen, set to evaluation and moved to the training device (unless
        it is spread over devices or quantised, in which case it stays where it is).

    Raises:
        ValueError: if the draft does not fit the target, or has several layers and is to be trained with several
            passes.

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
        model: GriffinDraftModel,
        target: PreTrainedModel,
        args: GriffinTrainingArguments | None = None,
        data_collator: Callable[..., dict[str, torch.Tensor]] | None = None,
        **kwargs: Any,
    ):
        args = GriffinTrainingArguments(output_dir="griffin_draft") if args is None else args
        check_passes(model, args.num_passes)
        if data_collator is None:
            data_collator = GriffinDataCollator(
                tokenizer=kwargs.get("processing_class"),
                max_length=args.max_length,
                assistant_only_loss=args.assistant_only_loss,
            )
        super().__init__(model=model, args=args, data_collator=data_collator, **kwargs)
        # The loss is already normalised over the whole optimizer step (see `compute_loss`).
        self.loss_is_scaled_for_ga = True
        self.draft = model
        self.target = self._freeze(target)
        self.draft.bind(target)
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
            passes = _call_through(model, self.draft, self._passes, inputs)
        loss = torch.stack([result.loss for result in passes]).sum()
        self._count(passes)
        if num_items_in_batch is not None:
            positions = passes[0].counts[COUNTS.index("positions")]
            # Data-parallel wrappers average gradients over processes; the share is one of the whole step.
            num_averaged = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            loss = loss * (num_averaged * positions / num_items_in_batch.clamp(min=1))
        return (loss, passes) if return_outputs else loss

    def _passes(self, inputs: dict[str, torch.Tensor]) -> list[PassResult]:
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
        return multi_pass_objective(self.draft, batch, args, num_passes, self._head_terms)

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
        return loss, None, None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """The Trainer's loop, with the metrics of every pass added."""
        self._counts["eval"] = self._no_counts()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        of_passes = {f"{metric_key_prefix}_{name}": value for name, value in self._pop("eval").items()}
        return output._replace(metrics={**(output.metrics or {}), **of_passes})

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs, with the metrics of every pass since the last training log."""
        if "loss" in logs:
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

    # ------------------------------------------------------------------ columns

    def _set_signature_columns_if_needed(self) -> None:
        # What the collator reads, not what the draft's forward takes.
        self._signature_columns: Any = list(COLUMNS)


def _call_through(wrapped: nn.Module, draft: nn.Module, function: Callable[..., Any], *args: Any) -> Any:
    """
    Calls `function(*args)` as if it were the forward of `draft`, through whatever wraps it.

    Data-parallel wrappers prepare their gradient synchronisation when they are called, and call their module's
    `forward`. For the length of this call that forward is `function`.

    Effects:
        `draft.forward` is replaced until the wrapper reaches it, and then restored.
    """
    own_forward = draft.__dict__.get("forward")

    def restore() -> None:
        draft.__dict__.pop("forward", None)
        if own_forward is not None:
            draft.__dict__["forward"] = own_forward

    def forward(*inner_args: Any) -> Any:
        restore()
        return function(*inner_args)

    draft.__dict__["forward"] = forward
    try:
        # The parts are compiled, see GriffinTrainer; a compiled wrapper would not see the replacement.
        inner: Any = wrapped._orig_mod if is_compiled_module(wrapped) else wrapped
        return inner(*args)
    finally:
        restore()


__all__ = ["GriffinTrainer"]
