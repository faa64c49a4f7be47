"""Pictures: what is drawn, and pages that hold them."""

import io
import sys
from itertools import pairwise

import matplotlib
import pytest
from matplotlib.image import imread
from report_helpers import HOSTILE, PageReader, empty_results, large_results, single_results, small_results

from transformers_griffin.evaluation.report import write_report
from transformers_griffin.evaluation.report.page import html_report
from transformers_griffin.evaluation.report.pictures import Picture, looks
from transformers_griffin.evaluation.report.plots import draw_bars, draw_pictures
from transformers_griffin.evaluation.results import BenchmarkResults, Method


@pytest.fixture(scope="module")
def small() -> dict[str, Picture]:
    """Pictures of the small results by name."""
    return {picture.name: picture for picture in draw_pictures(small_results())}


def labels(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_bars_stand_for_speed_and_acceptance_with_their_intervals(small):
    figure = small["speed_and_acceptance"].figure
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "float32 T=0 · SR, speed over plain eager",
        "float32 T=0 · τ, tokens per cycle",
        "float32 T=1 · SR, speed over plain eager",
        "float32 T=1 · τ, tokens per cycle",
    ]
    speed = figure.axes[0]
    assert [bar.get_height() for bar in speed.patches] == [1.5, 1.25, 1.4375, 1.504, 2.0, 1.625]
    assert [text.get_text() for text in speed.get_xticklabels()] == ["GSM8K", "my <set>", "All"]
    ends = [tuple(segment[:, 1]) for segment in speed.collections[0].get_segments()]
    assert ends == [(1.25, 2.0), (1.0, 1.75), (1.1875, 1.9375)]
    assert labels(figure) == ["hass", HOSTILE]


def test_bars_of_a_domain_stand_side_by_side():
    axes = draw_bars(large_results()).axes[0]
    spans = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches)
    assert len(spans) == 7 * 4
    assert all(left[1] < right[0] for left, right in pairwise(spans))


def test_curves_begin_at_depth_and_pass_1(small):
    depth = small["acceptance_by_depth"].figure.axes[0].get_lines()[0]
    assert list(zip(*depth.get_data(), strict=True)) == [(1, 0.75), (2, 0.5)]
    misaligned = small["misaligned_by_pass"].figure.axes[0].get_lines()[1]
    assert list(zip(*misaligned.get_data(), strict=True)) == [(1, 0.25), (2, 0.5), (3, 0.625)]


def test_the_parts_of_a_cycle_add_up_to_its_cost(small):
    """2.875 / 1.4375 = 2 plain steps: 0.5 draft, 1.25 verify, 0.25 host."""
    axes = small["cycle_time"].figure.axes[0]
    hass = [bar for bar in axes.patches if round(bar.get_y() + bar.get_height() / 2) == 0]
    assert [(bar.get_x(), bar.get_width()) for bar in hass] == [(0, 0.5), (0.5, 1.25), (1.75, 0.25)]
    assert labels(small["cycle_time"].figure) == ["draft", "verify", "host"]


def test_what_nobody_measured_has_no_picture():
    assert draw_pictures(empty_results()) == []


def test_methods_look_different_also_when_there_are_many():
    methods = [Method(str(i), "draft", "") for i in range(14)] + [Method(f"p{i}", "plain", "") for i in range(3)]
    found = looks(methods)
    assert len({(look.colour, look.hatch) for look in found.values()}) == 17


def test_drawing_leaves_matplotlib_as_it_was():
    before = dict(matplotlib.rcParams)
    draw_pictures(single_results())[-1].svg()
    assert dict(matplotlib.rcParams) == before


def test_a_png_is_a_picture(small):
    picture = imread(io.BytesIO(small["cycle_time"].png()))
    assert picture.shape[1] == 1650
    assert picture.std() > 0.05, "something is drawn"


def test_a_page_with_pictures_is_balanced_and_loads_nothing(small):
    page = html_report(small_results(), list(small.values()))
    reader = PageReader(page)
    assert all(link.startswith("#") for link in reader.loads), "only parts of the same page"
    assert {link[1:] for link in reader.loads} <= set(reader.ids)
    assert len(reader.ids) == len(set(reader.ids))
    assert not {"script", "link", "img", "iframe", "i"} & set(reader.tags)
    assert "@import" not in page
    assert "url(http" not in page
    assert reader.text.count(HOSTILE) > 4, "in the tables and in the legends of the pictures"


def test_a_picture_is_the_same_every_time(small):
    again = draw_pictures(small_results())
    assert again[1].svg() == small["acceptance_by_depth"].svg()


def test_pictures_of_a_page_follow_its_colour(small):
    svg = small["speed_and_acceptance"].svg()
    assert "currentColor" in svg
    assert "#1f2328" not in svg
    assert HOSTILE.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") in svg


def test_a_report_is_a_folder_of_files(tmp_path):
    written = write_report(small_results(), tmp_path / "new" / "folder")
    names = [path.name for path in written]
    assert names == [
        "results.json",
        "results.csv",
        "report.md",
        "report.html",
        "speed_and_acceptance.png",
        "acceptance_by_depth.png",
        "misaligned_by_pass.png",
        "cycle_time.png",
    ]
    assert sorted(names) == sorted(path.name for path in (tmp_path / "new" / "folder").iterdir())
    assert BenchmarkResults.load(written[0]) == small_results()
    assert "![Speed and acceptance](speed_and_acceptance.png)" in written[2].read_text(encoding="utf-8")
    assert written[3].read_text(encoding="utf-8").count("<svg ") == 4


def test_without_matplotlib_a_report_has_no_pictures_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers_griffin.evaluation.report.files.find_spec", lambda name: None)
    said = []
    monkeypatch.setattr("transformers_griffin.evaluation.report.files.logger.warning", said.append)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    written = write_report(small_results(), tmp_path)
    assert [path.name for path in written] == ["results.json", "results.csv", "report.md", "report.html"]
    assert said == [
        'The report has no pictures. They need matplotlib: pip install "transformers-griffin[plot]".',
    ]
