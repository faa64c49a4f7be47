"""The N passes of a training step are what drafting computes."""

import pytest
import torch

from conftest import tiny_llama
from transformers_griffin import GriffinDraftModel
from transformers_griffin.training.multi_pass import check_passes, next_stream, run_pass


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_pass_one_is_the_draft_of_generation(attention):
    draft = GriffinDraftModel.from_target(tiny_llama(), attention_bias=True)
    draft.set_attn_implementation(attention)
    torch.manual_seed(0)
    ids, features = torch.randint(0, 61, (2, 9)), torch.randn(2, 9, 32)
    found = run_pass(draft, draft.embed_tokens(ids), features)
    expected = draft(input_ids=ids, features=features)
    torch.testing.assert_close(found.predict, expected.predict, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.regress, expected.regress, rtol=1e-5, atol=1e-6)


def test_pass_three_is_what_drafting_three_tokens_computes():
    """At every position: verified prefix from the target, then two regress features fed back, as `generate()` does."""
    draft = GriffinDraftModel.from_target(tiny_llama()).eval()
    torch.manual_seed(0)
    ids, features = torch.randint(0, 61, (1, 8)), torch.randn(1, 8, 32)
    embeds = draft.embed_tokens(ids)
    stream, states = features, ()
    for _ in range(3):
        output = run_pass(draft, embeds, stream, states)
        stream, states = next_stream(output.regress, features), output.states
    for t in range(3, 8):
        drafted = draft(input_ids=ids[:, : t - 1], features=features[:, : t - 1], use_cache=True)
        for position in (t - 1, t):
            drafted = draft(
                input_ids=ids[:, position : position + 1],
                features=drafted.regress[:, -1:],
                past_key_values=drafted.past_key_values,
            )
        torch.testing.assert_close(output.predict[:, t], drafted.predict[:, -1], rtol=1e-4, atol=1e-5)


def test_a_stream_keeps_the_true_feature_where_nothing_was_drafted():
    regress, features = torch.arange(4.0).view(1, 4, 1), torch.full((1, 4, 1), 9.0)
    assert next_stream(regress, features).flatten().tolist() == [9, 0, 1, 2]
    left_padded = torch.tensor([[False, True, True, True]])
    assert next_stream(regress, features, left_padded).flatten().tolist() == [9, 9, 1, 2]


def test_no_gradient_flows_from_one_pass_into_the_one_before():
    regress = torch.randn(1, 4, 2, requires_grad=True)
    assert not next_stream(regress, torch.zeros(1, 4, 2)).requires_grad


def test_a_draft_with_two_layers_has_one_pass_only():
    draft = GriffinDraftModel.from_target(tiny_llama(), num_hidden_layers=2)
    check_passes(draft, num_passes=1)
    with pytest.raises(ValueError, match="2 decoder layers"):
        check_passes(draft, num_passes=2)
