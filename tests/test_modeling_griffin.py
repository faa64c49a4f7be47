"""GriffinDraftModel behaves as any transformers model: save, load, dtypes, attention, caches, targets, ablations."""

import json
import re
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel

from conftest import GOLDEN_CASES, golden_case, tiny_llama
from transformers_griffin import GriffinDraftModel


def make_inputs(draft: GriffinDraftModel, seq_len: int = 9, batch_size: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(batch_size, seq_len, draft.config.hidden_size, generator=generator)
    tokens = torch.randint(draft.config.vocab_size, (batch_size, seq_len), generator=generator)
    return {"input_ids": tokens, "features": features.to(draft.dtype)}


def make_draft(target: PreTrainedModel | None = None, **overrides: Any) -> GriffinDraftModel:
    """A fresh draft whose biases and norms are random too, so that every parameter matters."""
    draft = GriffinDraftModel.from_target(target or tiny_llama(), **overrides).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in draft.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return draft


# ---------------------------------------------------------------------- save and load


def test_a_saved_draft_holds_only_its_own_weights_and_loads_through_automodel(tmp_path):
    target = tiny_llama()
    draft = make_draft(target)
    draft.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == {name for name, _ in draft.named_parameters()}
        assert not [key for key in file.keys() if "embed" in key or "head" in key]  # noqa: SIM118

    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is GriffinDraftModel
    assert not info["missing_keys"] | info["unexpected_keys"]
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), draft.parameters(), strict=True))
    inputs = make_inputs(draft)
    assert torch.equal(loaded.bind(target)(**inputs).predict, draft(**inputs).predict)


def test_tree_settings_survive_save_and_load(tmp_path):
    draft = make_draft()
    assert draft.generation_config.num_assistant_tokens == 59
    draft.generation_config.num_assistant_tokens = 24
    draft.generation_config.draft_tree_depth = 4
    draft.generation_config.draft_tree_top_k = 5
    draft.save_pretrained(tmp_path)
    config = AutoModel.from_pretrained(tmp_path).generation_config
    assert (config.num_assistant_tokens, config.draft_tree_depth, config.draft_tree_top_k) == (24, 4, 5)


def test_a_draft_without_generation_config_loads_with_the_default_tree(tmp_path):
    make_draft().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    config = AutoModel.from_pretrained(tmp_path).generation_config
    assert (config.num_assistant_tokens, config.draft_tree_depth, config.draft_tree_top_k) == (59, 6, 10)


def test_dtype_and_device_map_are_honoured(tmp_path):
    make_draft().save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16, device_map={"": "cpu"})
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert loaded.rotary_emb.inv_freq.dtype == torch.float32
    assert loaded.device.type == "cpu"
    assert AutoModel.from_pretrained(tmp_path, dtype="auto").dtype == torch.float32


def test_a_draft_is_saved_in_shards_when_asked(tmp_path):
    draft = make_draft()
    draft.save_pretrained(tmp_path, max_shard_size="10KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    loaded = AutoModel.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), draft.parameters(), strict=True))


# ---------------------------------------------------------------------- the borrowed embedding and head


@pytest.mark.parametrize("tied", [True, False])
def test_embedding_and_head_are_borrowed_not_copied(tied):
    target = tiny_llama(tie_word_embeddings=tied)
    draft = make_draft(target)
    assert draft._target_embedding is target.get_input_embeddings()
    assert draft._target_head is target.get_output_embeddings()
    borrowed = {id(parameter) for parameter in target.parameters()}
    assert not borrowed & {id(parameter) for parameter in draft.parameters()}
    assert not [name for name in draft.state_dict() if "target" in name]
    features = torch.randn(1, 3, 32)
    torch.testing.assert_close(draft.compute_logits(features), features @ target.lm_head.weight.T)
    assert (target.lm_head.weight is target.get_input_embeddings().weight) is tied


def test_a_draft_of_another_dtype_converts_at_the_borders():
    target = tiny_llama()
    draft = make_draft(target).to(torch.bfloat16)
    output = draft(**make_inputs(draft))
    assert output.predict.dtype == torch.bfloat16
    assert draft.compute_logits(output.predict).dtype == torch.float32


def test_a_fresh_draft_takes_the_targets_dtype_and_exact_rotary_frequencies():
    draft = GriffinDraftModel.from_target(tiny_llama().to(torch.bfloat16))
    assert {parameter.dtype for parameter in draft.parameters()} == {torch.bfloat16}
    assert draft.rotary_emb.inv_freq.dtype == torch.float32


@pytest.mark.parametrize(
    ("target_overrides", "message"),
    [
        (
            {"hidden_size": 64},
            "made for a target with hidden size 32, but the target's is 64. Use a draft trained for",
        ),
        ({"vocab_size": 62}, "made for a target with vocabulary size 61, but the target's is 62. Use a draft trained"),
    ],
)
def test_a_target_of_another_size_is_refused(target_overrides, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_draft().bind(tiny_llama(**target_overrides))


def test_a_target_of_another_type_is_refused_unless_the_config_allows_it():
    draft = make_draft()
    other = AutoModelForCausalLM.from_config(transformers.Qwen2Config(**SIZES))
    with pytest.raises(ValueError, match=r"made for a target of type 'llama', but the target is 'qwen2'"):
        draft.bind(other)
    draft.config.target_model_type = None
    assert draft.bind(other).is_bound


def test_a_target_without_head_is_refused():
    with pytest.raises(ValueError, match=r"LlamaModel has no input embedding or no LM head.*AutoModelForCausalLM"):
        make_draft().bind(tiny_llama().model)


def test_an_unbound_draft_says_what_to_do(tmp_path):
    make_draft().save_pretrained(tmp_path)
    draft = AutoModel.from_pretrained(tmp_path)
    message = r"not bound to a target.*assistant_model=draft.*draft\.bind\(target\)"
    with pytest.raises(RuntimeError, match=message):
        draft(**make_inputs(draft))
    with pytest.raises(RuntimeError, match=message):
        draft.compute_logits(torch.zeros(1, 1, 32))
    features = make_inputs(draft)["features"]
    assert draft(inputs_embeds=features, features=features).predict.shape == features.shape


def test_missing_or_misshapen_inputs_are_named():
    draft = make_draft()
    inputs = make_inputs(draft)
    with pytest.raises(ValueError, match=r"exactly one of `input_ids` and `inputs_embeds`"):
        draft(features=inputs["features"])
    with pytest.raises(ValueError, match=r"`features` has shape None, but every token needs one: \(2, 9, 32\)"):
        draft(input_ids=inputs["input_ids"])
    with pytest.raises(ValueError, match=r"`features` has shape \(2, 8, 32\), but every token needs one"):
        draft(input_ids=inputs["input_ids"], features=inputs["features"][:, :8])


# ---------------------------------------------------------------------- one pass


@pytest.mark.parametrize("overrides", [{}, {"num_hidden_layers": 2}, {"fusion": "concat", "dual_head": False}])
@torch.no_grad()
def test_cached_incremental_passes_equal_one_full_pass(overrides):
    draft = make_draft(**overrides)
    inputs = make_inputs(draft)
    full = draft(**inputs)
    cache, parts = None, []
    for start, end in ((0, 4), (4, 5), (5, 9)):
        piece = {name: tensor[:, start:end] for name, tensor in inputs.items()}
        output = draft(**piece, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        parts.append(torch.stack((output.predict, output.regress)))
    assert cache.get_seq_length() == 9
    torch.testing.assert_close(torch.cat(parts, dim=2), torch.stack((full.predict, full.regress)))


@torch.no_grad()
def test_tuple_output_is_predict_regress_cache():
    draft = make_draft()
    inputs = make_inputs(draft)
    predict, regress = draft(**inputs)[:2]
    as_tuple = draft(**inputs, use_cache=True, return_dict=False)
    assert torch.equal(as_tuple[0], predict)
    assert torch.equal(as_tuple[1], regress)
    assert as_tuple[2].get_seq_length() == 9


@torch.no_grad()
def test_left_padding_does_not_change_the_real_positions():
    draft = make_draft()
    inputs = make_inputs(draft, seq_len=6, batch_size=1)
    padded = {name: torch.cat((torch.zeros_like(t[:, :2]), t), dim=1) for name, t in inputs.items()}
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1]])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    output = draft(**padded, attention_mask=mask, position_ids=positions)
    torch.testing.assert_close(output.predict[:, 2:], draft(**inputs).predict)


@pytest.mark.parametrize("attention", ["eager", "flex_attention"])
@pytest.mark.parametrize("name", GOLDEN_CASES)
@torch.no_grad()
def test_attention_implementations_agree(name, attention):
    """Over full heads, grouped heads and q/k/v biases; flex attention uncompiled, which is the same arithmetic."""
    _, draft = golden_case(name)
    inputs = make_inputs(draft, seq_len=17, batch_size=1)
    expected = draft(**inputs)
    draft.set_attn_implementation(attention)
    with torch.compiler.set_stance("force_eager"):
        found = draft(**inputs)
    torch.testing.assert_close(found.predict, expected.predict, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.regress, expected.regress, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_gradient_checkpointing_gives_the_same_gradients(num_layers):
    draft = make_draft(num_hidden_layers=num_layers).train()
    inputs = make_inputs(draft)

    def gradients() -> list[torch.Tensor]:
        draft.zero_grad()
        output = draft(**inputs)
        (output.predict.square().sum() + output.regress.sum()).backward()
        return [parameter.grad.clone() for parameter in draft.parameters()]

    expected = gradients()
    draft.activation_checkpointing_enable()
    assert all(layer.gradient_checkpointing for layer in draft.layers)
    for found, want in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(found, want)


def test_targets_weights_get_no_gradient_of_their_own_from_a_frozen_target():
    target = tiny_llama().requires_grad_(False)
    draft = make_draft(target).train()
    draft.compute_logits(draft(**make_inputs(draft)).predict).sum().backward()
    assert all(parameter.grad is not None for parameter in draft.parameters())
    assert all(parameter.grad is None for parameter in target.parameters())


# ---------------------------------------------------------------------- the paper's ablations


def num_parameters(**overrides: Any) -> int:
    return make_draft(**overrides).num_parameters()


def test_ablations_change_the_parameters_as_expected():
    """
    With d = 32, FFN and fusion width 48, 4 heads and 2 key-value heads of 8::

        fusion     fc 2*32*32 + 32, norms 2*32, up 48*64, down 32*48              = 2080 + 64 + 4608
        attention  q 32*32, k and v 2*16*32, o 32*32                              = 3072
        head       norm 32, gate and up 2*48*32, down 2*32*48                     = 32 + 3072 + 3072
    """
    full = num_parameters()
    assert full == (2080 + 64 + 4608) + 3072 + (32 + 3072 + 3072)
    assert num_parameters(fusion="concat") == full - 64 - 4608
    assert num_parameters(dual_head=False) == full - 32 * 48
    assert num_parameters(fusion_secondary_input="feature") == full
    assert num_parameters(fusion_secondary_input="fused") == full
    assert num_parameters(fusion_intermediate_size=24) == full - 4608 // 2
    assert num_parameters(fusion_bias=False) == full - 32
    assert num_parameters(fusion_mlp_bias=True) == full + 48 + 32
    assert num_parameters(attention_bias=True) == full + 32 + 2 * 16  # q, k, v; none at o
    # The first of two layers has one output, the second an input norm.
    assert num_parameters(num_hidden_layers=2) == full + 3072 + (32 + 3072 + 32 * 48) + 32


@pytest.mark.parametrize(
    "overrides",
    [
        {"fusion": "concat"},
        {"fusion_secondary_input": "feature"},
        {"fusion_secondary_input": "fused"},
        {"fusion_intermediate_size": 24},
        {"fusion_mlp_bias": True},
        {"dual_head": False},
        {"num_hidden_layers": 2},
        {"fusion": "concat", "dual_head": False},
    ],
)
@torch.no_grad()
def test_every_ablation_runs_and_differs_from_the_default(overrides, tmp_path):
    draft = make_draft(**overrides)
    output = draft(**make_inputs(draft))
    assert output.predict.isfinite().all()
    default = make_draft()(**make_inputs(draft))
    assert not torch.allclose(output.regress, default.regress)
    is_shared = output.regress is output.predict
    assert is_shared is not draft.config.dual_head
    draft.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).bind(tiny_llama())
    assert torch.equal(loaded(**make_inputs(draft)).predict, output.predict)


@torch.no_grad()
def test_secondary_input_is_what_its_name_says():
    """Feeding one tensor as embedding and as feature makes "token" and "feature" the same network."""
    token, feature, fused = (make_draft(fusion_secondary_input=kind).fusion for kind in ("token", "feature", "fused"))
    x, f = torch.randn(2, 1, 5, 32, generator=torch.manual_seed(0)).unbind(0)
    assert torch.equal(token(x, x), feature(x, x))
    assert not torch.allclose(token(x, f), feature(x, f))
    h = fused.fc(torch.cat((x, f), dim=-1))
    branches = torch.cat((fused.inner_norm(fused.outer_norm(h)), fused.inner_norm(h)), dim=-1)
    expected = h + fused.down_proj(torch.nn.functional.silu(fused.up_proj(branches)))
    torch.testing.assert_close(fused(x, f), expected)


# ---------------------------------------------------------------------- targets of many kinds

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
EXPERTS = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
ARCHITECTURES = {
    "Llama": {"rope_parameters": LLAMA3_ROPE},
    "Qwen2": {},
    "Qwen3": {"head_dim": 16},
    "Gemma2": {"head_dim": 16},
    "Gemma3Text": {"head_dim": 16},
    "GPT2": {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 128},
    "GPTNeoX": {"rotary_pct": 0.25},
    "DeepseekV3": LATENT | EXPERTS | {"num_key_value_heads": 4},
    "Falcon": {},
    "Cohere": {"logit_scale": 0.25},
    "Granite": {"logits_scaling": 4.0},
    "Bloom": {"n_head": 4, "n_layer": 2},
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_a_fresh_draft_fits_any_causal_language_model(architecture, tmp_path):
    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(**(SIZES | ARCHITECTURES[architecture]))
    target = AutoModelForCausalLM.from_config(config).eval()
    draft = GriffinDraftModel.from_target(target).eval()
    tokens = torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(0))
    outputs = target(tokens, output_hidden_states=True)
    features = outputs.hidden_states[-1]
    # The draft reads the target's features with its head exactly as the target does, scale and soft cap included.
    torch.testing.assert_close(draft.compute_logits(features), outputs.logits, atol=1e-5, rtol=1e-5)
    predict, regress = draft(input_ids=tokens[:, 1:], features=features[:, :-1])[:2]
    assert predict.shape == regress.shape == (2, 8, 32)
    assert predict.isfinite().all()

    draft.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).bind(target)
    assert torch.equal(loaded(input_ids=tokens[:, 1:], features=features[:, :-1]).predict, predict)


@torch.no_grad()
def test_rope_scaling_of_the_target_reaches_the_draft():
    plain, scaled = tiny_llama(), tiny_llama(rope_parameters=LLAMA3_ROPE)
    frequencies = GriffinDraftModel.from_target(scaled).rotary_emb.inv_freq
    assert torch.equal(frequencies, scaled.model.rotary_emb.inv_freq)
    assert not torch.equal(frequencies, GriffinDraftModel.from_target(plain).rotary_emb.inv_freq)
