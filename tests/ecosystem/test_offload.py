"""`device_map` and big-model loading: offloaded weights are on the meta device until their module runs."""

import re

import pytest
import torch
from answers import drafted_answer, plain_answer
from transformers import AutoModelForCausalLM

from accelerate import cpu_offload, infer_auto_device_map, init_empty_weights, load_checkpoint_and_dispatch
from conftest import tiny_llama
from transformers_griffin import GriffinDraftModel


PARTS = ("model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head")
DEVICE_MAPS = {
    "nothing": {},
    "a layer": {"model.layers.1": "disk"},
    "the LM head": {"lm_head": "disk"},
    "the embedding": {"model.embed_tokens": "disk"},
    "everything": dict.fromkeys(PARTS, "disk"),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The directory of a target and its draft, and what they answer in memory."""
    folder = tmp_path_factory.mktemp("pair")
    target = tiny_llama()
    draft = GriffinDraftModel.from_target(target).eval()
    target.save_pretrained(folder / "target")
    draft.save_pretrained(folder / "draft")
    expected = drafted_answer(target, draft)
    assert expected[0] == plain_answer(target)
    assert max(expected[1]) > 1
    return folder, expected


def load_target(folder, tmp_path, device_map):
    return AutoModelForCausalLM.from_pretrained(
        folder / "target", device_map=device_map, offload_folder=tmp_path / "offload"
    ).eval()


@pytest.mark.parametrize("offloaded", DEVICE_MAPS)
def test_an_offloaded_target_answers_as_in_memory(pair, tmp_path, offloaded):
    """The draft borrows embedding and LM head, wherever their weights are."""
    folder, expected = pair
    target = load_target(folder, tmp_path, dict.fromkeys(PARTS, "cpu") | DEVICE_MAPS[offloaded])
    assert any(weight.is_meta for weight in target.parameters()) == (offloaded != "nothing")
    draft = GriffinDraftModel.from_pretrained(folder / "draft")
    assert drafted_answer(target, draft) == expected


def test_device_map_auto_fills_memory_first(pair, tmp_path):
    folder, expected = pair
    target = AutoModelForCausalLM.from_pretrained(
        folder / "target", device_map="auto", max_memory={"cpu": 45_000}, offload_folder=tmp_path
    )
    assert set(target.hf_device_map.values()) == {"cpu", "disk"}
    draft = GriffinDraftModel.from_pretrained(folder / "draft", device_map="auto")
    assert drafted_answer(target, draft) == expected


def test_a_target_offloaded_after_loading(pair):
    folder, expected = pair
    target = cpu_offload(tiny_llama())
    assert all(weight.is_meta for weight in target.parameters())
    assert drafted_answer(target, GriffinDraftModel.from_pretrained(folder / "draft")) == expected


def test_a_fresh_draft_for_an_offloaded_target_is_where_weights_are(pair, tmp_path):
    folder, _ = pair
    target = load_target(folder, tmp_path, dict.fromkeys(PARTS, "cpu") | {"lm_head": "disk"})
    draft = GriffinDraftModel.from_target(target)
    assert {weight.device.type for weight in draft.parameters()} == {"cpu"}
    everything = load_target(folder, tmp_path, dict.fromkeys(PARTS, "disk"))
    assert {weight.device.type for weight in GriffinDraftModel.from_target(everything).parameters()} == {"cpu"}


# ---------------------------------------------------------------------- the draft


def test_a_partly_offloaded_draft_drafts_and_is_saved_whole(pair, tmp_path):
    folder, expected = pair
    draft = GriffinDraftModel.from_pretrained(folder / "draft")
    device_map = infer_auto_device_map(draft, max_memory={"cpu": 30_000, "disk": 10**9})
    assert device_map["layers"] == "disk"  # a layer is never split
    offloaded = GriffinDraftModel.from_pretrained(
        folder / "draft", device_map=device_map, offload_folder=tmp_path / "offload"
    )
    assert drafted_answer(tiny_llama(), offloaded) == expected
    offloaded.save_pretrained(tmp_path / "saved")
    back = GriffinDraftModel.from_pretrained(tmp_path / "saved")
    assert all(torch.equal(weight, back.state_dict()[name]) for name, weight in draft.state_dict().items())


def test_a_draft_offloaded_as_a_whole_is_refused(pair, tmp_path):
    folder, _ = pair
    draft = GriffinDraftModel.from_pretrained(
        folder / "draft", device_map={"": "disk"}, offload_folder=tmp_path / "offload"
    )
    with pytest.raises(RuntimeError, match=re.escape("load it without `device_map`, or with one that keeps `fusion`")):
        drafted_answer(tiny_llama(), draft)


def test_accelerate_loads_a_draft_into_an_empty_model(pair):
    folder, expected = pair
    config = GriffinDraftModel.config_class.from_pretrained(folder / "draft")
    with init_empty_weights():
        empty = GriffinDraftModel(config)
    assert all(weight.is_meta for weight in empty.parameters())
    draft = load_checkpoint_and_dispatch(empty, folder / "draft", device_map={"": "cpu"})
    assert drafted_answer(tiny_llama(), draft) == expected
