"""Tuning on a clock that only models move: the fastest tree is known, and must be found."""

import json
import time
from dataclasses import replace

import pytest
import torch
from cheap_compiler import cheap_compiler
from fake_time import FakeTime, oracle_pair

from transformers_griffin import GriffinCandidateGenerator
from transformers_griffin.decoding import draft_head
from transformers_griffin.evaluation.answers import TimedBatch, answer_batch
from transformers_griffin.evaluation.tree_acceptance import PathRanks, TreeSettings
from transformers_griffin.evaluation.tree_costs import CostCurves, TreeGrid, draft_has
from transformers_griffin.evaluation.tuning import _expect, tokens_per_second, tune_tree


__all__ = ["cheap_compiler"]

GRID = TreeGrid(num_tokens=(2, 4, 16), depths=(2, 4), widths=(1, 4))
SETTINGS = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0}


@pytest.fixture
def pair():
    target, draft, prompt = oracle_pair(answer_length=50)
    draft.generation_config.update(num_assistant_tokens=2, draft_tree_depth=2, draft_tree_top_k=1)
    return target, draft, [(prompt, torch.ones_like(prompt))]


def run_grid(target, draft, batches) -> tuple[dict[TreeSettings, float], float]:
    """Every tree for real: tokens per second of each, and of plain decoding."""
    speeds = {}
    for tree in GRID.trees(61):
        with draft_has(draft, tree):
            speeds[tree] = tokens_per_second(
                [answer_batch(target, *b, assistant_model=draft, **SETTINGS) for b in batches]
            )
    return speeds, tokens_per_second([answer_batch(target, *b, **SETTINGS) for b in batches])


@pytest.mark.parametrize(
    ("target_forward", "draft_pass", "best"),
    [
        ((10.0, 0.001), (0.1, 0.001), (4, 4, 4)),  # tokens and passes are nearly free
        ((10.0, 2.0), (0.5, 0.01), (2, 2, 1)),  # every verified token costs
        ((10.0, 0.1), (3.0, 0.1), (4, 2, 4)),  # passes are expensive
    ],
)
def test_the_winner_is_as_fast_as_the_best_of_the_whole_grid(pair, monkeypatch, target_forward, draft_pass, best):
    target, draft, batches = pair
    FakeTime(monkeypatch, target_forward, draft_pass)
    speeds, plain = run_grid(target, draft, batches)
    assert max(speeds, key=speeds.get) == TreeSettings(*best)
    assert min(speeds.values()) < 0.9 * max(speeds.values())
    result = tune_tree(target, draft, batches, GRID, num_finalists=2, **SETTINGS)
    assert result.best.tokens_per_second >= 0.98 * max(speeds.values())
    fixed = next(candidate for candidate in result.confirmed if candidate.tree.draft_level_cost is None)
    assert fixed.tokens_per_second == pytest.approx(speeds[fixed.tree])
    assert fixed.expected_tokens_per_second == pytest.approx(fixed.tokens_per_second, rel=0.05)
    assert fixed.expected_tau == fixed.tau
    assert result.plain_tokens_per_second == pytest.approx(plain)
    assert result.speedup_ratio == pytest.approx(result.best.tokens_per_second / plain)
    assert result.is_recommended
    assert result.num_trees == len(speeds)
    assert TreeSettings.of(draft.generation_config) == result.best.tree


def test_a_draft_slower_than_plain_decoding_is_not_recommended(pair, monkeypatch):
    target, draft, batches = pair
    FakeTime(monkeypatch, target_forward=(1.0, 1.0), draft_pass=(9.0, 0.0))
    result = tune_tree(target, draft, batches, GRID, num_finalists=1, **SETTINGS)
    assert not result.is_recommended
    assert result.best.tokens_per_second < result.plain_tokens_per_second
    # And the tree that the draft had; both also with adaptive depth, and the best one with the head in int8.
    assert len(result.confirmed) == 6
    as_json = json.loads(json.dumps(result.as_dict()))
    assert as_json["is_recommended"] is False
    assert as_json["best"]["tree"] == vars(result.best.tree)
    assert set(as_json["step_seconds"]) == {"warm_up", "answers", "costs", "acceptance", "confirmation"}


def test_the_present_tree_competes_even_if_the_grid_lacks_it(pair, monkeypatch):
    """Where tokens and passes are nearly free the present tree beats the only chain."""
    target, draft, batches = pair
    present = TreeSettings(4, 4, 4)
    draft.generation_config.update(**vars(present))
    FakeTime(monkeypatch, target_forward=(10.0, 0.001), draft_pass=(0.1, 0.001))
    grid = TreeGrid(num_tokens=(2,), depths=(2,), widths=(1,))
    assert tune_tree(target, draft, batches, grid, num_finalists=1, **SETTINGS).best.tree == present


def test_a_tree_tuned_for_a_batch_is_the_tree_of_each_of_its_rows(pair, monkeypatch):
    """Tokens are nearly free: no row gets less than the best tree, though a batch would share a single prompt's."""
    target, draft, [(prompt, mask)] = pair
    FakeTime(monkeypatch, target_forward=(10.0, 0.001), draft_pass=(0.1, 0.001))
    batches = [(prompt.repeat(2, 1), mask.repeat(2, 1))]
    result = tune_tree(target, draft, batches, GRID, num_finalists=1, **SETTINGS)
    assert replace(result.best.tree, draft_level_cost=None) == TreeSettings(4, 4, 4)
    fixed = next(candidate for candidate in result.confirmed if candidate.tree.draft_level_cost is None)
    assert fixed.tau == fixed.expected_tau
    assert draft.generation_config.draft_tree_batch_size == 2
    assert GriffinCandidateGenerator(draft, batch_size=2).num_draft_tokens == 4


def test_sampled_answers_are_tuned_for_as_well(pair):
    target, draft, batches = pair
    sampling = {"max_new_tokens": 24, "do_sample": True, "temperature": 0.7, "pad_token_id": 0}
    start = time.perf_counter()
    result = tune_tree(target, draft, batches, GRID, num_finalists=1, **sampling)
    assert 0 < sum(result.step_seconds.values()) <= time.perf_counter() - start
    assert result.best.tau >= 1


def test_a_batch_takes_as_many_cycles_as_its_longest_row():
    """
    Two rows of 6 and 2 tokens after the first; a cycle accepts one drafted token: 3 cycles and 1, of 2 s each, and 4 s
    outside. 10 tokens in 10 s. The second batch is one row of one token: 1 token in 4 s. tau is 8 / 4.
    """
    ranks = PathRanks([torch.zeros(n, 1, 1, dtype=torch.long) for n in (6, 2, 0)])
    curves = CostCurves(verify={1: 1.0}, draft={1: {1: 0.5}}, rest=0.5, outside=4.0)
    answers = [TimedBatch(rows, 1.0, None, None, None, None, None) for rows in ([[1] * 7, [1] * 3], [[1]])]
    candidate = _expect(TreeSettings(1, 1, 1), ranks, curves, answers)
    assert candidate.expected_tokens_per_second == pytest.approx(11 / 14)
    assert candidate.expected_tau == 2


@pytest.mark.parametrize(("dtype", "other"), [(None, "int8"), ("int8", None)])
def test_the_best_tree_is_run_with_the_head_in_the_other_format_too(pair, monkeypatch, dtype, other):
    """An oracle's logits are no products with the head: read in int8 it knows nothing, and as it is it must win."""
    target, draft, batches = pair
    draft.generation_config.draft_head_dtype = dtype
    FakeTime(monkeypatch, target_forward=(10.0, 0.001), draft_pass=(0.1, 0.001))
    result = tune_tree(target, draft, batches, GRID, num_finalists=1, **SETTINGS)
    trees = [candidate.tree for candidate in result.confirmed]
    (best,) = {replace(tree, draft_level_cost=None) for tree in trees if tree.draft_head_dtype == other}
    assert [tree.draft_head_dtype for tree in trees].count(other) == 2, "the same depth in every cycle, or not"
    assert replace(best, draft_head_dtype=dtype) in trees
    assert result.best.tree.draft_head_dtype is None
    assert TreeSettings.of(draft.generation_config) == result.best.tree
    assert {str(tree).endswith(" wide, head in int8") for tree in trees} == {True, False}


def test_a_head_that_cannot_be_read_in_int8_is_not_tried(pair, monkeypatch):
    target, draft, batches = pair
    monkeypatch.setattr(draft_head, "_has_operator", lambda device: False)
    result = tune_tree(target, draft, batches, GRID, num_finalists=1, **SETTINGS)
    assert {candidate.tree.draft_head_dtype for candidate in result.confirmed} == {None}


def test_no_prompt_is_refused(pair):
    target, draft, _ = pair
    with pytest.raises(ValueError, match="There is no prompt to tune on"):
        tune_tree(target, draft, [])


def test_batches_of_different_sizes_are_refused(pair):
    """What is chosen for eight rows and confirmed on four says nothing about either."""
    target, draft, [(prompt, mask)] = pair
    with pytest.raises(ValueError, match="The batches hold 1 or 2 prompts, but a tree is tuned for"):
        tune_tree(target, draft, [(prompt, mask), (prompt.repeat(2, 1), mask.repeat(2, 1))])


def test_the_speedup_has_an_interval_over_the_batches_of_the_real_runs(pair, monkeypatch):
    """Two batches that are alike leave no doubt; one batch says nothing about doubt."""
    target, draft, batches = pair
    FakeTime(monkeypatch, target_forward=(10.0, 0.1), draft_pass=(0.1, 0.001))
    result = tune_tree(target, draft, 4 * batches, GRID, num_finalists=1, **SETTINGS)
    assert result.speedup_interval == pytest.approx((result.speedup_ratio, result.speedup_ratio))
    assert tune_tree(target, draft, 2 * batches, GRID, num_finalists=1, **SETTINGS).speedup_interval is None


def test_a_depth_that_adapts_is_saved_with_its_cost_where_it_is_faster(pair, monkeypatch):
    """
    A forward takes 10 s and 0.1 s a token, a pass of the draft 1 s: going down to level 2 takes 1.2 s more than the
    11.3 s of a cycle with two tokens on one level, or 0.12 of a cycle without any, 10.1 s.
    """
    target, draft, batches = pair
    FakeTime(monkeypatch, target_forward=(10.0, 0.1), draft_pass=(1.0, 0.0))
    result = tune_tree(target, draft, batches, TreeGrid((4,), (1, 2), (4,)), num_finalists=1, **SETTINGS)
    adaptive = next(candidate for candidate in result.confirmed if candidate.tree.draft_level_cost is not None)
    assert adaptive.tree.draft_level_cost == pytest.approx(1.2 / 10.1)
    assert adaptive.expected_tokens_per_second is None
    assert TreeSettings.of(draft.generation_config) == result.best.tree
    result.confirmed[1].tree.write_to(draft.generation_config)
    assert TreeSettings.of(draft.generation_config) == result.confirmed[1].tree != result.best.tree


def test_what_a_level_costs_is_unknown_for_one_depth():
    curves = CostCurves(verify={2: 1.0, 4: 1.2}, draft={1: {2: 0.5}}, rest=0.1, outside=0.0)
    assert curves.level_cost(TreeSettings(4, 2, 1)) is None
    curves = CostCurves(verify={2: 1.0, 4: 1.2}, draft={1: {1: 0.3, 2: 0.5}}, rest=0.1, outside=0.0)
    assert curves.level_cost(TreeSettings(4, 1, 1)) is None
    assert curves.level_cost(TreeSettings(4, 2, 1)) == pytest.approx(0.5 / 0.8)  # one token fewer without the level


def test_compiled_cycles_are_tuned_beside_compiled_plain_decoding(pair, cheap_compiler):
    target, draft, batches = pair
    grid = TreeGrid(num_tokens=(2,), depths=(2,), widths=(1,))
    plain = tune_tree(target, draft, batches, grid, **SETTINGS)
    assert plain.plain_compiled_tokens_per_second is None
    assert cheap_compiler == []
    result = tune_tree(target, draft, batches, grid, compiles=True, **SETTINGS)
    assert len(cheap_compiler) > 3, "plain steps, drafting, verification and compaction"
    assert result.plain_compiled_tokens_per_second > 0
    assert result.best.tau == plain.best.tau


def test_a_tree_that_only_beats_decoding_without_compilation_is_not_recommended(pair, monkeypatch):
    target, draft, batches = pair
    FakeTime(monkeypatch, target_forward=(10.0, 0.1), draft_pass=(0.1, 0.001))
    result = tune_tree(target, draft, batches, GRID, num_finalists=1, **SETTINGS)
    assert result.is_recommended
    faster = result.best.tokens_per_second + 1
    assert not replace(result, plain_compiled_tokens_per_second=faster).is_recommended
