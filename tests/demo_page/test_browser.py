"""The page in a real browser: click, text arrives, both answers are equal, and nothing is fetched from elsewhere."""

import shutil
from urllib.parse import urlparse

import pytest
from demo_helpers import mini_pair
from playwright.sync_api import expect, sync_playwright

from transformers_griffin.demo_page.page import build_page, launch_page, warm_up


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ("no-sandbox", "disable-gpu", "disable-quic", "disable-background-networking", "disable-component-update")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome on the PATH")]


@pytest.fixture(scope="module")
def url():
    pair = mini_pair()
    warm_up(pair)
    page = build_page(pair)
    _, local_url, _ = launch_page(page, prevent_thread_lock=True, quiet=True)
    yield local_url
    page.close()


@pytest.fixture
def browser_page(url):
    """The opened page, which knows the hosts that it asked and the errors that it had."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=[f"--{option}" for option in QUIET])
        page = browser.new_page(viewport={"width": 1280, "height": 1150})
        page.hosts, page.errors = set(), []
        page.on("request", lambda request: page.hosts.add(urlparse(request.url).hostname))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.set_default_timeout(120_000)
        expect.set_options(timeout=120_000)
        page.goto(url)
        page.wait_for_selector("#answer")
        yield page
        browser.close()


def set_number(page, name: str, value: int) -> None:
    field = page.locator(f"#{name} input[type=number]")
    field.fill(str(value))
    field.press("Tab")


def test_a_click_answers_twice_with_the_same_text(browser_page, tmp_path):
    page = browser_page
    page.click("#answer")
    page.wait_for_selector(".card.plain .text:not(:empty)")
    page.wait_for_selector(".card.griffin .text mark")
    expect(page.locator(".verdict")).to_contain_text("The same ")
    texts = [page.inner_text(f".card.{kind} .text") for kind in ("plain", "griffin")]
    assert texts[0] == texts[1] != ""
    assert float(page.inner_text(".card.griffin b").removeprefix("tau ")) > 1
    assert page.locator("#tree svg g.accepted").count() > 0
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert (tmp_path / "page.png").stat().st_size > 20_000
    assert page.hosts == {"127.0.0.1"}
    assert page.errors == []


def test_sliders_that_form_no_tree_get_a_message_and_others_a_tree(browser_page):
    page = browser_page
    set_number(page, "nodes", 50)
    set_number(page, "depth", 2)
    page.click("#answer")
    expect(page.locator(".verdict.wrong")).to_contain_text("has only 6 candidates")
    set_number(page, "nodes", 6)
    page.click("#answer")
    expect(page.locator(".verdict.same")).to_contain_text("The same ")
    # Root, six drafted nodes, and where the answer did not end on the path the target's own token.
    assert page.locator("#tree svg g:has(title)").count() in (7, 8)


def test_stop_ends_an_answer_and_the_next_one_starts_at_once(browser_page):
    page = browser_page
    page.fill("#prompt textarea", "Tell me a long story.")
    page.click("#answer")
    page.wait_for_selector(".card.plain .text:not(:empty)")
    page.click("text=Stop")
    page.wait_for_timeout(500)  # what was on its way may still arrive
    text = page.inner_text("#answers")
    page.wait_for_timeout(700)
    assert page.inner_text("#answers") == text
    assert page.locator(".verdict").count() == 0
    page.fill("#prompt textarea", "Hello!")
    page.click("#answer")
    expect(page.locator(".verdict.same")).to_be_visible()
    assert page.errors == []
