"""GriffinTrainer over data as users have it: conversations, packed rows, stored features."""

import datasets
import pytest
import torch
from chats import CONVERSATION, MASK, TOKENS, word_tokenizer
from trainer_helpers import make_trainer

from conftest import tiny_llama
from transformers_griffin.training import load_features, prepare_features, tokenize_dataset


PROMPT_ONLY = {"messages": CONVERSATION["messages"][:1]}


def trainer_of(tmp_path, rows: list[dict], **overrides):
    data = datasets.Dataset.from_list(rows)
    tokenizer = word_tokenizer()
    kwargs = {"train_dataset": data, "eval_dataset": {"held_out": data}, "processing_class": tokenizer}
    return make_trainer(tmp_path, trainer_kwargs=kwargs, **overrides)


def test_conversations_are_tokenized_once_and_those_without_an_answer_left_out(tmp_path):
    trainer = trainer_of(tmp_path, [CONVERSATION, PROMPT_ONLY, CONVERSATION], max_steps=2)
    for rows in (trainer.train_dataset, trainer.eval_dataset["held_out"]):
        assert rows["input_ids"][:] == [TOKENS, TOKENS]
        assert rows["loss_mask"][:] == [MASK, MASK]
    trainer.train()
    assert "eval_held_out_loss" in trainer.evaluate()


def test_packed_rows_train_like_their_documents(tmp_path):
    """Five conversations of 11 tokens in rows of 24 tokens: two and two and one; the loss is that of five rows."""
    rows = [CONVERSATION] * 5
    packed = trainer_of(tmp_path, rows, packing=True, max_length=24)
    assert [max(documents) for documents in packed.train_dataset["documents"]] == [2, 2, 1]
    one_by_one = trainer_of(tmp_path, rows)
    expected, found = (trainer.evaluate() for trainer in (one_by_one, packed))
    for name in ("loss", "pass_1/token_loss", "pass_3/accuracy"):
        assert found[f"eval_held_out_{name}"] == pytest.approx(expected[f"eval_held_out_{name}"], rel=1e-4)


def test_stored_features_train_like_online_ones(tmp_path, monkeypatch):
    """Features are stored in bfloat16, which the target runs in."""
    target, tokenizer = tiny_llama().to(torch.bfloat16), word_tokenizer()
    rows = tokenize_dataset(datasets.Dataset.from_list([CONVERSATION] * 4), tokenizer, max_length=24, pack=True)
    prepare_features(target, tokenizer, rows, tmp_path / "features")
    stored = load_features(tmp_path / "features", target, tokenizer)
    logs = []
    for data in (rows, stored):
        torch.manual_seed(0)
        trainer = make_trainer(tmp_path, target=target, trainer_kwargs={"train_dataset": data}, feature_noise=0.2)
        if data is stored:
            monkeypatch.setattr(trainer, "_backbone", None)
        trainer.train()
        logs.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert logs[0] == pytest.approx(logs[1], rel=1e-2)  # documents run one by one when stored: another bf16 rounding


def test_a_tokenizer_with_more_tokens_than_the_target_is_refused(tmp_path):
    kwargs = {"processing_class": word_tokenizer(extra_words=60)}
    with pytest.raises(ValueError, match=r"has 68 tokens, but the target .* has a vocabulary of 61"):
        make_trainer(tmp_path, trainer_kwargs=kwargs)
