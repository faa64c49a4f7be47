"""Drafts go up in one commit and come down whole: the genuine client against a Hub on the loopback interface."""

import json

import pytest
import torch
from hub_helpers import some_results, tiny_draft
from huggingface_hub import HfApi, ModelCard, constants
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError
from transformers import AutoModel, PreTrainedModel

from conftest import tiny_llama
from transformers_griffin import GriffinDraftModel, push_draft_to_hub


PUBLISHED = {
    "README.md",
    "config.json",
    "configuration_griffin.py",
    "custom_generate/generate.py",
    "custom_generate/requirements.txt",
    "generation_config.json",
    "model.safetensors",
    "modeling_griffin.py",
}


def push(draft, **kwargs):
    return push_draft_to_hub(draft, "alice/draft", **({"license": "mit"} | kwargs))


def assert_same_draft(found: GriffinDraftModel, expected: GriffinDraftModel) -> None:
    assert found.state_dict().keys() == expected.state_dict().keys()
    for name, weight in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], weight), name
    assert found.generation_config.num_assistant_tokens == expected.generation_config.num_assistant_tokens


# ---------------------------------------------------------------------- up and down


def test_a_draft_goes_up_in_one_commit_and_comes_down_as_it_was(hub):
    draft = tiny_draft()
    commit = push(draft, results=some_results())
    assert set(HfApi().list_repo_files("alice/draft")) - {".gitattributes"} == PUBLISHED | {"results.json"}
    assert [commit.title for commit in hub.repos["alice/draft"].commits.values()] == [
        "initial commit",
        "Upload GRIFFIN draft",
    ]
    assert commit.oid == hub.repos["alice/draft"].refs["main"]
    assert_same_draft(AutoModel.from_pretrained("alice/draft"), draft)


def test_a_repository_without_namespace_is_made_in_ones_own(hub):
    push_draft_to_hub(tiny_draft(), "mine", license="mit", private=True)
    assert hub.repos["alice/mine"].is_private
    assert 'from_pretrained("alice/mine"' in hub.files("alice/mine")["README.md"].decode()


def test_a_revision_is_pushed_to_and_pulled_from_by_itself(hub):
    first, second = tiny_draft(seed=1), tiny_draft(seed=2)
    old_commit = push(first).oid
    push(second, revision="better", commit_message="Train longer")
    assert_same_draft(AutoModel.from_pretrained("alice/draft"), first)
    assert_same_draft(AutoModel.from_pretrained("alice/draft", revision="better"), second)
    push(second)
    assert_same_draft(AutoModel.from_pretrained("alice/draft", revision=old_commit), first)


def test_a_pull_request_changes_nothing_until_it_is_merged(hub):
    first, second = tiny_draft(seed=1), tiny_draft(seed=2)
    push(first)
    commit = push(second, create_pr=True, token="hf_bob")
    assert commit.pr_url == f"{hub.url}/alice/draft/discussions/1"
    assert_same_draft(AutoModel.from_pretrained("alice/draft"), first)
    assert_same_draft(AutoModel.from_pretrained("alice/draft", revision="refs/pr/1"), second)


def test_the_second_push_replaces_the_first_one_whole(hub):
    """Shards after a single file: who finds `model.safetensors` loads it, so it must go. Others' files stay."""
    first, second = tiny_draft(seed=1), tiny_draft(seed=2)
    push(first, results=some_results())
    HfApi().upload_file(path_or_fileobj=b"mine", path_in_repo="notes.txt", repo_id="alice/draft")
    push(second, max_shard_size="20KB")
    files = set(hub.files("alice/draft"))
    assert not files & {"model.safetensors", "results.json"}
    assert len([name for name in files if name.startswith("model-0")]) > 1
    assert {"model.safetensors.index.json", "notes.txt"} <= files
    assert_same_draft(AutoModel.from_pretrained("alice/draft"), second)
    push(first)
    assert set(hub.files("alice/draft")) - {".gitattributes", "notes.txt"} == PUBLISHED
    assert_same_draft(AutoModel.from_pretrained("alice/draft"), first)


def test_what_was_pulled_once_loads_offline(hub, monkeypatch):
    draft = tiny_draft()
    push(draft)
    AutoModel.from_pretrained("alice/draft")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    sent = len(hub.requests)
    assert_same_draft(AutoModel.from_pretrained("alice/draft"), draft)
    assert len(hub.requests) == sent
    with pytest.raises(OSError, match="couldn't find them in the cached files"):
        AutoModel.from_pretrained("alice/other")


# ---------------------------------------------------------------------- transformers' own ways


def test_push_to_hub_of_a_draft_publishes_the_same(hub):
    draft = tiny_draft()
    draft.push_to_hub("draft", private=True, tags=["mine"], license="mit")
    assert set(hub.files("alice/draft")) - {".gitattributes"} == PUBLISHED
    card = ModelCard(hub.files("alice/draft")["README.md"].decode())
    assert card.data.tags == ["griffin", "speculative-decoding", "transformers_griffin", "mine"]
    assert hub.repos["alice/draft"].is_private


def test_save_pretrained_pushes_the_tree_settings_too(hub, tmp_path):
    """transformers would push before a draft has written its `generation_config.json`."""
    draft = tiny_draft()
    draft.save_pretrained(tmp_path / "saved", push_to_hub=True, commit_message="Saved")
    assert json.loads(hub.files("alice/saved")["generation_config.json"])["num_assistant_tokens"] == 8
    assert_same_draft(AutoModel.from_pretrained("alice/saved"), draft)
    assert (tmp_path / "saved" / "model.safetensors").exists()


# ---------------------------------------------------------------------- refusals


def test_a_wrong_token_is_refused_and_nothing_is_made(hub):
    with pytest.raises(HfHubHTTPError, match="401"):
        push(tiny_draft(), token="hf_nobody")
    assert "alice/draft" not in hub.repos


def test_anothers_repository_is_refused(hub):
    push(tiny_draft())
    before = hub.files("alice/draft")
    with pytest.raises(HfHubHTTPError, match="403"):
        push(tiny_draft(seed=1), token="hf_bob")
    assert hub.files("alice/draft") == before


def test_a_missing_private_or_gated_repository_says_so(hub, monkeypatch):
    push(tiny_draft(), private=True)
    hub.add_repo("alice/gated", hub.files("alice/draft"), gated=True)
    monkeypatch.setenv("HF_TOKEN", "hf_bob")
    for repo_id in ("alice/draft", "alice/nowhere"):
        with pytest.raises(OSError, match="is not a local folder and is not a valid model identifier"):
            AutoModel.from_pretrained(repo_id)
    with pytest.raises(OSError, match="gated repo") as refused:
        AutoModel.from_pretrained("alice/gated")
    assert isinstance(refused.value.__cause__, GatedRepoError)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"target": tiny_llama(vocab_size=67)}, "vocabulary size 61, but the target's is 67"),
        ({"method": "hass", "results": some_results()}, "`method` is 'hass', but the results are about the drafts gr"),
        ({"results": some_results(methods=[])}, r"`method` is None, but the results are about the drafts \(none\)"),
    ],
)
def test_what_does_not_fit_the_draft_is_refused_before_the_hub_is_asked(hub, kwargs, message):
    with pytest.raises(ValueError, match=message):
        push(tiny_draft(), **kwargs)
    assert hub.requests == []


def test_what_is_no_draft_is_refused(hub):
    with pytest.raises(ValueError, match=r"`draft` is a LlamaForCausalLM, but must be .*merge_and_unload"):
        push(tiny_llama())


# ---------------------------------------------------------------------- interruptions


@pytest.mark.parametrize(
    ("method", "path", "what"),
    [
        ("POST", "preupload", 503),
        ("PUT", "/lfs/", 503),
        ("PUT", "/lfs/", "drop"),
        ("POST", "/commit/", 500),
        ("POST", "/commit/", "drop"),
    ],
)
def test_an_interrupted_push_changes_nothing_and_can_be_repeated(hub, method, path, what):
    first, second = tiny_draft(seed=1), tiny_draft(seed=2)
    push(first)
    before = hub.files("alice/draft")
    hub.fail(method, path, what, times=20)  # more often than the client tries
    with pytest.raises(Exception):  # noqa: B017, PT011  # the client's many kinds
        push(second)
    assert hub.files("alice/draft") == before
    hub.faults.clear()
    push(second)
    assert_same_draft(AutoModel.from_pretrained("alice/draft"), second)


def test_weights_that_arrived_before_the_interruption_are_not_sent_again(hub):
    hub.fail("POST", "/commit/", 500, times=20)
    with pytest.raises(HfHubHTTPError, match="500"):
        push(tiny_draft())
    hub.faults.clear()
    push(tiny_draft())
    assert len([request for request in hub.requests if request.startswith("PUT /lfs/")]) == 1


def test_a_short_failure_of_the_server_is_survived(hub):
    hub.fail("PUT", "/lfs/", 503, times=2)
    draft = tiny_draft()
    push(draft)
    hub.fail("GET", "/lfs/", "truncate")
    assert_same_draft(AutoModel.from_pretrained("alice/draft"), draft)


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("/config.json", 503),
        ("model.safetensors", 503),
        ("/lfs/", "drop"),
        ("generation_config.json", 503),
        ("generation_config.json", "drop"),
    ],
)
def test_a_pull_that_breaks_off_is_an_error_and_leaves_nothing_half_loaded(hub, path, what):
    """Of the tree settings, too: a draft with the default tree instead of its own would be half of a draft."""
    draft = tiny_draft()
    push(draft)
    for method in ("GET", "HEAD"):
        hub.fail(method, path, what, times=50)
    with pytest.raises(Exception):  # noqa: B017, PT011  # the client's many kinds
        AutoModel.from_pretrained("alice/draft")
    hub.faults.clear()
    assert_same_draft(AutoModel.from_pretrained("alice/draft"), draft)


def test_a_push_during_a_pull_does_not_mix_two_drafts(hub, monkeypatch):
    """The second push comes when the weights are down and the tree settings are not."""
    first, second = tiny_draft(seed=1), tiny_draft(seed=2)
    second.generation_config.num_assistant_tokens = 5
    push(first)
    load_weights = PreTrainedModel.from_pretrained.__func__

    def load_weights_and_push(cls, *args, **kwargs):
        loaded = load_weights(cls, *args, **kwargs)
        push(second)
        return loaded

    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedModel, "from_pretrained", classmethod(load_weights_and_push))
        found = GriffinDraftModel.from_pretrained("alice/draft")
    assert_same_draft(found, first)
    assert_same_draft(GriffinDraftModel.from_pretrained("alice/draft"), second)
