"""
Random pairs in the shape of published ones, for what does not depend on weights.

A random draft is never right. Cycles that accept nothing would be untypical, so the target can be made to agree with
one path of each tree: a few small operations a cycle, counted as accepting.

Next: `weight_reads.py`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel, Qwen2Config

from ..decoding import loop
from ..decoding.draft_tree import DraftTree
from ..modeling_griffin import GriffinDraftModel


# Sizes as published; positions reach as far as the longest prompt.
SHAPES: dict[str, tuple[Callable[..., PreTrainedConfig], dict[str, int]]] = {
    "llama-3-8b": (
        LlamaConfig,
        {
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
        },
    ),
    "llama-2-7b": (
        LlamaConfig,
        {
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
        },
    ),
    "qwen2-7b": (
        Qwen2Config,
        {
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
        },
    ),
    "tiny": (  # a smoke test for machines without a GPU
        LlamaConfig,
        {
            "vocab_size": 512,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
    ),
}
MAX_POSITIONS = 32768
AGREED_LEVELS = 4  # of a tree, where it is as deep: a typical tau for a trained draft is 4 to 5


def build_pair(
    shape: str,
    dtype: torch.dtype,
    device: torch.device,
    seed: int = 0,
    draft_vocab_size: int | None = None,
    draft_head_dtype: str | None = None,
) -> tuple[PreTrainedModel, GriffinDraftModel]:
    """
    A random target and a random draft for it, made on the device: nothing passes through the host's memory.

    Args:
        shape (`str`): one of `SHAPES`.
        dtype (`torch.dtype`): of all weights.
        device (`torch.device`): where they are made.
        seed (`int`, defaults to 0): of the weights.
        draft_vocab_size (`int`, *optional*): how many tokens the draft can propose; all when not given.
        draft_head_dtype (`str`, *optional*): `"int8"`, or the head's own format.

    Raises:
        ValueError: if the shape is unknown, or has fewer tokens.
    """
    if shape not in SHAPES:
        raise ValueError(f"Unknown shape {shape!r}; give one of {', '.join(SHAPES)}.")
    config_class, sizes = SHAPES[shape]
    config = config_class(
        **sizes, max_position_embeddings=MAX_POSITIONS, bos_token_id=None, eos_token_id=None, pad_token_id=0
    )
    torch.manual_seed(seed)
    with torch.device(device):
        target = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
        draft: Any = GriffinDraftModel.from_target(target).eval()
        draft.generation_config.draft_head_dtype = draft_head_dtype
        return target, draft if draft_vocab_size is None else draft.truncate_vocabulary(range(draft_vocab_size))


@contextmanager
def agreeing_target(num_levels: int = AGREED_LEVELS) -> Iterator[None]:
    """
    While open, the target chooses what some path of every tree says, `num_levels` deep or as deep as the tree.

    Effects: verified logits are changed, in all threads.
    """
    accept = loop.Answer.accept

    def agree(answer: Any, tree: DraftTree, logits: torch.Tensor, path_length: int) -> Any:
        _raise_path(tree, logits, num_levels)
        return accept(answer, tree, logits, path_length)

    with patch.object(loop.Answer, "accept", agree):
        yield


def _raise_path(tree: DraftTree, logits: torch.Tensor, num_levels: int) -> None:
    """Makes the nodes above the first of the deepest allowed ones the target's choices; the host need not know."""
    rows = torch.arange(tree.tokens.shape[0], device=tree.tokens.device).unsqueeze(1)
    leaf = tree.depths.masked_fill(tree.depths > num_levels, -1).argmax(dim=1, keepdim=True)
    on_path = tree.ancestors[rows, leaf].squeeze(1)[:, 1:]  # without the root, which is chosen already
    at = (rows, tree.parents[:, 1:], tree.tokens[:, 1:])
    logits[at] = torch.where(on_path, torch.finfo(logits.dtype).max, logits[at])


__all__ = ["MAX_POSITIONS", "SHAPES", "agreeing_target", "build_pair"]
