"""The draft's forward agrees with the released network, in prefill, in an incremental step and under a tree mask."""

import pytest
import torch

from conftest import GOLDEN_CASES, golden_case, golden_tensors


TOLERANCE = 1e-5  # fp32, another order of summation


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", GOLDEN_CASES)
@torch.no_grad()
def test_every_output_of_the_released_network_is_reproduced(name, attention):
    _, draft = golden_case(name)
    draft.set_attn_implementation(attention)
    golden = golden_tensors(name, "forward")
    fused = []
    draft.fusion.register_forward_hook(lambda module, inputs, output: fused.append(output))

    def run(stage, cache, attention_mask=None):
        return draft(
            input_ids=golden[f"{stage}.input_ids"],
            features=golden[f"{stage}.hidden_states"],
            position_ids=golden[f"{stage}.position_ids"],
            attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=True,
        )

    prefill = run("prefill", None)
    assert_near(fused[0], golden["prefill.tgf_output"])
    assert_near(prefill.predict, golden["prefill.predict"])
    assert_near(prefill.regress, golden["prefill.regress"])
    cache = prefill.past_key_values
    assert_near(cache.layers[0].keys, golden["prefill.past_key"])
    assert_near(cache.layers[0].values, golden["prefill.past_value"])

    step = run("step", cache)
    assert_near(step.predict, golden["step.predict"])
    assert_near(step.regress, golden["step.regress"])

    # Four siblings: each sees the 27 verified pairs and, of the level, what the tree mask shows.
    sees_level = golden["level.tree_mask"].bool()
    allowed = torch.cat((torch.ones(1, 1, 4, 27, dtype=torch.bool), sees_level), dim=-1)
    mask = allowed if attention == "sdpa" else torch.zeros(allowed.shape).masked_fill(~allowed, -1e30)
    level = run("level", cache, mask)
    assert_near(level.predict, golden["level.predict"])
    assert_near(level.regress, golden["level.regress"])


@pytest.mark.parametrize("name", GOLDEN_CASES)
@torch.no_grad()
def test_features_are_the_targets_last_hidden_states(name):
    target, draft = golden_case(name)
    golden = golden_tensors(name, "target_check")
    output = target(golden["input_ids"], output_hidden_states=True)
    torch.testing.assert_close(output.hidden_states[-1], golden["last_hidden_state"], atol=5e-5, rtol=0)
    torch.testing.assert_close(output.logits, golden["logits"], atol=5e-5, rtol=0)
    torch.testing.assert_close(draft.compute_logits(output.hidden_states[-1]), output.logits)
