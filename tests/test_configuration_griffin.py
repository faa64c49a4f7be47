"""GriffinDraftConfig: defaults, validation and the configuration derived from a target's."""

import json
import re

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import AutoConfig, DeepseekV3Config, FalconConfig, Gemma3TextConfig, GPT2Config, LlamaConfig
from transformers.models.gemma3.configuration_gemma3 import Gemma3Config

from conftest import tiny_llama
from transformers_griffin import GriffinDraftConfig
from transformers_griffin.modeling_griffin import draft_config_for


def test_defaults_are_the_papers():
    config = GriffinDraftConfig()
    assert (config.fusion, config.fusion_secondary_input, config.dual_head) == ("token_guided", "token", True)
    assert (config.num_hidden_layers, config.fusion_bias, config.fusion_mlp_bias) == (1, True, False)
    assert config.fusion_intermediate_size == config.intermediate_size == 11008


def test_every_own_field_survives_save_and_load_through_autoconfig(tmp_path):
    fields = {
        "fusion": "concat",
        "fusion_secondary_input": "fused",
        "fusion_intermediate_size": 40,
        "fusion_bias": False,
        "fusion_mlp_bias": True,
        "dual_head": False,
        "num_hidden_layers": 2,
        "draft_vocab_size": 100,
        "target_model_type": "llama",
        "target_name_or_path": "somewhere",
    }
    GriffinDraftConfig(**fields).save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, GriffinDraftConfig)
    assert {name: getattr(loaded, name) for name in fields} == fields
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "griffin_draft"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fusion": "sum"}, "`fusion` is 'sum', but must be one of token_guided, concat."),
        (
            {"fusion_secondary_input": "logits"},
            "`fusion_secondary_input` is 'logits', but must be one of token, feature, fused.",
        ),
        ({"num_hidden_layers": 0}, "`num_hidden_layers` is 0, but a draft needs at least 1 layer."),
        (
            {"num_attention_heads": 32, "num_key_value_heads": 5},
            "`num_attention_heads` (32) must be a multiple of `num_key_value_heads` (5).",
        ),
    ],
)
def test_a_config_that_describes_no_network_is_refused(fields, message):
    with pytest.raises(StrictDataclassClassValidationError, match=re.escape(message)):
        GriffinDraftConfig(**fields)


def test_a_llama_target_gives_its_own_shape():
    target = tiny_llama(rope_parameters={"rope_type": "default", "rope_theta": 5e5}, rms_norm_eps=1e-5).config
    config = draft_config_for(target)
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
        assert getattr(config, name) == getattr(target, name), name
    assert (config.head_dim, config.rms_norm_eps, config.num_hidden_layers) == (8, 1e-5, 1)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 5e5}
    assert config.target_model_type == "llama"


def test_llama3_rope_scaling_is_inherited():
    rope = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    assert draft_config_for(LlamaConfig(rope_parameters=rope)).rope_parameters == rope


def test_overrides_replace_derived_fields():
    config = draft_config_for(LlamaConfig(), fusion="concat", intermediate_size=64, num_key_value_heads=8)
    assert (config.fusion, config.intermediate_size, config.fusion_intermediate_size) == ("concat", 64, 64)
    assert config.num_key_value_heads == 8


def test_targets_without_llama_fields_get_ordinary_ones():
    """GPT-2 has no FFN size, no RoPE and a LayerNorm; Falcon shares one key-value head."""
    gpt2 = draft_config_for(GPT2Config(n_embd=48, n_head=4, layer_norm_epsilon=1e-5))
    assert (gpt2.intermediate_size, gpt2.rms_norm_eps, gpt2.max_position_embeddings) == (192, 1e-5, 1024)
    assert gpt2.rope_parameters == {"rope_type": "default", "rope_theta": 1e4}
    falcon = draft_config_for(FalconConfig(hidden_size=48, num_attention_heads=4))
    assert falcon.num_attention_heads % falcon.num_key_value_heads == 0


def test_latent_attention_gives_ordinary_heads():
    config = draft_config_for(DeepseekV3Config(hidden_size=64, num_attention_heads=4, num_key_value_heads=4))
    assert config.head_dim == 16


def test_a_multimodal_target_is_read_through_its_text_config():
    text = Gemma3TextConfig(hidden_size=48, num_attention_heads=4, num_key_value_heads=2, vocab_size=99)
    config = draft_config_for(Gemma3Config(text_config=text))
    assert (config.hidden_size, config.vocab_size, config.target_model_type) == (48, 99, "gemma3_text")
