"""Neither local paths nor tokens leave the machine."""

import json

import pytest
from hub_helpers import some_results, tiny_draft

from conftest import tiny_llama
from transformers_griffin import push_draft_to_hub
from transformers_griffin.hub.privacy import check_no_token, is_local_path, without_paths


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/somebody/models/target", "target"),
        ("~/models/target/", "target"),
        ("C:\\Users\\somebody\\target", "target"),
        ("the draft in /home/somebody/drafts/mine, trained", "the draft in mine, trained"),
        ("user/target", "user/target"),
        ("https://huggingface.co/user/target/tree/main", "https://huggingface.co/user/target/tree/main"),
        ("150 tokens/s and/or tau / SR", "150 tokens/s and/or tau / SR"),
        ("configuration_griffin.GriffinDraftConfig", "configuration_griffin.GriffinDraftConfig"),
        ("", ""),
        (".", "."),
        (None, None),
        (3.5, 3.5),
    ],
)
def test_paths_are_shortened_to_their_last_part(text, expected):
    assert without_paths(text) == expected
    assert without_paths({"a": [text, {"b": (text,)}]}) == {"a": [expected, {"b": [expected]}]}


def test_a_relative_path_is_known_by_what_is_there(tmp_path, monkeypatch):
    (tmp_path / "user" / "target").mkdir(parents=True)
    assert not is_local_path("user/target")
    monkeypatch.chdir(tmp_path)
    assert is_local_path("user/target")
    assert without_paths("user/target") == "target"


def test_nothing_that_goes_up_names_a_place_on_this_machine(hub, tmp_path):
    """The target lies on this disk, the results name folders of the machine that measured."""
    tiny_llama().save_pretrained(tmp_path / "target")
    draft = tiny_draft()
    draft.config.target_name_or_path = str(tmp_path / "target")
    draft.save_pretrained(tmp_path / "draft")
    draft = type(draft).from_pretrained(tmp_path / "draft")
    push_draft_to_hub(draft, "alice/draft", target=str(tmp_path / "target"), results=some_results())
    files = hub.files("alice/draft")
    for name, content in files.items():
        for place in (str(tmp_path), "/home/somebody", "C:\\\\runs", "~/drafts"):
            assert place.encode() not in content, f"{place} in {name}"
    assert json.loads(files["config.json"])["target_name_or_path"] is None
    results = json.loads(files["results.json"])
    assert results["target"] == "target"
    assert results["provenance"]["arguments"] == {"target": "target", "output": "results", "seeds": [0]}
    assert b"base_model" not in files["README.md"]


@pytest.mark.parametrize("token", ["hf_alice", "hf_" + "aBcD" * 8])
def test_a_token_in_what_goes_up_stops_the_push(hub, token):
    """The one in use, whatever it looks like, and others by their look."""
    results = some_results(extra={"command": f"HF_TOKEN={token} griffin bench"})
    with pytest.raises(ValueError, match=r"results\.json contains an access token, so nothing was uploaded") as error:
        push_draft_to_hub(tiny_draft(), "alice/draft", license="mit", results=results)
    assert token not in str(error.value)
    assert "alice/draft" not in hub.repos


def test_weights_are_not_searched_for_tokens(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"hf_" + b"a" * 34)
    check_no_token(tmp_path)
