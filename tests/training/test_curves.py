"""Curves of a training, from logs short enough to read."""

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from transformers import TrainerState

from transformers_griffin.training.curves import plot_training_curves, read_series


LOG = [
    {"step": 5, "epoch": 0.5, "loss": 2.0, "learning_rate": 1e-3, "pass_1/token_loss": 1.5, "pass_1/hit_rate": 0.25},
    {"step": 10, "loss": 1.0, "pass_1/token_loss": 0.7, "pass_2/token_loss": 0.9, "pass_1/hit_rate": 0.5},
    {"step": 10, "eval_loss": 1.2, "eval_tau": 1.5, "eval_acceptance_depth_1": 0.4, "eval_acceptance_depth_2": 0.1},
    {"step": 20, "eval_loss": 1.1, "eval_tau": 1.75, "eval_acceptance_depth_1": 0.5, "eval_acceptance_depth_2": 0.25},
    {"step": 20, "train_runtime": 3.0, "train_loss": 1.4},
]


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that are saved during the test."""
    figures, save = [], Figure.savefig

    def savefig(self, *args, **kwargs):
        figures.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r"loss", {"train": [(5, 2.0), (10, 1.0)], "eval": [(10, 1.2), (20, 1.1)]}),
        (r"tau", {"eval": [(10, 1.5), (20, 1.75)]}),
        (r"pass_(\d+)/token_loss", {"1": [(5, 1.5), (10, 0.7)], "2": [(10, 0.9)]}),
        (r"acceptance_depth_(\d+)", {"eval 1": [(10, 0.4), (20, 0.5)], "eval 2": [(10, 0.1), (20, 0.25)]}),
        (r"pass_(\d+)/kept", {}),
    ],
)
def test_a_panel_takes_the_metrics_of_its_name_whole(pattern, expected):
    """`train_loss` and `pass_1/token_loss` are not `loss`."""
    assert read_series(LOG, pattern) == expected


@pytest.mark.parametrize("log", [LOG, TrainerState(log_history=LOG)], ids=["history", "state"])
def test_a_picture_has_a_panel_for_everything_that_was_logged(tmp_path, drawn, log):
    path = tmp_path / "new" / "curves.png"
    plot_training_curves(log, path)
    axes = drawn[0].axes
    assert [panel.get_title() for panel in axes] == [
        "loss",
        "token loss by pass",
        "hit rate by pass (top k)",
        "tau: tokens per cycle",
        "cycles that accept i tokens or more",
    ]
    tau = axes[3].get_lines()[0]
    assert list(zip(*tau.get_data(), strict=True)) == [(10, 1.5), (20, 1.75)]
    labels = [text.get_text() for text in axes[1].get_legend().get_texts()]
    assert labels == ["1", "2"]
    picture = imread(path)
    assert picture.shape[0] > 300
    assert picture.std() > 0.01, "something is drawn"


def test_nothing_logged_is_an_empty_picture_and_no_error(tmp_path, drawn):
    plot_training_curves([], tmp_path / "curves.png")
    assert drawn[0].axes == []
    assert (tmp_path / "curves.png").is_file()


def test_curves_of_one_pass_share_a_colour(tmp_path, drawn):
    log = [{"step": 1, "pass_1/kept": 1.0, "pass_2/kept": 0.5}, {"step": 1, "eval_pass_2/kept": 0.4}]
    plot_training_curves(log, tmp_path / "curves.png")
    colours = {line.get_label(): line.get_color() for line in drawn[0].axes[0].get_lines()}
    assert colours["2"] == colours["eval 2"] != colours["1"]
