"""Tokens paired with features, and packed rows whose documents must not see each other."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from conftest import tiny_llama
from transformers_griffin import GriffinDraftModel
from transformers_griffin.training.arguments import GriffinTrainingArguments
from transformers_griffin.training.features import (
    NO_LABEL,
    add_feature_noise,
    check_packing,
    document_positions,
    draft_batch,
    next_labels,
    position_mask,
)
from transformers_griffin.training.losses import ALIGNMENTS
from transformers_griffin.training.objective import COUNTS, multi_pass_objective


def test_documents_are_counted_from_zero():
    documents = torch.tensor([[1, 1, 1, 2, 2, 0], [0, 0, 1, 1, 2, 3]])
    assert document_positions(documents).tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 0, 1, 0, 0]]


def test_positions_and_labels_stay_within_their_document():
    """
    Tokens a0 a1 a2 b0 b1 and padding. Pairs: a0a1, a1a2, (a2b0), b0b1, (b1 pad). The last pair of a document has no
    label, and with shift 2 no loss either, since the token it predicts is another document's.
    """
    ids, documents = torch.tensor([[10, 11, 12, 20, 21, 0]]), torch.tensor([[1, 1, 1, 2, 2, 0]])
    pairs = torch.tensor([[1, 1, 0, 2, 0]])
    assert next_labels(ids[:, 1:], pairs).tolist() == [[12, NO_LABEL, NO_LABEL, NO_LABEL, NO_LABEL]]
    assert position_mask(ids, None, documents, 0).int().tolist() == [[1, 1, 0, 1, 0]]
    assert position_mask(ids, None, documents, 2).int().tolist() == [[1, 0, 0, 0, 0]]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("num_layers", "num_passes"), [(1, 4), (2, 1)])
@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_a_packed_row_gives_the_losses_and_gradients_of_its_documents(
    alignment, num_layers, num_passes, attention, tmp_path
):
    """Three documents in one row against the same three as right-padded rows."""
    target = tiny_llama()
    target.set_attn_implementation(attention)
    draft = GriffinDraftModel.from_target(target, num_hidden_layers=num_layers)
    draft.set_attn_implementation(attention)
    args = GriffinTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", alignment=alignment, alignment_top_k=20
    )
    generator = torch.Generator().manual_seed(0)
    documents = [torch.randint(0, 61, (length,), generator=generator) for length in (7, 2, 9)]
    numbers = torch.cat([torch.full((len(ids),), number) for number, ids in enumerate(documents, start=1)])
    packed = draft_batch(target.base_model, torch.cat(documents)[None], documents=numbers[None])
    padded_ids = torch.nn.utils.rnn.pad_sequence(documents, batch_first=True)
    is_real = torch.arange(9) < torch.tensor([[7], [2], [9]])
    padded = draft_batch(target.base_model, padded_ids, attention_mask=is_real.long())

    found, expected = [], []
    for batch, results in ((packed, found), (padded, expected)):
        draft.zero_grad()
        passes = multi_pass_objective(draft, batch, args, num_passes)
        torch.stack([result.loss for result in passes]).sum().backward()
        results += [torch.stack([result.counts for result in passes])]
        results += [parameter.grad.clone() for parameter in draft.parameters()]
    assert found[0][:, COUNTS.index("positions")].tolist() == [6 + 1 + 8] * num_passes
    assert (found[0][:, COUNTS.index("kept")] > 0).all()
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)  # another order of summation


@pytest.mark.parametrize(
    ("model_type", "is_apart"), [("llama", True), ("gpt2", True), ("bloom", False), ("mpt", False)]
)
def test_targets_that_mix_packed_documents_are_refused(model_type, is_apart):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 61}
    target = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes)).eval()
    if is_apart:
        check_packing(target)
    else:
        with pytest.raises(ValueError, match="does not keep packed documents apart"):
            check_packing(target)


def test_given_features_spare_the_target_its_forward():
    target = tiny_llama()
    ids = torch.randint(0, 61, (2, 9), generator=torch.Generator().manual_seed(0))
    online = draft_batch(target.base_model, ids)
    features = torch.cat((online.features, online.next_features[:, -1:]), dim=1)

    def not_called(**kwargs):
        raise AssertionError("the target ran")

    stored = draft_batch(not_called, ids, features=features)
    for name in ("input_ids", "features", "next_features", "labels", "loss_mask"):
        assert torch.equal(getattr(stored, name), getattr(online, name)), name


def test_positions_without_a_next_feature_or_label_have_none():
    """Tokens 0..3 in a row of 3 real ones: two positions, of which the second has a next feature but no label."""
    ids, attention_mask = torch.tensor([[5, 6, 7, 0]]), torch.tensor([[1, 1, 1, 0]])
    assert position_mask(ids, None, attention_mask).tolist() == [[True, True, False]]
    assert next_labels(ids[:, 1:], attention_mask[:, 1:]).tolist() == [[7, NO_LABEL, NO_LABEL]]


def test_the_loss_mask_can_follow_the_predicted_token():
    """Token 3 has a loss; position 1 predicts it."""
    ids, loss_mask = torch.zeros(1, 5, dtype=torch.long), torch.tensor([[0, 0, 0, 1, 0]])
    assert position_mask(ids, loss_mask, None, 0).int().tolist() == [[0, 0, 0, 1]]
    assert position_mask(ids, loss_mask, None, 2).int().tolist() == [[0, 1, 0, 0]]


def test_noise_has_the_released_width():
    features = torch.zeros(2, 255, 8)
    noise = add_feature_noise(features, 0.2, generator=torch.Generator().manual_seed(0))
    assert 0.19 < noise.abs().max().item() <= 0.2  # half of 0.2 * 512 / 256 tokens
    assert add_feature_noise(features, 0.0) is features
