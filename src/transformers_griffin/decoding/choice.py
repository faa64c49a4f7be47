"""
How the target chooses its next token, and when it stops: the two places where users' settings enter the loop.

Both see exactly what plain decoding shows them, in the same order: processors the prefix of each emitted token,
criteria the sequence after each emitted token.

Next: `target_forward.py`.
"""

import math
from typing import cast

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.generation import (
    EosTokenCriteria,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    ForcedEOSTokenLogitsProcessor,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    MaxLengthCriteria,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)


# Processors that keep no state and do not ask the host: a call that turns out to be unneeded does no harm.
HARMLESS_PROCESSORS = (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    ForcedEOSTokenLogitsProcessor,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)


class TokenChooser:
    """
    The target's choice after a prefix: argmax or a sample of its processed distribution.

    Args:
        processors ([`~transformers.LogitsProcessorList`]): as prepared by `generate()`.
        do_sample (`bool`): sample instead of argmax.
        record_scores (`bool`): keep the processed scores of every call, for `output_scores`.
    """

    def __init__(self, processors: LogitsProcessorList, do_sample: bool, record_scores: bool = False):
        self.processors = processors
        self.do_sample = do_sample
        self.scores: tuple[torch.Tensor, ...] | None = () if record_scores else None

    @property
    def is_argmax(self) -> bool:
        """Whether the choice is a function of the logits alone, so that all nodes can choose at once."""
        return not self.do_sample and len(self.processors) == 0 and self.scores is None

    @property
    def needs_true_prefixes(self) -> bool:
        """Whether some processor must never be shown a prefix that is not part of the output."""
        return not all(type(processor) in HARMLESS_PROCESSORS for processor in self.processors)

    def __call__(self, logits: torch.Tensor, prefix: torch.Tensor) -> torch.Tensor:
        """
        Args:
            logits (`torch.Tensor` of shape `(batch_size, vocab_size)`): the target's logits after the prefix.
            prefix (`torch.LongTensor` of shape `(batch_size, length)`): the tokens so far.

        Returns:
            `torch.LongTensor` of shape `(batch_size,)`.
        """
        raw_scores = logits.to(device=prefix.device, dtype=torch.float32, copy=True)
        scores = self.processors(cast("torch.LongTensor", prefix), raw_scores)
        if self.scores is not None:
            self.scores += (scores,)
        if self.do_sample:
            return torch.multinomial(scores.softmax(dim=-1), num_samples=1).squeeze(1)
        return scores.argmax(dim=-1)

    def keep_scores(self, count: int) -> None:
        """Forgets all recorded scores but the first `count`, those of choices that belong to the answer."""
        if self.scores is not None:
            self.scores = self.scores[:count]


class StopChecker:
    """
    Finds the token that ends the answer.

    End-of-sequence tokens and the maximal length are compared on the host, where a cycle's tokens arrive anyway; every
    other criterion is asked once per emitted token, in order, the last token included.

    Args:
        criteria ([`~transformers.StoppingCriteriaList`]): as prepared by `generate()`.
        prompt_length (`int`): tokens of the prompt.
    """

    def __init__(self, criteria: StoppingCriteriaList, prompt_length: int):
        self.max_length = min((c.max_length for c in criteria if type(c) is MaxLengthCriteria), default=math.inf)
        eos_criteria = [c for c in criteria if type(c) is EosTokenCriteria]
        self.eos_token_ids = {token for c in eos_criteria for token in c.eos_token_id.flatten().tolist()}
        self.others = StoppingCriteriaList(c for c in criteria if type(c) not in (MaxLengthCriteria, EosTokenCriteria))
        self.prompt_length = prompt_length
        self.num_checked = 0  # generated tokens that the criteria were asked about
        self.is_finished = False

    def ask(self, sequence: torch.Tensor, token: int, scores: tuple[torch.Tensor, ...] | None) -> bool:
        """
        Whether the answer ends with a sequence; to be asked once about every sequence of the answer, in order.

        Args:
            sequence (`torch.LongTensor` of shape `(1, length)`): prompt and answer so far.
            token (`int`): its last token.
            scores (`tuple` of `torch.Tensor`, *optional*): scores of the tokens chosen so far, or more.

        Effects: advances `num_checked`, sets `is_finished`.
        """
        length = sequence.shape[1]
        self.num_checked = length - self.prompt_length
        scores = None if scores is None else scores[: self.num_checked]
        others_say = len(self.others) > 0 and bool(self.others(sequence, scores).all())
        self.is_finished = others_say or token in self.eos_token_ids or length >= self.max_length
        return self.is_finished

    def count_kept(
        self, sequence: torch.Tensor, new_tokens: list[int], scores: tuple[torch.Tensor, ...] | None
    ) -> int:
        """
        How many of a cycle's tokens belong to the answer.

        Args:
            sequence (`torch.LongTensor` of shape `(1, length)`): prompt and answer with all new tokens at its end.
            new_tokens (`list[int]`): these tokens.
            scores (`tuple` of `torch.Tensor`, *optional*): scores of the tokens chosen so far, or more.
        """
        num_old = sequence.shape[1] - len(new_tokens) - self.prompt_length
        for token in new_tokens[self.num_checked - num_old :]:  # the criteria may know the first ones already
            if self.is_finished:
                break
            self.ask(sequence[:, : self.prompt_length + self.num_checked + 1], token, scores)
        return self.num_checked - num_old


__all__ = ["StopChecker", "TokenChooser"]
