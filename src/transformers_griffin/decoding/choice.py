"""
How the target chooses its next token, and when it stops: the two places where users' settings enter the loop.

Both see exactly what plain decoding shows them, in the same order: processors the prefix of each emitted token,
criteria the sequence after each emitted token.

Plain decoding of a batch shows them all rows at once, equally long. With a draft rows grow unevenly. Processors and
criteria that judge each row by itself and remember nothing are then asked about each row by itself; whoever asks for
any other (user's own ones, and those with a memory) lets all rows advance in step, so that it sees the same batch as
in plain decoding.

Next: `answer.py`.
"""

import math
from typing import Any, cast

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.generation import (
    EosTokenCriteria,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    ExponentialDecayLengthPenalty,
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    MaxLengthCriteria,
    MaxTimeCriteria,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    StopStringCriteria,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
    WatermarkLogitsProcessor,
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

# Processors that judge each row by itself and remember nothing of earlier calls.
ROW_WISE_PROCESSORS = (
    *HARMLESS_PROCESSORS,
    ExponentialDecayLengthPenalty,
    ForcedBOSTokenLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TopHLogitsWarper,
    WatermarkLogitsProcessor,
)

# Those among them that look at the scores alone, not at the prefix.
PREFIX_FREE_PROCESSORS = (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    MinPLogitsWarper,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

# Those of the latter that do not sort: asked about all nodes of a tree at once they cost little more than at one.
CHEAP_PROCESSORS = (
    EpsilonLogitsWarper,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    MinPLogitsWarper,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
)

# Criteria beside length and end of sequence that judge each row by itself and remember nothing of earlier calls.
ROW_WISE_CRITERIA = (MaxTimeCriteria, StopStringCriteria)


class TokenChooser:
    """
    The target's choice after a prefix: argmax or a sample of its processed distribution.

    Args:
        processors ([`~transformers.LogitsProcessorList`]): as prepared by `generate()`.
        do_sample (`bool`): sample instead of argmax.
        records_scores (`bool`): keep the processed scores of every call, for `output_scores`.
    """

    def __init__(self, processors: LogitsProcessorList, do_sample: bool, records_scores: bool = False):
        self.processors = processors
        self.do_sample = do_sample
        self.records_scores = records_scores
        self.scores: tuple[torch.Tensor, ...] = ()  # of the calls since they were taken last

    @property
    def can_choose_at_all_nodes(self) -> bool:
        """Whether a choice needs the logits alone and is cheap, so that it is made at all nodes of a tree at once."""
        return not self.records_scores and all(type(processor) in CHEAP_PROCESSORS for processor in self.processors)

    @property
    def needs_true_prefixes(self) -> bool:
        """Whether some processor must never be shown a prefix that is not part of the output."""
        return not all(type(processor) in HARMLESS_PROCESSORS for processor in self.processors)

    @property
    def is_row_wise(self) -> bool:
        """Whether the rows of a batch may be asked about one by one."""
        return all(type(processor) in ROW_WISE_PROCESSORS for processor in self.processors)

    def __call__(
        self, logits: torch.Tensor, prefix: torch.Tensor, starts: dict[int, int] | None = None
    ) -> torch.Tensor:
        """
        Args:
            logits (`torch.Tensor` of shape `(batch_size, vocab_size)`): the target's logits after the prefix.
            prefix (`torch.LongTensor` of shape `(batch_size, length)`): the tokens so far.
            starts (`dict[int, int]`, *optional*):
                Rows of the prompts that the batch consists of, and where each one's prefix begins. When not given,
                processors see the batch as it is.

        Returns:
            `torch.LongTensor` of shape `(batch_size,)`.
        """
        scores = logits.to(device=prefix.device, dtype=torch.float32, copy=True)
        if starts is None or all(type(processor) in PREFIX_FREE_PROCESSORS for processor in self.processors):
            scores = self.processors(cast("torch.LongTensor", prefix), scores)
        else:
            scores = self._process_each(prefix, scores, starts)
        if self.records_scores:
            self.scores += (scores,)
        if self.do_sample:
            return torch.multinomial(scores.softmax(dim=-1), num_samples=1).squeeze(1)
        return scores.argmax(dim=-1)

    def at_all_nodes(self, tokens: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """
        The target's choice after every node, samples independent of each other: see `can_choose_at_all_nodes`.

        Args:
            tokens (`torch.LongTensor` of shape `(batch_size, n_nodes)`): of the nodes.
            logits (`torch.Tensor` of shape `(batch_size, n_nodes, vocab_size)`): the target's logits after each node.

        Returns:
            `torch.LongTensor` of shape `(batch_size, n_nodes)`.
        """
        if not self.do_sample and not self.processors:
            return logits.argmax(dim=-1).to(tokens.device)
        return self(logits.flatten(0, 1), tokens.reshape(-1, 1)).view_as(tokens)

    def _process_each(self, prefix: torch.Tensor, scores: torch.Tensor, starts: dict[int, int]) -> torch.Tensor:
        rows = []
        for i, (row, start) in enumerate(starts.items()):
            processors = LogitsProcessorList(_of_row(processor, row) for processor in self.processors)
            rows.append(processors(cast("torch.LongTensor", prefix[i : i + 1, start:]), scores[i : i + 1]))
        return torch.cat(rows)

    def take_scores(self) -> tuple[torch.Tensor, ...]:
        """The scores of the calls since this was asked last, each of shape `(batch_size, vocab_size)`."""
        scores, self.scores = self.scores, ()
        return scores


def _of_row(processor: Any, row: int) -> Any:
    """The processor for one row of the prompts; a repetition penalty knows how far each row is padded."""
    if type(processor) is RepetitionPenaltyLogitsProcessor and isinstance(
        processor.prompt_ignore_length, torch.Tensor
    ):
        return RepetitionPenaltyLogitsProcessor(processor.penalty, processor.prompt_ignore_length[row : row + 1])
    return processor


class StopChecker:
    """
    Finds the tokens that end the answers of rows which are equally long.

    End-of-sequence tokens and the maximal length are compared on the host, where a cycle's tokens arrive anyway; every
    other criterion is asked once per emitted token, in order, the last token included.

    Args:
        criteria ([`~transformers.StoppingCriteriaList`]): as prepared by `generate()`.
        prompt_length (`int`): tokens of the prompt.
        num_rows (`int`, defaults to 1): rows of the batch that the criteria see.
    """

    def __init__(self, criteria: StoppingCriteriaList, prompt_length: int, num_rows: int = 1):
        self.max_length = min((c.max_length for c in criteria if type(c) is MaxLengthCriteria), default=math.inf)
        eos_criteria = [c for c in criteria if type(c) is EosTokenCriteria]
        self.eos_token_ids = {token for c in eos_criteria for token in c.eos_token_id.flatten().tolist()}
        self.others = StoppingCriteriaList(c for c in criteria if type(c) not in (MaxLengthCriteria, EosTokenCriteria))
        self.prompt_length = prompt_length
        self.num_checked = 0  # generated tokens that the criteria were asked about
        self.has_ended = [False] * num_rows

    @property
    def is_finished(self) -> bool:
        """Whether all rows have ended."""
        return all(self.has_ended)

    def ask(self, sequence: torch.Tensor, tokens: list[int], scores: tuple[torch.Tensor, ...] | None) -> bool:
        """
        Whether an answer ends with a sequence; to be asked once about every sequence of the answers, in order.

        Args:
            sequence (`torch.LongTensor` of shape `(num_rows, length)`): prompt and answer so far.
            tokens (`list[int]`): the last token of each row.
            scores (`tuple` of `torch.Tensor`, *optional*): scores of the tokens chosen so far, or more.

        Effects: advances `num_checked`, sets `has_ended`.
        """
        length, num_before = sequence.shape[1], sum(self.has_ended)
        self.num_checked = length - self.prompt_length
        ends = [token in self.eos_token_ids or length >= self.max_length for token in tokens]
        if len(self.others) > 0:
            scores = None if scores is None else scores[: self.num_checked]
            others_say = self.others(sequence, scores).reshape(len(tokens), -1).all(dim=1).tolist()
            ends = [end or other for end, other in zip(ends, others_say, strict=True)]
        self.has_ended = [ended or end for ended, end in zip(self.has_ended, ends, strict=True)]
        return sum(self.has_ended) > num_before

    def count_kept(
        self, sequence: torch.Tensor, new_tokens: list[list[int]], scores: tuple[torch.Tensor, ...] | None
    ) -> int:
        """
        How many of a cycle's tokens belong to the answers, up to the first one that ends one of them.

        Args:
            sequence (`torch.LongTensor` of shape `(num_rows, length)`): prompt and answer with all new tokens at its
                end.
            new_tokens (`list[list[int]]`): these tokens, for each row as many.
            scores (`tuple` of `torch.Tensor`, *optional*): scores of the tokens chosen so far, or more.
        """
        num_new = len(new_tokens[0])
        num_old = sequence.shape[1] - num_new - self.prompt_length
        for step in range(self.num_checked - num_old, num_new):  # the criteria may know the first ones already
            length = self.prompt_length + num_old + step + 1
            if self.is_finished or self.ask(sequence[:, :length], [row[step] for row in new_tokens], scores):
                break
        return self.num_checked - num_old


def are_row_wise(criteria: StoppingCriteriaList) -> bool:
    """
    Whether the criteria may be asked about the rows of a batch one by one, each of which ends on its own.

    Without an end-of-sequence criterion plain decoding goes on with a row that has ended, and adds its tokens, until
    all rows have.
    """
    others = [c for c in criteria if type(c) not in (MaxLengthCriteria, EosTokenCriteria)]
    return all(type(c) in ROW_WISE_CRITERIA for c in others) and (not others or pads_ended_rows(criteria))


def pads_ended_rows(criteria: StoppingCriteriaList) -> bool:
    """Whether plain decoding fills a row that has ended with the padding token while others go on."""
    return any(hasattr(criterion, "eos_token_id") for criterion in criteria)


__all__ = ["StopChecker", "TokenChooser", "are_row_wise", "pads_ended_rows"]
