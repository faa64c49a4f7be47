"""A draft learns from a quantised or offloaded target, of which the trainer takes the last hidden state only."""

import copy
from functools import partial

import pytest
import torch
from torchao.quantization import Int8WeightOnlyConfig
from trainer_helpers import make_trainer, training_log
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

from conftest import tiny_llama
from transformers_griffin import GriffinDraftModel
from transformers_griffin.training.fingerprints import describe_target


QUANTISATIONS = {
    "bitsandbytes-8bit": BitsAndBytesConfig(load_in_8bit=True),
    "bitsandbytes-4bit": BitsAndBytesConfig(load_in_4bit=True),
    "torchao-int8": TorchAoConfig(Int8WeightOnlyConfig()),
}
OFFLOADED = {
    "one layer": dict.fromkeys(("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb"), "cpu")
    | {"model.layers.1": "disk", "lm_head": "cpu"},
    "everything": {"model": "disk", "lm_head": "disk"},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("target")
    tiny_llama(hidden_size=64, intermediate_size=128).save_pretrained(folder)
    return folder


@torch.no_grad()  # bitsandbytes has other kernels where gradients are wanted
def features_of(target) -> torch.Tensor:
    return target.base_model(torch.tensor([[1, 2, 3]])).last_hidden_state


def train(folder, target, draft) -> list[float]:
    # Without alignment masks, which turn a small difference into another number of positions.
    trainer = make_trainer(folder, model=copy.deepcopy(draft), target=target, max_steps=3, alignment_top_k=0)
    trainer.train()
    return [entry["loss"] for entry in training_log(trainer)] + [trainer.evaluate()["eval_loss"]]


@pytest.mark.parametrize("name", QUANTISATIONS)
def test_a_draft_learns_from_a_quantised_target(saved, tmp_path, name):
    """The losses are near those with the float target, not equal to them; the target stays as it is."""
    whole = AutoModelForCausalLM.from_pretrained(saved)
    draft = GriffinDraftModel.from_target(whole)
    target = AutoModelForCausalLM.from_pretrained(saved, quantization_config=QUANTISATIONS[name]).eval()
    features = features_of(target)
    expected, found = (train(tmp_path, model, draft) for model in (whole, target))
    assert found == pytest.approx(expected, rel=0.02)
    assert found != expected
    assert torch.equal(features_of(target), features)


@pytest.mark.parametrize("name", QUANTISATIONS)
def test_stored_features_know_the_quantised_target_that_they_are_of(saved, tmp_path, name):
    """The same target is known again; one with another weight, quantised the same way, is another."""
    whole = AutoModelForCausalLM.from_pretrained(saved)
    whole.model.layers[1].mlp.down_proj.weight.data[5] *= 1.5
    whole.save_pretrained(tmp_path)
    load = partial(AutoModelForCausalLM.from_pretrained, quantization_config=QUANTISATIONS[name])
    weights = [describe_target(load(folder))["weights"] for folder in (saved, saved, tmp_path)]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


@pytest.mark.parametrize("name", OFFLOADED)
def test_a_draft_learns_from_an_offloaded_target_as_from_the_same_in_memory(saved, tmp_path, name):
    whole = AutoModelForCausalLM.from_pretrained(saved)
    draft = GriffinDraftModel.from_target(whole)
    target = AutoModelForCausalLM.from_pretrained(
        saved, device_map=OFFLOADED[name], offload_folder=tmp_path / "offload"
    )
    assert any(weight.is_meta for weight in target.parameters())
    assert train(tmp_path, target, draft) == train(tmp_path, whole, draft)
