"""
What shapes and ends the answers of a batch, and what is returned with them, as in plain decoding of the same batch.

A trained pair; prompts of 6 to 90 tokens, padded on the left.
"""

from typing import Any

import pytest
import torch
from batches import pad_left
from generation_helpers import golden_pair, golden_prompts
from test_outputs import EVERYTHING, TOLERANCE
from test_processors import GREEDY_SETTINGS, SAMPLING_SETTINGS, CountingProcessor
from test_stopping import Log, two_letter_tokenizer
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, StaticCache
from transformers.generation import GenerateDecoderOnlyOutput

from transformers_griffin import GriffinCandidateGenerator, GriffinDraftModel, GriffinGenerateOutput


# Of the four prompts' answers: the first one's 11th token, the second one's 10th, the third one's 5th.
ENDS = [502, 202, 55]


@pytest.fixture(scope="module")
def pair():
    target, draft = golden_pair()
    draft.generation_config.draft_tree_batch_size = 4
    return target, draft


@pytest.fixture(scope="module")
def eager_pair():
    """Eager attention is the one that returns attention weights."""
    target, draft = golden_pair()
    target.set_attn_implementation("eager")
    return target, draft


def lucky_batch() -> dict[str, torch.Tensor]:
    """Two prompts for which the draft is often right at the same time."""
    return {name: value[[0, 2]] for name, value in batch().items()}


def batch() -> dict[str, torch.Tensor]:
    return pad_left(golden_prompts())


def generate_both(pair, **kwargs: Any) -> tuple[GenerateDecoderOnlyOutput, GriffinGenerateOutput]:
    """Plain decoding's output and ours; 24 new tokens and greedy unless told."""
    target, draft = pair
    settings = {"max_new_tokens": 24, "do_sample": False, "return_dict_in_generate": True} | kwargs
    inputs = settings.pop("inputs", None) or batch()
    return target.generate(**inputs, **settings), target.generate(**inputs, assistant_model=draft, **settings)


def assert_lossless(plain: GenerateDecoderOnlyOutput, ours: GriffinGenerateOutput, num_rows: int = 4) -> None:
    """Same tokens, padding included; the rows' cycles account for all their tokens; drafts were accepted."""
    assert ours.sequences.tolist() == plain.sequences.tolist()
    assert len(ours.acceptance_lengths) == num_rows
    assert max(max(cycles, default=1) for cycles in ours.acceptance_lengths) > 1


# ---------------------------------------------------------------------- how rows end


@pytest.mark.parametrize("cache_implementation", [None, "static"])
def test_rows_end_on_their_own_and_are_padded(pair, cache_implementation):
    plain, ours = generate_both(pair, eos_token_id=ENDS, cache_implementation=cache_implementation)
    assert_lossless(plain, ours)
    num_new = [11, 10, 5]
    assert [sum(cycles) + 1 for cycles in ours.acceptance_lengths][:3] == num_new
    assert all((ours.sequences[row, 90 + num_new[row] :] == 0).all() for row in range(3))


def test_rows_that_all_end_early_make_the_answer_as_long_as_the_longest(pair):
    inputs = {name: value[:3] for name, value in batch().items()}
    plain, ours = generate_both(pair, inputs=inputs, eos_token_id=ENDS)
    assert_lossless(plain, ours, num_rows=3)
    assert ours.sequences.shape[1] == inputs["input_ids"].shape[1] + 11


@pytest.mark.parametrize("eos_token_id", [[292, 230, 423], [292, 230, 423, 55]], ids=str)
def test_rows_may_end_with_their_first_token(pair, eos_token_id):
    inputs = {name: value[:3] for name, value in batch().items()}
    target, draft = pair
    settings = {"eos_token_id": eos_token_id, "max_new_tokens": 12, "do_sample": False}
    plain = target.generate(**inputs, **settings)
    assert target.generate(**inputs, assistant_model=draft, **settings).tolist() == plain.tolist()
    some = {name: torch.cat((value, batch()[name][3:])) for name, value in inputs.items()}
    assert_lossless(*generate_both(pair, inputs=some, **settings))


@pytest.mark.parametrize("max_new_tokens", [1, 2, 3, 7])
def test_length_limits_are_met_to_the_token(pair, max_new_tokens):
    plain, ours = generate_both(pair, max_new_tokens=max_new_tokens)
    assert ours.sequences.tolist() == plain.sequences.tolist()
    assert [sum(cycles) for cycles in ours.acceptance_lengths] == [max_new_tokens - 1] * 4


@pytest.mark.parametrize("with_eos", [True, False])
def test_stop_strings_end_rows_on_their_own(pair, with_eos):
    """
    Without an end-of-sequence token plain decoding goes on with a row that has ended until all have. Tokens 256 and
    267 read "jw" and "kh", and token 496 "tc".
    """
    settings: dict[str, Any] = {"stop_strings": ["wk", "tc"], "tokenizer": two_letter_tokenizer()}
    plain, ours = generate_both(pair, eos_token_id=516 if with_eos else None, **settings)
    assert_lossless(plain, ours)
    assert (plain.sequences[0, -1] == 0) == with_eos


@pytest.mark.parametrize("output_scores", [False, True])
@pytest.mark.parametrize("ending", [{"stop_at": 104}, {"stop_at": 100, "as_tensor": False}, {"eos_token_id": ENDS}])
def test_users_criteria_and_processors_see_the_batch_of_plain_decoding(pair, ending, output_scores):
    """They see row 0, but the whole batch; the same sequences with as many scores, once each, in the same order."""
    settings = dict(ending)
    stop_at, as_tensor = settings.pop("stop_at", None), settings.pop("as_tensor", True)
    outputs, logs = [], []
    for assistant in ({}, {"assistant_model": pair[1]}):
        log = Log(stop_at, as_tensor)
        outputs.append(
            pair[0].generate(
                **lucky_batch(),
                stopping_criteria=log.criteria,
                logits_processor=log.processors,
                do_sample=False,
                max_new_tokens=16,
                output_scores=output_scores,
                return_dict_in_generate=True,
                **settings,
                **assistant,
            )
        )
        logs.append(log.events)
    assert outputs[1].sequences.tolist() == outputs[0].sequences.tolist()
    assert max(map(max, outputs[1].acceptance_lengths)) > 1
    assert logs[1] == logs[0]


@pytest.mark.parametrize("do_sample", [False, True])
def test_stateful_processor_sees_the_batches_of_plain_decoding_once_and_in_order(pair, do_sample):
    """With equal seeds, samples are then equal as well."""
    answers, logs = [], []
    for assistant in ({}, {"assistant_model": pair[1]}):
        processor = CountingProcessor()
        torch.manual_seed(1)
        sampling = {"do_sample": True, "temperature": 0.5} if do_sample else {"do_sample": False}
        answer = pair[0].generate(
            **batch(),
            logits_processor=LogitsProcessorList([processor]),
            max_new_tokens=20,
            eos_token_id=ENDS,
            **sampling,
            **assistant,
        )
        answers.append(answer.tolist())
        logs.append(processor.prefixes)
    assert answers[1] == answers[0]
    assert logs[1] == logs[0]


def test_prefix_constraint_is_asked_with_the_number_of_the_row(pair):
    calls: list[tuple[int, list[int]]] = []

    def allowed_after(batch_id: int, prefix: torch.Tensor) -> list[int]:
        calls.append((batch_id, prefix.tolist()))
        return [(int(prefix[-1]) * 7 + batch_id + i) % 517 for i in range(20)]

    answers, logs = [], []
    for assistant in ({}, {"assistant_model": pair[1]}):
        answer = pair[0].generate(
            **batch(), max_new_tokens=12, do_sample=False, prefix_allowed_tokens_fn=allowed_after, **assistant
        )
        answers.append(answer.tolist())
        logs.append(calls.copy())
        calls.clear()
    assert answers[1] == answers[0]
    assert logs[1] == logs[0]
    assert {batch_id for batch_id, _ in logs[1]} == {0, 1, 2, 3}


# ---------------------------------------------------------------------- processors and sampling


@pytest.mark.parametrize("name", [name for name in GREEDY_SETTINGS if name != "guidance_negative_prompt"])
def test_greedy_answers_equal_plain_decoding_under_every_setting(pair, name):
    settings = {"eos_token_id": [*ENDS, 11]} | GREEDY_SETTINGS[name]
    plain, ours = generate_both(pair, **settings)
    assert ours.sequences.tolist() == plain.sequences.tolist()


@pytest.mark.parametrize("top", [{"top_k": 1}, {"temperature": 1e-4, "repetition_penalty": 1.2}], ids=str)
@pytest.mark.parametrize("num_return_sequences", [1, 3])
def test_sampling_that_leaves_one_token_is_greedy_decoding(pair, top, num_return_sequences):
    target, draft = pair
    settings = {"max_new_tokens": 16, "eos_token_id": ENDS}
    penalty = {name: value for name, value in top.items() if name == "repetition_penalty"}
    greedy = target.generate(**batch(), do_sample=False, **settings, **penalty)
    answers = target.generate(
        **batch(),
        assistant_model=draft,
        do_sample=True,
        num_return_sequences=num_return_sequences,
        **settings,
        **top,
    )
    assert answers.tolist() == greedy.repeat_interleave(num_return_sequences, dim=0).tolist()


@pytest.mark.parametrize("name", SAMPLING_SETTINGS)
def test_samples_are_reproducible_and_differ_between_rows(pair, name):
    target, draft = pair
    settings, _ = SAMPLING_SETTINGS[name]
    answers = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        answer = target.generate(
            golden_prompts()[2],
            assistant_model=draft,
            max_new_tokens=12,
            do_sample=True,
            num_return_sequences=3,
            **({"top_k": 0} | settings),
        )
        answers.append(answer.tolist())
    assert answers[0] == answers[1] != answers[2]
    assert len(set(map(tuple, answers[0]))) > 1


# ---------------------------------------------------------------------- outputs


def assert_same_while_going_on(ours: Any, plain: Any, num_new: list[int], what: str) -> None:
    """Same shapes throughout; same numbers in every row until it ends, and zeros from there on."""
    assert len(ours) == len(plain), what
    for step, (our_step, plain_step) in enumerate(zip(ours, plain, strict=True)):
        layers = zip(our_step, plain_step, strict=True) if isinstance(plain_step, tuple) else [(our_step, plain_step)]
        for our_entry, plain_entry in layers:
            assert our_entry.shape == plain_entry.shape, what
            for row, count in enumerate(num_new):
                if step < count:
                    torch.testing.assert_close(our_entry[row], plain_entry[row], **TOLERANCE)
                else:
                    assert not our_entry[row].any()


@pytest.mark.parametrize("settings", [{}, {"repetition_penalty": 1.5}, {"encoder_repetition_penalty": 1.5}], ids=str)
@pytest.mark.parametrize("cache_implementation", [None, "static"])
def test_every_output_equals_plain_decoding(eager_pair, cache_implementation, settings):
    """For prompts of equal length, as nobody defines what padding attends to."""
    inputs = {"input_ids": torch.cat([prompt[:, :5] for prompt in golden_prompts()[:2]])}
    plain, ours = generate_both(
        eager_pair,
        inputs=inputs,
        max_new_tokens=14,
        cache_implementation=cache_implementation,
        **EVERYTHING,
        **settings,
    )
    assert_lossless(plain, ours, num_rows=2)
    for name in ("scores", "logits", "hidden_states", "attentions"):
        assert_same_while_going_on(getattr(ours, name), getattr(plain, name), [14] * 2, name)


def test_outputs_behind_the_end_of_a_row_are_zero(eager_pair):
    inputs = {name: value[:3] for name, value in batch().items()}
    wanted = {"output_scores": True, "output_logits": True}
    plain, ours = generate_both(eager_pair, inputs=inputs, eos_token_id=ENDS, **wanted)
    assert_lossless(plain, ours, num_rows=3)
    for name in ("scores", "logits"):
        assert_same_while_going_on(getattr(ours, name), getattr(plain, name), [11, 10, 5], name)


@pytest.mark.parametrize("static", [False, True])
def test_returned_cache_holds_every_rows_own_tokens(pair, static):
    """Rows that left the batch included; a chat may go on with it if what lies behind their ends is masked."""
    target, draft = pair
    inputs, num_new = {name: value[:3] for name, value in batch().items()}, [11, 10, 5]
    length = inputs["input_ids"].shape[1]
    caches, sequences = [], torch.empty(0)
    for assistant in ({}, {"assistant_model": draft}):
        cache = StaticCache(target.config, 256) if static else DynamicCache(config=target.config)
        settings = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": ENDS}
        sequences = target.generate(**inputs, past_key_values=cache, **settings, **assistant)
        caches.append(cache)
    assert int(caches[1].get_seq_length()) == int(caches[0].get_seq_length()) == length + 10
    for row, count in enumerate(num_new):
        # Plain decoding reads the last token of a row, too, while it waits for others.
        slots = slice(int((inputs["attention_mask"][row] == 0).sum()), length + min(count, max(num_new) - 1))
        for ours, plain in zip(caches[1].layers, caches[0].layers, strict=True):
            torch.testing.assert_close(ours.keys[row, :, slots], plain.keys[row, :, slots], **TOLERANCE)
            torch.testing.assert_close(ours.values[row, :, slots], plain.values[row, :, slots], **TOLERANCE)

    is_answer = torch.arange(sequences.shape[1] - length) < torch.tensor(num_new).unsqueeze(1)
    turn = torch.tensor([[7, 8, 9]]).expand(3, -1)
    mask = torch.cat((inputs["attention_mask"], is_answer.long(), torch.ones_like(turn)), dim=1)
    said = torch.cat((sequences, turn), dim=1)
    again = [
        target.generate(
            said, attention_mask=mask, past_key_values=cache, max_new_tokens=12, do_sample=False, **assistant
        )
        for cache, assistant in zip(caches, ({}, {"assistant_model": draft}), strict=True)
    ]
    assert again[1].tolist() == again[0].tolist()
    anew = target.generate(said, attention_mask=mask, max_new_tokens=12, do_sample=False)
    assert again[1].tolist() == anew.tolist()


# ---------------------------------------------------------------------- prompts


def test_prompts_given_as_embeddings(pair):
    target, _ = pair
    inputs = batch()
    embeds = target.get_input_embeddings()(inputs["input_ids"]).detach()
    by_embeds = {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"]}
    plain, ours = generate_both(pair, inputs=by_embeds, eos_token_id=ENDS)
    assert_lossless(plain, ours)
    _, from_tokens = generate_both(pair, eos_token_id=ENDS)
    assert ours.acceptance_lengths == from_tokens.acceptance_lengths


def test_prompts_read_in_chunks(pair):
    plain, ours = generate_both(pair, eos_token_id=ENDS)
    _, chunked = generate_both(pair, eos_token_id=ENDS, prefill_chunk_size=16)
    assert chunked.sequences.tolist() == ours.sequences.tolist() == plain.sequences.tolist()
    assert chunked.acceptance_lengths == ours.acceptance_lengths


def test_padding_on_the_right_gives_what_plain_decoding_gives(pair, caplog):
    """Which is of no use, as transformers warns."""
    inputs = batch()
    inputs = {name: value.flip(1) for name, value in inputs.items()}
    plain, ours = generate_both(pair, inputs=inputs)
    assert ours.sequences.tolist() == plain.sequences.tolist()
    warnings = [record for record in caplog.records if "right-padding was detected" in record.getMessage()]
    assert len(warnings) == 2


def test_missing_mask_is_read_off_the_padding_as_in_plain_decoding(pair):
    with_mask, _ = generate_both(pair)
    plain, ours = generate_both(pair, inputs={"input_ids": batch()["input_ids"]})
    assert_lossless(plain, ours)
    assert ours.sequences.tolist() == with_mask.sequences.tolist()


def test_mask_that_cannot_be_read_off_the_padding_is_missing_as_in_plain_decoding(pair, caplog):
    """The padding is an end of sequence as well: transformers takes it for a part of the prompts, and warns."""
    ends = {"eos_token_id": [0, *ENDS], "pad_token_id": 0}
    plain, ours = generate_both(pair, inputs={"input_ids": batch()["input_ids"]}, **ends)
    with_mask, _ = generate_both(pair, **ends)
    assert ours.sequences.tolist() == plain.sequences.tolist() != with_mask.sequences.tolist()
    assert any("attention mask is not set" in record.getMessage() for record in caplog.records)


def test_rows_are_padded_with_the_end_of_sequence_where_no_padding_is_named_as_in_plain_decoding(pair):
    """transformers sets it so."""
    target, draft = pair
    answers = []
    for assistant in ({}, {"assistant_model": draft}):
        config = GenerationConfig(eos_token_id=ENDS, pad_token_id=None, max_new_tokens=24, do_sample=False)
        target.generation_config.pad_token_id = None
        try:
            answers.append(target.generate(**batch(), generation_config=config, **assistant).tolist())
        finally:
            target.generation_config.pad_token_id = 0
    assert answers[1] == answers[0]
    assert answers[1][2][-1] == ENDS[0]


def test_static_cache_without_room_for_the_trees_of_a_batch_is_refused(pair):
    """A continued one; room is counted from the longest prompt: 90 tokens, 24 new ones, and a tree of 16 nodes."""
    target, draft = pair
    cache = StaticCache(target.config, max_cache_len=128)
    target.generate(**batch(), past_key_values=cache, max_new_tokens=1)
    with pytest.raises(ValueError, match=r"holds 128 tokens, but 114 tokens and a tree of 16 nodes .* need 129"):
        target.generate(**batch(), past_key_values=cache, assistant_model=draft, max_new_tokens=24)


# ---------------------------------------------------------------------- trees


@pytest.mark.parametrize(
    ("settings", "batch_size", "expected"),
    [
        ({}, 1, 59),
        ({}, 2, 29),
        ({}, 4, 14),
        ({}, 8, 7),
        ({}, 16, 6),
        ({"draft_tree_batch_size": 4}, 2, 59),
        ({"draft_tree_batch_size": 4}, 4, 59),
        ({"draft_tree_batch_size": 4}, 8, 29),
        ({"num_assistant_tokens": 3}, 8, 3),
    ],
)
def test_trees_shrink_with_the_batch_until_one_path_is_left(pair, settings, batch_size, expected):
    draft = GriffinDraftModel.from_target(pair[0])
    for name, value in settings.items():
        setattr(draft.generation_config, name, value)
    assert GriffinCandidateGenerator(draft, batch_size=batch_size).num_draft_tokens == expected
    assert draft.generation_config.num_assistant_tokens == settings.get("num_assistant_tokens", 59)
