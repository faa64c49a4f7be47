"""
A batch with a draft gives what plain decoding gives: every row its own answer, whatever its neighbours do.

The oracle is plain `generate()` of the same left-padded batch in fp32, which is itself checked against every row alone.
Drafts err in each row at other places, so that rows accept different numbers of tokens in almost every cycle.
"""

import pytest
from architectures import ARCHITECTURES, Architecture
from batches import decode_batch, decode_batch_plainly, tau_of
from exactness import PAPER_TREE, SMALL_TREE
from noisy_oracle import rows_are_followed


__all__ = ["rows_are_followed"]

TREE_ARCHITECTURES = [architecture for architecture in ARCHITECTURES if architecture.mode == "tree"]
each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
each_tree_architecture = pytest.mark.parametrize("architecture", TREE_ARCHITECTURES, ids=lambda a: a.name)

pytestmark = pytest.mark.usefixtures("rows_are_followed")


@each_architecture
def test_greedy_answers_of_a_batch_are_the_plain_ones(architecture: Architecture) -> None:
    """The second row ends at its 11th token; the others go on without it."""
    plain = decode_batch_plainly(architecture)
    eos = plain.ends_at(1, 10)
    ours, _ = decode_batch(plain, SMALL_TREE, eos_token_id=eos)
    assert ours.sequences.tolist() == plain.cut_behind(eos)
    if architecture.mode == "tree":
        assert 1.3 < tau_of(ours) < 4.8


@each_tree_architecture
def test_greedy_answers_of_a_batch_are_the_plain_ones_with_a_static_cache(architecture: Architecture) -> None:
    plain = decode_batch_plainly(architecture)
    eos = plain.ends_at(1, 10)
    ours, _ = decode_batch(plain, SMALL_TREE, eos_token_id=eos, cache_implementation="static")
    assert ours.sequences.tolist() == plain.cut_behind(eos)
    assert 1.3 < tau_of(ours) < 4.8
