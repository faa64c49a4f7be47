"""
What every tree would have accepted on known answers, exactly, from one drafting a position.

A replay (`replay.py`) plays one tree's cycles. To compare hundreds of trees, draft once under *every* token of an
answer, as deep as the deepest tree, and keep where the answer's own path ended up. That decides all smaller trees of
the same width, because

- the pool of a shallower tree is the beginning of the deeper one's (levels follow each other, and no level looks
  ahead), and
- a tree of n tokens keeps the n best of its pool: a path node is in it if fewer than n of them are better.

So the *rank* of each path node within the pool of each depth answers for every n, and walking from root to root gives
the cycles of `generate()`. Only the width must be drafted anew: a narrower beam is not a part of a wider one.

Notation for shapes: `roots` positions of an answer; `depth` of the deepest tree; `pool` its candidates.

Next: `tree_costs.py`.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.cache_utils import Cache, DynamicCache

from ..decoding.candidate_generator import GriffinCandidateGenerator
from ..decoding.draft_head import head_dtype
from ..decoding.draft_tree import CandidatePool, pool_size
from ..modeling_griffin import GriffinDraftModel
from .replay import NO_TOKEN, KnownAnswers, grow_at


@dataclass(frozen=True, order=True)
class TreeSettings:
    """A tree and how it is drafted, in the names of `draft.generation_config`."""

    num_assistant_tokens: int
    draft_tree_depth: int
    draft_tree_top_k: int
    draft_level_cost: float | None = None  # None: the same depth in every cycle
    draft_head_dtype: str | None = None  # None: the head's own

    @classmethod
    def of(cls, generation_config: GenerationConfig) -> "TreeSettings":
        """Those of a draft."""
        fields: dict[str, Any] = {name: getattr(generation_config, name, None) for name in cls.__dataclass_fields__}
        return cls(**fields)

    def write_to(self, generation_config: GenerationConfig) -> None:
        """Makes them those of a draft."""
        for name, value in vars(self).items():
            setattr(generation_config, name, value)

    def copied_into(self, generation_config: GenerationConfig) -> GenerationConfig:
        """A draft's generation config with this tree; everything else in it stays."""
        config = copy.deepcopy(generation_config)
        self.write_to(config)
        return config

    def __str__(self) -> str:
        levels = f"{self.draft_tree_depth} levels" + (" at most" if self.draft_level_cost is not None else "")
        head = "" if self.draft_head_dtype is None else f", head in {self.draft_head_dtype}"
        return f"{self.num_assistant_tokens} tokens, {levels}, {self.draft_tree_top_k} wide{head}"


@dataclass(frozen=True)
class PathRanks:
    """Where the answers' own paths stand in the pools of one width."""

    # One for each answer, (roots, depth, depth): [root, d - 1, i - 1] is the rank of the path's node on level i in the
    # pool of d levels, 0 for the best; as large as the pool where the path ends before level i.
    ranks: list[torch.Tensor]

    def acceptance_lengths(self, num_tokens: int, depth: int) -> list[list[int]]:
        """
        Tokens emitted by every cycle of every answer, as `generate()` reports them.

        Args:
            num_tokens (`int`): drafted tokens of the tree, root excluded.
            depth (`int`): its levels.
        """
        emitted = [(1 + (ranks[:, depth - 1, :depth] < num_tokens).sum(dim=-1)).tolist() for ranks in self.ranks]
        return [_walk(at_root) for at_root in emitted]


def _walk(emitted: list[int]) -> list[int]:
    """The cycles of an answer in which a cycle at root r would emit `emitted[r]` tokens."""
    lengths, root = [], 0
    while root < len(emitted):
        lengths.append(min(emitted[root], len(emitted) - root))
        root += lengths[-1]
    return lengths


@torch.no_grad()
def rank_paths(
    draft: GriffinDraftModel, answers: Sequence[KnownAnswers], depth: int, top_k: int, roots_at_once: int = 32
) -> PathRanks:
    """
    Drafts under every token of the answers.

    Args:
        draft ([`GriffinDraftModel`]): bound to the target.
        answers (`Sequence[KnownAnswers]`): each of one answer.
        depth (`int`): levels of the deepest tree.
        top_k (`int`): width of all trees.
        roots_at_once (`int`, defaults to 32): trees drafted together; more take more memory.
    """
    tree = TreeSettings(depth, depth, top_k, draft_head_dtype=head_dtype(draft.generation_config))
    generator = GriffinCandidateGenerator(draft, tree.copied_into(draft.generation_config))
    ranks = []
    for answer in answers:
        chunks = [
            _path_ranks(pool, _tokens_after(answer.tokens, roots, depth), depth, top_k)
            for roots, pool in _pools(generator, answer, roots_at_once)
        ]
        ranks.append(torch.cat([torch.empty(0, depth, depth, dtype=torch.long), *chunks]))
    return PathRanks(ranks)


def _pools(
    generator: GriffinCandidateGenerator, answer: KnownAnswers, roots_at_once: int
) -> Iterator[tuple[torch.Tensor, CandidatePool]]:
    """Candidates under every token of an answer but its last one, with the tokens' positions, some at once."""
    draft, tokens = generator.draft, answer.tokens
    features = answer.features[:, :-1].to(device=draft.device, dtype=draft.dtype)
    positions = torch.arange(features.shape[1], device=draft.device).unsqueeze(0)
    output = draft(
        input_ids=tokens[:, 1:].clamp(min=0), features=features, position_ids=positions, past_key_values=DynamicCache()
    )
    first, last = int(answer.prompt_lengths), int((tokens != NO_TOKEN).sum()) - 1
    for start in range(first, last, roots_at_once):
        roots = torch.arange(start, min(start + roots_at_once, last), device=tokens.device)
        num_pairs = int(roots[-1])  # the pair (root, feature before it) is the last that the newest root may see
        generator.cache = _copies(output.past_key_values, len(roots), num_pairs)
        predict, regress = (
            states[:, :num_pairs].expand(len(roots), -1, -1) for states in (output.predict, output.regress)
        )
        yield roots, grow_at(generator, roots, predict, regress, tokens.device)


def _copies(cache: Cache, count: int, length: int) -> DynamicCache:
    """The first `length` entries of a cache of one row, `count` times."""
    copies = DynamicCache()
    layers: list[Any] = cache.layers  # attention layers, which have keys and values
    for idx, layer in enumerate(layers):
        keys, values = (entries[:, :, :length].expand(count, -1, -1, -1) for entries in (layer.keys, layer.values))
        copies.update(keys, values, idx)
    return copies


def _tokens_after(tokens: torch.Tensor, roots: torch.Tensor, depth: int) -> torch.Tensor:
    """`torch.LongTensor` of shape `(roots, depth)`: what follows each root; NO_TOKEN behind the answer's end."""
    padded = torch.nn.functional.pad(tokens[0], (0, depth), value=NO_TOKEN)
    return padded[roots.unsqueeze(1) + 1 + torch.arange(depth, device=roots.device)]


def _path_ranks(pool: CandidatePool, path_tokens: torch.Tensor, depth: int, top_k: int) -> torch.Tensor:
    """
    Follows a path through its pool.

    Args:
        pool ([`CandidatePool`]): one for each root.
        path_tokens (`torch.LongTensor` of shape `(roots, depth)`): the path below the root.

    Returns:
        `torch.LongTensor` of shape `(roots, depth, depth)` on the CPU; see [`PathRanks`].
    """
    size = pool.scores.shape[1]
    index = torch.arange(size, device=pool.scores.device)
    ends = torch.tensor([pool_size(d, top_k) - 1 for d in range(1, depth + 1)], device=pool.scores.device)
    parent = torch.full_like(path_tokens[:, :1], -1)
    is_on = torch.ones_like(parent, dtype=torch.bool)
    ranks = []
    for level in range(depth):
        is_next = (pool.parents == parent) & (pool.tokens == path_tokens[:, level : level + 1])
        is_on = is_on & is_next.any(dim=-1, keepdim=True)
        parent = is_next.long().argmax(dim=-1, keepdim=True)
        score = pool.scores.gather(1, parent)
        is_better = (pool.scores > score) | ((pool.scores == score) & (index < parent))  # ties as in the tree
        rank = is_better.cumsum(dim=-1)[:, ends]  # (roots, depth): in the pool of each depth
        ranks.append(rank.masked_fill(~is_on, size))
    return torch.stack(ranks, dim=-1).cpu()


__all__ = ["PathRanks", "TreeSettings", "rank_paths"]
