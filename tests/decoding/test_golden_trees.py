"""Drafted trees agree with the released code node for node."""

import pytest
import torch
from transformers import GenerationConfig

from conftest import GOLDEN_CASES, golden_case, golden_tensors
from transformers_griffin import GriffinCandidateGenerator


@pytest.mark.parametrize(("total", "passes", "top_k"), [(60, 5, 10), (63, 5, 8), (16, 3, 4)])
@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_tree_is_the_released_one_node_for_node(name, total, passes, top_k):
    """The released depth counts passes after the first, ours counts levels: passes + 1."""
    _, draft = golden_case(name)
    golden = golden_tensors(name, f"tree_{total}_{passes}_{top_k}")
    settings = GenerationConfig(num_assistant_tokens=total - 1, draft_tree_depth=passes + 1, draft_tree_top_k=top_k)
    generator = GriffinCandidateGenerator(draft, settings)

    # The second call continues on the cache of the first, after two accepted tokens.
    for call in ("call1", "call2"):
        features = golden[f"{call}.hidden_states"]
        tree = generator.draft_tree(golden[f"{call}.input_ids"][:, -features.shape[1] :], features)
        parents = golden[f"{call}.node_parent"].clamp(min=0)  # -1 at the root there, its own parent here
        assert torch.equal(tree.tokens, golden[f"{call}.draft_tokens"])
        assert torch.equal(tree.parents[0], parents)
        assert torch.equal(tree.depths[0], golden[f"{call}.tree_position_ids"])
        assert torch.equal(tree.ancestors[0], golden[f"{call}.tree_mask"][0, 0].bool())
        torch.testing.assert_close(tree.scores[0, 1:], golden[f"{call}.node_scores"], atol=5e-5, rtol=0)
        assert generator.cache.get_seq_length() == golden[f"{call}.input_ids"].shape[1] - 1
