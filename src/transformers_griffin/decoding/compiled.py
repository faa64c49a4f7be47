"""
The cycle in fixed shapes, for `torch.compile`: with a static cache nothing that is computed ever changes shape.

    drafting       a whole path of new pairs is read, whatever was accepted; how many of them count is a tensor
    verification   masks and positions are made of tensors that say how long the rows are
    compaction     whole paths move, whatever was accepted

All that differs from cycle to cycle lies in tensors that are changed in place, so one compilation serves all cycles,
all answers and, since the lengths of the caches are left open, all prompts. The prompt itself, in chunks or not, is
read as it is without compilation, by target and draft.

Whether to compile is transformers' decision (`cache_implementation="static"`, `disable_compile`, `compile_config`).

Next: `outputs.py`.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import CompileConfig, GenerationConfig, PreTrainedModel
from transformers.cache_utils import Cache, StaticLayer

from ..modeling_griffin import GriffinDraftModel
from .candidate_generator import GriffinCandidateGenerator, features_of, newest
from .draft_tree import CandidatePool, DraftTree, as_attention_mask, build_tree, cache_mask
from .kernels.attention_function import attn_implementation, reading_packed_masks
from .kv_cache import STATIC_LAYERS, crop_last, keep_path
from .target_forward import TargetForward, why_no_tree
from .transfers import to_device
from .verification import Acceptance


# Capacities of caches are multiples of this: graphs that were captured for one length serve many prompts.
CAPACITY_STEP = 128

# Compiling records the hooks that are installed: those of one thread only.
_one_forward_of_all_threads = threading.Lock()


def compile_config_for(
    target: PreTrainedModel, generation_config: GenerationConfig, model_kwargs: dict[str, Any]
) -> CompileConfig | None:
    """How to compile the cycle, or None where plain decoding would not be compiled or no tree can be verified."""
    model: Any = target  # called for methods of GenerationMixin
    if not model._valid_auto_compile_criteria(model_kwargs, generation_config):
        return None
    if why_no_tree(target, model_kwargs["past_key_values"]):
        return None
    config: CompileConfig = generation_config.compile_config or model._default_compile_config()
    return config


_compiled: dict[tuple[Any, ...], Callable[..., Any]] = {}


def compile_for(
    sizes: tuple[int, ...], dtype: torch.dtype, function: Callable[..., Any], config: CompileConfig
) -> Callable[..., Any]:
    """
    A compiled function that counts its compilations by itself, the same one for the same arguments.

    `torch.compile` gives up on a function after 8 compilations, which the trees, batch sizes and dtypes of a process
    would soon use up together; and for a second tree it would compile code for trees of any size, which is slower. So
    sizes are fixed, except those that are left open by name, unless the configuration says otherwise.
    """
    options: dict[str, Any] = {"isolate_recompiles": True} | config.to_dict()
    options["dynamic"] = False if config.dynamic is None else config.dynamic
    key = (function, sizes, dtype, repr(sorted(options.items())))
    if key not in _compiled:
        _compiled[key] = torch.compile(function, **options)
    return _compiled[key]


_seen: "WeakKeyDictionary[torch.nn.Module, set[tuple[Any, ...]]]" = WeakKeyDictionary()


def is_first(model: torch.nn.Module, *what: Any) -> bool:
    """Whether a model is asked this about something for the first time."""
    seen = _seen.setdefault(model, set())
    key = tuple(map(repr, what))
    if key in seen:
        return False
    seen.add(key)
    return True


class CompiledCandidateGenerator(GriffinCandidateGenerator):
    """
    Drafts in fixed shapes. The first round, which reads the prompt, runs as in the parent class.

    Args:
        draft ([`GriffinDraftModel`]): bound to the target.
        batch_size (`int`): rows that share a forward of the target.
        max_length (`int`): tokens of the longest sequence that may be generated, prompt included.
        compile_config ([`~transformers.CompileConfig`]): passed on to `torch.compile`.
    """

    def __init__(self, draft: GriffinDraftModel, batch_size: int, max_length: int, compile_config: CompileConfig):
        super().__init__(draft, batch_size=batch_size)
        self.compile_config = compile_config
        capacity = max_length + self.path_length + self.most_levels * self.top_k
        self.capacity = capacity + -capacity % CAPACITY_STEP
        self.ends = torch.zeros(batch_size, 1, dtype=torch.long, device=draft.device)  # pairs of each row
        for tensor in self.head.copy.tensors if self.head.copy else []:
            torch._dynamo.mark_static_address(tensor)  # a captured graph reads it where it is

    def _draft(
        self,
        tokens: torch.Tensor,
        features: torch.Tensor,
        padding_mask: torch.Tensor | None,
        token_embeds: torch.Tensor | None,
        num_new: list[int] | None,
    ) -> DraftTree:
        if num_new is None:  # the prompt
            tree = super()._draft(tokens, features, padding_mask, token_embeds, num_new)
            self._fix_shapes(tokens.shape[0])
            return tree
        device = self.draft.device
        inputs = tokens.to(device), features.to(device), to_device(num_new, device).unsqueeze(1)
        about = *self._tree_shape(), self.padding_mask is None
        if len(self.depths) > 1 and is_first(self.draft, *about, self.compile_config):
            self._rehearse(*inputs)
        tree = self._compiled_round(*inputs)
        # A captured graph writes its results to the same place each time.
        return DraftTree(*(part.to(tokens.device, copy=True) for part in vars(tree).values()))

    def _rehearse(self, *inputs: torch.Tensor) -> None:
        """Drafts to all depths and forgets it, so that no later cycle has to wait for the compiler."""
        state = [self.ends, self.next_position, *(layer.cumulative_length for layer in static_layers(self.cache))]
        before, depth = [tensor.clone() for tensor in state], self.depth
        for other in self.depths:
            self.draft_down_to(other)
            self._compiled_round(*inputs)
            for tensor, value in zip(state, before, strict=True):
                tensor.copy_(value)
        self.draft_down_to(depth)

    def _compiled_round(self, *inputs: torch.Tensor) -> DraftTree:
        sizes, function = (*self._tree_shape(), self.depth), CompiledCandidateGenerator._round
        compiled_round = compile_for(sizes, self.draft.dtype, function, self.compile_config)
        with reading_packed_masks(self.draft.config) if self.packs_masks else nullcontext():
            return compiled_round(self, *inputs)

    def _tree_shape(self) -> tuple[int, ...]:
        return len(self.ends), self.most_tokens, self.most_levels, self.top_k

    def new_pairs(
        self, acceptance: Acceptance, node_features: torch.Tensor, num_kept: list[int], is_row_wise: bool
    ) -> dict[str, Any]:
        """The whole paths; `num_new` says which part of them counts."""
        return {
            "tokens": acceptance.tokens,
            "features": features_of(acceptance.nodes, node_features),
            "num_new": num_kept if is_row_wise else [max(num_kept)] * len(num_kept),
        }

    def _fix_shapes(self, batch_size: int) -> None:
        """Moves what the first round has left into a static cache and tensors of fixed shape."""
        length = self.cache.get_seq_length()
        pairs: list[Any] = self.cache.layers
        self.cache = Cache(layers=[StaticLayer(self.capacity) for _ in pairs])
        for idx, layer in enumerate(pairs):
            self.cache.update(layer.keys, layer.values, idx)
        leave_lengths_open(self.cache)
        self.ends.fill_(length)
        self.next_position = self.next_position.expand(batch_size, -1).contiguous()
        for changing in (self.ends, self.next_position):
            torch._dynamo.mark_static_address(changing)
        if self.padding_mask is not None:
            self.padding_mask = torch.nn.functional.pad(self.padding_mask, (0, self.capacity - length), value=1)
            torch._dynamo.maybe_mark_dynamic(self.padding_mask, 1)

    def _round(self, tokens: torch.Tensor, features: torch.Tensor, counts: torch.Tensor) -> DraftTree:
        """
        Reads new pairs and drafts a tree under the last one that counts.

        Args:
            tokens (`torch.LongTensor` of shape `(batch_size, path_length)`): emitted by the last cycle.
            features (`torch.Tensor` of shape `(batch_size, path_length, hidden_size)`): before them.
            counts (`torch.LongTensor` of shape `(batch_size, 1)`): how many of them count.
        """
        batch_size, num_read = tokens.shape
        width, steps = self._num_verified(), torch.arange(num_read, device=tokens.device)
        causal = (steps <= steps.unsqueeze(1)).expand(batch_size, -1, -1)
        output = self._read(
            self._level_mask(self._pack(causal) if self.packs_masks else causal, width),
            inputs_embeds=self.draft.embed_tokens(tokens),
            features=features.to(self.draft.dtype),
            position_ids=self.next_position + steps,
        )
        ends = self.ends + counts
        growth = ends.amax() - width
        if batch_size > 1:
            keep_path(self.cache, steps.expand(batch_size, -1), growth, num_read, width - self.ends)
        else:
            crop_last(self.cache, num_read - growth)
        self.ends.copy_(ends)
        self.next_position.add_(counts)
        pool = self.grow(newest(output.predict, counts), newest(output.regress, counts), tokens.device)
        return self._build_tree(newest(tokens, counts), pool)

    def _read(self, attention_mask: Any, **inputs: torch.Tensor) -> Any:
        if torch.compiler.is_compiling():  # the switch to packed masks, if any, is outside
            return self.draft(attention_mask=attention_mask, past_key_values=self.cache, **inputs)
        return super()._read(attention_mask, **inputs)

    def _num_verified(self) -> Any:
        # A copy: the layer counts on while levels are read.
        return self.ends.amax() if isinstance(self.cache.layers[0], StaticLayer) else super()._num_verified()

    def _level_mask(self, sees_levels: torch.Tensor, num_verified: Any) -> Any:
        if sees_levels.dtype == torch.long or not isinstance(num_verified, torch.Tensor):
            return super()._level_mask(sees_levels, num_verified)
        slots = torch.arange(num_slots(self.cache, 0), device=sees_levels.device)
        allowed = cache_mask(sees_levels, slots, num_verified, self.padding_mask, num_verified - self.ends)
        return as_attention_mask(allowed.unsqueeze(1), attn_implementation(self.draft.config), self.draft.dtype)

    def _bounds(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        if not isinstance(self.cache.layers[0], StaticLayer):
            return super()._bounds()
        num_padded = None if self.padding_mask is None else (self.padding_mask == 0).sum(dim=1)
        return self.ends.squeeze(1), self._num_verified().view(1), num_padded


class CompiledTargetForward(TargetForward):
    """
    Verifies and compacts in fixed shapes. The prompt is read as in the parent class.

    Args:
        target, generation_config, model_kwargs, max_length: as for the parent class.
        compile_config ([`~transformers.CompileConfig`]): passed on to `torch.compile`.
        sizes (sequence of `int`): nodes of the trees that may come.
        path_length (`int`): the most tokens that a cycle can emit.
    """

    capacity_step = CAPACITY_STEP

    def __init__(
        self,
        target: PreTrainedModel,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        max_length: int,
        compile_config: CompileConfig,
        sizes: Sequence[int],
        path_length: int,
    ):
        super().__init__(target, generation_config, model_kwargs, max_length)
        self.padding_mask: torch.Tensor | None = None  # (batch_size, slots of the cache)
        self.compile_config = compile_config
        self.sizes, self.path_length = sizes, path_length

    def prefill(self, input_ids: torch.Tensor, take_chunk: Callable[[torch.Tensor], None]) -> tuple[Any, torch.Tensor]:
        """As in the parent class; from here on lengths are tensors, too."""
        outputs, features = super().prefill(input_ids, take_chunk)
        leave_lengths_open(self.cache)
        self.num_slots = torch.full((), self.cache_length, device=self.device)
        self.growth = torch.zeros_like(self.num_slots)
        self.last_slot = torch.full_like(self.num_slots, self.num_readable - 1)
        torch._dynamo.mark_static_address(self.num_slots)
        if len(self.lengths) > 1:
            self.gaps = torch.zeros(len(self.lengths), 1, dtype=torch.long, device=self.device)
        mask = self.model_kwargs.get("attention_mask")
        if mask is not None:
            capacity = max(layer.max_cache_len for layer in static_layers(self.cache))
            self.padding_mask = torch.nn.functional.pad(mask, (0, capacity - mask.shape[1]), value=1)
            torch._dynamo.maybe_mark_dynamic(self.padding_mask, 1)
        return outputs, features

    def _verify(self, tree: DraftTree, input_ids: torch.Tensor) -> tuple[Any, torch.Tensor]:
        about = len(self.lengths), *self.sizes, self.padding_mask is None
        if len(self.sizes) > 1 and is_first(self.target, *about, self.compile_config):
            self._rehearse(tree.tokens[:, :1])
        return self._compiled_forward(tree)

    def _rehearse(self, roots: torch.Tensor) -> None:
        """Verifies trees of all sizes and keeps nothing of it, so that no later cycle has to wait for the compiler."""
        nodes = torch.zeros_like(roots).expand(-1, self.path_length).contiguous()
        for num_nodes in self.sizes:
            children = torch.zeros_like(roots).expand(-1, num_nodes - 1)
            self._compiled_forward(
                build_tree(roots, CandidatePool(children, children.float(), children - 1), num_nodes, 1)
            )
            self._keep_in_cache(nodes, 0, num_nodes)

    def _compiled_forward(self, tree: DraftTree) -> tuple[Any, torch.Tensor]:
        forward_tree = self._compile(CompiledTargetForward._forward_tree, tree.tokens.shape[1])
        with _one_forward_of_all_threads, self._tapped_features():
            outputs, features = forward_tree(self, tree)
        return outputs, features

    def _forward_tree(self, tree: DraftTree) -> tuple[Any, torch.Tensor]:
        self.features.clear()  # first, so that the compiler knows the list which the tap fills
        outputs = self.target(**self._tree_inputs(tree), return_dict=True)
        return outputs, self.features.pop()

    def _keep_in_cache(self, nodes: torch.Tensor, growth: int, num_nodes: int) -> None:
        self.growth.fill_(growth)
        self._compile(CompiledTargetForward._keep_path, num_nodes)(self, nodes, num_nodes)

    def _compile(self, function: Callable[..., Any], num_nodes: int) -> Callable[..., Any]:
        return compile_for((len(self.lengths), num_nodes), self.target.dtype, function, self.compile_config)

    def _keep_path(self, nodes: torch.Tensor, num_nodes: int) -> None:
        keep_path(self.cache, nodes, self.growth, num_nodes, self.gaps)
        self.num_slots.add_(self.growth)

    def _set_lengths(self, lengths: list[int]) -> None:
        self.lengths, self.cache_length = lengths, max(lengths)
        if self.gaps is not None:
            self.gaps.copy_(to_device([[self.cache_length - length] for length in lengths], self.device))

    @property
    def _prefix_length(self) -> torch.Tensor:
        return self.num_slots

    @property
    def _last_slot(self) -> torch.Tensor:
        return self.last_slot

    def _mask_sizes(self, num_nodes: int, layer_idx: int) -> tuple[int, int]:
        return num_slots(self.cache, layer_idx), 0

    def _padding_mask(self, num_more: int = 0) -> torch.Tensor | None:
        return self.padding_mask


def static_layers(cache: Cache) -> list[StaticLayer]:
    """The layers of a cache that hold entries in tensors of fixed shape."""
    layers: list[Any] = cache.layers
    return [layer for layer in layers if type(layer) in STATIC_LAYERS and layer.is_initialized]


def num_slots(cache: Cache, layer_idx: int) -> int:
    """Room in a layer: the size of its tensors, which the compiler has left open."""
    layer: Any = cache.layers[layer_idx]
    size: int = layer.keys.shape[2]
    return size


def leave_lengths_open(cache: Cache) -> None:
    """Tells the compiler that another cache may be longer."""
    for layer in static_layers(cache):
        for entries in (layer.keys, layer.values):
            torch._dynamo.maybe_mark_dynamic(entries, 2)


__all__ = ["CompiledCandidateGenerator", "CompiledTargetForward", "compile_config_for"]
