"""What plain decoding can do at the edges (of positions, caches, threads) is done with a draft, or refused."""

import threading
from typing import Any

import pytest
import torch
from architectures import COMMON, GPT, Architecture, make_prompt, make_target
from exactness import GREEDY, NUM_NEW_TOKENS, SMALL_TREE, assert_exact, decode_plainly, decode_with_noisy_oracle
from multimodal import IMAGE_TARGETS, LLAVA, SQUARE, ImageTarget
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import Cache, QuantizedLayer, StaticCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from noisy_oracle import noisy_oracle


PROMPT_LENGTH = 9
# Plain decoding never reads the last token of the answer, so that many positions are enough.
NUM_READ = PROMPT_LENGTH + NUM_NEW_TOKENS - 1  # 72


def assert_exact_for(model_type: str, config: dict[str, Any], prompt_length: int = PROMPT_LENGTH) -> None:
    plain = decode_plainly(Architecture(model_type, model_type, config), prompt_length)
    ours, _ = decode_with_noisy_oracle(plain, SMALL_TREE)
    assert_exact(plain, ours, depth=4)


# ---------------------------------------------------------------------- rotary frequencies that change
# They follow the longest position of a forward: the deepest node of a tree sets them for all nodes.

DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 24,
    "factor": 4.0,
}
LONGROPE_PHI3 = {"rope_parameters": LONGROPE, "original_max_position_embeddings": 24}


@pytest.mark.parametrize(
    ("model_type", "config", "prompt_length", "limit"),
    [
        ("llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": NUM_READ - 1}, PROMPT_LENGTH, NUM_READ - 1),
        ("llama", {"rope_parameters": LONGROPE}, 19, 24),
        ("llama", {"rope_parameters": LONGROPE}, 24, 24),
        # Phi-3 drops its cache and reads everything again at the switching point.
        ("phi3", LONGROPE_PHI3, PROMPT_LENGTH, 24),
    ],
)
def test_answers_during_which_rotary_frequencies_change_are_refused(
    model_type: str, config: dict[str, Any], prompt_length: int, limit: int
) -> None:
    target, prompt = make_target(Architecture(model_type, model_type, config)), make_prompt(prompt_length)
    kind, longest = config["rope_parameters"]["rope_type"], prompt_length + NUM_NEW_TOKENS
    with pytest.raises(
        ValueError,
        match=f"may reach {longest} tokens, but the '{kind}' rotary embedding of {type(target).__name__} changes at "
        f"{limit}, and no draft .* within {limit} tokens, or call `generate\\(\\)` without",
    ):
        target.generate(prompt, assistant_model=noisy_oracle(target, prompt, SMALL_TREE), **GREEDY)


@pytest.mark.parametrize(
    ("model_type", "config", "prompt_length"),
    [
        ("llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": NUM_READ}, PROMPT_LENGTH),
        ("llama", {"rope_parameters": LONGROPE | {"original_max_position_embeddings": NUM_READ}}, PROMPT_LENGTH),
        ("llama", {"rope_parameters": LONGROPE}, 25),
        ("phi3", LONGROPE_PHI3, 25),
    ],
)
def test_answers_before_or_behind_a_change_of_rotary_frequencies_are_exact(
    model_type: str, config: dict[str, Any], prompt_length: int
) -> None:
    """The first two read their last token just before the change, the others begin just behind it."""
    assert_exact_for(model_type, config, prompt_length)


# ---------------------------------------------------------------------- learned positions and token types


@pytest.mark.parametrize(
    ("model_type", "config"),
    [
        ("gpt2", GPT | {"n_positions": NUM_READ, "max_position_embeddings": NUM_READ}),
        ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": NUM_READ}),
        ("biogpt", {"max_position_embeddings": NUM_READ}),
        (
            "bart",  # verifies chains
            {"decoder_layers": 2, "decoder_attention_heads": 4, "max_position_embeddings": NUM_READ, "d_model": 32},
        ),
    ],
)
def test_an_answer_may_fill_the_learned_positions(model_type: str, config: dict[str, Any]) -> None:
    """Nodes behind the last token of the answer would have positions outside the table."""
    assert_exact_for(model_type, config)


def test_token_types_go_on_as_in_plain_decoding() -> None:
    """GPT-2 adds an embedding of the token type; every new token has the last one's type."""
    target, prompt = make_target(Architecture("GPT-2", "gpt2", GPT)), make_prompt(PROMPT_LENGTH)
    token_types = torch.tensor([[3, 3, 3, 3, 7, 7, 7, 7, 7]])
    plain = target.generate(prompt, token_type_ids=token_types, **GREEDY).sequences
    assert plain.tolist() != target.generate(prompt, **GREEDY).sequences.tolist()
    draft = noisy_oracle(target, plain, SMALL_TREE)
    ours = target.generate(prompt, token_type_ids=token_types, assistant_model=draft, **GREEDY).sequences
    assert ours.tolist() == plain.tolist()


# ---------------------------------------------------------------------- images


@pytest.mark.parametrize("image_target", IMAGE_TARGETS, ids=lambda target: target.name)
def test_a_prompt_with_an_image_is_answered_as_in_plain_decoding(image_target: ImageTarget) -> None:
    """The image belongs to the prefill; drafted tokens are text."""
    target, inputs = image_target.make(), image_target.inputs([[5, 6, SQUARE, 8, 9, 10]])
    plain = target.generate(**inputs, **GREEDY).sequences
    draft = noisy_oracle(target, plain, SMALL_TREE)
    ours = target.generate(**inputs, assistant_model=draft, **GREEDY).sequences
    assert ours.tolist() == plain.tolist()


def test_towers_keep_their_attention_while_and_after_trees_are_verified() -> None:
    """The text model runs with an implementation that takes no tree mask, as flash attention does, the tower not."""
    AttentionInterface.register("maskless", sdpa_attention_forward)
    AttentionMaskInterface.register("maskless", sdpa_mask)
    target = LLAVA.make()
    target.set_attn_implementation({"text_config": "maskless", "vision_config": "eager"})
    configs = (target.config.text_config, target.config.vision_config)
    seen = set()

    def look(*_: Any) -> None:
        seen.add(tuple(config._attn_implementation for config in configs))

    target.get_input_embeddings().register_forward_pre_hook(look)
    prompt = make_prompt(PROMPT_LENGTH)
    target.generate(
        prompt, assistant_model=noisy_oracle(target, prompt, SMALL_TREE), do_sample=False, max_new_tokens=4
    )
    assert seen == {("maskless", "eager"), ("sdpa", "eager")}  # while the prompt and while trees are read
    assert [config._attn_implementation for config in configs] == ["maskless", "eager"]


# ---------------------------------------------------------------------- caches


class ExactQuantizedLayer(QuantizedLayer):
    """A quantized layer without a backend."""

    def _quantize(self, tensor: torch.Tensor, axis: int) -> torch.Tensor:
        return tensor.clone()

    def _dequantize(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


def llama() -> PreTrainedModel:
    return make_target(Architecture("Llama", "llama"))


def test_quantized_caches_are_refused() -> None:
    """They say `is_croppable`, but forget neither what is quantized already nor their count of it."""
    target, prompt = llama(), make_prompt(PROMPT_LENGTH)
    cache = Cache(layers=[ExactQuantizedLayer() for _ in range(COMMON["num_hidden_layers"])])
    assert cache.is_croppable
    draft = noisy_oracle(target, prompt, SMALL_TREE)
    with pytest.raises(
        ValueError, match=r"cannot be sped up by a draft with this cache: .* the default dynamic cache"
    ):
        target.generate(prompt, assistant_model=draft, past_key_values=cache, **GREEDY)


def test_a_static_cache_that_is_too_small_for_a_continued_chat_is_refused() -> None:
    """
    Only the new turn is passed. 20 tokens in the cache, 5 new, 40 to come and a tree of 21 behind them need 85; the
    passed tokens and the answer alone would need 65.
    """
    target, said = llama(), make_prompt(25)
    settings = {"max_new_tokens": 40, "do_sample": False, "attention_mask": torch.ones_like(said)}
    plain = target.generate(said, max_new_tokens=40, do_sample=False)
    draft = noisy_oracle(target, plain, (20, 5, 4))

    def answer_with(max_cache_len: int) -> torch.Tensor:
        cache = StaticCache(target.config, max_cache_len=max_cache_len)
        target(said[:, :20], past_key_values=cache)
        return target.generate(said[:, 20:], past_key_values=cache, assistant_model=draft, **settings)

    with pytest.raises(
        ValueError, match=r"The static cache holds 84 tokens, but 65 tokens and a tree of 21 .* need 85"
    ):
        answer_with(84)
    assert answer_with(85).tolist() == plain[:, 20:].tolist()


# ---------------------------------------------------------------------- threads


def test_a_forward_that_another_thread_runs_meanwhile_goes_its_own_way() -> None:
    """While one thread's forward is tapped at the LM head, the other thread's forwards pass through the same tap."""
    target, prompt, other_prompt = llama(), make_prompt(PROMPT_LENGTH), make_prompt(5, seed=1)
    plain = target.generate(prompt, **GREEDY).sequences
    expected = target(other_prompt).logits
    generating, found = threading.get_ident(), []

    def run_another(*_: Any) -> None:
        if threading.get_ident() == generating:
            other = threading.Thread(target=lambda: found.append(target(other_prompt).logits))
            other.start()
            other.join()

    target.get_input_embeddings().register_forward_pre_hook(run_another)
    draft = noisy_oracle(target, plain, SMALL_TREE)
    ours = target.generate(prompt, assistant_model=draft, **GREEDY).sequences
    assert ours.tolist() == plain.tolist()
    assert len(found) > 10
    assert all(logits.shape == expected.shape for logits in found)
