"""
GriffinCandidateGenerator: target features in, drafted tree out.

One drafting round is `depth` passes of the draft. The first reads what the target has verified since the last round,
each later one a whole level of the tree, which feeds back the regress features of the level before::

    pass 1    (x_{t+1}, F_t) ... newest token with its true feature       -> children of the root
    pass i    (level i-1 tokens, regress features of their parents)        -> level i

Beam nodes of one level share a position and see the verified prefix, their own ancestors and themselves. When the tree
is built, the draft's cache forgets the levels and keeps only verified pairs.

The rows of a batch may bring different numbers of pairs. They are read side by side, and then stored as `kv_cache.py`
says: each row's pairs one behind the other.

Next: `finished_rows.py`.
"""

from typing import Any, ClassVar

import torch
from transformers import GenerationConfig
from transformers.cache_utils import Cache
from transformers.generation.candidate_generator import CandidateGenerator
from transformers.utils import logging

from ..modeling_griffin import GriffinDraftModel
from . import kernels
from .adaptive_depth import AdaptiveDepth
from .draft_head import DraftHead, head_dtype
from .draft_tree import CandidatePool, DraftTree, as_attention_mask, build_tree
from .growing_layers import GrowingLayer
from .kernels.attention_function import attn_implementation, can_read_packed_masks, reading_packed_masks
from .kernels.packed_mask import is_left_padded, pack_tree_mask
from .kv_cache import crop_last, keep_path
from .levels import Beam, grow_level, join_levels, propose_children, root_beam
from .transfers import to_device
from .tree_settings import level_cost, tokens_at_depth, tokens_per_row, tree_settings
from .verification import Acceptance


logger = logging.get_logger(__name__)

TREE_ATTENTION = ("sdpa", "eager", "flex_attention")


class GriffinCandidateGenerator(CandidateGenerator):
    """
    Drafts trees (or, with `draft_tree_top_k=1`, chains) with a GRIFFIN draft model.

    [`~GriffinCandidateGenerator.draft_tree`] is what GRIFFIN's own loop uses.
    [`~GriffinCandidateGenerator.get_candidates`] offers the tree's most probable path to anything that drives a
    transformers `CandidateGenerator`.

    Args:
        draft ([`GriffinDraftModel`]): bound to the target.
        generation_config ([`~transformers.GenerationConfig`], *optional*):
            Source of the tree settings `num_assistant_tokens`, `draft_tree_depth`, `draft_tree_top_k`,
            `draft_level_cost` and of `draft_head_dtype`; the draft's own by default.
        batch_size (`int`, defaults to 1):
            Rows that share a forward of the target; the more, the smaller their trees ([`tokens_per_row`]).

    Raises:
        ValueError: if the settings cannot form a tree.
    """

    requires_model_outputs = True
    model_kwargs_overrides: ClassVar[dict[str, Any]] = {"output_hidden_states": True}

    def __init__(
        self, draft: GriffinDraftModel, generation_config: GenerationConfig | None = None, batch_size: int = 1
    ):
        self.draft = draft
        generation_config = generation_config or draft.generation_config
        self.head = DraftHead(draft, head_dtype(generation_config))
        vocab_size = draft.config.proposal_vocab_size
        self.most_tokens, self.most_levels, self.top_k = tree_settings(generation_config, vocab_size)
        if batch_size > 1:
            self.most_tokens = tokens_per_row(generation_config, vocab_size, batch_size)
        self.num_draft_tokens, self.depth = self.most_tokens, self.most_levels  # of the next tree
        cost = level_cost(generation_config)
        self.adaptive_depth = None if cost is None else AdaptiveDepth(self.most_levels, cost, batch_size)
        # Whatever windows the config names: the draft's attention has none.
        self.cache = Cache(layer_class_to_replicate=GrowingLayer)
        # (batch_size, pairs in the cache), zero where there is none: for padded prompts and rows of different lengths
        self.padding_mask: torch.Tensor | None = None
        self.lengths: list[int] | None = None  # pairs of each row, padding of the prompt included; None if all equal
        self.next_position = torch.zeros(
            1, 1, dtype=torch.long, device=draft.device
        )  # (batch_size, 1): of the next pair
        implementation = attn_implementation(draft.config)
        if implementation not in TREE_ATTENTION:
            logger.warning_once(
                f"The draft's attention implementation {implementation!r} takes no tree mask; "
                "the draft uses 'sdpa' instead."
            )
            draft.set_attn_implementation("sdpa")
        self.packs_masks = can_read_packed_masks(draft)  # levels are then grown, and attended to, by kernels

    @property
    def num_nodes(self) -> int:
        """Nodes of a tree, root included."""
        return self.num_draft_tokens + 1

    @property
    def depths(self) -> list[int]:
        """Levels of the trees that may be drafted."""
        return [self.most_levels] if self.adaptive_depth is None else self.adaptive_depth.depths

    @property
    def sizes(self) -> list[int]:
        """Nodes of these trees, root included."""
        return [1 + self._tokens_down_to(depth) for depth in self.depths]

    @property
    def path_length(self) -> int:
        """Nodes on the longest root path of the deepest tree, root included: the most tokens a cycle can emit."""
        return self.most_levels + 1

    def make_chain(self) -> None:
        """Drafts chains from now on, for targets that cannot verify a tree."""
        self.top_k, self.most_tokens = 1, min(self.most_tokens, self.most_levels)
        self.draft_down_to(self.most_levels)

    def draft_down_to(self, depth: int) -> None:
        """From now on trees have that many levels, `most_levels` at most, and as many nodes for each."""
        self.depth, self.num_draft_tokens = depth, self._tokens_down_to(depth)

    def _tokens_down_to(self, depth: int) -> int:
        return tokens_at_depth(self.most_tokens, self.most_levels, self.top_k, depth)

    def choose_depth(self) -> None:
        """Chooses the depth of the next tree, where it depends on the cycles before."""
        if self.adaptive_depth is not None:
            self.draft_down_to(self.adaptive_depth.choose())

    def learn_depth(self, num_emitted: list[int]) -> None:
        """Takes note of how many tokens each row of the batch has got from the last tree."""
        if self.adaptive_depth is not None:
            self.adaptive_depth.learn(self.depth, num_emitted)

    # ------------------------------------------------------------------ drafting

    @torch.no_grad()
    def read_chunk(
        self, tokens: torch.Tensor, features: torch.Tensor, padding_mask: torch.Tensor | None = None
    ) -> None:
        """
        Reads a chunk of the prompt without drafting; [`~GriffinCandidateGenerator.draft_tree`] reads the last one.

        Args:
            tokens, features, padding_mask: as for [`~GriffinCandidateGenerator.draft_tree`].

        Effects: the draft's cache grows by the chunk.
        """
        self._read_verified(tokens, features, padding_mask)

    @torch.no_grad()
    def draft_tree(
        self,
        tokens: torch.Tensor,
        features: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        token_embeds: torch.Tensor | None = None,
        num_new: list[int] | None = None,
    ) -> DraftTree:
        """
        Drafts a tree under the newest token.

        Args:
            tokens (`torch.LongTensor` of shape `(batch_size, new)`):
                Tokens x_{t+1} that the target chose or read since the last round; the last one is the root (and the
                only one that is read when `token_embeds` are given).
            features (`torch.Tensor` of shape `(batch_size, new, hidden_size)`):
                The target's features F_t, each of the position before its token.
            padding_mask (`torch.Tensor` of shape `(batch_size, new)`, *optional*): zero where F_t is padding.
            token_embeds (`torch.Tensor` of shape `(batch_size, new, hidden_size)`, *optional*):
                Embeddings to read instead of those of `tokens`, for prompts given as embeddings.
            num_new (`list[int]`, *optional*):
                How many of the pairs count, for each row the first ones, the last of which is then the root; all when
                not given. A row may have none: its tree is then of no use.

        Returns:
            [`DraftTree`] of `num_nodes` nodes, on the device of `tokens`.

        Effects: the draft's cache grows by the new pairs, as many as the longest row has.
        """
        return self._draft(tokens, features, padding_mask, token_embeds, num_new)

    def _draft(
        self,
        tokens: torch.Tensor,
        features: torch.Tensor,
        padding_mask: torch.Tensor | None,
        token_embeds: torch.Tensor | None,
        num_new: list[int] | None,
    ) -> DraftTree:
        counts = None if num_new is None else to_device(num_new, self.draft.device).unsqueeze(1)
        predict, regress = self._read_verified(tokens, features, padding_mask, token_embeds, counts)
        if num_new is not None:
            self._close_gaps(num_new, features.shape[1])
        pool = self.grow(newest(predict, counts), newest(regress, counts), tokens.device)
        return self._build_tree(newest(tokens, counts), pool)

    def new_pairs(
        self, acceptance: Acceptance, node_features: torch.Tensor, num_kept: list[int], is_row_wise: bool
    ) -> dict[str, Any]:
        """
        What [`~GriffinCandidateGenerator.draft_tree`] reads next: the tokens that a cycle has emitted, and the
        features before them.

        Args:
            acceptance ([`Acceptance`]): the accepted paths.
            node_features (`torch.Tensor` of shape `(batch_size, n_nodes, hidden_size)`): of the verified tree.
            num_kept (`list[int]`): how many of its tokens each row keeps.
            is_row_wise (`bool`): whether each row keeps a number of its own.
        """
        longest = max(num_kept)
        return {
            "tokens": acceptance.tokens[:, :longest],
            "features": features_of(acceptance.nodes[:, :longest], node_features),
            "num_new": num_kept if is_row_wise else None,
        }

    def _read_verified(
        self,
        tokens: torch.Tensor,
        features: torch.Tensor,
        padding_mask: torch.Tensor | None,
        token_embeds: torch.Tensor | None = None,
        counts: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Pass 1, or a part of it; `counts` of shape `(batch_size, 1)` are `num_new` of `draft_tree` on the device.

        Returns:
            predict and regress, each `(batch_size, new, hidden_size)`.
        """
        batch_size, num_new = features.shape[:2]
        features = features.to(device=self.draft.device, dtype=self.draft.dtype)
        if token_embeds is None:
            token_embeds = self.draft.embed_tokens(tokens)
        if counts is not None:
            padding_mask = torch.arange(num_new, device=counts.device) < counts
        if padding_mask is not None or self.padding_mask is not None:
            self._extend_padding(padding_mask, batch_size, num_new)
        if padding_mask is not None and counts is None:  # a prompt's
            self.packs_masks = self.packs_masks and is_left_padded(self.padding_mask)
        steps = torch.arange(num_new, device=self.draft.device)
        if padding_mask is None:
            position_ids = self.next_position + steps
            self.next_position = position_ids[:, -1:] + 1
        else:
            is_real = padding_mask.to(self.draft.device).long()
            features = features.masked_fill(is_real.unsqueeze(-1) == 0, 0.0)
            position_ids = self.next_position + (is_real.cumsum(dim=-1) - 1).clamp(min=0)
            self.next_position = self.next_position + is_real.sum(dim=-1, keepdim=True)

        output = self._read(
            self._causal_mask(batch_size, num_new),
            inputs_embeds=token_embeds.to(device=self.draft.device, dtype=self.draft.dtype),
            features=features,
            position_ids=position_ids,
        )
        return output.predict, output.regress

    def _read(self, attention_mask: Any, **inputs: torch.Tensor) -> Any:
        """A pass of the draft, a `GriffinDraftOutput`; its attention takes packed masks, too."""
        if not isinstance(attention_mask, torch.Tensor) or attention_mask.dtype != torch.long:
            return self.draft(attention_mask=attention_mask, past_key_values=self.cache, **inputs)
        with reading_packed_masks(self.draft.config):
            return self.draft(attention_mask=attention_mask, past_key_values=self.cache, **inputs)

    def _causal_mask(self, batch_size: int, num_new: int) -> Any:
        """None without padding, or in 4-D: transformers would ask the host what is in a 2-D mask."""
        num_pairs = self.cache.get_seq_length()
        # Of no more pairs than a cycle brings: a prompt's chunk has too many for bits.
        is_packed = self.packs_masks and num_pairs > 0 and num_new <= self.path_length
        if self.padding_mask is None and not is_packed:
            return None
        steps = torch.arange(num_new, device=self.draft.device)
        sees = (steps <= steps.unsqueeze(1)).expand(batch_size, -1, -1)  # (batch_size, new, new)
        if self.padding_mask is not None:
            sees = sees & self.padding_mask[:, num_pairs:].bool().unsqueeze(1) | (steps == steps.unsqueeze(1))
        return self._level_mask(self._pack(sees) if is_packed else sees, num_pairs)

    def _extend_padding(self, padding_mask: torch.Tensor | None, batch_size: int, num_new: int) -> None:
        device, past = self.draft.device, self.cache.get_seq_length()
        seen = self.padding_mask if self.padding_mask is not None else torch.ones(batch_size, past, device=device)
        new = padding_mask if padding_mask is not None else torch.ones(batch_size, num_new)
        self.padding_mask = torch.cat((seen.to(device), new.to(device)), dim=1).long()

    def _close_gaps(self, num_new: list[int], num_read: int) -> None:
        """Moves each row's new pairs, the first of the `num_read` newest entries, to the row's own end."""
        width = self.cache.get_seq_length() - num_read
        before = self.lengths or [width] * len(num_new)
        self.lengths = [length + new for length, new in zip(before, num_new, strict=True)]
        growth = max(self.lengths) - width
        rows = [[width - length, new] for length, new in zip(before, num_new, strict=True)]
        gaps, counts = to_device(rows, self.draft.device).split(1, dim=1)
        in_order = torch.arange(num_read, device=counts.device).expand(len(num_new), -1)
        keep_path(self.cache, in_order, growth, num_read, gaps)
        assert self.padding_mask is not None  # a read with `num_new` has extended it
        slots = torch.arange(width + growth, device=gaps.device)
        seen = torch.nn.functional.pad(self.padding_mask[:, :width], (0, growth))
        self.padding_mask = torch.where(slots < width - gaps, seen, (slots < width - gaps + counts).long())

    def keep_rows(self, rows: list[int]) -> None:
        """
        Forgets all rows of the batch but some.

        Effects: the draft's cache shrinks to these rows, and to the longest of them.
        """
        if self.adaptive_depth is not None:
            self.adaptive_depth.keep_rows(rows)
        index = to_device(rows, self.draft.device)
        self.cache.batch_select_indices(index)
        if self.next_position.shape[0] > 1:
            self.next_position = self.next_position[index]
        if self.padding_mask is not None:
            self.padding_mask = self.padding_mask[index]
        if self.lengths is not None:
            self.lengths = [self.lengths[row] for row in rows]
            num_unused = self.cache.get_seq_length() - max(self.lengths)
            crop_last(self.cache, num_unused)
            if self.padding_mask is not None:
                self.padding_mask = self.padding_mask[:, : max(self.lengths)]

    def grow(self, predict: torch.Tensor, regress: torch.Tensor, pool_device: torch.device) -> CandidatePool:
        """
        Passes 2 to `depth`: one level of the tree each; the cache is left as it was found.

        Args:
            predict (`torch.Tensor` of shape `(batch_size, 1, hidden_size)`): of the pass that read the root.
            regress (`torch.Tensor` of shape `(batch_size, 1, hidden_size)`): of the same.
            pool_device (`torch.device`): where the candidates go.
        """
        batch_size, k = predict.shape[0], self.top_k
        num_verified, position_ids = self._num_verified(), self.next_position.expand(-1, k)
        beam, candidates = self._grow_level(predict, self._root(batch_size), level=0)
        pool = [candidates]
        for level in range(1, self.depth):
            output = self._read(
                self._level_mask(beam.sees, num_verified),
                input_ids=beam.tokens,
                features=regress.gather(1, beam.rows.unsqueeze(-1).expand(-1, -1, regress.shape[-1])),
                position_ids=position_ids + (level - 1),
            )
            regress = output.regress
            beam, candidates = self._grow_level(output.predict, beam, level)
            pool.append(candidates)
        crop_last(self.cache, (self.depth - 1) * k)
        return join_levels(pool, pool_device)

    def _root(self, batch_size: int) -> Beam:
        """The root's level. It sees no slot of the levels below, for which a packed mask has bits from the start."""
        num_slots = self.depth * self.top_k if self.packs_masks else 0
        sees = torch.zeros(batch_size, 1, num_slots, dtype=torch.bool, device=self.draft.device)
        return root_beam(self._pack(sees) if self.packs_masks else sees)

    def _grow_level(self, predict: torch.Tensor, beam: Beam, level: int) -> tuple[Beam, CandidatePool]:
        """The children that the draft proposes after every beam node, as the target's tokens, and the next beam."""
        tokens, log_probs = propose_children(self.head.logits(predict), self.top_k)
        tokens, log_probs = (t.to(self.draft.device) for t in (self.draft.to_target_ids(tokens), log_probs))
        if self.packs_masks:
            from .kernels import growth

            return growth.grow_level(tokens, log_probs, beam, level)
        return grow_level(tokens, log_probs, beam, level)

    def _build_tree(self, roots: torch.Tensor, pool: CandidatePool) -> DraftTree:
        if kernels.available(roots.device):
            from .kernels import growth

            return growth.build_tree(roots, pool, self.num_nodes, self.depth)
        return build_tree(roots, pool, self.num_nodes, self.depth)

    def _num_verified(self) -> int:
        """Pairs in the cache, those of the longest row."""
        return self.cache.get_seq_length()

    def _level_mask(self, sees: torch.Tensor, num_verified: int) -> Any:
        """What new pairs see: all verified ones and, of those behind them, what `sees` says (packed, it says both)."""
        if sees.dtype == torch.long:
            return sees.unsqueeze(1)
        batch_size, num_new, _ = sees.shape
        if self.padding_mask is None:
            sees_prefix = torch.ones(batch_size, num_new, num_verified, dtype=torch.bool, device=sees.device)
        else:
            sees_prefix = self.padding_mask[:, :num_verified].bool().unsqueeze(1).expand(-1, num_new, -1)
        allowed = torch.cat((sees_prefix, sees), dim=-1).unsqueeze(1)
        return as_attention_mask(allowed, attn_implementation(self.draft.config), self.draft.dtype)

    def _pack(self, sees: torch.Tensor) -> torch.Tensor:
        """Rows of a packed mask, `(batch_size, new, 3 + words)`, that say what `_level_mask` says."""
        no_depths = torch.zeros(sees.shape[:2], dtype=torch.long, device=sees.device)  # windows alone ask for depths
        return pack_tree_mask(sees, no_depths, *self._bounds()).squeeze(1)

    def _bounds(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Where the pairs of each row end, where new ones begin, and how many slots of padding are in front."""
        num_verified = self.cache.get_seq_length()
        start = torch.full((1,), num_verified, device=self.draft.device)
        if self.padding_mask is None:
            return start, start, None
        is_real = self.padding_mask[:, :num_verified].long()  # zero in front and, in a row's gap, behind
        num_padded = is_real.argmax(dim=1)
        return num_padded + is_real.sum(dim=1), start, num_padded

    # ------------------------------------------------------------------ the transformers interface

    def get_candidates(  # type: ignore[override]  # the names that every caller passes
        self, input_ids: torch.Tensor, model_outputs: Any = None, n_last_matches: int = 0, **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        """
        Appends the tree's most probable path to `input_ids`, for loops that verify chains.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, length)`): the sequence so far.
            model_outputs ([`~transformers.utils.ModelOutput`], *optional*):
                The target's last outputs, with hidden states. Without them (before the first forward) nothing is
                drafted.
            n_last_matches (`int`): drafted tokens that were accepted from the last candidates.

        Returns:
            `(candidate_input_ids, None)`: the candidates are deterministic, so there are no candidate logits. All rows
            get the same number of candidates.
        """
        if model_outputs is None:
            return input_ids, None
        features = model_outputs.hidden_states[-1]
        if self.cache.get_seq_length() == 0:  # the prompt and its first token
            features = features[:, : input_ids.shape[1] - 1]
            tokens = input_ids[:, -features.shape[1] :]
        else:
            features = features[:, : n_last_matches + 1]
            tokens = input_ids[:, -(n_last_matches + 1) :]
        tree = self.draft_tree(tokens, features)
        # The likeliest node of the deepest level that all rows reached; its ancestors are the path.
        is_deepest = tree.depths == tree.depths.amax(dim=1).amin()
        scores = tree.scores.clamp(min=torch.finfo(tree.scores.dtype).min)  # an impossible node is still in the tree
        leaf = scores.masked_fill(~is_deepest, -torch.inf).argmax(dim=1)
        on_path = tree.ancestors[torch.arange(leaf.shape[0], device=leaf.device), leaf]
        path = tree.tokens[on_path].view(leaf.shape[0], -1)[:, 1:]
        return torch.cat((input_ids, path.to(input_ids.device)), dim=1), None


def features_of(nodes: torch.Tensor, node_features: torch.Tensor) -> torch.Tensor:
    """`(batch_size, path, hidden_size)`: the features of some nodes, of shape `(batch_size, path)`."""
    index = nodes.to(node_features.device).unsqueeze(-1)
    return node_features.gather(1, index.expand(-1, -1, node_features.shape[-1]))


def newest(values: torch.Tensor, counts: torch.Tensor | None) -> torch.Tensor:
    """
    The last entry of each row that counts.

    Args:
        values (`torch.Tensor` of shape `(batch_size, new, ...)`): one entry for every pair.
        counts (`torch.LongTensor` of shape `(batch_size, 1)`, *optional*):
            How many of them count, for each row the first ones; all when not given.

    Returns:
        `torch.Tensor` of shape `(batch_size, 1, ...)`; the first entry for rows of which none counts.
    """
    if counts is None:
        return values[:, -1:]
    rows = torch.arange(values.shape[0], device=values.device).unsqueeze(1)
    return values[rows, (counts.to(values.device) - 1).clamp(min=0)]


__all__ = ["GriffinCandidateGenerator"]
