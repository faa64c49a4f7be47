"""Bytes of weights that a cycle reads, against sums by hand."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from transformers_griffin import GriffinDraftModel
from transformers_griffin.evaluation.synthetic_pair import build_pair
from transformers_griffin.evaluation.weight_reads import weight_reads


def tiny_pair(is_tied):
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=is_tied,
    )
    target = LlamaForCausalLM(config)
    return target, GriffinDraftModel.from_target(target)


@pytest.mark.parametrize("is_tied", [False, True])
def test_a_step_reads_the_head_and_not_the_embedding(is_tied):
    """
    Attention 8 x 8 + 2 x 4 x 8 + 8 x 8, FFN 3 x 8 x 16, three norms of 8 and the head 50 x 8, 4 bytes each. A tied
    embedding is the head.
    """
    target, draft = tiny_pair(is_tied)
    reads = weight_reads(target, draft)
    assert reads.step_bytes == 4 * (192 + 384 + 24 + 400)
    assert reads.draft_head_bytes == 4 * 400


def test_a_cycle_is_a_step_and_a_pass_for_every_level():
    target, draft = tiny_pair(is_tied=False)
    draft.generation_config.draft_tree_depth = 3
    reads = weight_reads(target, draft)
    assert reads.draft_pass_bytes == 4 * draft.num_parameters() + 4 * 400
    assert reads.cycle_bytes == 4000 + 3 * reads.draft_pass_bytes
    assert reads.cycle_cost == reads.cycle_bytes / 4000


def test_a_truncated_draft_reads_its_own_rows_of_the_head():
    target, draft = tiny_pair(is_tied=False)
    whole = weight_reads(target, draft)
    asked = weight_reads(target, draft, draft_vocab_size=10)
    assert asked.draft_head_bytes == 4 * 80
    assert whole.draft_pass_bytes - asked.draft_pass_bytes == 4 * 320
    draft.config.eos_token_id = None
    assert weight_reads(target, draft.truncate_vocabulary(range(10))) == asked


def test_an_8b_target_takes_15_gb_a_step_and_its_draft_2_gb_a_pass():
    """
    In bfloat16: 8.03 billion parameters without an embedding of 0.53 are 15.0 GB, the head is 1.05 GB and the draft
    (0.487 billion) 0.97 GB. Six passes make 12.1 GB, of which a quarter of the head's rows would leave 7.4 GB.
    """
    target, draft = build_pair("llama-3-8b", torch.bfloat16, torch.device("meta"))
    reads = weight_reads(target, draft)
    sizes = (reads.step_bytes, reads.draft_head_bytes, reads.draft_pass_bytes, reads.cycle_bytes)
    assert [size / 1e9 for size in sizes] == pytest.approx([15.01, 1.05, 2.02, 27.15], abs=0.03)
    assert reads.cycle_cost == pytest.approx(1.81, abs=0.005)
    assert weight_reads(target, draft, draft_vocab_size=32064).cycle_cost == pytest.approx(1.49, abs=0.006)
    draft.generation_config.draft_head_dtype = "int8"
    assert weight_reads(target, draft).cycle_cost == pytest.approx(1.60, abs=0.006)
    assert weight_reads(target, draft, draft_vocab_size=32064).cycle_cost == pytest.approx(1.44, abs=0.006)


def test_a_head_in_int8_is_a_byte_for_each_weight_and_a_scale_for_each_row():
    target, draft = tiny_pair(is_tied=False)
    draft.generation_config.draft_head_dtype = "int8"
    assert weight_reads(target, draft).draft_head_bytes == 50 * (8 + 2)
    assert weight_reads(target, draft, draft_vocab_size=10).draft_head_bytes == 10 * (8 + 2)
