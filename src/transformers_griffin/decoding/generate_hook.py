"""
Plugs the loop into `GenerationMixin`: `generate(assistant_model=griffin_draft)` decodes with the draft.

`generate()` hands every assistant to `GenerationMixin._assisted_decoding`. The hook wraps this one method: calls with a
GRIFFIN draft go to the loop, all others to the method as it was. The method is not public, so its signature is checked
when the hook is installed.
"""

import functools
import inspect
from typing import Any

from transformers import GenerationMixin
from transformers import __version__ as transformers_version

from ..modeling_griffin import GriffinDraftModel
from .loop import decode_with_draft


SEAM = "_assisted_decoding"
SEAM_PARAMETERS = (
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
)


def install() -> None:
    """
    Makes `generate()` accept GRIFFIN drafts; importing the package does this. A second call changes nothing.

    Raises:
        ImportError: if transformers' method no longer has the parameters that the hook relies on.
    """
    if is_installed():
        return
    original = GenerationMixin._assisted_decoding
    found = tuple(inspect.signature(original).parameters)
    if found != SEAM_PARAMETERS:
        raise ImportError(
            f"transformers {transformers_version} changed `GenerationMixin.{SEAM}`: expected the parameters "
            f"{', '.join(SEAM_PARAMETERS)}, found {', '.join(found)}. Install transformers>=5.23,<6, or a "
            "transformers-griffin that knows this version."
        )

    @functools.wraps(original)
    def assisted_decoding(self: Any, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        draft = kwargs.get("assistant_model")
        if not isinstance(draft, GriffinDraftModel):
            return original(self, input_ids, *args, **kwargs)
        del kwargs["assistant_model"]
        for unused in ("inputs_tensor", "assistant_tokenizer", "tokenizer"):
            kwargs.pop(unused, None)
        return decode_with_draft(self, input_ids, *args, draft=draft, **kwargs)

    assisted_decoding.__griffin_original__ = original  # type: ignore[attr-defined]  # marks the hook, lets it go
    GenerationMixin._assisted_decoding = assisted_decoding


def remove() -> None:
    """Puts transformers' own method back; does nothing if the hook is not installed."""
    if is_installed():
        GenerationMixin._assisted_decoding = GenerationMixin._assisted_decoding.__griffin_original__


def is_installed() -> bool:
    """Whether `generate()` accepts GRIFFIN drafts."""
    return "__griffin_original__" in vars(GenerationMixin._assisted_decoding)


__all__ = ["install", "is_installed", "remove"]
