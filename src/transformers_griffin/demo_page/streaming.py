"""
Answers a prompt in a thread and tells, while it runs, what was generated and how.

`generate()` calls its streamer once for the prompt, once for the token of the prefill and once for each cycle (each
token, without a draft). What the streamer is given goes through a queue; the reader joins whatever has arrived.

Next: `rendering.py`.
"""

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from transformers.generation.streamers import BaseStreamer

from ..decoding.draft_tree import DraftTree
from ..evaluation import CycleTree, mean_acceptance_length, record_trees
from .pair import Pair, TreeSettings


PAUSE_SECONDS = 0.08  # between two states that the reader gets: what a page can show


@dataclass
class Progress:
    """An answer so far."""

    tokens: list[int] = field(default_factory=list)
    pieces: list[tuple[str, bool]] = field(default_factory=list)  # text, and whether the draft had guessed it
    acceptance_lengths: list[int] = field(default_factory=list)  # tokens emitted by each cycle; empty without a draft
    wall_seconds: float = 0.0  # from the call of `generate()` to the newest token, prefill included
    tree: CycleTree | None = None  # of the newest cycle

    @property
    def tokens_per_second(self) -> float:
        """New tokens over wall seconds."""
        return len(self.tokens) / self.wall_seconds if self.wall_seconds else float("nan")

    @property
    def tau(self) -> float:
        """Mean acceptance length; NaN before the first cycle."""
        return mean_acceptance_length([self.acceptance_lengths])


def stream_answer(
    pair: Pair, input_ids: torch.Tensor, tree: TreeSettings | None = None, **generate_kwargs: Any
) -> Iterator[Progress]:
    """
    Answers one prompt, and yields the answer so far whenever there is more of it.

    Waits until the pair answers nobody else. Closing the iterator ends the answer.

    Args:
        pair ([`Pair`]): what answers.
        input_ids (`torch.LongTensor` of shape `(1, length)`): the prompt.
        tree ([`TreeSettings`], *optional*): trees of the draft; plain decoding without it.
        generate_kwargs: further arguments of `generate()`.

    Yields:
        [`Progress`]: one object, which grows.

    Raises:
        ValueError: if the settings cannot form a tree, and whatever `generate()` raises.
    """
    streamer = _QueueStreamer()
    worker = threading.Thread(target=_answer, args=(pair, input_ids, tree, streamer, generate_kwargs), daemon=True)
    worker.start()
    progress, text = Progress(), DecodeStream(skip_special_tokens=True)
    try:
        is_running = True
        while is_running:
            arrived = [streamer.arrived.get()]
            while not streamer.arrived.empty():
                arrived.append(streamer.arrived.get())
            for news in arrived:
                if isinstance(news, _Emitted):
                    _extend(progress, news, text, pair.tokenizer)
                else:
                    is_running = False
                    if news is not None:
                        raise news
            yield progress
            if is_running:
                time.sleep(PAUSE_SECONDS)
    finally:
        streamer.stop.set()
        worker.join()


@dataclass(frozen=True)
class _Emitted:
    """Tokens that arrived together."""

    tokens: list[int]
    seconds: float  # since `generate()` was called
    tree: DraftTree | None  # that of their cycle


class _Stopped(Exception):
    """Nobody reads the answer any more."""


class _QueueStreamer(BaseStreamer):
    """Puts what `generate()` emits into a queue; after the last token comes None, or what went wrong."""

    def __init__(self) -> None:
        self.arrived: queue.SimpleQueue[_Emitted | Exception | None] = queue.SimpleQueue()
        self.stop = threading.Event()
        self.trees: list[DraftTree] = []
        self.started = 0.0
        self.is_prompt = True

    def start(self, trees: list[DraftTree]) -> None:
        self.trees, self.started = trees, time.perf_counter()

    def put(self, value: torch.Tensor) -> None:
        if self.stop.is_set():
            raise _Stopped
        if not self.is_prompt:
            seconds, tree = time.perf_counter() - self.started, self.trees[-1] if self.trees else None
            self.arrived.put(_Emitted(value.flatten().tolist(), seconds, tree))
        self.is_prompt = False

    def end(self) -> None:
        pass


def _answer(
    pair: Pair,
    input_ids: torch.Tensor,
    tree: TreeSettings | None,
    streamer: _QueueStreamer,
    generate_kwargs: dict[str, Any],
) -> None:
    failure: Exception | None = None
    try:
        with pair.lock, record_trees() as trees:
            if tree is not None:
                tree.give_to(pair.draft)
                generate_kwargs["assistant_model"] = pair.draft
            streamer.start(trees)
            pair.target.generate(  # type: ignore[operator]  # every causal language model has it
                input_ids, attention_mask=torch.ones_like(input_ids), streamer=streamer, **generate_kwargs
            )
    except _Stopped:
        pass
    except Exception as error:
        failure = error  # the reader raises it
    streamer.arrived.put(failure)


def _extend(progress: Progress, news: _Emitted, text: DecodeStream, tokenizer: Any) -> None:
    num_guessed = 0
    if news.tree is not None:
        progress.tree = CycleTree.from_emitted(news.tree, news.tokens)
        progress.acceptance_lengths.append(len(news.tokens))
        num_guessed = len(progress.tree.accepted) - 1
    for i, token in enumerate(news.tokens):
        piece = text.step(tokenizer.backend_tokenizer, token)
        if piece:  # None while a character is incomplete
            progress.pieces.append((piece, i < num_guessed))
    progress.tokens += news.tokens
    progress.wall_seconds = news.seconds


__all__ = ["Progress", "stream_answer"]
