"""
Curves of a training run, from the Trainer's log: losses and hit rates by pass, tau and acceptance by depth.

Next: `callbacks.py`.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerState


if TYPE_CHECKING:
    from matplotlib.axes import Axes


Series = dict[str, list[tuple[int, float]]]  # points (step, value) by label

# Title and the log entries that a panel shows; the group of a pattern, if it has one, is the label of its curve.
PANELS = (
    ("loss", r"loss"),
    ("token loss by pass", r"pass_(\d+)/token_loss"),
    ("feature loss by pass", r"pass_(\d+)/feature_loss"),
    ("share of positions kept by pass", r"pass_(\d+)/kept"),
    ("accuracy by pass (top 1)", r"pass_(\d+)/accuracy"),
    ("hit rate by pass (top k)", r"pass_(\d+)/hit_rate"),
    ("misaligned chains by pass", r"pass_(\d+)/misaligned_rate"),
    ("tau: tokens per cycle", r"tau"),
    ("cycles that accept i tokens or more", r"acceptance_depth_(\d+)"),
    ("agreement with the target: top k", r"top(\d+)_agreement"),
)
PANELS_PER_ROW = 3
EVALUATION_PREFIX = "eval_"


def plot_training_curves(log: TrainerState | Sequence[Mapping[str, Any]], path: str | PathLike[str]) -> None:
    """
    Draws what a training run has logged, one panel a metric: training thin, evaluation with dots.

    Args:
        log ([`~transformers.TrainerState`] or `Sequence[Mapping]`): the state, or its `log_history` (also that of a
            checkpoint's `trainer_state.json`).
        path (`str` or `PathLike`): the file; the suffix chooses the format. Its folder is made if needed.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    from matplotlib.figure import Figure  # without pyplot, which would choose a window system

    history = log.log_history if isinstance(log, TrainerState) else log
    panels = [(title, series) for title, pattern in PANELS if (series := read_series(history, pattern))]
    num_rows = max(1, -(-len(panels) // PANELS_PER_ROW))
    figure = Figure(figsize=(4.5 * PANELS_PER_ROW, 3.2 * num_rows), layout="constrained")
    for number, (title, series) in enumerate(panels, start=1):
        _draw(figure.add_subplot(num_rows, PANELS_PER_ROW, number), title, series)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def read_series(history: Sequence[Mapping[str, Any]], pattern: str) -> Series:
    """
    The curves of a panel: one a metric of the log that matches.

    Args:
        history (`Sequence[Mapping]`): log entries, each with `step`.
        pattern (`str`): regular expression of the metric's name without `eval_`.

    Returns:
        `dict[str, list[tuple[int, float]]]`: points (step, value) by label; labels of evaluation begin with `eval`.

    Example: `pass_(\\d+)/kept` finds `pass_2/kept` as "2" and `eval_pass_2/kept` as "eval 2".
    """
    series: Series = defaultdict(list)
    for entry in history:
        for name, value in entry.items():
            match = re.fullmatch(pattern, name.removeprefix(EVALUATION_PREFIX))
            if match:
                kind = "eval" if name.startswith(EVALUATION_PREFIX) else "train" if not match.groups() else ""
                series[" ".join([kind, *match.groups()]).strip()].append((entry["step"], value))
    return dict(series)


def _draw(axes: "Axes", title: str, series: Series) -> None:
    numbers = sorted({label.split()[-1] for label in series})
    for label, points in series.items():
        is_evaluation = label.startswith("eval")
        style: dict[str, Any] = {"marker": "o", "markersize": 3} if is_evaluation else {"linewidth": 0.8, "alpha": 0.6}
        # Training and evaluation of the same pass share a colour.
        colour = f"C{numbers.index(label.split()[-1]) % 10}"
        axes.plot(*zip(*points, strict=True), label=label, color=colour, **style)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    if len(series) > 1:
        axes.legend(fontsize=7, ncols=2)


__all__ = ["plot_training_curves", "read_series"]
