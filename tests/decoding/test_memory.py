"""
What a draft costs in memory while an answer is generated, over plain decoding: the draft's weights, which are there
before, its own cache of the prompt, and what a tree needs.

All that PyTorch allocates is counted, inside of operations too, by the profiler's events of the CPU's allocator.
"""

import weakref
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from transformers_griffin import GriffinDraftModel
from transformers_griffin.decoding.candidate_generator import GriffinCandidateGenerator
from transformers_griffin.decoding.finished_rows import FinishedRows
from transformers_griffin.decoding.growing_layers import SPARE_SLOTS
from transformers_griffin.decoding.kv_cache import start_growing
from transformers_griffin.decoding.target_forward import TargetForward
from transformers_griffin.decoding.tree_settings import tokens_per_row


VOCAB_SIZE, HIDDEN_SIZE, NUM_LAYERS, KV_WIDTH = 3000, 64, 3, 32  # two of four heads, 16 wide
TREE = {"num_assistant_tokens": 15, "draft_tree_depth": 3, "draft_tree_top_k": 4}
NUM_NEW_TOKENS = 12
BYTES = 4  # of a number in fp32


@pytest.fixture(scope="module")
def pair() -> tuple[LlamaForCausalLM, GriffinDraftModel]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=2 * HIDDEN_SIZE,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        eos_token_id=None,
    )
    target = LlamaForCausalLM(config).eval()
    draft = GriffinDraftModel.from_target(target)
    draft.generation_config.update(**TREE)
    return target, draft


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most that is allocated at one time during `run`, on top of what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def test_peak_is_counted_inside_of_operations() -> None:
    """The sum of exponentials of 1000 numbers: their copy is alive, the result is 4 bytes."""
    numbers = torch.rand(1, 1000)
    assert 4000 <= peak_bytes(lambda: numbers.logsumexp(dim=-1)) < 5000
    assert 8000 <= peak_bytes(lambda: (numbers + 1) * 2) < 9000


def tree_bytes(draft: GriffinDraftModel, batch_size: int, do_sample: bool = False) -> int:
    """
    Room for the nodes of a tree, and as many spare ones, in every layer; and the tree's logits with one copy, or with
    what samples at all nodes take: scores, warped scores, probabilities and noise. All else that has the size of a
    tree (states in one layer, masks) is less than the logits of two nodes here.
    """
    num_nodes = 1 + tokens_per_row(draft.generation_config, VOCAB_SIZE, batch_size)
    entries = (num_nodes + SPARE_SLOTS) * 2 * KV_WIDTH * (NUM_LAYERS + 1)
    logits = (5 if do_sample else 2) * max(num_nodes, TREE["draft_tree_top_k"]) * VOCAB_SIZE
    return BYTES * batch_size * (entries + logits + 2 * VOCAB_SIZE)


def prompt_bytes(batch_size: int, prompt_length: int) -> int:
    """The draft's cache of one layer, and the features of which it is made."""
    return BYTES * batch_size * prompt_length * (2 * KV_WIDTH + HIDDEN_SIZE)


@pytest.mark.parametrize("prompt_length", [20, 300])
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("do_sample", [False, True], ids=["greedy", "sampled"])
def test_draft_adds_a_tree_to_the_peak_of_plain_decoding(
    pair: tuple[LlamaForCausalLM, GriffinDraftModel], do_sample: bool, batch_size: int, prompt_length: int
) -> None:
    target, draft = pair
    prompt = torch.randint(1, VOCAB_SIZE, (batch_size, prompt_length), generator=torch.Generator().manual_seed(0))
    kwargs = {"max_new_tokens": NUM_NEW_TOKENS, "do_sample": do_sample}
    plain = peak_bytes(lambda: target.generate(prompt, **kwargs))
    ours = peak_bytes(lambda: target.generate(prompt, assistant_model=draft, **kwargs))
    assert ours - plain <= tree_bytes(draft, batch_size, do_sample) + prompt_bytes(batch_size, prompt_length)


def test_recorded_logits_exist_once(pair: tuple[LlamaForCausalLM, GriffinDraftModel]) -> None:
    """Each row collects its own, and at the end they are put side by side: sixty steps of four rows."""
    target, draft = pair
    prompt = torch.randint(1, VOCAB_SIZE, (4, 20), generator=torch.Generator().manual_seed(0))
    kwargs = {"max_new_tokens": 60, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    plain = peak_bytes(lambda: target.generate(prompt, **kwargs))
    ours = peak_bytes(lambda: target.generate(prompt, assistant_model=draft, **kwargs))
    second_copy = BYTES * 4 * 60 * VOCAB_SIZE
    assert ours - plain <= tree_bytes(draft, 4) + prompt_bytes(4, 20) < second_copy / 2


def test_caches_are_not_copied_at_every_cycle(
    pair: tuple[LlamaForCausalLM, GriffinDraftModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fresh draft: 24 cycles of about one token. One store takes them all, after the prefill's own entries."""
    target, draft = pair
    stores: dict[str, list[int]] = {"target": [], "draft": []}
    keep, grow = TargetForward.keep, GriffinCandidateGenerator.grow

    def address(cache: Any) -> int:
        return cache.layers[0].keys.untyped_storage().data_ptr()

    def look_at_target(self: TargetForward, *args: Any) -> None:
        keep(self, *args)
        stores["target"].append(address(self.cache))

    def look_at_draft(self: GriffinCandidateGenerator, *args: Any) -> Any:
        pool = grow(self, *args)
        stores["draft"].append(address(self.cache))
        return pool

    monkeypatch.setattr(TargetForward, "keep", look_at_target)
    monkeypatch.setattr(GriffinCandidateGenerator, "grow", look_at_draft)
    target.generate(torch.ones(1, 20, dtype=torch.long), assistant_model=draft, max_new_tokens=25, do_sample=False)
    for addresses in stores.values():
        assert len(addresses) > 10
        assert sum(now != before for before, now in pairwise(addresses)) <= 1


def test_rows_are_put_back_without_a_second_cache() -> None:
    """
    One of two rows leaves the batch: while it is copied, one and a half caches exist. When it is put back no more do,
    with one layer of eight in the making.
    """
    num_layers, length = 8, 1000
    entries = torch.rand(2, 2, length, 16)

    def take_and_put_back() -> None:
        cache = DynamicCache()
        for layer_idx in range(num_layers):
            cache.update(entries, entries, layer_idx)
        start_growing(cache)
        finished = FinishedRows(cache)
        finished.take(0, row=0, length=length)
        cache.batch_select_indices(torch.tensor([1]))
        finished.put_back([1], [length])
        assert torch.equal(cache.layers[-1].keys, entries)

    bytes_of_layer = 2 * entries.numel() * BYTES
    assert peak_bytes(take_and_put_back) <= (1.5 * num_layers + 2) * bytes_of_layer


@pytest.mark.parametrize("batch_size", [1, 4])
def test_prompt_in_chunks_adds_the_drafts_cache_to_the_peak_and_two_chunks_of_features(
    pair: tuple[LlamaForCausalLM, GriffinDraftModel], batch_size: int
) -> None:
    """The prompt is long enough for the peak to be in the prefill, where the features of all of it would show."""
    target, draft = pair
    prompt_length, chunk_size = 1200, 50
    prompt = torch.randint(1, VOCAB_SIZE, (batch_size, prompt_length), generator=torch.Generator().manual_seed(0))
    kwargs = {"max_new_tokens": NUM_NEW_TOKENS, "do_sample": False, "prefill_chunk_size": chunk_size}
    plain = peak_bytes(lambda: target.generate(prompt, **kwargs))
    ours = peak_bytes(lambda: target.generate(prompt, assistant_model=draft, **kwargs))
    numbers_of_row = prompt_length * 2 * KV_WIDTH + 2 * chunk_size * HIDDEN_SIZE
    assert ours - plain <= BYTES * batch_size * numbers_of_row


@pytest.mark.parametrize("cache_implementation", ["dynamic", "static"])
@pytest.mark.parametrize("num_padded", [0, 12])
def test_draft_reads_no_more_of_a_prompt_at_a_time_than_the_target(
    pair: tuple[LlamaForCausalLM, GriffinDraftModel],
    num_padded: int,
    cache_implementation: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """33 tokens in chunks of 8; in the second case the other row begins with a chunk and a half of padding."""
    target, draft = pair
    num_read: list[int] = []
    forward = GriffinDraftModel.forward

    def look(self: GriffinDraftModel, **kwargs: Any) -> Any:
        num_read.append(kwargs["features"].shape[1])
        return forward(self, **kwargs)

    monkeypatch.setattr(GriffinDraftModel, "forward", look)
    prompt = torch.randint(1, VOCAB_SIZE, (2, 33), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(prompt)
    mask[1, :num_padded] = 0
    target.generate(
        prompt,
        attention_mask=mask,
        assistant_model=draft,
        max_new_tokens=NUM_NEW_TOKENS,
        do_sample=False,
        prefill_chunk_size=8,
        cache_implementation=cache_implementation,
    )
    assert num_read[:5] == [8, 8, 8, 8, 1]
    assert len(num_read) > 5
    assert max(num_read) == 8


@pytest.mark.parametrize(("chunk_size", "num_chunks"), [(None, 1), (5, 4)])
def test_features_of_the_prompt_are_freed_as_soon_as_the_draft_has_read_them(
    pair: tuple[LlamaForCausalLM, GriffinDraftModel],
    chunk_size: int | None,
    num_chunks: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While it reads a chunk the target holds those of the next; when a tree is verified all are gone."""
    target, draft = pair
    chunks: list[weakref.ref[torch.Tensor]] = []
    num_alive: list[int] = []  # of the chunks that the draft has begun to read
    read, verify = GriffinCandidateGenerator._read_verified, TargetForward.verify

    def count() -> None:
        num_alive.append(sum(chunk() is not None for chunk in chunks))

    def look_at_read(
        self: GriffinCandidateGenerator, tokens: torch.Tensor, features: torch.Tensor, *args: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        chunks.append(weakref.ref(features))
        count()
        return read(self, tokens, features, *args)

    def look_at_verify(self: TargetForward, *args: Any) -> tuple[Any, torch.Tensor]:
        count()
        return verify(self, *args)

    monkeypatch.setattr(GriffinCandidateGenerator, "_read_verified", look_at_read)
    monkeypatch.setattr(TargetForward, "verify", look_at_verify)
    prompt = torch.ones(1, 20, dtype=torch.long)
    target.generate(prompt, assistant_model=draft, max_new_tokens=2, do_sample=False, prefill_chunk_size=chunk_size)
    assert num_alive == [1] * num_chunks + [0]
