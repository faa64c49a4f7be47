"""GriffinTrainingArguments: named objectives, schedules and what they refuse."""

import pytest

from transformers_griffin.training import GriffinTrainingArguments


def arguments(tmp_path, **fields) -> GriffinTrainingArguments:
    return GriffinTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", **fields)


@pytest.mark.parametrize(
    ("objective", "expected"),
    [("griffin", (3, 3, 0.1, 0.5)), ("hass", (3, 0, 0.1, 1.0)), ("eagle", (1, 0, 0.1, 0.0))],
)
def test_an_objective_is_a_bundle_of_options(objective, expected, tmp_path):
    args = arguments(tmp_path, objective=objective)
    found = (args.num_passes, args.alignment_top_k, args.token_loss_weight, args.top_token_loss_weight)
    assert found == expected


def test_a_given_option_wins_over_the_objective(tmp_path):
    args = arguments(tmp_path, objective="hass", num_passes=2, alignment_top_k=5, top_token_loss_weight=0.0)
    assert (args.num_passes, args.alignment_top_k, args.top_token_loss_weight) == (2, 5, 0.0)


def test_passes_join_in_equal_parts_unless_told_otherwise(tmp_path):
    """Of 9 steps, three have one pass, three have two and three have three."""
    args = arguments(tmp_path)
    assert [args.num_passes_at(step, 9) for step in range(9)] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    args = arguments(tmp_path, num_passes_schedule=[0, 0])
    assert [args.num_passes_at(step, 9) for step in range(9)] == [3] * 9


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"objective": "medusa"}, "`objective` is 'medusa', but must be one of griffin, hass, eagle"),
        ({"alignment": "none"}, "`alignment` is 'none', but must be one of released, consumed, paper"),
        ({"token_labels": "sharp"}, "`token_labels` is 'sharp', but must be one of soft, hard"),
        ({"num_passes": 0}, "`num_passes` is 0, but must be at least 1"),
        ({"alignment_top_k": -1}, "`alignment_top_k` is -1, but must be at least 0"),
        ({"num_passes_schedule": [0.5]}, "2 non-decreasing fractions"),
        ({"num_passes_schedule": [0.5, 0.2]}, "2 non-decreasing fractions"),
        ({"num_passes_schedule": [0.5, 1.5]}, "2 non-decreasing fractions"),
    ],
)
def test_wrong_options_are_refused(fields, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **fields)
