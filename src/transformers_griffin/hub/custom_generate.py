"""
Decodes with the draft of this repository::

    target.generate(**inputs, custom_generate="user/draft", trust_remote_code=True)

The decoding loop is in the package, not here: `pip install transformers-griffin`.
"""

import inspect
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from transformers_griffin import GriffinDraftModel


# Arguments of `generate()` that say how to reach the repository, not how to generate.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "token")


def generate(model: Any, **arguments: Any) -> Any:
    """
    What `model.generate()` returns, with the draft of this repository as its assistant.

    Args:
        model ([`~transformers.PreTrainedModel`]): the target.
        arguments: as for `generate()`, and `revision`, `token`, ... of the repository.
    """
    hub_arguments = {name: arguments.pop(name) for name in HUB_ARGUMENTS if name in arguments}
    frame = inspect.currentframe()
    caller = frame.f_back if frame is not None else None
    # `generate()` knows where this file came from, but does not say so.
    repository = caller.f_locals.get("custom_generate") if caller is not None else None
    if not isinstance(repository, str):
        raise ValueError(
            "This file must be called by `generate(custom_generate=...)`. To call it otherwise, load the draft and "
            "pass it as `assistant_model`."
        )
    if not Path(repository).is_dir():
        # The code lies in a folder named after its commit: the weights must be those of the same commit.
        hub_arguments["revision"] = Path(__file__).parents[1].name
    arguments["assistant_model"] = load_draft(repository, model.dtype, str(model.device), **hub_arguments)
    return model.generate(**arguments)


@lru_cache(maxsize=1)
def load_draft(repository: str, dtype: torch.dtype, device: str, **hub_arguments: Any) -> GriffinDraftModel:
    """The draft, loaded once for many answers."""
    draft = GriffinDraftModel.from_pretrained(repository, dtype=dtype, **hub_arguments).eval()
    return draft.to(device)  # type: ignore[arg-type]  # transformers wraps `to`
