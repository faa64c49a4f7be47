"""The N passes against a naive form: every score of every stream computed, then the wanted one picked."""

import pytest
import torch

from conftest import tiny_llama
from transformers_griffin import GriffinDraftModel
from transformers_griffin.training import multi_pass
from transformers_griffin.training.multi_pass import (
    StreamStates,
    check_passes,
    next_stream,
    pass_attention,
    run_pass,
)


def naive_attention(query, streams, scaling, documents=None):
    """Row t, column t - j: stream -1 - j for j < n - 1, else stream 0 (`streams`: true features first)."""
    num_heads, seq_len, depth = query.shape[1], query.shape[2], len(streams) - 1
    groups = num_heads // streams[0].keys.shape[1]
    keys = [states.keys.repeat_interleave(groups, dim=1) for states in streams]
    values = [states.values.repeat_interleave(groups, dim=1) for states in streams]
    rows = []
    for t in range(seq_len):
        picked = [-1 - (t - column) if t - column < depth else 0 for column in range(t + 1)]
        row_keys = torch.stack([keys[stream][:, :, column] for column, stream in enumerate(picked)], dim=2)
        row_values = torch.stack([values[stream][:, :, column] for column, stream in enumerate(picked)], dim=2)
        scores = (query[:, :, t : t + 1] * row_keys).sum(-1) * scaling
        if documents is not None:
            is_seen = documents[:, None, : t + 1] == documents[:, None, t : t + 1]
            scores = scores.masked_fill(~is_seen, float("-inf"))
        rows.append((scores.softmax(-1).unsqueeze(-1) * row_values).sum(2))
    return torch.stack(rows, dim=1).flatten(2)


DOCUMENTS = {
    "one document": None,
    "padding on the right": [[1] * 11, [1] * 7 + [0] * 4],
    "padding on the left": [[1] * 11, [0] * 3 + [1] * 8],
    "packed": [[1] * 4 + [0] + [2] * 6, [1, 1, 0, 2, 2, 2, 0, 3, 3, 0, 0]],
}


@pytest.mark.parametrize("row_of", DOCUMENTS)
@pytest.mark.parametrize("num_streams", [1, 2, 3, 5])
def test_attention_over_streams_has_the_values_and_gradients_of_the_naive_form(num_streams, row_of, monkeypatch):
    monkeypatch.setattr(multi_pass, "QUERY_BLOCK", 4)  # several blocks, the last one shorter
    torch.manual_seed(0)
    tensors = [torch.randn(2, 4, 11, 8)] + [torch.randn(2, 2, 11, 8) for _ in range(2 * num_streams)]
    documents = None if DOCUMENTS[row_of] is None else torch.tensor(DOCUMENTS[row_of])
    weight = torch.randn(2, 11, 32)

    def run(attention):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        streams = [StreamStates(*leaves[1 + 2 * index : 3 + 2 * index]) for index in range(num_streams)]
        output = attention(leaves[0], streams)
        (output * weight).sum().backward()
        return [output.detach(), *(leaf.grad for leaf in leaves)]

    found = run(lambda query, streams: pass_attention(query, streams[0], tuple(streams[:0:-1]), 0.3, documents))
    expected = run(lambda query, streams: naive_attention(query, streams, 0.3, documents))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)  # another order of summation


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
