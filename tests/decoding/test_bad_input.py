"""What decoding with a draft cannot do is refused by a message: the value found, the value allowed, what to do."""

import re

import pytest
import torch
from transformers import (
    MambaConfig,
    MambaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    StaticCache,
    StoppingCriteria,
    T5Config,
    T5ForConditionalGeneration,
)

from conftest import tiny_llama
from transformers_griffin import GriffinCandidateGenerator, GriffinDraftModel


PROMPT = torch.tensor([[3, 1, 4, 1, 5]])
SMALL = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48}


@pytest.fixture
def pair():
    target = tiny_llama()
    return target, GriffinDraftModel.from_target(target).eval()


def assert_refuses(message: str, target, draft, prompt: torch.Tensor = PROMPT, **kwargs) -> None:
    """`generate()` raises exactly this message, before the target has computed anything."""
    forwards = []
    handle = target.register_forward_hook(lambda *_: forwards.append(1))
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        target.generate(prompt, assistant_model=draft, **({"max_new_tokens": 4} | kwargs))
    handle.remove()
    assert forwards == []


# ---------------------------------------------------------------------- drafts that do not fit


def test_draft_for_another_hidden_size(pair):
    other = GriffinDraftModel.from_target(tiny_llama(hidden_size=48))
    assert_refuses(
        "This draft was made for a target with hidden size 48, but the target's is 32. Use a draft trained for this "
        "target, or make a fresh one with `GriffinDraftModel.from_target(target)`.",
        pair[0],
        other,
    )


def test_draft_for_another_vocabulary(pair):
    """Transformers alone would ask for tokenizers here, which would not help."""
    other = GriffinDraftModel.from_target(tiny_llama(vocab_size=90))
    assert_refuses(
        "This draft was made for a target with vocabulary size 90, but the target's is 61. Use a draft trained for "
        "this target, or make a fresh one with `GriffinDraftModel.from_target(target)`.",
        pair[0],
        other,
    )


def test_draft_for_another_type_of_target(pair):
    config = Qwen2Config(**SMALL, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4)
    target = Qwen2ForCausalLM(config).eval()
    assert_refuses(
        "This draft was made for a target of type 'llama', but the target is 'qwen2'. Use a draft trained for this "
        "target, or set `draft.config.target_model_type = None` if you know that both have the same features.",
        target,
        pair[1],
    )
    pair[1].config.target_model_type = None
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    plain = target.generate(PROMPT, **settings)
    assert target.generate(PROMPT, assistant_model=pair[1], **settings).tolist() == plain.tolist()


@pytest.mark.parametrize("use", ["forward", "logits", "tree"])
def test_unbound_draft(pair, use):
    """A draft alone has neither embedding nor head."""
    draft = GriffinDraftModel(pair[1].config)
    features = torch.zeros(1, 5, 32)
    uses = {
        "forward": lambda: draft(input_ids=PROMPT, features=features),
        "logits": lambda: draft.compute_logits(features),
        "tree": lambda: GriffinCandidateGenerator(draft).draft_tree(PROMPT, features),
    }
    message = (
        "This draft is not bound to a target, and it has no embedding or LM head of its own. Pass it to "
        "`target.generate(..., assistant_model=draft)` or call `draft.bind(target)` first."
    )
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        uses[use]()


def test_target_without_a_head(pair):
    base = pair[0].model
    message = (
        "The target LlamaModel has no input embedding or no LM head, so no draft can borrow them. Load it as a causal "
        "language model (`AutoModelForCausalLM`)."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        pair[1].bind(base)


# ---------------------------------------------------------------------- trees


@pytest.mark.parametrize(
    ("name", "value", "highest"),
    [
        ("num_assistant_tokens", 0, 254),
        ("num_assistant_tokens", 255, 254),
        ("num_assistant_tokens", -1, 254),
        ("num_assistant_tokens", 7.0, 254),
        ("draft_tree_depth", 0, 16),
        ("draft_tree_depth", 17, 16),
        ("draft_tree_depth", "6", 16),
        ("draft_tree_top_k", 0, 32),
        ("draft_tree_top_k", 33, 32),
    ],
)
def test_tree_setting_out_of_range(pair, name, value, highest):
    target, draft = pair
    setattr(draft.generation_config, name, value)
    assert_refuses(
        f"`{name}` is {value!r}, but must be an integer from 1 to {highest}. Set it in `draft.generation_config`.",
        target,
        draft,
    )


def test_tree_wider_than_the_vocabulary():
    target = tiny_llama(vocab_size=9)
    draft = GriffinDraftModel.from_target(target)
    assert_refuses(
        "`draft_tree_top_k` is 10, but must be an integer from 1 to 9. Set it in `draft.generation_config`.",
        target,
        draft,
    )


def test_tree_with_more_nodes_than_candidates(pair):
    """Depth 3 and width 4 propose 4 + 2 * 16 = 36 candidates; 36 of them can be kept, 37 cannot."""
    target, draft = pair
    draft.generation_config.update(num_assistant_tokens=37, draft_tree_depth=3, draft_tree_top_k=4)
    assert_refuses(
        "`num_assistant_tokens` is 37, but a tree of `draft_tree_depth`=3 and `draft_tree_top_k`=4 has only 36 "
        "candidates. Lower `num_assistant_tokens` to that, or raise depth or width.",
        target,
        draft,
    )
    draft.generation_config.num_assistant_tokens = 36
    assert target.generate(PROMPT, assistant_model=draft, max_new_tokens=4).shape == (1, 9)


# ---------------------------------------------------------------------- targets


def test_encoder_decoder_target(pair):
    config = T5Config(
        vocab_size=61, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4, decoder_start_token_id=0, pad_token_id=0
    )
    assert_refuses(
        "T5ForConditionalGeneration is an encoder-decoder model; GRIFFIN drafts speed up decoder-only models. Call "
        "`generate()` without `assistant_model`.",
        T5ForConditionalGeneration(config).eval(),
        pair[1],
    )


def test_stateful_target(pair):
    target = MambaForCausalLM(MambaConfig(vocab_size=61, hidden_size=32, num_hidden_layers=1, state_size=4)).eval()
    assert_refuses(
        "MambaForCausalLM keeps a state that cannot forget rejected tokens; GRIFFIN drafts speed up models whose "
        "layers are all attention. Call `generate()` without `assistant_model`.",
        target,
        pair[1],
    )


# ---------------------------------------------------------------------- calls


@pytest.mark.parametrize("num_beams", [2, 4])
@pytest.mark.parametrize("do_sample", [False, True])
def test_beams(pair, num_beams, do_sample):
    """Transformers alone would run beam search and leave the draft out."""
    assert_refuses(
        f"`num_beams` is {num_beams}, but GRIFFIN decoding does not search beams. Set it to 1, or call `generate()` "
        "without `assistant_model`.",
        *pair,
        num_beams=num_beams,
        do_sample=do_sample,
    )


class EndsWith9(StoppingCriteria):
    """A user's own end of sequence, which transformers takes for one by its attribute."""

    eos_token_id = 9

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids[:, -1] == self.eos_token_id


def test_rows_that_end_early_without_a_padding_token(pair):
    """Plain decoding fails here as well, with a `TypeError`."""
    kwargs = {"stopping_criteria": [EndsWith9()], "prompt": PROMPT.expand(2, -1)}
    assert_refuses(
        "`pad_token_id` is None, but rows of a batch that end early are filled with it. Set `pad_token_id` in "
        "`generate()` or in the target's generation config.",
        *pair,
        **kwargs,
    )
    target, draft = pair
    with pytest.raises(TypeError):
        target.generate(PROMPT.expand(2, -1), stopping_criteria=[EndsWith9()], max_new_tokens=4)
    assert target.generate(PROMPT.expand(2, -1), assistant_model=draft, max_new_tokens=4).shape == (2, 9)


@pytest.mark.parametrize("value", [0, -1, 2.0, "4"])
def test_batch_size_of_the_tree_out_of_range(pair, value):
    pair[1].generation_config.draft_tree_batch_size = value
    assert_refuses(
        f"`draft_tree_batch_size` is {value!r}, but must be an integer from 1 on. Set it in "
        "`draft.generation_config`.",
        *pair,
        prompt=PROMPT.expand(2, -1),
    )


def test_no_cache(pair):
    assert_refuses(
        "`use_cache` is False, but GRIFFIN decoding needs a key-value cache. Set it to True, or call `generate()` "
        "without `assistant_model`.",
        *pair,
        use_cache=False,
    )


def test_synced_gpus(pair):
    assert_refuses(
        "`synced_gpus` is True, but GRIFFIN decoding cannot keep several processes in step. Set it to False, or call "
        "`generate()` without `assistant_model`.",
        *pair,
        synced_gpus=True,
    )


def test_full_static_cache_without_room_for_a_tree(pair):
    """Up to 9 tokens, the last of them the root of a tree of 16 nodes: 9 + 16 - 1 = 24 entries."""
    target, draft = pair
    draft.generation_config.update(num_assistant_tokens=15, draft_tree_depth=4, draft_tree_top_k=4)
    cache = StaticCache(target.config, max_cache_len=23)
    target.generate(PROMPT[:, :4], past_key_values=cache, max_new_tokens=1)
    assert_refuses(
        "The static cache holds 23 tokens, but 9 tokens and a tree of 16 nodes behind them need 24. Make it with "
        "max_cache_len=24 or more, or lower `max_new_tokens` or the draft's `num_assistant_tokens`.",
        target,
        draft,
        past_key_values=cache,
    )
    roomy = StaticCache(target.config, max_cache_len=24)
    target.generate(PROMPT[:, :4], past_key_values=roomy, max_new_tokens=1)
    assert target.generate(PROMPT, assistant_model=draft, past_key_values=roomy, max_new_tokens=4).shape == (1, 9)


def test_misspelt_argument_is_reported_by_transformers(pair):
    with pytest.raises(ValueError, match="not used by the model: \\['max_new_token'\\]"):
        pair[0].generate(PROMPT, assistant_model=pair[1], max_new_token=4)
