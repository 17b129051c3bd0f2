"""The page in a real browser (Chromium, headless), through the real server and the demo model.

Skipped, and said so, where no Chromium is found: install Debian's `chromium`, or set CHROMIUM to one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgecal import Engine, demo
from edgecal.server import Served, ServerOptions
from tests.browser import CHROMIUM, chromium
from tests.server.conftest import Running, running

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: the page is not tested (apt-get install chromium)"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]
TEXT = "Ana: Are you coming to the lake on Sunday?\nBen: Yes, at nine. I bring bread.\nAna: Great, I bring the rest."
SCREENSHOTS = os.environ.get("EDGECAL_SCREENSHOTS")


def until(page: Any, expression: str, timeout_s: float = 20) -> None:
    """Wait for it without evaluating texts in the page, which its policy forbids."""
    end = time.monotonic() + timeout_s
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"it did not come to {expression}; the page says {page.inner_text('#problem')!r}"
        page.wait_for_timeout(20)


@pytest.fixture(scope="module")
def site(models_folder: Path) -> Iterator[Running]:
    from edgecal_weights.demo_model import pull_demo

    model = pull_demo()

    def load() -> Served:
        adapters = {"summarize": "summarize", "professional": "professional", "french": "translate_fr"}
        engine = Engine.load(model, adapters={name: demo.DATA / path for name, path in adapters.items()})
        # It is no adapter into English: what the page does with one is the test, not what comes out
        engine.add_adapter(demo.DATA / "translate_fr", "english")
        return Served(engine, "demo", calibrations={name: f"demo:{name}" for name in demo.CALIBRATIONS})

    with running(load, ServerOptions()) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def page(browser: Any, site: Running, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A phone's page with nothing kept; what it says on the console fails the test."""
    options = {"viewport": {"width": 390, "height": 844}, **getattr(request, "param", {})}
    context = browser.new_context(**options)
    found = context.new_page()
    said: list[str] = []
    found.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    found.on("pageerror", lambda error: said.append(str(error)))
    found.errors = said
    found.goto(site.url)
    until(found, "document.querySelector('#method').options.length > 0")
    yield found
    if SCREENSHOTS:
        found.screenshot(path=f"{SCREENSHOTS}/{request.node.name}.png", full_page=True)
    context.close()
    assert said == []


def ask(page: Any, button: str = "#run", also: str = "professional", method: str | None = "linear") -> None:
    page.fill("#text", TEXT)
    page.select_option("#main", "summarize")
    page.select_option("#also", also)
    if method is not None:
        page.select_option("#method", method)
    page.click("summary:has-text('Settings')")
    page.fill("#max_tokens", "24")
    page.click(button)


def wait_done(page: Any, n: int = 1) -> None:
    enough = f"document.querySelectorAll('article').length >= {n}"
    until(page, f"{enough} && document.querySelector('#stop').hidden", timeout_s=60)


def test_an_answer_streams(page, site):
    ask(page)
    until(page, "document.querySelector('article .said').textContent.length > 3", timeout_s=30)
    wait_done(page)
    said = page.inner_text("article .said")
    prompt = f"Summarize the following text and change its tone to professional\n\n{TEXT}"
    recipe = {"method": "linear", "adapters": ["summarize", "professional"]}
    body = {"messages": [{"role": "user", "content": prompt}], "recipe": recipe, "max_tokens": 24}
    with site.client() as client:
        wanted = client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    assert said.strip() == wanted.strip() != ""
    facts = page.inner_text("article dl")
    assert "First token" in facts and "Tokens a second" in facts and "Memory, idle" in facts and "Passes" in facts
    assert page.locator("article svg rect").count() > 5 and page.is_visible("article .legend")
    assert page.inner_text("article .state") in ("done", "cut at the longest answer")


def test_compare_runs_every_method(page):
    page.select_option("#also", "professional")
    page.click("#example")
    until(page, "document.querySelector('#text').value.length > 50")
    page.click("summary:has-text('Settings')")
    page.fill("#max_tokens", "16")
    names = page.eval_on_selector_all("#method option", "options => options.map(one => one.value)")
    assert len(names) >= 10
    page.click("#compare")
    wait_done(page, len(names))
    header = page.eval_on_selector_all("#table th", "cells => cells.map(one => one.textContent)")
    assert header[0] == "Method" and {"ROUGE-1", "Weighted", "Passes", "Extra parameters", "Tokens/s"} <= set(header)
    assert page.locator("#table tbody tr").count() == len(names)
    rows = page.eval_on_selector_all("#table tbody tr", "rows => rows.map(r => [...r.cells].map(c => c.textContent))")
    assert {row[1] for row in rows} == {"1", "2"} and any(row[header.index("Extra parameters")] != "0" for row in rows)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is wider than a phone"


def test_an_example_is_replayed_turn_by_turn(page):
    page.click("summary:has-text('Settings')")
    page.select_option("#pace", "8")
    page.click("#example")
    until(page, "document.querySelectorAll('#bubbles li').length >= 2", timeout_s=20)
    shown = page.locator("#bubbles li").count()
    lines = page.evaluate("document.querySelector('#text').value.trim().split('\\n').length")
    assert shown <= lines
    until(page, f"document.querySelectorAll('#bubbles li').length == {lines}", timeout_s=30)
    assert page.locator("#bubbles li.other").count() > 0 and page.inner_text("#replay") == "Replay"


@pytest.fixture
def slowly(site, monkeypatch):
    """50 ms a pass, so that there is time to break off."""
    step = site.engine.model._step

    def delayed(*arguments: Any) -> Any:
        time.sleep(0.05)
        return step(*arguments)

    monkeypatch.setattr(site.engine.model, "_step", delayed)


def test_cancel(page, site, slowly):
    ask(page)
    until(page, "document.querySelector('article .said')?.textContent.length > 3")
    page.click("#stop")
    wait_done(page)
    assert page.inner_text("article .state") == "stopped" and len(page.inner_text("article .said")) > 3
    until(page, "!document.querySelector('#run').disabled")
    for _ in range(200):
        if not site.served.running.n_running:
            break
        page.wait_for_timeout(10)
    assert site.served.running.n_running == 0


def test_what_is_possible_follows_from_what_is_loaded(page):
    page.select_option("#main", "reply")
    page.select_option("#also", "german")
    names = page.eval_on_selector_all("#method option", "options => options.map(one => one.value)")
    assert set(names) == {"zero_shot", "in_context"}
    page.click("#why summary")
    assert "no adapter for 'reply'" in page.inner_text("#lacking")
    page.select_option("#main", "summarize")
    page.select_option("#also", "french")
    assert "linear" in page.eval_on_selector_all("#method option", "options => options.map(one => one.value)")


def test_an_answer_is_translated_back(page):
    ask(page, also="french", method="linear")
    wait_done(page)
    page.click("article .said")
    until(page, "document.querySelector('article .back').textContent.length > 2", timeout_s=30)


def test_history_stays_on_the_device(page):
    ask(page)
    wait_done(page)
    said = page.inner_text("article .said")
    page.reload()
    until(page, "document.querySelector('#method').options.length > 0")
    assert page.input_value("#text") == TEXT and page.input_value("#max_tokens") == "24"
    page.click("summary:has-text('History')")
    assert page.locator("#history li").count() == 1
    with page.expect_download() as download:
        page.click("#export")
    kept = json.loads(Path(download.value.path()).read_text())
    assert [one["text"] for one in kept] == [said] and kept[0]["timings"]["predicted_n"] > 1
    page.click("#history button")
    assert page.inner_text("article .said") == said
    page.click("#forget")
    assert page.locator("#history li").count() == 0


def test_reload_in_mid_answer(page, site, slowly):
    ask(page)
    until(page, "document.querySelector('article .said')?.textContent.length > 3", timeout_s=30)
    page.reload()
    page.wait_for_selector("article")
    assert page.inner_text("article .state") == "interrupted" and len(page.inner_text("article .said")) > 3
    for _ in range(300):
        if not site.served.running.n_running:
            break
        page.wait_for_timeout(10)
    assert site.served.running.n_running == 0, "the server has stopped it"


def test_offline(page):
    ask(page)
    wait_done(page)
    page.evaluate("navigator.serviceWorker.ready.then(() => 1)")
    page.reload()
    until(page, "document.querySelector('#method').options.length > 0")
    page.context.set_offline(True)
    page.reload()
    until(page, "document.querySelector('#status').textContent.includes('away')")
    assert page.input_value("#text") == TEXT and page.is_disabled("#run")
    assert page.evaluate("getComputedStyle(document.querySelector('main')).maxWidth") == "900px", "the style is there"
    page.errors[:] = [text for text in page.errors if "ERR_INTERNET_DISCONNECTED" not in text]


def test_settings(page, site):
    page.click("summary:has-text('Settings')")
    before = site.engine.threads.decode
    page.fill("#threads", "1")
    page.dispatch_event("#threads", "change")
    until(page, "document.querySelector('#status').textContent.includes('1 of')")
    assert site.engine.threads.decode == 1
    page.fill("#threads", str(before))
    page.dispatch_event("#threads", "change")
    until(page, f"document.querySelector('#status').textContent.includes('{before} of')")


@pytest.mark.parametrize(
    "page",
    [{}, {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"}, {"color_scheme": "dark"}],
    ids=["phone", "wide-dark", "phone-dark"],
    indirect=True,
)
def test_accessible(page):
    """axe-core finds nothing serious; everything can be reached by keyboard."""
    from axe_core_python.sync_playwright import Axe

    wide = page.viewport_size["width"] > 1000  # all methods' cards and the table once; they are the same at any width
    ask(page, button="#compare" if wide else "#run", method=None)
    wait_done(page, 3 if wide else 1)
    page.click("summary:has-text('History')")
    page.click("#why summary")
    found = Axe().run(page)
    serious = [(one["id"], [node["html"][:120] for node in one["nodes"]]) for one in found["violations"]
               if one["impact"] in ("serious", "critical")]  # fmt: skip
    assert serious == []
    page.focus("body")
    seen = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.id"))
    assert {"text", "example", "main", "also", "method", "run", "compare", "export"} <= seen


def test_the_first_load_is_small(browser, site):
    context = browser.new_context()
    page, sizes = context.new_page(), {}

    def measure(response: Any) -> None:
        sizes[response.url] = len(response.body()) if response.ok else 0

    page.on("response", measure)
    page.goto(site.url)
    until(page, "document.querySelector('#method').options.length > 0")
    assert 10_000 < sum(sizes.values()) < 200_000
    assert all(url.startswith(site.url) for url in sizes), "nothing comes from elsewhere"
    context.close()


def test_a_token_in_the_address_is_kept_and_hidden(browser, folder):
    from tests.server.conftest import load_engine

    token = "a-token-of-some-length"
    with running(lambda: Served(load_engine(folder), "tiny"), ServerOptions(token=token)) as guarded:
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"{guarded.url}/#token={token}")
        until(page, "document.querySelector('#method').options.length > 0")
        assert token not in page.url
        page.goto(guarded.url)
        until(page, "document.querySelector('#method').options.length > 0")
        context.close()
        stranger = browser.new_context().new_page()
        stranger.goto(guarded.url)
        until(stranger, "document.querySelector('#status').textContent.includes('token')")
        stranger.context.close()
