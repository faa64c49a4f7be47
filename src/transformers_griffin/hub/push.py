"""
Publishes a draft: a folder with everything that goes up, and one commit that takes it there.

One commit, so that nobody ever loads half of a push; files of an earlier push that this one replaces (shards, results)
leave with the same commit. If the push is interrupted, the repository is as it was, and a second push sends only what
has not arrived.

Next: `training/`, whose trainer publishes as it goes.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError
from transformers import PreTrainedModel

from .. import __version__
from ..evaluation.results import BenchmarkResults
from ..modeling_griffin import GriffinDraftModel
from .cards import draft_card
from .facts import TRAINING_FACTS_NAME, DraftFacts, draft_facts
from .privacy import check_no_token, without_paths


RESULTS_NAME = "results.json"
# All that a push consists of: nothing else goes up, and nothing else of the repository is replaced.
OUR_FILES = (
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-?????-of-?????.safetensors",
    "model.safetensors.index.json",
    "configuration_griffin.py",
    "modeling_griffin.py",
    "custom_generate/generate.py",
    "custom_generate/requirements.txt",
    RESULTS_NAME,
    TRAINING_FACTS_NAME,
)


def push_draft_to_hub(
    draft: GriffinDraftModel,
    repo_id: str,
    *,
    target: PreTrainedModel | str | None = None,
    results: BenchmarkResults | str | Path | None = None,
    method: str | None = None,
    license: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
    max_shard_size: int | str = "50GB",
    tags: Sequence[str] | None = None,
) -> CommitInfo:
    """
    Publishes a draft on the Hub: weights, configuration, tree settings, card, results and the code that loads it.

    Args:
        draft ([`GriffinDraftModel`]): the draft.
        repo_id (`str`): repository, made if it does not exist; in your own namespace without `user/`.
        target ([`~transformers.PreTrainedModel`] or `str`, *optional*): its target, or the target's repository; what
            the draft's configuration names by default.
        results ([`BenchmarkResults`] or path, *optional*): what `griffin bench` wrote; the card's numbers.
        method (`str`, *optional*): the draft's name in the results, if they are about several drafts.
        license (`str`, *optional*): identifier of a licence; by default the one that the target's card names.
        private, token, revision, create_pr, commit_message, commit_description, max_shard_size, tags: as in
            [`~transformers.PreTrainedModel.push_to_hub`].

    Returns:
        [`~huggingface_hub.CommitInfo`]: the commit, or the pull request, that was made.

    Raises:
        ValueError: if the draft does not fit the target, the results are not about it, or a file contains a token.
        HfHubHTTPError: if the Hub refuses.
    """
    api = HfApi(token=token, library_name="transformers-griffin", library_version=__version__)
    facts = draft_facts(draft, repo_id, target, results, method, license, token)
    if "/" not in repo_id:
        repo_id = f"{api.whoami()['name']}/{repo_id}"
    with TemporaryDirectory() as folder:
        write_draft_folder(draft, folder, replace(facts, repo_id=repo_id), max_shard_size, tags or ())
        check_no_token(folder, token if isinstance(token, str) else get_token())
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/pr"):
            _create_branch(api, repo_id, revision, create_pr)
        additions = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(Path(folder) / name))
            for name in files_of(folder)
        ]
        stale = _replaced_files(api, repo_id, revision, {addition.path_in_repo for addition in additions})
        return api.create_commit(
            repo_id,
            operations=[*stale, *additions],
            commit_message=commit_message or "Upload GRIFFIN draft",
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )


def write_draft_folder(
    draft: GriffinDraftModel,
    folder: str | Path,
    facts: DraftFacts,
    max_shard_size: int | str = "50GB",
    tags: Sequence[str] = (),
) -> None:
    """
    Writes everything that a push takes to the Hub.

    Args:
        draft ([`GriffinDraftModel`]): the draft.
        folder (`str` or `Path`): an empty or new directory.
        facts ([`DraftFacts`]): what is known about the draft.
        max_shard_size (`int` or `str`): as in `save_pretrained`.
        tags (`Sequence[str]`, defaults to none): further tags of the card.
    """
    draft.save_pretrained(folder, max_shard_size=max_shard_size)
    complete_draft_folder(folder, facts, tags)


def complete_draft_folder(folder: str | Path, facts: DraftFacts, tags: Sequence[str] = ()) -> None:
    """
    Adds to a saved draft what a published one has: card, results, training facts, and the code for `custom_generate`.

    Effects:
        Local paths in `config.json` and `generation_config.json` are shortened.
    """
    folder = Path(folder)
    _rewrite(folder / "config.json", target_name_or_path=facts.target)
    _rewrite(folder / "generation_config.json")
    custom_generate = folder / "custom_generate"
    custom_generate.mkdir(parents=True, exist_ok=True)
    source = Path(__file__).with_name("custom_generate.py")
    (custom_generate / "generate.py").write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    (custom_generate / "requirements.txt").write_text("transformers-griffin\n", encoding="utf-8")
    if facts.training is not None:
        facts.training.save(folder)
    if facts.results is not None:
        results = json.dumps(without_paths(facts.results.as_dict()), indent=1)
        (folder / RESULTS_NAME).write_text(results + "\n", encoding="utf-8")
    (folder / "README.md").write_text(str(draft_card(facts, tags)), encoding="utf-8")


def files_of(folder: str | Path) -> dict[str, int]:
    """What of a folder goes up: paths in the repository, with their sizes in bytes."""
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(Path(folder).rglob("*")) if path.is_file()}
    return {name: path.stat().st_size for name, path in paths.items() if _is_ours(name)}


def _is_ours(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in OUR_FILES)


def _rewrite(path: Path, **changes: Any) -> None:
    """Changes a JSON file, if it is there, and shortens the local paths in it."""
    if not path.is_file():
        return
    content = json.loads(path.read_text(encoding="utf-8"))
    content.update({name: value for name, value in changes.items() if name in content})
    path.write_text(json.dumps(without_paths(content), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _create_branch(api: HfApi, repo_id: str, revision: str, create_pr: bool) -> None:
    try:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    except HfHubHTTPError as error:
        # Who may only propose changes may not make branches; if it is not there, the commit will say so.
        if not (create_pr and error.response.status_code == 403):
            raise


def _replaced_files(api: HfApi, repo_id: str, revision: str | None, new: set[str]) -> list[CommitOperationDelete]:
    """Files of an earlier push that would be loaded, or read, beside those of this one."""
    there = api.list_repo_files(repo_id, revision=revision)
    return [CommitOperationDelete(path_in_repo=name) for name in there if _is_ours(name) and name not in new]


__all__ = ["complete_draft_folder", "files_of", "push_draft_to_hub", "write_draft_folder"]
