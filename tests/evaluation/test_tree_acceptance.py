"""Acceptance of many trees from one drafting a position, against replays of each of them."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from transformers_griffin.decoding.draft_tree import CandidatePool
from transformers_griffin.evaluation.replay import know_answers, replay_acceptance
from transformers_griffin.evaluation.tree_acceptance import PathRanks, TreeSettings, _path_ranks, rank_paths


MINI = Path(__file__).parents[2] / "examples" / "mini"
TREES = [
    *(TreeSettings(n, d, 4) for n, d in [(4, 1), (4, 4), (6, 2), (6, 4), (11, 3), (20, 2), (25, 4), (52, 4)]),
    *(TreeSettings(n, n, 1) for n in (1, 3, 4)),
]


@pytest.fixture(scope="module")
def pair():
    target = AutoModelForCausalLM.from_pretrained(MINI / "target", dtype="float32").eval()
    return target, AutoModel.from_pretrained(MINI / "draft", dtype="float32").eval().bind(target)


@pytest.fixture(scope="module")
def answers(pair):
    """Two sampled answers, one greedy answer and one that ends with its first token."""
    target, _ = pair
    known = []
    for seed, (prompt_length, new_tokens, do_sample) in enumerate(
        [(3, 40, True), (12, 9, True), (20, 30, False), (5, 1, False)]
    ):
        torch.manual_seed(seed)
        prompt = torch.arange(300 + seed, 300 + seed + prompt_length).unsqueeze(0)
        sequence = target.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=new_tokens,
            do_sample=do_sample,
            pad_token_id=0,
        )
        known.append(know_answers(target, [sequence[0]], [prompt_length]))
    return known


def test_ranks_give_the_cycles_of_every_tree(pair, answers):
    _, draft = pair
    draft.generation_config.draft_head_dtype = None
    ranks = {top_k: rank_paths(draft, answers, depth=4, top_k=top_k, roots_at_once=7) for top_k in (1, 4)}
    taus = set()
    for tree in TREES:
        config = tree.copied_into(draft.generation_config)
        expected = [replay_acceptance(draft, answer, config)[0] for answer in answers]
        found = ranks[tree.draft_tree_top_k].acceptance_lengths(tree.num_assistant_tokens, tree.draft_tree_depth)
        assert found == expected, tree
        assert found[3] == []  # the prefill yields the only token
        taus.add(sum(map(sum, found)) / sum(map(len, found)))
    assert len(taus) > 6
    assert max(taus) > 2


def test_a_path_is_ranked_in_the_pool_of_every_depth():
    """
    Width 2, depth 2; the answer goes on with A, D::

        pool      A -0.2   B -2.0 | AC -0.5   AD -1.0   BE -2.5   BF -3.0

    A is the best of both pools. AD is third of the deeper pool, behind A and AC; the pool of one level does not hold
    it, but a tree of one level never asks. The path X leaves the tree at once.
    """
    pool = CandidatePool(
        tokens=torch.tensor([[10, 11, 12, 13, 14, 15]] * 2),
        scores=torch.tensor([[-0.2, -2.0, -0.5, -1.0, -2.5, -3.0]] * 2),
        parents=torch.tensor([[-1, -1, 0, 0, 1, 1]] * 2),
    )
    ranks = _path_ranks(pool, torch.tensor([[10, 13], [99, 13]]), depth=2, top_k=2)
    assert ranks[0, 0, 0] == 0
    assert ranks[0, 1].tolist() == [0, 2]
    assert ranks[1].tolist() == [[6, 6], [6, 6]]
    accepted = {n: PathRanks([ranks[:1]]).acceptance_lengths(n, 2) for n in (1, 2, 3)}
    assert accepted == {1: [[1]], 2: [[1]], 3: [[1]]}  # one token is left of the answer, whatever is accepted


def test_equal_scores_rank_by_pool_index():
    """A certain child scores like its parent and stands behind it."""
    pool = CandidatePool(
        tokens=torch.tensor([[10, 11]]), scores=torch.tensor([[0.0, 0.0]]), parents=torch.tensor([[-1, 0]])
    )
    assert _path_ranks(pool, torch.tensor([[10, 11]]), depth=2, top_k=1)[0, 1].tolist() == [0, 1]


def test_cycles_walk_from_root_to_root():
    """Roots would accept 3, 9, 9, 1 and 9 tokens of the path: cycles at roots 0, 3 and 4, the last one cut."""
    accepted = torch.tensor([2, 8, 8, 0, 8])
    levels = torch.arange(8)
    ranks = torch.where(levels < accepted.unsqueeze(1), 0, 99).unsqueeze(1).expand(-1, 8, -1)
    assert PathRanks([ranks]).acceptance_lengths(1, 8) == [[3, 1, 1]]
