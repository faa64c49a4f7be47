"""Stored features: what is written, what is refused, and that they come back as the target made them."""

import json
import os
import pickle
import resource
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from chats import word_tokenizer
from datasets import Dataset
from prepare_helpers import files_of, packed_rows, run_features, token_rows

from conftest import tiny_llama
from transformers_griffin import GriffinDraftModel
from transformers_griffin.training import (
    GriffinDataCollator,
    GriffinTrainer,
    GriffinTrainingArguments,
    load_features,
    prepare_features,
)
from transformers_griffin.training.stored_features import plan_features, target_features


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """Features of ten rows in four shards; not to be changed."""
    path = tmp_path_factory.mktemp("features") / "out"
    run_features(path)
    return path


@pytest.fixture
def copied(written, tmp_path) -> Path:
    return shutil.copytree(written, tmp_path / "out")


def features_alone(tokens: list[int]) -> torch.Tensor:
    """The oracle: one document, no batch, no padding, rounded to bfloat16 at the end."""
    with torch.no_grad():
        return tiny_llama().model(torch.tensor([tokens])).last_hidden_state[0].to(torch.bfloat16)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal up to the last bit of bfloat16, for batched and single forwards may round differently."""
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=2**-7, atol=1e-6)


# ---------------------------------------------------------------------- what is written


def test_features_come_back_as_the_target_made_them(written):
    rows = load_features(written, tiny_llama(), word_tokenizer())
    assert rows.cache_files, "memory-mapped"
    assert rows.column_names == ["input_ids", "loss_mask", "features"]
    for row, source in zip(rows, token_rows(), strict=True):
        assert {name: row[name] for name in source} == source
        assert_close(row["features"], features_alone(row["input_ids"]))


def test_documents_of_a_packed_row_do_not_see_each_other(tmp_path):
    prepare_features(tiny_llama(), word_tokenizer(), packed_rows(), tmp_path / "out", batch_size=2, shard_size=2)
    rows = load_features(tmp_path / "out", tiny_llama())
    assert max(max(row["documents"]) for row in rows) > 1
    for row in rows:
        documents = torch.tensor(row["documents"])
        for number in documents.unique():
            tokens = torch.tensor(row["input_ids"])[documents == number].tolist()
            assert_close(row["features"][documents == number], features_alone(tokens))


def test_a_group_of_documents_is_no_larger_than_the_batch_of_rows(monkeypatch):
    """Rows of 6 tokens: 1+1+4, 3+3, 2+2+2. Padded groups of at most 18 tokens: {4 3 3 2}, {2 2 1 1}."""
    target, shapes = tiny_llama(), []
    forward = target.model.forward

    def record(**inputs):
        shapes.append(tuple(inputs["input_ids"].shape))
        return forward(**inputs)

    monkeypatch.setattr(target.model, "forward", record)
    documents = [[1, 2, 3, 3, 3, 3], [1, 1, 1, 2, 2, 2], [1, 1, 2, 2, 3, 3]]
    features = target_features(target, [[5] * 6] * 3, documents)
    assert shapes == [(4, 4), (4, 2)]
    assert [tuple(row.shape) for row in features] == [(6, 32)] * 3


def test_the_plan_knows_the_size_within_a_few_percent(tmp_path):
    """Per token 32 features of 2 bytes, 4 of `input_ids` and 8 of `loss_mask`: 76."""
    rows = Dataset.from_dict({"input_ids": [[7] * 500] * 20, "loss_mask": [[1] * 500] * 20})
    plan = plan_features(rows, hidden_size=32)
    assert (plan.num_rows, plan.num_tokens) == (20, 10000)
    prepare_features(tiny_llama(max_position_embeddings=512), word_tokenizer(), rows, tmp_path / "out")
    size = sum(len(data) for name, data in files_of(tmp_path / "out").items() if name.endswith(".arrow"))
    assert plan.num_bytes == pytest.approx(size, rel=0.03)
    assert str(plan) == "20 rows, 10,000 tokens, 763kB of features"


def test_the_manifest_names_what_the_features_belong_to(written):
    manifest = json.loads((written / "manifest.json").read_text())
    assert manifest["complete"]
    assert [shard["num_rows"] for shard in manifest["shards"]] == [3, 3, 3, 1]
    assert manifest["settings"]["target"]["config"]["hidden_size"] == 32
    assert manifest["settings"]["tokenizer"]["size"] == 8
    assert {"python", "torch", "transformers"} <= manifest["versions"].keys()


def test_loaded_features_reach_the_batch_and_other_processes(written):
    rows = pickle.loads(pickle.dumps(load_features(written, tiny_llama())))
    batch = GriffinDataCollator()([rows[0], rows[1]])
    lengths = [len(rows[number]["input_ids"]) for number in (0, 1)]
    assert batch["features"].shape == (2, max(lengths), 32)
    assert_close(batch["features"][1, : lengths[1]], features_alone(rows[1]["input_ids"]))
    assert rows.shuffle(seed=0).select_columns(["input_ids", "features"])[0]["features"].dtype == torch.bfloat16


@pytest.mark.parametrize("source", [token_rows, packed_rows])
def test_a_draft_learns_from_stored_features_as_from_live_ones(tmp_path, source, monkeypatch):
    """Equal up to bfloat16's 8 bits; and the target does not run."""
    target, arguments = tiny_llama(), {"use_cpu": True, "report_to": "none", "disable_tqdm": True}
    prepare_features(target, word_tokenizer(), source(), tmp_path / "out")
    stored, live = load_features(tmp_path / "out", target), source()
    trainer = GriffinTrainer(
        model=GriffinDraftModel.from_target(target),
        target=target,
        args=GriffinTrainingArguments(output_dir=str(tmp_path), **arguments),
        train_dataset=stored,
    )
    expected = trainer.evaluate(live)["eval_loss"]
    monkeypatch.setattr(target.model, "forward", None)
    assert trainer.evaluate(stored)["eval_loss"] == pytest.approx(expected, rel=0.01)
    with pytest.raises(TypeError):
        trainer.evaluate(live)


# ---------------------------------------------------------------------- what is refused on loading


@pytest.mark.parametrize(
    ("target", "tokenizer", "message"),
    [
        (tiny_llama(seed=1), None, "target.weights is"),
        (tiny_llama(rms_norm_eps=1e-5), None, "target.config.rms_norm_eps is 1e-05, was 1e-06"),
        (tiny_llama(), word_tokenizer(extra_words=1), "tokenizer.size is 9, was 8"),
        (tiny_llama(), word_tokenizer(chat_template=None), "tokenizer.chat_template is"),
    ],
    ids=["weights", "config", "vocabulary", "template"],
)
def test_features_of_another_target_or_tokenizer_are_refused(written, target, tokenizer, message):
    with pytest.raises(ValueError, match="are not those of this target and tokenizer") as error:
        load_features(written, target, tokenizer)
    assert message in str(error.value)


def test_a_revision_is_compared_where_both_are_known(copied):
    edit_manifest(copied, lambda manifest: manifest["settings"]["target"].update(revision="abc"))
    target = tiny_llama()
    assert len(load_features(copied, target)) == 10
    target.config._commit_hash = "def"
    with pytest.raises(ValueError, match=r"target\.revision is def, was abc"):
        load_features(copied, target)


def test_the_same_weights_in_another_dtype_and_directory_are_the_same_target(written, tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    loaded = type(tiny_llama()).from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert len(load_features(written, loaded)) == 10


def edit_manifest(path: Path, edit) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    edit(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def flip_a_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (
            lambda path: flip_a_byte(path / "shard-00002.arrow"),
            ValueError,
            "shard-00002.arrow is damaged: its SHA-256",
        ),
        (lambda path: os.truncate(path / "shard-00000.arrow", 99), ValueError, "arrow has 99 bytes instead of"),
        (lambda path: (path / "shard-00001.arrow").unlink(), FileNotFoundError, "shard-00001.arrow is missing"),
        (lambda path: os.truncate(path / "manifest.json", 99), ValueError, "manifest.json is damaged"),
        (lambda path: (path / "manifest.json").unlink(), FileNotFoundError, "has no manifest.json"),
        (lambda path: edit_manifest(path, lambda m: m.update(complete=False)), ValueError, "is not complete: 4 of 4"),
        (lambda path: edit_manifest(path, lambda m: m.update(format=9)), ValueError, "has format 9, but this version"),
        (lambda path: edit_manifest(path, lambda m: m.update(kind="cats")), ValueError, "holds cats, but features"),
    ],
    ids=["flipped", "short", "missing", "half-manifest", "no-manifest", "incomplete", "format", "kind"],
)
def test_damaged_features_are_refused(copied, damage, error, message):
    damage(copied)
    with pytest.raises(error, match=message):
        load_features(copied, tiny_llama())


def test_checksums_can_be_left_out_but_not_sizes(copied):
    flip_a_byte(copied / "shard-00002.arrow")
    assert len(load_features(copied, tiny_llama(), verify_checksums=False)) == 10
    os.truncate(copied / "shard-00002.arrow", 99)
    with pytest.raises(ValueError, match="99 bytes"):
        load_features(copied, tiny_llama(), verify_checksums=False)


# ---------------------------------------------------------------------- what is refused on writing


def test_a_finished_run_is_not_run_again(copied):
    before = files_of(copied)
    run_features(copied)
    assert files_of(copied) == before


def test_an_earlier_run_with_other_settings_is_not_continued(copied):
    for change, message in (
        ({"batch_size": 3}, "batch_size is 3, was 2"),
        ({"rows": token_rows(9)}, "rows.num_rows is 9, was 10"),
        ({"target": tiny_llama(seed=1)}, "target.weights is"),
        ({"target": tiny_llama().bfloat16()}, "dtype is bfloat16, was float32"),
    ):
        arguments = {"target": tiny_llama(), "tokenizer": word_tokenizer(), "rows": token_rows(), "batch_size": 2}
        with pytest.raises(ValueError, match="begun with other settings") as error:
            prepare_features(path=copied, shard_size=3, **(arguments | change))
        assert message in str(error.value)


def test_foreign_files_are_not_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("ten years of work")
    with pytest.raises(ValueError, match=r"holds thesis\.txt but no manifest"):
        run_features(tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        run_features(tmp_path / "thesis.txt")
    assert files_of(tmp_path) == {"thesis.txt": b"ten years of work"}


def test_too_little_space_is_refused_unless_forced(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=r"take \d\.\d\dkB more, but the disk of .* has 1\.00kB free"):
        run_features(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    prepare_features(tiny_llama(), word_tokenizer(), token_rows(), tmp_path / "out", force=True)
    assert len(load_features(tmp_path / "out", tiny_llama())) == 10


def test_a_disk_that_comes_to_be_full_loses_no_finished_shard(tmp_path):
    """Shards take about 3, 18 and 2 kB, the manifest 5, and no file may grow beyond 15."""
    rows = Dataset.from_dict({"input_ids": [[7] * length for length in (10, 10, 120, 120, 10)]})

    def run(path: Path) -> None:
        prepare_features(tiny_llama(), word_tokenizer(), rows, path, shard_size=2)

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, hard))
    try:
        with pytest.raises(OSError, match=r"is full\. 1 of 3 shards are finished and kept"):
            run(tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(files_of(tmp_path / "out")) == ["manifest.json", "shard-00000.arrow"]
    run(tmp_path / "out")
    run(tmp_path / "whole")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_features_that_are_not_finite_name_the_row(tmp_path):
    target = tiny_llama()
    rows = Dataset.from_dict({"input_ids": [[8, 9], [8, 9], [5, 7, 9]]})
    with torch.no_grad():
        target.model.embed_tokens.weight[7] = torch.nan
    with pytest.raises(
        ValueError, match=r"features of row 2 of the tokenized data are not finite\. It begins 'there no"
    ):
        prepare_features(target, word_tokenizer(), rows, tmp_path, shard_size=2)
    assert len(json.loads((tmp_path / "manifest.json").read_text())["shards"]) == 1


def test_tokens_that_the_target_does_not_know_are_refused(tmp_path):
    rows = Dataset.from_dict({"input_ids": [[1, 2], [3, 61]]})
    with pytest.raises(
        ValueError, match=r"Rows 0 to 1 of the tokenized data contain token 61, but .* vocabulary of 61"
    ):
        prepare_features(tiny_llama(), word_tokenizer(), rows, tmp_path)
    with pytest.raises(ValueError, match="has 62 tokens, but the target"):
        prepare_features(tiny_llama(), word_tokenizer(extra_words=54), token_rows(), tmp_path)
    assert files_of(tmp_path) == {}
