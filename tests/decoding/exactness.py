"""What the exactness tests share: plain decoding as the oracle, a draft that errs now and then, and the verdict."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from architectures import Architecture, make_prompt, make_target
from transformers import PreTrainedModel
from transformers.generation import GenerateDecoderOnlyOutput

from noisy_oracle import NoisyOracleDraft, noisy_oracle
from transformers_griffin import GriffinGenerateOutput


# (num_assistant_tokens, draft_tree_depth, draft_tree_top_k)
PAPER_TREE = (59, 6, 10)
SMALL_TREE = (10, 4, 3)
CHAIN = (4, 4, 1)
FLAT_TREE = (8, 1, 8)
LARGEST_TREE = (254, 16, 32)

NUM_NEW_TOKENS = 64
GREEDY = {"do_sample": False, "max_new_tokens": NUM_NEW_TOKENS, "return_dict_in_generate": True}

# A forward over one token and one over sixty differ by 1e-6 to 1e-5 in fp32; ten times that leaves no room for doubt.
LEAST_MARGIN = 1e-4


@dataclass(frozen=True)
class Plain:
    """A target, a prompt and what plain decoding makes of it."""

    target: PreTrainedModel
    prompt: torch.Tensor  # (1, length)
    output: GenerateDecoderOnlyOutput


@cache
def decode_plainly(architecture: Architecture, prompt_length: int, attn_implementation: str | None = None) -> Plain:
    """
    Plain greedy decoding of a tiny target, once per test session.

    Its answer must be a hard question: clear about every token, and not the same few tokens again and again.
    """
    target = make_target(architecture, attn_implementation)
    prompt = make_prompt(prompt_length)
    output = target.generate(prompt, output_logits=True, **GREEDY)
    best, second = torch.cat(output.logits).topk(2, dim=-1).values.unbind(dim=-1)
    assert (best - second).min() > LEAST_MARGIN
    assert len(set(output.sequences[0, prompt_length:].tolist())) >= 8
    return Plain(target, prompt, output)


def decode_with_noisy_oracle(
    plain: Plain, shape: tuple[int, int, int], **kwargs: Any
) -> tuple[GriffinGenerateOutput, NoisyOracleDraft]:
    """The same prompt with a draft; `kwargs` go to `generate()`."""
    draft = noisy_oracle(plain.target, plain.output.sequences, shape)
    return plain.target.generate(plain.prompt, assistant_model=draft, **(GREEDY | kwargs)), draft


def assert_exact(plain: Plain, ours: GriffinGenerateOutput, depth: int) -> None:
    """Token for token the same, every token paid for by a cycle, and an acceptance that is neither zero nor full."""
    assert ours.sequences.tolist() == plain.output.sequences.tolist()
    (cycles,) = ours.acceptance_lengths
    assert sum(cycles) == NUM_NEW_TOKENS - 1
    tau = sum(cycles) / len(cycles)
    assert 1.2 <= tau <= depth + 1 - 0.2
