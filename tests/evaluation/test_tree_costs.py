"""Cost curves by hand, and probes measured on a clock that counts tokens."""

import pytest
import torch
from fake_time import FakeTime, oracle_pair

from transformers_griffin.evaluation.tree_acceptance import TreeSettings
from transformers_griffin.evaluation.tree_costs import (
    CostCurves,
    TreeGrid,
    choose_probes,
    draft_has,
    interpolate,
    measure_costs,
)


def test_curves_are_straight_between_points_and_go_on_beyond_them():
    curve = {8: 30.0, 4: 20.0, 2: 10.0}
    assert [interpolate(curve, x) for x in (2, 3, 4, 6, 8)] == [10, 15, 20, 25, 30]
    assert [interpolate(curve, x) for x in (1, 12)] == [5, 40]
    assert interpolate({5: 7.0}, 100) == 7


def test_a_cycle_costs_drafting_verification_and_the_rest():
    """Width 3, 4 levels: 8 at width 2 and 20 at width 4 make 14; 6 tokens verify in 15; the rest is 1."""
    curves = CostCurves(
        verify={2: 5.0, 10: 25.0}, draft={2: {2: 4.0, 6: 12.0}, 4: {2: 10.0, 6: 30.0}}, rest=1.0, outside=9.0
    )
    assert curves.cycle_seconds(TreeSettings(6, 4, 3)) == 14 + 15 + 1


def test_grid_holds_every_combination_that_forms_a_tree():
    """Width 1 proposes as many tokens as levels; width 2 proposes 2 + 4 (d - 1): 6 and 10."""
    grid = TreeGrid(num_tokens=(2, 3, 8), depths=(2, 3), widths=(1, 2))
    found = {(tree.num_assistant_tokens, tree.draft_tree_depth, tree.draft_tree_top_k) for tree in grid.trees(61)}
    assert found == {(2, 2, 1), (3, 3, 1), (2, 2, 2), (3, 2, 2), (3, 3, 2), (8, 3, 2)}


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (TreeGrid(num_tokens=(9,), depths=(2,), widths=(1, 2)), "No tree has 9 tokens, 2 levels and a width of 1 or"),
        (TreeGrid(num_tokens=(17,), depths=(17,), widths=(1,)), "`draft_tree_depth` is 17, but must be"),
        (TreeGrid(num_tokens=(62,), depths=(1,), widths=(62,)), "`draft_tree_top_k` is 62, but must be"),
    ],
)
def test_a_grid_without_trees_or_out_of_range_is_refused(grid, message):
    with pytest.raises(ValueError, match=message):
        grid.trees(61)


def test_probes_reach_both_ends_of_every_axis():
    trees = TreeGrid().trees(1000)
    probes = choose_probes(trees)
    assert len(probes) <= 8
    assert set(probes) <= set(trees)
    for axis in ("num_assistant_tokens", "draft_tree_top_k"):
        values = {getattr(tree, axis) for tree in trees}
        assert {min(values), max(values)} <= {getattr(tree, axis) for tree in probes}
    for width in (1, 10):
        assert {1, 8} <= {tree.draft_tree_depth for tree in probes if tree.draft_tree_top_k == width}
    shapes = {(tree.draft_tree_top_k, tree.draft_tree_depth) for tree in probes}
    assert len(shapes) == 6  # three widths with two depths each: no curve of a width has a single point
    assert choose_probes(trees[:1]) == trees[:1]


def test_probes_find_the_costs_they_were_given(monkeypatch):
    """
    A verification takes 10 s and 0.5 s a node (root included); a pass 2 s and 0.1 s a node. Drafting 3 levels, 2 wide:
    a pass over what was verified, at least one token, and two passes over two nodes.
    """
    target, draft, prompt = oracle_pair(answer_length=40)
    own = draft.generation_config
    FakeTime(monkeypatch, target_forward=(10.0, 0.5), draft_pass=(2.0, 0.1))
    probes = [TreeSettings(4, 3, 2), TreeSettings(8, 3, 2), TreeSettings(8, 5, 2)]
    batch = (prompt, torch.ones_like(prompt))
    curves = measure_costs(target, draft, [batch] * 2, probes, max_new_tokens=24, do_sample=False, pad_token_id=0)
    assert curves.verify == {4: pytest.approx(12.5), 8: pytest.approx(14.5)}
    assert curves.draft[2][3] == pytest.approx(2 * 3 + 0.1 * (1 + 4), abs=0.3)
    assert curves.draft[2][5] - curves.draft[2][3] == pytest.approx(2 * 2 + 0.1 * 4, abs=0.3)
    assert curves.rest == pytest.approx(0)
    # Prefill of 6 tokens, and the first pass of the draft over them.
    assert curves.outside == pytest.approx(10 + 0.5 * 6 + 0.1 * 5, abs=1)
    assert draft.generation_config is own


def test_answers_without_a_cycle_are_refused(monkeypatch):
    target, draft, prompt = oracle_pair(answer_length=4)
    batch = (prompt, torch.ones_like(prompt))
    with pytest.raises(ValueError, match="All answers ended with their first token"):
        measure_costs(target, draft, [batch], [TreeSettings(2, 2, 1)], max_new_tokens=1, pad_token_id=0)


def test_a_draft_has_a_tree_only_for_a_while():
    _, draft, _ = oracle_pair(answer_length=4)
    own = draft.generation_config
    with draft_has(draft, TreeSettings(9, 4, 3)):
        assert draft.generation_config.num_assistant_tokens == 9
    assert draft.generation_config is own
