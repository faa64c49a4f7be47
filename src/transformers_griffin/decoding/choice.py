"""
How the target chooses its next token, and when it stops: the two places where users' settings enter the loop.

Both see exactly what plain decoding shows them: processors the prefix of each emitted token, criteria the sequence
after each emitted token.

Next: `target_forward.py`.
"""

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
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)


# Processors that keep no state and read at most the prefix's length: a call that turns out to be unneeded does no harm.
HARMLESS_PROCESSORS = (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    ForcedEOSTokenLogitsProcessor,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
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
        self.record_scores = record_scores
        self.scores: list[torch.Tensor] = []

    @property
    def is_argmax(self) -> bool:
        """Whether the choice is a function of the logits alone, so that all nodes can choose at once."""
        return not self.do_sample and len(self.processors) == 0

    @property
    def needs_true_prefixes(self) -> bool:
        """Whether some processor must never be shown a prefix that is not part of the output."""
        return not all(type(processor) in HARMLESS_PROCESSORS for processor in self.processors)

    def __call__(self, logits: torch.Tensor, prefix: torch.LongTensor) -> torch.LongTensor:
        """
        Args:
            logits (`torch.Tensor` of shape `(batch_size, vocab_size)`): the target's logits after the prefix.
            prefix (`torch.LongTensor` of shape `(batch_size, length)`): the tokens so far.

        Returns:
            `torch.LongTensor` of shape `(batch_size,)`.
        """
        scores = self.processors(prefix, logits.to(device=prefix.device, dtype=torch.float32, copy=True))
        if self.record_scores:
            self.scores.append(scores)
        if self.do_sample:
            return torch.multinomial(scores.softmax(dim=-1), num_samples=1).squeeze(1)
        return scores.argmax(dim=-1)

    def take_scores(self, count: int) -> tuple[torch.Tensor, ...]:
        """The first `count` recorded scores since the last call; the rest is forgotten."""
        taken, self.scores = tuple(self.scores[:count]), []
        return taken


class StopChecker:
    """
    Finds the token that ends the answer.

    End-of-sequence tokens and the maximal length are compared on the host, where a cycle's tokens arrive anyway; every
    other criterion is asked once per emitted token, in order.
    """

    def __init__(self, criteria: StoppingCriteriaList):
        self.max_length = min((c.max_length for c in criteria if type(c) is MaxLengthCriteria), default=None)
        eos_criteria = [c for c in criteria if type(c) is EosTokenCriteria]
        self.eos_token_ids = {token for c in eos_criteria for token in c.eos_token_id.flatten().tolist()}
        self.others = [c for c in criteria if type(c) not in (MaxLengthCriteria, EosTokenCriteria)]

    def count_kept(
        self, input_ids: torch.LongTensor, new_tokens: list[int], scores: tuple[torch.Tensor, ...] | None
    ) -> tuple[int, bool]:
        """
        How many of a cycle's tokens belong to the answer.

        Args:
            input_ids (`torch.LongTensor` of shape `(1, length)`): the sequence with all new tokens at its end.
            new_tokens (`list[int]`): these tokens.
            scores (`tuple` of `torch.Tensor`, *optional*): scores of every generated token, the new ones included.

        Returns:
            `(count, is_finished)`
        """
        num_old = input_ids.shape[1] - len(new_tokens)
        for count, token in enumerate(new_tokens, start=1):
            length = num_old + count
            if token in self.eos_token_ids or (self.max_length is not None and length >= self.max_length):
                return count, True
            seen_scores = None if scores is None else scores[: len(scores) - len(new_tokens) + count]
            if any(bool(criterion(input_ids[:, :length], seen_scores).all()) for criterion in self.others):
                return count, True
        return len(new_tokens), False


__all__ = ["StopChecker", "TokenChooser"]
