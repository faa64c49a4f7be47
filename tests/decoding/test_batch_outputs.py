"""
What comes back with the answers of a ragged batch, and what goes in beside its tokens, as in plain decoding.

Rows of different lengths, padded on the left; one ends early. Random targets with and without windows, and a draft
that knows the answers.
"""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from architectures import GPT, Architecture, make_target
from batches import PAD, PlainBatch, decode_batch, decode_batch_plainly
from exactness import SMALL_TREE
from test_batch import BY_NAME, LLAMA, WINDOW
from test_outputs import EVERYTHING, TOLERANCE
from transformers import DynamicCache, StaticCache

from noisy_oracle import noisy_oracle, rows_are_followed


__all__ = ["rows_are_followed"]

GPT_OSS = BY_NAME["GPT-OSS, sinks, alternating windows"]
each_kind_of_layers = pytest.mark.parametrize(
    "architecture", [LLAMA, WINDOW, pytest.param(GPT_OSS, marks=pytest.mark.slow)], ids=lambda a: a.name
)
each_cache = pytest.mark.parametrize("cache_implementation", ["dynamic", "static"])

pytestmark = pytest.mark.usefixtures("rows_are_followed")


def num_pads(plain: PlainBatch) -> list[int]:
    return (plain.mask == 0).sum(dim=1).tolist()


def num_new(plain: PlainBatch, eos: int) -> list[int]:
    """Tokens of each row, its end of sequence included."""
    rows = plain.sequences[:, plain.prompts.shape[1] :].tolist()
    return [row.index(eos) + 1 if eos in row else len(row) for row in rows]


# ---------------------------------------------------------------------- outputs


@cache
def decode_eagerly(architecture: Architecture) -> PlainBatch:
    """Eager attention is the one that returns attention weights."""
    return replace(decode_batch_plainly(architecture), target=make_target(architecture, "eager"))


@each_cache
@each_kind_of_layers
def test_every_output_of_a_ragged_batch_is_the_plain_one(
    architecture: Architecture, cache_implementation: str
) -> None:
    """In every row from its first token to its last; what padding attends to is nobody's business."""
    plain = decode_eagerly(architecture)
    eos = plain.ends_at(1, 10)
    settings = {"eos_token_id": eos, "cache_implementation": cache_implementation, "return_dict_in_generate": True}
    expected = plain.target.generate(
        plain.prompts,
        attention_mask=plain.mask,
        do_sample=False,
        max_new_tokens=plain.num_new,
        **settings,
        **EVERYTHING,
    )
    ours, _ = decode_batch(plain, SMALL_TREE, **settings, **EVERYTHING)
    assert ours.sequences.tolist() == expected.sequences.tolist()
    counts = num_new(plain, eos)
    assert min(counts) < max(counts)
    for name in ("scores", "logits", "hidden_states", "attentions"):
        found_steps, steps = getattr(ours, name), getattr(expected, name)
        assert len(found_steps) == len(steps) == max(counts)
        for step, (found, entry) in enumerate(zip(found_steps, steps, strict=True)):
            assert_same_rows(found, entry, [step < count for count in counts], num_pads(plain) if step == 0 else None)


def assert_same_rows(found: Any, expected: Any, is_going_on: list[bool], pads: list[int] | None) -> None:
    """Equal in the rows that go on, for real tokens as queries, and zero in those that have ended."""
    if isinstance(expected, tuple):
        for found_layer, layer in zip(found, expected, strict=True):
            assert_same_rows(found_layer, layer, is_going_on, pads)
        return
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    for row, (found_row, expected_row) in enumerate(zip(found, expected, strict=True)):
        if not is_going_on[row]:
            assert not found_row.any()
        elif pads is None or expected.dim() == 2:
            torch.testing.assert_close(found_row, expected_row, **TOLERANCE)
        else:
            torch.testing.assert_close(found_row[..., pads[row] :, :], expected_row[..., pads[row] :, :], **TOLERANCE)


# ---------------------------------------------------------------------- chats


def make_cache(plain: PlainBatch, kind: str) -> DynamicCache | StaticCache | None:
    config = plain.target.config
    return {
        "windows": lambda: DynamicCache(config=config),
        "no windows": DynamicCache,
        "static": lambda: StaticCache(config, max_cache_len=160),
    }[kind]()


def ends_late(plain: PlainBatch, count: int) -> tuple[int, torch.Tensor]:
    """An end of sequence that ends some row 1 to 8 tokens before the limit of `count`, and what it leaves of each."""
    for eos in plain.sequences[:, -plain.num_new :].unique().tolist():
        ended = torch.tensor(num_new(plain, eos)).clamp(max=count)
        if count - 8 <= ended.min() < ended.max() == count:
            return eos, ended
    raise AssertionError("no token is that late")


@pytest.mark.parametrize(
    ("with_draft", "only_new"),
    [((True, False), False), ((False, True), True), ((True, True), False)],
    ids=["draft first", "plain first, then only what is new", "draft twice"],
)
@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        (WINDOW, "windows"),
        pytest.param(WINDOW, "no windows", marks=pytest.mark.slow),
        pytest.param(GPT_OSS, "windows", marks=pytest.mark.slow),
        pytest.param(LLAMA, "no windows", marks=pytest.mark.slow),
        pytest.param(LLAMA, "static", marks=pytest.mark.slow),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_a_chat_of_a_batch_may_go_on_with_and_without_a_draft(
    architecture: Architecture, kind: str, with_draft: tuple[bool, bool], only_new: bool
) -> None:
    """A row ended up to 8 tokens before the last one, within the window of 12; what is behind its end is masked."""
    plain = decode_batch_plainly(architecture)
    length, count = plain.prompts.shape[1], 14
    eos, ended = ends_late(plain, count)
    answers = []
    for assists in ((False, False), with_draft):
        cache = make_cache(plain, kind)
        draft = noisy_oracle(plain.target, [plain.without_padding(row) for row in range(3)], SMALL_TREE)
        said = plain.target.generate(
            plain.prompts,
            attention_mask=plain.mask,
            past_key_values=cache,
            eos_token_id=eos,
            do_sample=False,
            max_new_tokens=count,
            assistant_model=draft if assists[0] else None,
        )
        turn = torch.tensor([[7, 8, 9], [9, 8, 7], [8, 7, 9]])
        is_answer = (torch.arange(count) < ended.unsqueeze(1)).long()
        mask = torch.cat((plain.mask, is_answer, torch.ones_like(turn)), dim=1)
        said = torch.cat((said, turn), dim=1)
        draft.rows = torch.arange(3)
        cached = int(cache.get_seq_length())
        assert cached == length + count - 1
        again = plain.target.generate(
            said[:, cached:] if only_new else said,
            attention_mask=mask,
            past_key_values=cache,
            do_sample=False,
            max_new_tokens=24,
            assistant_model=draft if assists[1] else None,
        )
        answers.append(again[:, -24:].tolist())
    assert answers[1] == answers[0]


# ---------------------------------------------------------------------- what goes in beside tokens


@pytest.mark.filterwarnings("ignore:Passing `.*` with `inputs_embeds`")  # which is what is tested
@each_cache
def test_prompts_given_as_embeddings_are_penalised_for_what_they_say(cache_implementation: str) -> None:
    """Processors see the new tokens alone, of which there are none at first; rows end on their own."""
    plain = decode_batch_plainly(LLAMA)
    settings = {
        "inputs_embeds": plain.target.get_input_embeddings()(plain.prompts).detach(),
        "attention_mask": plain.mask,
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 3,
        "do_sample": False,
        "max_new_tokens": 24,
        "cache_implementation": cache_implementation,
    }
    expected = plain.target.generate(**settings)
    eos = int(expected[1, 8])
    draft = noisy_oracle(plain.target, [plain.without_padding(row) for row in range(3)], SMALL_TREE)
    expected = plain.target.generate(**settings, eos_token_id=eos)
    ours = plain.target.generate(**settings, eos_token_id=eos, assistant_model=draft)
    assert expected[1, -1] == PAD
    assert ours.tolist() == expected.tolist()


def test_embeddings_and_tokens_of_a_batch_given_together() -> None:
    plain = decode_batch_plainly(LLAMA)
    embeds = plain.target.get_input_embeddings()(plain.prompts).detach()
    eos = plain.ends_at(1, 10)
    ours, _ = decode_batch(plain, SMALL_TREE, inputs_embeds=embeds, eos_token_id=eos)
    assert ours.sequences.tolist() == plain.cut_behind(eos)


def test_token_types_of_every_row_go_on_when_others_end() -> None:
    """GPT-2 adds an embedding of the token type; the rows' last types differ."""
    plain = decode_batch_plainly(Architecture("GPT-2", "gpt2", GPT))
    types = torch.tensor([[3], [9], [77]]).expand_as(plain.prompts)
    settings = {"token_type_ids": types, "do_sample": False, "max_new_tokens": plain.num_new}
    sequences = plain.target.generate(plain.prompts, attention_mask=plain.mask, **settings)
    assert (sequences != plain.sequences).any(dim=1).all()
    typed = replace(plain, sequences=sequences)
    eos = typed.ends_at(1, 6)
    ours, _ = decode_batch(typed, SMALL_TREE, token_type_ids=types, eos_token_id=eos)
    assert ours.sequences.tolist() == typed.cut_behind(eos)


def test_users_positions_are_kept_for_every_row() -> None:
    """The tokens of the third prompt are three positions apart, those of its answer one."""
    plain = decode_batch_plainly(LLAMA)
    positions = (plain.mask.cumsum(dim=1) - 1).clamp(min=0) * torch.tensor([[1], [1], [3]])
    settings = {"position_ids": positions, "do_sample": False, "max_new_tokens": plain.num_new}
    sequences = plain.target.generate(plain.prompts, attention_mask=plain.mask, **settings)
    assert (sequences != plain.sequences).any(dim=1).tolist() == [False, False, True]
    spread = replace(plain, sequences=sequences)
    eos = spread.ends_at(1, 6)
    ours, _ = decode_batch(spread, SMALL_TREE, position_ids=positions, eos_token_id=eos)
    assert ours.sequences.tolist() == spread.cut_behind(eos)
