"""`return_dict_in_generate` returns what plain decoding returns, and the acceptance lengths."""

from typing import Any

import pytest
import torch
from generation_helpers import assert_lossless, generate_both, golden_pair, golden_prompts
from transformers import GenerationConfig, MistralConfig, MistralForCausalLM, StaticCache
from transformers.generation import GenerateDecoderOnlyOutput

from conftest import golden_case, golden_json
from transformers_griffin import GriffinDraftModel, GriffinGenerateOutput


EVERYTHING = {
    "output_scores": True,
    "output_logits": True,
    "output_hidden_states": True,
    "output_attentions": True,
}
# fp32, one forward over many nodes against one over a single token: only the order of additions differs.
TOLERANCE = {"atol": 2e-4, "rtol": 1e-4}


@pytest.fixture(scope="module")
def pair():
    """Eager attention is the one that returns attention weights."""
    target, draft = golden_pair()
    target.set_attn_implementation("eager")
    return target, draft


@pytest.fixture(scope="module")
def sliding_pair():
    """A random Mistral whose window of 9 tokens is shorter than the text, with a random draft."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=23,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=9,
        max_position_embeddings=128,
        attn_implementation="eager",
        bos_token_id=None,
        eos_token_id=None,
    )
    target = MistralForCausalLM(config).eval()
    draft = GriffinDraftModel.from_target(target).eval()
    draft.generation_config.update(num_assistant_tokens=30, draft_tree_depth=3, draft_tree_top_k=6)
    return target, draft


def assert_same_structure_and_numbers(ours: Any, plain: Any, what: str) -> None:
    """Same nesting of tuples, same shapes, same numbers."""
    assert type(ours) is type(plain), what
    if isinstance(plain, tuple):
        assert len(ours) == len(plain), what
        for index, (our_entry, plain_entry) in enumerate(zip(ours, plain, strict=True)):
            assert_same_structure_and_numbers(our_entry, plain_entry, f"{what}[{index}]")
    elif plain is not None:
        assert ours.shape == plain.shape, what
        assert ours.dtype == plain.dtype, what
        torch.testing.assert_close(ours, plain, **TOLERANCE, msg=lambda text: f"{what}: {text}")


def assert_same_outputs(plain: GenerateDecoderOnlyOutput, ours: GriffinGenerateOutput) -> None:
    for name in ("scores", "logits", "hidden_states", "attentions"):
        assert_same_structure_and_numbers(getattr(ours, name), getattr(plain, name), name)


@pytest.mark.parametrize("settings", [{}, {"repetition_penalty": 1.5}, {"eos_token_id": 374}], ids=str)
@pytest.mark.parametrize("cache_implementation", [None, "static"])
def test_every_output_equals_plain_decoding(pair, cache_implementation, settings):
    for prompt in golden_prompts()[:2]:
        plain, ours = generate_both(
            pair, prompt, max_new_tokens=16, cache_implementation=cache_implementation, **EVERYTHING, **settings
        )
        assert_lossless(plain, ours, prompt.shape[1])
        assert_same_outputs(plain, ours)
        assert len(ours.scores) == ours.sequences.shape[1] - prompt.shape[1]


@pytest.mark.parametrize("cache_implementation", [None, "static"])
@pytest.mark.parametrize("prompt_length", [4, 15])
def test_every_output_equals_plain_decoding_within_a_sliding_window(sliding_pair, cache_implementation, prompt_length):
    """The text grows beyond the window of 9, or starts beyond it; attention columns then are those of the window."""
    prompt = torch.arange(prompt_length).unsqueeze(0) * 5 % 23
    plain, ours = generate_both(
        sliding_pair, prompt, max_new_tokens=16, cache_implementation=cache_implementation, **EVERYTHING
    )
    assert_lossless(plain, ours, prompt_length)
    assert_same_outputs(plain, ours)


def test_every_output_equals_plain_decoding_after_a_padded_prompt(pair):
    prompt = golden_prompts()[0]
    padded = torch.nn.functional.pad(prompt, (3, 0))
    mask = torch.nn.functional.pad(torch.ones_like(prompt), (3, 0))
    plain, ours = generate_both(pair, padded, max_new_tokens=16, attention_mask=mask, **EVERYTHING)
    assert_lossless(plain, ours, padded.shape[1])
    assert_same_structure_and_numbers(ours.scores, plain.scores, "scores")
    assert_same_structure_and_numbers(ours.logits, plain.logits, "logits")


@pytest.mark.parametrize("name", EVERYTHING)
def test_only_what_was_asked_for_is_returned(pair, name):
    prompt = golden_prompts()[0]
    plain, ours = generate_both(pair, prompt, max_new_tokens=8, **{name: True})
    assert_same_outputs(plain, ours)
    filled = {n.removeprefix("output_") for n in EVERYTHING if getattr(ours, n.removeprefix("output_")) is not None}
    assert filled == {name.removeprefix("output_")}


def test_attentions_are_left_out_where_plain_decoding_leaves_them_out():
    """sdpa returns no attention weights; the tuples have the shape of plain decoding's all the same."""
    prompt = golden_prompts()[0]
    plain, ours = generate_both(golden_pair(), prompt, max_new_tokens=8, output_attentions=True)
    assert_same_structure_and_numbers(ours.attentions, plain.attentions, "attentions")


def test_scores_of_a_sample_are_those_it_was_drawn_from(pair):
    """Scores are the processed logits: temperature 0.5 doubles them, and top-k 3 leaves three of them."""
    target, draft = pair
    prompt = golden_prompts()[0]
    torch.manual_seed(0)
    output = target.generate(
        prompt,
        assistant_model=draft,
        max_new_tokens=20,
        do_sample=True,
        temperature=0.5,
        top_k=3,
        output_scores=True,
        output_logits=True,
        return_dict_in_generate=True,
    )
    new = output.sequences[0, prompt.shape[1] :]
    assert len(output.scores) == len(output.logits) == len(new)
    for token, scores, logits in zip(new, output.scores, output.logits, strict=True):
        kept = scores > float("-inf")
        assert kept.sum() == 3
        assert kept[0, token]
        torch.testing.assert_close(scores[kept], 2 * logits[kept])
    with torch.no_grad():
        teacher_forced = target(output.sequences).logits[0, prompt.shape[1] - 1 : -1]
    torch.testing.assert_close(torch.cat(output.logits), teacher_forced, **TOLERANCE)


def test_output_type_follows_the_generation_config(pair):
    """`return_dict_in_generate` may come with a call, a config, or the target's own config."""
    target, draft = pair
    prompt = golden_prompts()[0]
    assert isinstance(target.generate(prompt, assistant_model=draft, max_new_tokens=4), torch.Tensor)

    config = GenerationConfig(return_dict_in_generate=True, max_new_tokens=4, output_scores=True, pad_token_id=0)
    output = target.generate(prompt, assistant_model=draft, generation_config=config)
    assert isinstance(output, GriffinGenerateOutput)
    assert isinstance(output, GenerateDecoderOnlyOutput)
    assert len(output.scores) == 4

    target.generation_config.return_dict_in_generate = True
    try:
        assert isinstance(target.generate(prompt, assistant_model=draft, max_new_tokens=4), GriffinGenerateOutput)
    finally:
        target.generation_config.return_dict_in_generate = None


def test_acceptance_lengths_are_the_golden_ones(pair):
    """The released code counts accepted drafts, so 1 less per cycle; its last cycles overshoot 96 tokens."""
    target, _ = pair
    _, draft = golden_case("llama_gqa")
    run = golden_json("llama_gqa", "generate")["prompts"][0]
    output = target.generate(
        torch.tensor([run["prompt_ids"]]),
        assistant_model=draft,
        max_new_tokens=96,
        do_sample=False,
        return_dict_in_generate=True,
    )
    (cycles,) = output.acceptance_lengths
    assert sum(cycles) == 95
    assert cycles[:-1] == run["tokens_per_cycle"][: len(cycles) - 1]
    assert cycles[-1] <= run["tokens_per_cycle"][len(cycles) - 1]


@pytest.mark.parametrize("max_new_tokens", [1, 2, 17])
@pytest.mark.parametrize("static", [False, True])
def test_returned_cache_holds_what_plain_decoding_caches(pair, static, max_new_tokens):
    """Every token but the last, with the same keys and values; a static one may be longer than asked for."""
    target, _ = pair
    prompt = golden_prompts()[1]
    length = prompt.shape[1] + max_new_tokens - 1

    def cache() -> dict:
        return {"past_key_values": StaticCache(target.config, max_cache_len=length)} if static else {}

    plain, ours = generate_both(pair, prompt, cache, max_new_tokens=max_new_tokens)
    assert int(plain.past_key_values.get_seq_length()) == int(ours.past_key_values.get_seq_length()) == length
    for our_layer, plain_layer in zip(ours.past_key_values.layers, plain.past_key_values.layers, strict=True):
        assert type(our_layer) is type(plain_layer)
        torch.testing.assert_close(our_layer.keys[:, :, :length], plain_layer.keys[:, :, :length], **TOLERANCE)
        torch.testing.assert_close(our_layer.values[:, :, :length], plain_layer.values[:, :, :length], **TOLERANCE)
    if not static:
        assert ours.past_key_values.layers[0].keys.shape == plain.past_key_values.layers[0].keys.shape
