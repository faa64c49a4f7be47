"""
Tree attention serves transformers' models through the attention interface, without code of their own.

A target reads a prompt with its own attention and then verifies a tree twice: with the 4-D mask that it takes today,
and with the packed mask under `"griffin_tree"`. Windows, soft caps, sinks, latent heads and shared caches must agree.
"""

from copy import deepcopy
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, Architecture, make_prompt, make_target
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from transformers_griffin.decoding import kernels
from transformers_griffin.decoding.draft_tree import DraftTree, ancestor_mask, as_attention_mask, tree_attention_mask
from transformers_griffin.decoding.kernels.attention_function import TREE_IMPLEMENTATION, can_read_packed_masks
from transformers_griffin.decoding.kernels.packed_mask import pack_tree_mask
from transformers_griffin.decoding.kv_cache import start_growing
from transformers_griffin.decoding.target_forward import attention_kinds


pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton exists for Linux only")

PROMPT_LENGTH, NUM_PADDED, N_NODES = 24, 3, 16  # longer than the window of 12, as is the tree's deepest path
SERVED = [a for a in ARCHITECTURES if a.mode == "tree" and a.model_type != "falcon"]


def deep_tree(device: torch.device) -> DraftTree:
    """A chain of 13 nodes, so that even the root leaves the window of the deepest one, with three branches."""
    parents = torch.tensor([[*range(-1, 12), 0, 0, 5]], device=device).clamp(min=0)
    ancestors = ancestor_mask(parents, N_NODES)
    tokens = make_prompt(N_NODES, seed=1).to(device)
    return DraftTree(tokens, parents, ancestors.sum(dim=-1) - 1, ancestors, torch.zeros(1, N_NODES))


@torch.no_grad()
def read_prompt(target: PreTrainedModel) -> tuple[Cache, torch.Tensor]:
    """The cache of a prompt that is padded on the left, and the mask of its padding."""
    padding_mask = torch.ones(1, PROMPT_LENGTH, dtype=torch.long, device=target.device)
    padding_mask[:, :NUM_PADDED] = 0
    cache = DynamicCache(config=target.config.get_text_config())
    position_ids = (padding_mask.cumsum(dim=-1) - 1).clamp(min=0)
    prompt = make_prompt(PROMPT_LENGTH).to(target.device)
    target(prompt, attention_mask=padding_mask, position_ids=position_ids, past_key_values=cache)
    start_growing(cache)
    return cache, padding_mask


def long_masks(target: PreTrainedModel, tree: DraftTree, cache: Cache, padding_mask: torch.Tensor) -> Any:
    config, masks = target.config.get_text_config(), {}
    for kind, (layer_idx, sliding_window) in attention_kinds(config).items():
        kv_length, kv_offset = cache.get_mask_sizes(N_NODES, layer_idx)
        allowed = tree_attention_mask(tree, PROMPT_LENGTH, kv_length, kv_offset, sliding_window, padding_mask)
        masks[kind] = as_attention_mask(allowed, config._attn_implementation, target.dtype)
    return masks if len(masks) > 1 else masks.popitem()[1]


def packed_masks(target: PreTrainedModel, tree: DraftTree, cache: Cache) -> Any:
    masks = {}
    for kind, (layer_idx, sliding_window) in attention_kinds(target.config.get_text_config()).items():
        masks[kind] = pack_tree_mask(
            tree.ancestors,
            tree.depths,
            torch.tensor([PROMPT_LENGTH], device=target.device),
            num_padded=torch.tensor([NUM_PADDED], device=target.device),
            sliding_window=sliding_window,
            kv_offset=cache.get_mask_sizes(N_NODES, layer_idx)[1],
        )
    return masks if len(masks) > 1 else masks.popitem()[1]


@torch.no_grad()
def assert_same_logits(architecture: Architecture, device: str = "cpu") -> None:
    target = make_target(architecture).to(device)
    tree = deep_tree(target.device)
    cache, padding_mask = read_prompt(target)
    position_ids = tree.depths + PROMPT_LENGTH - NUM_PADDED
    masks = long_masks(target, tree, cache, padding_mask)
    expected = target(
        tree.tokens, attention_mask=masks, position_ids=position_ids, past_key_values=deepcopy(cache)
    ).logits

    masks = packed_masks(target, tree, cache)
    target.set_attn_implementation(TREE_IMPLEMENTATION)
    logits = target(tree.tokens, attention_mask=masks, position_ids=position_ids, past_key_values=cache).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)  # fp32; the head's logits are of size 3


@pytest.mark.parametrize("architecture", SERVED, ids=lambda a: a.name)
def test_model_verifies_a_tree_with_the_packed_mask(architecture):
    assert_same_logits(architecture)


def test_model_verifies_a_tree_with_the_kernel_itself(monkeypatch):
    """On a CPU models run with the reference; here they run with the kernel, without a GPU in Triton's interpreter."""
    from transformers_griffin.decoding.kernels import tree_attention

    monkeypatch.setattr(tree_attention, "tree_attention_reference", tree_attention.tree_attention)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert_same_logits(next(a for a in SERVED if a.model_type == "gemma2"), device)


def test_model_with_attention_code_of_its_own_is_not_served(monkeypatch):
    monkeypatch.setattr(kernels, "available", lambda device: True)
    llama, falcon = (next(a for a in ARCHITECTURES if a.name == name) for name in ("Llama", "Falcon, rotary"))
    assert can_read_packed_masks(make_target(llama))
    assert not can_read_packed_masks(make_target(falcon))
