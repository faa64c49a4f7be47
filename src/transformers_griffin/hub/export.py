"""
Drafts for serving engines: EAGLE's network in the layouts that vLLM, SGLang and speculators load.

Serving is not this package's job, but a draft trained here can serve elsewhere if it has EAGLE's network: one linear
layer over [embedding ; feature], decoder layers of Llama without the first input norm, no final norm, one output.
Everything else about GRIFFIN is training, which the engines never see (the paper's "w/o TAD" row, Table 2).

What the loaders demand beyond that, and do not say when it is missing:

1. vLLM (`EagleLlamaForCausalLM`): the fusion has no bias, and an `fc.bias` in the file is an error.
2. SGLang (`LlamaForCausalLMEagle`): the fusion has a bias, and without `fc.bias` in the file it stays random. A draft
   without bias is written with one of zeros, so the two engines need a directory each.
3. Both read the target's embedding rows and LM head. A copy in the file is not read, and vLLM even takes its presence
   for a draft with an embedding of its own, so none is written.
4. `bias` in `config.json` means the fusion's bias to EAGLE and the attention's to the engines, so it is left out.
5. speculators (`EagleSpeculator`, releases up to 0.4): one layer, and the rotary embedding is the target's. vLLM's own
   reader of this format knows newer draft kinds only; vLLM loads the `eagle` layout.
6. Of a truncated draft vocabulary, SGLang takes the tokens in a file (`--speculative-token-map`), which is written
   beside the weights. The others propose from all tokens.

It does not write the released layout of EAGLE's own code: that is `conversion.py`.
"""

import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from ..checkpoint_files import SAFETENSORS_FILE
from ..conversion import released_config, released_weights, warn_of_whole_vocabulary, write_config
from ..decoding.tree_settings import tree_settings
from ..modeling_griffin import GriffinDraftModel


FORMATS = ("eagle", "speculators")
ENGINES = ("vllm", "sglang")
TOKEN_MAP_FILE = "token_map.pt"


def export_draft(
    draft: GriffinDraftModel,
    directory: str | os.PathLike,
    target: PreTrainedModel,
    format: str = "eagle",
    engine: str = "vllm",
) -> None:
    """
    Writes a draft so that a serving engine loads it.

    Args:
        draft ([`GriffinDraftModel`]): made with `fusion="concat"` and `dual_head=False`.
        directory (`str` or `os.PathLike`): where to write; made if it does not exist.
        target ([`~transformers.PreTrainedModel`]):
            The target that the draft was trained for. Only its configuration and classes are read, so it may be on
            the meta device.
        format (`str`, defaults to `"eagle"`): `"eagle"`, or `"speculators"` for the package of that name.
        engine (`str`, defaults to `"vllm"`): which engine's `"eagle"` layout, `"vllm"` or `"sglang"`.

    Effects:
        The draft is bound to `target`.

    Raises:
        ValueError: if format or engine are unknown, the engine has no such network, or the target does not fit.
    """
    for name, value, allowed in (("format", format, FORMATS), ("engine", engine, ENGINES)):
        if value not in allowed:
            raise ValueError(f"`{name}` is {value!r}, but must be one of {', '.join(allowed)}.")
    draft.bind(target)
    loader = "speculators" if format == "speculators" else engine
    check_exportable(draft, target, loader)

    config, weights = _eagle_config(draft), released_weights(draft)
    if loader == "speculators":
        config = _speculators_config(draft, target, config)
        weights = {_speculators_key(key): tensor for key, tensor in weights.items()}
    elif loader == "sglang":
        weights.setdefault("fc.bias", torch.zeros_like(weights["fc.weight"][:, 0]))
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_config(config, directory)
    save_file(weights, directory / SAFETENSORS_FILE, metadata={"format": "pt"})
    if loader != "sglang":
        warn_of_whole_vocabulary(draft, loader)
    elif draft.token_map is not None:
        torch.save(draft.token_map.tolist(), directory / TOKEN_MAP_FILE)


def check_exportable(draft: GriffinDraftModel, target: PreTrainedModel, loader: str) -> None:
    """
    Raises a `ValueError` with everything that `loader` (`"vllm"`, `"sglang"` or `"speculators"`) has no form for, and
    how to train a draft that it has a form for.
    """
    config = draft.config
    # (what the loader's network lacks, the draft has it, the field of GriffinDraftConfig without it)
    demands = [
        ("token-guided fusion", config.fusion != "concat", 'fusion="concat"'),
        ("a second output", config.dual_head, "dual_head=False"),
        ("a bias of the fusion", config.fusion_bias and loader == "vllm", "fusion_bias=False"),
        ("attention biases", config.attention_bias, "attention_bias=False"),
        ("MLP biases", config.mlp_bias, "mlp_bias=False"),
        (f"the activation {config.hidden_act!r}", config.hidden_act != "silu", 'hidden_act="silu"'),
        (
            f"{config.num_hidden_layers} layers",
            config.num_hidden_layers > 1 and loader == "speculators",
            "num_hidden_layers=1",
        ),
    ]
    found = [(part, field) for part, is_there, field in demands if is_there]
    if found:
        parts, fields = (", ".join(items) for items in zip(*found, strict=True))
        raise ValueError(
            f"{loader} cannot load this draft: its EAGLE network has no form for {parts}. Keep this draft for "
            "`generate()`, and for serving train one of the kind that can be exported, with the same objective: "
            f"`GriffinDraftModel.from_target(target, {fields})`, or these fields as `draft_config` of the recipe."
        )
    _check_target(draft, target, loader)


def _check_target(draft: GriffinDraftModel, target: PreTrainedModel, loader: str) -> None:
    """The engine computes embeddings, and speculators positions too, in its own way."""
    embedding = type(target.get_input_embeddings())
    if embedding.forward is not nn.Embedding.forward:
        raise ValueError(
            f"{loader} gives drafts the plain rows of the embedding, but {embedding.__name__} of "
            f"{type(target).__name__} changes them, and this draft has learnt from the changed ones. Serve this "
            "target without this draft."
        )
    if loader != "speculators":
        return
    text_config = target.config.get_text_config(decoder=True)
    for name in ("head_dim", "rope_parameters"):
        own, theirs = getattr(draft.config, name), getattr(text_config, name, None)
        if own != theirs:
            raise ValueError(
                f"speculators turns the draft's heads with the target's rotary embedding, but the draft's `{name}` is "
                f"{own} and the target's is {theirs}. Export it with `format='eagle'`."
            )


def _eagle_config(draft: GriffinDraftModel) -> dict[str, Any]:
    rope = {name: value for name, value in dict(draft.config.rope_parameters or {}).items() if name != "rope_theta"}
    config = released_config(draft) | {
        "architectures": ["LlamaForCausalLMEagle"],
        "model_type": "llama",
        "rope_scaling": None if rope["rope_type"] == "default" else rope,
    }
    return {name: value for name, value in config.items() if name not in ("bias", "qkv_bias")}


def _speculators_config(draft: GriffinDraftModel, target: PreTrainedModel, layer: dict[str, Any]) -> dict[str, Any]:
    layer = {name: value for name, value in layer.items() if name not in ("architectures", "torch_dtype")}
    _, depth, _ = tree_settings(draft.generation_config, draft.config.vocab_size)
    return {
        "architectures": ["EagleSpeculator", "LlamaDecoderLayer"],
        "fusion_bias": draft.config.fusion_bias,
        "layernorms": False,
        "speculators_config": {
            "algorithm": "eagle",
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": depth}],
            "verifier": {
                "architectures": target.config.architectures or [type(target).__name__],
                "name_or_path": target.config.name_or_path,
            },
        },
        "speculators_model_type": "eagle",
        "torch_dtype": str(draft.dtype).removeprefix("torch."),
        "transformer_layer_architecture": "LlamaDecoderLayer",
        "transformer_layer_config": layer,
    }


def _speculators_key(key: str) -> str:
    return (
        key.replace("fc.", "fusion_fc.", 1) if key.startswith("fc.") else key.replace("layers.0.", "transformer.", 1)
    )


__all__ = ["ENGINES", "FORMATS", "check_exportable", "export_draft"]
