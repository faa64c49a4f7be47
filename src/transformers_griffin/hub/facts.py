"""
What is known about a draft: its target, its shape, its licence, how it was trained and what was measured.

A fact that nobody knows is None. Nothing here is made up or asked of the target's weights.

Next: `cards.py`.
"""

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from transformers import PreTrainedModel
from transformers.utils import logging

from ..configuration_griffin import GriffinDraftConfig
from ..evaluation.results import BenchmarkResults, Method
from ..evaluation.tree_acceptance import TreeSettings
from ..modeling_griffin import GriffinDraftModel
from .privacy import is_local_path, without_paths


logger = logging.get_logger(__name__)

TRAINING_FACTS_NAME = "training_facts.json"
REPO_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Licence:
    """A licence as the metadata of a card names it; `license="other"` comes with a name and a link."""

    license: str = "unknown"
    license_name: str | None = None
    license_link: str | None = None


@dataclass(frozen=True)
class TrainingFacts:
    """How a draft was trained; [`GriffinTrainer`] writes this beside the weights it saves."""

    datasets: list[str] = field(default_factory=list)  # on the Hub
    num_rows: int | None = None
    recipe: dict[str, Any] = field(default_factory=dict)  # by the name of the training argument
    num_steps: int | None = None
    num_epochs: float | None = None
    hardware: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)  # of the last evaluation

    def save(self, folder: str | Path) -> None:
        """Writes `training_facts.json` into a folder, without local paths."""
        content = json.dumps(without_paths(asdict(self)), indent=1)
        (Path(folder) / TRAINING_FACTS_NAME).write_text(content + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "TrainingFacts | None":
        """What [`~TrainingFacts.save`] wrote; None if there is nothing."""
        path = Path(folder) / TRAINING_FACTS_NAME
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


@dataclass(frozen=True)
class DraftFacts:
    """Everything a card is made of."""

    repo_id: str
    config: GriffinDraftConfig
    num_parameters: int
    size_bytes: int
    dtype: str
    tree: TreeSettings  # of the draft's generation config
    target: str | None  # on the Hub; None if the target is not published
    licence: Licence = Licence()
    training: TrainingFacts | None = None
    results: BenchmarkResults | None = None
    method: Method | None = None  # this draft among the methods of the results


def draft_facts(
    draft: GriffinDraftModel,
    repo_id: str,
    target: PreTrainedModel | str | None = None,
    results: BenchmarkResults | str | Path | None = None,
    method: str | None = None,
    license: str | None = None,
    token: str | bool | None = None,
) -> DraftFacts:
    """
    Collects what is known about a draft.

    Args:
        draft ([`GriffinDraftModel`]): the draft.
        repo_id (`str`): where it will be published.
        target ([`~transformers.PreTrainedModel`] or `str`, *optional*): its target, or the target's repository or
            directory; what the draft's configuration names by default.
        results ([`BenchmarkResults`] or path, *optional*): what `griffin bench` wrote.
        method (`str`, *optional*): the draft's name in the results, if they are about several drafts.
        license (`str`, *optional*): identifier of a licence; by default the one that the target's card names.
        token (`str` or `bool`, *optional*): for the target's card on the Hub.

    Raises:
        ValueError: if `draft` is no GRIFFIN draft, the draft does not fit the target, or the results are not about it.
    """
    if not isinstance(draft, GriffinDraftModel):
        raise ValueError(
            f"`draft` is a {type(draft).__name__}, but must be a GriffinDraftModel. Merge adapters first: "
            "`draft = peft_draft.merge_and_unload()`."
        )
    if isinstance(target, PreTrainedModel):
        draft._check_fits(target.config.get_text_config(decoder=True))
        target = target.config.name_or_path
    target = target or draft.config.target_name_or_path
    if results is not None and not isinstance(results, BenchmarkResults):
        results = BenchmarkResults.load(results)
    return DraftFacts(
        repo_id=repo_id,
        config=draft.config,
        num_parameters=draft.num_parameters(),
        size_bytes=sum(weight.numel() * weight.element_size() for weight in draft.parameters()),
        dtype=str(draft.dtype).removeprefix("torch."),
        tree=TreeSettings.of(draft.generation_config),
        target=published_name(target) or published_name(draft.config.target_name_or_path),
        licence=Licence(license) if license else licence_of(target, token),
        training=TrainingFacts.load(draft.name_or_path) if draft.name_or_path else None,
        results=results,
        method=None if results is None else _method_of(results, method),
    )


def published_name(name_or_path: str | None) -> str | None:
    """The name of a repository on the Hub; None for what is a path on this machine."""
    if not name_or_path or is_local_path(name_or_path) or not REPO_ID.fullmatch(name_or_path):
        return None
    return name_or_path


def licence_of(target: str | None, token: str | bool | None = None) -> Licence:
    """
    The licence that the target's card names, which a draft inherits.

    Args:
        target (`str`, *optional*): repository or directory.
        token (`str` or `bool`, *optional*): for the card on the Hub.

    Returns:
        [`Licence`]: `"unknown"`, with a warning, if there is no card or it names none.
    """
    reason = "the target is not known"
    if target:
        try:
            file = Path(target) / "README.md" if Path(target).is_dir() else target
            card = ModelCard.load(file, token=token)  # type: ignore[arg-type]  # goes to hf_hub_download
            if card.data.license:
                return Licence(card.data.license, card.data.license_name, card.data.license_link)
            reason = f"the card of {target} names none"
        except (OSError, ValueError, yaml.YAMLError) as error:
            reason = f"the card of {target} cannot be read ({str(error).splitlines()[0]})"
    logger.warning(f"The card says that the draft's licence is unknown: {reason}. Give `license` to name one.")
    return Licence()


def _method_of(results: BenchmarkResults, name: str | None) -> Method:
    drafts = {method.name: method for method in results.methods if method.kind == "draft"}
    if name is None and len(drafts) == 1:
        return next(iter(drafts.values()))
    if name not in drafts:
        raise ValueError(
            f"`method` is {name!r}, but the results are about the drafts {', '.join(drafts) or '(none)'}. Name the "
            "one that is published."
        )
    return drafts[name]


__all__ = ["DraftFacts", "Licence", "TrainingFacts", "draft_facts", "licence_of", "published_name"]
