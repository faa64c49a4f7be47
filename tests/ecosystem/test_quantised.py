"""
Quantised targets and drafts, with torchao and bitsandbytes on a CPU.

The target of an answer is the quantised model: its own plain answers are what drafts must not change. Quantising a
draft changes what it proposes, never the answer.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from answers import SIZES, assert_same_answers
from peft import LoraConfig, get_peft_model
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

from conftest import tiny_llama
from transformers_griffin import GriffinDraftModel
from transformers_griffin.decoding.draft_head import DraftHead


QUANTISATIONS = {
    "torchao-int8": TorchAoConfig(Int8WeightOnlyConfig()),
    "torchao-int8-dynamic": TorchAoConfig(Int8DynamicActivationInt8WeightConfig()),
    "bitsandbytes-8bit": BitsAndBytesConfig(load_in_8bit=True),
    "bitsandbytes-4bit": BitsAndBytesConfig(load_in_4bit=True),
}
# Bytes on disk relative to float32: a quarter or an eighth, and scales and norms.
LARGEST_SHARE = {"8bit": 0.32, "int8": 0.32, "dynamic": 0.32, "4bit": 0.22}


SLOW = ("torchao-int8-dynamic", "bitsandbytes-8bit")
EACH = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in QUANTISATIONS]
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The directory of a target and its draft, both in float32."""
    folder = tmp_path_factory.mktemp("pair")
    target = tiny_llama(**SIZES)
    target.save_pretrained(folder / "target")
    torch.manual_seed(1)
    GriffinDraftModel.from_target(target).save_pretrained(folder / "draft")
    return folder


def load_target(saved, name: str | None = None):
    settings = {} if name is None else {"quantization_config": QUANTISATIONS[name]}
    return AutoModelForCausalLM.from_pretrained(saved / "target", **settings).eval()


def load_draft(saved, name: str):
    return GriffinDraftModel.from_pretrained(saved / "draft", quantization_config=QUANTISATIONS[name]).eval()


def float_linears(model) -> list[str]:
    """Linear layers that were not quantised."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and type(module.weight.data) is torch.Tensor
        and module.weight.is_floating_point()
    ]  # fmt: skip


@EACH
def test_a_quantised_target_answers_as_it_does_alone(saved, name):
    target = load_target(saved, name)
    assert float_linears(target) == ["lm_head"]
    draft = GriffinDraftModel.from_target(target).eval()
    assert draft.dtype == torch.float32
    assert_same_answers(target, draft)


@EACH
def test_a_quantised_draft_is_quantised_whole_and_changes_no_answer(saved, name):
    """The last layer's MLP too, which quantizers would take for an LM head if it came last."""
    draft = load_draft(saved, name)
    assert float_linears(draft) == []
    assert_same_answers(load_target(saved), draft)
    assert_same_answers(load_target(saved, name), draft)


@EACH
def test_a_quantised_draft_comes_back_from_a_smaller_file(saved, name, tmp_path):
    draft = load_draft(saved, name)
    draft.generation_config.draft_tree_depth = 3
    draft.generation_config.num_assistant_tokens = 7
    draft.save_pretrained(tmp_path)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path, saved / "draft")]
    assert sizes[0] < LARGEST_SHARE[name.rpartition("-")[2]] * sizes[1]
    back = GriffinDraftModel.from_pretrained(tmp_path).eval()
    assert float_linears(back) == []
    assert back.generation_config.draft_tree_depth == 3
    inputs = {"inputs_embeds": torch.randn(1, 6, 64), "features": torch.randn(1, 6, 64)}
    with torch.no_grad():
        assert torch.equal(back(**inputs).predict, draft(**inputs).predict)


@EACH
def test_a_truncated_vocabulary_survives_quantisation(saved, name, tmp_path):
    """The target's head stays in float here, so its rows are copied; the map is no weight, and stays as it is."""
    whole = GriffinDraftModel.from_pretrained(saved / "draft")
    whole.truncate_vocabulary(range(0, 61, 2)).save_pretrained(tmp_path / "whole")
    draft = GriffinDraftModel.from_pretrained(tmp_path / "whole", quantization_config=QUANTISATIONS[name]).eval()
    draft.save_pretrained(tmp_path / "quantised")
    back = GriffinDraftModel.from_pretrained(tmp_path / "quantised").eval()
    for loaded in (draft, back):
        assert loaded.token_map.tolist() == list(range(0, 61, 2))
        assert loaded.token_map.dtype == torch.long
    assert_same_answers(load_target(saved, name), back)
    assert DraftHead(back).copy is not None


def test_a_quantised_head_is_read_as_a_whole(saved):
    """torchao's rows are no plain ones."""
    target = load_target(saved)
    quantize_(target.lm_head, Int8WeightOnlyConfig())
    draft = GriffinDraftModel.from_pretrained(saved / "draft").eval().bind(target).truncate_vocabulary([3, 9, 60])
    head, predict = DraftHead(draft), torch.randn(2, 64)
    assert head.copy is None
    assert torch.equal(head.logits(predict), draft.compute_logits(predict)[:, [3, 9, 60]])


def test_adapters_on_a_quantised_target_and_on_a_quantised_draft(saved):
    """As QLoRA makes them."""
    adapted = []
    for model, layers in (
        (load_target(saved, "bitsandbytes-4bit"), ["q_proj", "down_proj"]),
        (load_draft(saved, "bitsandbytes-4bit"), ["fc", "q_proj", "down_proj"]),
    ):
        adapted.append(get_peft_model(model, LoraConfig(r=4, target_modules=layers)).eval())
        torch.manual_seed(0)
        for weight_name, weight in adapted[-1].named_parameters():
            if "lora_" in weight_name:
                torch.nn.init.normal_(weight, std=0.1)
    assert_same_answers(adapted[0].get_base_model(), adapted[1])


@pytest.mark.slow
def test_the_mini_pairs_draft_quantised_is_half_as_large_and_as_good():
    """From bfloat16 to int8 halves the file; tau over three prompts stays within a quarter."""
    script = Path(__file__).parents[2] / "trainers" / "mini_pair" / "quantised_draft.py"
    arguments = ["--prompts_per_domain", "1", "--max_new_tokens", "24"]
    done = subprocess.run([sys.executable, script, *arguments], check=True, capture_output=True, text=True)
    whole, *quantised = json.loads(done.stdout.splitlines()[-1])["drafts"]
    assert len(quantised) == 3
    for row in (whole, *quantised):
        assert row["identical"] == row["prompts"] == 3
    for row in quantised:
        assert row["bytes"] < 0.52 * whole["bytes"]
        assert row["tau"] == pytest.approx(whole["tau"], rel=0.25)
