"""Time that only models take: what measures it must find out exactly what was put in."""

import pytest
import torch
from transformers import LlamaForCausalLM, LlamaModel

from conftest import tiny_llama
from noisy_oracle import NoisyOracleDraft, noisy_oracle
from transformers_griffin import GriffinDraftModel


class FakeTime:
    """
    A clock that stands still but for forwards of a Llama target and passes of a draft.

    Args:
        target_forward: seconds of a forward, and of each token in it.
        draft_pass: the same for the draft.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        target_forward: tuple[float, float] = (10.0, 0.5),
        draft_pass: tuple[float, float] = (2.0, 0.1),
    ):
        self.now = 0.0
        monkeypatch.setattr("transformers_griffin.evaluation.stopwatch.perf_counter", lambda: self.now)
        monkeypatch.setattr(LlamaModel, "forward", self._taking(LlamaModel.forward, target_forward))
        monkeypatch.setattr(GriffinDraftModel, "forward", self._taking(GriffinDraftModel.forward, draft_pass))

    def _taking(self, forward, seconds):
        def taking(model, *args, **kwargs):
            read = next(kwargs[name] for name in ("input_ids", "inputs_embeds") if kwargs.get(name) is not None)
            self.now += seconds[0] + seconds[1] * read.shape[1]
            return forward(model, *args, **kwargs)

        return taking


def oracle_pair(answer_length: int = 60) -> tuple[LlamaForCausalLM, NoisyOracleDraft, torch.Tensor]:
    """A tiny target, a draft that knows its greedy answer with errors, and the prompt of six tokens."""
    target = tiny_llama()
    prompt = torch.tensor([[5, 9, 3, 17, 40, 8]])
    answer = target.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=answer_length, do_sample=False, pad_token_id=0
    )
    return target, noisy_oracle(target, answer, (8, 3, 2)), prompt
