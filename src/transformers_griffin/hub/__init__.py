"""Publish drafts: what is known about them, their cards, the code that travels with them, one commit for all of it."""

from .cards import draft_card
from .facts import DraftFacts, Licence, TrainingFacts, draft_facts
from .push import complete_draft_folder, push_draft_to_hub, write_draft_folder


__all__ = [
    "DraftFacts",
    "Licence",
    "TrainingFacts",
    "complete_draft_folder",
    "draft_card",
    "draft_facts",
    "push_draft_to_hub",
    "write_draft_folder",
]
