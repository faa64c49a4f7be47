"""
What `generate(return_dict_in_generate=True)` returns: plain decoding's outputs, plus the acceptance lengths.

Each row's entries are collected by themselves, one for each of its tokens, and put side by side at the end. Behind a
row's last token, where plain decoding goes on with padding, they are zero.

Next: `prompt_pairs.py`.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import GenerationConfig
from transformers.cache_utils import Cache
from transformers.generation import GenerateDecoderOnlyOutput


@dataclass
class GriffinGenerateOutput(GenerateDecoderOnlyOutput):
    """
    [`~transformers.generation.GenerateDecoderOnlyOutput`] with what a draft achieved.

    Args:
        acceptance_lengths (`list[list[int]]`):
            For each row, tokens emitted by each cycle until the row ended (accepted draft tokens + 1, less what was
            cut at the end). The token that the prefill yields belongs to no cycle; the mean over cycles is tau.
    """

    acceptance_lengths: list[list[int]] | None = None


@dataclass(frozen=True)
class AttentionColumns:
    """Which columns plain decoding's attention weights have in one layer."""

    window: int | None = None  # the newest tokens that a sliding layer still holds
    width: int | None = None  # the columns of a static layer, used or not


class OutputRecorder:
    """
    Collects scores, logits, hidden states and attentions, one entry per emitted token as in plain decoding.

    Args:
        generation_config ([`~transformers.GenerationConfig`]): as prepared by `generate()`.
        cache ([`~transformers.Cache`]): the target's, before room is made for trees.
        batch_size (`int`): rows of the answer.
    """

    def __init__(self, generation_config: GenerationConfig, cache: Cache, batch_size: int):
        wanted = bool(generation_config.return_dict_in_generate)
        self.returns_dict = wanted
        self.scores = _rows_of(batch_size, wants_scores(generation_config))
        self.logits = _rows_of(batch_size, wanted and generation_config.output_logits)
        self.hidden_states = _rows_of(batch_size, wanted and generation_config.output_hidden_states)
        self.attentions = _rows_of(batch_size, wanted and generation_config.output_attentions)
        self.columns = [_columns_of(layer) for layer in cache.layers]
        self.acceptance_lengths: list[list[int]] = [[] for _ in range(batch_size)]

    def add_prefill(self, outputs: Any, prompt_length: int) -> None:
        """The prompt's entries; logits and states of the first token."""
        if self.logits is not None:
            for row, logits in zip(self.logits, outputs.logits[:, -1:].float(), strict=True):
                row.append(logits)
        if self.hidden_states is not None:
            for i, row in enumerate(self.hidden_states):
                row.append(tuple(states[i : i + 1] for states in outputs.hidden_states))
        if self.attentions is not None:
            for i, row in enumerate(self.attentions):
                row.append(
                    tuple(_prompt_attention(_row(w, i), prompt_length, layer) for w, layer in self._layers(outputs))
                )

    def add_scores(self, scores: tuple[torch.Tensor, ...], num_kept: list[int], rows: list[int]) -> None:
        """
        Args:
            scores (`tuple` of `torch.Tensor` of shape `(len(rows), vocab_size)`): of new tokens, or of more.
            num_kept (`list[int]`): how many new tokens each row has.
            rows (`list[int]`): which rows of the answer these are.
        """
        if self.scores is not None:
            for i, (row, kept) in enumerate(zip(rows, num_kept, strict=True)):
                self.scores[row].extend(step[i : i + 1] for step in scores[:kept])

    def add_cycle(
        self, outputs: Any, nodes: torch.Tensor, num_kept: list[int], rows: list[int], lengths: list[int]
    ) -> None:
        """
        One entry for each node of the kept paths.

        Args:
            outputs ([`~transformers.utils.ModelOutput`]): of the verification.
            nodes (`torch.LongTensor` of shape `(len(rows), path)`): node indices from the root on.
            num_kept (`list[int]`): how many of them each row keeps; none once it has ended.
            rows (`list[int]`): which rows of the answer these are.
            lengths (`list[int]`): cache entries of each row before the root.
        """
        for i, (row, kept) in enumerate(zip(rows, num_kept, strict=True)):
            if kept > 0:
                self.acceptance_lengths[row].append(kept)
                self._add_path(outputs, i, nodes[i : i + 1, :kept], row, lengths[i], max(lengths))

    def _add_path(
        self, outputs: Any, index: int, path: torch.Tensor, row: int, length: int, prefix_length: int
    ) -> None:
        if self.logits is not None:
            logits = _nodes(_row(outputs.logits, index), path).float()
            self.logits[row].extend(logits.unbind(dim=1))
        if self.hidden_states is not None:
            layers = [_nodes(_row(states, index), path) for states in outputs.hidden_states]
            self.hidden_states[row].extend(tuple(s[:, i : i + 1] for s in layers) for i in range(path.shape[1]))
        if self.attentions is not None:
            num_nodes = outputs.logits.shape[1]
            self.attentions[row].extend(
                tuple(
                    _attention_of(_row(weights, index), path, i, length, prefix_length, num_nodes, layer)
                    for weights, layer in self._layers(outputs)
                )
                for i in range(path.shape[1])
            )

    def finish(
        self,
        sequences: torch.Tensor,
        cache: Cache,
    ) -> GriffinGenerateOutput | torch.Tensor:
        """What `generate()` returns."""
        if not self.returns_dict:
            return sequences
        return GriffinGenerateOutput(
            sequences=cast("torch.LongTensor", sequences),
            scores=_side_by_side(self.scores),
            logits=_side_by_side(self.logits),
            attentions=_side_by_side(self.attentions),
            hidden_states=_side_by_side(self.hidden_states),
            past_key_values=cache,
            acceptance_lengths=self.acceptance_lengths,
        )

    def _layers(self, outputs: Any) -> list[tuple[torch.Tensor | None, AttentionColumns]]:
        """Every layer's attention weights with their columns; layers without a cache of their own count as dynamic."""
        num_shared = len(outputs.attentions) - len(self.columns)
        return list(zip(outputs.attentions, self.columns + [AttentionColumns()] * num_shared, strict=False))


def _columns_of(layer: Any) -> AttentionColumns:
    is_sliding = getattr(layer, "is_sliding", False)  # layers without keys have no such attribute
    return AttentionColumns(
        window=layer.get_max_length() if is_sliding else None,
        width=layer.get_max_length() if layer.is_compileable else None,
    )


def _rows_of(batch_size: int, is_wanted: Any) -> list[deque[Any]] | None:
    return [deque() for _ in range(batch_size)] if is_wanted else None


def _side_by_side(rows: list[deque[Any]] | None) -> Any:
    """
    For each row its entries -> for each step one entry with all rows, as long as the longest row has entries.

    Effects: empties the rows, so that their entries are freed while they are copied.
    """
    if rows is None:
        return None
    steps = []
    while any(rows):
        example = max(rows, key=len)[0]
        steps.append(_join([row.popleft() if row else _zeros_like(example) for row in rows]))
    return tuple(steps)


def _join(entries: list[Any]) -> Any:
    """Tensors, or tuples of them, joined along their first dimension."""
    if isinstance(entries[0], tuple):
        return tuple(_join(list(parts)) for parts in zip(*entries, strict=True))
    return entries[0] if len(entries) == 1 or entries[0] is None else torch.cat(entries)


def _zeros_like(entry: Any) -> Any:
    if isinstance(entry, tuple):
        return tuple(_zeros_like(part) for part in entry)
    return None if entry is None else torch.zeros_like(entry)


def _row(states: torch.Tensor | None, index: int) -> Any:
    return None if states is None else states[index : index + 1]


def _nodes(states: torch.Tensor, path: torch.Tensor) -> torch.Tensor:
    """`(1, n_nodes, width)` -> `(1, kept, width)`."""
    return states.gather(1, path.to(states.device).unsqueeze(-1).expand(-1, -1, states.shape[-1]))


def _prompt_attention(
    weights: torch.Tensor | None, prompt_length: int, layer: AttentionColumns
) -> torch.Tensor | None:
    """Cuts the columns by which static layers were widened for trees."""
    if weights is None or layer.width is None:
        return weights
    return weights[..., : max(layer.width, prompt_length)]


def _attention_of(
    weights: torch.Tensor | None,
    path: torch.Tensor,
    step: int,
    length: int,
    prefix_length: int,
    num_nodes: int,
    layer: AttentionColumns,
) -> torch.Tensor | None:
    """
    The attention of one path node as plain decoding would show it: columns of prefix and path, in order.

    `weights` has shape `(1, heads, n_nodes, kv_len)`; its columns end with the tree, or, in a static cache, start with
    the `prefix_length` slots of the prefix, of which the row has `length`. The result has shape
    `(1, heads, 1, length + step + 1)`, cut and padded as the layer's columns say.
    """
    if weights is None:
        return None
    kv_len = weights.shape[-1]
    # Dynamic layers return prefix + tree (sliding ones the visible part of it); static ones a longer buffer.
    first_node = min(prefix_length, kv_len - num_nodes)
    path = path.to(weights.device)
    row = weights.gather(2, path[:, None, step : step + 1, None].expand(-1, weights.shape[1], -1, kv_len))
    columns = (first_node + path[:, None, None, : step + 1]).expand(-1, weights.shape[1], -1, -1)
    gap = prefix_length - length
    seen = torch.cat((row[..., : first_node - gap], row.gather(3, columns)), dim=-1)
    if layer.window is not None:
        seen = seen[..., -layer.window :]
    if layer.width is not None:
        seen = torch.nn.functional.pad(seen, (0, layer.width - seen.shape[-1]))
    return seen


def wants_scores(generation_config: GenerationConfig) -> bool:
    """Whether the answer shall hold the processed scores of its tokens; the chooser records them."""
    return bool(generation_config.return_dict_in_generate and generation_config.output_scores)


__all__ = ["AttentionColumns", "GriffinGenerateOutput", "OutputRecorder", "wants_scores"]
