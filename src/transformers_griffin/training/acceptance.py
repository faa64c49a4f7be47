"""
Seeing a draft learn: real tree decoding on held-out prompts while it trains.

    GriffinTrainer(..., extra_metrics=[AcceptanceEvaluator(prompts)])

What is measured becomes part of `evaluate()`, hence of the log, of `report_to` and of `metric_for_best_model="tau"`.

Next: `curves.py`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch.distributed.fsdp import FSDPModule
from transformers import GenerationConfig
from transformers.integrations import is_deepspeed_zero3_enabled

from ..decoding.tree_settings import tree_settings
from ..evaluation import (
    acceptance_by_depth,
    answer_hits,
    answer_prompt,
    chains,
    mean_acceptance_length,
    misaligned_rates,
    repeated_ngram_share,
)
from ..modeling_griffin import GriffinDraftModel, moved_to


if TYPE_CHECKING:
    from .trainer import GriffinTrainer


Prompt = Sequence[int] | torch.Tensor | Sequence[Mapping[str, Any]]
AGREEMENT_TOP_K = (1, 3)  # the last one also defines misaligned tokens; 3 as in the released alignment mask


@dataclass(frozen=True)
class MeasuredAnswer:
    """What one prompt contributes."""

    acceptance_lengths: list[int]  # tokens emitted by each cycle
    hits: torch.Tensor  # (len(AGREEMENT_TOP_K), num_passes, n_chains), bool, see [`answer_hits`]
    repeated_4grams: float


class AcceptanceEvaluator:
    """
    Answers held-out prompts with the draft as it is, by `target.generate(assistant_model=draft)`, and measures it.

    One of the `extra_metrics` of [`GriffinTrainer`]. The metrics, all of them over all prompts and processes:

    - `tau`: tokens emitted per cycle;
    - `acceptance_depth_1`, ...: share of the cycles that accept at least 1, ... draft tokens;
    - `top1_agreement`, `top3_agreement`: share of the answer's tokens that are the draft's most likely one, or among
      its three most likely ones, given the target's features (pass 1);
    - `pass_1/misaligned_rate`, ...: share of the chains that have missed a token in passes 1 .. n, with k = 3 (the
      paper's Fig. 1c; [`~transformers_griffin.evaluation.misaligned_rates`]), for as many passes as the tree has
      levels;
    - `repeated_4grams`: how repetitive the answers are; if they loop, tau means little.

    Args:
        prompts (`Sequence`): token ids, or conversations (lists of messages), which the target's chat template of the
            trainer's `processing_class` renders.
        tree ([`~transformers.GenerationConfig`], *optional*): tree settings; the draft's own by default.
        seed (`int`, defaults to 0): of sampled answers. The same prompt gets the same random numbers every time.
        generate_kwargs: further arguments of `generate()`; `max_new_tokens=64, do_sample=False` by default.

    Raises:
        ValueError: if there are no prompts.

    Example:

    ```python
    >>> evaluator = AcceptanceEvaluator([[{"role": "user", "content": "Why is the sky blue?"}]])  # doctest: +SKIP
    >>> trainer = GriffinTrainer(model=draft, target=target, extra_metrics=[evaluator])  # doctest: +SKIP
    >>> trainer.evaluate()["eval_tau"]  # doctest: +SKIP
    ```
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        tree: GenerationConfig | None = None,
        seed: int = 0,
        **generate_kwargs: Any,
    ):
        if len(prompts) == 0:
            raise ValueError("There are no prompts; acceptance is measured on at least one.")
        self.prompts = prompts
        self.tree = tree
        self.seed = seed
        # The padding token is never used, since prompts are answered one by one; naming one avoids a warning for each.
        self.generate_kwargs = {"max_new_tokens": 64, "do_sample": False, "pad_token_id": 0} | generate_kwargs

    def __call__(self, trainer: "GriffinTrainer") -> dict[str, float]:
        """
        Measures the trainer's draft; every process answers its share of the prompts.

        Args:
            trainer ([`GriffinTrainer`]): its draft, target, tokenizer and processes.

        Effects:
            None that lasts: mode, tree settings and random state are as before, so training goes on as if nothing had
            been measured.

        Raises:
            ValueError: if DeepSpeed ZeRO-3 spreads the draft's weights over processes.
        """
        draft = trainer.draft
        tree = self.tree or draft.generation_config
        _, depth, _ = tree_settings(tree, draft.config.proposal_vocab_size)
        num_passes = depth if draft.config.num_hidden_layers == 1 else 1
        process, num_processes = trainer.args.process_index, trainer.args.world_size
        with _ready_to_decode(trainer, tree), _random_state_kept(trainer.args.device):
            indices = range(process, len(self.prompts), num_processes)
            measured = [self._measure(trainer, index, num_passes) for index in indices]
        return summarize(gather_object(measured), depth)

    def _measure(self, trainer: "GriffinTrainer", index: int, num_passes: int) -> MeasuredAnswer:
        target, draft = trainer.target, trainer.draft
        prompt = moved_to(target.get_input_embeddings(), prompt_ids(self.prompts[index], trainer.processing_class))
        torch.manual_seed(self.seed + index)
        answer = answer_prompt(target, prompt, draft, **self.generate_kwargs)
        sequence = torch.cat((prompt, prompt.new_tensor([answer.new_tokens])), dim=1)
        hits = answer_hits(target, draft, sequence, prompt.shape[1], num_passes, AGREEMENT_TOP_K)
        return MeasuredAnswer(answer.acceptance_lengths, hits.cpu(), repeated_ngram_share(answer.new_tokens))


def prompt_ids(prompt: Prompt, tokenizer: Any) -> torch.Tensor:
    """
    A prompt's tokens, `torch.LongTensor` of shape `(1, length)`.

    Raises:
        ValueError: if the prompt is a conversation and there is no tokenizer.
    """
    if isinstance(prompt, torch.Tensor) or not isinstance(prompt[0], Mapping):
        return torch.as_tensor(prompt).view(1, -1)
    if tokenizer is None:
        raise ValueError(
            "A prompt is a conversation, but the trainer has no tokenizer. Give it the target's as "
            "`processing_class`, or give the prompts as token ids."
        )
    messages = [dict(message) for message in prompt]  # type: ignore[arg-type]  # a conversation, checked above
    rendered: Any = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    return rendered["input_ids"]


def summarize(measured: Sequence[MeasuredAnswer], depth: int) -> dict[str, float]:
    """
    The metrics of [`AcceptanceEvaluator`] over measured answers.

    Args:
        measured (`Sequence[MeasuredAnswer]`): of all prompts.
        depth (`int`): levels of the draft tree.
    """
    lengths = [answer.acceptance_lengths for answer in measured]
    metrics = {"tau": mean_acceptance_length(lengths)}
    for i, share in enumerate(acceptance_by_depth(lengths, depth), start=1):
        metrics[f"acceptance_depth_{i}"] = share
    found = torch.cat([answer.hits[:, 0] for answer in measured], dim=1).float().mean(dim=1)
    for k, share in zip(AGREEMENT_TOP_K, found.tolist(), strict=True):
        metrics[f"top{k}_agreement"] = share
    all_chains = [chain for answer in measured for chain in chains(answer.hits[-1])]
    for n, rate in enumerate(misaligned_rates(all_chains), start=1):
        metrics[f"pass_{n}/misaligned_rate"] = rate
    metrics["repeated_4grams"] = sum(answer.repeated_4grams for answer in measured) / len(measured)
    return metrics


@contextmanager
def _ready_to_decode(trainer: "GriffinTrainer", tree: GenerationConfig) -> Iterator[None]:
    """The draft in evaluation mode, with these tree settings and, if FSDP shards it, with whole weights."""
    draft: GriffinDraftModel = trainer.draft
    was_training, own_tree = draft.training, draft.generation_config
    with ExitStack() as stack:
        stack.enter_context(_whole_weights(trainer))
        draft.eval()
        stack.callback(draft.train, was_training)
        draft.generation_config = tree
        stack.callback(setattr, draft, "generation_config", own_tree)
        yield


@contextmanager
def _whole_weights(trainer: "GriffinTrainer") -> Iterator[None]:
    """Processes decode different prompts in different numbers of steps, so no forward may need another process."""
    if is_deepspeed_zero3_enabled():
        raise ValueError(
            "The draft's weights are spread over processes by DeepSpeed ZeRO-3, so it cannot decode while it trains. "
            "Use ZeRO-2, FSDP 2, or no AcceptanceEvaluator."
        )
    model: Any = trainer.model
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.set_reshard_after_forward(False)
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.set_reshard_after_forward(trainer.accelerator.state.fsdp_plugin.reshard_after_forward)
            module.reshard()


def _random_state_kept(device: torch.device) -> Any:
    """A context that leaves torch's random state as it was."""
    if device.type == "cpu":
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=range(torch.accelerator.device_count()), device_type=device.type)


__all__ = ["AcceptanceEvaluator", "MeasuredAnswer", "prompt_ids", "summarize"]
