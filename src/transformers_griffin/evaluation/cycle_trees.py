"""
Keeps the trees that `generate()` drafts, and says which path of each the target accepted.

Nothing in decoding changes: the trees are kept as they leave the draft, and what was accepted follows from the tokens
that the cycle emitted::

    tree      root -- A -- B        emitted  A, C        accepted  root, A        bonus  C
                `- C

Next: `tree_drawing.py`.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..decoding.candidate_generator import GriffinCandidateGenerator
from ..decoding.draft_tree import DraftTree
from ..decoding.outputs import GriffinGenerateOutput


@dataclass(frozen=True)
class CycleTree:
    """The tree of one cycle, and what the target made of it; node 0 is the root, and parents precede children."""

    tokens: list[int]  # token id at each node
    parents: list[int]  # the root is its own parent
    scores: list[float]  # cumulative log-probability under the draft; 0 at the root
    accepted: list[int]  # nodes of the accepted path, from the root on
    bonus: int | None  # the token that the target added behind the path; None where the answer ended on the path

    @classmethod
    def from_emitted(cls, tree: DraftTree, emitted: Sequence[int], row: int = 0) -> "CycleTree":
        """
        Follows the tokens that a cycle emitted through its tree.

        Args:
            tree ([`DraftTree`]): as drafted.
            emitted (`Sequence[int]`): the tokens that the cycle appended to the answer.
            row (`int`): of the batch.
        """
        tokens, parents, scores = (part[row].tolist() for part in (tree.tokens, tree.parents, tree.scores))
        children = {(parents[node], tokens[node]): node for node in range(1, len(tokens))}
        accepted, bonus = [0], None
        for token in emitted:
            node = children.get((accepted[-1], token))
            if node is None:
                bonus = token
                break
            accepted.append(node)
        return cls(tokens, parents, scores, accepted, bonus)

    @property
    def num_emitted(self) -> int:
        """Tokens that the cycle appended to the answer."""
        return len(self.accepted) - 1 + (self.bonus is not None)

    def probability(self, node: int) -> float:
        """The draft's probability of a node's token, given the path to its parent; 1 at the root."""
        score, parent_score = self.scores[node], self.scores[self.parents[node]]
        return 0.0 if math.isinf(score) else math.exp(score - parent_score)

    def children(self, node: int) -> list[int]:
        """A node's children, the most probable first."""
        found = [child for child in range(1, len(self.tokens)) if self.parents[child] == node]
        return sorted(found, key=lambda child: -self.scores[child])


@contextmanager
def record_trees() -> Iterator[list[DraftTree]]:
    """
    Keeps every tree that any GRIFFIN draft grows while open, one entry for each cycle.

    Effects: wraps [`GriffinCandidateGenerator.draft_tree`] of the whole process until it is closed.

    Example::

        with record_trees() as trees:
            output = target.generate(**inputs, assistant_model=draft, return_dict_in_generate=True)
        first, *rest = cycle_trees(trees, output)
    """
    trees: list[DraftTree] = []
    original = GriffinCandidateGenerator.draft_tree

    def draft_and_keep(self: GriffinCandidateGenerator, *args: Any, **kwargs: Any) -> DraftTree:
        trees.append(original(self, *args, **kwargs))
        return trees[-1]

    GriffinCandidateGenerator.draft_tree = draft_and_keep  # type: ignore[method-assign]  # put back below
    try:
        yield trees
    finally:
        GriffinCandidateGenerator.draft_tree = original  # type: ignore[method-assign]


def cycle_trees(trees: Sequence[DraftTree], output: GriffinGenerateOutput) -> list[CycleTree]:
    """
    The trees of one answer with their accepted paths.

    Args:
        trees (`Sequence[DraftTree]`): recorded by [`record_trees`] while the answer was generated.
        output ([`GriffinGenerateOutput`]): of `generate(..., return_dict_in_generate=True)`, for one prompt.

    Raises:
        ValueError: if the trees are not those of the answer.
    """
    lengths = (output.acceptance_lengths or [[]])[0]
    if len(trees) != len(lengths):
        raise ValueError(
            f"{len(trees)} trees were recorded, but the answer has {len(lengths)} cycles. Open `record_trees()` for "
            "one `generate()` call."
        )
    # The token of the prefill is the first root, so the cycles' tokens are the last ones of the sequence.
    sequence = output.sequences[0].tolist()
    start, cycles = len(sequence) - sum(lengths), []
    for tree, length in zip(trees, lengths, strict=True):
        cycles.append(CycleTree.from_emitted(tree, sequence[start : start + length]))
        start += length
    return cycles


__all__ = ["CycleTree", "cycle_trees", "record_trees"]
