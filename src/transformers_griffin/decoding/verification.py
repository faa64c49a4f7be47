"""
Which path of the tree the target accepts, and why that leaves its output unchanged.

After one forward over all nodes the target knows its own next token after every node. Starting at the root, follow the
child that carries exactly that token until there is none::

    root -- A -- B        target after root: A  -> go to A
         `- C             target after A:    D  -> no child D: stop
                          emitted: A, D

**Lossless.** The tree is a function of the tokens before it, never of the target's choices below the root. The choice
at the root is therefore distributed as in plain decoding, whatever was drafted; so is the next one given the first,
and so on: drafting decides only how many choices one forward pays for. This holds for argmax and for sampling alike.
It needs no draft probabilities and no case distinction; greedy and sampling differ in `choose` alone.

Notation for shapes: `batch_size`; `n_nodes` tree nodes; `path` = depth + 1, the longest root path.

Next: `tree_settings.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from . import kernels
from .draft_tree import DraftTree


# (logits (batch_size, vocab_size), prefix (batch_size, length)) -> tokens (batch_size,)
Choose = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Acceptance:
    """The accepted path; entries behind its end repeat the last one."""

    nodes: torch.Tensor  # (batch_size, path): node indices from the root on
    tokens: torch.Tensor  # (batch_size, path): the target's choice after each of them; the last is the bonus
    lengths: torch.Tensor  # (batch_size,): nodes on the path, root included = tokens emitted


def accept_path(tree: DraftTree, target_tokens: torch.Tensor, path_length: int) -> Acceptance:
    """
    Accepts the longest path on which every node is the target's own choice after its parent.

    Args:
        tree ([`DraftTree`]): the verified tree; siblings carry different tokens.
        target_tokens (`torch.LongTensor` of shape `(batch_size, n_nodes)`): the target's choice *after* each node.
        path_length (`int`): depth of the tree + 1.

    Example (A, B are drafted; the target wants A, then C)::

        root -- A -- B        nodes = [root, A, A]   tokens = [A, C, C]   lengths = 2
    """
    if kernels.available(tree.tokens.device):
        from .kernels.accept_walk import accept_walk

        return Acceptance(*accept_walk(tree.parents, tree.tokens, target_tokens, path_length))
    is_choice = tree.tokens == target_tokens.gather(1, tree.parents)
    is_choice[:, 0] = True
    is_accepted = (is_choice.unsqueeze(1) | ~tree.ancestors).all(dim=-1)  # (batch_size, n_nodes)

    n_nodes = tree.tokens.shape[1]
    index = torch.arange(n_nodes, device=tree.tokens.device)
    in_order = torch.where(is_accepted, index, n_nodes).sort(dim=-1).values[:, :path_length]
    lengths = is_accepted.sum(dim=-1)
    last = in_order.gather(1, (lengths - 1).unsqueeze(-1))
    nodes = torch.where(in_order < n_nodes, in_order, last)
    if nodes.shape[1] < path_length:  # fewer nodes than levels
        nodes = torch.cat((nodes, last.expand(-1, path_length - nodes.shape[1])), dim=1)
    return Acceptance(nodes=nodes, tokens=target_tokens.gather(1, nodes), lengths=lengths)


def walk_path(
    tree: DraftTree,
    logits: torch.Tensor,
    input_ids: torch.Tensor,
    choose: Choose,
    path_length: int,
    ask_host: bool,
    is_over: Callable[[torch.Tensor], bool] | None = None,
    in_step: torch.Tensor | None = None,
) -> Acceptance:
    """
    Accepts the same path as [`accept_path`], but lets `choose` see every prefix, one node after the other.

    Used when the choice is a sample or depends on the tokens before it (logits processors): `choose` is called with
    just the logits and the prefix that plain decoding would show it, once for each emitted token and in that order.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, n_nodes, vocab_size)`): the target's logits after each node.
        input_ids (`torch.LongTensor` of shape `(batch_size, length)`): the sequence, the root its last token.
        choose (`Choose`): picks the next tokens.
        path_length (`int`): depth of the tree + 1.
        ask_host (`bool`): stop as soon as the path has ended. That waits for the device at every step, but `choose`
            never sees a prefix that plain decoding would not show it, so it may keep state. Without it all steps run
            and those behind the end are ignored.
        is_over (`Callable`, *optional*): whether the answer ends with a sequence; with `ask_host` the path ends there.
        in_step (`torch.BoolTensor` of shape `(batch_size, 1)`, *optional*):
            Rows that must all be on their paths: with `ask_host` all paths end where the first of theirs does. When
            not given, the walk goes on until the last path has ended.
    """
    index = torch.arange(tree.tokens.shape[1], device=tree.tokens.device)
    node = torch.zeros_like(input_ids[:, :1])
    walking = torch.ones_like(node, dtype=torch.bool)
    nodes: list[torch.Tensor] = []
    tokens: list[torch.Tensor] = []
    lengths = torch.zeros_like(node)
    prefix = input_ids
    for _ in range(path_length):
        row = node.to(logits.device).unsqueeze(-1).expand(-1, -1, logits.shape[-1])
        node_logits = logits.gather(1, row).squeeze(1)
        token = choose(node_logits, prefix).unsqueeze(-1)
        nodes.append(node)
        tokens.append(torch.where(walking, token, tokens[-1]) if tokens else token)
        lengths = lengths + walking
        is_child = (tree.parents == node) & (tree.tokens == token) & (index > 0)
        walking = walking & is_child.any(dim=-1, keepdim=True)
        prefix = torch.cat((prefix, token), dim=1)
        if ask_host and (_have_left(walking, in_step) or (is_over is not None and is_over(prefix))):
            break
        node = torch.where(walking, is_child.long().argmax(dim=-1, keepdim=True), node)
    rest = path_length - len(nodes)
    return Acceptance(
        nodes=torch.cat(nodes + nodes[-1:] * rest, dim=1),
        tokens=torch.cat(tokens + tokens[-1:] * rest, dim=1),
        lengths=lengths.squeeze(-1),
    )


def _have_left(walking: torch.Tensor, in_step: torch.Tensor | None) -> bool:
    """Whether no path goes on; of rows in step, whether one of their paths does not."""
    return not walking.any() if in_step is None else bool((in_step & ~walking).any())
