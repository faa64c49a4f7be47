"""`torch.export` of the draft's forward: a program without this package, for any length and batch size."""

import pytest
import torch
from torch.export import Dim

from conftest import tiny_llama
from transformers_griffin import GriffinDraftModel


# What differs in the graph: the fusion, the number of outputs, the number of layers.
KINDS = {
    "griffin": {},
    "eagle": {"fusion": "concat", "dual_head": False},
    "two layers": {"num_hidden_layers": 2},
}


@pytest.mark.parametrize(
    "kind",
    ["griffin", pytest.param("eagle", marks=pytest.mark.slow), pytest.param("two layers", marks=pytest.mark.slow)],
)
def test_an_exported_draft_computes_the_same_for_other_shapes(tmp_path, kind):
    draft = GriffinDraftModel.from_target(tiny_llama(), **KINDS[kind]).eval()
    example = {"inputs_embeds": torch.randn(2, 9, 32), "features": torch.randn(2, 9, 32), "return_dict": False}
    shapes = {name: {0: Dim.AUTO, 1: Dim.AUTO} for name in ("inputs_embeds", "features")} | {"return_dict": None}
    program = torch.export.export(draft, (), example, dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "draft.pt2")
    loaded = torch.export.load(tmp_path / "draft.pt2").module()

    inputs = {"inputs_embeds": torch.randn(3, 5, 32), "features": torch.randn(3, 5, 32), "return_dict": False}
    with torch.no_grad():
        found, expected = loaded(**inputs), draft(**inputs)
    for name, one, other in zip(("predict", "regress"), found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5, msg=name)


def test_a_bound_draft_is_exported_with_the_targets_embedding():
    draft = GriffinDraftModel.from_target(tiny_llama()).eval()
    inputs = {"input_ids": torch.randint(0, 61, (1, 9)), "features": torch.randn(1, 9, 32)}
    program = torch.export.export(draft, (), inputs)
    assert set(program.state_dict) == set(draft.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(program.module()(**inputs).predict, draft(**inputs).predict, rtol=1e-5, atol=1e-5)
