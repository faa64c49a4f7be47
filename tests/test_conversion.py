"""Released checkpoints load, come back bit for bit, and bad ones are refused with a text that helps."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import GOLDEN, GOLDEN_CASES, golden_case, golden_json, golden_target, tiny_llama
from transformers_griffin import GriffinDraftModel, convert_checkpoint
from transformers_griffin.conversion import write_released_checkpoint


# What the draft of each case is (tests/fixtures/golden/README.md); missing fields mean the released defaults.
EXPECTED_CONFIGS = {
    "llama_mha": {"num_key_value_heads": 4, "rms_norm_eps": 1e-6, "attention_bias": False, "theta": 1e4},
    "llama_gqa": {"num_key_value_heads": 2, "rms_norm_eps": 1e-5, "attention_bias": False, "theta": 5e5},
    "qwen2_bias": {"num_key_value_heads": 4, "rms_norm_eps": 1e-6, "attention_bias": True, "theta": 1e6},
}


class Release:
    """A released checkpoint in a directory of its own, whose config and weights a test may edit."""

    def __init__(self, directory: Path, name: str = "llama_gqa"):
        self.directory = directory
        self.config = golden_json(name, "draft_official/config")
        self.weights = load_file(GOLDEN / name / "draft_official" / "model.safetensors")

    def write(self, as_safetensors: bool = False) -> Path:
        (self.directory / "config.json").write_text(json.dumps(self.config))
        if as_safetensors:
            save_file(self.weights, self.directory / "model.safetensors")
        else:
            torch.save(self.weights, self.directory / "pytorch_model.bin")
        return self.directory


@pytest.fixture
def release(tmp_path):
    return Release(tmp_path)


@pytest.fixture
def eagle(tmp_path):
    """An EAGLE checkpoint of random weights: one fusion layer with bias, hidden-size MLP output."""
    release = Release(tmp_path)
    renamed = {"fc.weight": release.weights["fc.fc.weight"], "fc.bias": release.weights["fc.fc.bias"]}
    kept = {key: tensor for key, tensor in release.weights.items() if not key.startswith("fc.")}
    kept["layers.0.mlp.down_proj.weight"] = kept["layers.0.mlp.down_proj.weight"][:64].clone()
    release.weights = kept | renamed
    return release


# ---------------------------------------------------------------------- reading


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_config_of_a_released_checkpoint_is_read(name):
    _, draft = golden_case(name)
    config = draft.config
    expected = EXPECTED_CONFIGS[name]
    found = {field: getattr(config, field) for field in expected if field != "theta"}
    assert found | {"theta": config.rope_parameters["rope_theta"]} == expected
    norms = (draft.fusion.inner_norm, draft.fusion.outer_norm, draft.layers[0].post_attention_layernorm)
    assert {norm.variance_epsilon for norm in norms} == {expected["rms_norm_eps"]}
    assert (config.fusion, config.dual_head, config.num_hidden_layers) == ("token_guided", True, 1)
    assert config.target_model_type == ("qwen2" if name == "qwen2_bias" else "llama")


def test_both_weight_files_give_the_same_draft(release):
    from_pickle = convert_checkpoint(release.write())
    (release.directory / "pytorch_model.bin").unlink()
    from_safetensors = convert_checkpoint(release.write(as_safetensors=True))
    assert all(torch.equal(a, b) for a, b in zip(from_pickle.parameters(), from_safetensors.parameters(), strict=True))
    assert torch.equal(from_pickle.fusion.inner_norm.weight, release.weights["fc.mlp.input_layernorm.weight"])
    assert torch.equal(from_pickle.fusion.outer_norm.weight, release.weights["fc.post_attention_layernorm.weight"])
    assert "embed" not in " ".join(from_pickle.state_dict())


def test_a_vicuna_style_config_means_as_many_key_value_heads_and_theta_1e4(tmp_path):
    release = Release(tmp_path, "llama_mha")
    del release.config["num_key_value_heads"], release.config["rms_norm_eps"]
    config = convert_checkpoint(release.write()).config
    assert (config.num_key_value_heads, config.rms_norm_eps) == (4, 1e-6)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 1e4}


@pytest.mark.parametrize(("found", "read"), [(None, None), (0, 0), (-1, None)])
def test_pad_token_is_kept_unless_negative(release, found, read):
    release.config["pad_token_id"] = found
    assert convert_checkpoint(release.write()).config.pad_token_id == read


@pytest.mark.parametrize(
    ("scaling", "theta"),
    [
        ({"type": "linear", "factor": 2.0}, 1e4),  # the released network ignores `rope_theta` beside these two
        ({"type": "dynamic", "factor": 2.0}, 1e4),
        ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}, 5e5),
    ],
)
def test_rope_scaling_is_read_as_the_released_network_reads_it(release, scaling, theta):
    if "rope_type" in scaling:
        scaling = scaling | {"original_max_position_embeddings": 1024}
    release.config["rope_scaling"] = scaling
    rope = convert_checkpoint(release.write()).config.rope_parameters
    assert rope["rope_theta"] == theta
    assert rope["rope_type"] == scaling.get("type", scaling.get("rope_type"))
    assert rope["factor"] == scaling["factor"]


def test_draft_keeps_the_dtype_of_the_file_and_exact_rotary_frequencies(release):
    release.weights = {key: tensor.half() for key, tensor in release.weights.items()}
    draft = convert_checkpoint(release.write())
    assert draft.dtype == torch.float16
    assert draft.rotary_emb.inv_freq.dtype == torch.float32


def test_stored_rotary_frequencies_are_not_weights(release):
    release.weights["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    assert isinstance(convert_checkpoint(release.write()), GriffinDraftModel)


def test_a_hub_repository_is_read_from_its_cache(release, tmp_path):
    repo = tmp_path / "cache" / "models--user--draft"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    shutil.copytree(release.write(), repo / "snapshots" / ("0" * 40), ignore=shutil.ignore_patterns("cache"))
    draft = convert_checkpoint("user/draft", cache_dir=tmp_path / "cache", local_files_only=True)
    assert draft.config.hidden_size == 64


def test_converted_draft_survives_save_and_load(tmp_path):
    _, draft = golden_case("qwen2_bias")
    draft.save_pretrained(tmp_path)
    loaded = GriffinDraftModel.from_pretrained(tmp_path)
    assert loaded.config.to_diff_dict() == draft.config.to_diff_dict()
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), draft.parameters(), strict=True))


# ---------------------------------------------------------------------- EAGLE and HASS


@pytest.mark.parametrize("has_bias", [True, False])
@torch.no_grad()
def test_eagle_checkpoint_becomes_a_concat_draft_with_the_same_output(eagle, has_bias):
    """
    With a single position attention returns its value. The EAGLE network is then, for embedding e and feature f::

        h = fc [e ; f]      y = h + o(v(h))      output = y + down(silu(gate n) * up n),  n = RMSNorm(y)
    """
    if not has_bias:
        del eagle.weights["fc.bias"]
    target = golden_target("llama_gqa")
    draft = convert_checkpoint(eagle.write(), target=target)
    config = draft.config
    assert (config.fusion, config.dual_head, config.fusion_bias) == ("concat", False, has_bias)

    w = eagle.weights
    embedding, feature = w["embed_tokens.weight"][7], torch.randn(64, generator=torch.manual_seed(0))
    h = w["fc.weight"] @ torch.cat((embedding, feature)) + w.get("fc.bias", 0)
    values = (w["layers.0.self_attn.v_proj.weight"] @ h).view(2, 1, 8).expand(-1, 4, -1).flatten()  # 2 heads for 8
    y = h + w["layers.0.self_attn.o_proj.weight"] @ values
    n = y * torch.rsqrt(y.pow(2).mean() + 1e-5) * w["layers.0.post_attention_layernorm.weight"]
    gate = torch.nn.functional.silu(w["layers.0.mlp.gate_proj.weight"] @ n)
    expected = y + w["layers.0.mlp.down_proj.weight"] @ (gate * (w["layers.0.mlp.up_proj.weight"] @ n))

    output = draft(input_ids=torch.tensor([[7]]), features=feature.view(1, 1, -1))
    torch.testing.assert_close(output.predict[0, 0], expected, atol=1e-5, rtol=0)
    assert output.regress is output.predict


# ---------------------------------------------------------------------- writing


@pytest.mark.parametrize("safe_serialization", [True, False])
@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_round_trip_is_bit_equal(name, safe_serialization, tmp_path):
    _, draft = golden_case(name)
    write_released_checkpoint(draft, tmp_path, safe_serialization=safe_serialization)
    written = (
        load_file(tmp_path / "model.safetensors")
        if safe_serialization
        else torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    )
    original = load_file(GOLDEN / name / "draft_official" / "model.safetensors")
    assert {key: list(t.shape) for key, t in written.items()} == golden_json(name, "info")["draft_param_names"]
    assert all(
        torch.equal(written[key], tensor) and written[key].dtype == tensor.dtype for key, tensor in original.items()
    )

    config = json.loads((tmp_path / "config.json").read_text())
    original_config = golden_json(name, "draft_official/config")
    shared = original_config.keys() & config.keys()
    assert {field: config[field] for field in shared} == {field: original_config[field] for field in shared}
    # What the released network does not read.
    assert original_config.keys() - config.keys() <= {
        "attention_bias", "attention_dropout", "max_window_layers", "pretraining_tp", "sliding_window",
        "transformers_version", "use_sliding_window",
    }  # fmt: skip
    again = convert_checkpoint(tmp_path, target_config=golden_target(name).config)
    assert again.config.to_diff_dict() == draft.config.to_diff_dict()


@pytest.mark.parametrize("has_bias", [True, False])
def test_eagle_round_trip_is_bit_equal(eagle, has_bias, tmp_path):
    if not has_bias:
        del eagle.weights["fc.bias"]
    target = golden_target("llama_gqa")
    draft = convert_checkpoint(eagle.write(), target_config=target.config)
    write_released_checkpoint(draft, tmp_path / "back", target=target)
    written = torch.load(tmp_path / "back" / "pytorch_model.bin", weights_only=True)
    assert written.keys() == eagle.weights.keys()
    assert all(torch.equal(written[key], tensor) for key, tensor in eagle.weights.items())
    assert json.loads((tmp_path / "back" / "config.json").read_text())["bias"] is has_bias


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"dual_head": False}, "`dual_head` is False, but its network has True"),
        ({"num_hidden_layers": 2}, "`num_hidden_layers` is 2, but its network has 1"),
        ({"fusion_secondary_input": "fused"}, "`fusion_secondary_input` is 'fused', but its network has 'token'"),
        ({"fusion_mlp_bias": True}, "`fusion_mlp_bias` is True, but its network has False"),
        ({"fusion_intermediate_size": 40}, "`fusion_intermediate_size` is 40, but its network has 48"),
        ({"head_dim": 16}, "`head_dim` is 16, but its network has 8"),
        ({"fusion": "concat"}, "`dual_head` is True, but its network has False"),
    ],
)
def test_a_draft_that_the_released_code_cannot_load_is_not_written(overrides, message, tmp_path):
    draft = GriffinDraftModel.from_target(tiny_llama(), **overrides)
    with pytest.raises(ValueError, match=re.escape(message)):
        write_released_checkpoint(draft, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_writing_needs_a_target_for_the_embedding(release, tmp_path):
    with pytest.raises(RuntimeError, match="not bound to a target"):
        write_released_checkpoint(convert_checkpoint(release.write()), tmp_path / "out")


# ---------------------------------------------------------------------- the target


def test_a_foreign_embedding_is_refused_with_the_number_of_rows(release):
    release.weights["embed_tokens.weight"][[3, 8, 500]] += 1e-3
    with pytest.raises(ValueError, match=r"differs from the target's in 3 of 517 rows.*another target"):
        convert_checkpoint(release.write(), target=golden_target("llama_gqa"))
    assert not convert_checkpoint(release.directory).is_bound


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_embedding_rounded_to_the_file_dtype_is_the_targets(release, dtype):
    release.weights = {key: tensor.to(dtype) for key, tensor in release.weights.items()}
    assert convert_checkpoint(release.write(), target=golden_target("llama_gqa")).is_bound


def test_a_checkpoint_without_embedding_is_read(release):
    del release.weights["embed_tokens.weight"]
    assert convert_checkpoint(release.write(), target=golden_target("llama_gqa")).is_bound


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"hidden_size": 64, "vocab_size": 61}, "The checkpoint's `vocab_size` is 517, but the target's is 61."),
        ({"hidden_size": 32, "vocab_size": 517}, "The checkpoint's `hidden_size` is 64, but the target's is 32."),
    ],
)
def test_a_target_of_another_size_is_refused(release, overrides, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        convert_checkpoint(release.write(), target_config=tiny_llama(**overrides).config)


# ---------------------------------------------------------------------- bad files


def drop_keys(release):
    del release.weights["fc.fc.weight"], release.weights["layers.0.self_attn.k_proj.weight"]


def add_key(release):
    release.weights["layers.0.input_layernorm.weight"] = torch.ones(64)


def drop_biases_of_qwen(release):
    release.config["qkv_bias"] = True


def widen_mlp(release):
    release.config["intermediate_size"] = 200


def change_vocab(release):
    release.config["vocab_size"] = 500


def drop_config_field(release):
    del release.config["num_attention_heads"]


def rename_all(release):
    release.weights = {f"model.{key}": tensor for key, tensor in release.weights.items()}


def make_eagle3(release):
    release.weights = {"d2t": torch.zeros(4), "midlayer.self_attn.q_proj.weight": torch.zeros(4, 8)}


def make_our_own(release):
    release.config["model_type"] = "griffin_draft"


def uneven_heads(release):
    release.config["num_key_value_heads"] = 3


def make_gelu(release):
    release.config["hidden_act"] = "gelu"


def add_number(release):
    release.weights["epoch"] = 3


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop_keys, "Missing keys: fc.fc.weight, layers.0.self_attn.k_proj.weight."),
        (add_key, "Unexpected keys: layers.0.input_layernorm.weight."),
        (drop_biases_of_qwen, "Missing keys: layers.0.self_attn.k_proj.bias, layers.0.self_attn.q_proj.bias, "),
        (widen_mlp, "layers.0.mlp.gate_proj.weight is (192, 64) instead of (200, 64)"),
        (change_vocab, "embed_tokens.weight is (517, 64) instead of (500, 64)"),
        (drop_config_field, "`config.json` lacks num_attention_heads."),
        (
            rename_all,
            "Unknown checkpoint layout: no key starts with `fc.`; the first keys are model.embed_tokens.weight",
        ),
        (make_eagle3, "This is an EAGLE-3 checkpoint"),
        (
            make_our_own,
            "is a `griffin_draft` already and needs no conversion. Load it with `GriffinDraftModel.from_pre",
        ),
        (uneven_heads, "`num_attention_heads` (8) must be a multiple of `num_key_value_heads` (3)."),
        (make_gelu, "`hidden_act` is 'gelu', but token-guided fusion is made with 'silu' only."),
        (add_number, "holds a int at 'epoch', but all values must be tensors."),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(release, edit, message):
    edit(release)
    with pytest.raises(ValueError, match=re.escape(message)):
        convert_checkpoint(release.write())


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize("damage", ["half", "pointer", "empty"])
def test_a_damaged_weight_file_is_refused(release, file, damage):
    path = release.write(as_safetensors=file.endswith("safetensors")) / file
    content = path.read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 552592\n"
    path.write_bytes({"half": content[: len(content) // 2], "pointer": pointer, "empty": b""}[damage])
    with pytest.raises(ValueError, match=rf"{file} \(\d+ bytes\) is truncated or corrupt: .+ Download it again"):
        convert_checkpoint(release.directory)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_pickle_with_code_is_refused_and_not_run(release, tmp_path):
    release.weights["fc.fc.bias"] = Payload(tmp_path / "owned")
    with pytest.raises(
        ValueError, match=r"holds Python objects that are not tensors .*posix\.system.* the file is refused"
    ):
        convert_checkpoint(release.write())
    assert not (tmp_path / "owned").exists()


def test_missing_files_are_named(release, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no `config.json`"):
        convert_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"has neither `model.safetensors` nor `pytorch_model.bin`"):
        convert_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is not valid JSON"):
        convert_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r"is a file\. Give the directory"):
        convert_checkpoint(tmp_path / "config.json")
