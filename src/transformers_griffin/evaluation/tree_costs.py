"""
What a cycle costs, by tree: a few trees are run, all others are read off the curves.

    cycle_seconds(tree) = draft(levels, width) + verify(tokens) + rest

How long a verification takes depends on the tokens it reads, how long drafting takes on levels and width; the rest
(accepting, compacting caches, Python) on neither. So the probes need not be a grid: some of them spread over the
tokens, others over levels and width. Between measured points the curves are straight lines.

Next: `tuning.py`.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from ..decoding.draft_tree import pool_size
from ..decoding.tree_settings import tokens_at_depth, tree_settings
from ..modeling_griffin import GriffinDraftModel
from .answers import CYCLE_PARTS, TimedBatch, answer_batch
from .cycle_timing import CycleTime, record_parts
from .tree_acceptance import TreeSettings


Batch = tuple[torch.Tensor, torch.Tensor]  # input_ids, padded on the left, and attention_mask


@dataclass(frozen=True)
class TreeGrid:
    """
    The trees to choose from: all combinations that form a tree.

    The defaults reach from a single token to the paper's tree (59 tokens, 6 levels, 10 wide) and a little beyond.
    """

    num_tokens: Sequence[int] = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 59, 80)
    depths: Sequence[int] = (1, 2, 3, 4, 5, 6, 7, 8)
    widths: Sequence[int] = (1, 2, 3, 4, 6, 10)

    def trees(self, vocab_size: int) -> list[TreeSettings]:
        """
        All trees with at least one token a level, and no more than levels and width can propose.

        Raises:
            ValueError: if there is none, or a value is out of range.
        """
        trees = [
            TreeSettings(num_tokens, depth, width)
            for width in self.widths
            for depth in self.depths
            for num_tokens in self.num_tokens
            if depth <= num_tokens <= pool_size(depth, width)
        ]
        if not trees:
            raise ValueError(
                f"No tree has {_either(self.num_tokens)} tokens, {_either(self.depths)} levels and a width of "
                f"{_either(self.widths)}: it needs one token a level at least, and w + (d - 1) w^2 at most. Give more "
                "values."
            )
        for tree in trees:
            tree_settings(GenerationConfig(**vars(tree)), vocab_size)
        return trees


@dataclass(frozen=True)
class CostCurves:
    """Measured seconds; medians over cycles."""

    verify: dict[int, float]  # drafted tokens -> one verification
    draft: dict[int, dict[int, float]]  # width -> levels -> one drafting
    rest: float  # of a cycle
    outside: float  # of an answer: prefill, and what else belongs to no cycle

    def cycle_seconds(self, tree: TreeSettings) -> float:
        """What a cycle with this tree will take."""
        by_width = {width: interpolate(curve, tree.draft_tree_depth) for width, curve in self.draft.items()}
        draft = interpolate(by_width, tree.draft_tree_top_k)
        return draft + interpolate(self.verify, tree.num_assistant_tokens) + self.rest

    def level_cost(self, tree: TreeSettings) -> float | None:
        """
        What a level of a tree costs on average, in cycles without any level: see `decoding/adaptive_depth.py`. None
        for a tree of one level, where one depth alone was measured, and where levels cost too little to measure.
        """
        num_tokens, depth, width = tree.num_assistant_tokens, tree.draft_tree_depth, tree.draft_tree_top_k
        if depth == 1 or all(len(curve) == 1 for curve in self.draft.values()):
            return None
        shallowest = self.cycle_seconds(TreeSettings(tokens_at_depth(num_tokens, depth, width, 1), 1, width))
        level = (self.cycle_seconds(tree) - shallowest) / (depth - 1)
        return level / (shallowest - level) if 0 < level < shallowest else None


def interpolate(curve: Mapping[int, float], at: int) -> float:
    """
    Reads a curve of measured points, in any order; straight between points, and beyond them as the last two go on.

    Example: `{2: 10.0, 4: 20.0}` is 15 at 3, 5 at 1, and 10 everywhere if 2 is the only point.
    """
    points = sorted(curve.items())
    if len(points) == 1:
        return points[0][1]
    right = next((i for i, (x, _) in enumerate(points) if x >= at), len(points) - 1)
    (x0, y0), (x1, y1) = points[max(right, 1) - 1], points[max(right, 1)]
    return y0 + (y1 - y0) * (at - x0) / (x1 - x0)


def choose_probes(trees: Sequence[TreeSettings]) -> list[TreeSettings]:
    """
    The few trees that are run: of three widths the fewest and the most levels, and with these up to five numbers of
    tokens.

    Args:
        trees (`Sequence[TreeSettings]`): all that are to be compared.
    """
    of_shape: dict[tuple[int, int], list[TreeSettings]] = {}
    for width in _spread({tree.draft_tree_top_k for tree in trees}, 3):
        depths = {tree.draft_tree_depth for tree in trees if tree.draft_tree_top_k == width}
        for depth in _spread(depths, 2):
            shape = (depth, width)
            of_shape[shape] = [t for t in trees if (t.draft_tree_depth, t.draft_tree_top_k) == shape]
    probes: dict[tuple[int, int], list[TreeSettings]] = {shape: [] for shape in of_shape}
    for num_tokens in _spread({tree.num_assistant_tokens for same in of_shape.values() for tree in same}, 5):
        fitting = [tree for same in of_shape.values() for tree in same if tree.num_assistant_tokens == num_tokens]
        shapes = [(tree.draft_tree_depth, tree.draft_tree_top_k) for tree in fitting]
        least_used = min(range(len(fitting)), key=lambda i: len(probes[shapes[i]]))
        probes[shapes[least_used]].append(fitting[least_used])
    return [tree for shape, chosen in probes.items() for tree in chosen or [_middle(of_shape[shape])]]


def measure_costs(
    target: PreTrainedModel,
    draft: GriffinDraftModel,
    batches: Sequence[Batch],
    probes: Sequence[TreeSettings],
    num_warmups: int = 0,
    **generate_kwargs: Any,
) -> CostCurves:
    """
    Runs the probes, all of them on a batch before the next batch comes.

    Args:
        target ([`~transformers.PreTrainedModel`]): the target.
        draft ([`GriffinDraftModel`]): for this target.
        batches (`Sequence[Batch]`): prompts, on the target's device.
        probes (`Sequence[TreeSettings]`): see [`choose_probes`].
        num_warmups (`int`, defaults to 0): answers with each probe that are not timed; compiled cycles need some.
        generate_kwargs: further arguments of `generate()`.

    Raises:
        ValueError: if all answers end with their first token, so that no cycle ran.
    """

    def answer(tree: TreeSettings, batch: Batch) -> tuple[TimedBatch, list[CycleTime]]:
        with draft_has(draft, tree, len(batch[0])), record_parts(target.device, CYCLE_PARTS) as recording:
            answer = answer_batch(target, *batch, assistant_model=draft, **generate_kwargs)
        return answer, recording.cycles()

    for tree in [*probes] * num_warmups:
        answer(tree, batches[0])
    cycles: dict[TreeSettings, list[CycleTime]] = {tree: [] for tree in probes}
    outside = []
    for index, batch in enumerate(batches):
        for tree in rotated(probes, index):
            answered, new_cycles = answer(tree, batch)
            cycles[tree] += new_cycles
            if new_cycles:  # the first one drafts under the whole prompt: what it takes longer is outside
                usual = statistics.median(cycle.total for cycle in new_cycles)
                outside.append(max(answered.wall_seconds - len(new_cycles) * usual, 0.0))
    if not all(cycles.values()):
        raise ValueError(
            "All answers ended with their first token, before anything was drafted. Give prompts that the target "
            "answers at length, or raise `max_new_tokens`."
        )
    return _curves(cycles, statistics.median(outside))


def _curves(cycles: Mapping[TreeSettings, list[CycleTime]], outside: float) -> CostCurves:
    verify: dict[int, list[float]] = {}
    draft: dict[int, dict[int, list[float]]] = {}
    for tree, times in cycles.items():
        verify.setdefault(tree.num_assistant_tokens, []).extend(cycle.verify for cycle in times)
        by_depth = draft.setdefault(tree.draft_tree_top_k, {})
        by_depth.setdefault(tree.draft_tree_depth, []).extend(cycle.draft for cycle in times)
    return CostCurves(
        verify={num_tokens: statistics.median(seconds) for num_tokens, seconds in sorted(verify.items())},
        draft={
            width: {depth: statistics.median(seconds) for depth, seconds in sorted(curve.items())}
            for width, curve in sorted(draft.items())
        },
        rest=statistics.median(c.total - c.draft - c.verify for times in cycles.values() for c in times),
        outside=outside,
    )


@contextmanager
def draft_has(draft: GriffinDraftModel, tree: TreeSettings, batch_size: int = 1) -> Iterator[None]:
    """While open, the draft drafts such trees for every row of a batch; its other settings stay."""
    own = draft.generation_config
    draft.generation_config = tree.copied_into(own)
    draft.generation_config.draft_tree_batch_size = batch_size  # type: ignore[attr-defined]  # takes any name
    try:
        yield
    finally:
        draft.generation_config = own


def rotated(items: Sequence[Any], by: int) -> list[Any]:
    """All items, beginning elsewhere every time, so that none always comes first."""
    start = by % len(items)
    return [*items[start:], *items[:start]]


def _spread(values: set[int], count: int) -> list[int]:
    """At most `count` of the values, with the smallest and the largest, evenly in order."""
    ordered = sorted(values)
    steps = min(count, len(ordered)) - 1
    return [ordered[round(i * (len(ordered) - 1) / steps)] for i in range(steps + 1)] if steps else ordered[:1]


def _middle(trees: Sequence[TreeSettings]) -> TreeSettings:
    return sorted(trees)[len(trees) // 2]


def _either(values: Sequence[int]) -> str:
    return " or ".join(map(str, values))


__all__ = [
    "Batch",
    "CostCurves",
    "TreeGrid",
    "choose_probes",
    "draft_has",
    "interpolate",
    "measure_costs",
    "rotated",
]
