"""
The answers of a batch while they grow: what the target chose, row by row, until a criterion ends the row.

The rows are kept right-aligned, so that their newest tokens are side by side; a shorter row begins further right::

    prompt a b c d e        starts at 0
        prompt f g h        starts at 2

Rows grow in one of two ways. *Each on its own*: a row keeps all that it accepted, ends on its own, and leaves the
batch. *In step*: every row keeps as many tokens as the least lucky one, which asks for more cycles but shows
processors and criteria the batch of plain decoding, for those that must see it, and keeps caches even, for targets
that cannot bear gaps. Either way is lossless: how many tokens are kept depends on those tokens and on what was
drafted, never on a token that is dropped. A single prompt is in step with itself.

Next: `target_forward.py`.
"""

import torch
from transformers.generation.stopping_criteria import StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from .choice import StopChecker, TokenChooser, are_row_wise, pads_ended_rows
from .draft_tree import DraftTree
from .transfers import to_device
from .verification import Acceptance, accept_path, walk_path


class Answer:
    """
    The prompts with what was generated so far; grows by what the target chose until criteria end all rows.

    `rows` are those still in the batch of the forwards, `starts` where each of them begins in `sequence`.

    Args:
        prompts (`torch.LongTensor` of shape `(batch_size, length)`): padded on the left.
        chooser ([`TokenChooser`]): how the target chooses.
        criteria ([`~transformers.StoppingCriteriaList`]): as prepared by `generate()`.
        pad_token (`int`, *optional*): fills rows that end before others.
        bears_gaps (`bool`): whether the rows may grow each on its own, as far as the caches are concerned.
        streamer ([`~transformers.generation.streamers.BaseStreamer`], *optional*): as in `generate()`.

    Raises:
        ValueError: if rows may end before others and there is no padding token.
    """

    def __init__(
        self,
        prompts: torch.Tensor,
        chooser: TokenChooser,
        criteria: StoppingCriteriaList,
        pad_token: int | None = None,
        bears_gaps: bool = False,
        streamer: BaseStreamer | None = None,
    ):
        batch_size, prompt_length = prompts.shape
        self.prompts = self.sequence = prompts
        self.chooser = chooser
        self.streamer, self.num_streamed = streamer, 0
        self.rows, self.starts = list(range(batch_size)), [0] * batch_size
        self.tokens: list[list[int]] = [[] for _ in self.rows]  # of each row of the prompts
        self.has_ended = [False] * batch_size  # of each row of the prompts, before the tokens that come next
        self.old_scores: tuple[torch.Tensor, ...] = ()  # of all tokens, where criteria see all rows
        self.new_scores: tuple[torch.Tensor, ...] = ()  # of the tokens appended last, or more
        self.is_row_wise = batch_size > 1 and chooser.is_row_wise and are_row_wise(criteria)
        self.in_step = not (self.is_row_wise and bears_gaps)
        self.pads = batch_size > 1 and pads_ended_rows(criteria)
        if self.pads and pad_token is None:
            raise ValueError(
                "`pad_token_id` is None, but rows of a batch that end early are filled with it. Set "
                "`pad_token_id` in `generate()` or in the target's generation config."
            )
        self.pad_token = pad_token
        if self.is_row_wise:
            self.checkers = [StopChecker(criteria, prompt_length) for _ in self.rows]
        else:
            self.checkers = [StopChecker(criteria, prompt_length, batch_size)]

    # ------------------------------------------------------------------ who has ended

    @property
    def is_finished(self) -> bool:
        """Whether all rows have ended."""
        return all(checker.is_finished for checker in self.checkers)

    @property
    def staying(self) -> list[int]:
        """Those of `rows`, counted from 0, that go on; all of them where processors or criteria must see all."""
        return [i for i, row in enumerate(self.rows) if not (self.is_row_wise and self.has_ended[row])]

    def keep_rows(self, indices: list[int]) -> None:
        """Takes all other rows out of the batch; what they have generated stays."""
        self.rows, starts = [self.rows[i] for i in indices], [self.starts[i] for i in indices]
        first = min(starts)
        self.starts = [start - first for start in starts]
        self.sequence = self.sequence[to_device(indices, self.sequence.device), first:]

    def _is_padded(self, row: int) -> bool:
        return self.pads and self.has_ended[row]

    # ------------------------------------------------------------------ what the target chooses

    def accept(self, tree: DraftTree, logits: torch.Tensor, path_length: int) -> Acceptance:
        """The paths that the target chooses; processors and criteria see what plain decoding shows them."""
        if self.chooser.can_choose_at_all_nodes:
            return accept_path(tree, self.chooser.at_all_nodes(tree.tokens, logits), path_length)
        ask_host = self.chooser.needs_true_prefixes
        if self.is_row_wise:
            return walk_path(tree, logits, self.sequence, self.choose, path_length, ask_host)
        in_step = None
        if ask_host and len(self.rows) > 1:
            going_on = [[not self._is_padded(row)] for row in self.rows]
            in_step = to_device(going_on, self.sequence.device)
        return walk_path(tree, logits, self.sequence, self.choose, path_length, ask_host, self._ends_with, in_step)

    def choose(self, logits: torch.Tensor, prefix: torch.Tensor) -> torch.Tensor:
        """
        The target's next tokens, and padding for rows that have ended.

        Args:
            logits (`torch.Tensor` of shape `(len(rows), vocab_size)`): the target's logits after the prefix.
            prefix (`torch.LongTensor` of shape `(len(rows), length)`): right-aligned as `sequence`.

        Returns:
            `torch.LongTensor` of shape `(len(rows),)`.
        """
        starts = dict(zip(self.rows, self.starts, strict=True)) if self.is_row_wise else None
        return self._padded(self.chooser(logits, prefix, starts).unsqueeze(1)).squeeze(1)

    def _padded(self, tokens: torch.Tensor) -> torch.Tensor:
        """`(len(rows), new)`: tokens, or padding in rows that have ended."""
        is_padded = [[self._is_padded(row)] for row in self.rows]
        if not any(ended for (ended,) in is_padded):
            return tokens
        return tokens.masked_fill(to_device(is_padded, tokens.device), self.pad_token or 0)

    def _ends_with(self, sequence: torch.Tensor) -> bool:
        return self.checkers[0].ask(sequence, sequence[:, -1].tolist(), self._scores_with(self.chooser.scores))

    def _scores_with(self, new_scores: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        return self.old_scores + new_scores if self.chooser.records_scores else None

    # ------------------------------------------------------------------ growing

    def append(self, tokens: torch.Tensor, lengths: torch.Tensor | None = None) -> list[int]:
        """
        Appends what belongs to the answers. Here, and only here, the host waits for the device.

        Args:
            tokens (`torch.LongTensor` of shape `(len(rows), path)`): what the target chose.
            lengths (`torch.LongTensor` of shape `(len(rows),)`, *optional*): how many of them count; all when not
                given.

        Returns:
            how many tokens each row has got, 0 for rows that had ended.
        """
        on_host = (tokens if lengths is None else torch.cat((tokens, lengths.unsqueeze(1)), dim=1)).tolist()
        new_tokens = on_host if lengths is None else [new[: new[-1]] for new in on_host]
        if self.in_step:
            steps = min(len(new) for row, new in zip(self.rows, new_tokens, strict=True) if not self._is_padded(row))
            # A row that has ended may have left its path earlier; its tokens are padding in any case.
            new_tokens, tokens = [row[:steps] for row in on_host], tokens[:, :steps]
        tokens, self.new_scores = tokens.to(self.sequence.device), self.chooser.take_scores()
        num_kept = self._append_each(tokens, new_tokens) if self.is_row_wise else self._append_all(tokens, new_tokens)
        for row, new, kept in zip(self.rows, new_tokens, num_kept, strict=True):
            self.tokens[row].extend(new[:kept])
        self.has_ended = [ended for checker in self.checkers for ended in checker.has_ended]
        if self.streamer is not None:
            self._stream(self.streamer)
        return num_kept

    def _append_all(self, tokens: torch.Tensor, new_tokens: list[list[int]]) -> list[int]:
        """The same number of tokens for every row, up to the first that ends one."""
        (checker,), is_padded = self.checkers, [self._is_padded(row) for row in self.rows]
        longest = torch.cat((self.sequence, self._padded(tokens)), dim=1)
        kept = checker.count_kept(longest, new_tokens, self._scores_with(self.new_scores))
        self.sequence = longest[:, : self.sequence.shape[1] + kept]
        self.old_scores += self.new_scores[:kept]
        return [0 if padded else kept for padded in is_padded]

    def _append_each(self, tokens: torch.Tensor, new_tokens: list[list[int]]) -> list[int]:
        """To each row its own tokens, up to the one that ends it."""
        width = self.sequence.shape[1]
        longest = torch.cat((self.sequence, tokens), dim=1)
        num_kept = []
        for i, (row, new) in enumerate(zip(self.rows, new_tokens, strict=True)):
            checker, with_new = self.checkers[row], longest[i : i + 1, self.starts[i] : width + len(new)]
            num_kept.append(0 if self.has_ended[row] else checker.count_kept(with_new, [new], None))
        lengths = [width - start + kept for start, kept in zip(self.starts, num_kept, strict=True)]
        self.starts = [max(lengths) - length for length in lengths]
        ends = to_device([[width + kept] for kept in num_kept], longest.device)
        columns = ends - torch.arange(max(lengths), 0, -1, device=longest.device)
        self.sequence = longest.gather(1, columns.clamp(min=0))
        return num_kept

    def _stream(self, streamer: BaseStreamer) -> None:
        """One prompt: a cycle's tokens together. Several: as plain decoding does, a token of every row at a time."""
        if len(self.tokens) == 1:
            streamer.put(torch.tensor([self.tokens[0][self.num_streamed :]]))
            self.num_streamed = len(self.tokens[0])
            return
        going_on = [len(tokens) for row, tokens in enumerate(self.tokens) if not self.has_ended[row]]
        until = min(going_on, default=max(map(len, self.tokens)))
        for step in range(self.num_streamed, until):
            streamer.put(torch.tensor([t[step] if step < len(t) else self.pad_token for t in self.tokens]))
        self.num_streamed = max(self.num_streamed, until)

    def last_tokens(self) -> torch.Tensor:
        """The last token of every answer, of shape `(batch_size, 1)`."""
        return torch.tensor([[row[-1]] for row in self.tokens], device=self.prompts.device)

    def sequences(self) -> torch.Tensor:
        """Prompts and answers, of shape `(batch_size, total_length)`; shorter ones are padded on the right."""
        longest = max(map(len, self.tokens))
        tokens = [row + [self.pad_token or 0] * (longest - len(row)) for row in self.tokens]
        new = torch.tensor(tokens, dtype=self.prompts.dtype, device=self.prompts.device)
        return torch.cat((self.prompts, new), dim=1)


__all__ = ["Answer"]
