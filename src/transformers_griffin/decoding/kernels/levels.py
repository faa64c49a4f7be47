"""
A level of the draft tree: the nodes to be read next, and the pool of all candidates that they come from.

This is what [`grow_level`] in `growth.py` works on, and how it is done where there are no kernels.

Notation for shapes: `batch_size`; `beam` nodes (1 for the root, else k); `pool` candidates; `words` of 64 bits.

Next: `growth.py`.
"""

from dataclasses import dataclass

import torch

from ..draft_tree import stable_top_k
from .packed_mask import BITS, pack_bits


@dataclass(frozen=True)
class Beam:
    """The nodes of one level; a level's node j lies in the draft's cache at slot `level * k + j` behind the prefix."""

    tokens: torch.Tensor  # (batch_size, beam)
    scores: torch.Tensor  # (batch_size, beam): cumulative log-probability
    pool_index: torch.Tensor  # (batch_size, beam): -1 for the root
    rows: torch.Tensor  # (batch_size, beam): place of the parent in the level above
    sees: torch.Tensor  # (batch_size, beam, words): bits of the slots that it sees, ancestors and itself


@dataclass(frozen=True)
class Pool:
    """Room for all candidates of a drafting round, filled level by level."""

    tokens: torch.Tensor  # (batch_size, pool)
    scores: torch.Tensor  # (batch_size, pool)
    parents: torch.Tensor  # (batch_size, pool): pool index, -1 for children of the root


def empty_pool(batch_size: int, size: int, device: torch.device) -> Pool:
    """Room for `size` candidates, not yet written."""
    tokens, parents = (torch.empty(batch_size, size, dtype=torch.long, device=device) for _ in range(2))
    return Pool(tokens, torch.empty(batch_size, size, device=device), parents)


def root_beam(root_tokens: torch.Tensor, num_slots: int) -> Beam:
    """The level of the root, of shape `(batch_size, 1)`, before `num_slots` = depth * k nodes of levels below it."""
    zeros = torch.zeros_like(root_tokens)
    sees = root_tokens.new_zeros(*root_tokens.shape, -(-num_slots // BITS))
    return Beam(root_tokens, zeros.float(), zeros - 1, zeros, sees)


def grow_level_reference(
    top_logits: torch.Tensor, tokens: torch.Tensor, log_norms: torch.Tensor, beam: Beam, pool: Pool, level: int
) -> Beam:
    """Does what `grow_level` in `growth.py` does, with the same arguments."""
    width, k = top_logits.shape[1:]
    first_index = 0 if level == 0 else k + (level - 1) * k * k
    log_probs = top_logits.float() - log_norms.unsqueeze(-1)
    log_probs = log_probs.masked_fill(log_probs.isnan(), -torch.inf).clamp(max=0.0)
    scores = (beam.scores.unsqueeze(-1) + log_probs).flatten(1)
    here = slice(first_index, first_index + width * k)
    pool.tokens[:, here], pool.scores[:, here] = tokens.flatten(1), scores
    pool.parents[:, here] = beam.pool_index.repeat_interleave(k, dim=1)

    best_scores, chosen = stable_top_k(scores, k)
    rows = chosen // k
    own_slot = torch.zeros(k, beam.sees.shape[-1] * BITS, dtype=torch.bool, device=tokens.device)
    own_slot[torch.arange(k), level * k + torch.arange(k)] = True
    parent_sees = beam.sees.gather(1, rows.unsqueeze(-1).expand(-1, -1, beam.sees.shape[-1]))
    return Beam(
        tokens=tokens.flatten(1).gather(1, chosen),
        scores=best_scores,
        pool_index=first_index + chosen,
        rows=rows,
        sees=parent_sees | pack_bits(own_slot),
    )


__all__ = ["Beam", "Pool", "empty_pool", "grow_level_reference", "root_beam"]
