"""
What the draft reads of a prompt: each feature with the token behind it, chunk by chunk as the target reads the prompt.

With `prefill_chunk_size` neither model has the whole prompt in its layers at once, and features live from one chunk to
the next. The target is a chunk ahead, since only the last one waits for a token that the target has yet to choose::

    target reads      x_0 x_1 x_2    x_3 x_4 x_5    x_6
    features          F_0 F_1 F_2    F_3 F_4 F_5    F_6
    paired with       x_1 x_2 x_3    x_4 x_5 x_6    the first token of the answer

Without it the prompt is one chunk, the last.

Next: `loop.py`.
"""

from typing import Any

import torch

from ..modeling_griffin import GriffinDraftModel


class PromptPairs:
    """
    Pairs the features of a prompt with tokens, as arguments of [`GriffinCandidateGenerator`].

    Args:
        draft ([`GriffinDraftModel`]): bound to the target.
        input_ids (`torch.LongTensor` of shape `(batch_size, length)`): the prompts, padded on the left.
        model_kwargs (`dict`): as prepared by `generate()`.
        num_unread (`int`): tokens of the prompt that no cache holds yet.
    """

    def __init__(
        self, draft: GriffinDraftModel, input_ids: torch.Tensor, model_kwargs: dict[str, Any], num_unread: int
    ):
        self.draft = draft
        self.input_ids = input_ids
        self.padding_mask: torch.Tensor | None = model_kwargs.get("attention_mask")
        self.inputs_embeds: torch.Tensor | None = model_kwargs.get("inputs_embeds")
        self.num_unread = num_unread

    def of_chunk(self, features: torch.Tensor) -> dict[str, Any]:
        """
        The next chunk, one behind which the prompt goes on. It is never given as embeddings: transformers splits no
        such prompt.

        Args:
            features (`torch.Tensor` of shape `(batch_size, chunk, hidden_size)`): of its tokens.
        """
        num_read = features.shape[1]
        self.num_unread -= num_read
        end = self.input_ids.shape[1] - self.num_unread
        mask = self.padding_mask
        return {
            "tokens": self.input_ids[:, end - num_read + 1 : end + 1],
            "features": features,
            "padding_mask": None if mask is None else mask[:, : mask.shape[1] - self.num_unread][:, -num_read:],
        }

    def of_last_chunk(self, features: torch.Tensor, first_token: torch.Tensor) -> dict[str, Any]:
        """
        The last chunk, as embeddings where the prompt came as such.

        Args:
            features (`torch.Tensor` of shape `(batch_size, chunk, hidden_size)`): of its tokens.
            first_token (`torch.LongTensor` of shape `(batch_size, 1)`): of the answer.
        """
        num_read = features.shape[1]
        embeds, mask = self.inputs_embeds, self.padding_mask
        token_embeds = None
        if embeds is not None:
            behind = embeds[:, embeds.shape[1] - num_read + 1 :].to(device=self.draft.device, dtype=self.draft.dtype)
            token_embeds = torch.cat((behind, self.draft.embed_tokens(first_token)), dim=1)
        return {
            "tokens": torch.cat((self.input_ids, first_token), dim=1)[:, -num_read:],
            "features": features,
            "padding_mask": None if mask is None else mask[:, -num_read:],
            "token_embeds": token_embeds,
        }


__all__ = ["PromptPairs"]
