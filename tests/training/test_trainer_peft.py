"""LoRA adapters on a draft: trained, saved, loaded, merged, and drafting in `generate()`."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from trainer_helpers import make_trainer

from conftest import tiny_llama
from transformers_griffin import GriffinDraftModel


LORA = {"r": 4, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "fc"]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The target, the draft as it was, the adapted draft after some steps with a checkpoint, and its folder."""
    folder = tmp_path_factory.mktemp("lora")
    target = tiny_llama()
    draft = GriffinDraftModel.from_target(target).eval()
    adapted = get_peft_model(copy.deepcopy(draft).bind(target), LoraConfig(**LORA))
    trainer = make_trainer(folder, adapted, target, save_strategy="steps", save_steps=2, activation_checkpointing=True)
    trainer.train()
    trainer.save_model()
    return target, draft, adapted.eval(), folder, trainer


def outputs(draft) -> torch.Tensor:
    torch.manual_seed(0)
    inputs = {"input_ids": torch.randint(0, 61, (2, 9)), "features": torch.randn(2, 9, 32)}
    with torch.no_grad():
        return draft(**inputs).predict


def test_only_adapters_learn_and_are_saved(trained):
    target, draft, adapted, folder, _ = trained
    learnt = {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert learnt
    assert all("lora_" in name for name in learnt)
    base = {name.replace(".base_layer", ""): weight for name, weight in adapted.get_base_model().named_parameters()}
    assert all(torch.equal(base[name], weight) for name, weight in draft.named_parameters())
    files = {path.name for path in folder.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json"} <= files
    assert "model.safetensors" not in files
    assert not target.get_input_embeddings()(torch.tensor([1])).requires_grad


def test_adapters_load_on_the_draft_and_merge_into_it(trained):
    target, draft, adapted, folder, _ = trained
    assert not torch.allclose(outputs(adapted), outputs(draft), atol=1e-3)
    loaded = PeftModel.from_pretrained(copy.deepcopy(draft).bind(target), folder)
    assert torch.equal(outputs(loaded), outputs(adapted))
    merged = loaded.merge_and_unload()
    assert isinstance(merged, GriffinDraftModel)
    torch.testing.assert_close(outputs(merged), outputs(adapted), rtol=1e-4, atol=1e-5)  # another order of sums


def test_adapted_drafts_draft_wrapped_and_merged(trained):
    target, _, adapted, _, _ = trained
    merged = copy.deepcopy(adapted).merge_and_unload()
    settings = {"input_ids": torch.tensor([[1, 2, 3]]), "max_new_tokens": 12, "do_sample": False}
    plain = target.generate(**settings)
    lengths = []
    for draft in (merged, adapted):
        output = target.generate(**settings, assistant_model=draft, return_dict_in_generate=True)
        assert output.sequences.tolist() == plain.tolist()
        lengths.append(output.acceptance_lengths)
    assert lengths[0] == lengths[1]


def test_a_run_with_adapters_continues_from_its_checkpoint(trained, tmp_path):
    target, draft, adapted, folder, _ = trained
    resumed = get_peft_model(copy.deepcopy(draft).bind(target), LoraConfig(**LORA))
    trainer = make_trainer(tmp_path, resumed, target, activation_checkpointing=True)
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    assert torch.equal(outputs(resumed.eval()), outputs(adapted))
