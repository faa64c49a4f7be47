"""A draft that proposes some of the target's tokens: its map, its logits and the rows of the head that it copies."""

import json
import re

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from conftest import tiny_llama
from transformers_griffin import GriffinDraftModel
from transformers_griffin.decoding.draft_head import DraftHead


TOKENS = [60, 3, 17, 4, 3]  # any order, one twice
TOKEN_MAP = [3, 4, 17, 60]


def make_pair(**target_fields):
    """A random pair whose draft proposes the four tokens of TOKEN_MAP."""
    target = tiny_llama(**target_fields)
    torch.manual_seed(1)
    draft = GriffinDraftModel.from_target(target).eval().truncate_vocabulary(TOKENS)
    draft.generation_config.update(num_assistant_tokens=6, draft_tree_depth=3, draft_tree_top_k=2)
    return target, draft


def predictions(draft: GriffinDraftModel) -> torch.Tensor:
    torch.manual_seed(2)
    return torch.randn(2, 5, draft.config.hidden_size)


def assert_logits_are_those_of_the_map(draft: GriffinDraftModel, is_copied: bool = True) -> DraftHead:
    head, predict = DraftHead(draft), predictions(draft)
    expected = draft.compute_logits(predict)[..., draft.token_map]
    assert (head.copy is not None) == is_copied
    torch.testing.assert_close(head.logits(predict), expected)
    return head


# ---------------------------------------------------------------------- the map


def test_a_map_holds_each_token_once_in_rising_order():
    _, draft = make_pair()
    assert draft.token_map.tolist() == TOKEN_MAP
    assert draft.config.draft_vocab_size == draft.config.proposal_vocab_size == 4
    assert draft.config.vocab_size == 61
    assert draft.to_target_ids(torch.tensor([[2, 0], [3, 1]])).tolist() == [[17, 3], [60, 4]]


@pytest.mark.parametrize(("eos", "expected"), [(7, [3, 4, 7, 17, 60]), ([7, 4], [3, 4, 7, 17, 60])])
def test_tokens_that_end_answers_are_always_in_the_map(eos, expected):
    _, draft = make_pair(eos_token_id=eos)
    assert draft.token_map.tolist() == expected


def test_none_lifts_the_restriction():
    _, draft = make_pair()
    DraftHead(draft)
    draft.truncate_vocabulary(None)
    assert draft.token_map is None
    assert draft.config.draft_vocab_size is None
    assert draft.config.proposal_vocab_size == 61
    assert not any("token_map" in name for name in draft.state_dict())
    predict = predictions(draft)
    assert torch.equal(DraftHead(draft).logits(predict), draft.compute_logits(predict))
    ids = torch.tensor([5, 60])
    assert draft.to_target_ids(ids) is ids


@pytest.mark.parametrize(
    ("token_ids", "message"),
    [
        ([], "`token_ids` are 0 values of torch.float32, but must be one integer at least."),
        ([1.0, 2.0], "`token_ids` are 2 values of torch.float32"),
        ([3, 61], "`token_ids` holds 61, but the target's tokens are 0 to 60."),
        ([3, -1], "`token_ids` holds -1, but"),
    ],
)
def test_tokens_that_the_target_does_not_have_are_refused(token_ids, message):
    _, draft = make_pair()
    with pytest.raises(ValueError, match=re.escape(message)):
        draft.truncate_vocabulary(token_ids)
    assert draft.token_map.tolist() == TOKEN_MAP  # as before


@pytest.mark.parametrize("size", [0, 62])
def test_a_size_that_is_no_part_of_the_vocabulary_is_refused(size):
    message = f"`draft_vocab_size` is {size}, but must be from 1 to `vocab_size` (61)"
    with pytest.raises(StrictDataclassClassValidationError, match=re.escape(message)):
        GriffinDraftModel.from_target(tiny_llama(), draft_vocab_size=size)


def test_a_size_without_tokens_is_refused_when_drafting_begins():
    target = tiny_llama()
    draft = GriffinDraftModel.from_target(target, draft_vocab_size=4)
    with pytest.raises(ValueError, match=r"`token_map\[0\]` of this draft is -1, but its entries must be tokens"):
        target.generate(torch.tensor([[5, 6]]), assistant_model=draft, max_new_tokens=3, pad_token_id=0)


@pytest.mark.parametrize("broken", [[3, 4, 17, 61], [3, 4, 4, 17]])
def test_a_saved_map_of_another_target_is_refused(broken):
    _, draft = make_pair()
    draft.token_map.copy_(torch.tensor(broken))
    index = 3 if 61 in broken else 2
    message = (
        f"`token_map[{index}]` of this draft is {broken[index]}, but its entries must be tokens of the target, from"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        DraftHead(draft)


# ---------------------------------------------------------------------- the logits


@pytest.mark.parametrize(
    "target_fields",
    [{}, {"logit_scale": 0.25}, {"final_logit_softcapping": 0.5}, {"tie_word_embeddings": True}],
    ids=lambda fields: next(iter(fields), "plain"),
)
def test_drafting_computes_the_logits_of_the_map(target_fields):
    _, draft = make_pair(**target_fields)
    assert_logits_are_those_of_the_map(draft)


def test_the_heads_bias_is_copied_too():
    target, draft = make_pair()
    target.lm_head.bias = torch.nn.Parameter(torch.arange(61.0))
    assert_logits_are_those_of_the_map(draft)


def test_only_the_rows_of_the_map_are_copied():
    target, draft = make_pair()
    copy = DraftHead(draft).copy
    assert torch.equal(copy.weight, target.lm_head.weight[TOKEN_MAP])
    assert (copy.bias, copy.scales) == (None, None)


def test_a_head_with_an_adapter_is_read_as_a_whole():
    target = tiny_llama()
    adapted = get_peft_model(target, LoraConfig(target_modules=["lm_head"], init_lora_weights=False))
    draft = GriffinDraftModel.from_target(target).truncate_vocabulary(TOKENS)
    assert_logits_are_those_of_the_map(draft, is_copied=False)
    # A merged adapter is in the head's own rows.
    draft.bind(adapted.merge_and_unload())
    assert_logits_are_those_of_the_map(draft)


def test_a_head_that_is_not_loaded_is_not_copied():
    with torch.device("meta"):
        target = tiny_llama()
    _, draft = make_pair()
    assert DraftHead(draft.bind(target)).copy is None


def test_every_drafting_sees_the_head_as_it_is_in_the_same_memory():
    target, draft = make_pair()
    memory = DraftHead(draft).copy.weight.data_ptr()
    with torch.no_grad():
        target.lm_head.weight.mul_(2.0)
    target.generate(torch.tensor([[5, 6]]), assistant_model=draft, max_new_tokens=3, pad_token_id=0)
    assert assert_logits_are_those_of_the_map(draft).copy.weight.data_ptr() == memory


def test_another_targets_head_takes_the_place_of_the_copy():
    _, draft = make_pair()
    first = DraftHead(draft)
    draft.bind(tiny_llama(seed=5))
    assert assert_logits_are_those_of_the_map(draft).copy.weight is not first.copy.weight


def test_rows_copied_in_inference_mode_can_be_copied_again():
    _, draft = make_pair()
    with torch.inference_mode():
        DraftHead(draft)
    DraftHead(draft)
    with torch.inference_mode():
        DraftHead(draft)
    assert_logits_are_those_of_the_map(draft)


# ---------------------------------------------------------------------- files


def test_the_map_travels_with_the_draft(tmp_path):
    target, draft = make_pair()
    draft.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16).bind(target)
    assert loaded.token_map.tolist() == TOKEN_MAP
    assert loaded.token_map.dtype == torch.long
    assert loaded.config.draft_vocab_size == 4
    assert json.loads((tmp_path / "config.json").read_text())["draft_vocab_size"] == 4
    assert load_file(tmp_path / "model.safetensors")["proposals.token_map"].tolist() == TOKEN_MAP


def test_the_copied_rows_stay_out_of_the_files(tmp_path):
    _, draft = make_pair()
    names = draft.state_dict().keys()
    DraftHead(draft)
    assert draft.state_dict().keys() == names
    assert "proposals.token_map" in names


def test_a_missing_map_is_found_before_anything_is_drafted(tmp_path):
    target, draft = make_pair()
    draft.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["proposals.token_map"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = GriffinDraftModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"`token_map\[\d+\]` of this draft is .* The map is missing in the draft's"):
        target.generate(torch.tensor([[5, 6]]), assistant_model=loaded, max_new_tokens=3, pad_token_id=0)


def test_an_adapter_on_the_draft_leaves_the_map_as_it_is(tmp_path):
    _, draft = make_pair()
    adapted = get_peft_model(draft, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    assert not any("token_map" in name for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    assert GriffinDraftModel.from_pretrained(tmp_path / "merged").token_map.tolist() == TOKEN_MAP
