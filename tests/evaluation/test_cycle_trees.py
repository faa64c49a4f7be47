"""The recorded trees of an answer, and the paths that follow from its tokens."""

import math

import pytest
import torch

from conftest import golden_case, tiny_llama
from transformers_griffin import GriffinCandidateGenerator, GriffinDraftModel
from transformers_griffin.decoding.draft_tree import DraftTree, ancestor_mask
from transformers_griffin.evaluation import CycleTree, cycle_trees, record_trees


def hand_tree() -> DraftTree:
    """
    Tokens with their probabilities given the path (cumulative scores are their logarithms' sums)::

        5 -- 6 (0.5) -- 8 (0.4)
         |         `--- 9 (0.2)
         `- 7 (0.25)
    """
    parents = torch.tensor([[0, 0, 0, 1, 1]])
    ancestors = ancestor_mask(parents, depth=2)
    return DraftTree(
        tokens=torch.tensor([[5, 6, 7, 8, 9]]),
        parents=parents,
        depths=ancestors.sum(dim=-1) - 1,
        ancestors=ancestors,
        scores=torch.tensor([[1.0, 0.5, 0.25, 0.2, 0.1]]).log(),
    )


@pytest.mark.parametrize(
    ("emitted", "accepted", "bonus"),
    [
        ([6, 9, 3], [0, 1, 4], 3),
        ([6, 7], [0, 1], 7),  # 7 was drafted, but not behind 6
        ([8], [0], 8),
        ([6, 8], [0, 1, 3], None),  # the answer ended on the path
    ],
)
def test_the_path_is_where_the_emitted_tokens_lead(emitted, accepted, bonus):
    cycle = CycleTree.from_emitted(hand_tree(), emitted)
    assert (cycle.accepted, cycle.bonus, cycle.num_emitted) == (accepted, bonus, len(emitted))


def test_probabilities_are_those_given_the_path():
    cycle = CycleTree.from_emitted(hand_tree(), [6])
    assert [cycle.probability(node) for node in range(5)] == pytest.approx([1.0, 0.5, 0.25, 0.4, 0.2])
    impossible = CycleTree([5, 6, 7], [0, 0, 1], [0.0, -math.inf, -math.inf], [0], 3)
    assert [impossible.probability(node) for node in (1, 2)] == [0.0, 0.0]


def test_children_are_sorted_by_probability():
    cycle = CycleTree(tokens=[1, 2, 3, 4], parents=[0] * 4, scores=[0.0, -2.0, -1.0, -3.0], accepted=[0], bonus=9)
    assert cycle.children(0) == [2, 1, 3]
    assert cycle.children(2) == []


def test_every_cycle_of_an_answer_is_recorded_and_the_answer_is_unchanged():
    """A released draft: the recorded paths spell the answer, and stay below the acceptance lengths by the bonus."""
    target, draft = golden_case("llama_gqa")
    prompt = torch.tensor([[3, 14, 15, 92, 65]])
    settings = {"assistant_model": draft, "max_new_tokens": 24, "do_sample": False, "return_dict_in_generate": True}
    expected = target.generate(prompt, **settings)
    with record_trees() as trees:
        output = target.generate(prompt, **settings)
    assert torch.equal(output.sequences, expected.sequences)

    cycles = cycle_trees(trees, output)
    assert [cycle.num_emitted for cycle in cycles] == output.acceptance_lengths[0]
    spelled = []
    for cycle in cycles:
        spelled += [cycle.tokens[node] for node in cycle.accepted[1:]] + [cycle.bonus] * (cycle.bonus is not None)
    assert spelled == output.sequences[0, 6:].tolist()
    assert any(len(cycle.accepted) > 1 for cycle in cycles), "the draft hits sometimes, or the test shows nothing"


def test_recording_ends_with_the_block_even_after_an_error():
    def fail_while_recording() -> None:
        with record_trees():
            assert GriffinCandidateGenerator.draft_tree is not original
            raise RuntimeError("stop")

    original = GriffinCandidateGenerator.draft_tree
    with pytest.raises(RuntimeError, match="stop"):
        fail_while_recording()
    assert GriffinCandidateGenerator.draft_tree is original


def test_trees_of_two_answers_are_refused():
    target = tiny_llama()
    draft = GriffinDraftModel.from_target(target)
    settings = {"assistant_model": draft, "max_new_tokens": 2, "do_sample": False, "return_dict_in_generate": True}
    with record_trees() as trees:
        for _ in range(2):
            output = target.generate(torch.tensor([[5, 9]]), pad_token_id=0, **settings)
    with pytest.raises(ValueError, match=r"2 trees were recorded, but the answer has 1 cycles\. Open"):
        cycle_trees(trees, output)
