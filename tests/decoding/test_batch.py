"""
A batch with a draft gives what plain decoding gives: every row its own answer, whatever its neighbours do.

The oracle is plain `generate()` of the same left-padded batch in fp32, which is itself checked against every row
alone. Drafts err in each row at other places, so that rows accept different numbers of tokens in almost every cycle.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, SLIDING_WINDOW, Architecture, make_prompt, make_target
from batches import PAD, PROMPT_LENGTHS, PlainBatch, decode_batch, decode_batch_plainly, pad_left, tau_of
from exactness import CHAIN, FLAT_TREE, PAPER_TREE, SMALL_TREE
from transformers.cache_utils import DynamicCache, DynamicSlidingWindowLayer

from noisy_oracle import rows_are_followed
from transformers_griffin import GriffinCandidateGenerator, GriffinDraftModel
from transformers_griffin.decoding import target_forward
from transformers_griffin.decoding.draft_tree import DraftTree
from transformers_griffin.decoding.kv_cache import keep_path
from transformers_griffin.decoding.target_forward import TargetForward


__all__ = ["rows_are_followed"]

BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}
LLAMA, WINDOW = BY_NAME["Llama"], BY_NAME["Mistral, window"]
TREE_ARCHITECTURES = [architecture for architecture in ARCHITECTURES if architecture.mode == "tree"]
each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
each_tree_architecture = pytest.mark.parametrize("architecture", TREE_ARCHITECTURES, ids=lambda a: a.name)

pytestmark = pytest.mark.usefixtures("rows_are_followed")


@each_architecture
def test_greedy_answers_of_a_batch_are_the_plain_ones(architecture: Architecture) -> None:
    """The second row ends at its 11th token; the others go on without it."""
    plain = decode_batch_plainly(architecture)
    eos = plain.ends_at(1, 10)
    ours, _ = decode_batch(plain, SMALL_TREE, eos_token_id=eos)
    assert ours.sequences.tolist() == plain.cut_behind(eos)
    if architecture.mode == "tree":
        assert 1.3 < tau_of(ours) < 4.8


# One of each kind of layers: full, window, alternating, sinks, shared caches, learned positions, experts.
FEW = [a for a in TREE_ARCHITECTURES if a.name.split(",")[0] in ("Llama", "Mistral", "Gemma 3", "GPT-OSS", "GPT-2")]
few_architectures = pytest.mark.parametrize("architecture", FEW, ids=lambda a: a.name)

each_windowed_architecture = pytest.mark.parametrize(
    "architecture", [WINDOW, BY_NAME["Gemma 3, alternating windows"]], ids=lambda a: a.name
)


def assert_static_cache_is_exact(architecture: Architecture) -> None:
    plain = decode_batch_plainly(architecture)
    eos = plain.ends_at(1, 10)
    ours, _ = decode_batch(plain, SMALL_TREE, eos_token_id=eos, cache_implementation="static")
    assert ours.sequences.tolist() == plain.cut_behind(eos)
    assert 1.3 < tau_of(ours) < 4.8


@few_architectures
def test_greedy_answers_of_a_batch_are_the_plain_ones_with_a_static_cache(architecture: Architecture) -> None:
    assert_static_cache_is_exact(architecture)


@pytest.mark.slow
@each_tree_architecture
def test_greedy_answers_of_a_batch_are_the_plain_ones_with_a_static_cache_everywhere(
    architecture: Architecture,
) -> None:
    assert_static_cache_is_exact(architecture)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [PAPER_TREE, CHAIN, FLAT_TREE], ids=str)
@each_architecture
def test_greedy_answers_of_a_batch_are_the_plain_ones_for_every_tree(
    architecture: Architecture, shape: tuple[int, int, int]
) -> None:
    """Longer prompts, of which the shortest is one token, and answers of 64 tokens."""
    plain = decode_batch_plainly(architecture, 64, (40, 1, 90, 64))
    ours, _ = decode_batch(plain, shape)
    assert ours.sequences.tolist() == plain.sequences.tolist()
    for cache_implementation in ("dynamic", "static") if architecture.mode == "tree" else ("dynamic",):
        eos = plain.ends_at(2, 20)
        ours, _ = decode_batch(plain, shape, eos_token_id=eos, cache_implementation=cache_implementation)
        assert ours.sequences.tolist() == plain.cut_behind(eos)


@few_architectures
def test_answer_of_a_row_does_not_depend_on_its_neighbours(architecture: Architecture) -> None:
    """Nor do its cycles: the draft, too, reads each row as if it were alone."""
    plain = decode_batch_plainly(architecture)
    ours, draft = decode_batch(plain, SMALL_TREE)
    assert len(set(map(tuple, ours.acceptance_lengths))) == 3
    for row in range(3):
        draft.rows = torch.tensor([row])
        num_pads = int((plain.mask[row] == 0).sum())
        alone = plain.target.generate(
            plain.prompts[row : row + 1, num_pads:],
            assistant_model=draft,
            do_sample=False,
            max_new_tokens=plain.num_new,
            return_dict_in_generate=True,
        )
        assert alone.sequences[0].tolist() == plain.without_padding(row).tolist()
        assert alone.acceptance_lengths[0] == ours.acceptance_lengths[row]


def test_draft_is_told_the_features_of_its_own_row_only() -> None:
    """After any number of cycles the draft's cache holds, row by row, what one pass over the row's pairs makes."""
    plain = decode_batch_plainly(LLAMA)
    caches: list[tuple[DynamicCache, list[int]]] = []
    original = GriffinCandidateGenerator._close_gaps

    def close_gaps(self: GriffinCandidateGenerator, num_new: list[int], num_read: int) -> None:
        original(self, num_new, num_read)
        caches.append((copy.deepcopy(self.cache), list(self.lengths or [])))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GriffinCandidateGenerator, "_close_gaps", close_gaps)
        _, draft = decode_batch(plain, SMALL_TREE)
    cache, lengths = caches[8]
    assert len(set(lengths)) == 3
    assert cache.get_seq_length() == max(lengths)
    with torch.no_grad():
        states = plain.target(
            plain.sequences,
            attention_mask=_whole_mask(plain),
            position_ids=_positions(plain),
            output_hidden_states=True,
        ).hidden_states[-1]
    for row, length in enumerate(lengths):
        num_pads = int((plain.mask[row] == 0).sum())
        alone = DynamicCache()
        with torch.no_grad():
            GriffinDraftModel.forward(
                draft,
                inputs_embeds=draft.embed_tokens(plain.sequences[row : row + 1, num_pads + 1 : length + 1]),
                features=states[row : row + 1, num_pads:length],
                past_key_values=alone,
            )
        found = cache.layers[0].keys[row : row + 1, :, num_pads:length]
        torch.testing.assert_close(found, alone.layers[0].keys, atol=1e-4, rtol=0)


def _whole_mask(plain: PlainBatch) -> torch.Tensor:
    return torch.nn.functional.pad(plain.mask, (0, plain.num_new), value=1)


def _positions(plain: PlainBatch) -> torch.Tensor:
    return (_whole_mask(plain).cumsum(dim=-1) - 1).clamp(min=0)


def test_rows_that_have_ended_leave_the_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the cache keeps its shape they stay, and nothing is counted for them any more."""
    plain = decode_batch_plainly(LLAMA)
    num_rows: list[int] = []
    original = TargetForward.verify

    def verify(self: TargetForward, tree: DraftTree, input_ids: torch.Tensor) -> Any:
        num_rows.append(len(tree.tokens))
        return original(self, tree, input_ids)

    monkeypatch.setattr(TargetForward, "verify", verify)
    ours, _ = decode_batch(plain, SMALL_TREE, eos_token_id=plain.ends_at(1, 10), return_dict_in_generate=False)
    assert ours.shape == plain.sequences.shape
    alone, _ = decode_batch(plain, SMALL_TREE, eos_token_id=plain.ends_at(1, 10))
    num_cycles = [len(cycles) for cycles in alone.acceptance_lengths]
    assert num_cycles[1] < min(num_cycles[0], num_cycles[2])
    expected = [sum(number > cycle for number in num_cycles) for cycle in range(max(num_cycles))]
    assert num_rows[: max(num_cycles)] == expected
    num_rows.clear()
    ours, _ = decode_batch(plain, SMALL_TREE, eos_token_id=plain.ends_at(1, 10), cache_implementation="static")
    assert ours.acceptance_lengths == alone.acceptance_lengths
    assert set(num_rows) == {3}


@each_windowed_architecture
def test_returned_cache_of_a_target_with_windows_is_the_plain_one(architecture: Architecture) -> None:
    """In the rows that go on to the end; a row that ended early has left the window long ago."""
    plain = decode_batch_plainly(architecture)
    eos = plain.ends_at(1, 10)
    settings = {"eos_token_id": eos, "max_new_tokens": plain.num_new, "do_sample": False}
    expected = plain.target.generate(
        plain.prompts, attention_mask=plain.mask, return_dict_in_generate=True, **settings
    ).past_key_values
    ours, _ = decode_batch(plain, SMALL_TREE, eos_token_id=eos)
    assert ours.past_key_values.get_seq_length() == expected.get_seq_length()
    longest = [row for row in (0, 2) if ours.sequences[row, -1] != PAD]
    assert longest
    for found_layer, layer in zip(ours.past_key_values.layers, expected.layers, strict=True):
        assert type(found_layer) is type(layer)
        assert found_layer.keys.shape == layer.keys.shape
        for row in longest:
            first = int((plain.mask[row] == 0).sum()) if layer.keys.shape[2] > SLIDING_WINDOW else 0
            torch.testing.assert_close(found_layer.keys[row, :, first:], layer.keys[row, :, first:], atol=1e-3, rtol=0)


# ---------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize(
    ("num_new", "cache_implementation"),
    [
        (150, "dynamic"),
        pytest.param(1000, "dynamic", marks=pytest.mark.slow),
        pytest.param(1000, "static", marks=pytest.mark.slow),
    ],
)
def test_caches_grow_with_the_longest_row_only(
    num_new: int, cache_implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Before every forward both caches, the target's and the draft's, are as long as the longest row; what the rows gain
    at most in each cycle adds up to a third more.
    """
    target = make_target(LLAMA)
    target.config.max_position_embeddings = 2048
    inputs = pad_left([make_prompt(length, seed) for seed, length in enumerate(PROMPT_LENGTHS)])
    settings = {"do_sample": False, "max_new_tokens": num_new}
    sequences = target.generate(**inputs, **settings)
    plain = PlainBatch(target, inputs["input_ids"], inputs["attention_mask"], sequences)
    lengths: list[tuple[int, int, int]] = []
    original = TargetForward.verify

    def verify(self: TargetForward, *args: Any) -> Any:
        (generator,) = generators
        lengths.append((int(self.cache.get_seq_length()), max(self.lengths), generator.cache.get_seq_length()))
        return original(self, *args)

    generators: list[GriffinCandidateGenerator] = []
    init = GriffinCandidateGenerator.__init__

    def remember(self: GriffinCandidateGenerator, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        generators.append(self)

    monkeypatch.setattr(TargetForward, "verify", verify)
    monkeypatch.setattr(GriffinCandidateGenerator, "__init__", remember)
    ours, _ = decode_batch(plain, SMALL_TREE, cache_implementation=cache_implementation)
    assert ours.sequences.tolist() == sequences.tolist()
    assert len(lengths) > 0.3 * num_new
    for in_cache, longest_row, in_draft in lengths:
        assert in_cache == longest_row == in_draft
    num_cycles = max(map(len, ours.acceptance_lengths))
    maxima = [max(row[i] for row in ours.acceptance_lengths if i < len(row)) for i in range(num_cycles)]
    assert sum(maxima) > 1.3 * num_new
    assert lengths[-1][0] < max(PROMPT_LENGTHS) + num_new


def test_windows_hold_what_the_shortest_row_sees() -> None:
    """A window of 12: the layer holds 11 tokens before the shortest row's next one, and all that longer rows have."""
    plain = decode_batch_plainly(WINDOW)
    held: list[tuple[int, list[int]]] = []
    original = TargetForward.verify

    def verify(self: TargetForward, *args: Any) -> Any:
        held.append((self.cache.layers[0].keys.shape[-2], self.lengths))
        return original(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TargetForward, "verify", verify)
        ours, _ = decode_batch(plain, SMALL_TREE)
    assert ours.sequences.tolist() == plain.sequences.tolist()
    assert all(num_held == 11 + max(lengths) - min(lengths) for num_held, lengths in held[1:])
    assert type(ours.past_key_values.layers[0]) is DynamicSlidingWindowLayer
    assert ours.past_key_values.layers[0].keys.shape[-2] == 11


# ---------------------------------------------------------------------------------------------------- sensitivity


def _gaps_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    original = target_forward.tree_attention_mask
    monkeypatch.setattr(target_forward, "tree_attention_mask", lambda *args: original(*args[:-1]))


def _paths_go_behind_the_longest_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_forward, "keep_path", lambda *args: keep_path(*args[:-1]))


def _positions_follow_the_longest_row(monkeypatch: pytest.MonkeyPatch) -> None:
    original = TargetForward._tree_inputs

    def tree_inputs(self: TargetForward, tree: DraftTree) -> dict[str, Any]:
        inputs = original(self, tree)
        return inputs | {"position_ids": inputs["position_ids"] + (0 if self.gaps is None else self.gaps)}

    monkeypatch.setattr(TargetForward, "_tree_inputs", tree_inputs)


@pytest.mark.parametrize(
    ("break_something", "architecture"),
    [
        (_gaps_are_seen, "Llama"),
        (_gaps_are_seen, "GPT-OSS, sinks, alternating windows"),
        (_paths_go_behind_the_longest_row, "Llama"),
        (_paths_go_behind_the_longest_row, "Mistral, window"),
        (_positions_follow_the_longest_row, "Llama"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_comparison_notices_when(
    break_something: Callable[[pytest.MonkeyPatch], None], architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = decode_batch_plainly(BY_NAME[architecture])
    break_something(monkeypatch)
    ours, _ = decode_batch(plain, SMALL_TREE)
    assert ours.sequences.tolist() != plain.sequences.tolist()
