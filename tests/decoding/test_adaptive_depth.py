"""A depth for every cycle: chosen as it pays, learnt from what was emitted, and never seen in the answer."""

from typing import Any

import pytest
from architectures import ARCHITECTURES, Architecture
from batches import decode_batch_plainly
from exactness import GREEDY, NUM_NEW_TOKENS, decode_plainly

from noisy_oracle import noisy_oracle, rows_are_followed
from transformers_griffin import GriffinCandidateGenerator, GriffinGenerateOutput
from transformers_griffin.decoding.adaptive_depth import DECAY, PRIOR, WEIGHT, AdaptiveDepth
from transformers_griffin.decoding.tree_settings import tokens_at_depth


__all__ = ["rows_are_followed"]

TREE = (14, 6, 3)
LEVEL_COST = 0.2
FEW = ("Llama", "Mistral, window", "Gemma 3, alternating windows", "GPT-2, learned positions", "Bloom, ALiBi")


# ---------------------------------------------------------------------- the choice


def test_depths_are_halves_of_each_other():
    assert AdaptiveDepth(8, 0.1, 1).depths == [8, 4, 2, 1]
    assert AdaptiveDepth(6, 0.1, 1).depths == [6, 3, 2, 1]
    assert AdaptiveDepth(1, 0.1, 1).depths == [1]


@pytest.mark.parametrize(
    ("level_cost", "depth"),
    # Tokens at a rate of 0.6: 1.6, 1.96, 2.176 and 2.38 for 1, 2, 3 and 6 levels.
    [
        (0.01, 6),  # 1.58, 1.92, 2.11, 2.25 for the cost
        (0.1, 3),  # 1.45, 1.63, 1.67, 1.49
        (0.2, 2),  # 1.33, 1.40, 1.36, 1.08
        (0.5, 1),  # 1.07, 0.98, 0.87, 0.60
    ],
)
def test_a_fresh_answer_drafts_what_pays_at_the_prior_rate(level_cost, depth):
    assert PRIOR == 0.6
    assert AdaptiveDepth(6, level_cost, 1).choose() == depth


def test_followed_cycles_draft_deeper_and_rejected_ones_shallower():
    adaptive = AdaptiveDepth(6, LEVEL_COST, 1)
    depths = []
    for emitted in [3, 3, 4, 4, 7, 7, *[1] * 10]:
        depths.append(adaptive.choose())
        adaptive.learn(depths[-1], [min(emitted, depths[-1] + 1)])
    assert depths[0] == 2
    assert max(depths) == 6
    assert depths[depths.index(6) :] == sorted(depths[depths.index(6) :], reverse=True)
    assert depths[-1] == 1


def test_rates_count_levels_that_were_tried_old_ones_less():
    """Two of four levels followed (three tried), then all three; the first cycle counts 0.8 by then."""
    adaptive = AdaptiveDepth(6, LEVEL_COST, 1)
    adaptive.learn(4, [3])
    adaptive.learn(3, [4])
    assert adaptive.followed == pytest.approx([0.8 * 2 + 3])
    assert adaptive.tried == pytest.approx([0.8 * 3 + 3])
    assert (DECAY, WEIGHT) == (0.8, 2.0)


def test_rows_of_a_batch_are_learnt_about_each_and_drafted_for_together():
    """One row follows everything, one nothing; when one of them leaves the batch the other decides alone."""
    depths = []
    for kept in ([0, 1], [0], [1]):
        adaptive = AdaptiveDepth(6, LEVEL_COST, 2)
        for _ in range(8):
            adaptive.learn(6, [7, 1])
        adaptive.keep_rows(kept)
        depths.append(adaptive.choose())
    assert depths == [6, 6, 1]


def test_rows_that_have_ended_in_the_batch_have_no_say():
    adaptive = AdaptiveDepth(6, LEVEL_COST, 2)
    for _ in range(8):
        adaptive.learn(6, [7, 1])
    adaptive.learn(6, [0, 1])
    assert adaptive.choose() == 1
    assert adaptive.tried[0] == pytest.approx(6 * sum(DECAY**i for i in range(8)))


@pytest.mark.parametrize(
    ("tree", "shallower", "num_tokens"),
    [((14, 6, 2), 6, 14), ((14, 6, 2), 3, 7), ((14, 6, 2), 2, 5), ((14, 6, 2), 1, 2), ((5, 5, 1), 3, 3)],
)
def test_shallower_trees_have_as_many_tokens_for_each_level(tree, shallower, num_tokens):
    """And no more than they can propose: two on the only level of a tree two wide."""
    assert tokens_at_depth(*tree, shallower) == num_tokens


# ---------------------------------------------------------------------- generate()


@pytest.fixture
def depths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The depth of every tree that is drafted."""
    found: list[int] = []
    draft_tree = GriffinCandidateGenerator.draft_tree

    def spy(self: GriffinCandidateGenerator, *args: Any, **kwargs: Any) -> Any:
        found.append(self.depth)
        return draft_tree(self, *args, **kwargs)

    monkeypatch.setattr(GriffinCandidateGenerator, "draft_tree", spy)
    return found


def decode(plain: Any, level_cost: float = LEVEL_COST, **kwargs: Any) -> GriffinGenerateOutput:
    draft = noisy_oracle(plain.target, plain.output.sequences, TREE)
    draft.generation_config.draft_level_cost = level_cost
    return plain.target.generate(plain.prompt, assistant_model=draft, **(GREEDY | kwargs))


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(a, id=a.name, marks=() if a.name in FEW else pytest.mark.slow) for a in ARCHITECTURES],
)
def test_greedy_answer_is_that_of_plain_decoding(architecture: Architecture, depths: list[int]):
    plain = decode_plainly(architecture, 20)
    ours = decode(plain)
    assert ours.sequences.tolist() == plain.output.sequences.tolist()
    assert sum(ours.acceptance_lengths[0]) == NUM_NEW_TOKENS - 1
    assert len(set(depths)) >= 2
    assert all(emitted <= depth + 1 for emitted, depth in zip(ours.acceptance_lengths[0], depths, strict=True))


def test_every_cycle_has_the_same_depth_unless_asked(depths: list[int]):
    plain = decode_plainly(ARCHITECTURES[0], 20)
    draft = noisy_oracle(plain.target, plain.output.sequences, TREE)
    plain.target.generate(plain.prompt, assistant_model=draft, **GREEDY)
    assert set(depths) == {6}


@pytest.mark.usefixtures("rows_are_followed")
def test_rows_of_a_batch_are_those_of_plain_decoding(depths: list[int]):
    """Also when one of them ends early and leaves the batch."""
    plain = decode_batch_plainly(ARCHITECTURES[0])
    draft = noisy_oracle(plain.target, [plain.without_padding(row) for row in range(3)], TREE)
    draft.generation_config.draft_level_cost = LEVEL_COST
    draft.generation_config.draft_tree_batch_size = 3
    ours = plain.target.generate(
        plain.prompts,
        attention_mask=plain.mask,
        assistant_model=draft,
        max_new_tokens=plain.num_new,
        do_sample=False,
        eos_token_id=plain.ends_at(1, 8),
        pad_token_id=0,
    )
    assert ours[:, plain.prompts.shape[1] :].tolist() == [
        row[plain.prompts.shape[1] :] for row in plain.cut_behind(plain.ends_at(1, 8))
    ]
    assert len(set(depths)) >= 2


@pytest.mark.parametrize("cost", [0, -0.1, float("inf"), float("nan"), "cheap", True])
def test_a_cost_that_is_none_is_refused(cost: Any):
    plain = decode_plainly(ARCHITECTURES[0], 20)
    with pytest.raises(ValueError, match=f"`draft_level_cost` is {cost!r}, but must be a positive number"):
        decode(plain, level_cost=cost)


def test_the_setting_is_saved_and_loaded(tmp_path: Any):
    from transformers import AutoModel

    plain = decode_plainly(ARCHITECTURES[0], 20)
    draft = noisy_oracle(plain.target, plain.output.sequences, TREE)
    draft.generation_config.draft_level_cost = 0.125
    draft.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert GriffinCandidateGenerator(loaded).adaptive_depth.level_cost == 0.125
