"""
What `generate(return_dict_in_generate=True)` returns: plain decoding's outputs, plus the acceptance lengths.

Next: `loop.py`.
"""

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
            For each row, tokens emitted by each cycle (accepted draft tokens + 1, less what was cut at the end). The
            token that the prefill yields belongs to no cycle; the mean over cycles is tau.
    """

    acceptance_lengths: list[list[int]] | None = None


@dataclass(frozen=True)
class AttentionColumns:
    """Which columns plain decoding's attention weights have in one layer."""

    window: int | None = None  # the newest tokens that a sliding layer still holds
    width: int | None = None  # the columns of a static layer, used or not


class OutputRecorder:
    """
    Collects logits, hidden states and attentions, one entry per emitted token as in plain decoding.

    Args:
        generation_config ([`~transformers.GenerationConfig`]): as prepared by `generate()`.
        cache ([`~transformers.Cache`]): the target's, before room is made for trees.
    """

    def __init__(self, generation_config: GenerationConfig, cache: Cache):
        wanted = generation_config.return_dict_in_generate
        self.returns_dict = bool(wanted)
        self.logits: tuple | None = () if wanted and generation_config.output_logits else None
        self.hidden_states: tuple | None = () if wanted and generation_config.output_hidden_states else None
        self.attentions: tuple | None = () if wanted and generation_config.output_attentions else None
        self.columns = [_columns_of(layer) for layer in cache.layers]

    def add_prefill(self, outputs: Any, prompt_length: int) -> None:
        """The prompt's entries; logits and states of the first token."""
        if self.logits is not None:
            self.logits += (outputs.logits[:, -1].float(),)
        if self.hidden_states is not None:
            self.hidden_states += (outputs.hidden_states,)
        if self.attentions is not None:
            self.attentions += (
                tuple(_prompt_attention(weights, prompt_length, layer) for weights, layer in self._layers(outputs)),
            )

    def add_cycle(self, outputs: Any, path: torch.Tensor, prefix_length: int) -> None:
        """
        One entry for each node of the kept path.

        Args:
            outputs ([`~transformers.utils.ModelOutput`]): of the verification.
            path (`torch.LongTensor` of shape `(batch_size, kept)`): node indices from the root on.
            prefix_length (`int`): cache entries before the root.
        """
        if self.logits is not None:
            logits = _rows(outputs.logits, path).float()
            self.logits += tuple(logits.unbind(dim=1))
        if self.hidden_states is not None:
            layers = [_rows(states, path) for states in outputs.hidden_states]
            self.hidden_states += tuple(tuple(s[:, i : i + 1] for s in layers) for i in range(path.shape[1]))
        if self.attentions is not None:
            num_nodes = outputs.logits.shape[1]
            self.attentions += tuple(
                tuple(
                    _attention_of(weights, path, i, prefix_length, num_nodes, layer)
                    for weights, layer in self._layers(outputs)
                )
                for i in range(path.shape[1])
            )

    def finish(
        self,
        sequences: torch.Tensor,
        scores: tuple[torch.Tensor, ...] | None,
        cache: Cache,
        acceptance_lengths: list[list[int]],
    ) -> GriffinGenerateOutput | torch.Tensor:
        """What `generate()` returns."""
        if not self.returns_dict:
            return sequences
        return GriffinGenerateOutput(
            sequences=cast("torch.LongTensor", sequences),
            scores=cast("tuple[torch.FloatTensor] | None", scores),
            logits=self.logits,
            attentions=self.attentions,
            hidden_states=self.hidden_states,
            past_key_values=cache,
            acceptance_lengths=acceptance_lengths,
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


def _rows(states: torch.Tensor, path: torch.Tensor) -> torch.Tensor:
    """`(batch_size, n_nodes, width)` -> `(batch_size, kept, width)`."""
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
    prefix_length: int,
    num_nodes: int,
    layer: AttentionColumns,
) -> torch.Tensor | None:
    """
    The attention of one path node as plain decoding would show it: columns of prefix and path, in order.

    `weights` has shape `(batch_size, heads, n_nodes, kv_len)`; its columns end with the tree, or, in a static cache,
    start with the prefix. The result has shape `(batch_size, heads, 1, prefix + step + 1)`, cut and padded as the
    layer's columns say.
    """
    if weights is None:
        return None
    kv_len = weights.shape[-1]
    # Dynamic layers return prefix + tree (sliding ones the visible part of it); static ones a longer buffer.
    first_node = min(prefix_length, kv_len - num_nodes)
    path = path.to(weights.device)
    row = weights.gather(2, path[:, None, step : step + 1, None].expand(-1, weights.shape[1], -1, kv_len))
    columns = (first_node + path[:, None, None, : step + 1]).expand(-1, weights.shape[1], -1, -1)
    seen = torch.cat((row[..., :first_node], row.gather(3, columns)), dim=-1)
    if layer.window is not None:
        seen = seen[..., -layer.window :]
    if layer.width is not None:
        seen = torch.nn.functional.pad(seen, (0, layer.width - seen.shape[-1]))
    return seen


def wants_scores(generation_config: GenerationConfig) -> bool:
    """Whether the answer shall hold the processed scores of its tokens; the chooser records them."""
    return bool(generation_config.return_dict_in_generate and generation_config.output_scores)


__all__ = ["AttentionColumns", "GriffinGenerateOutput", "OutputRecorder", "wants_scores"]
