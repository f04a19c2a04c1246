"""The page in a real browser: nothing is fetched, nothing runs off the screen or the paper, everybody can read it.

Looks for a Chromium in $CHROMIUM, then on PATH as chromium, chromium-browser, google-chrome or chrome.
"""

import os
import re
import shutil
from itertools import pairwise

import pytest

from analysis.report import build
from tests.analysis import report_fixture as fixture
from tests.analysis.search_fixture import search

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage")
WIDTHS = (1440, 768, 390)
#: Width in CSS pixels between the margins of a printed A4 page: 210 mm less twice 14 mm.
PAPER = round((210 - 2 * 14) / 25.4 * 96)

#: Texts whose contrast with what is behind them is below 4.5, as [text, ratio]: WCAG 2.2, 1.4.3, for any size.
FAINT = """() => {
  const parts = (css) => (css.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const over = (top, below) => {
    const a = top.length > 3 ? top[3] : 1;
    return [0, 1, 2].map((i) => a * top[i] + (1 - a) * below[i]);
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) layers.push(parts(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let seen = 0;
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim();
    const element = walker.currentNode.parentElement;
    if (!text || !element.getClientRects().length) continue;
    seen += 1;
    const style = getComputedStyle(element);
    const ink = element instanceof SVGElement ? style.fill : style.color;
    const behind = ground(element);
    const [a, b] = [light(over(parts(ink), behind)), light(behind)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) found.push([text, ratio]);
  }
  return { seen, found };
}"""

#: Elements that leave the screen although nothing around them scrolls.
OUTSIDE = """(width) => [...document.querySelectorAll('body *')].filter((element) => {
  const box = element.getBoundingClientRect();
  if (!box.width || element.closest('.skip')) return false;
  for (let at = element.parentElement; at; at = at.parentElement)
    if (['auto', 'scroll'].includes(getComputedStyle(at).overflowX)) return false;
  return box.right > width + 1 || box.left < -1;
}).map((element) => element.outerHTML.slice(0, 120))"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A page with every section: search, the paper's numbers, audit, accepted findings, missing stages, MLflow."""
    root = tmp_path_factory.mktemp("study")
    audit = [
        {"name": "groups_across_splits", "count": 7, "severity": "stops", "text": "A leak.", "examples": ["p/" * 90]},
        {"name": "class_balance", "count": 3, "severity": "note", "text": "mass is rare.", "examples": []},
    ]
    facts = fixture.facts(
        dataset={**fixture.dataset(), "source": "cxr14", "audit": audit, "notes": ["The official split was taken."]},
        tracking=fixture.TRACKING,
        accepted=("7 patients lie in more than one split.",),
        notes=("The Barlow sum has a floor.",),
        failed={"finetune moco_mse seed 7 full 1%": f"StageError: out of memory in {'x' * 90}"},
    )
    return build(facts, fixture.study(root / "stages"), root / "tables", root / "report", search())


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    given = os.environ.get("CHROMIUM")
    found = next(filter(None, map(shutil.which, [given] if given else NAMES)), None)
    if found is None:
        pytest.fail(
            f"no Chromium: neither $CHROMIUM ({given or 'not set'}) nor one of {', '.join(NAMES)} on PATH; install one "
            "(Debian and Ubuntu: apt-get install chromium) or set CHROMIUM to its path"
        )
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=found, args=list(FLAGS))
        yield running
        running.close()


@pytest.fixture(scope="module")
def page(browser, path):
    """The page, opened once; what it said and asked for meanwhile is in `page.said` and `page.asked`."""
    opened = browser.new_context().new_page()
    opened.said, opened.asked = [], []
    opened.on("console", lambda message: opened.said.append(message.text))
    opened.on("pageerror", lambda error: opened.said.append(str(error)))
    opened.on("request", lambda request: opened.asked.append(request.url))
    opened.goto(path.as_uri())
    opened.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    return opened


@pytest.fixture(autouse=True)
def as_on_a_screen(page):
    page.emulate_media(media="screen", color_scheme="light")
    page.set_viewport_size({"width": 1440, "height": 900})


def test_it_says_nothing_to_the_console_and_asks_for_nothing_but_itself(page, path):
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme="dark")
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
    assert page.said == []
    assert page.asked == [path.as_uri()]
    assert path.stat().st_size < 5_000_000


def test_its_policy_lets_no_script_run_and_nothing_be_fetched(page):
    said = []
    fresh = page.context.new_page()
    fresh.on("console", lambda message: said.append(message.text))
    fresh.goto(page.url)
    fresh.evaluate(
        """() => {
          const script = document.createElement('script'); script.textContent = 'window.ran = true';
          document.body.append(script);
          const image = document.createElement('img'); image.src = 'http://127.0.0.1:9/x.png';
          document.body.append(image);
        }"""
    )
    fresh.wait_for_timeout(50)
    assert fresh.evaluate("window.ran") is None
    assert len([text for text in said if "Content Security Policy" in text]) == 2
    fresh.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_runs_off_the_screen(page, width):
    page.set_viewport_size({"width": width, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OUTSIDE, width) == []


def test_the_first_screen_holds_the_answer(page):
    """Who leads, how sure that is and what it costs; and beside it the differences with their intervals."""
    for words in ("Scores", "How sure", "Cost"):
        box = page.locator(".summary dt", has_text=re.compile(f"^{words}$")).locator("xpath=..").bounding_box()
        assert box["y"] + box["height"] < 1080, words
    drawn = page.locator("#figure-effects .wide").bounding_box()
    assert drawn["y"] + drawn["height"] < 900
    assert drawn["x"] > 720


@pytest.mark.parametrize("width", [1440, 390])
def test_every_picture_says_what_it_shows(page, width):
    page.set_viewport_size({"width": width, "height": 844})
    shown = page.get_by_role("img")
    assert shown.count() == page.locator("figure").count() == 12
    texts = [shown.nth(i).get_attribute("aria-label") for i in range(shown.count())]
    assert all(len(text) > 80 and re.search(r"\d", text) for text in texts)
    assert len(set(texts)) == len(texts)
    assert page.locator("img:not([alt])").count() == 0


def test_a_screen_reader_finds_its_way(page):
    for role in ("banner", "main", "contentinfo", "navigation"):
        assert page.get_by_role(role).count() == 1, role
    levels = [int(tag[1]) for tag in page.eval_on_selector_all("h1, h2, h3, h4", "all => all.map((h) => h.tagName)")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    names = page.eval_on_selector_all("table", "all => all.map((t) => t.caption && t.caption.textContent.trim())")
    assert all(names)
    assert len(set(names)) == len(names) == page.get_by_role("table").count()
    for table in page.get_by_role("table").all():
        assert table.get_by_role("columnheader").count() >= 2
        assert table.get_by_role("rowheader").count() >= 1
    heads = page.eval_on_selector_all("th", "all => all.map((th) => th.textContent.trim())")
    assert all(heads), "a heading without words"
    assert page.get_attribute("html", "lang") == "en"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_texts_stand_out_from_what_is_behind_them(page, scheme, width):
    page.set_viewport_size({"width": width, "height": 844})
    page.emulate_media(color_scheme=scheme)
    result = page.evaluate(FAINT)
    assert result["seen"] > 1000
    assert result["found"] == []
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    bright = sum(map(int, re.findall(r"\d+", ground)[:3])) / 3
    assert bright < 60 if scheme == "dark" else bright > 200


def test_every_box_that_scrolls_is_reached_and_moved_by_the_keyboard(page):
    page.set_viewport_size({"width": 390, "height": 844})
    wide = page.evaluate(
        "[...document.querySelectorAll('.scroll')].filter((b) => b.scrollWidth > b.clientWidth + 1)"
        ".map((b) => b.getAttribute('aria-labelledby'))"
    )
    assert len(wide) > 5
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    page.keyboard.press("Tab")
    skip = page.evaluate("[document.activeElement.className, document.activeElement.getBoundingClientRect().left >= 0]")
    assert skip == ["skip", True]
    reached = []
    for _ in range(page.locator("a, .scroll, summary").count() - 1):  # the skip link was the first
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "[document.activeElement.getAttribute('aria-labelledby') || document.activeElement.outerHTML,"
                " getComputedStyle(document.activeElement).outline]"
            )
        )
        if reached[-1][0] == wide[0]:
            page.keyboard.press("ArrowRight")
    assert set(wide) <= {name for name, _ in reached}
    assert [name for name, outline in reached if "solid 2px" not in outline] == []
    page.wait_for_function(f"document.querySelector('[aria-labelledby={wide[0]}]').scrollLeft > 0", timeout=5000)


def test_the_printed_page_cuts_nothing_off(page):
    page.emulate_media(media="print", color_scheme="dark")
    page.set_viewport_size({"width": PAPER, "height": 1000})
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(28, 33, 39)"
    wide = page.evaluate(
        "(width) => [...document.querySelectorAll('table, svg, pre')].filter((e) => e.getBoundingClientRect().width)"
        ".filter((e) => e.getBoundingClientRect().right > width + 1 || e.scrollWidth > e.clientWidth + 1)"
        ".map((e) => [e.outerHTML.slice(0, 200), e.getBoundingClientRect().right])",
        PAPER,
    )
    assert wide == []
    assert not page.locator("nav").is_visible()
    pages = len(re.findall(rb"/Type\s*/Page\b", page.pdf(format="A4", prefer_css_page_size=True)))
    assert 8 <= pages <= 30
