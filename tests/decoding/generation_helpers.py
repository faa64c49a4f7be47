"""What the tests of `generate()` share: a golden pair with a small tree, prompts, and plain decoding as the oracle."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from conftest import golden_case, golden_json
from transformers_griffin import GriffinDraftModel


CASE = "llama_gqa"


def golden_pair() -> tuple[PreTrainedModel, GriffinDraftModel]:
    """A trained pair that drafts 15 tokens in 4 levels; about two of three cycles accept a draft."""
    target, draft = golden_case(CASE)
    target.generation_config.pad_token_id = 0
    target.generation_config.eos_token_id = None
    draft.generation_config.update(num_assistant_tokens=15, draft_tree_depth=4, draft_tree_top_k=4)
    return target, draft


def golden_prompts() -> list[torch.Tensor]:
    """The prompts of the golden runs, each of shape `(1, length)`."""
    return [torch.tensor([run["prompt_ids"]]) for run in golden_json(CASE, "generate")["prompts"]]


def generate_both(
    pair: tuple[PreTrainedModel, GriffinDraftModel],
    prompt: torch.Tensor | None = None,
    fresh: Callable[[], dict[str, Any]] = dict,
    **kwargs: Any,
) -> tuple[ModelOutput, ModelOutput]:
    """
    Plain decoding's output and ours, both with `return_dict_in_generate`; 40 new tokens and greedy unless told.

    Args:
        fresh: makes arguments that each of both runs must have for itself, such as a cache.
    """
    target, draft = pair
    kwargs = {"max_new_tokens": 40, "do_sample": False, "return_dict_in_generate": True} | kwargs
    plain = target.generate(prompt, **kwargs, **fresh())
    return plain, target.generate(prompt, assistant_model=draft, **kwargs, **fresh())


def assert_lossless(plain: ModelOutput, ours: ModelOutput, prompt_length: int) -> None:
    """Same tokens; the cycles account for every token but the first; something was drafted and accepted."""
    assert ours.sequences.tolist() == plain.sequences.tolist()
    num_new = ours.sequences.shape[1] - prompt_length
    (cycles,) = ours.acceptance_lengths
    assert sum(cycles) == num_new - 1
    assert max(cycles, default=1) > 1 or num_new < 6


def assert_batch_lossless(pair: tuple[PreTrainedModel, GriffinDraftModel]) -> None:
    """The ends of the golden prompts as a batch: same tokens, and in every row something was drafted and accepted."""
    target, draft = pair
    prompts = torch.cat([prompt[:, -5:] for prompt in golden_prompts()])
    settings = {"attention_mask": torch.ones_like(prompts), "max_new_tokens": 24, "do_sample": False}
    plain = target.generate(prompts, **settings)
    ours = target.generate(prompts, assistant_model=draft, return_dict_in_generate=True, **settings)
    assert ours.sequences.tolist() == plain.tolist()
    assert all(max(lengths) > 1 for lengths in ours.acceptance_lengths)


def new_tokens(output: ModelOutput, prompt: torch.Tensor) -> list[int]:
    return output.sequences[0, prompt.shape[1] :].tolist()
