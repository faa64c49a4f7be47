"""
Measures one setting: every method on the same prompts, interleaved.

All methods answer a prompt before the next prompt comes, in an order that rotates, so that a drift of the machine's
speed, or what one method leaves in its caches, hits all alike. Repeats repeat the same work, sampling included (the
seed depends on the prompt alone), so that medians over them mean something.

A chat of several turns goes on from what *this* method answered. Greedy answers of lossless methods are identical, so
their second questions are, too; sampled answers differ, and so do the prompts of later turns.

Next: `summary.py`.
"""

import zlib
from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from .answer_hits import MISALIGNED_TOP_K, answer_hits, chains
from .answers import TimedBatch, answer_batch, end_tokens
from .measurement_log import MeasurementLog
from .methods import PLAIN_COMPILED, Decoder
from .metrics import count_misaligned
from .plan import Plan
from .prompts import Prompt, encode_chat, pad_left
from .results import Measurement, Setting


logger = logging.get_logger(__name__)

WARMUP_TOKENS = 16
TURN_SLACK = 32  # tokens that a chat template puts around a message, at most


class Runner:
    """
    Measures one setting.

    Args:
        target ([`~transformers.PreTrainedModel`]): in the setting's dtype.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): the target's.
        decoders (`list[Decoder]`): those that cannot run in this setting are left out, see `not_run`.
        plan ([`Plan`]): what to measure.
        setting ([`Setting`]): one of the plan's.
        log ([`MeasurementLog`]): what it holds is not measured again.
        progress (`tqdm`): counts answers.
    """

    def __init__(
        self,
        target: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        decoders: list[Decoder],
        plan: Plan,
        setting: Setting,
        log: MeasurementLog,
        progress: Any,
    ):
        self.target, self.tokenizer, self.plan, self.setting = target, tokenizer, plan, setting
        self.log, self.progress = log, progress
        self.decoders = [decoder for decoder in decoders if fits(decoder, setting)]
        self.not_run = {  # method -> reason
            decoder.method.name: f"takes batches of {decoder.max_batch_size} only"
            for decoder in decoders
            if not fits(decoder, setting)
        }
        pad = tokenizer.pad_token_id
        self.pad_token_id: int = min(end_tokens(target), default=0) if pad is None else pad

    def run(self) -> None:
        """Warms up, then measures what the log does not hold."""
        batches = list(self.plan.batches(self.setting.batch_size))
        if all(key in self.log.by_key for batch in batches for key in self._keys(batch)):
            return
        self.max_length = self._longest_sequence()
        self._warm_up(batches[0])
        for index, batch in enumerate(batches):
            self.progress.set_description(f"{self.setting.name}, {batch[0].domain}")
            for repeat in range(self.plan.repeats):
                self._answer_chats(batch, repeat, rotation=index * self.plan.repeats + repeat)

    def _keys(self, batch: list[Prompt]) -> Iterator[tuple]:
        for turn, repeat in product(range(len(batch[0].turns)), range(self.plan.repeats)):
            for decoder in self.decoders:
                yield self._key(decoder, batch, turn, repeat)

    def _key(self, decoder: Decoder, batch: list[Prompt], turn: int, repeat: int) -> tuple:
        name = "+".join(prompt.id for prompt in batch)
        return self.setting.name, decoder.method.name, batch[0].domain, name, turn, repeat

    def _longest_sequence(self) -> int:
        """No chat grows longer than this many tokens."""
        return max(
            sum(len(encode_chat(self.tokenizer, [t])) + TURN_SLACK + self.plan.max_new_tokens for t in prompt.turns)
            for prompt in self.plan.prompts
        )

    def _warm_up(self, batch: list[Prompt]) -> None:
        """Lets every method load, allocate and compile; one whose compilation fails is left out."""
        rows = [encode_chat(self.tokenizer, prompt.turns[:1]) for prompt in batch]
        for decoder in list(self.decoders):
            self.progress.set_description(f"{self.setting.name}, warm-up of {decoder.method.name}")
            try:
                for _ in range(decoder.num_warmups):
                    self._answer(decoder, rows, min(WARMUP_TOKENS, self.plan.max_new_tokens))
            except Exception as error:
                if decoder.method.kind != PLAIN_COMPILED:
                    raise
                reason = f"does not compile here ({type(error).__name__})"
                logger.warning(f"{decoder.method.name} {reason} and is left out: {error}")
                self.not_run[decoder.method.name] = reason
                self.decoders.remove(decoder)

    def _answer_chats(self, batch: list[Prompt], repeat: int, rotation: int) -> None:
        """Every method answers all turns, each going on from its own answers."""
        answers: dict[str, list[list[str]]] = {d.method.name: [[] for _ in batch] for d in self.decoders}
        for turn in range(len(batch[0].turns)):
            first = (rotation + turn) % len(self.decoders)
            for decoder in self.decoders[first:] + self.decoders[:first]:
                said = answers[decoder.method.name]
                key = self._key(decoder, batch, turn, repeat)
                if key not in self.log.by_key:
                    rows = [
                        encode_chat(self.tokenizer, prompt.turns[: turn + 1], row)
                        for prompt, row in zip(batch, said, strict=True)
                    ]
                    self.log.append(self._measure(decoder, key, rows))
                    self.progress.update()
                texts = self.tokenizer.batch_decode(self.log.by_key[key].new_tokens, skip_special_tokens=True)
                for row, text in zip(said, texts, strict=True):
                    row.append(text)

    def _measure(self, decoder: Decoder, key: tuple, rows: list[list[int]]) -> Measurement:
        setting, method, domain, prompt, turn, repeat = key
        torch.manual_seed(zlib.crc32(f"{domain}/{prompt}/{turn}".encode()))
        answer = self._answer(decoder, rows, self.plan.max_new_tokens)
        return Measurement(
            setting=setting,
            method=method,
            domain=domain,
            prompt=prompt,
            turn=turn,
            repeat=repeat,
            num_prompt_tokens=max(map(len, rows)),
            misaligned_chains=self._misaligned_chains(decoder, rows, answer.new_tokens) if repeat == 0 else None,
            **vars(answer),
        )

    def _misaligned_chains(
        self, decoder: Decoder, rows: list[list[int]], new_tokens: list[list[int]]
    ) -> list[tuple[int, int]] | None:
        """By pass of a draft, chains that have left the answer, and all chains; outside of the timed run."""
        if decoder.draft is None or decoder.method.tree is None:
            return None
        num_passes = decoder.method.tree["draft_tree_depth"]
        found = []
        for prompt, answer in zip(rows, new_tokens, strict=True):
            sequence = torch.tensor([prompt + answer], device=self.target.device)
            hits = answer_hits(self.target, decoder.draft, sequence, len(prompt), num_passes, (MISALIGNED_TOP_K,))
            found += chains(hits[0])
        return count_misaligned(found)

    def _answer(self, decoder: Decoder, rows: list[list[int]], max_new_tokens: int) -> TimedBatch:
        input_ids, attention_mask = pad_left(rows, self.pad_token_id)
        return answer_batch(
            self.target,
            input_ids.to(self.target.device),
            attention_mask.to(self.target.device),
            max_new_tokens=max_new_tokens,
            pad_token_id=self.pad_token_id,
            **self.setting.generate_kwargs,
            **decoder.generate_kwargs(len(rows), self.max_length),
        )


def num_answers(plan: Plan, decoders: list[Decoder]) -> int:
    """Measurements of a whole run, if all methods run."""
    return sum(
        len(batch[0].turns) * plan.repeats * sum(fits(decoder, setting) for decoder in decoders)
        for setting in plan.settings
        for batch in plan.batches(setting.batch_size)
    )


def fits(decoder: Decoder, setting: Setting) -> bool:
    """Whether a method takes batches as large as the setting's."""
    return decoder.max_batch_size is None or setting.batch_size <= decoder.max_batch_size


__all__ = ["Runner", "fits", "num_answers"]
