"""
Plugs the loop into `GenerationMixin`: `generate(assistant_model=griffin_draft)` decodes with the draft.

`generate()` hands every assistant to `GenerationMixin._assisted_decoding`. The hook wraps this method, and
`_validate_generation_mode`, which sees the assistant before anything else does: calls with a GRIFFIN draft are checked
and go to the loop, all others to the methods as they were. The methods are not public, so their signatures are checked
when the hook is installed.
"""

import copy
import functools
import inspect
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers import __version__ as transformers_version

from ..modeling_griffin import GriffinDraftModel
from .loop import decode_with_draft


# What the hook relies on: the wrapped methods and their parameters.
SEAMS = {
    "_validate_generation_mode": ("self", "generation_mode", "generation_config", "generation_mode_kwargs"),
    "_assisted_decoding": (
        "self",
        "input_ids",
        "logits_processor",
        "stopping_criteria",
        "generation_config",
        "synced_gpus",
        "streamer",
        "inputs_tensor",
        "assistant_model",
        "assistant_tokenizer",
        "tokenizer",
        "model_kwargs",
    ),
}


def install() -> None:
    """
    Makes `generate()` accept GRIFFIN drafts; importing the package does this. A second call changes nothing.

    Raises:
        ImportError: if transformers' methods no longer have the parameters that the hook relies on.
    """
    if is_installed():
        return
    for name, expected in SEAMS.items():
        found = tuple(inspect.signature(getattr(GenerationMixin, name)).parameters)
        if found != expected:
            raise ImportError(
                f"transformers {transformers_version} changed `GenerationMixin.{name}`: expected the parameters "
                f"{', '.join(expected)}, found {', '.join(found)}. Install transformers>=5.23,<6, or a "
                "transformers-griffin that knows this version."
            )
    for name, wrap in (("_validate_generation_mode", _wrap_validation), ("_assisted_decoding", _wrap_decoding)):
        original = getattr(GenerationMixin, name)
        wrapper: Any = functools.wraps(original)(wrap(original))
        wrapper.__griffin_original__ = original  # marks the hook, lets it go
        setattr(GenerationMixin, name, wrapper)


def remove() -> None:
    """Puts transformers' own methods back; does nothing if the hook is not installed."""
    if is_installed():
        for name in SEAMS:
            setattr(GenerationMixin, name, getattr(GenerationMixin, name).__griffin_original__)


def is_installed() -> bool:
    """Whether `generate()` accepts GRIFFIN drafts."""
    return "__griffin_original__" in vars(GenerationMixin._assisted_decoding)


def _wrap_validation(original: Any) -> Any:
    def validate_generation_mode(
        self: Any, generation_mode: Any, generation_config: GenerationConfig, generation_mode_kwargs: dict[str, Any]
    ) -> None:
        draft = draft_of(generation_mode_kwargs.get("assistant_model"))
        if draft is not None:
            check_target(self, generation_config)
            draft.bind(self)
            # What transformers' own assisted decoding cannot do, the loop can.
            generation_config = copy.copy(generation_config)
            generation_config.num_return_sequences = 1
        original(self, generation_mode, generation_config, generation_mode_kwargs)

    return validate_generation_mode


def _wrap_decoding(original: Any) -> Any:
    def assisted_decoding(self: Any, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        draft = draft_of(kwargs.get("assistant_model"))
        if draft is None:
            return original(self, input_ids, *args, **kwargs)
        check_inputs(kwargs)
        for unused in ("assistant_model", "inputs_tensor", "assistant_tokenizer", "tokenizer", "synced_gpus"):
            kwargs.pop(unused, None)
        return decode_with_draft(self, input_ids, *args, draft=draft, **kwargs)

    return assisted_decoding


def draft_of(assistant: Any) -> GriffinDraftModel | None:
    """The draft that an assistant is, or has adapters on; None for other assistants."""
    # A PEFT model, the only one with this method, puts its adapters into the draft's own layers.
    base = assistant.get_base_model() if hasattr(assistant, "get_base_model") else assistant
    return base if isinstance(base, GriffinDraftModel) else None


def check_target(target: PreTrainedModel, generation_config: GenerationConfig) -> None:
    """Refuses targets and decoding modes that no draft can speed up."""
    if target.config.is_encoder_decoder:
        raise ValueError(
            f"{type(target).__name__} is an encoder-decoder model; GRIFFIN drafts speed up decoder-only models. "
            "Call `generate()` without `assistant_model`."
        )
    if target._is_stateful:
        raise ValueError(
            f"{type(target).__name__} keeps a state that cannot forget rejected tokens; GRIFFIN drafts speed up "
            "models whose layers are all attention. Call `generate()` without `assistant_model`."
        )
    if getattr(target.prepare_inputs_for_generation, "__self__", None) is not target:
        raise ValueError(
            f"The inputs of {type(target).__name__} are prepared by something else, as PEFT does for prompt and "
            "prefix tuning, and no tree can be verified with what it adds. Use an adapter inside the layers (LoRA), "
            "or call `generate()` without `assistant_model`."
        )
    if generation_config.num_beams is not None and generation_config.num_beams > 1:
        raise ValueError(
            f"`num_beams` is {generation_config.num_beams}, but GRIFFIN decoding does not search beams. Set it to 1, "
            "or call `generate()` without `assistant_model`."
        )


def check_inputs(kwargs: dict[str, Any]) -> None:
    """Refuses inputs that the loop cannot take, before anything is computed."""
    if kwargs.get("synced_gpus"):
        raise ValueError(
            "`synced_gpus` is True, but GRIFFIN decoding cannot keep several processes in step. Set it to False, or "
            "call `generate()` without `assistant_model`."
        )
    if not kwargs.get("use_cache"):
        raise ValueError(
            "`use_cache` is False, but GRIFFIN decoding needs a key-value cache. Set it to True, or call `generate()` "
            "without `assistant_model`."
        )
    if kwargs.get("past_key_values") is None:
        raise ValueError(
            "This target decodes without `past_key_values`, but GRIFFIN decoding needs a key-value cache. Call "
            "`generate()` without `assistant_model`."
        )


__all__ = ["check_inputs", "check_target", "draft_of", "install", "is_installed", "remove"]
