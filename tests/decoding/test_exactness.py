"""
Greedy decoding with a draft gives the target's own tokens, for every architecture of the table.

The oracle is plain `generate()` of the same target in fp32. The draft is right about two times of three, so that
cycles accept everything from nothing to whole branches.
"""

from functools import cache
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, Architecture, make_target
from exactness import (
    CHAIN,
    FLAT_TREE,
    LARGEST_TREE,
    PAPER_TREE,
    SMALL_TREE,
    Plain,
    assert_exact,
    decode_plainly,
    decode_with_noisy_oracle,
)
from transformers import DynamicCache, StaticCache

from noisy_oracle import NoisyOracleDraft
from transformers_griffin import GriffinDraftModel, GriffinGenerateOutput
from transformers_griffin.decoding.target_forward import why_no_tree


SHORT, LONG = 20, 90  # lengths of prompts; with the answer the long one is ten windows long
TREE_ARCHITECTURES = [architecture for architecture in ARCHITECTURES if architecture.mode == "tree"]
PLAIN_CACHE_ARCHITECTURES = [architecture for architecture in ARCHITECTURES if architecture.takes_plain_cache]

each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
each_tree_architecture = pytest.mark.parametrize("architecture", TREE_ARCHITECTURES, ids=lambda a: a.name)
each_architecture_with_plain_cache = pytest.mark.parametrize(
    "architecture", PLAIN_CACHE_ARCHITECTURES, ids=lambda a: a.name
)


@cache
def decode_with_paper_tree(
    architecture: Architecture,
) -> tuple[Plain, GriffinGenerateOutput, NoisyOracleDraft]:
    plain = decode_plainly(architecture, SHORT)
    return plain, *decode_with_noisy_oracle(plain, PAPER_TREE)


def test_the_table_covers_more_than_twenty_architectures_with_trees() -> None:
    assert len({architecture.model_type for architecture in TREE_ARCHITECTURES}) >= 22


@each_architecture
def test_greedy_answer_is_the_plain_one_with_the_papers_tree_and_the_default_cache(architecture: Architecture) -> None:
    plain, ours, _ = decode_with_paper_tree(architecture)
    assert_exact(plain, ours, depth=6)


@each_architecture_with_plain_cache
def test_greedy_answer_is_the_plain_one_with_a_long_prompt_and_a_users_cache(architecture: Architecture) -> None:
    """`DynamicCache()` knows no windows: its layers hold the whole sequence, and the mask alone shortens the view."""
    plain = decode_plainly(architecture, LONG)
    ours, _ = decode_with_noisy_oracle(plain, SMALL_TREE, past_key_values=DynamicCache())
    assert_exact(plain, ours, depth=4)


@each_tree_architecture
def test_greedy_answer_is_the_plain_one_with_a_static_cache(architecture: Architecture) -> None:
    plain = decode_plainly(architecture, SHORT)
    ours, _ = decode_with_noisy_oracle(plain, SMALL_TREE, cache_implementation="static")
    assert_exact(plain, ours, depth=4)


@each_architecture
def test_target_is_the_same_at_every_call(architecture: Architecture) -> None:
    """Whatever was drawn before: a test that fails once must fail again."""
    weights = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        weights.append(make_target(architecture).state_dict())
    torch.testing.assert_close(*weights, atol=0, rtol=0)


@each_architecture
def test_target_verifies_what_the_table_says(architecture: Architecture) -> None:
    target = decode_plainly(architecture, SHORT).target
    is_tree = why_no_tree(target, DynamicCache(config=target.config)) is None
    assert is_tree == (architecture.mode == "tree")


@each_architecture
def test_draft_is_told_the_features_that_the_lm_head_reads(architecture: Architecture) -> None:
    """
    Every verified pair reaches the draft once and in order: token x_{t+1} with the feature F_t of one plain forward
    over the whole answer, of which the target's head (and its logit scale or soft cap) makes the target's logits.
    """
    plain, _, draft = decode_with_paper_tree(architecture)
    positions, embeds, features = (torch.cat(parts, dim=1) for parts in zip(*draft.verified, strict=True))
    num_pairs = positions.shape[1]
    sequence = plain.output.sequences
    assert positions.tolist() == [list(range(num_pairs))]
    assert num_pairs > SHORT + 50
    torch.testing.assert_close(embeds, plain.target.get_input_embeddings()(sequence[:, 1 : num_pairs + 1]))

    head_inputs: list[torch.Tensor] = []
    handle = plain.target.get_output_embeddings().register_forward_pre_hook(
        lambda _, args: head_inputs.append(args[0])
    )
    with torch.no_grad():
        logits = plain.target(sequence).logits
    handle.remove()
    torch.testing.assert_close(features, head_inputs[0][:, :num_pairs], atol=1e-3, rtol=0)
    torch.testing.assert_close(
        GriffinDraftModel.compute_logits(draft, features), logits[:, :num_pairs], atol=1e-3, rtol=0
    )


@each_architecture
def test_cache_ends_as_plain_decoding_leaves_it(architecture: Architecture) -> None:
    plain, ours, _ = decode_with_paper_tree(architecture)
    expected, found = plain.output.past_key_values, ours.past_key_values
    assert found.get_seq_length() == expected.get_seq_length()
    for expected_layer, layer in zip(expected.layers, found.layers, strict=True):
        torch.testing.assert_close(layer.keys, expected_layer.keys, atol=1e-3, rtol=0)
        torch.testing.assert_close(layer.values, expected_layer.values, atol=1e-3, rtol=0)


CACHES = {
    "default cache": lambda plain: {},
    "users cache": lambda plain: {"past_key_values": DynamicCache()},
    "static cache": lambda plain: {"cache_implementation": "static"},
    "users static cache": lambda plain: {"past_key_values": StaticCache(plain.target.config, max_cache_len=512)},
}


@pytest.mark.slow
@pytest.mark.parametrize("cache_kind", CACHES)
@pytest.mark.parametrize("shape", [PAPER_TREE, SMALL_TREE, CHAIN, FLAT_TREE, LARGEST_TREE], ids=str)
@each_tree_architecture
def test_greedy_answer_is_the_plain_one_for_every_prompt_shape_and_cache(
    architecture: Architecture, shape: tuple[int, int, int], cache_kind: str
) -> None:
    for prompt_length in (1, SHORT, LONG):
        plain = decode_plainly(architecture, prompt_length)
        kwargs: dict[str, Any] = CACHES[cache_kind](plain)
        ours, _ = decode_with_noisy_oracle(plain, shape, **kwargs)
        assert_exact(plain, ours, depth=shape[1])
