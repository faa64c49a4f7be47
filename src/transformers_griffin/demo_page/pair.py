"""
What the page answers with: a target with its draft, and the tree settings of a click.

Next: `streaming.py`.
"""

import copy
import threading
from dataclasses import dataclass, field

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..decoding.tree_settings import tree_settings
from ..modeling_griffin import DEFAULT_TREE, GriffinDraftModel


@dataclass
class Pair:
    """A target with its draft; whoever lets it answer holds the lock."""

    target: PreTrainedModel
    draft: GriffinDraftModel  # bound to the target
    tokenizer: PreTrainedTokenizerBase
    # Two answers at once would share the processor, so neither's speed would mean anything, and the draft's settings.
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class TreeSettings:
    """Size and shape of a draft tree."""

    num_draft_tokens: int
    depth: int
    width: int

    @classmethod
    def of(cls, draft: GriffinDraftModel) -> "TreeSettings":
        """The draft's own."""
        return cls(*tree_settings(draft.generation_config, draft.config.proposal_vocab_size))

    def give_to(self, draft: GriffinDraftModel) -> None:
        """
        Makes the draft grow such trees.

        Raises:
            ValueError: if the settings cannot form a tree. The draft keeps those that it has.
        """
        draft.generation_config = self.check(draft)

    def check(self, draft: GriffinDraftModel) -> GenerationConfig:
        """
        The draft's generation config with these settings.

        Raises:
            ValueError: if they cannot form a tree.
        """
        config = copy.deepcopy(draft.generation_config)
        for name, value in zip(DEFAULT_TREE, (self.num_draft_tokens, self.depth, self.width), strict=True):
            setattr(config, name, value)
        tree_settings(config, draft.config.proposal_vocab_size)
        return config


__all__ = ["Pair", "TreeSettings"]
