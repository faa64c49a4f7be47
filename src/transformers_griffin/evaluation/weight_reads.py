"""
How many bytes of weights decoding reads, computed from shapes: the floor under a cycle's cost, not a measurement.

At batch 1 a GPU computes faster than its memory delivers, so a forward takes at least as long as its weights take to
arrive, however few or many tokens share it::

    plain step    the target without its embedding, of which a row suffices
    draft pass    the draft's own weights, and those rows of the LM head that it proposes from
    cycle         one plain step to verify, and a draft pass for every level of the tree

Left out: key-value caches, activations and the rows of embeddings. Meant for dense targets; of routed experts all
count, as if a tree's tokens needed every one.

Next: `synthetic.py`.
"""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from ..decoding.draft_head import head_dtype, row_bytes
from ..modeling_griffin import GriffinDraftModel


@dataclass(frozen=True)
class WeightReads:
    """Bytes of weights, computed."""

    step_bytes: int  # one plain step, and one verification
    draft_head_bytes: int  # the LM head's part of a draft pass
    draft_pass_bytes: int  # head included
    num_passes: int  # of a cycle

    @property
    def cycle_bytes(self) -> int:
        """One verification and all passes."""
        return self.step_bytes + self.num_passes * self.draft_pass_bytes

    @property
    def cycle_cost(self) -> float:
        """Plain steps that a cycle takes at least, if nothing but weights took time."""
        return self.cycle_bytes / self.step_bytes


def weight_reads(
    target: PreTrainedModel, draft: GriffinDraftModel, draft_vocab_size: int | None = None
) -> WeightReads:
    """
    Counts what a cycle of a pair reads; the meta device suffices.

    Args:
        target ([`~transformers.PreTrainedModel`]): the target.
        draft ([`GriffinDraftModel`]):
            For it; its `generation_config` says how many levels a tree has, and in which format the head is read.
        draft_vocab_size (`int`, *optional*): how many tokens a draft can propose; as many as this one when not given.
    """
    embedding: Any = target.get_input_embeddings().weight
    head: Any = target.get_output_embeddings().weight
    is_tied = embedding is head
    num_rows = draft_vocab_size or draft.config.proposal_vocab_size
    head_bytes = num_rows * row_bytes(head, head_dtype(draft.generation_config))
    return WeightReads(
        step_bytes=sum(weight.nbytes for weight in target.parameters()) - (0 if is_tied else embedding.nbytes),
        draft_head_bytes=head_bytes,
        draft_pass_bytes=sum(weight.nbytes for weight in draft.parameters()) + head_bytes,
        num_passes=draft.generation_config.draft_tree_depth,  # type: ignore[attr-defined]  # takes any name
    )


__all__ = ["WeightReads", "weight_reads"]
