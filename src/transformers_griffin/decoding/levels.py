"""
A level of the draft tree: what it proposes, and which of that is read next.

A level's candidates are the k best children of each of its nodes, and the k best of them are the *beam*, the next
level. The vocabulary-wide work is in [`propose_children`], all the small rest in [`grow_level`], which a GPU does in
one launch (`kernels/growth.py`).

A level's node j lies in the draft's cache at slot `level * k + j` behind the verified pairs.

Notation for shapes: `batch_size`; `beam` nodes of a level, 1 for the root, else k; `slots` of the levels so far.

Next: `kernels/`.
"""

from dataclasses import dataclass

import torch

from .draft_tree import CandidatePool, pool_size, stable_top_k


@dataclass(frozen=True)
class Beam:
    """The nodes of one level, which the draft reads in one pass."""

    tokens: torch.Tensor  # (batch_size, beam)
    scores: torch.Tensor  # (batch_size, beam): cumulative log-probability
    pool_index: torch.Tensor  # (batch_size, beam): -1 for the root
    rows: torch.Tensor  # (batch_size, beam): place of the parent in the level above
    sees: torch.Tensor  # (batch_size, beam, slots): ancestors and itself; with kernels, rows of a packed mask


def propose_children(logits: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The k most probable next tokens of every node of a level, best first.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, beam, vocab_size)`): the draft's logits after each node.

    Returns:
        tokens and log-probabilities in fp32, each of shape `(batch_size, beam, top_k)`.
    """
    tokens = logits.topk(top_k, dim=-1).indices
    return tokens, logits.log_softmax(dim=-1, dtype=torch.float32).gather(-1, tokens)


def root_beam(sees: torch.Tensor) -> Beam:
    """
    The level of the root, whose token has been read already.

    Args:
        sees (`torch.BoolTensor` of shape `(batch_size, 1, 0)`): there is no slot yet; with kernels, a packed mask.
    """
    zeros = torch.zeros(sees.shape[:2], dtype=torch.long, device=sees.device)
    return Beam(tokens=zeros, scores=zeros.float(), pool_index=zeros - 1, rows=zeros, sees=sees)


def grow_level(tokens: torch.Tensor, log_probs: torch.Tensor, beam: Beam, level: int) -> tuple[Beam, CandidatePool]:
    """
    Scores the children of every beam node and makes the k best of them the next beam.

    Scores are cumulative, and -inf where a log-probability is undefined (a draft that overflowed): a tree is connected
    only if no score is NaN.

    Args:
        tokens (`torch.LongTensor` of shape `(batch_size, beam, k)`): the children.
        log_probs (`torch.Tensor` of shape `(batch_size, beam, k)`): of each after its parent, in fp32.
        beam ([`Beam`]): their parents.
        level (`int`): 0 for the children of the root.

    Returns:
        [`Beam`] of k nodes, and the level's part of the [`CandidatePool`].
    """
    k = tokens.shape[-1]
    log_probs = log_probs.masked_fill(log_probs.isnan(), -torch.inf)
    # A rounding error must not make a child more probable than its parent.
    scores = (beam.scores.unsqueeze(-1) + log_probs.clamp(max=0.0)).flatten(1)
    tokens = tokens.flatten(1)

    best_scores, chosen = stable_top_k(scores, k)
    rows = chosen // k
    parent_sees = beam.sees.gather(1, rows.unsqueeze(-1).expand(-1, -1, beam.sees.shape[-1]))
    itself = torch.eye(k, dtype=torch.bool, device=tokens.device).expand(tokens.shape[0], -1, -1)
    new_beam = Beam(
        tokens=tokens.gather(1, chosen),
        scores=best_scores,
        pool_index=first_in_pool(level, k) + chosen,
        rows=rows,
        sees=torch.cat((parent_sees, itself), dim=-1),
    )
    return new_beam, CandidatePool(tokens, scores, beam.pool_index.repeat_interleave(k, dim=1))


def join_levels(levels: list[CandidatePool], device: torch.device) -> CandidatePool:
    """The candidates of all levels, on a device."""
    parts = ((level.tokens, level.scores, level.parents) for level in levels)
    return CandidatePool(*(torch.cat(of_levels, dim=1).to(device) for of_levels in zip(*parts, strict=True)))


def first_in_pool(level: int, top_k: int) -> int:
    """Pool index of a level's first candidate."""
    return 0 if level == 0 else pool_size(level, top_k)


__all__ = ["Beam", "first_in_pool", "grow_level", "join_levels", "propose_children", "root_beam"]
