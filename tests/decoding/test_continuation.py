"""A cache passed in is continued, and a chat over several calls equals one long run; padded and embedded prompts."""

import pytest
import torch
from generation_helpers import assert_lossless, generate_both, golden_pair, golden_prompts, new_tokens
from transformers import DynamicCache, MistralConfig, MistralForCausalLM, StaticCache

from transformers_griffin import GriffinDraftModel


@pytest.fixture(scope="module")
def pair():
    return golden_pair()


def chat(pair, caches, turns: list[torch.Tensor], assistants: list[dict], whole_prompt: bool = True) -> torch.Tensor:
    """Answers every turn with 14 tokens over one cache; a turn is appended to all that was said before."""
    target, _ = pair
    said = torch.empty(1, 0, dtype=torch.long)
    for turn, assistant in zip(turns, assistants, strict=True):
        said = torch.cat((said, turn), dim=1)
        num_cached = int(caches.get_seq_length())
        said_now = said if whole_prompt else said[:, num_cached:]
        output = target.generate(
            said_now,
            attention_mask=torch.ones_like(said),
            past_key_values=caches,
            max_new_tokens=14,
            do_sample=False,
            return_dict_in_generate=True,
            **assistant,
        )
        assert output.past_key_values is caches
        said = torch.cat((said, output.sequences[:, said_now.shape[1] :]), dim=1)
        assert int(caches.get_seq_length()) == said.shape[1] - 1
    return said


TURNS = 3


@pytest.mark.parametrize("whole_prompt", [True, False], ids=["whole prompt", "only what is new"])
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_chat_over_one_cache_equals_plain_decoding_of_every_turn(pair, static, whole_prompt):
    """The oracle reads every turn's whole prompt anew, without a cache from the turn before."""
    target, draft = pair
    turns = golden_prompts()[:TURNS]
    said = torch.empty(1, 0, dtype=torch.long)
    for turn in turns:
        said = target.generate(torch.cat((said, turn), dim=1), max_new_tokens=14, do_sample=False)

    cache = StaticCache(target.config, max_cache_len=256) if static else DynamicCache(config=target.config)
    assert chat(pair, cache, turns, [{"assistant_model": draft}] * TURNS, whole_prompt).tolist() == said.tolist()


@pytest.mark.parametrize("order", [(0, 1, 0), (1, 0, 1)], ids=["plain first", "draft first"])
@pytest.mark.parametrize("kind", ["dynamic", "static", "sliding"])
def test_turns_with_and_without_a_draft_may_share_a_cache(pair, kind, order):
    """The sliding window of 9 tokens is shorter than every turn."""
    target, draft = sliding_pair() if kind == "sliding" else pair
    assistants = [{"assistant_model": draft} if with_draft else {} for with_draft in order]
    turns = [prompt % target.config.vocab_size for prompt in golden_prompts()[:TURNS]]

    def cache() -> DynamicCache | StaticCache:
        return StaticCache(target.config, 256) if kind == "static" else DynamicCache(config=target.config)

    plain = chat((target, draft), cache(), turns, [{}] * TURNS)
    assert chat((target, draft), cache(), turns, assistants).tolist() == plain.tolist()


def sliding_pair() -> tuple[MistralForCausalLM, GriffinDraftModel]:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=23,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=9,
        bos_token_id=None,
        eos_token_id=None,
    )
    target = MistralForCausalLM(config).eval()
    draft = GriffinDraftModel.from_target(target).eval()
    draft.generation_config.update(num_assistant_tokens=30, draft_tree_depth=3, draft_tree_top_k=6)
    return target, draft


def test_sliding_cache_is_as_small_after_a_draft_as_after_plain_decoding():
    """A cache of window 9 holds 8 tokens, also when plain decoding goes on with it."""
    target, draft = sliding_pair()
    prompt = golden_prompts()[0] % 23
    for more in (draft, None):
        cache = DynamicCache(config=target.config)
        said = target.generate(
            prompt, assistant_model=draft, past_key_values=cache, max_new_tokens=20, do_sample=False
        )
        said = target.generate(said, assistant_model=more, past_key_values=cache, max_new_tokens=20, do_sample=False)
        assert [layer.keys.shape[-2] for layer in cache.layers] == [8, 8]


# ---------------------------------------------------------------------- prompts of other kinds


@pytest.mark.parametrize("num_pads", [1, 3, 40])
@pytest.mark.parametrize("cache_implementation", [None, "static"])
def test_left_padding_changes_nothing(pair, cache_implementation, num_pads):
    for prompt in golden_prompts()[:2]:
        padded = torch.nn.functional.pad(prompt, (num_pads, 0))
        mask = torch.nn.functional.pad(torch.ones_like(prompt), (num_pads, 0))
        plain, ours = generate_both(
            pair, padded, attention_mask=mask, max_new_tokens=24, cache_implementation=cache_implementation
        )
        assert_lossless(plain, ours, padded.shape[1])

        _, unpadded = generate_both(pair, prompt, max_new_tokens=24, cache_implementation=cache_implementation)
        assert new_tokens(ours, padded) == new_tokens(unpadded, prompt)
        # Padding is no part of what the draft reads, so it drafts the same trees.
        assert ours.acceptance_lengths == unpadded.acceptance_lengths


def test_prompt_given_as_embeddings(pair):
    """Only the new tokens are returned then; the draft reads the same embeddings, so it drafts the same trees."""
    target, _ = pair
    for prompt in golden_prompts()[:2]:
        embeds = target.get_input_embeddings()(prompt).detach()
        plain, ours = generate_both(pair, inputs_embeds=embeds, max_new_tokens=24)
        assert_lossless(plain, ours, 0)
        _, from_tokens = generate_both(pair, prompt, max_new_tokens=24)
        assert ours.sequences[0].tolist() == new_tokens(from_tokens, prompt)
        assert ours.acceptance_lengths == from_tokens.acceptance_lengths


@pytest.mark.parametrize("cache_implementation", [None, "static"])
def test_embeddings_that_belong_to_no_token(pair, cache_implementation):
    torch.manual_seed(0)
    embeds = torch.randn(1, 6, 64) * 0.1
    plain, ours = generate_both(
        pair, inputs_embeds=embeds, max_new_tokens=24, cache_implementation=cache_implementation
    )
    assert_lossless(plain, ours, 0)


def test_embeddings_and_tokens_given_together(pair):
    """The tokens are returned before the new ones, and processors see them."""
    target, _ = pair
    prompt = golden_prompts()[0]
    embeds = target.get_input_embeddings()(prompt).detach()
    plain, ours = generate_both(pair, prompt, inputs_embeds=embeds, max_new_tokens=24, repetition_penalty=1.2)
    assert_lossless(plain, ours, prompt.shape[1])


def test_prompt_of_a_single_token(pair):
    prompt = torch.tensor([[415]])
    plain, ours = generate_both(pair, prompt)
    assert_lossless(plain, ours, 1)


def test_prompt_read_in_chunks(pair):
    for prompt in golden_prompts()[:2]:
        plain, ours = generate_both(pair, prompt, max_new_tokens=24)
        _, chunked = generate_both(pair, prompt, max_new_tokens=24, prefill_chunk_size=3)
        assert chunked.sequences.tolist() == ours.sequences.tolist() == plain.sequences.tolist()
        # Every chunk's features reach the draft.
        assert chunked.acceptance_lengths == ours.acceptance_lengths


@pytest.mark.parametrize("whole_prompt", [True, False], ids=["whole prompt", "only what is new"])
def test_prompt_behind_a_cache_read_in_chunks(pair, whole_prompt):
    """What the cache holds is no part of the chunks: the draft reads the same pairs and drafts the same trees."""
    target, draft = pair
    first, second = golden_prompts()[:2]
    outputs = []
    for chunk_size in (None, 3):
        cache = DynamicCache(config=target.config)
        said = target.generate(first, past_key_values=cache, max_new_tokens=14, do_sample=False)
        said = torch.cat((said, second), dim=1)
        said_now = said if whole_prompt else said[:, cache.get_seq_length() :]
        outputs.append(
            target.generate(
                said_now,
                attention_mask=torch.ones_like(said),
                past_key_values=cache,
                assistant_model=draft,
                max_new_tokens=24,
                do_sample=False,
                return_dict_in_generate=True,
                prefill_chunk_size=chunk_size,
            )
        )
    whole, chunked = outputs
    plain = target.generate(said, max_new_tokens=24, do_sample=False)
    assert chunked.sequences[0, -24:].tolist() == plain[0, -24:].tolist()
    assert chunked.acceptance_lengths == whole.acceptance_lengths
