"""
What the tests of batches share: prompts of different lengths, plain decoding of the batch as the oracle, and a draft
that knows the answer of each row.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from architectures import Architecture, make_prompt, make_target
from exactness import LEAST_MARGIN
from transformers import PreTrainedModel

from noisy_oracle import NoisyOracleDraft, noisy_oracle
from transformers_griffin import GriffinGenerateOutput


PROMPT_LENGTHS = (13, 20, 16)
PAD = 0


@dataclass(frozen=True)
class PlainBatch:
    """A target, a left-padded batch and what plain greedy decoding makes of it."""

    target: PreTrainedModel
    prompts: torch.Tensor  # (batch_size, length)
    mask: torch.Tensor  # (batch_size, length)
    sequences: torch.Tensor  # (batch_size, total_length)

    @property
    def num_new(self) -> int:
        return self.sequences.shape[1] - self.prompts.shape[1]

    def without_padding(self, row: int) -> torch.Tensor:
        """Prompt and answer of a row, of shape `(length,)`."""
        return self.sequences[row, int((self.mask[row] == 0).sum()) :]

    def ends_at(self, row: int, step: int) -> int:
        """The token that the row has got `step` steps after the prompt, for an end of sequence."""
        return int(self.sequences[row, self.prompts.shape[1] + step])

    def cut_behind(self, eos_token: int) -> list[list[int]]:
        """What plain decoding returns with an end of sequence: cut rows, filled up to the longest, worked out here."""
        rows = [row.tolist() for row in self.sequences[:, self.prompts.shape[1] :]]
        cut = [row[: row.index(eos_token) + 1] if eos_token in row else row for row in rows]
        longest = max(map(len, cut))
        return [
            [*prompt, *row, *[PAD] * (longest - len(row))]
            for prompt, row in zip(self.prompts.tolist(), cut, strict=True)
        ]


def pad_left(prompts: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Prompts of shape `(1, length)` as one batch with its mask."""
    longest = max(prompt.shape[1] for prompt in prompts)
    padding = [(longest - prompt.shape[1], 0) for prompt in prompts]
    pad = torch.nn.functional.pad
    return {
        "input_ids": torch.cat([pad(p, n, value=PAD) for p, n in zip(prompts, padding, strict=True)]),
        "attention_mask": torch.cat([pad(torch.ones_like(p), n) for p, n in zip(prompts, padding, strict=True)]),
    }


@cache
def decode_batch_plainly(
    architecture: Architecture, num_new: int = 32, lengths: tuple[int, ...] = PROMPT_LENGTHS
) -> PlainBatch:
    """Plain greedy decoding, once per test session; clear about every token, and the same as for each row alone."""
    target = make_target(architecture)
    prompts = [make_prompt(length, seed) for seed, length in enumerate(lengths, start=10)]
    inputs = pad_left(prompts)
    settings = {"do_sample": False, "max_new_tokens": num_new, "return_dict_in_generate": True, "output_logits": True}
    output = target.generate(**inputs, **settings)
    best, second = torch.cat(output.logits).topk(2, dim=-1).values.unbind(dim=-1)
    assert (best - second).min() > LEAST_MARGIN
    for prompt, row in zip(prompts, output.sequences, strict=True):
        alone = target.generate(prompt, **settings).sequences
        assert alone[0].tolist() == row[-alone.shape[1] :].tolist()
    return PlainBatch(target, inputs["input_ids"], inputs["attention_mask"], output.sequences)


def decode_batch(
    plain: PlainBatch, shape: tuple[int, int, int], **kwargs: Any
) -> tuple[GriffinGenerateOutput, NoisyOracleDraft]:
    """The same batch with a draft; `kwargs` go to `generate()`. Needs the fixture `rows_are_followed`."""
    answers = [plain.without_padding(row) for row in range(len(plain.prompts))]
    draft = noisy_oracle(plain.target, answers, shape)
    draft.generation_config.draft_tree_batch_size = len(answers)
    settings = {"do_sample": False, "max_new_tokens": plain.num_new, "return_dict_in_generate": True}
    output = plain.target.generate(
        plain.prompts, attention_mask=plain.mask, assistant_model=draft, **(settings | kwargs)
    )
    return output, draft


def tau_of(output: GriffinGenerateOutput) -> float:
    """Tokens per cycle and row."""
    cycles = [kept for row in output.acceptance_lengths for kept in row]
    return sum(cycles) / len(cycles)
