"""Attention over streams against a naive form: every score of every stream computed, then the wanted one picked."""

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from transformers_griffin.training import pass_attention as module
from transformers_griffin.training.pass_attention import StreamStates, flex_pass_attention, pass_attention


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
    monkeypatch.setattr(module, "QUERY_BLOCK", 4)  # several blocks, the last one shorter
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


@pytest.mark.parametrize("row_of", DOCUMENTS)
@pytest.mark.parametrize("num_drafted", [0, 1, 3])
def test_flex_attention_sees_the_same_columns(num_drafted, row_of):
    """Without gradients, which FlexAttention has on a GPU only."""
    torch.manual_seed(0)
    documents = None if DOCUMENTS[row_of] is None else torch.tensor(DOCUMENTS[row_of])
    query = torch.randn(2, 4, 11, 8)
    verified, *drafted = (
        StreamStates(torch.randn(2, 2, 11, 8), torch.randn(2, 2, 11, 8)) for _ in range(num_drafted + 1)
    )
    expected = pass_attention(query, verified, tuple(drafted), 0.3, documents)
    found = flex_pass_attention(query, verified, tuple(drafted), 0.3, documents, flex_attention)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)  # another order of summation


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention has a backward on a GPU only")
@pytest.mark.parametrize("row_of", DOCUMENTS)
def test_flex_attention_has_the_gradients_of_the_blocks(row_of):
    torch.manual_seed(0)
    documents = None if DOCUMENTS[row_of] is None else torch.tensor(DOCUMENTS[row_of], device="cuda")
    tensors = [torch.randn(2, 4, 11, 16, device="cuda")] + [torch.randn(2, 2, 11, 16, device="cuda") for _ in range(6)]
    gradients = []
    for implementation in ("eager", "flex_attention"):
        query, *states = (tensor.clone().requires_grad_() for tensor in tensors)
        streams = [StreamStates(*states[index : index + 2]) for index in (0, 2, 4)]
        output = pass_attention(query, streams[0], tuple(streams[1:]), 0.3, documents, implementation)
        output.square().sum().backward()
        gradients.append([output.detach(), query.grad, *(state.grad for state in states)])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)  # TF32
