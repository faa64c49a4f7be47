"""Each equation against a small example by hand, and the chunked head against the plain functions."""

import pytest
import torch
from torch import nn

from conftest import tiny_llama
from transformers_griffin import GriffinDraftModel
from transformers_griffin.training.head_loss import HeadSettings, head_loss
from transformers_griffin.training.losses import (
    alignment_gate,
    alignment_mask,
    delay,
    feature_distance,
    masked_mean,
    soft_cross_entropy,
    top_k_hit,
    top_token_cross_entropy,
)
from transformers_griffin.training.objective import mean_counts


def test_the_feature_distance_is_quadratic_near_zero_and_linear_beyond_one():
    """Errors 0.5 and 3: (0.5 * 0.25 + 2.5) / 2 = 1.3125."""
    distance = feature_distance(torch.tensor([[[0.5, 3.0]]]), torch.zeros(1, 1, 2))
    assert distance.tolist() == [[1.3125]]


def test_a_masked_mean_ignores_what_is_masked_and_survives_an_empty_mask():
    values = torch.tensor([1.0, 3.0, 100.0])
    assert masked_mean(values, torch.tensor([1.0, 1.0, 0.0])).item() == pytest.approx(2.0, rel=1e-4)
    assert masked_mean(values, torch.zeros(3)).item() == 0.0


def test_cross_entropies_of_a_two_token_vocabulary():
    """p = (3/4, 1/4), q = (1/2, 1/2): both logarithms are -ln 2, the top token carries 3/4 of them."""
    target_logits, logits = torch.tensor([[3.0, 1.0]]).log(), torch.zeros(1, 2)
    ln2 = torch.tensor(2.0).log()
    torch.testing.assert_close(soft_cross_entropy(logits, target_logits), ln2.view(1))
    torch.testing.assert_close(top_token_cross_entropy(logits, target_logits, top_k=1), 0.75 * ln2.view(1))


def test_a_token_is_a_hit_if_fewer_than_k_logits_exceed_its_own():
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    hits = {(token, k): top_k_hit(logits, torch.tensor([token]), k).item() for token in range(4) for k in (1, 2)}
    assert [pair for pair, is_hit in hits.items() if is_hit] == [(0, 1), (0, 2), (1, 2)]
    assert not top_k_hit(logits, torch.tensor([-100]), 4).item()


def test_the_gate_is_the_product_of_hits_along_the_chain():
    """gate_n[t] = prod_{j<n} hit_j[t-(n-1-j)], where a factor before position 0 is 1."""
    torch.manual_seed(0)
    hits = torch.rand(5, 2, 9) > 0.3
    gate = torch.ones(2, 9, dtype=torch.bool)
    for n in range(1, 6):
        for t in range(9):
            factors = [hits[j - 1, :, t - (n - 1 - j)] for j in range(1, n) if t >= n - 1 - j]
            expected = torch.stack(factors).all(dim=0) if factors else torch.ones(2, dtype=torch.bool)
            assert torch.equal(gate[:, t], expected)
        gate = alignment_gate(gate, hits[n - 1])


def test_the_three_readings_of_the_mask_differ_as_documented():
    """Pass 2 after a pass that missed position 1, itself missing position 3."""
    first, own = torch.tensor([[1, 0, 1, 1]]).bool(), torch.tensor([[1, 1, 1, 0]]).bool()
    gate = alignment_gate(torch.ones_like(first), first)
    masks = {name: alignment_mask(gate, own, name).int().tolist()[0] for name in ("released", "consumed", "paper")}
    assert masks == {"released": [1, 0, 1, 1], "consumed": [1, 1, 0, 1], "paper": [1, 1, 0, 0]}


def test_delay_moves_one_position_later():
    assert delay(torch.tensor([[1, 2, 3]]), torch.tensor([[9, 8, 7]])).tolist() == [[9, 1, 2]]


@pytest.mark.parametrize("chunk_size", [1, 9, 64])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("hard_labels", [False, True])
def test_the_chunked_head_has_the_values_and_gradients_of_the_plain_functions(hard_labels, chunk_size, softcap):
    """Two passes; a chunk of 9 rows of logits holds 3 positions (two of the draft and one of the target each)."""
    draft = GriffinDraftModel.from_target(tiny_llama())
    draft.__dict__["_logit_softcap"] = softcap
    torch.manual_seed(1)
    predicts, next_features = 3 * torch.randn(2, 17, 32), 3 * torch.randn(17, 32)
    labels, scale = torch.randint(-1, 61, (17,)), torch.rand(2, 17)

    plain = predicts.clone().requires_grad_()
    logits, target_logits = draft.compute_logits(plain), draft.compute_logits(next_features)
    if hard_labels:
        cross_entropy = torch.stack(
            [nn.functional.cross_entropy(z, labels, ignore_index=-1, reduction="none") for z in logits]
        )
    else:
        cross_entropy = torch.stack([soft_cross_entropy(z, target_logits) for z in logits])
    top_cross_entropy = torch.stack([top_token_cross_entropy(z, target_logits, top_k=4) for z in logits])
    ((0.1 * cross_entropy + 0.5 * top_cross_entropy) * scale).sum().backward()

    chunked = predicts.clone().requires_grad_()
    settings = HeadSettings((0.1, 0.5), top_k=4, hit_top_k=3, chunk_size=chunk_size, hard_labels=hard_labels)
    found = head_loss(chunked, next_features, labels, draft.compute_logits, settings)
    (found.loss * scale).sum().backward()

    torch.testing.assert_close(found.cross_entropy, cross_entropy.detach())
    torch.testing.assert_close(found.top_cross_entropy, top_cross_entropy.detach())
    torch.testing.assert_close(chunked.grad, plain.grad)
    assert torch.equal(found.is_hit, torch.stack([top_k_hit(z, labels, 3) for z in logits]))
    assert torch.equal(found.is_agreed, logits.argmax(-1) == target_logits.argmax(-1))


def test_no_rows_have_no_loss_and_no_gradient():
    draft = GriffinDraftModel.from_target(tiny_llama())
    predicts = torch.empty(2, 0, 32, requires_grad=True)
    settings = HeadSettings((1.0, 1.0), top_k=4, hit_top_k=3, chunk_size=8)
    found = head_loss(predicts, torch.empty(0, 32), torch.empty(0, dtype=torch.long), draft.compute_logits, settings)
    found.loss.sum().backward()
    assert found.loss.shape == (2, 0)
    assert predicts.grad.shape == (2, 0, 32)


def test_a_pass_that_learnt_from_nothing_has_no_loss_to_report():
    """Counts of 4 positions: pass 1 keeps 2 of them with losses that sum to 3, 5 and 7; pass 2 keeps none."""
    counts = torch.tensor([[3.0, 5.0, 7.0, 2.0, 1.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 4.0]])
    assert mean_counts(counts) == {
        "pass_1/feature_loss": 1.5,
        "pass_1/token_loss": 2.5,
        "pass_1/top_token_loss": 3.5,
        "pass_1/kept": 0.5,
        "pass_1/hit_rate": 0.25,
        "pass_1/accuracy": 0.75,
        "pass_2/kept": 0.0,
        "pass_2/hit_rate": 0.0,
        "pass_2/accuracy": 0.25,
    }
