"""The page of an evaluation in a real browser, at a phone's width and wide, light and dark."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgecal.benchmark import Evaluation, read_report
from edgecal.benchmark.page import to_html
from tests.browser import CHROMIUM, chromium

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: the page is not tested (apt-get install chromium)"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def report(config, tmp_path_factory):
    out = tmp_path_factory.mktemp("browser") / "out"
    Evaluation(replace(config, limit=4), out).run()
    page = out / "report.html"
    page.write_text(to_html(read_report(str(out)), out), "utf-8")
    return page


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_answers_are_read_side_by_side(browser, report, width, scheme):
    from axe_core_python.sync_playwright import Axe

    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(report.as_uri())
    assert page.inner_text("#where") == "1 of 4"
    first = page.inner_text("#texts")
    page.click("#next")
    assert page.inner_text("#where") == "2 of 4" and page.inner_text("#texts") != first
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#texts") == first
    assert page.locator("#texts article").count() == 1 + 1 + 5, "input, reference, five methods"
    page.select_option("#method", "linear")
    assert page.locator("#texts article").count() == 3
    page.select_option("#task", "summarize+french")
    page.select_option("#order", "worst")
    page.select_option("#kind", "any")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is wider than the screen"
    found = Axe().run(page)
    serious = [one["id"] for one in found["violations"] if one["impact"] in ("serious", "critical")]
    # A table that is scrolled sideways is reached by its neighbours
    assert [one for one in serious if one != "scrollable-region-focusable"] == []
    context.close()
    assert said == []
