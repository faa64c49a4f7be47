"""
GRIFFIN speculative decoding for transformers: the same tokens from `generate()`, sooner.

Importing the package registers the Auto classes and installs the `generate()` hook. Everything beyond what these two
need is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModel

from .configuration_griffin import GriffinDraftConfig
from .decoding import generate_hook
from .modeling_griffin import GriffinDraftModel


__version__ = "0.1.0.dev0"

AutoConfig.register(GriffinDraftConfig.model_type, GriffinDraftConfig, exist_ok=True)
AutoModel.register(GriffinDraftConfig, GriffinDraftModel, exist_ok=True)
# Saved drafts carry their code, so that they load where the package is not installed.
GriffinDraftConfig.register_for_auto_class()
GriffinDraftModel.register_for_auto_class("AutoModel")
generate_hook.install()

if TYPE_CHECKING:
    from .conversion import convert_checkpoint
    from .decoding.candidate_generator import GriffinCandidateGenerator
    from .decoding.outputs import GriffinGenerateOutput
    from .evaluation import BenchmarkResults
    from .evaluation.benchmark import benchmark
    from .hub import push_draft_to_hub
    from .training import GriffinTrainer, GriffinTrainingArguments

_LAZY = {
    "BenchmarkResults": ".evaluation",
    "GriffinCandidateGenerator": ".decoding.candidate_generator",
    "GriffinGenerateOutput": ".decoding.outputs",
    "GriffinTrainer": ".training",
    "GriffinTrainingArguments": ".training",
    "benchmark": ".evaluation",
    "convert_checkpoint": ".conversion",
    "push_draft_to_hub": ".hub",
}


def _push_to_hub(self: GriffinDraftModel, repo_id: str, **kwargs: Any) -> str:
    """Publishes the draft with its card; the arguments are those of [`push_draft_to_hub`]."""
    from .hub import push_draft_to_hub

    return push_draft_to_hub(self, repo_id, **kwargs)


# Not a method of the model file, which travels to the Hub without the rest of the package.
GriffinDraftModel.push_to_hub = _push_to_hub  # type: ignore[method-assign, assignment]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])


__all__ = [
    "BenchmarkResults",
    "GriffinCandidateGenerator",
    "GriffinDraftConfig",
    "GriffinDraftModel",
    "GriffinGenerateOutput",
    "GriffinTrainer",
    "GriffinTrainingArguments",
    "benchmark",
    "convert_checkpoint",
    "push_draft_to_hub",
]
