"""A target whose answers, cycles and costs are known, and the clock that it moves."""

from types import SimpleNamespace

import torch

from transformers_griffin.decoding.candidate_generator import GriffinCandidateGenerator
from transformers_griffin.decoding.target_forward import TargetForward
from transformers_griffin.evaluation import stopwatch
from transformers_griffin.evaluation.methods import Decoder
from transformers_griffin.evaluation.results import Method


PREFILL, STEP = 2.0, 1.0  # seconds of the prompt, and of a token in plain decoding
DRAFT, VERIFY, HOST = 0.5, 0.75, 0.25  # seconds of a cycle's parts
PLAIN = Method("plain", "plain", "one token a step")
GRIFFIN = Method("griffin", "draft", "known cycles", tree={"draft_tree_depth": 3})


class FakeClock:
    """Stands still unless somebody works; `speed` slows all work down."""

    def __init__(self, monkeypatch):
        self.now, self.speed = 0.0, 1.0
        monkeypatch.setattr(stopwatch, "perf_counter", lambda: self.now)
        monkeypatch.setattr(GriffinCandidateGenerator, "draft_tree", lambda *_: self.work(DRAFT))
        monkeypatch.setattr(TargetForward, "verify", lambda *_: self.work(VERIFY))

    def work(self, seconds: float) -> None:
        self.now += seconds * self.speed


class FakeTarget(torch.nn.Module):
    """
    Answers every prompt with the tokens 1, 2, 3, ...; all but plain decoding in cycles.

    Args:
        clock (`FakeClock`): moved by what it does.
        cycles (`dict[str, list[int]]`): of the answer to each prompt; an answer has one token more than its cycles.
    """

    device, dtype, name_or_path = torch.device("cpu"), torch.float32, "fake"
    generation_config = SimpleNamespace(eos_token_id=None)

    def __init__(self, clock: FakeClock, cycles: dict[str, list[int]]):
        super().__init__()
        self.base_model = torch.nn.Identity()
        self.clock, self.cycles = clock, cycles
        self.calls: list[tuple[str, str]] = []  # (method, prompt), warm-ups included
        self.wrong_tokens: dict[str, int] = {}  # method -> added to its last token
        self.fail_at: int | None = None  # the call in which Ctrl-C is pressed

    def generate(self, input_ids, attention_mask, method, max_new_tokens, **_):
        prompt = "".join(map(chr, input_ids[0].tolist()))
        self.calls.append((method, prompt))
        if len(self.calls) == self.fail_at:
            raise KeyboardInterrupt
        self.clock.work(PREFILL)
        self.base_model(input_ids)
        cycles = self.cycles[prompt.split("\n")[-1]]
        tokens = torch.arange(1, 2 + sum(cycles))
        tokens[-1] += self.wrong_tokens.get(method, 0)
        if method == "plain":
            self.clock.work(STEP * sum(cycles))
        else:
            for _ in cycles:
                GriffinCandidateGenerator.draft_tree(None)
                TargetForward.verify(None)
                self.clock.work(HOST)
        output = SimpleNamespace(sequences=torch.cat((input_ids, tokens.expand(len(input_ids), -1)), dim=1))
        if method != "plain":
            output.acceptance_lengths = [cycles] * len(input_ids)
        return output


class FakeTokenizer:
    """Letters are their own code points; an answer reads as its number of tokens."""

    chat_template, pad_token_id = None, 0

    def __call__(self, text):
        return SimpleNamespace(input_ids=[ord(letter) for letter in text])

    def batch_decode(self, rows, skip_special_tokens):
        return [str(len(row)) for row in rows]


def fake_decoders(*names: str) -> list[Decoder]:
    """Plain decoding and the draft "griffin", or the named methods that decode like it."""
    methods = [PLAIN, *(Method(name, "draft", "", tree=GRIFFIN.tree) for name in names or ("griffin",))]
    return [Decoder(method, lambda *_, name=method.name: {"method": name}) for method in methods]
