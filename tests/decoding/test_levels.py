"""Levels hold the most probable children of the level above, and the best of them go on."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transformers_griffin.decoding.levels import Beam, grow_level, propose_children, root_beam


many = settings(deadline=None, derandomize=True, max_examples=60)


def children_of(logits: torch.Tensor, beam_scores: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and scores of the children of beam nodes, each of shape `(batch_size, beam, top_k)`."""
    index = torch.zeros_like(beam_scores, dtype=torch.long)
    beam = Beam(index, beam_scores, index, index, sees=index.unsqueeze(-1)[..., :0].bool())
    _, candidates = grow_level(*propose_children(logits, top_k), beam, level=1)
    return candidates.tokens.view(*beam_scores.shape, top_k), candidates.scores.view(*beam_scores.shape, top_k)


@many
@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 9),
    st.sampled_from(["normal", "ties", "saturated", "-inf", "half"]),
    st.integers(0, 10**6),
)
def test_children_are_the_most_probable_distinct_tokens(batch_size, beam, top_k, kind, seed):
    """Every child's score is its parent's plus log softmax, worked out in float64 with Python's own exp and log."""
    vocab_size = 9
    torch.manual_seed(seed)
    logits = 3 * torch.randn(batch_size, beam, vocab_size)
    if kind == "ties":
        logits = logits.round().clamp(-1, 1)
    elif kind == "saturated":
        logits[..., seed % vocab_size] = 1e4
    elif kind == "-inf":
        logits = logits.masked_fill(torch.rand_like(logits) < 0.7, -math.inf)
        logits[..., seed % vocab_size] = 0.0  # a distribution needs one possible token
    elif kind == "half":
        logits = logits.bfloat16()
    beam_scores = -torch.rand(batch_size, beam)
    tokens, scores = children_of(logits, beam_scores, top_k)
    assert tokens.shape == scores.shape == (batch_size, beam, top_k)
    assert scores.dtype == torch.float32
    for row in range(batch_size):
        for node in range(beam):
            node_logits = logits[row, node].tolist()
            highest = max(node_logits)
            log_total = highest + math.log(sum(math.exp(x - highest) for x in node_logits))
            found = tokens[row, node].tolist()
            assert len(set(found)) == top_k
            assert [node_logits[token] for token in found] == sorted(node_logits, reverse=True)[:top_k]
            expected = [beam_scores[row, node].item() + node_logits[token] - log_total for token in found]
            assert scores[row, node].tolist() == pytest.approx(expected, rel=1e-6, abs=1e-5)
            assert (scores[row, node] <= beam_scores[row, node]).all()


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_undefined_probabilities_are_impossible(poison):
    """A draft that overflows (NaN or +inf logits) proposes what it likes, but at score -inf, never NaN."""
    logits = torch.tensor([[[0.0, poison, 1.0], [0.0, 1.0, 2.0], [-math.inf, -math.inf, -math.inf]]])
    tokens, scores = children_of(logits, torch.zeros(1, 3), top_k=2)
    assert scores[0, 0].tolist() == [-math.inf, -math.inf]
    assert scores[0, 1].isfinite().all()
    assert scores[0, 2].tolist() == [-math.inf, -math.inf]
    assert (tokens[..., 0] != tokens[..., 1]).all()


def test_first_two_levels_worked_by_hand():
    """
    k = 2. Log-probabilities: root -> 7 at -1, 8 at -2; 7 -> 11 at -3, 12 at -5; 8 -> 13 at -1, 14 at -2.

    The level below scores -4, -6 | -3, -4. The best is 13; of the equals 11 and 14 the former comes first in the pool.
    Columns of `sees` are the nodes 7, 8 and then the new ones.
    """
    root = root_beam(torch.zeros(1, 1, 0, dtype=torch.bool))
    beam, candidates = grow_level(torch.tensor([[[7, 8]]]), torch.tensor([[[-1.0, -2.0]]]), root, level=0)
    assert (beam.tokens.tolist(), beam.scores.tolist(), beam.pool_index.tolist()) == ([[7, 8]], [[-1, -2]], [[0, 1]])
    assert beam.sees.tolist() == [[[True, False], [False, True]]]
    assert candidates.parents.tolist() == [[-1, -1]]

    tokens, log_probs = torch.tensor([[[11, 12], [13, 14]]]), torch.tensor([[[-3.0, -5.0], [-1.0, -2.0]]])
    beam, candidates = grow_level(tokens, log_probs, beam, level=1)
    assert candidates.tokens.tolist() == [[11, 12, 13, 14]]
    assert candidates.scores.tolist() == [[-4, -6, -3, -4]]
    assert candidates.parents.tolist() == [[0, 0, 1, 1]]
    assert (beam.tokens.tolist(), beam.scores.tolist()) == ([[13, 11]], [[-3, -4]])
    assert (beam.pool_index.tolist(), beam.rows.tolist()) == ([[4, 2]], [[1, 0]])
    assert beam.sees.tolist() == [[[False, True, True, False], [True, False, False, True]]]
