"""
A draft's card: facts in, Markdown with the Hub's metadata out.

Numbers are formatted here, their arrangement is in the template `hub_cards/draft_card.md`. A figure that nobody
measured reads "not measured".

Next: `push.py`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..evaluation.results import BenchmarkResults, Estimate, Setting, Summary
from .facts import DraftFacts, TrainingFacts
from .privacy import without_paths


TAGS = ("griffin", "speculative-decoding", "transformers_griffin")
LIBRARY = "transformers"
TEMPLATE_NAME = "draft_card.md"
NOT_MEASURED = "not measured"
NOT_RECORDED = "not recorded"


def draft_card(facts: DraftFacts, tags: Sequence[str] = ()) -> ModelCard:
    """
    Writes the card of a draft.

    Args:
        facts ([`DraftFacts`]): what is known about it.
        tags (`Sequence[str]`, defaults to none): further tags.

    Returns:
        [`~huggingface_hub.ModelCard`]: `str(card)` is the content of README.md.
    """
    return ModelCard.from_template(
        _metadata(facts, tags),
        template_path=str(template_path()),
        name=_name(facts),
        facts=facts,
        config=facts.config,
        shape=_shape(facts),
        rows=_result_rows(facts),
        provenance=_provenance(facts.results),
        training=_training_rows(facts),
        recipe=without_paths(facts.training.recipe) if facts.training else {},
        metrics=[(name, f"{value:.4g}") for name, value in facts.training.metrics.items()] if facts.training else [],
    )


def template_path() -> Path:
    """The template: beside this file in an installed package, in `hub_cards/` in a checkout."""
    installed = Path(__file__).parent / "templates" / TEMPLATE_NAME
    return installed if installed.is_file() else Path(__file__).parents[3] / "hub_cards" / TEMPLATE_NAME


# ---------------------------------------------------------------------- metadata


def _metadata(facts: DraftFacts, tags: Sequence[str]) -> ModelCardData:
    eval_results = _eval_results(facts)
    return ModelCardData(
        base_model=facts.target,
        license=facts.licence.license,
        license_name=facts.licence.license_name,
        license_link=facts.licence.license_link,
        library_name=LIBRARY,
        datasets=(facts.training.datasets or None) if facts.training else None,
        tags=[*TAGS, *tags],
        model_name=_name(facts) if eval_results else None,
        eval_results=eval_results or None,
    )


def _eval_results(facts: DraftFacts) -> list[EvalResult]:
    """Tau and speedup of this draft, as the Hub's model-index takes them."""
    found = []
    for summary in _summaries(facts):
        for metric, name, estimate in (
            ("acceptance_length", "tau", summary.tau),
            ("speedup", "speedup over plain decoding", summary.speedup_over_eager),
        ):
            if estimate is not None:
                found.append(
                    EvalResult(
                        task_type="text-generation",
                        dataset_type=summary.domain,
                        dataset_name=f"{summary.domain}, {summary.setting}",
                        dataset_config=summary.setting,
                        metric_type=metric,
                        metric_name=name,
                        metric_value=round(estimate.value, 3),
                        metric_args={"low": round(estimate.low, 3), "high": round(estimate.high, 3)},
                    )
                )
    return found


# ---------------------------------------------------------------------- text


def _name(facts: DraftFacts) -> str:
    return facts.repo_id.split("/")[-1]


def _shape(facts: DraftFacts) -> list[tuple[str, str]]:
    config, tree, licence = facts.config, facts.tree, facts.licence
    target = f"[{facts.target}](https://huggingface.co/{facts.target})" if facts.target else "not published"
    kind = f", type `{config.target_model_type}`" if config.target_model_type else ""
    outputs = "predict and regress outputs" if config.dual_head else "one output"
    depth = "" if tree.draft_level_cost is None else "; fewer levels where more do not pay"
    head = "" if tree.draft_head_dtype is None else f"; reads the target's head in {tree.draft_head_dtype}"
    return [
        ("Target", f"{target}{kind}, hidden size {config.hidden_size}, vocabulary {config.vocab_size:,}"),
        *([] if config.draft_vocab_size is None else [("Proposes", f"{config.draft_vocab_size:,} frequent tokens")]),
        ("Network", f"{config.fusion} fusion, {outputs}, {config.num_hidden_layers} layer(s)"),
        ("Size", f"{facts.num_parameters:,} parameters, {facts.size_bytes / 1e6:,.1f} MB in {facts.dtype}"),
        (
            "Tree",
            f"{tree.num_assistant_tokens} drafted tokens a cycle, {tree.draft_tree_depth} levels, "
            f"{tree.draft_tree_top_k} tokens a level{depth}{head}",
        ),
        ("Licence", licence.license_name or licence.license),
    ]


def _summaries(facts: DraftFacts) -> list[Summary]:
    if facts.results is None or facts.method is None:
        return []
    return [summary for summary in facts.results.summaries if summary.method == facts.method.name]


def _result_rows(facts: DraftFacts) -> list[list[str]]:
    settings = {} if facts.results is None else {setting.name: setting for setting in facts.results.settings}
    return [
        [
            summary.setting,
            summary.domain,
            str(summary.num_prompts),
            _estimate(summary.tau),
            _estimate(summary.speedup_over_eager),
            _estimate(summary.speedup_over_best_plain),
            _estimate(summary.tokens_per_second, digits=1),
            NOT_MEASURED if summary.cycle_cost is None else f"{summary.cycle_cost:.2f}",
            _identical(summary, settings.get(summary.setting)),
        ]
        for summary in _summaries(facts)
    ]


def _identical(summary: Summary, setting: Setting | None) -> str:
    if setting is not None and not setting.is_greedy:
        return "sampled"
    return NOT_MEASURED if summary.num_identical is None else f"{summary.num_identical} of {summary.num_answers}"


def _estimate(estimate: Estimate | None, digits: int = 2) -> str:
    if estimate is None:
        return NOT_MEASURED
    return f"{estimate.value:.{digits}f} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def _provenance(results: BenchmarkResults | None) -> list[tuple[str, str]]:
    """Hardware, versions and date of the measurements."""
    provenance = {} if results is None else without_paths(results.provenance)
    return [
        ("Hardware", _text(provenance.get("device"), NOT_MEASURED)),
        ("Versions", _text(provenance.get("versions"), NOT_RECORDED)),
        ("Commit", _text(provenance.get("commit"), NOT_RECORDED)),
        ("Date", _text(provenance.get("date"), NOT_RECORDED)),
    ]


def _training_rows(facts: DraftFacts) -> list[tuple[str, str]]:
    training = facts.training or TrainingFacts()
    links = ", ".join(f"[{name}](https://huggingface.co/datasets/{name})" for name in training.datasets)
    rows = "" if training.num_rows is None else f"{training.num_rows:,} rows"
    steps = "" if training.num_steps is None else f"{training.num_steps:,}"
    epochs = "" if training.num_epochs is None else f"{training.num_epochs:.2f} epochs"
    return [
        ("Data", _text([links, rows], NOT_RECORDED)),
        ("Steps", _text([steps, epochs], NOT_RECORDED)),
        ("Hardware", _text(training.hardware, NOT_RECORDED)),
        ("Versions", _text(training.versions, NOT_RECORDED)),
    ]


def _text(value: Any, otherwise: str) -> str:
    """A fact on one line: lists with commas, dictionaries as "name value"."""
    if isinstance(value, dict):
        value = [f"{name} {item}" for name, item in value.items()]
    if isinstance(value, list):
        value = ", ".join(item for item in value if item)
    return str(value) if value else otherwise


__all__ = ["draft_card", "template_path"]
