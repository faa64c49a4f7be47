"""
What identifies a target and a tokenizer: written beside stored features, and compared when they are loaded.

Next: `shards.py`.
"""

import hashlib
import json
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedModel, PreTrainedTokenizerBase


NUM_SAMPLES = 64  # values of every weight; our choice
# Fields of a configuration that say nothing about features.
IGNORED_FIELDS = ("_name_or_path", "architectures", "dtype", "transformers_version", "use_cache")
# Digits, white space, case, accents, other scripts and code: where tokenizers differ.
PROBE = "The 3 naïve CATS paid €1,234.50...\n\n\tdef f(x):  return x**2  # 你好, мир 🙂"


def describe_target(target: PreTrainedModel) -> dict[str, Any]:
    """
    Revision, configuration and a fingerprint of the weights that features depend on: all but the LM head.

    The fingerprint reads evenly spaced values of every weight in bfloat16, so it is cheap and the same in any dtype.
    """
    fields = json.loads(target.config.to_json_string(use_diff=False))
    return {
        "revision": getattr(target.config, "_commit_hash", None),
        "config": {
            name: value
            for name, value in fields.items()
            if name not in IGNORED_FIELDS and not name.endswith("_token_id")
        },
        "weights": _fingerprint_weights(target.base_model),
    }


def _fingerprint_weights(backbone: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, weight in sorted(backbone.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        for part in _plain_tensors(weight):
            if not part.is_meta and part.numel():  # offloaded weights are not here to be read
                num_samples = min(NUM_SAMPLES, part.numel())
                positions = torch.arange(num_samples) * (part.numel() - 1) // max(1, num_samples - 1)
                sample = part.flatten()[positions.to(part.device)].cpu()
                sample = sample.to(torch.bfloat16) if sample.is_floating_point() else sample
                digest.update(sample.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _plain_tensors(weight: torch.Tensor) -> list[torch.Tensor]:
    """The weight itself, or what a quantised one consists of (numbers and scales)."""
    if not is_traceable_wrapper_subclass(weight):
        return [weight]
    names, _ = weight.__tensor_flatten__()
    return [part for name in names for part in _plain_tensors(getattr(weight, name))]


def describe_tokenizer(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The size of the vocabulary, and fingerprints of it, of how text is cut and of the chat template."""
    return {
        "size": len(tokenizer),
        "vocabulary": _sha256(sorted(tokenizer.get_vocab().items())),
        "probe": _sha256(tokenizer(PROBE)["input_ids"]),
        "chat_template": _sha256(tokenizer.chat_template),
    }


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def differences(found: dict[str, Any], expected: dict[str, Any], prefix: str = "") -> list[str]:
    """
    Says which fields that both dictionaries have differ, for example `target.config.rope_theta is 1.0, was 2.0`.

    Fields of one side only are not compared: newer versions of transformers add some.
    """
    lines = []
    for name in found.keys() & expected.keys():
        mine, theirs = found[name], expected[name]
        if isinstance(mine, dict) and isinstance(theirs, dict):
            lines += differences(mine, theirs, f"{prefix}{name}.")
        elif mine != theirs:
            lines.append(f"{prefix}{name} is {_shorten(mine)}, was {_shorten(theirs)}")
    return sorted(lines)


def _shorten(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


__all__ = ["describe_target", "describe_tokenizer", "differences"]
