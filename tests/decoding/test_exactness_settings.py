"""
Greedy decoding stays exact under every setting: tree shapes, caches, attention implementations, windows, chunks.

`test_exactness.py` goes through the architectures; here a few of them, one of each kind of attention layer, go
through the settings. The last tests break the decoder on purpose and show that these comparisons notice.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.attention.flex_attention as torch_flex_attention
from architectures import ARCHITECTURES, MOE, Architecture, make_prompt, make_target
from exactness import (
    CHAIN,
    FLAT_TREE,
    GREEDY,
    LARGEST_TREE,
    NUM_NEW_TOKENS,
    PAPER_TREE,
    SMALL_TREE,
    Plain,
    assert_exact,
    decode_plainly,
    decode_with_noisy_oracle,
)
from transformers import AttentionInterface, Cache, DynamicCache, StaticCache
from transformers.integrations import flex_attention
from transformers.masking_utils import AttentionMaskInterface

from noisy_oracle import NoisyOracleDraft, noisy_oracle
from transformers_griffin import GriffinDraftModel
from transformers_griffin.decoding import target_forward
from transformers_griffin.decoding.draft_tree import DraftTree
from transformers_griffin.decoding.kv_cache import crop_last
from transformers_griffin.decoding.target_forward import TargetForward, attention_kinds, why_no_tree
from transformers_griffin.modeling_griffin import draft_config_for


SHORT, LONG = 20, 90
BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}
FULL = BY_NAME["Llama"]
WINDOW = BY_NAME["Mistral, window"]
ALTERNATING = BY_NAME["Gemma 3, alternating windows"]
SINKS = BY_NAME["GPT-OSS, sinks, alternating windows"]

each_kind_of_layers = pytest.mark.parametrize("architecture", [FULL, WINDOW, ALTERNATING], ids=lambda a: a.name)


@pytest.mark.parametrize("shape", [CHAIN, FLAT_TREE, (2, 6, 2), (30, 16, 2)], ids=str)
@each_kind_of_layers
def test_every_tree_shape_is_exact(architecture: Architecture, shape: tuple[int, int, int]) -> None:
    plain = decode_plainly(architecture, SHORT)
    ours, _ = decode_with_noisy_oracle(plain, shape)
    assert_exact(plain, ours, depth=shape[1])


def test_the_largest_tree_is_exact() -> None:
    plain = decode_plainly(ALTERNATING, SHORT)
    ours, _ = decode_with_noisy_oracle(plain, LARGEST_TREE)
    assert_exact(plain, ours, depth=16)


@pytest.mark.parametrize("sliding_window", [2, 8, 32, 100])
@pytest.mark.parametrize("cache_implementation", ["dynamic", "static"])
def test_windows_shorter_and_longer_than_the_tree_are_exact(sliding_window: int, cache_implementation: str) -> None:
    """60 nodes, 90 + 64 tokens: the prefix leaves the window of 100 only while the answer is written."""
    plain = decode_plainly(_mistral(sliding_window), LONG)
    ours, _ = decode_with_noisy_oracle(plain, PAPER_TREE, cache_implementation=cache_implementation)
    assert_exact(plain, ours, depth=6)


def _mistral(sliding_window: int) -> Architecture:
    name = f"Mistral, window {sliding_window}"
    return BY_NAME.setdefault(name, Architecture(name, "mistral", {"sliding_window": sliding_window}))


@pytest.mark.parametrize("prompt_length", [1, 2, 11, 12, 13])
def test_prompts_that_just_fill_the_window_are_exact(prompt_length: int) -> None:
    plain = decode_plainly(ALTERNATING, prompt_length)
    ours, _ = decode_with_noisy_oracle(plain, PAPER_TREE)
    assert_exact(plain, ours, depth=6)


@pytest.mark.parametrize("cache_implementation", ["dynamic", "static"])
@pytest.mark.parametrize("chunk_size", [7, 64])
@each_kind_of_layers
def test_prompt_read_in_chunks_gives_the_same_answer(
    architecture: Architecture, chunk_size: int, cache_implementation: str
) -> None:
    plain = decode_plainly(architecture, LONG)
    ours, draft = decode_with_noisy_oracle(
        plain, SMALL_TREE, prefill_chunk_size=chunk_size, cache_implementation=cache_implementation
    )
    assert_exact(plain, ours, depth=4)
    # The draft reads chunks of the same size, and every pair of the prompt once.
    num_read = [features.shape[1] for _, _, features in draft.verified]
    expected = [chunk_size] * (LONG // chunk_size) + [LONG % chunk_size]
    assert num_read[: len(expected)] == expected
    positions, embeds, features = (torch.cat(parts, dim=1)[:, :LONG] for parts in zip(*draft.verified, strict=True))
    assert positions.tolist() == [list(range(LONG))]
    tokens = plain.output.sequences[:, 1 : LONG + 1]
    torch.testing.assert_close(embeds, plain.target.get_input_embeddings()(tokens))
    _, whole = decode_with_noisy_oracle(plain, SMALL_TREE, cache_implementation=cache_implementation)
    torch.testing.assert_close(features, whole.verified[0][2], atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------------------------------------------- caches


@pytest.mark.parametrize("max_cache_len", [SHORT + NUM_NEW_TOKENS, 400])
@each_kind_of_layers
def test_users_empty_static_cache_grows_by_the_tree_if_need_be(architecture: Architecture, max_cache_len: int) -> None:
    plain = decode_plainly(architecture, SHORT)
    cache = StaticCache(plain.target.config, max_cache_len=max_cache_len)
    ours, _ = decode_with_noisy_oracle(plain, PAPER_TREE, past_key_values=cache)
    assert_exact(plain, ours, depth=6)
    assert ours.past_key_values is cache


def _cache_with_half_the_prompt(plain: Plain, max_cache_len: int) -> StaticCache:
    cache = StaticCache(plain.target.config, max_cache_len=max_cache_len)
    with torch.no_grad():
        plain.target(plain.prompt[:, : SHORT // 2], past_key_values=cache)
    return cache


def test_users_static_cache_that_holds_tokens_is_used_where_the_tree_fits_behind_the_answer() -> None:
    plain = decode_plainly(FULL, SHORT)
    cache = _cache_with_half_the_prompt(plain, max_cache_len=SHORT + NUM_NEW_TOKENS + 59)
    ours = plain.target.generate(
        plain.prompt,
        assistant_model=_oracle_without_features_of_the_past(plain),
        past_key_values=cache,
        **GREEDY,
    )
    assert ours.sequences.tolist() == plain.output.sequences.tolist()


def _oracle_without_features_of_the_past(plain: Plain) -> NoisyOracleDraft:
    """The draft counts positions from the first token it is shown, which is the one after the cached tokens."""
    return noisy_oracle(plain.target, plain.output.sequences[:, SHORT // 2 :], PAPER_TREE)


def test_users_static_cache_that_holds_tokens_and_is_too_small_is_refused() -> None:
    """20 + 64 tokens and 59 nodes behind them."""
    plain = decode_plainly(FULL, SHORT)
    cache = _cache_with_half_the_prompt(plain, max_cache_len=SHORT + NUM_NEW_TOKENS + 58)
    with pytest.raises(ValueError, match=r"holds 142 tokens, but 84 tokens and a tree of 60 nodes behind .* need 143"):
        decode_with_noisy_oracle(plain, PAPER_TREE, past_key_values=cache)


def test_users_static_cache_with_windows_that_holds_tokens_is_refused() -> None:
    plain = decode_plainly(ALTERNATING, SHORT)
    cache = _cache_with_half_the_prompt(plain, max_cache_len=400)
    with pytest.raises(ValueError, match="with sliding-window layers that already holds tokens cannot verify trees"):
        decode_with_noisy_oracle(plain, PAPER_TREE, past_key_values=cache)


# ---------------------------------------------------------------------------------------------------- attention


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@each_kind_of_layers
def test_attention_implementations_with_a_tree_mask_are_exact(
    architecture: Architecture, attn_implementation: str
) -> None:
    plain = decode_plainly(architecture, SHORT, attn_implementation)
    assert plain.target.config._attn_implementation == attn_implementation
    ours, _ = decode_with_noisy_oracle(plain, PAPER_TREE)
    assert_exact(plain, ours, depth=6)


@pytest.fixture
def uncompiled_flex_attention(monkeypatch: pytest.MonkeyPatch) -> str:
    """The flex attention of torch step by step; its compiler does not know windows on CPUs."""
    monkeypatch.setattr(torch_flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)

    def attend(*args: Any, training: bool = False, **kwargs: Any) -> torch.Tensor:
        return torch_flex_attention.flex_attention(*args, **kwargs)

    monkeypatch.setattr(flex_attention, "compile_friendly_flex_attention", attend)
    return "flex_attention"


@pytest.mark.parametrize(
    "architecture",
    [WINDOW, pytest.param(FULL, marks=pytest.mark.slow), pytest.param(ALTERNATING, marks=pytest.mark.slow)],
    ids=lambda a: a.name,
)
def test_flex_attention_is_exact(architecture: Architecture, uncompiled_flex_attention: str) -> None:
    plain = decode_plainly(architecture, SHORT, uncompiled_flex_attention)
    ours, _ = decode_with_noisy_oracle(plain, PAPER_TREE)
    assert_exact(plain, ours, depth=6)


@pytest.mark.slow
def test_compiled_flex_attention_is_exact() -> None:
    plain = decode_plainly(FULL, LONG, "flex_attention")
    ours, _ = decode_with_noisy_oracle(plain, PAPER_TREE)
    assert_exact(plain, ours, depth=6)


def _attend_without_mask(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """What flash attention does: causal from the bottom right corner, and blind to any mask."""
    q_len, kv_len = query.shape[2], key.shape[2]
    causal = torch.ones(q_len, kv_len, dtype=torch.bool).tril(kv_len - q_len)
    output = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, causal, scale=kwargs.get("scaling"), enable_gqa=True
    )
    return output.transpose(1, 2).contiguous(), None


@pytest.fixture
def maskless_attention(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(AttentionInterface._global_mapping, "maskless", _attend_without_mask)
    monkeypatch.setitem(AttentionMaskInterface._global_mapping, "maskless", lambda *args, **kwargs: None)
    target_forward.logger.warning_once.cache_clear()
    return "maskless"


def test_attention_without_masks_reads_the_prompt_and_leaves_trees_to_sdpa(
    maskless_attention: str, caplog: pytest.LogCaptureFixture
) -> None:
    plain = decode_plainly(FULL, SHORT, maskless_attention)
    for _ in range(2):
        ours, _ = decode_with_noisy_oracle(plain, PAPER_TREE)
        assert_exact(plain, ours, depth=6)
    assert plain.target.config._attn_implementation == maskless_attention
    (notice,) = [record.getMessage() for record in caplog.records if "takes no tree mask" in record.getMessage()]
    assert "prompts are read with it, trees are verified with 'sdpa'" in notice


def test_attention_without_masks_is_back_after_an_error(maskless_attention: str) -> None:
    def fail_in_a_cycle(input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if input_ids.shape[1] > SHORT + 2:
            raise RuntimeError("the user's own error")
        return torch.zeros(1, dtype=torch.bool)

    plain = decode_plainly(FULL, SHORT, maskless_attention)
    with pytest.raises(RuntimeError, match="the user's own error"):
        decode_with_noisy_oracle(plain, PAPER_TREE, stopping_criteria=[fail_in_a_cycle])
    assert plain.target.config._attn_implementation == maskless_attention


def test_trees_go_to_eager_attention_where_the_target_has_no_sdpa(maskless_attention: str) -> None:
    target = make_target(SINKS)
    target.set_attn_implementation(maskless_attention)
    cache = DynamicCache(config=target.config)
    forward = TargetForward(target, target.generation_config, {"past_key_values": cache}, max_length=64)
    with forward.tree_attention():
        assert target.config._attn_implementation == "eager"
    assert target.config._attn_implementation == maskless_attention


def test_target_that_cannot_change_its_attention_verifies_chains(maskless_attention: str) -> None:
    """Falcon chooses its attention class when it is made."""
    target = make_target(BY_NAME["Falcon, rotary"])
    target.config._attn_implementation_internal = maskless_attention
    reason = why_no_tree(target, DynamicCache(config=target.config))
    assert reason == "its attention implementation 'maskless' takes no tree mask and cannot be exchanged"


# ---------------------------------------------------------------------------------------------------- chains, refusals


def test_chain_instead_of_a_tree_is_announced_once(caplog: pytest.LogCaptureFixture) -> None:
    target_forward.logger.warning_once.cache_clear()
    plain = decode_plainly(BY_NAME["Bloom, ALiBi"], SHORT)
    for _ in range(2):
        ours, _ = decode_with_noisy_oracle(plain, PAPER_TREE)
        assert max(ours.acceptance_lengths[0]) > 2
    (notice,) = [record.getMessage() for record in caplog.records if "chains instead of trees" in record.getMessage()]
    assert notice == "BloomForCausalLM verifies chains instead of trees: its forward takes no position_ids."


def _draft_of_any_target() -> GriffinDraftModel:
    return GriffinDraftModel(draft_config_for(make_target(FULL).config, target_model_type=None))


def test_recurrent_target_is_refused() -> None:
    target = make_target(Architecture("Mamba", "mamba", {"state_size": 4}))
    with pytest.raises(ValueError, match="MambaForCausalLM keeps a state that cannot forget rejected tokens"):
        target.generate(make_prompt(4), assistant_model=_draft_of_any_target(), max_new_tokens=4)


HYBRID = {"layer_types": ["linear_attention", "full_attention"], "head_dim": 8, "linear_num_value_heads": 4}


def test_hybrid_target_is_refused() -> None:
    target = make_target(Architecture("Qwen3-Next", "qwen3_next", MOE | HYBRID))
    with pytest.raises(ValueError, match="Qwen3NextForCausalLM keeps a state that cannot forget rejected tokens"):
        target.generate(make_prompt(4), assistant_model=_draft_of_any_target(), max_new_tokens=4)


def test_target_with_convolutions_is_refused() -> None:
    target = make_target(Architecture("LFM2", "lfm2", {"layer_types": ["conv", "full_attention"]}))
    with pytest.raises(ValueError, match="it has layers of kind conv, and the cache cannot forget rejected tokens"):
        target.generate(make_prompt(4), assistant_model=_draft_of_any_target(), max_new_tokens=4)


def test_chain_with_a_static_cache_is_refused() -> None:
    plain = decode_plainly(BY_NAME["Bloom, ALiBi"], SHORT)
    with pytest.raises(ValueError, match="cannot forget rejected tokens either"):
        decode_with_noisy_oracle(plain, PAPER_TREE, cache_implementation="static")


# ---------------------------------------------------------------------------------------------------- sensitivity


def _with_tree(change: Callable[[DraftTree], DraftTree]) -> Callable[..., torch.Tensor]:
    original = target_forward.tree_attention_mask
    return lambda tree, *args, **kwargs: original(change(tree), *args, **kwargs)


def _earlier_nodes_are_ancestors(tree: DraftTree) -> DraftTree:
    return dataclasses.replace(tree, ancestors=torch.ones_like(tree.ancestors).tril())


def _depths_are_slots(tree: DraftTree) -> DraftTree:
    return dataclasses.replace(tree, depths=torch.arange(tree.tokens.shape[1]).unsqueeze(0))


def _siblings_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_forward, "tree_attention_mask", _with_tree(_earlier_nodes_are_ancestors))


def _positions_follow_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    original = TargetForward._tree_inputs

    def tree_inputs(self: TargetForward, tree: DraftTree) -> dict[str, Any]:
        inputs = original(self, tree)
        inputs["position_ids"] = inputs["position_ids"] - tree.depths + _depths_are_slots(tree).depths
        return inputs

    monkeypatch.setattr(TargetForward, "_tree_inputs", tree_inputs)


def _window_counts_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_forward, "tree_attention_mask", _with_tree(_depths_are_slots))


def _window_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    def kinds_without_windows(config: Any) -> dict[str, tuple[int, None]]:
        return {kind: (layer, None) for kind, (layer, _) in attention_kinds(config).items()}

    monkeypatch.setattr(target_forward, "attention_kinds", kinds_without_windows)


def _cache_keeps_the_first_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    def keep_first(cache: Cache, path: torch.Tensor, num_kept: int, num_nodes: int, gaps: Any) -> None:
        crop_last(cache, num_nodes - num_kept)

    monkeypatch.setattr(target_forward, "keep_path", keep_first)


@pytest.mark.parametrize(
    ("break_something", "architecture"),
    [
        (_siblings_see_each_other, FULL),
        (_siblings_see_each_other, WINDOW),
        (_siblings_see_each_other, SINKS),
        (_positions_follow_slots, FULL),
        (_positions_follow_slots, ALTERNATING),
        (_window_counts_slots, WINDOW),
        (_window_counts_slots, ALTERNATING),
        (_window_is_forgotten, WINDOW),
        (_window_is_forgotten, SINKS),
        (_cache_keeps_the_first_nodes, FULL),
        (_cache_keeps_the_first_nodes, WINDOW),
        (_cache_keeps_the_first_nodes, ALTERNATING),
    ],
    ids=lambda value: getattr(value, "name", None) or value.__name__,
)
def test_comparison_notices_when(
    break_something: Callable[[pytest.MonkeyPatch], None], architecture: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = decode_plainly(architecture, SHORT)
    break_something(monkeypatch)
    ours, _ = decode_with_noisy_oracle(plain, PAPER_TREE)
    assert ours.sequences.tolist() != plain.output.sequences.tolist()
