"""The accepted path is the one a slow walk finds, and the target is asked only for what plain decoding asks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transformers_griffin.decoding.draft_tree import DraftTree, ancestor_mask
from transformers_griffin.decoding.verification import accept_path, walk_path


VOCAB_SIZE = 6
NOT_DRAFTED = VOCAB_SIZE - 1  # drafts carry other tokens, so that some choice is always possible that is no child

many = settings(deadline=None, derandomize=True, max_examples=60)


def tree_of(parents: list[list[int]], tokens: list[list[int]]) -> DraftTree:
    ancestors = ancestor_mask(torch.tensor(parents), depth=len(parents[0]))
    return DraftTree(
        tokens=torch.tensor(tokens),
        parents=torch.tensor(parents),
        depths=ancestors.sum(dim=-1) - 1,
        ancestors=ancestors,
        scores=torch.zeros(len(parents), len(parents[0])),
    )


def walk_slowly(parents: list[int], tokens: list[int], choices: list[int]) -> tuple[list[int], list[int]]:
    """The path from the root while the choice is a child's token, and the choice after each of its nodes."""
    path = [0]
    while True:
        children = [node for node in range(1, len(parents)) if parents[node] == path[-1]]
        chosen = [node for node in children if tokens[node] == choices[path[-1]]]
        if not chosen:
            return path, [choices[node] for node in path]
        path += chosen


@st.composite
def trees_and_choices(draw):
    """
    A batch of random trees, whose siblings carry different tokens, and what the target chooses after each node.

    Half of the choices are the first child's token: otherwise hardly any path would be longer than two nodes.
    """
    num_nodes, batch_size = draw(st.integers(1, 20)), draw(st.integers(1, 4))
    all_parents, all_tokens, all_choices = [], [], []
    for _ in range(batch_size):
        random = draw(st.randoms())
        free = [list(range(NOT_DRAFTED))]
        parents, tokens = [0], [random.randrange(VOCAB_SIZE)]
        for node in range(1, num_nodes):
            # Recent parents are more likely than in a uniform draw, for deeper trees.
            open_nodes = [n for n in range(node) if free[n]]
            parent = max(random.choice(open_nodes), random.choice(open_nodes))
            random.shuffle(free[parent])
            tokens.append(free[parent].pop())
            parents.append(parent)
            free.append(list(range(NOT_DRAFTED)))
        choices = [random.randrange(VOCAB_SIZE) for _ in range(num_nodes)]
        for node in reversed(range(1, num_nodes)):
            if random.random() < 0.5:
                choices[parents[node]] = tokens[node]
        all_parents.append(parents)
        all_tokens.append(tokens)
        all_choices.append(choices)
    return all_parents, all_tokens, all_choices


def path_length_of(tree: DraftTree) -> int:
    return int(tree.depths.max()) + 1


def as_logits(choices: torch.Tensor) -> torch.Tensor:
    """Logits whose argmax are these choices."""
    return torch.nn.functional.one_hot(choices, VOCAB_SIZE).float()


def argmax(logits: torch.Tensor, prefix: torch.Tensor) -> torch.Tensor:
    return logits.argmax(dim=-1)


@many
@given(trees_and_choices(), st.integers(0, 3))
def test_accepted_path_is_the_slow_one(case, spare_levels):
    """Nodes, tokens and lengths, all padded with their last entry to the same shape whatever was accepted."""
    parents, tokens, choices = case
    tree = tree_of(parents, tokens)
    path_length = path_length_of(tree) + spare_levels

    acceptance = accept_path(tree, torch.tensor(choices), path_length)

    assert acceptance.nodes.shape == acceptance.tokens.shape == (len(parents), path_length)
    assert acceptance.lengths.shape == (len(parents),)
    for row in range(len(parents)):
        path, chosen = walk_slowly(parents[row], tokens[row], choices[row])
        rest = path_length - len(path)
        assert acceptance.lengths[row] == len(path)
        assert acceptance.nodes[row].tolist() == path + path[-1:] * rest
        assert acceptance.tokens[row].tolist() == chosen + chosen[-1:] * rest


@many
@given(trees_and_choices(), st.integers(0, 3), st.booleans())
def test_walk_with_argmax_is_the_accepted_path(case, spare_levels, ask_host):
    parents, tokens, choices = case
    tree, target_tokens = tree_of(parents, tokens), torch.tensor(choices)
    path_length = path_length_of(tree) + spare_levels

    expected = accept_path(tree, target_tokens, path_length)
    walked = walk_path(tree, as_logits(target_tokens), tree.tokens[:, :1], argmax, path_length, ask_host)

    assert torch.equal(walked.nodes, expected.nodes)
    assert torch.equal(walked.tokens, expected.tokens)
    assert torch.equal(walked.lengths, expected.lengths)


@many
@given(trees_and_choices())
def test_rows_of_a_batch_are_accepted_as_if_alone(case):
    parents, tokens, choices = case
    together, path_length = tree_of(parents, tokens), path_length_of(tree_of(parents, tokens))
    logits = as_logits(torch.tensor(choices))
    accepted = accept_path(together, torch.tensor(choices), path_length)
    walked = walk_path(together, logits, together.tokens[:, :1], argmax, path_length, ask_host=True)
    for row in range(len(parents)):
        alone = tree_of(parents[row : row + 1], tokens[row : row + 1])
        expected = accept_path(alone, torch.tensor(choices[row : row + 1]), path_length)
        for both in (accepted, walked):
            assert torch.equal(both.nodes[row], expected.nodes[0])
            assert torch.equal(both.tokens[row], expected.tokens[0])
            assert both.lengths[row] == expected.lengths[0]


@many
@given(trees_and_choices(), st.booleans())
def test_target_is_asked_with_the_prefixes_of_plain_decoding(case, ask_host):
    """
    Once per emitted token, in order, with the logits of that node and the prompt + everything emitted before it.

    Without asking the host there are further calls behind the end, which change nothing.
    """
    parents, tokens, choices = (rows[:1] for rows in case)
    tree = tree_of(parents, tokens)
    prompt = torch.tensor([[5, 4, tokens[0][0]]])
    calls = []

    def choose(logits: torch.Tensor, prefix: torch.Tensor) -> torch.Tensor:
        calls.append((logits.argmax().item(), prefix[0].tolist()))
        return logits.argmax(dim=-1)

    path_length = path_length_of(tree)
    walked = walk_path(tree, as_logits(torch.tensor(choices)), prompt, choose, path_length, ask_host)

    emitted = walked.tokens[0, : walked.lengths[0]].tolist()
    expected = [(token, prompt[0].tolist() + emitted[:count]) for count, token in enumerate(emitted)]
    assert calls[: len(emitted)] == expected
    assert len(calls) == (len(emitted) if ask_host else path_length)


@many
@given(trees_and_choices(), st.integers(1, 6))
def test_the_walk_ends_where_the_answer_ends(case, num_wanted):
    """`is_over` is asked once about each sequence of the answer; behind the last one nothing is chosen any more."""
    parents, tokens, choices = (rows[:1] for rows in case)
    tree, target_tokens = tree_of(parents, tokens), torch.tensor(choices)
    path_length = path_length_of(tree)
    complete = accept_path(tree, target_tokens, path_length)
    asked, num_calls = [], 0

    def is_over(sequence: torch.Tensor) -> bool:
        asked.append(sequence[0].tolist())
        return len(asked) == num_wanted

    def choose(logits: torch.Tensor, prefix: torch.Tensor) -> torch.Tensor:
        nonlocal num_calls
        num_calls += 1
        return logits.argmax(dim=-1)

    root = tree.tokens[:, :1]
    walked = walk_path(tree, as_logits(target_tokens), root, choose, path_length, ask_host=True, is_over=is_over)

    length = min(num_wanted, int(complete.lengths[0]))
    emitted = complete.tokens[0, :length].tolist()
    assert walked.lengths.tolist() == [length]
    assert walked.tokens[0, :length].tolist() == emitted
    assert walked.nodes[0, :length].tolist() == complete.nodes[0, :length].tolist()
    assert num_calls == length
    # Where the path itself ends, the caller asks about the last token.
    expected = [root[0].tolist() + emitted[:count] for count in range(1, length + 1)]
    assert asked == expected[: len(asked)]
    assert len(asked) >= length - 1


def test_example_of_the_docstring():
    """root -- A -- B, C beside A; the target wants A, then D: emitted are A and D, and B is forgotten."""
    a, b, c, d = 1, 2, 3, 4
    tree = tree_of([[0, 0, 0, 1]], [[0, a, c, b]])
    acceptance = accept_path(tree, torch.tensor([[a, d, b, b]]), path_length=3)
    assert acceptance.nodes.tolist() == [[0, 1, 1]]
    assert acceptance.tokens.tolist() == [[a, d, d]]
    assert acceptance.lengths.tolist() == [2]


@pytest.mark.parametrize("ask_host", [True, False])
def test_a_choice_that_is_drafted_elsewhere_in_the_tree_is_not_accepted(ask_host):
    """root -- A -- B: the target wants B after the root, which only A has as a child; B is the bonus token."""
    a, b = 1, 2
    tree = tree_of([[0, 0, 1]], [[b, a, b]])  # the root carries b too: it is nobody's child
    target_tokens = torch.tensor([[b, b, b]])
    expected = ([[0, 0, 0]], [[b, b, b]], [1])
    for found in (
        accept_path(tree, target_tokens, path_length=3),
        walk_path(tree, as_logits(target_tokens), tree.tokens[:, :1], argmax, 3, ask_host),
    ):
        assert (found.nodes.tolist(), found.tokens.tolist(), found.lengths.tolist()) == expected
