"""
GriffinDraftModel: the network that guesses the target's next features, and from them its next tokens.

The draft at position t reads the token x_{t+1} with the target's feature F_t and returns two estimates of F_{t+1}:
`predict`, which goes through the target's LM head to give the distribution of x_{t+2}, and `regress`, which is fed
back as the next feature::

    position            t-1      t      t+1
    token read          x_t    x_{t+1}  x_{t+2}
    feature read        F_{t-1}  F_t    F_{t+1}  (or the draft's own regress of one position earlier)
    predicts the token  x_{t+1} x_{t+2} x_{t+3}

It does not know trees, generation or losses. Embedding and LM head are the target's and are borrowed by reference
([`GriffinDraftModel.bind`]); a draft neither owns nor saves them.

A draft may be allowed some of the target's tokens only ([`GriffinDraftModel.truncate_vocabulary`]); what the target
verifies stays as it is.

Notation for shapes: `batch_size`; `seq_len` positions in this pass; `kv_len` positions seen; d = `hidden_size`.

Where the network departs from the paper's text it follows the released checkpoints:

1. Eq. 6 and 7 have biases; the released up and down projections have none (`fusion_mlp_bias`).
2. The fusion's inner width is the FFN size, not 4d (`fusion_intermediate_size`).
3. The fused vector is normalised twice, and the inner norm is shared with the token branch.
4. The decoder layer has no norm before its attention and none at its end: `predict` enters the LM head as it is.

Next: `decoding/draft_tree.py`.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from huggingface_hub import is_offline_mode
from torch import nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)
from transformers.utils import GENERATION_CONFIG_NAME, ModelOutput, logging
from transformers.utils.hub import cached_file, resolve_revision

from .configuration_griffin import GriffinDraftConfig


logger = logging.get_logger(__name__)

# Tree settings of a fresh draft: the paper's 60 positions (root + 59), 6 levels, 10 tokens a level (appendix C).
DEFAULT_TREE = {"num_assistant_tokens": 59, "draft_tree_depth": 6, "draft_tree_top_k": 10}


@dataclass
class GriffinDraftOutput(ModelOutput):
    """
    What a pass of the draft returns.

    Args:
        predict (`torch.FloatTensor` of shape `(batch_size, seq_len, hidden_size)`):
            Estimate of the next feature that the target's LM head reads.
        regress (`torch.FloatTensor` of shape `(batch_size, seq_len, hidden_size)`):
            Estimate of the next feature that the next pass reads. The same tensor as `predict` without dual head.
        past_key_values ([`~transformers.Cache`], *optional*):
            The draft's own key-value cache, when `use_cache`.
    """

    predict: torch.Tensor | None = None
    regress: torch.Tensor | None = None
    past_key_values: Cache | None = None


class TokenGuidedFusion(nn.Module):
    """
    Merges token embedding and feature into the decoder layer's input (TGF, Eq. 5-7).

    With x the token embedding and f the feature, [ ; ] concatenation, N RMSNorm::

        h = W_fc [x ; f] + b_fc                                   (Eq. 5)
        u = SiLU(W_up [N_in(N_out(h)) ; N_in(s)])                 (Eq. 6)   s = x, or f or h (Tables 5 and 6)
        g = h + W_down u                                          (Eq. 7)

    With `fusion="concat"` only Eq. 5 remains, which is EAGLE's input layer.
    """

    def __init__(self, config: GriffinDraftConfig):
        super().__init__()
        self.secondary_input = config.fusion_secondary_input
        self.is_token_guided = config.fusion == "token_guided"
        self.fc = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=config.fusion_bias)
        if self.is_token_guided:
            width, bias = config.fusion_intermediate_size or config.intermediate_size, config.fusion_mlp_bias
            self.outer_norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
            self.inner_norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
            self.up_proj = nn.Linear(2 * config.hidden_size, width, bias=bias)
            self.down_proj = nn.Linear(width, config.hidden_size, bias=bias)

    def forward(self, token_embeds: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """
        Args:
            token_embeds (`torch.Tensor` of shape `(batch_size, seq_len, hidden_size)`): embeddings of x_{t+1}.
            features (`torch.Tensor` of shape `(batch_size, seq_len, hidden_size)`): F_t, or the draft's estimate.

        Returns:
            `torch.Tensor` of shape `(batch_size, seq_len, hidden_size)`.
        """
        fused = self.fc(torch.cat((token_embeds, features), dim=-1))
        if not self.is_token_guided:
            return fused
        secondary = {"token": token_embeds, "feature": features, "fused": fused}[self.secondary_input]
        # GRIFFIN: one norm for both branches; the fused branch passes the outer norm first.
        branches = torch.cat((self.inner_norm(self.outer_norm(fused)), self.inner_norm(secondary)), dim=-1)
        return fused + self.down_proj(nn.functional.silu(self.up_proj(branches)))


class GriffinAttention(LlamaAttention):
    """Llama attention whose `attention_bias` reaches query, key and value only, as in Qwen2 and released drafts."""

    def __init__(self, config: GriffinDraftConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.o_proj = nn.Linear(config.num_attention_heads * self.head_dim, config.hidden_size, bias=False)


class TokenEnhancedHead(LlamaMLP):
    """
    The last layer's MLP, twice as wide at its end: one half refines predict, the other regress (TEH, Table 8).

    It returns the two *updates*; the layer adds the same residual to both.
    """

    def __init__(self, config: GriffinDraftConfig):
        super().__init__(config)
        self.down_proj = nn.Linear(config.intermediate_size, 2 * config.hidden_size, bias=config.mlp_bias)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        predict, regress = super().forward(hidden_states).chunk(2, dim=-1)
        return predict, regress


class GriffinDecoderLayer(GradientCheckpointingLayer):
    """A Llama layer without input norm (layer 0) that returns a (predict, regress) pair of hidden states."""

    def __init__(self, config: GriffinDraftConfig, layer_idx: int):
        super().__init__()
        self.self_attn = GriffinAttention(config, layer_idx)
        # GRIFFIN: the fusion's output enters the first attention without a norm, as in EAGLE.
        self.input_layernorm = (
            nn.Identity() if layer_idx == 0 else LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        )
        self.has_dual_head = config.dual_head and layer_idx == config.num_hidden_layers - 1
        self.mlp = TokenEnhancedHead(config) if self.has_dual_head else LlamaMLP(config)
        # Last on purpose: quantizers of transformers leave the last module as it is and take it for an LM head.
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden_states: torch.Tensor, **attention_kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        attention_output, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **attention_kwargs)
        return self.feed_forward(hidden_states + attention_output)

    def feed_forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Norm, MLP and residual; `hidden_states` and both results of shape `(batch_size, seq_len, hidden_size)`."""
        update = self.mlp(self.post_attention_layernorm(hidden_states))
        if self.has_dual_head:
            return hidden_states + update[0], hidden_states + update[1]
        output = hidden_states + update
        return output, output


class ProposedTokens(nn.Module):
    """
    Holds which of the target's tokens a draft can propose, and saves it with the weights.

    A module of its own, since some formats of quantised weights know no tensors outside of modules.
    """

    token_map: torch.Tensor | None

    def __init__(self, size: int | None):
        super().__init__()
        # Until tokens are chosen or loaded, no entry is one.
        self.register_buffer("token_map", None if size is None else torch.full((size,), -1))


class GriffinDraftModel(PreTrainedModel):
    """
    The GRIFFIN draft model (arXiv 2502.11018, Sec. 4).

    Pass it to the target's `generate()`:

    ```python
    >>> draft = AutoModel.from_pretrained("user/griffin-draft")  # doctest: +SKIP
    >>> target.generate(**inputs, assistant_model=draft)  # doctest: +SKIP
    ```

    Tree settings are in `draft.generation_config`: `num_assistant_tokens` (drafted tokens verified per cycle, root
    excluded), `draft_tree_depth` (levels) and `draft_tree_top_k` (tokens kept per level).
    """

    config: GriffinDraftConfig
    config_class = GriffinDraftConfig
    base_model_prefix = "draft"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["GriffinDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # Borrowed from the target by `bind`; not submodules.
    _target_embedding: nn.Embedding | None
    _target_head: nn.Linear | None
    _logit_scale: float
    _logit_softcap: float | None

    def __init__(self, config: GriffinDraftConfig):
        super().__init__(config)
        self.fusion = TokenGuidedFusion(config)
        self.layers = nn.ModuleList(GriffinDecoderLayer(config, idx) for idx in range(config.num_hidden_layers))
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.proposals = ProposedTokens(config.draft_vocab_size)
        self.gradient_checkpointing = False
        self.generation_config = GenerationConfig(**DEFAULT_TREE)
        self._unbind()
        self.post_init()

    # ------------------------------------------------------------------ the target's embedding and head

    def bind(self, target: PreTrainedModel) -> "GriffinDraftModel":
        """
        Borrows the target's embedding and LM head by reference; `generate()` and the trainer do this themselves.

        Args:
            target ([`~transformers.PreTrainedModel`]): a causal language model with embedding and LM head.

        Returns:
            The draft itself.

        Effects:
            The draft refers to the target's modules. They are not registered as submodules: `parameters()`,
            `state_dict()`, `to()` and `save_pretrained()` do not see them.

        Raises:
            ValueError: if hidden size, vocabulary size or model type of the target are not those the draft was made
                for, or the target has no embedding or LM head of that width.
        """
        text_config = target.config.get_text_config(decoder=True)
        self._check_fits(text_config)
        embedding, head = target.get_input_embeddings(), target.get_output_embeddings()
        if embedding is None or head is None:
            raise ValueError(
                f"The target {type(target).__name__} has no input embedding or no LM head, so no draft can borrow "
                "them. Load it as a causal language model (`AutoModelForCausalLM`)."
            )
        embedding_width = cast("torch.Tensor", embedding.weight).shape[-1]
        if embedding_width != self.config.hidden_size:
            raise ValueError(
                f"The target's embedding is {embedding_width} wide and its features are "
                f"{self.config.hidden_size} wide. A draft needs both to be equal."
            )
        # Kept out of nn.Module's registry: borrowed, not owned.
        self.__dict__["_target_embedding"] = embedding
        self.__dict__["_target_head"] = head
        self.__dict__["_logit_scale"] = _logit_scale(text_config)
        self.__dict__["_logit_softcap"] = getattr(text_config, "final_logit_softcapping", None)
        return self

    @property
    def target_head(self) -> nn.Linear:
        """The target's LM head. Raises a RuntimeError if the draft is not bound."""
        return self._borrowed()[1]

    @property
    def is_bound(self) -> bool:
        """Whether the draft has met a target."""
        return self._target_embedding is not None

    def get_input_embeddings(self) -> None:  # type: ignore[override]  # a draft owns none
        """None: who asks (FSDP, PEFT, NEFTune) would shard, train or change the target's."""
        return None

    def enable_input_require_grads(self) -> None:
        """Nothing to do: PEFT and activation checkpointing ask for it, but a draft has no embedding to begin at."""

    def embed_tokens(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The target's embeddings of `input_ids` (any shape), on the draft's device and in its dtype."""
        embedding, _ = self._borrowed()
        if self.device.type == "meta":
            raise RuntimeError(
                "The draft's first weights are offloaded or were never loaded. A draft is small and read several "
                "times a cycle: load it without `device_map`, or with one that keeps `fusion` on a device."
            )
        embeds = embedding(moved_to(embedding, input_ids))
        return embeds.to(device=self.device, dtype=self.dtype)

    def compute_logits(self, predict: torch.Tensor) -> torch.Tensor:
        """
        Reads predict features with the target's LM head.

        Args:
            predict (`torch.Tensor` of shape `(..., hidden_size)`): predict features, or the target's own features.

        Returns:
            `torch.Tensor` of shape `(..., vocab_size)`, in the head's dtype and on its device. Logit scale and
            soft-capping of the target's configuration are applied, so that drafted probabilities are comparable.
        """
        head = self.target_head
        return self.scale_logits(head(moved_to(head, predict).to(head.weight.dtype)))

    def scale_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """Applies logit scale and soft-capping of the target's configuration to logits of any shape."""
        if self._logit_scale != 1.0:
            logits = logits * self._logit_scale
        if self._logit_softcap is not None:
            logits = self._logit_softcap * torch.tanh(logits / self._logit_softcap)
        return logits

    def _unbind(self) -> None:
        self.__dict__.update(_target_embedding=None, _target_head=None, _logit_scale=1.0, _logit_softcap=None)

    def _borrowed(self) -> tuple[nn.Embedding, nn.Linear]:
        if self._target_embedding is None or self._target_head is None:
            raise RuntimeError(
                "This draft is not bound to a target, and it has no embedding or LM head of its own. Pass it to "
                "`target.generate(..., assistant_model=draft)` or call `draft.bind(target)` first."
            )
        return self._target_embedding, self._target_head

    def _check_fits(self, text_config: PreTrainedConfig) -> None:
        for name, is_value, must in (
            ("hidden size", text_config.hidden_size, self.config.hidden_size),
            ("vocabulary size", text_config.vocab_size, self.config.vocab_size),
        ):
            if is_value != must:
                raise ValueError(
                    f"This draft was made for a target with {name} {must}, but the target's is {is_value}. Use a "
                    "draft trained for this target, or make a fresh one with `GriffinDraftModel.from_target(target)`."
                )
        made_for = self.config.target_model_type
        if made_for is not None and made_for != text_config.model_type:
            raise ValueError(
                f"This draft was made for a target of type {made_for!r}, but the target is "
                f"{text_config.model_type!r}. Use a draft trained for this target, or set "
                "`draft.config.target_model_type = None` if you know that both have the same features."
            )

    # ------------------------------------------------------------------ a truncated vocabulary

    @property
    def token_map(self) -> torch.Tensor | None:
        """The target's tokens that the draft can propose, of shape `(draft_vocab_size,)` and rising; None for all."""
        return self.proposals.token_map

    def truncate_vocabulary(self, token_ids: Sequence[int] | torch.Tensor | None) -> "GriffinDraftModel":
        """
        Restricts what the draft proposes to some of the target's tokens; no training is needed.

        Drafting reads the LM head once a level of the tree, and with a large vocabulary that takes longer than the
        draft itself. With the tokens that matter (`training.frequent_tokens`) it reads their rows only. Outputs stay
        exact: the target chooses from all tokens; one that the draft cannot propose ends a cycle.

        Args:
            token_ids (`Sequence[int]` or `torch.LongTensor`, *optional*):
                Tokens to keep, in any order. The config's EOS tokens are added. None lifts the restriction.

        Returns:
            The draft itself.

        Effects: sets `token_map` and `config.draft_vocab_size`; both are saved with the draft.

        Raises:
            ValueError: if there is no token, or one that the target does not have.
        """
        token_map = None if token_ids is None else self._as_token_map(token_ids)
        self.proposals.token_map = token_map
        self.config.draft_vocab_size = None if token_map is None else len(token_map)
        return self

    def _as_token_map(self, token_ids: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """`token_ids` and the EOS tokens, sorted and each once, on the draft's device."""
        ids = torch.as_tensor(token_ids)
        if ids.numel() == 0 or ids.is_floating_point() or ids.dtype == torch.bool:
            raise ValueError(
                f"`token_ids` are {ids.numel()} values of {ids.dtype}, but must be one integer at least. Give the ids "
                "of the tokens to keep, or None for all."
            )
        vocab_size, eos = self.config.vocab_size, self.config.eos_token_id
        is_outside = (ids < 0) | (ids >= vocab_size)
        if is_outside.any():
            raise ValueError(
                f"`token_ids` holds {int(ids[is_outside][0])}, but the target's tokens are 0 to {vocab_size - 1}. "
                "Count tokens with the target's own tokenizer."
            )
        eos_ids = [token for token in (eos if isinstance(eos, list) else [eos]) if token is not None]
        return torch.cat((ids.flatten().long().to(self.device), torch.tensor(eos_ids).long().to(self.device))).unique()

    def check_token_map(self) -> None:
        """
        Checks the tokens that the draft may propose; there is nothing to check if these are all.

        Raises:
            ValueError: if the saved token map does not belong to the target.
        """
        if self.token_map is None:
            return
        ids, vocab_size = self.token_map, self.config.vocab_size
        is_bad = (ids < 0) | (ids >= vocab_size)
        is_bad[1:] |= ids[1:] <= ids[:-1]
        if is_bad.any():
            index = int(is_bad.int().argmax())
            raise ValueError(
                f"`token_map[{index}]` of this draft is {int(ids[index])}, but its entries must be tokens of the "
                f"target, from 0 to {vocab_size - 1} and in rising order. The map is missing in the draft's files, or "
                "`draft_vocab_size` was set by hand: call `draft.truncate_vocabulary(token_ids)`."
            )

    def to_target_ids(self, draft_ids: torch.Tensor) -> torch.Tensor:
        """The target's token ids for indices (any shape) into `token_map`."""
        return draft_ids if self.token_map is None else self.token_map.to(draft_ids.device)[draft_ids]

    # ------------------------------------------------------------------ making, saving, loading

    @classmethod
    def from_target(cls, target: PreTrainedModel, **config_overrides: Any) -> "GriffinDraftModel":
        """
        Builds a fresh draft, with random weights, that fits a target and is bound to it.

        Args:
            target ([`~transformers.PreTrainedModel`]): any causal language model.
            config_overrides: fields of [`GriffinDraftConfig`], for example `fusion="concat"`.

        Returns:
            [`GriffinDraftModel`]: on the device of the target's LM head and in the target's dtype.
        """
        # Made in the target's dtype: casting afterwards would round the rotary frequencies too.
        draft = cls._from_config(draft_config_for(target.config, **config_overrides), dtype=target.dtype)
        draft.config.target_name_or_path = target.config.name_or_path or None
        head = draft.bind(target).target_head
        # Offloaded weights are on the meta device.
        devices = [weight.device for weight in (*target.parameters(), head.weight) if not weight.is_meta]
        return draft.to(device=devices[-1]) if devices else draft

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """
        Saves the draft's own weights, its config, its tree settings (`generation_config.json`) and its code.

        With `push_to_hub=True` the draft is published afterwards: `repo_id` (by default the directory's name) and the
        other arguments of `push_to_hub` are as there.
        """
        push_to_hub = kwargs.pop("push_to_hub", False)
        hub_kwargs = {name: kwargs.pop(name) for name in PUSH_KWARGS if name in kwargs}
        if "max_shard_size" in kwargs:
            hub_kwargs["max_shard_size"] = kwargs["max_shard_size"]
        super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            self.generation_config.save_pretrained(save_directory)
            if push_to_hub:
                self.push_to_hub(**({"repo_id": os.path.basename(os.path.abspath(save_directory))} | hub_kwargs))

    @classmethod
    def from_pretrained(  # type: ignore[override]  # named arguments are passed through
        cls, pretrained_model_name_or_path: str | os.PathLike, *model_args: Any, **kwargs: Any
    ) -> "GriffinDraftModel":
        """Loads a draft with its tree settings; arguments as for every transformers model."""
        hub_kwargs = {name: kwargs[name] for name in HUB_KWARGS if name in kwargs}
        # Weights and tree settings of the same commit, even if somebody pushes in between.
        where = {name: hub_kwargs[name] for name in ("token", "local_files_only", "cache_dir") if name in hub_kwargs}
        revision = resolve_revision(pretrained_model_name_or_path, hub_kwargs.get("revision"), **where)
        if revision is not None:
            kwargs["revision"] = hub_kwargs["revision"] = revision
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        draft: GriffinDraftModel = loaded[0] if kwargs.get("output_loading_info") else loaded  # type: ignore[index]
        # A model that cannot generate by itself gets no generation config from transformers.
        if _has_tree_settings(pretrained_model_name_or_path, hub_kwargs):
            draft.generation_config = GenerationConfig.from_pretrained(pretrained_model_name_or_path, **hub_kwargs)
        else:
            logger.warning(
                f"{pretrained_model_name_or_path} has no {GENERATION_CONFIG_NAME}; the tree is {DEFAULT_TREE}."
            )
        return loaded

    def _supports_logits_to_keep(self) -> bool:
        """What transformers' own assisted decoding asks first; it gets here where the package is not in charge."""
        raise RuntimeError(
            "A GRIFFIN draft cannot decode with transformers alone. Run `pip install transformers-griffin`, and "
            "`import transformers_griffin` before the draft is loaded."
        )

    # ------------------------------------------------------------------ a pass

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        features: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> GriffinDraftOutput | tuple[torch.Tensor, ...]:
        """
        One pass over (token, feature) pairs.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, seq_len)`, *optional*):
                Tokens x_{t+1}: shifted by one against `features`. Needs a bound draft.
            features (`torch.FloatTensor` of shape `(batch_size, seq_len, hidden_size)`):
                Features F_t, or the draft's regress estimates of them.
            position_ids (`torch.LongTensor` of shape `(batch_size, seq_len)`, *optional*):
                Position t of each *feature*; consecutive after the cache when not given.
            attention_mask (`torch.Tensor`, *optional*):
                As in every transformers model: `(batch_size, kv_len)` for padding, or a prepared 4-D mask.
            past_key_values ([`~transformers.Cache`], *optional*): the draft's own cache.
            inputs_embeds (`torch.FloatTensor` of shape `(batch_size, seq_len, hidden_size)`, *optional*):
                The target's embeddings of x_{t+1} instead of `input_ids`.
            use_cache (`bool`, *optional*): whether to make a cache when none is given.

        Returns:
            [`GriffinDraftOutput`], or a tuple `(predict, regress, past_key_values)` with `return_dict=False`.

        Raises:
            ValueError: if not exactly one of `input_ids` and `inputs_embeds` is given, or `features` is missing or of
                another shape.
            RuntimeError: if `input_ids` are given to a draft that is not bound to a target.
        """
        if input_ids is not None and inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        elif inputs_embeds is None or input_ids is not None:
            raise ValueError("Give exactly one of `input_ids` and `inputs_embeds`.")
        if features is None or features.shape != inputs_embeds.shape:
            found = None if features is None else tuple(features.shape)
            raise ValueError(
                f"`features` has shape {found}, but every token needs one: {tuple(inputs_embeds.shape)} expected."
            )
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            past_length = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = past_length + torch.arange(features.shape[1], device=features.device).unsqueeze(0)
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )

        hidden_states = self.fusion(inputs_embeds, features.to(inputs_embeds.dtype))
        position_embeddings = self.rotary_emb(hidden_states, position_ids=position_ids)
        for layer in self.layers:
            predict, regress = layer(
                hidden_states,
                attention_mask=mask,
                position_ids=position_ids,
                position_embeddings=position_embeddings,
                past_key_values=past_key_values,
                **kwargs,
            )
            hidden_states = predict
        output = GriffinDraftOutput(predict=predict, regress=regress, past_key_values=past_key_values)
        return output if return_dict else output.to_tuple()


# What `GenerationConfig.from_pretrained` understands of the arguments of `from_pretrained`.
HUB_KWARGS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
# What `save_pretrained(push_to_hub=True)` passes on.
PUSH_KWARGS = ("repo_id", "commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags")


def _has_tree_settings(path_or_repo: str | os.PathLike, hub_kwargs: dict[str, Any]) -> bool:
    """Whether a draft comes with a generation config. A Hub that does not answer is an error, and no "no"."""
    try:
        cached_file(path_or_repo, GENERATION_CONFIG_NAME, **hub_kwargs)
    except OSError as error:
        is_offline = is_offline_mode() or hub_kwargs.get("local_files_only", False)
        if error.__cause__ is not None and not is_offline:  # not missing, but not to be had
            raise
        return False
    return True


def draft_config_for(target_config: PreTrainedConfig, **overrides: Any) -> GriffinDraftConfig:
    """
    Derives a draft's configuration from a target's: same width, vocabulary and positions, one layer of its shape.

    Args:
        target_config ([`~transformers.PreTrainedConfig`]): configuration of any causal language model.
        overrides: fields of [`GriffinDraftConfig`] that replace the derived ones.
    """
    text = target_config.get_text_config(decoder=True)
    hidden_size, num_heads = text.hidden_size, text.num_attention_heads
    num_kv_heads = getattr(text, "num_key_value_heads", None) or num_heads
    fields: dict[str, Any] = {
        "vocab_size": text.vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": _intermediate_size(text),
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads if num_heads % num_kv_heads == 0 else num_heads,
        "head_dim": _head_dim(text),
        "max_position_embeddings": getattr(text, "max_position_embeddings", None) or 2048,
        "rms_norm_eps": _first_of(text, "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")
        or 1e-6,
        "rope_parameters": _rope_parameters(text),
        # Pipelines take an assistant with other special tokens for one with another tokenizer.
        "bos_token_id": text.bos_token_id,
        "eos_token_id": text.eos_token_id,
        "pad_token_id": text.pad_token_id,
        "target_model_type": text.model_type,
    }
    return GriffinDraftConfig(**(fields | overrides))


def moved_to(module: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """
    `inputs` on the device of a module with a weight; where they are if it is offloaded, as its weight is on the meta
    device then and it fetches its inputs itself.
    """
    device = cast("torch.Tensor", module.weight).device
    return inputs if device.type == "meta" else inputs.to(device)


def _head_dim(text: PreTrainedConfig) -> int:
    # Latent attention (DeepSeek) has several head widths; the draft's attention is an ordinary one.
    head_dim = None if getattr(text, "kv_lora_rank", None) else getattr(text, "head_dim", None)
    head_dim = head_dim or max(2, text.hidden_size // text.num_attention_heads)
    return head_dim + head_dim % 2  # rotary embeddings turn pairs of channels


def _intermediate_size(text: PreTrainedConfig) -> int:
    size = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    return max(size) if isinstance(size, (list, tuple)) else size  # Gemma 3n has one for each layer


def _rope_parameters(text: PreTrainedConfig) -> dict[str, Any]:
    """The target's RoPE settings where the draft's full rotation can use them, else plain RoPE."""
    rope = getattr(text, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope) or {}  # models with one set per layer type
    if rope.get("partial_rotary_factor", 1.0) != 1.0 or rope.get("rope_type", "default") in ("default", "longrope"):
        return {"rope_type": "default", "rope_theta": rope.get("rope_theta", 10000.0)}
    return {name: value for name, value in rope.items() if name != "partial_rotary_factor"}


def _logit_scale(text: PreTrainedConfig) -> float:
    """Cohere multiplies its logits by `logit_scale`, Granite divides them by `logits_scaling`."""
    return (_first_of(text, "logit_scale") or 1.0) / (_first_of(text, "logits_scaling") or 1.0)


def _first_of(config: PreTrainedConfig, *names: str) -> Any:
    return next((value for name in names if (value := getattr(config, name, None)) is not None), None)


__all__ = ["GriffinDraftModel", "GriffinDraftOutput", "draft_config_for", "moved_to"]
