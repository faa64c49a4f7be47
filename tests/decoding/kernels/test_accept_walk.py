"""The walk accepts what `accept_path` accepts."""

import pytest
import torch
from kernel_cases import DEVICE, chain, random_tree

from transformers_griffin.decoding.draft_tree import DraftTree
from transformers_griffin.decoding.kernels.accept_walk import accept_walk
from transformers_griffin.decoding.verification import accept_path


def agreeable_choices(tree: DraftTree, seed: int) -> torch.Tensor:
    """After four of five nodes with children the target chooses one of them, else a token that nobody drafted."""
    generator = torch.Generator().manual_seed(seed)
    choices = torch.full_like(tree.tokens, 1000)
    # Later nodes overwrite earlier ones: any child may be the chosen one.
    for row in range(tree.tokens.shape[0]):
        for node in range(1, tree.tokens.shape[1]):
            if torch.rand((), generator=generator) < 0.8:
                choices[row, tree.parents[row, node]] = tree.tokens[row, node]
    return choices


def test_worked_example():
    """The example of the docstring, with tokens A = 7, B = 8, C = 9."""
    parents = torch.tensor([[0, 0, 1]], device=DEVICE)
    draft_tokens = torch.tensor([[5, 7, 8]], device=DEVICE)
    target_tokens = torch.tensor([[7, 9, 5]], device=DEVICE)
    nodes, tokens, lengths = accept_walk(parents, draft_tokens, target_tokens, path_length=3)
    assert (nodes.tolist(), tokens.tolist(), lengths.tolist()) == ([[0, 1, 1]], [[7, 9, 9]], [2])


@pytest.mark.parametrize("n_nodes", [1, 2, 7, 60, 255])
def test_walk_accepts_the_reference_path(n_nodes):
    tree = random_tree(batch_size=4, n_nodes=n_nodes, seed=n_nodes)
    path_length = int(tree.depths.max()) + 1
    choices = agreeable_choices(tree, seed=n_nodes)
    expected = accept_path(tree, choices, path_length)
    nodes, tokens, lengths = accept_walk(tree.parents, tree.tokens, choices, path_length)
    assert torch.equal(nodes, expected.nodes)
    assert torch.equal(tokens, expected.tokens)
    assert torch.equal(lengths, expected.lengths)


def test_rows_of_the_comparison_accept_from_nothing_to_much():
    """The comparison above would say little about walks that all end at the root."""
    tree = random_tree(batch_size=4, n_nodes=60, seed=60)
    lengths = accept_path(tree, agreeable_choices(tree, seed=60), int(tree.depths.max()) + 1).lengths
    assert sorted(set(lengths.tolist())) == [2, 3, 4]


def test_whole_chain_is_accepted_and_no_more():
    tree = chain(5)
    nodes, tokens, lengths = accept_walk(tree.parents, tree.tokens, tree.tokens.roll(-1, dims=1), path_length=5)
    assert nodes.tolist() == [[0, 1, 2, 3, 4]]
    assert tokens.tolist() == tree.tokens.roll(-1, dims=1).tolist()
    assert lengths.tolist() == [5]
