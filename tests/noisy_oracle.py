"""
A draft for tests that knows the target's answer and errs now and then: its acceptance is neither zero nor full.

It runs like any draft (embedding, features, attention, cache), but what it predicts is looked up. After a token at a
position it proposes the answer's next token as its favourite, only among the runners-up, or not at all, as drawn
once for every position; everything else is noise, a function of position and token. So it is deterministic given the
prefix, as a draft must be, and its trees branch, err at the root, and hold right tokens on wrong branches.
"""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from transformers_griffin import GriffinCandidateGenerator, GriffinDraftModel
from transformers_griffin.modeling_griffin import GriffinDraftOutput


FAVOURITE, RUNNER_UP, MISSING = 9.0, 2.5, -9.0  # logit of the right token; noise is standard normal
SHARE_FAVOURITE, SHARE_RUNNER_UP = 0.45, 0.2
NUM_NOISE_ROWS = 1009


class NoisyOracleDraft(GriffinDraftModel):
    """See the module; `verified` collects what the draft was told about verified tokens, one entry per call."""

    def learn(self, answers: list[torch.Tensor], seed: int = 0) -> "NoisyOracleDraft":
        """
        Args:
            answers (`list[torch.Tensor]`): for each row of the batch prompt and answer of the target, 1-D, unpadded.
        """
        generator = torch.Generator().manual_seed(seed)
        vocab_size, margin = self.config.vocab_size, 64  # drafts reach behind the end of the answer
        longest = max(map(len, answers)) + margin
        known, right_logits = [], []
        for answer in answers:
            behind = torch.randint(vocab_size, (longest - len(answer),), generator=generator)
            luck = torch.rand(longest, generator=generator)
            is_runner_up = luck < SHARE_FAVOURITE + SHARE_RUNNER_UP
            known.append(torch.cat((answer.cpu(), behind)))
            right_logits.append(
                torch.where(is_runner_up, RUNNER_UP, MISSING).masked_fill(luck < SHARE_FAVOURITE, FAVOURITE)
            )
        self.answers, self.right_logits = (torch.stack(of_rows).to(self.device) for of_rows in (known, right_logits))
        self.noise = torch.randn(NUM_NOISE_ROWS, vocab_size, generator=generator).to(self.device)
        self.rows = torch.arange(len(answers), device=self.device)  # those still in the batch
        self.verified: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        return self

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        features: torch.FloatTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        **kwargs: Any,
    ) -> GriffinDraftOutput:
        output = super().forward(
            input_ids=input_ids, features=features, position_ids=position_ids, inputs_embeds=inputs_embeds, **kwargs
        )
        if input_ids is None:  # verified pairs come as embeddings, and their tokens are the answer's
            if not torch.compiler.is_compiling():
                self.verified.append((position_ids, inputs_embeds, features))
            input_ids = self._known(position_ids + 1)
        # What `compute_logits` needs to know travels in the first two channels.
        output.predict = torch.zeros_like(output.predict)
        output.predict[..., 0], output.predict[..., 1] = position_ids, input_ids
        return output

    def compute_logits(self, predict: torch.Tensor) -> torch.Tensor:
        position, token = predict[..., 0].long(), predict[..., 1].long()
        logits = self.noise[(31 * position + 17 * token) % NUM_NOISE_ROWS]
        right_token = self._known(position + 2).unsqueeze(-1)
        right_logit = torch.where(
            token == self._known(position + 1),
            self.right_logits[self.rows.unsqueeze(1), position + 2],
            logits.gather(-1, right_token).squeeze(-1),
        )
        return logits.scatter(-1, right_token, right_logit.unsqueeze(-1))

    def _known(self, positions: torch.Tensor) -> torch.Tensor:
        return self.answers[self.rows.unsqueeze(1), positions]


def noisy_oracle(
    target: PreTrainedModel, answers: torch.Tensor | list[torch.Tensor], shape: tuple[int, int, int]
) -> NoisyOracleDraft:
    """
    A draft that fits `target` and knows `answers`.

    Args:
        shape: `(num_assistant_tokens, draft_tree_depth, draft_tree_top_k)`.
    """
    draft = NoisyOracleDraft.from_target(target).learn(list(answers))
    num_tokens, depth, top_k = shape
    draft.generation_config.update(num_assistant_tokens=num_tokens, draft_tree_depth=depth, draft_tree_top_k=top_k)
    return draft


@pytest.fixture
def rows_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tells the draft which rows of its batch are left."""
    original = GriffinCandidateGenerator.keep_rows

    def keep_rows(self: GriffinCandidateGenerator, rows: list[int]) -> None:
        self.draft.rows = self.draft.rows[rows]
        original(self, rows)

    monkeypatch.setattr(GriffinCandidateGenerator, "keep_rows", keep_rows)
