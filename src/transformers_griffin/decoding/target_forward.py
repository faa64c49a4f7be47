"""
The target's side of a cycle: prefill, and one forward over all nodes of a tree or a chain.

It turns a tree into what a stock transformers model reads (4-D masks, one per kind of attention layer, and per-depth
positions), taps the features on the way to the LM head, and decides whether this target can verify trees at all.

Next: `compiled.py`.
"""

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.cache_utils import Cache, get_layer_types_and_kwargs
from transformers.generation.utils import MULTIMODAL_INPUTS_TO_DROP_OUTSIDE_PREFILL
from transformers.utils import logging

from .candidate_generator import TREE_ATTENTION
from .draft_tree import DraftTree, as_attention_mask, first_nodes, tree_attention_mask
from .kernels.attention_function import attn_implementation, can_read_packed_masks, reading_packed_masks
from .kernels.packed_mask import is_left_padded, pack_tree_mask
from .kv_cache import can_branch, can_roll_back, crop_last, forget_behind_windows, keep_path, start_growing
from .transfers import to_device


logger = logging.get_logger(__name__)

MASKED_KINDS = {"full_attention", "sliding_attention"}

# Arguments of the forward that verification makes itself, or that are about the images (and so on) of the prompt.
NOT_PASSED_ON = {
    *("attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep", "inputs_embeds"),
    *("moe_mm_token_type_ids", *MULTIMODAL_INPUTS_TO_DROP_OUTSIDE_PREFILL),
}


class TargetForward:
    """
    Runs the target for the loop.

    Args:
        target ([`~transformers.PreTrainedModel`]): the model whose output must not change.
        generation_config ([`~transformers.GenerationConfig`]): as prepared by `generate()`.
        model_kwargs (`dict`): as prepared by `generate()`, with the cache in `past_key_values`.
        max_length (`int`): tokens of the longest sequence that may be generated, prompt included.

    Raises:
        ValueError: if the cache can neither branch nor forget its newest tokens.
    """

    capacity_step = 1  # the room of static caches is a multiple of this

    def __init__(
        self,
        target: PreTrainedModel,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        max_length: int,
    ):
        self.target: Any = target  # called for methods of GenerationMixin
        self.generation_config = generation_config
        self.model_kwargs = model_kwargs
        self.cache: Cache = model_kwargs["past_key_values"]
        self.num_readable = max_length - 1  # plain decoding never reads the last token
        self.text_config = target.config.get_text_config(decoder=True)
        self.verifies_trees = not (reason := why_no_tree(target, self.cache))
        if not self.verifies_trees:
            if not can_roll_back(self.cache):
                raise ValueError(
                    f"{type(target).__name__} cannot be sped up by a draft with this cache: {reason}, and the cache "
                    "cannot forget rejected tokens either. Use the default dynamic cache, or a model whose layers are "
                    "all attention."
                )
            logger.warning_once(f"{type(target).__name__} verifies chains instead of trees: {reason}.")
        padding_mask = model_kwargs.get("attention_mask")
        self.packs_masks = self.verifies_trees and can_read_packed_masks(target) and is_left_padded(padding_mask)
        self.device = target.device  # where the tokens are, once they are known: a target may be offloaded
        self.features: list[torch.Tensor] = []  # of the newest forward, until they are returned
        self.cache_length = 0  # slots of the longest row
        self.lengths: list[int] = []  # slots of each row
        self.gaps: torch.Tensor | None = None  # (batch_size, 1): slots that a row lacks; None if it is none
        self.position_of_slot: torch.Tensor | None = None
        self.of_all_rows: tuple[dict[str, Any], torch.Tensor | None] | None = None  # before rows were forgotten

    # ------------------------------------------------------------------ forwards

    def prefill(self, input_ids: torch.Tensor, take_chunk: Callable[[torch.Tensor], None]) -> tuple[Any, torch.Tensor]:
        """
        Reads the prompt, in chunks when `prefill_chunk_size` is set, and compiles nothing.

        Args:
            take_chunk (`Callable`):
                Called with the features of each chunk but the last, of shape `(batch_size, chunk, hidden_size)`, as
                soon as the next chunk has been read; they are freed then.

        Returns:
            the outputs, and the features of the last chunk: of all tokens read now if they were not split.
        """
        self.device = input_ids.device
        positions = self.model_kwargs.get("position_ids")
        generation_config = copy(self.generation_config)
        generation_config.disable_compile = True  # transformers would compile chunks, and the tap with them
        # The head is called on all positions, so that the tap sees them, and computes the last one.
        model_kwargs = self.model_kwargs | ({"logits_to_keep": 0} if "logits_to_keep" in self.model_kwargs else {})
        with self._tapped_features(take_chunk):
            outputs = self.target._prefill(
                input_ids,
                generation_config,
                model_kwargs,
                is_first_iteration=not generation_config.is_assistant,
            )
        # Phi-3 ignores the cache it was given if the prompt is longer than its short rotary embedding reaches.
        self.cache = outputs.past_key_values
        self.cache_length = int(self.cache.get_seq_length())
        self.lengths = [self.cache_length] * outputs.logits.shape[0]
        if positions is not None:
            # Position of a slot = slot + this; padding on the left makes it negative.
            self.position_of_slot = positions[..., -1:] + 1 - self.cache_length
        start_growing(self.cache)
        return outputs, self.features.pop()

    def verify(self, tree: DraftTree, input_ids: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """
        One forward over all nodes.

        Args:
            tree ([`DraftTree`]): a chain where the target verifies no trees.
            input_ids (`torch.LongTensor` of shape `(batch_size, length)`): the sequence, the root its last token.

        Returns:
            the outputs, with logits of shape `(batch_size, n_nodes, vocab_size)`, and the nodes' features of shape
            `(batch_size, n_nodes, hidden_size)`.

        Effects: the cache grows by `n_nodes` entries.
        """
        return self._verify(tree, input_ids)

    def _verify(self, tree: DraftTree, input_ids: torch.Tensor) -> tuple[Any, torch.Tensor]:
        model_inputs = self._tree_inputs(tree) if self.verifies_trees else self._chain_inputs(tree, input_ids)
        with self._tapped_features():
            outputs = self.target(**model_inputs, return_dict=True)
        return outputs, self.features.pop()

    def shorten(self, tree: DraftTree) -> DraftTree:
        """
        A chain without its nodes behind the longest answer, for which a target may have no positions. Trees keep their
        constant shape, and [`~TargetForward.verify`] moves such nodes to the last position.
        """
        return tree if self.verifies_trees else first_nodes(tree, self.num_readable - self.cache_length)

    def keep(self, nodes: torch.Tensor, num_kept: list[int], num_nodes: int) -> None:
        """
        Keeps the accepted path of each row instead of its tree.

        Args:
            nodes (`torch.LongTensor` of shape `(batch_size, path)`): node indices from the root on.
            num_kept (`list[int]`): how many of them each row keeps.
            num_nodes (`int`): nodes that were verified, root included.

        Effects: the cache keeps the paths and forgets the other nodes.
        """
        lengths = [length + kept for length, kept in zip(self.lengths, num_kept, strict=True)]
        self._keep_in_cache(nodes, max(lengths) - self.cache_length, num_nodes)
        self._set_lengths(lengths)
        forget_behind_windows(self.cache, min(lengths))

    def _keep_in_cache(self, nodes: torch.Tensor, growth: int, num_nodes: int) -> None:
        """As [`~TargetForward.keep`]; the longest row grows by `growth` slots."""
        if self.verifies_trees:
            keep_path(self.cache, nodes, growth, num_nodes, self.gaps)
        else:
            crop_last(self.cache, num_nodes - growth)

    def keep_rows(self, rows: list[int]) -> None:
        """
        Forgets all rows of the batch but some.

        Effects: the cache shrinks to these rows, and to the longest of them.
        """
        batch_size, before = len(self.lengths), self.cache_length
        self.of_all_rows = self.of_all_rows or (self.model_kwargs, self.position_of_slot)
        self.model_kwargs = dict(self.model_kwargs)
        index = to_device(rows, self.device)
        self.cache.batch_select_indices(index)
        for name, value in self.model_kwargs.items():
            if isinstance(value, torch.Tensor) and value.shape[:1] == (batch_size,):
                self.model_kwargs[name] = value[index.to(value.device)]
        if self.position_of_slot is not None and self.position_of_slot.shape[-2] == batch_size:
            self.position_of_slot = self.position_of_slot.index_select(-2, index.to(self.position_of_slot.device))
        self._set_lengths([self.lengths[row] for row in rows])
        crop_last(self.cache, before - self.cache_length)

    def read_last_tokens(self, tokens: torch.Tensor, lengths: list[int]) -> None:
        """
        Reads the last token of every row, now that the cache holds all rows again, into the row's own end.

        Plain decoding reads it while the row waits for longer ones, and does not read that of the longest row.

        Args:
            tokens (`torch.LongTensor` of shape `(batch_size, 1)`): the last token of each row.
            lengths (`list[int]`): slots of each row.

        Effects: fills one slot of each row's gap.
        """
        if self.of_all_rows is not None:
            self.model_kwargs, self.position_of_slot = self.of_all_rows
        self._set_lengths(lengths)
        if self.gaps is not None:
            root = torch.zeros_like(tokens)
            sees_itself = torch.ones_like(tokens, dtype=torch.bool).unsqueeze(1)
            TargetForward._verify(self, DraftTree(tokens, root, root, sees_itself, root.float()), tokens)
            keep_path(self.cache, root, 0, 1, self.gaps)

    def _set_lengths(self, lengths: list[int]) -> None:
        self.lengths, self.cache_length = lengths, max(lengths)
        gaps = [[self.cache_length - length] for length in lengths]
        self.gaps = to_device(gaps, self.device) if any(gap for (gap,) in gaps) else None

    def _tree_inputs(self, tree: DraftTree) -> dict[str, Any]:
        model_inputs: dict[str, Any] = {
            **self._other_kwargs(tree.tokens.shape[1]),
            "input_ids": tree.tokens,
            "attention_mask": self._tree_masks(tree),
            "past_key_values": self.cache,
            "use_cache": True,
        }
        if self.position_of_slot is not None:
            # Nodes behind the longest answer matter to nobody, but a table of learned positions ends somewhere.
            row_length = self._prefix_length if self.gaps is None else self._prefix_length - self.gaps
            slots = (tree.depths + row_length).clamp(max=self._last_slot)
            model_inputs["position_ids"] = slots + self.position_of_slot
        return model_inputs

    # Numbers that masks and positions are made of; compiled code reads tensors in their place.

    @property
    def _prefix_length(self) -> Any:
        return self.cache_length

    @property
    def _last_slot(self) -> Any:
        return self.num_readable - 1

    def _mask_sizes(self, num_nodes: int, layer_idx: int) -> tuple[int, int]:
        """Slots that a layer's attention reads when `num_nodes` more are written, and the first of them."""
        return self.cache.get_mask_sizes(num_nodes, layer_idx)

    def _tree_masks(self, tree: DraftTree) -> Any:
        """One mask, or one for each kind of layer where the model has several."""
        masks: dict[str, Any] = {}
        for kind, (layer_idx, sliding_window) in attention_kinds(self.text_config).items():
            kv_length, kv_offset = self._mask_sizes(tree.tokens.shape[1], layer_idx)
            if self.packs_masks:
                masks[kind] = self._packed_mask(tree, sliding_window, kv_offset)
                continue
            allowed = tree_attention_mask(
                tree, self._prefix_length, kv_length, kv_offset, sliding_window, self._padding_mask(), self.gaps
            )
            masks[kind] = as_attention_mask(allowed, attn_implementation(self.text_config), self.target.dtype)
        return masks if len(masks) > 1 else masks.popitem()[1]

    def _packed_mask(self, tree: DraftTree, sliding_window: int | None, kv_offset: int) -> torch.Tensor:
        """What `_tree_masks` says about one kind of layer, as the kernel for tree attention reads it."""
        padding_mask = self._padding_mask()
        start = tree.depths.new_zeros(1) + self._prefix_length
        return pack_tree_mask(
            tree.ancestors,
            tree.depths,
            ends=start if self.gaps is None else (start - self.gaps.to(start.device)).squeeze(1),
            starts=start,
            num_padded=None if padding_mask is None else (padding_mask == 0).sum(dim=1),
            sliding_window=sliding_window,
            kv_offset=kv_offset,
        )

    def _padding_mask(self, num_more: int = 0) -> torch.Tensor | None:
        """`(batch_size, cache_length + num_more)`, zero where the prompt was padded; None without padding."""
        mask = self.model_kwargs.get("attention_mask")
        if mask is None:
            return None
        return torch.nn.functional.pad(mask, (0, self.cache_length + num_more - mask.shape[1]), value=1)

    def _chain_inputs(self, tree: DraftTree, input_ids: torch.Tensor) -> dict[str, Any]:
        num_nodes = tree.tokens.shape[1]
        kwargs = self._other_kwargs(num_nodes) | {
            "attention_mask": self._padding_mask(num_nodes),
            "past_key_values": self.cache,
            "use_cache": True,
        }
        if self.position_of_slot is not None:
            slots = torch.arange(self.cache_length + num_nodes, device=self.position_of_slot.device)
            kwargs["position_ids"] = (slots + self.position_of_slot).clamp(min=0)
        candidate_ids = torch.cat((input_ids, tree.tokens[:, 1:]), dim=1)
        model_inputs = self.target.prepare_inputs_for_generation(
            candidate_ids, next_sequence_length=num_nodes, is_first_iteration=False, **kwargs
        )
        if "logits_to_keep" in model_inputs:
            model_inputs["logits_to_keep"] = num_nodes
        return model_inputs

    def _other_kwargs(self, num_nodes: int) -> dict[str, Any]:
        """What else the user gave for the forward, with the outputs that the answer shall hold."""
        others = {name: value for name, value in self.model_kwargs.items() if name not in NOT_PASSED_ON}
        # As in plain decoding a new token has the type of the last one, and is text to a multimodal model.
        if (token_types := others.get("token_type_ids")) is not None:
            others["token_type_ids"] = token_types[:, -1:].expand(-1, num_nodes)
        if (token_types := others.get("mm_token_type_ids")) is not None:
            others["mm_token_type_ids"] = token_types.new_zeros(token_types.shape[0], num_nodes)
        return others

    # ------------------------------------------------------------------ features

    @contextmanager
    def _tapped_features(self, take_chunk: Callable[[torch.Tensor], None] | None = None) -> Iterator[None]:
        """
        Holds what the LM head reads. With `take_chunk` that is a prompt: the head goes on with the last position, and
        what it read in the forward before goes to `take_chunk`.
        """
        owner = threading.get_ident()

        def tap(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
            # Another thread may run the same target. A compiled forward cannot ask, and does not have to be asked.
            if not torch.compiler.is_compiling() and threading.get_ident() != owner:
                return None
            self.features.append(args[0])
            if take_chunk is None:
                return None
            if len(self.features) > 1:
                take_chunk(self.features.pop(0))
            return (args[0][:, -1:],)

        handle = self.target.get_output_embeddings().register_forward_pre_hook(tap)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def tree_attention(self) -> Iterator[None]:
        """While open, the target's attention takes tree masks; logged once where that is another implementation."""
        if self.packs_masks:
            with reading_packed_masks(self.text_config):
                yield
            return
        implementation = attn_implementation(self.text_config)
        if implementation in TREE_ATTENTION or not self.verifies_trees:
            yield
            return
        replacement = "sdpa" if self.target._supports_sdpa else "eager"
        logger.warning_once(
            f"{type(self.target).__name__} runs with {implementation!r}, which takes no tree mask: prompts are read "
            f"with it, trees are verified with {replacement!r}."
        )
        # The text model's alone: towers for other inputs keep theirs, which may be different ones.
        self.text_config._attn_implementation = {"": replacement}
        try:
            yield
        finally:
            self.text_config._attn_implementation = {"": implementation}


def check_rotary_frequencies(target: PreTrainedModel, prompt_length: int, max_length: int) -> None:
    """
    Refuses answers during which the rotary frequencies change with the longest position of a forward: a drafted node
    would change those of the nodes before it.

    Args:
        prompt_length (`int`): tokens that the prefill leaves in the cache.
        max_length (`int`): tokens of the longest sequence that may be generated, prompt included.

    Raises:
        ValueError: for dynamic RoPE beyond its training length, and LongRoPE across its switching point.
    """
    text_config = target.config.get_text_config(decoder=True)
    rope = getattr(text_config, "rope_parameters", None) or {}
    by_kind_of_layer = all(isinstance(value, dict) for value in rope.values())
    for parameters in rope.values() if by_kind_of_layer else [rope]:
        rope_type, limit = parameters.get("rope_type"), text_config.max_position_embeddings
        longest_read = max_length - 1  # plain decoding never reads the last token
        if rope_type == "longrope":
            limit = parameters.get("original_max_position_embeddings", limit)
            changes = prompt_length <= limit < longest_read
        else:
            changes = rope_type == "dynamic" and limit < longest_read
        if changes:
            raise ValueError(
                f"The answer may reach {max_length} tokens, but the {rope_type!r} rotary embedding of "
                f"{type(target).__name__} changes at {limit}, and no draft can be verified across that. Keep prompt "
                f"and `max_new_tokens` within {limit} tokens, or call `generate()` without `assistant_model`."
            )


def attention_kinds(text_config: Any) -> dict[str, tuple[int, int | None]]:
    """
    The kinds of attention layers of a model: kind -> (its first layer with a cache, its sliding window).
    """
    kinds: dict[str, tuple[int, int | None]] = {}
    for layer_idx, (kind, kwargs) in enumerate(zip(*get_layer_types_and_kwargs(text_config), strict=True)):
        if kind != "dummy":
            kinds.setdefault(kind, (layer_idx, kwargs.get("sliding_window")))
    return kinds


def why_no_tree(target: PreTrainedModel, cache: Cache) -> str | None:
    """Why a target cannot verify a tree with one forward, or None if it can."""
    text_config = target.config.get_text_config(decoder=True)
    if "position_ids" not in inspect.signature(target.forward).parameters:
        return "its forward takes no position_ids"
    if not (target._supports_attention_backend or target._supports_sdpa):
        return "its own attention code may look at cache slots, which no mask can undo"
    if getattr(text_config, "alibi", False):
        return "its ALiBi biases follow cache slots, not positions"
    if unknown := set(attention_kinds(text_config)) - MASKED_KINDS:
        return f"it has layers of kind {', '.join(sorted(unknown))}"
    implementation = attn_implementation(text_config)
    if implementation not in TREE_ATTENTION and not target._can_set_attn_implementation():
        return f"its attention implementation {implementation!r} takes no tree mask and cannot be exchanged"
    if not can_branch(cache):
        return f"its {type(cache).__name__} cannot hold several continuations"
    return None


__all__ = [
    "TargetForward",
    "attention_kinds",
    "check_rotary_frequencies",
    "why_no_tree",
]
