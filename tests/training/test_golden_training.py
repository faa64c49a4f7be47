"""One training step against the released training loop, run with a causal mask (`train_step_maskfix`)."""

import pytest
import torch

from conftest import GOLDEN_CASES, golden_case, golden_json, golden_tensors
from transformers_griffin.conversion import KEY_MAPS
from transformers_griffin.training.arguments import GriffinTrainingArguments
from transformers_griffin.training.features import DraftBatch, draft_batch, next_labels
from transformers_griffin.training.objective import COUNTS, multi_pass_objective


def golden_batch(case: str) -> DraftBatch:
    stored = golden_tensors(case, "train_step")
    key_mask = stored["batch.attention_mask"].bool()
    labels = next_labels(stored["batch.input_ids"], key_mask.long())
    labels[torch.arange(len(labels)), key_mask.sum(dim=1) - 2] = -100  # the stored x_{t+2} there is padding
    return DraftBatch(
        input_ids=stored["batch.input_ids"],
        features=stored["batch.hidden_states"],
        next_features=stored["batch.target"],
        labels=labels,
        loss_mask=stored["batch.loss_mask"].bool(),
        documents=key_mask.long(),
    )


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> GriffinTrainingArguments:
    return GriffinTrainingArguments(output_dir=str(tmp_path_factory.mktemp("run")), report_to="none", use_cpu=True)


@pytest.mark.parametrize("num_passes", [1, 2, 3])
@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_losses_and_gradients_equal_the_released_loop(case, num_passes, arguments):
    expected = golden_json(case, "train_step_maskfix")["N"][str(num_passes)]
    _, draft = golden_case(case)
    results = multi_pass_objective(draft.train(), golden_batch(case), arguments, num_passes)
    torch.stack([result.loss for result in results]).sum().backward()

    for result, numbers in zip(results, expected["passes"], strict=True):
        counts = dict(zip(COUNTS, result.counts.tolist(), strict=True))
        assert counts["kept"] == numbers["loss_mask_sum"]
        for ours, theirs in (("feature_loss", "vloss"), ("token_loss", "ploss"), ("top_token_loss", "topk_loss")):
            assert counts[ours] / (counts["kept"] + 1e-5) == pytest.approx(numbers[theirs], rel=1e-4)
        assert result.loss.item() == pytest.approx(numbers["total"], rel=1e-4)

    gradients = {name: parameter.grad for name, parameter in draft.named_parameters()}
    assert len(gradients) == len(expected["grad"])
    for name, numbers in expected["grad"].items():
        prefix = next(prefix for prefix in KEY_MAPS["token_guided"] if name.startswith(prefix))
        gradient = gradients[KEY_MAPS["token_guided"][prefix] + name.removeprefix(prefix)]
        assert gradient.norm().item() == pytest.approx(numbers["norm"], rel=1e-4)
        torch.testing.assert_close(
            gradient.flatten()[:8], torch.tensor(numbers["first8"]), rtol=1e-3, atol=1e-5 * numbers["absmax"] + 1e-7
        )


@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_every_pass_equals_the_released_loop(case, arguments):
    expected = golden_tensors(case, "train_step_maskfix")
    _, draft = golden_case(case)
    batch = golden_batch(case)
    with torch.no_grad():
        results = multi_pass_objective(draft, batch, arguments, num_passes=3)
    for number, result in enumerate(results, start=1):
        for name in ("predict", "regress"):
            ours, theirs = getattr(result.output, name), expected[f"pass{number}.{name}"]
            torch.testing.assert_close(ours[batch.key_mask], theirs[batch.key_mask], rtol=0, atol=1e-5)
        assert torch.equal(result.mask, expected[f"pass{number}.loss_mask"].bool())
        wanted = batch.loss_mask
        assert torch.equal(result.is_hit[wanted], expected[f"pass{number}.top3_hit"].bool()[wanted])


@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_online_features_make_the_released_batch(case):
    """The two stored samples, padded together, through the target: the batch of the released dataset and collator."""
    target, _ = golden_case(case)
    stored = golden_tensors(case, "train_step")
    samples = [stored[f"raw{index}.input_ids"] for index in range(2)]
    loss_masks = [stored[f"raw{index}.loss_mask"] for index in range(2)]
    pad = lambda rows: torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # noqa: E731
    attention_mask = pad([torch.ones_like(sample) for sample in samples])
    batch = draft_batch(target.base_model, pad(samples), pad(loss_masks), attention_mask)

    # The released batch gives the last token a position of its own, which has no loss.
    assert torch.equal(batch.loss_mask, stored["batch.loss_mask"].bool()[:, :-1])
    assert torch.equal(batch.input_ids[batch.key_mask], stored["batch.input_ids"][:, :-1][batch.key_mask])
    for ours, theirs in ((batch.features, "hidden_states"), (batch.next_features, "target")):
        expected = stored[f"batch.{theirs}"][:, :-1]
        torch.testing.assert_close(ours[batch.key_mask], expected[batch.key_mask], rtol=0, atol=1e-5)
