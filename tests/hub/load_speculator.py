"""
Loads an export with the speculators package and writes its logits; run by test_export.py in another environment::

    python -m venv speculators-env
    speculators-env/bin/pip install "speculators==0.4.0.1" "transformers==4.57.6"
    SPECULATORS_PYTHON=speculators-env/bin/python pytest tests/hub/test_export.py -m slow

0.4 is the last release that has EAGLE's network.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from speculators.models.eagle import EagleSpeculator
from transformers import LlamaConfig, LlamaForCausalLM


def load_target(directory: Path) -> LlamaForCausalLM:
    """A checkpoint of transformers 5 in an environment with transformers 4."""
    fields = json.loads((directory / "config.json").read_text())
    rope = fields.pop("rope_parameters")
    fields["rope_theta"] = rope.pop("rope_theta")
    fields["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    target = LlamaForCausalLM(LlamaConfig(**fields))
    target.load_state_dict(load_file(directory / "model.safetensors"))
    return target.eval()


def main(folder: Path) -> None:
    target = load_target(folder / "target")
    # The target comes after the weights: the package initialises what it borrows from it anew.
    speculator, info = EagleSpeculator.from_pretrained(
        folder / "draft", verifier_attachment_mode="detached", output_loading_info=True
    )
    assert not info["unexpected_keys"], info
    assert not info["missing_keys"], info
    speculator.attach_verifier(target, mode="train_only")
    # The package leaves this to a model around the layer, and takes row 0 of the layer's batch for an item of a tuple.
    speculator.config.transformer_layer_config._attn_implementation = "eager"
    inputs = torch.load(folder / "inputs.pt")
    mask = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        logits = speculator.eval()(inputs["input_ids"], inputs["features"], attention_mask=mask).logits
    torch.save(logits.view(1, *mask.shape[1:], -1), folder / "logits.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
