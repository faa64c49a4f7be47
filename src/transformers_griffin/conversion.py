"""
Published draft checkpoints in, [`GriffinDraftModel`] out, and back.

Two layouts are read and written. Both are a directory or Hub repository with `config.json` and `pytorch_model.bin` or
`model.safetensors`, and both store a copy of the target's embedding, which a [`GriffinDraftModel`] borrows instead:

- **GRIFFIN** (github.com/hsj576/GRIFFIN): token-guided fusion, MLP of the last layer twice as wide at its end;
- **EAGLE** (EAGLE, EAGLE-2, HASS): one linear layer over [embedding ; feature], the same order as GRIFFIN's `fc.fc`.

What the released loaders do silently is done here on purpose: no `num_key_value_heads` means as many as query heads,
no `rope_theta` means 1e4, and beside `rope_scaling` of type linear or dynamic `rope_theta` is ignored.

Next: `cli/` offers both directions as `griffin convert`.
"""

import functools
import json
import os
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.utils import logging

from .checkpoint_files import CONFIG_FILE, PICKLE_FILE, SAFETENSORS_FILE, read_config, read_weights
from .configuration_griffin import GriffinDraftConfig
from .modeling_griffin import GriffinDraftModel, moved_to


logger = logging.get_logger(__name__)

EMBEDDING_KEY = "embed_tokens.weight"
DEFAULT_ROPE_THETA = 10000.0

# Released key prefix -> ours, by `GriffinDraftConfig.fusion`. Keys of the decoder layer have the same names.
KEY_MAPS: dict[str, dict[str, str]] = {
    "token_guided": {
        "fc.fc.": "fusion.fc.",
        "fc.post_attention_layernorm.": "fusion.outer_norm.",
        "fc.mlp.input_layernorm.": "fusion.inner_norm.",
        "fc.mlp.up_proj.": "fusion.up_proj.",
        "fc.mlp.down_proj.": "fusion.down_proj.",
        "layers.": "layers.",
    },
    "concat": {"fc.": "fusion.fc.", "layers.": "layers."},
}
REQUIRED_FIELDS = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
COPIED_FIELDS = (
    "hidden_act",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "initializer_range",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)


def convert_checkpoint(
    path_or_repo: str | os.PathLike,
    target_config: PreTrainedConfig | None = None,
    target: PreTrainedModel | None = None,
    **hub_kwargs: Any,
) -> GriffinDraftModel:
    """
    Reads a published GRIFFIN, EAGLE, EAGLE-2 or HASS checkpoint.

    Args:
        path_or_repo (`str` or `os.PathLike`): a local directory or a repository on the Hub.
        target_config ([`~transformers.PreTrainedConfig`], *optional*):
            Configuration of the target, to check that both fit. Taken from `target` when not given.
        target ([`~transformers.PreTrainedModel`], *optional*):
            The target itself. Its embedding must equal the checkpoint's copy, and the draft is bound to it.
        hub_kwargs: `revision`, `subfolder`, `token`, `cache_dir`, `local_files_only`, ... as in `from_pretrained`.

    Returns:
        [`GriffinDraftModel`]: in the dtype of the file and on the CPU.

    Raises:
        FileNotFoundError: if `config.json` or both weight files are missing.
        ValueError: if a file is corrupt or unsafe, the layout is unknown, keys are missing or unexpected, shapes
            disagree, or the draft does not fit the target.

    Example:

    ```python
    >>> draft = convert_checkpoint("user/griffin-release", target=target)  # doctest: +SKIP
    >>> draft.save_pretrained("griffin-draft")  # doctest: +SKIP
    ```
    """
    if target is not None and target_config is None:
        target_config = target.config
    released = read_config(path_or_repo, hub_kwargs)
    if released.get("model_type") == GriffinDraftConfig.model_type:
        raise ValueError(
            f"{path_or_repo} is a `{GriffinDraftConfig.model_type}` already and needs no conversion. Load it with "
            "`GriffinDraftModel.from_pretrained`."
        )
    weights = read_weights(path_or_repo, hub_kwargs)
    config = _config_from_released(released, weights)
    if target_config is not None:
        _fit_to_target(config, target_config)

    embedding = weights.pop(EMBEDDING_KEY, None)
    if embedding is None:
        logger.warning(
            f"{path_or_repo} has no `{EMBEDDING_KEY}`, so it is not checked against the target's embedding."
        )
    else:
        _check_embedding(embedding, config, target)
    draft = _load_weights(config, weights)
    return draft if target is None else draft.bind(target)


def load_draft(
    path_or_repo: str | os.PathLike, target: PreTrainedModel, dtype: Any = "auto", **hub_kwargs: Any
) -> GriffinDraftModel:
    """
    Loads a draft in our format, or a released one, and binds it to the target.

    Args:
        path_or_repo (`str` or `os.PathLike`): a local directory or a repository on the Hub.
        target ([`~transformers.PreTrainedModel`]): the target that it was trained for. Of one on the meta device only
            the configuration is compared.
        dtype: as in `from_pretrained`; released checkpoints keep the dtype of their file.
        hub_kwargs: see [`convert_checkpoint`].

    Raises:
        OSError: if there is no draft of that name, or it cannot be reached.
    """
    try:
        config, _ = PreTrainedConfig.get_config_dict(path_or_repo, **hub_kwargs)
    except OSError as error:
        raise OSError(
            f"{path_or_repo} is no directory with a draft, and none was found on the Hub: {error}"
        ) from error
    if config.get("model_type") != GriffinDraftConfig.model_type:
        weights_of = None if target.device.type == "meta" else target
        return convert_checkpoint(path_or_repo, target.config, weights_of, **hub_kwargs).bind(target)
    return GriffinDraftModel.from_pretrained(path_or_repo, dtype=dtype, **hub_kwargs).eval().bind(target)


def write_released_checkpoint(
    draft: GriffinDraftModel,
    directory: str | os.PathLike,
    target: PreTrainedModel | None = None,
    safe_serialization: bool = False,
) -> None:
    """
    Writes a draft in the layout of the released code, so that its strict load accepts it.

    Args:
        draft ([`GriffinDraftModel`]): any draft that the released code can express.
        directory (`str` or `os.PathLike`): where to write; made if it does not exist.
        target ([`~transformers.PreTrainedModel`], *optional*):
            Source of the embedding that the layout demands. Not needed when the draft is bound.
        safe_serialization (`bool`, defaults to `False`):
            Write `model.safetensors` instead of `pytorch_model.bin`, which is the file the released code looks for.

    Effects:
        The draft is bound to `target`, if one is given.

    Raises:
        ValueError: if the released code has no form for this draft, or the target does not fit it.
        RuntimeError: if the draft is not bound and no target is given.
    """
    config = draft.config
    _check_has_released_form(config)
    warn_of_whole_vocabulary(draft, "The released code")
    if target is not None:
        draft.bind(target)
    embedding = draft.embed_tokens(_all_ids(config.vocab_size)).detach()
    weights = {EMBEDDING_KEY: embedding.cpu().contiguous()} | released_weights(draft)

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_config(released_config(draft), directory)
    if safe_serialization:
        save_file(weights, directory / SAFETENSORS_FILE, metadata={"format": "pt"})
    else:
        torch.save(weights, directory / PICKLE_FILE)


# ---------------------------------------------------------------------- configuration


def _config_from_released(released: dict[str, Any], weights: dict[str, torch.Tensor]) -> GriffinDraftConfig:
    fusion = _detect_fusion(weights)
    missing = [name for name in REQUIRED_FIELDS if released.get(name) is None]
    if missing:
        raise ValueError(f"`{CONFIG_FILE}` lacks {', '.join(missing)}. Copy it from the published checkpoint.")
    if fusion == "token_guided" and released.get("hidden_act", "silu") != "silu":
        raise ValueError(
            f"`hidden_act` is {released['hidden_act']!r}, but token-guided fusion is made with 'silu' only."
        )
    layers = {int(key.split(".")[1]) for key in weights if key.startswith("layers.")}
    last_layer = max(layers, default=0)
    down_proj = weights.get(f"layers.{last_layer}.mlp.down_proj.weight")
    is_single = down_proj is not None and down_proj.shape[0] == released["hidden_size"]
    fields = {name: released[name] for name in REQUIRED_FIELDS + COPIED_FIELDS if released.get(name) is not None}
    if fields.get("pad_token_id", 0) < 0:  # old Llama configurations write -1 for "none"
        del fields["pad_token_id"]
    try:
        return GriffinDraftConfig(
            **fields,
            num_hidden_layers=last_layer + 1,
            rms_norm_eps=float(released.get("rms_norm_eps", 1e-6)),
            rope_parameters=_rope_from_released(released),
            attention_bias=bool(released.get("qkv_bias")) or any(key.endswith("_proj.bias") for key in weights),
            fusion=fusion,
            fusion_bias=fusion == "token_guided" or "fc.bias" in weights,
            dual_head=not is_single if down_proj is not None else fusion == "token_guided",
        )
    except StrictDataclassError as error:
        raise ValueError(f"`{CONFIG_FILE}` describes no draft. {error}") from error


def _detect_fusion(weights: dict[str, torch.Tensor]) -> str:
    if "d2t" in weights or any(key.startswith("midlayer.") for key in weights):
        raise ValueError(
            "This is an EAGLE-3 checkpoint, which reads features of three target layers. Only GRIFFIN, EAGLE, EAGLE-2 "
            "and HASS checkpoints can be converted."
        )
    if any(key.startswith(("fc.fc.", "fc.mlp.")) for key in weights):
        return "token_guided"
    if any(key.startswith("fc.") for key in weights):
        return "concat"
    raise ValueError(
        f"Unknown checkpoint layout: no key starts with `fc.`; the first keys are {', '.join(sorted(weights)[:4])}. "
        "GRIFFIN checkpoints have `fc.fc.weight`, EAGLE and HASS checkpoints `fc.weight`."
    )


def _rope_from_released(released: dict[str, Any]) -> dict[str, Any]:
    theta = float(released.get("rope_theta") or DEFAULT_ROPE_THETA)
    scaling = dict(released.get("rope_scaling") or {})
    rope_type = scaling.pop("rope_type", None) or scaling.pop("type", None) or "default"
    scaling.pop("type", None)
    if rope_type in ("linear", "dynamic"):
        theta = DEFAULT_ROPE_THETA
    return scaling | {"rope_type": rope_type, "rope_theta": theta}


def released_config(draft: GriffinDraftModel) -> dict[str, Any]:
    """What `config.json` of the released layout says about a draft."""
    config = draft.config
    rope: dict[str, Any] = dict(config.rope_parameters or {})
    scaling = {"type": rope["rope_type"]} | {k: v for k, v in rope.items() if k not in ("rope_type", "rope_theta")}
    return {name: getattr(config, name) for name in REQUIRED_FIELDS + COPIED_FIELDS} | {
        "architectures": ["Qwen2ForCausalLM" if config.attention_bias else "LlamaForCausalLM"],
        "bias": config.fusion_bias,
        "model_type": "qwen2" if config.attention_bias else "llama",
        "num_hidden_layers": config.num_hidden_layers,
        "qkv_bias": config.attention_bias,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": None if rope["rope_type"] == "default" else scaling,
        "rope_theta": rope["rope_theta"],
        "tie_word_embeddings": False,
        "torch_dtype": str(draft.dtype).removeprefix("torch."),
        "use_cache": True,
    }


def write_config(config: dict[str, Any], directory: Path) -> None:
    """Writes `config.json`, made to be read by people too."""
    text = json.dumps(config, indent=2, sort_keys=True)
    (directory / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def _check_has_released_form(config: GriffinDraftConfig) -> None:
    is_griffin, rope = config.fusion == "token_guided", dict(config.rope_parameters or {})
    is_scaled = rope["rope_type"] != "default"
    for name, value, allowed in (
        ("dual_head", config.dual_head, (is_griffin,)),
        ("num_hidden_layers", config.num_hidden_layers, (1,) if is_griffin else (config.num_hidden_layers,)),
        ("fusion_secondary_input", config.fusion_secondary_input, ("token",)),
        ("fusion_bias", config.fusion_bias, (True,) if is_griffin else (True, False)),
        ("fusion_mlp_bias", config.fusion_mlp_bias, (False,)),
        ("fusion_intermediate_size", config.fusion_intermediate_size, (config.intermediate_size,)),
        ("mlp_bias", config.mlp_bias, (False,)),
        ("head_dim", config.head_dim, (config.hidden_size // config.num_attention_heads,)),
        ("rope_type", rope["rope_type"], ("default", "linear", "dynamic")),
        ("rope_theta", rope["rope_theta"], (DEFAULT_ROPE_THETA,) if is_scaled else (rope["rope_theta"],)),
    ):
        if value not in allowed:
            raise ValueError(
                f"The released code cannot load this draft: `{name}` is {value!r}, but its network has "
                f"{' or '.join(map(repr, allowed))}. Keep such a draft in its own format (`save_pretrained`)."
            )


# ---------------------------------------------------------------------- fitting and loading


def _fit_to_target(config: GriffinDraftConfig, target_config: PreTrainedConfig) -> None:
    text = target_config.get_text_config(decoder=True)
    for name in ("hidden_size", "vocab_size"):
        found, needed = getattr(config, name), getattr(text, name)
        if found != needed:
            raise ValueError(
                f"The checkpoint's `{name}` is {found}, but the target's is {needed}. Give the target that this draft "
                "was trained for."
            )
    # Pipelines take an assistant with other special tokens for one with another tokenizer.
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, getattr(text, name))
    config.target_model_type = text.model_type
    config.target_name_or_path = target_config.name_or_path or None


def _check_embedding(embedding: torch.Tensor, config: GriffinDraftConfig, target: PreTrainedModel | None) -> None:
    """The checkpoint's copy must have the configured shape and, row by row, the target's values."""
    expected = (config.vocab_size, config.hidden_size)
    if tuple(embedding.shape) != expected:
        raise ValueError(_shape_mismatch([(EMBEDDING_KEY, tuple(embedding.shape), expected)]))
    if target is None:
        return
    theirs = _embedding_table(target, config.vocab_size)
    # Either may have been rounded to the other's dtype.
    differs = (theirs.to(embedding.dtype) != embedding).any(dim=-1)
    differs &= (embedding.to(theirs.dtype) != theirs).any(dim=-1)
    num_different = int(differs.sum())
    if num_different:
        raise ValueError(
            f"The checkpoint's embedding differs from the target's in {num_different} of {len(differs)} rows, so the "
            "draft was trained for another target. Give that target, or only `target_config` to skip this check."
        )


@torch.no_grad()
def _embedding_table(target: PreTrainedModel, vocab_size: int) -> torch.Tensor:
    embedding = target.get_input_embeddings()
    return embedding(moved_to(embedding, _all_ids(vocab_size))).cpu()


def _all_ids(vocab_size: int) -> torch.Tensor:
    return cast(torch.Tensor, torch.arange(vocab_size))


def released_weights(draft: GriffinDraftModel) -> dict[str, torch.Tensor]:
    """The draft's own weights on the CPU, under the released names; without the embedding and a token map."""
    return {
        _released_key(key, draft.config.fusion): tensor.cpu().contiguous()
        for key, tensor in draft.state_dict().items()
        if key != "proposals.token_map"
    }


def warn_of_whole_vocabulary(draft: GriffinDraftModel, reader: str) -> None:
    """Says that a truncated draft becomes a whole one."""
    if draft.config.draft_vocab_size is not None:
        logger.warning(
            f"{reader} knows no token map, so the draft proposes from all {draft.config.vocab_size} tokens there, not "
            f"from {draft.config.draft_vocab_size}. Answers are the same; drafting takes longer."
        )


def _load_weights(config: GriffinDraftConfig, weights: dict[str, torch.Tensor]) -> GriffinDraftModel:
    weights = {key: tensor for key, tensor in weights.items() if not key.endswith("rotary_emb.inv_freq")}
    dtype = functools.reduce(torch.promote_types, {tensor.dtype for tensor in weights.values()})
    with no_init_weights():
        draft = GriffinDraftModel._from_config(config, dtype=dtype)
    shapes = {_released_key(key, config.fusion): tuple(tensor.shape) for key, tensor in draft.state_dict().items()}
    missing, unexpected = sorted(shapes.keys() - weights.keys()), sorted(weights.keys() - shapes.keys())
    if missing or unexpected:
        parts = [
            f"{kind} keys: {', '.join(keys)}."
            for kind, keys in (("Missing", missing), ("Unexpected", unexpected))
            if keys
        ]
        raise ValueError(
            f"The checkpoint does not fit the {'GRIFFIN' if config.fusion == 'token_guided' else 'EAGLE'} layout. "
            f"{' '.join(parts)} Download it again, or check that `{CONFIG_FILE}` belongs to it."
        )
    wrong = [
        (key, tuple(weights[key].shape), shape) for key, shape in shapes.items() if tuple(weights[key].shape) != shape
    ]
    if wrong:
        raise ValueError(_shape_mismatch(wrong))
    draft.load_state_dict({_own_key(key, config.fusion): tensor for key, tensor in weights.items()})
    return draft.eval()


def _shape_mismatch(wrong: list[tuple[str, tuple[int, ...], tuple[int, ...]]]) -> str:
    parts = "; ".join(f"{key} is {found} instead of {expected}" for key, found, expected in wrong)
    return (
        f"The weights do not have the shapes that `{CONFIG_FILE}` describes: {parts}. Check that both files belong "
        "together."
    )


def _own_key(key: str, fusion: str) -> str:
    released, own = next(pair for pair in KEY_MAPS[fusion].items() if key.startswith(pair[0]))
    return own + key.removeprefix(released)


def _released_key(key: str, fusion: str) -> str:
    released, own = next(pair for pair in KEY_MAPS[fusion].items() if key.startswith(pair[1]))
    return released + key.removeprefix(own)


__all__ = [
    "convert_checkpoint",
    "load_draft",
    "released_config",
    "released_weights",
    "write_config",
    "write_released_checkpoint",
]
