"""
Decoding with a draft that proposes some of the target's tokens: the same answers, from trees of these tokens only.

The pair is trained, so that trees matter; of its 517 tokens the draft may propose every second one unless told.
"""

from collections.abc import Iterable

import pytest
import torch
from generation_helpers import assert_batch_lossless, assert_lossless, generate_both, golden_pair, golden_prompts

from transformers_griffin.decoding.draft_head import DraftHead
from transformers_griffin.evaluation import answer_hits
from transformers_griffin.evaluation.cycle_trees import record_trees
from transformers_griffin.evaluation.replay import know_answers, replay_acceptance
from transformers_griffin.evaluation.tree_acceptance import rank_paths


HALF = range(0, 517, 2)


def truncated_pair(token_ids: Iterable[int] = HALF):
    target, draft = golden_pair()
    draft.config.eos_token_id = None
    return target, draft.truncate_vocabulary(list(token_ids))


def drafted_trees(pair, prompt, **kwargs):
    with record_trees() as trees:
        generate_both(pair, prompt, **kwargs)
    return trees


@pytest.mark.parametrize("prompt", golden_prompts(), ids=lambda prompt: f"{prompt.shape[1]} tokens")
def test_greedy_answers_are_those_of_the_target_with_half_of_its_tokens(prompt):
    pair = truncated_pair()
    plain, ours = generate_both(pair, prompt)
    assert_lossless(plain, ours, prompt.shape[1])
    assert any(token % 2 for token in ours.sequences[0, prompt.shape[1] :].tolist()), "the target needs the other half"


def test_greedy_answers_of_a_batch_are_those_of_the_target_with_half_of_its_tokens():
    assert_batch_lossless(truncated_pair())


def test_a_sampled_answer_with_a_seed_comes_again():
    """The law of sampled tokens is independent of what is drafted (test_sampling_law.py); here that sampling runs."""
    pair, prompt = truncated_pair(), golden_prompts()[0]
    answers = []
    for _ in range(2):
        torch.manual_seed(3)
        output = pair[0].generate(
            prompt, assistant_model=pair[1], do_sample=True, max_new_tokens=20, return_dict_in_generate=True
        )
        answers.append(output.sequences.tolist())
        assert max(output.acceptance_lengths[0]) > 1
    assert answers[0] == answers[1]


def test_a_map_of_all_tokens_gives_the_trees_of_no_map():
    prompt = golden_prompts()[0]
    without, with_map = drafted_trees(golden_pair(), prompt), drafted_trees(truncated_pair(range(517)), prompt)
    assert len(without) == len(with_map) > 3
    for tree, other in zip(without, with_map, strict=True):
        assert torch.equal(tree.tokens, other.tokens)
        assert torch.equal(tree.parents, other.parents)
        assert torch.equal(tree.scores, other.scores)


def test_tokens_outside_the_map_are_never_proposed():
    prompt = golden_prompts()[0]
    proposed = {token for tree in drafted_trees(truncated_pair(), prompt) for token in tree.tokens[0, 1:].tolist()}
    assert len(proposed) > 10
    assert not any(token % 2 for token in proposed)
    unrestricted = {token for tree in drafted_trees(golden_pair(), prompt) for token in tree.tokens[0, 1:].tolist()}
    assert any(token % 2 for token in unrestricted)


def test_proposals_are_the_best_tokens_of_the_map(monkeypatch):
    """Children of the root, best first: what the whole head says of the map's tokens."""
    target, draft = truncated_pair()
    prompt = golden_prompts()[0]
    whole: list[torch.Tensor] = []
    original = DraftHead.logits

    def logits(head, predict):
        whole.append(draft.compute_logits(predict))
        return original(head, predict)

    monkeypatch.setattr(DraftHead, "logits", logits)
    (tree, *_) = drafted_trees((target, draft), prompt, max_new_tokens=4)
    of_the_map = whole[0][0, 0].clone()
    of_the_map[1::2] = -torch.inf
    children = tree.tokens[0][(tree.parents[0] == 0) & (tree.depths[0] == 1)].tolist()
    assert len(children) > 1
    assert children == of_the_map.topk(len(children)).indices.tolist()


def test_a_level_is_no_wider_than_the_map():
    target, draft = truncated_pair([10, 20, 30])
    prompt = golden_prompts()[0]
    draft.generation_config.update(num_assistant_tokens=6, draft_tree_depth=3, draft_tree_top_k=3)
    plain, ours = generate_both((target, draft), prompt, max_new_tokens=5)
    assert ours.sequences.tolist() == plain.sequences.tolist()
    draft.generation_config.draft_tree_top_k = 4
    with pytest.raises(ValueError, match="`draft_tree_top_k` is 4, but must be an integer from 1 to 3"):
        generate_both((target, draft), prompt, max_new_tokens=5)


# ---------------------------------------------------------------------- what evaluation says of such drafts


def test_replays_and_expected_trees_have_the_acceptance_lengths_of_generate():
    target, draft = truncated_pair()
    prompt = golden_prompts()[0]
    _, ours = generate_both((target, draft), prompt)
    answers = know_answers(target, [ours.sequences[0]], [prompt.shape[1]])
    assert replay_acceptance(draft, answers) == ours.acceptance_lengths
    ranks = rank_paths(draft, [answers], depth=4, top_k=4)
    assert ranks.acceptance_lengths(num_tokens=15, depth=4) == ours.acceptance_lengths


def test_a_token_outside_the_map_is_never_a_hit():
    """Nor does a map of fewer tokens than are asked for do harm."""
    target, draft = truncated_pair()
    prompt = golden_prompts()[0]
    plain, _ = generate_both((target, draft), prompt)
    looked_for = plain.sequences[0, prompt.shape[1] + 1 :]  # by the chains, in order, in pass 1
    hits = answer_hits(target, draft, plain.sequences, prompt.shape[1], num_passes=1, top_k=(5,))[0, 0]
    whole = answer_hits(target, golden_pair()[1].bind(target), plain.sequences, prompt.shape[1], 1, (5,))[0, 0]
    is_outside = looked_for % 2 == 1
    assert whole[is_outside].any()
    assert not hits[is_outside].any()
    assert hits[~is_outside].sum() >= whole[~is_outside].sum() > 0
    draft.truncate_vocabulary([int(looked_for[0]), 0])
    few = answer_hits(target, draft, plain.sequences, prompt.shape[1], num_passes=1, top_k=(5,))[0, 0]
    assert few.tolist() == [int(token) in draft.token_map for token in looked_for]
