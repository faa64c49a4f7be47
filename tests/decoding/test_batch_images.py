"""
Batches of left-padded prompts with images: every row gets its plain answer, also with positions in three dimensions.

The rows' images differ in number and size, and one row has none. With M-RoPE the position of a row's next token is
then not its length, and differs from row to row.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from batches import PlainBatch, decode_batch, tau_of
from exactness import LEAST_MARGIN, SMALL_TREE
from multimodal import GEMMA3, IMAGE_TARGETS, LARGE, QWEN2_VL, SQUARE, WIDE, ImageTarget
from test_processors import CountingProcessor
from transformers import LogitsProcessorList

from noisy_oracle import noisy_oracle, rows_are_followed
from transformers_griffin.decoding.target_forward import TargetForward


__all__ = ["rows_are_followed"]

PROMPTS = [[5, 6, SQUARE, 8, 9, 10], [11, LARGE, 12, WIDE, 13, 14], [21, 22, 23]]
NUM_NEW = 24

pytestmark = pytest.mark.usefixtures("rows_are_followed")
each_image_target = pytest.mark.parametrize("image_target", IMAGE_TARGETS, ids=lambda target: target.name)
few_image_targets = pytest.mark.parametrize("image_target", [GEMMA3, QWEN2_VL], ids=lambda target: target.name)


@dataclass(frozen=True)
class PlainImageBatch(PlainBatch):
    """A batch with the arguments of `generate()` for its images, and those for each row alone."""

    images: dict[str, torch.Tensor]
    alone: list[dict[str, torch.Tensor]]


@cache
def decode_images_plainly(image_target: ImageTarget) -> PlainImageBatch:
    """Plain greedy decoding, once per test session; clear about every token, and the same as for each row alone."""
    target, inputs = image_target.make(), image_target.inputs(PROMPTS)
    settings = {"do_sample": False, "max_new_tokens": NUM_NEW}
    output = target.generate(**inputs, **settings, return_dict_in_generate=True, output_logits=True)
    best, second = torch.cat(output.logits).topk(2, dim=-1).values.unbind(dim=-1)
    assert (best - second).min() > LEAST_MARGIN
    alone = [image_target.inputs([prompt], seed) for prompt, seed in zip(PROMPTS, (0, 1, 3), strict=True)]
    for row, only in zip(output.sequences, alone, strict=True):
        answer = target.generate(**only, **settings)
        assert answer[0].tolist() == row[-answer.shape[1] :].tolist()
    images = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    return PlainImageBatch(target, inputs["input_ids"], inputs["attention_mask"], output.sequences, images, alone)


@pytest.mark.parametrize("cache_implementation", ["dynamic", "static"])
@each_image_target
def test_greedy_answers_of_a_batch_with_images_are_the_plain_ones(
    image_target: ImageTarget, cache_implementation: str
) -> None:
    """The second row, which has two images, ends at its 11th token; the others go on without it."""
    plain = decode_images_plainly(image_target)
    eos = plain.ends_at(1, 10)
    ours, _ = decode_batch(
        plain, SMALL_TREE, eos_token_id=eos, cache_implementation=cache_implementation, **plain.images
    )
    assert ours.sequences.tolist() == plain.cut_behind(eos)
    assert 1.3 < tau_of(ours) < 4.8
    assert len(set(map(tuple, ours.acceptance_lengths))) == 3


@each_image_target
def test_images_matter_to_every_row_that_has_one(image_target: ImageTarget) -> None:
    """Or the comparison would prove nothing about them."""
    plain = decode_images_plainly(image_target)
    other = plain.images | {"pixel_values": -plain.images["pixel_values"]}
    answers = plain.target.generate(
        plain.prompts, attention_mask=plain.mask, do_sample=False, max_new_tokens=NUM_NEW, **other
    )
    assert (answers != plain.sequences).any(dim=1).tolist() == [True, True, False]


@few_image_targets
def test_cycles_of_a_row_with_images_are_those_of_the_row_alone(image_target: ImageTarget) -> None:
    plain = decode_images_plainly(image_target)
    ours, draft = decode_batch(plain, SMALL_TREE, **plain.images)
    for row, only in enumerate(plain.alone):
        draft.rows = torch.tensor([row])
        alone = plain.target.generate(
            **only, assistant_model=draft, do_sample=False, max_new_tokens=NUM_NEW, return_dict_in_generate=True
        )
        assert alone.sequences[0].tolist() == plain.without_padding(row).tolist()
        assert alone.acceptance_lengths[0] == ours.acceptance_lengths[row]


@few_image_targets
def test_several_answers_to_prompts_with_images(image_target: ImageTarget) -> None:
    """Each prompt twice; sampling among a single token is greedy decoding."""
    plain = decode_images_plainly(image_target)
    eos = plain.ends_at(1, 10)
    answers = [plain.without_padding(row) for row in (0, 0, 1, 1, 2, 2)]
    ours = plain.target.generate(
        plain.prompts,
        attention_mask=plain.mask,
        assistant_model=noisy_oracle(plain.target, answers, SMALL_TREE),
        do_sample=True,
        top_k=1,
        num_return_sequences=2,
        eos_token_id=eos,
        max_new_tokens=NUM_NEW,
        **plain.images,
    )
    assert ours.tolist() == [row for row in plain.cut_behind(eos) for _ in range(2)]


@few_image_targets
def test_samples_for_prompts_with_images_are_those_of_plain_decoding_with_the_same_seed(
    image_target: ImageTarget,
) -> None:
    """A processor with a memory lets the rows advance in step, with one draw of random numbers for each token."""
    plain = decode_images_plainly(image_target)
    draft = noisy_oracle(plain.target, [plain.without_padding(row) for row in (0, 0, 1, 1, 2, 2)], SMALL_TREE)
    answers = []
    for assistant in ({}, {"assistant_model": draft}):
        torch.manual_seed(1)
        answer = plain.target.generate(
            plain.prompts,
            attention_mask=plain.mask,
            logits_processor=LogitsProcessorList([CountingProcessor()]),
            do_sample=True,
            num_return_sequences=2,
            max_new_tokens=16,
            **plain.images,
            **assistant,
        )
        answers.append(answer.tolist())
    assert answers[1] == answers[0]


@few_image_targets
def test_returned_cache_of_prompts_with_images_may_go_on(image_target: ImageTarget) -> None:
    """One row ended early; what lies behind its end is masked, and its next position is not that of its slot."""
    plain = decode_images_plainly(image_target)
    eos = plain.ends_at(1, 10)
    settings: dict[str, Any] = {"do_sample": False, "max_new_tokens": NUM_NEW}
    first = plain.target.generate(
        plain.prompts,
        attention_mask=plain.mask,
        eos_token_id=eos,
        return_dict_in_generate=True,
        **settings,
        **plain.images,
    )
    ends = (first.sequences[:, plain.prompts.shape[1] :] == eos).long()
    is_answer = (ends.cumsum(dim=1) - ends == 0).long()
    assert is_answer.sum(dim=1).min() < is_answer.shape[1] / 2
    turn = torch.tensor([[7, 8, 9]]).expand(3, -1)
    said = torch.cat((first.sequences, turn), dim=1)
    mask = torch.cat((plain.mask, is_answer, torch.ones_like(turn)), dim=1)
    types = {
        name: torch.nn.functional.pad(value, (0, said.shape[1] - value.shape[1]))
        for name, value in plain.images.items()
        if name == image_target.marks_images
    }
    expected = plain.target.generate(
        said, attention_mask=mask, past_key_values=first.past_key_values, **settings, **types
    )
    ours, draft = decode_batch(plain, SMALL_TREE, eos_token_id=eos, **plain.images)
    draft.learn(list(expected))
    draft.rows = torch.arange(3)
    again = plain.target.generate(
        said, attention_mask=mask, past_key_values=ours.past_key_values, assistant_model=draft, **settings, **types
    )
    assert again.tolist() == expected.tolist()


def test_comparison_notices_positions_of_another_row(monkeypatch: pytest.MonkeyPatch) -> None:
    original = TargetForward._tree_inputs

    def tree_inputs(self: TargetForward, *args: Any) -> dict[str, Any]:
        inputs = original(self, *args)
        positions = inputs["position_ids"]
        return inputs | {"position_ids": torch.cat((positions[:1], positions[1:].roll(1, dims=1)))}

    plain = decode_images_plainly(QWEN2_VL)
    monkeypatch.setattr(TargetForward, "_tree_inputs", tree_inputs)
    ours, _ = decode_batch(plain, SMALL_TREE, **plain.images)
    assert ours.sequences.tolist() != plain.sequences.tolist()
