"""The page's handler and its HTML, without a browser."""

import re
from html import unescape

import gradio as gr
import pytest
from demo_helpers import mini_pair

from transformers_griffin.demo_page import Pair, Progress
from transformers_griffin.demo_page.page import answer_both, build_page, warm_up
from transformers_griffin.demo_page.rendering import answer_text_html, answers_html, compare_answers


PROMPT = "A train travels 60 miles in 2 hours. How fast is it?"


@pytest.fixture(scope="module")
def pair() -> Pair:
    return mini_pair()


def states_of(pair: Pair, prompt: str = PROMPT, new_tokens: int = 24, temperature: float = 0, tree=(10, 5, 2)) -> list:
    return list(answer_both(pair, prompt, new_tokens, temperature, *tree))


def texts_of(html: str) -> list[str]:
    """What the two cards show as text, without marks."""
    found = re.findall(r'<div class="text">(.*?)</div>', html, flags=re.DOTALL)
    return [unescape(re.sub(r"</?mark>", "", text)) for text in found]


def test_both_answers_grow_one_after_the_other_and_end_equal(pair):
    states = states_of(pair)
    texts = [texts_of(answers) for answers, _ in states]
    assert all(drafted == "" for plain, drafted in texts if plain != texts[-1][0])
    assert texts[-1][0] == texts[-1][1] != ""
    answers, tree = states[-1]
    assert re.search(r'class="verdict same">The same 24 tokens, \d+\.\d\d times the speed: \d+ forwards', answers)
    assert "<mark>" in answers
    assert re.search(r"<b>tau \d\.\d\d</b>", answers)
    assert tree.startswith('<svg class="tree"')


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": "  "}, "The prompt is empty. Write one, or click an example."),
        ({"tree": (50, 2, 2)}, "`num_assistant_tokens` is 50, but a tree of `draft_tree_depth`=2"),
        ({"tree": (10, 5, 99)}, "`draft_tree_top_k` is 99, but must be an integer from 1 to 32"),
    ],
)
def test_what_cannot_be_answered_is_said_on_the_page_before_anything_runs(pair, settings, message):
    ((answers, tree),) = states_of(pair, **settings)
    assert f'class="verdict wrong">{message}' in unescape(answers)
    assert texts_of(answers) == ["", ""]
    assert tree == ""


def test_sampled_answers_are_not_compared_token_for_token(pair):
    answers, _ = states_of(pair, new_tokens=8, temperature=1.0)[-1]
    assert "Sampled: one distribution, two draws" in answers
    assert "verdict wrong" not in answers


def test_answers_that_differ_are_called_wrong_at_the_first_difference():
    plain = Progress(tokens=[5, 6, 7], wall_seconds=1.0)
    for tokens, place in (([5, 9, 7], 2), ([5, 6], 3), ([5, 6, 7, 8], 4)):
        verdict = compare_answers(plain, Progress(tokens=tokens, wall_seconds=1.0), is_sampled=False)
        assert verdict.kind == "wrong"
        assert verdict.text.startswith(f"The answers part at token {place}.")


def test_figures_are_those_of_the_answer():
    """12 tokens in 2 seconds and in 1: 6 and 12 tokens/s; 3 cycles of 4, 4 and 3 tokens: tau 11/3, 4 forwards."""
    tokens = list(range(12))
    plain = Progress(tokens=tokens, wall_seconds=2.0)
    drafted = Progress(tokens=tokens, wall_seconds=1.0, acceptance_lengths=[4, 4, 3])
    html = answers_html(plain, drafted, compare_answers(plain, drafted, is_sampled=False))
    assert re.findall(r'"speed">(\S+) ', html) == ["6", "12"]
    assert re.findall(r'"width:(\d+%)"', html) == ["50%", "100%"]
    assert re.findall(r'"numbers">(.*?)</div>', html) == [
        "12 tokens · 12 forwards · 2.00 s",
        "<b>tau 3.67</b> · 12 tokens · 4 forwards · 1.00 s",
    ]
    assert "The same 12 tokens, 2.00 times the speed: 4 forwards of the target instead of 12." in html


def test_an_empty_page_shows_no_figures():
    html = answers_html(Progress(), Progress())
    assert html.count("– <small>tokens/s</small>") == 2
    assert "nan" not in html


def test_text_is_escaped_and_neighbouring_guesses_share_a_mark():
    progress = Progress(pieces=[("<b>", False), ("&", True), (" x", True), ("y", False)])
    assert answer_text_html(progress) == "&lt;b&gt;<mark>&amp; x</mark>y"


def test_the_page_offers_the_drafts_own_tree_and_sends_nothing_home(pair):
    warm_up(pair)
    page = build_page(pair)
    sliders = {block.label: block.value for block in page.blocks.values() if isinstance(block, gr.Slider)}
    assert list(sliders.items())[:3] == [
        ("Drafted tokens per cycle, at most", 10),
        ("Levels of the tree, at most", 5),
        ("Width of a level", 2),
    ]
    assert page.analytics_enabled is False
