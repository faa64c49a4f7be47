"""
GriffinDraftConfig: the shape of a draft and every architectural choice of the paper's ablations.

It knows nothing of decoding (tree settings live in `draft.generation_config`) and nothing of training.

Next: `modeling_griffin.py`.
"""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig


FUSIONS = ("token_guided", "concat")
SECONDARY_INPUTS = ("token", "feature", "fused")


@strict
class GriffinDraftConfig(LlamaConfig):
    """
    Configuration of a [`GriffinDraftModel`]: a Llama configuration plus the choices that make it a GRIFFIN draft.

    Only the fields that Llama does not have are documented here. `intermediate_size`, `num_attention_heads`,
    `num_key_value_heads` and `rope_parameters` describe the *draft's* layer and may differ from the target's;
    `hidden_size` and `vocab_size` must be the target's.

    Args:
        fusion (`str`, defaults to `"token_guided"`):
            How token embedding and feature become the layer's input: `"token_guided"` (TGF, Eq. 5-7) or `"concat"`
            (one linear layer over the concatenation, as in EAGLE; Table 2 "w/o TGF").
        fusion_secondary_input (`str`, defaults to `"token"`):
            What guides the fusion beside the fused vector: `"token"` (the embedding, the paper's choice), `"feature"`
            or `"fused"` (Tables 5 and 6).
        fusion_intermediate_size (`int`, *optional*, defaults to `intermediate_size`):
            Inner width of the fusion's expansion (Table 7; the released checkpoints use the FFN width).
        fusion_bias (`bool`, defaults to `True`):
            Whether the linear layer over the concatenation has a bias (released GRIFFIN: yes).
        fusion_mlp_bias (`bool`, defaults to `False`):
            Whether the fusion's up and down projections have biases (Eq. 6-7: yes, released checkpoints: no).
        dual_head (`bool`, defaults to `True`):
            Whether the draft has separate predict and regress outputs (token-enhanced head; Table 8). Without it one
            output serves as both, as in EAGLE.
        num_hidden_layers (`int`, defaults to 1):
            Decoder layers of the draft (the paper: 1). The token-enhanced head belongs to the last one.
        draft_vocab_size (`int`, *optional*):
            How many of the target's tokens the draft can propose (FR-Spec, arXiv 2502.14856); all of them when not
            given. Which ones the draft's `token_map` says: see [`GriffinDraftModel.truncate_vocabulary`].
        target_model_type (`str`, *optional*):
            `model_type` of the target that the draft was made for. Checked when the draft meets a target.
        target_name_or_path (`str`, *optional*):
            Where that target came from. Information only.

    Example:

    ```python
    >>> from transformers_griffin import GriffinDraftConfig

    >>> eagle_like = GriffinDraftConfig(fusion="concat", dual_head=False)
    >>> eagle_like.num_hidden_layers
    1
    ```
    """

    model_type = "griffin_draft"

    num_hidden_layers: int = 1
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    fusion: str = "token_guided"
    fusion_secondary_input: str = "token"
    fusion_intermediate_size: int | None = None
    fusion_bias: bool = True
    fusion_mlp_bias: bool = False
    dual_head: bool = True
    draft_vocab_size: int | None = None
    target_model_type: str | None = None
    target_name_or_path: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.fusion_intermediate_size is None:
            self.fusion_intermediate_size = self.intermediate_size
        super().__post_init__(**kwargs)

    @property
    def proposal_vocab_size(self) -> int:
        """Number of tokens that the draft chooses its proposals from."""
        return self.vocab_size if self.draft_vocab_size is None else self.draft_vocab_size

    def validate_architecture(self) -> None:
        """Checks the fields that together describe the network; runs whenever a config is made or loaded."""
        if self.fusion not in FUSIONS:
            raise ValueError(f"`fusion` is {self.fusion!r}, but must be one of {', '.join(FUSIONS)}.")
        if self.fusion_secondary_input not in SECONDARY_INPUTS:
            raise ValueError(
                f"`fusion_secondary_input` is {self.fusion_secondary_input!r}, but must be one of "
                f"{', '.join(SECONDARY_INPUTS)}."
            )
        if self.num_hidden_layers < 1:
            raise ValueError(f"`num_hidden_layers` is {self.num_hidden_layers}, but a draft needs at least 1 layer.")
        if self.num_attention_heads % (self.num_key_value_heads or 1) != 0:
            raise ValueError(
                f"`num_attention_heads` ({self.num_attention_heads}) must be a multiple of `num_key_value_heads` "
                f"({self.num_key_value_heads})."
            )
        if not 1 <= self.proposal_vocab_size <= self.vocab_size:
            raise ValueError(
                f"`draft_vocab_size` is {self.draft_vocab_size}, but must be from 1 to `vocab_size` "
                f"({self.vocab_size}), or None for all tokens."
            )


__all__ = ["GriffinDraftConfig"]
