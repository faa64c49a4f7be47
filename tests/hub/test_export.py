"""An exported draft computes in the engines what it computes here; what they cannot load is refused."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from eagle_engines import EagleEngine
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from conftest import GOLDEN, golden_case, tiny_llama
from transformers_griffin import GriffinDraftModel, convert_checkpoint
from transformers_griffin.cli import main
from transformers_griffin.conversion import write_released_checkpoint
from transformers_griffin.hub.export import export_draft


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
# What differs between targets and drafts that can be exported.
KINDS = {
    "plain": ({}, {}),
    "two_layers": ({}, {"num_hidden_layers": 2}),
    "wide_heads": ({"head_dim": 12}, {}),
    "llama3_rope": ({"rope_parameters": LLAMA3_ROPE}, {}),
    "tied_target": ({"tie_word_embeddings": True}, {"rms_norm_eps": 1e-3}),
}


def make_pair(kind: str = "plain", **draft_fields):
    """A random target and a draft that the engines have a form for, no weight of it zero or one."""
    target_fields, fields = KINDS[kind]
    target = tiny_llama(**target_fields)
    eagle = {"fusion": "concat", "dual_head": False, "fusion_bias": False}
    draft = GriffinDraftModel.from_target(target, **(eagle | fields | draft_fields)).eval()
    torch.manual_seed(1)
    for weight in draft.parameters():
        torch.nn.init.normal_(weight, mean=float(weight.dim() == 1), std=0.3)
    return target, draft


@torch.no_grad()
def logits_here_and_there(draft, engine):
    torch.manual_seed(2)
    input_ids, features = torch.randint(0, 61, (20,)), torch.randn(20, 32)
    positions = torch.arange(3, 23)
    predict = draft(input_ids=input_ids[None], features=features[None], position_ids=positions[None]).predict
    return draft.compute_logits(predict)[0], engine.logits(input_ids, positions, features)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_engines_compute_the_same_logits(tmp_path, kind, engine):
    target, draft = make_pair(kind)
    export_draft(draft, tmp_path, target, engine=engine)
    here, there = logits_here_and_there(draft, EagleEngine(tmp_path, target, engine))
    assert here.std() > 0.1
    torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-4)  # two orders of sums in float32


def test_sglang_gets_the_bias_that_vllm_has_no_place_for(tmp_path):
    target, draft = make_pair(fusion_bias=True)
    export_draft(draft, tmp_path, target, engine="sglang")
    here, there = logits_here_and_there(draft, EagleEngine(tmp_path, target, "sglang"))
    torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-4)
    with pytest.raises(KeyError, match=r"model\.fc\.bias"):
        EagleEngine(tmp_path, target, "vllm")


def test_each_engine_gets_every_parameter_and_nothing_else(tmp_path):
    """Without `fc.bias` SGLang's bias would stay as allocated, here not a number; a copied embedding is not wanted."""
    target, draft = make_pair()
    for engine in ("vllm", "sglang"):
        export_draft(draft, tmp_path / engine, target, engine=engine)
        loaded = EagleEngine(tmp_path / engine, target, engine)
        assert not any(weight.isnan().any() for weight in loaded.parameters.values())
        assert not any("embed_tokens" in name or "lm_head" in name for name in loaded.loaded)
    vllm, sglang = (load_file(tmp_path / engine / "model.safetensors") for engine in ("vllm", "sglang"))
    assert sglang.keys() - vllm.keys() == {"fc.bias"}
    assert sglang["fc.bias"].count_nonzero() == 0


def test_transformers_reads_the_config_as_the_draft_wrote_it(tmp_path):
    """Engines read it through `AutoConfig`."""
    target, draft = make_pair("llama3_rope")
    export_draft(draft.bfloat16(), tmp_path, target)
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.model_type == "llama"
    assert config.rope_parameters == LLAMA3_ROPE
    assert config.dtype == torch.bfloat16
    for name in ("hidden_size", "intermediate_size", "num_key_value_heads", "head_dim", "rms_norm_eps", "vocab_size"):
        assert getattr(config, name) == getattr(draft.config, name)


def test_an_exported_draft_comes_back(tmp_path):
    target, draft = make_pair("two_layers")
    export_draft(draft, tmp_path, target)
    back = convert_checkpoint(tmp_path, target_config=target.config).bind(target)
    assert back.config.num_hidden_layers == 2
    assert all(torch.equal(weight, back.state_dict()[name]) for name, weight in draft.state_dict().items())


def test_sglang_gets_the_tokens_of_a_truncated_vocabulary(tmp_path):
    """Its head is cut to these rows by the engine, so the weights are those of the whole draft."""
    target, draft = make_pair()
    export_draft(draft, tmp_path / "whole", target, engine="sglang")
    draft.truncate_vocabulary([60, 4, 9])
    export_draft(draft, tmp_path / "some", target, engine="sglang")
    assert torch.load(tmp_path / "some" / "token_map.pt", weights_only=True) == [4, 9, 60]
    assert not (tmp_path / "whole" / "token_map.pt").exists()
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "some" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    here, there = logits_here_and_there(draft, EagleEngine(tmp_path / "some", target, "sglang"))
    torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", [{"engine": "vllm"}, {"format": "speculators"}, None], ids=str)
def test_readers_without_token_maps_get_the_whole_draft_and_the_user_is_told(tmp_path, caplog, settings):
    target, draft = make_pair()

    def write(folder: Path) -> None:
        if settings is None:
            write_released_checkpoint(draft, folder, target, safe_serialization=True)
        else:
            export_draft(draft, folder, target, **settings)

    write(tmp_path / "whole")
    assert "token map" not in caplog.text
    draft.truncate_vocabulary([60, 4, 9])
    write(tmp_path / "some")
    assert "knows no token map, so the draft proposes from all 61 tokens there, not from 3." in caplog.text
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "some" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert {path.name for path in (tmp_path / "some").iterdir()} == {"model.safetensors", "config.json"}


# ---------------------------------------------------------------------- refusals


def test_a_griffin_draft_is_refused_with_the_kind_to_train(tmp_path):
    target, draft = golden_case("llama_gqa")
    message = (
        "vllm cannot load this draft: its EAGLE network has no form for token-guided fusion, a second output, a bias "
        "of the fusion. Keep this draft for `generate()`, and for serving train one of the kind that can be exported, "
        'with the same objective: `GriffinDraftModel.from_target(target, fusion="concat", dual_head=False, '
        "fusion_bias=False)`"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        export_draft(draft, tmp_path / "out", target)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "settings", "message"),
    [
        ({"fusion_bias": True}, {}, "no form for a bias of the fusion. "),
        (
            {"attention_bias": True},
            {"engine": "sglang"},
            "sglang cannot load this draft: its EAGLE network has no form ",
        ),
        ({"mlp_bias": True}, {}, "no form for MLP biases. "),
        ({"hidden_act": "gelu"}, {}, "no form for the activation 'gelu'. "),
        ({"num_hidden_layers": 2}, {"format": "speculators"}, "no form for 2 layers. "),
        (
            {"head_dim": 16},
            {"format": "speculators"},
            "but the draft's `head_dim` is 16 and the target's is 8. Export it with `format='eagle'`.",
        ),
        ({}, {"format": "onnx"}, "`format` is 'onnx', but must be one of eagle, speculators."),
        ({}, {"engine": "tgi"}, "`engine` is 'tgi', but must be one of vllm, sglang."),
    ],
)
def test_what_a_loader_has_no_form_for_is_named(tmp_path, fields, settings, message):
    target, draft = make_pair(**fields)
    with pytest.raises(ValueError, match=re.escape(message)):
        export_draft(draft, tmp_path, target, **settings)


def test_a_target_that_scales_its_embedding_is_refused(tmp_path):
    """Gemma 3 multiplies the rows inside the embedding; the engines would give the draft the rows as they are."""
    config = AutoConfig.for_model(
        "gemma3_text", vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    target = AutoModelForCausalLM.from_config(config)
    draft = GriffinDraftModel.from_target(
        target, fusion="concat", dual_head=False, fusion_bias=False, hidden_act="silu"
    )
    with pytest.raises(ValueError, match=r"but Gemma3TextScaledWordEmbedding of Gemma3ForCausalLM changes them"):
        export_draft(draft, tmp_path, target)


# ---------------------------------------------------------------------- the command


@pytest.fixture
def saved_pair(tmp_path):
    target, draft = make_pair()
    target.save_pretrained(tmp_path / "target")
    draft.save_pretrained(tmp_path / "draft")
    return tmp_path, target, draft


def test_the_command_needs_the_targets_config_only(saved_pair, capsys):
    folder, target, draft = saved_pair
    (folder / "target" / "model.safetensors").unlink()
    assert main(["export", str(folder / "draft"), str(folder / "out"), "--target", str(folder / "target")]) == 0
    assert capsys.readouterr().out.startswith(f"Wrote {folder / 'out'}: concat fusion, one output, 1 layer(s), ")
    here, there = logits_here_and_there(draft, EagleEngine(folder / "out", target, "vllm"))
    torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-4)


def test_the_command_takes_a_released_eagle_checkpoint(saved_pair):
    folder, target, draft = saved_pair
    write_released_checkpoint(draft, folder / "released", target)
    args = ["export", str(folder / "released"), str(folder / "out"), "--target", str(folder / "target")]
    assert main([*args, "--engine", "sglang"]) == 0
    here, there = logits_here_and_there(draft, EagleEngine(folder / "out", target, "sglang"))
    torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-4)


def test_the_command_says_what_cannot_be_exported(saved_pair, capsys):
    folder, _, _ = saved_pair
    draft, target = str(folder / "draft"), str(folder / "target")
    griffin = [str(GOLDEN / "llama_gqa" / "draft_official"), str(folder / "out"), "--target"]
    assert main(["export", *griffin, str(GOLDEN / "llama_gqa" / "target")]) == 1
    assert "no form for token-guided fusion" in capsys.readouterr().err
    assert main(["export", draft, draft, "--target", target]) == 1
    assert "which is a file or the draft itself" in capsys.readouterr().err


# ---------------------------------------------------------------------- speculators


def test_the_speculators_layout_has_the_packages_names(tmp_path):
    target, draft = make_pair(fusion_bias=True)
    draft.generation_config.draft_tree_depth = 4
    export_draft(draft, tmp_path, target, format="speculators")
    names = set(load_file(tmp_path / "model.safetensors"))
    assert {"fusion_fc.weight", "fusion_fc.bias", "transformer.self_attn.q_proj.weight"} <= names
    assert all(name.startswith(("fusion_fc.", "transformer.")) for name in names)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["speculators_model_type"] == "eagle"
    assert config["fusion_bias"] is True
    assert config["speculators_config"]["verifier"]["architectures"] == ["LlamaForCausalLM"]
    assert config["speculators_config"]["proposal_methods"] == [{"proposal_type": "greedy", "speculative_tokens": 4}]
    assert config["transformer_layer_config"]["intermediate_size"] == 48


@pytest.mark.slow
@pytest.mark.skipif(
    "SPECULATORS_PYTHON" not in os.environ,
    reason="SPECULATORS_PYTHON names no Python of an environment with speculators 0.4 (see load_speculator.py)",
)
@pytest.mark.parametrize("kind", ["plain", "wide_heads", "llama3_rope"])
@pytest.mark.parametrize("fusion_bias", [False, True])
def test_the_speculators_package_computes_the_same_logits(tmp_path, kind, fusion_bias):
    target, draft = make_pair(kind, fusion_bias=fusion_bias)
    target.save_pretrained(tmp_path / "target")
    export_draft(draft, tmp_path / "draft", target, format="speculators")
    torch.manual_seed(2)
    inputs = {"input_ids": torch.randint(0, 61, (1, 20)), "features": torch.randn(1, 20, 32)}
    torch.save(inputs, tmp_path / "inputs.pt")
    script = Path(__file__).with_name("load_speculator.py")
    subprocess.run([os.environ["SPECULATORS_PYTHON"], script, tmp_path], check=True)
    with torch.no_grad():
        here = draft.compute_logits(draft(**inputs).predict)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), here, rtol=1e-4, atol=1e-4)
