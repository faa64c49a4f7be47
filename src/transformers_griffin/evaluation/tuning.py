"""
Finds the draft tree that decodes fastest, for this target, draft, machine, dtype and batch size.

1. The target answers half of the prompts alone: answers to draft for.
2. A few trees are run, for the cost of a cycle (`tree_costs.py`).
3. Drafting once under every token of the answers tells how many cycles each tree would take (`tree_acceptance.py`).
4. Cycles times cost: the expected speed of every tree. Acceptance lengths are exact, costs are read off curves.
5. The best few and the draft's present tree run for real on the other half, interleaved with plain decoding, each also
   with a depth that adapts (`decoding/adaptive_depth.py`), and the best with the head in another format, too
   (`decoding/draft_head.py`). The fastest wins.

A tree is only worth having if it beats plain decoding in step 5; else the result says so. All of it can be done with
compiled cycles, which have costs of their own; plain decoding then competes with and without compilation.

Next: `synthetic_pair.py`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from ..decoding.draft_head import INT8, head_dtype, why_not_int8
from ..decoding.tree_settings import tokens_per_row, tree_settings
from ..modeling_griffin import GriffinDraftModel
from .answers import TimedBatch, answer_batch
from .intervals import paired_ratio_interval
from .methods import PLAIN, PLAIN_COMPILED, PLAIN_KINDS, compiled_cycle, make_decoders
from .replay import KnownAnswers, know_answers
from .stopwatch import Stopwatch
from .tree_acceptance import PathRanks, TreeSettings, rank_paths
from .tree_costs import Batch, CostCurves, TreeGrid, choose_probes, draft_has, measure_costs, rotated


WARMUP_TOKENS = 16
NUM_WARMUPS = 2  # answers before compiled code is timed


@dataclass(frozen=True)
class Candidate:
    """A tree and what is known about it."""

    tree: TreeSettings
    # On the answers of plain decoding; exact for greedy ones. None with a depth that depends on the cycles before.
    expected_tau: float | None
    expected_tokens_per_second: float | None
    tokens_per_second: float | None = None  # of real runs
    tau: float | None = None  # of real runs


@dataclass(frozen=True)
class TuningResult:
    """What [`tune_tree`] found."""

    best: Candidate
    plain_tokens_per_second: float  # without compilation
    plain_compiled_tokens_per_second: float | None  # None: not measured
    speedup_interval: tuple[float, float] | None  # 95 %, over the batches of the real runs; None if it was one batch
    confirmed: list[Candidate]  # the trees that were run, the best first
    curves: CostCurves
    num_trees: int  # that were compared
    step_seconds: dict[str, float] = field(default_factory=dict)  # what finding out took

    @property
    def speedup_ratio(self) -> float:
        """SR of the best tree over plain decoding, from the same run."""
        return (self.best.tokens_per_second or 0.0) / self.plain_tokens_per_second

    @property
    def is_recommended(self) -> bool:
        """Whether the draft is worth using at all: it beats plain decoding, compiled or not."""
        plain = max(self.plain_tokens_per_second, self.plain_compiled_tokens_per_second or 0.0)
        return (self.best.tokens_per_second or 0.0) > plain

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"is_recommended": self.is_recommended, "speedup_ratio": self.speedup_ratio} | asdict(self)


def tune_tree(
    target: PreTrainedModel,
    draft: GriffinDraftModel,
    batches: Sequence[Batch],
    grid: TreeGrid | None = None,
    max_new_tokens: int = 128,
    num_finalists: int = 3,
    num_probe_batches: int = 2,
    probe_tokens: int = 32,
    compiles: bool = False,
    **generate_kwargs: Any,
) -> TuningResult:
    """
    Finds the fastest tree.

    Args:
        target ([`~transformers.PreTrainedModel`]): the target.
        draft ([`GriffinDraftModel`]): for this target.
        batches (`Sequence[Batch]`):
            Prompts like those to come, all of the batch size to tune for: `(input_ids, attention_mask)`, padded on
            the left, on the target's device. Every second one is for the real runs; a single one serves for both.
        grid ([`TreeGrid`], *optional*): the trees to choose from, beside the draft's present one.
        max_new_tokens (`int`, defaults to 128): tokens of an answer, at most.
        num_finalists (`int`, defaults to 3):
            Trees that are run for real, beside the present one, each also with adaptive depth, and the best of them
            also with the head in int8, or as it is if the draft reads it in int8 now.
        num_probe_batches (`int`, defaults to 2): batches on which costs are measured.
        probe_tokens (`int`, defaults to 32): tokens of an answer there, at most.
        compiles (`bool`, defaults to `False`):
            Tune the compiled cycle (static cache, [`compiled_cycle`]). Every tree that is run is compiled, which takes
            a minute or more each.
        generate_kwargs: further arguments of `generate()`, for example of sampling.

    Returns:
        [`TuningResult`]

    Effects: `draft.generation_config` gets the best tree, and the batch size that it is meant for.

    Raises:
        ValueError: if there is no prompt, batches differ in size, the grid holds no tree, or no answer is longer than
            a token.
    """
    batch_size = _common_size(batches)
    draft.bind(target)
    present = _present_tree(draft, batch_size)
    trees = (grid or TreeGrid()).trees(draft.config.proposal_vocab_size)
    trees = [replace(tree, draft_head_dtype=present.draft_head_dtype) for tree in trees]
    trees = list(dict.fromkeys([*trees, present]))
    to_choose, to_confirm = batches[::2], batches[1::2] or batches
    steps: dict[str, float] = {}
    cycle_kwargs, num_warmups = (compiled_cycle(), NUM_WARMUPS) if compiles else ({}, 0)

    with _timed(steps, "warm_up"):
        short = {"max_new_tokens": min(WARMUP_TOKENS, max_new_tokens)} | generate_kwargs
        for kwargs in (short, {"assistant_model": draft} | short):
            answer_batch(target, *to_choose[0], **kwargs)
    with _timed(steps, "answers"):
        answers = [_answer(target, batch, i, max_new_tokens, generate_kwargs) for i, batch in enumerate(to_choose)]
    with _timed(steps, "costs"):
        settings = {"max_new_tokens": min(probe_tokens, max_new_tokens)} | generate_kwargs
        probed, probes = to_choose[:num_probe_batches], choose_probes(trees)
        curves = measure_costs(target, draft, probed, probes, num_warmups, **cycle_kwargs | settings)
    with _timed(steps, "acceptance"):
        ranks = _rank_all(target, draft, to_choose, answers, trees)
    expected = [_expect(tree, ranks[tree.draft_tree_top_k], curves, answers) for tree in trees]
    finalists = _finalists(expected, present, num_finalists, curves)
    if why_not_int8(draft) is None:
        finalists += _with_other_head(finalists)
    with _timed(steps, "confirmation"):
        runs = _confirm(target, draft, to_confirm, finalists, max_new_tokens, compiles, generate_kwargs)
    speeds = {mode: tokens_per_second(answers) for mode, answers in runs.items()}
    confirmed = [
        replace(finalist, tokens_per_second=speeds[finalist.tree], tau=_tau(runs[finalist.tree]))
        for finalist in sorted(finalists, key=lambda finalist: -speeds[finalist.tree])
    ]
    best = confirmed[0]
    best.tree.write_to(draft.generation_config)
    draft.generation_config.draft_tree_batch_size = batch_size  # type: ignore[attr-defined]  # takes any name
    return TuningResult(
        best=best,
        plain_tokens_per_second=speeds[PLAIN],
        plain_compiled_tokens_per_second=speeds.get(PLAIN_COMPILED),
        speedup_interval=_speedup_interval(runs[best.tree], runs[PLAIN]),
        confirmed=confirmed,
        curves=curves,
        num_trees=len(trees),
        step_seconds=steps,
    )


def _common_size(batches: Sequence[Batch]) -> int:
    sizes = {len(input_ids) for input_ids, _ in batches}
    if not sizes:
        raise ValueError("There is no prompt to tune on. Give at least one; a dozen like those to come is better.")
    if len(sizes) > 1:
        raise ValueError(
            f"The batches hold {' or '.join(map(str, sorted(sizes)))} prompts, but a tree is tuned for batches of "
            "one size. Give such batches, and leave out prompts that fill none."
        )
    return sizes.pop()


def _present_tree(draft: GriffinDraftModel, batch_size: int) -> TreeSettings:
    """What the draft has now, for each row of such a batch."""
    vocab_size = draft.config.proposal_vocab_size
    _, depth, width = tree_settings(draft.generation_config, vocab_size)
    num_tokens = tokens_per_row(draft.generation_config, vocab_size, batch_size)
    return TreeSettings(num_tokens, depth, width, draft_head_dtype=head_dtype(draft.generation_config))


# ---------------------------------------------------------------------- expectation


def _rank_all(
    target: PreTrainedModel,
    draft: GriffinDraftModel,
    batches: Sequence[Batch],
    answers: Sequence[TimedBatch],
    trees: Sequence[TreeSettings],
) -> dict[int, PathRanks]:
    """By width: the ranks of all rows' answers, in order."""
    known = [row for batch, answer in zip(batches, answers, strict=True) for row in _known_rows(target, batch, answer)]
    depths: dict[int, int] = {}
    for tree in trees:
        depths[tree.draft_tree_top_k] = max(depths.get(tree.draft_tree_top_k, 0), tree.draft_tree_depth)
    return {width: rank_paths(draft, known, depth, width) for width, depth in depths.items()}


def _known_rows(target: PreTrainedModel, batch: Batch, answer: TimedBatch) -> Iterator[KnownAnswers]:
    for input_ids, mask, new_tokens in zip(*batch, answer.new_tokens, strict=True):
        prompt = input_ids[mask.bool()]
        sequence = torch.cat((prompt, torch.tensor(new_tokens, device=prompt.device)))
        yield know_answers(target, [sequence], [len(prompt)])


def _expect(tree: TreeSettings, ranks: PathRanks, curves: CostCurves, answers: Sequence[TimedBatch]) -> Candidate:
    """A batch takes as many cycles as its longest row."""
    lengths = iter(ranks.acceptance_lengths(tree.num_assistant_tokens, tree.draft_tree_depth))
    seconds, num_emitted, num_cycles = 0.0, 0, 0
    for answer in answers:
        rows = [next(lengths) for _ in answer.new_tokens]
        seconds += curves.outside + max(map(len, rows)) * curves.cycle_seconds(tree)
        num_emitted, num_cycles = num_emitted + sum(map(sum, rows)), num_cycles + sum(map(len, rows))
    num_tokens = sum(len(row) for answer in answers for row in answer.new_tokens)
    tau = num_emitted / num_cycles if num_cycles else float("nan")
    return Candidate(tree, expected_tau=tau, expected_tokens_per_second=num_tokens / seconds)


def _finalists(
    expected: Sequence[Candidate], present: TreeSettings, count: int, curves: CostCurves
) -> list[Candidate]:
    """The best by expectation and what the draft has now; each of them with adaptive depth, too."""
    ordered = sorted(expected, key=lambda candidate: -(candidate.expected_tokens_per_second or 0.0))
    fixed = ordered[:count] + [candidate for candidate in ordered[count:] if candidate.tree == present]
    costs = [curves.level_cost(candidate.tree) for candidate in fixed]
    adaptive = [
        Candidate(replace(candidate.tree, draft_level_cost=cost), None, None)
        for candidate, cost in zip(fixed, costs, strict=True)
        if cost is not None
    ]
    return fixed + adaptive


def _with_other_head(finalists: Sequence[Candidate]) -> list[Candidate]:
    """The best by expectation once more, with and without adaptive depth; what the other format costs is not known."""
    best = finalists[0].tree
    return [
        Candidate(replace(finalist.tree, draft_head_dtype=None if best.draft_head_dtype else INT8), None, None)
        for finalist in finalists
        if replace(finalist.tree, draft_level_cost=None) == best
    ]


# ---------------------------------------------------------------------- real runs


def _answer(
    target: PreTrainedModel, batch: Batch, seed: int, max_new_tokens: int, generate_kwargs: dict[str, Any]
) -> TimedBatch:
    torch.manual_seed(seed)
    return answer_batch(target, *batch, max_new_tokens=max_new_tokens, **generate_kwargs)


def _confirm(
    target: PreTrainedModel,
    draft: GriffinDraftModel,
    batches: Sequence[Batch],
    finalists: Sequence[Candidate],
    max_new_tokens: int,
    compiles: bool,
    generate_kwargs: dict[str, Any],
) -> dict[Any, list[TimedBatch]]:
    """Answers to all batches, by mode: those of `PLAIN_KINDS` that are measured, and the finalists' trees."""
    plain = {d.method.name: d for d in make_decoders(target, PLAIN_KINDS if compiles else [PLAIN])}
    longest = max(input_ids.shape[1] for input_ids, _ in batches) + max_new_tokens
    with_draft = {"assistant_model": draft} | (compiled_cycle() if compiles else {})

    def answer(mode: Any, seed: int, num_tokens: int) -> TimedBatch:
        batch = batches[seed]
        if mode in plain:
            kwargs = plain[mode].generate_kwargs(len(batch[0]), longest)
            return _answer(target, batch, seed, num_tokens, kwargs | generate_kwargs)
        with draft_has(draft, mode, len(batch[0])):
            return _answer(target, batch, seed, num_tokens, with_draft | generate_kwargs)

    modes = [*plain, *(finalist.tree for finalist in finalists)]
    if compiles:
        for mode in modes * NUM_WARMUPS:
            answer(mode, 0, min(WARMUP_TOKENS, max_new_tokens))
    answers: dict[Any, list[TimedBatch]] = {mode: [] for mode in modes}
    for index in range(len(batches)):
        for mode in rotated(modes, index):
            answers[mode].append(answer(mode, index, max_new_tokens))
    return answers


def tokens_per_second(answers: Sequence[TimedBatch]) -> float:
    """New tokens of all rows over wall seconds."""
    tokens, seconds = _tokens_and_seconds(answers)
    return sum(tokens) / sum(seconds)


def _speedup_interval(ours: Sequence[TimedBatch], plain: Sequence[TimedBatch]) -> tuple[float, float] | None:
    if len(ours) < 2:
        return None
    low, high = paired_ratio_interval(*_tokens_and_seconds(ours), *_tokens_and_seconds(plain))
    return 1 + low, 1 + high


def _tokens_and_seconds(answers: Sequence[TimedBatch]) -> tuple[list[int], list[float]]:
    return [sum(map(len, answer.new_tokens)) for answer in answers], [answer.wall_seconds for answer in answers]


def _tau(answers: Sequence[TimedBatch]) -> float | None:
    lengths = [length for answer in answers for row in answer.acceptance_lengths or [] for length in row]
    return sum(lengths) / len(lengths) if lengths else None


@contextmanager
def _timed(steps: dict[str, float], name: str) -> Iterator[None]:
    stopwatch = Stopwatch(torch.device("cpu"))
    start = stopwatch.mark()
    yield
    steps[name] = stopwatch.between(start, stopwatch.mark())


__all__ = ["Candidate", "TuningResult", "tokens_per_second", "tune_tree"]
