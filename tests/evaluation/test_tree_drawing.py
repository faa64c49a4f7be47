"""Trees as SVG: who stands where, what is written, and that it is well-formed whatever the tokens are."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from transformers_griffin.evaluation import CycleTree, draw_tree
from transformers_griffin.evaluation.tree_drawing import label_of, lay_out


MINI = Path(__file__).parents[2] / "examples/mini/target"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def letters():
    """Token i is the i-th of these words."""
    words = ["a", "b", "c", "d", "e", "<&>", '"x"', "\x00", "long" * 10]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="a"))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(scope="module")
def mini_tokenizer():
    return AutoTokenizer.from_pretrained(MINI)


def cycle(**changes) -> CycleTree:
    """
    `c` is more probable than `b`, so it stands above it. Accepted: a, b; the target added e::

        row 0    a -- c -- d
        row 1    `--- b -- (e)
    """
    fields = {
        "tokens": [0, 1, 2, 3],
        "parents": [0, 0, 0, 2],
        "scores": [0.0, -2.0, -1.0, -1.5],
        "accepted": [0, 1],
        "bonus": 4,
    }
    return CycleTree(**(fields | changes))


def test_boxes_stand_where_the_drawing_in_the_docstring_has_them(letters):
    boxes = [(box.label, box.kind, box.parent, box.level, box.row) for box in lay_out(cycle(), letters)]
    assert boxes == [
        ("a", "root", 0, 0, 0),
        ("b", "accepted", 0, 1, 1),
        ("c", "rejected", 0, 1, 0),
        ("d", "rejected", 2, 2, 0),
        ("e", "bonus", 1, 2, 1),
    ]


def test_no_two_boxes_share_a_place(letters):
    """A tree of 40 nodes, three children each, drawn without overlap."""
    parents = [0, *((node - 1) // 3 for node in range(1, 40))]
    depths = [0] * 40
    for node in range(1, 40):
        depths[node] = depths[parents[node]] + 1
    wide = cycle(tokens=[node % 5 for node in range(40)], parents=parents, scores=[-float(depth) for depth in depths])
    places = [(box.level, box.row) for box in lay_out(wide, letters)]
    assert len(set(places)) == len(places) == 41


def test_the_drawing_is_well_formed_and_says_what_was_accepted(letters):
    root = ElementTree.fromstring(draw_tree(cycle(), letters))
    assert root.get("aria-label") == "1 of 3 drafted tokens accepted, 2 emitted"
    kinds = [group.get("class") for group in root.iter(f"{SVG}g") if group.find(f"{SVG}title") is not None]
    assert sorted(kinds) == ["accepted", "bonus", "rejected", "rejected", "root"]
    percents = [text.text for text in root.iter(f"{SVG}text") if text.get("class") == "small"]
    assert percents == ["14%", "37%", "61%"]  # exp(-2), exp(-1), exp(-0.5)


def test_a_cycle_that_ended_the_answer_has_no_bonus(letters):
    root = ElementTree.fromstring(draw_tree(cycle(bonus=None), letters))
    assert root.get("aria-label") == "1 of 3 drafted tokens accepted, 1 emitted"


def test_everything_is_inside_the_picture(letters):
    root = ElementTree.fromstring(draw_tree(cycle(tokens=[0, 8, 2, 3]), letters))
    _, _, width, height = map(float, root.get("viewBox").split())
    for rect in root.iter(f"{SVG}rect"):
        left, top = float(rect.get("x")), float(rect.get("y"))
        assert 0 <= left <= left + float(rect.get("width")) <= width
        assert 0 <= top <= top + float(rect.get("height")) <= height


def test_markup_and_control_characters_cannot_break_the_picture(letters):
    strange = cycle(tokens=[5, 6, 7, 8])
    labels = [text.text for text in ElementTree.fromstring(draw_tree(strange, letters)).iter(f"{SVG}text")]
    assert {"<&>", '"x"', "�", "longlonglonglon…"} <= set(labels)


def test_spaces_and_line_ends_are_visible(mini_tokenizer):
    for text, label in ((" the", "␣the"), ("\n", "⏎"), ("the", "the")):
        (token,) = mini_tokenizer.encode(text, add_special_tokens=False)
        assert label_of(token, mini_tokenizer) == label
