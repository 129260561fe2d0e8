"""Every page of the built site in a browser, at the widths of a laptop and of a phone: `make docs-test` runs this."""

import os
import re
import shutil
from pathlib import Path

import pytest

from tests.site.pages import SITE, addresses, broken, content_of, served
from tests.thorough import left_to_docs_test

pytestmark = left_to_docs_test("it needs the built site, and a browser")

WIDTHS = {"wide": (1280, 800), "narrow": (390, 844)}
FLAGS = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
PAGES = addresses(SITE) if "SITE" in os.environ else []
LIMIT = 30_000  # pixels of height at 1280: the cards of 57 families

# What reaches over the right edge and cannot be scrolled to, and what hides a part of itself.
CUT_OFF = """() => {
  const edge = document.documentElement.clientWidth + 1;
  const scrolls = (one) => {
    for (let at = one.parentElement; at && at !== document.body; at = at.parentElement) {
      if (["auto", "scroll"].includes(getComputedStyle(at).overflowX)) return true;
    }
    return false;
  };
  const hides = (one) => ["hidden", "clip"].includes(getComputedStyle(one).overflowX);
  return [...document.querySelectorAll(".md-content *, .md-footer *")]
    .filter((one) => one.getClientRects().length && !scrolls(one))
    .filter((one) => one.getBoundingClientRect().right > edge || (hides(one) && one.scrollWidth > one.clientWidth + 1))
    .map((one) => `${one.tagName.toLowerCase()}.${one.className}: ${one.textContent.trim().slice(0, 60)}`);
}"""
PAST_THE_EDGE = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
NOT_DRAWN = "() => [...document.images].filter((one) => one.complete && !one.naturalWidth).map((one) => one.src)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    playwright = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.fail("expected a program chromium on the path, found none; on Debian, run `apt-get install chromium`")
    flags = [*FLAGS, "--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else FLAGS
    with playwright.sync_playwright() as driver:
        folder = tmp_path_factory.mktemp("browser")
        context = driver.chromium.launch_persistent_context(folder, executable_path=path, headless=True, args=flags)
        yield context
        context.close()


@pytest.fixture(scope="module")
def address():
    with served(SITE) as found:
        yield found


@pytest.fixture
def page(browser):
    """Open a page that collects what its console says, and what it could not fetch."""
    tab = browser.new_page()
    tab.faults = []
    tab.on("console", lambda said: tab.faults.append(said.text) if said.type == "error" else None)
    tab.on("pageerror", lambda error: tab.faults.append(str(error)))
    tab.on("response", lambda answer: tab.faults.append(answer.url) if answer.status >= 400 else None)
    tab.on("request", lambda asked: None if "127.0.0.1" in asked.url else tab.faults.append(f"asks {asked.url}"))
    yield tab
    tab.close()


def open_at(page, address, where, width):
    resize(page, width)
    page.goto(f"{address}{where}/" if where else address)


def resize(page, width):
    wide, high = WIDTHS[width]
    page.set_viewport_size({"width": wide, "height": high})


def keep_picture(page, where, width):
    if folder := os.environ.get("SHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        name = where.replace("/", "-") or "front"
        page.screenshot(path=Path(folder) / f"{name}-{width}.png", full_page=True)


@pytest.mark.parametrize("where", PAGES)
def test_a_page_fits_and_says_no_error(page, address, where):
    open_at(page, address, where, "wide")
    assert page.evaluate("() => document.documentElement.scrollHeight") < LIMIT
    for width in WIDTHS:
        resize(page, width)
        keep_picture(page, where, width)
        assert page.evaluate(PAST_THE_EDGE) == 0, width
        assert page.evaluate(CUT_OFF) == [], width
    assert page.evaluate(NOT_DRAWN) == []
    assert page.faults == []


@pytest.mark.parametrize("where", PAGES)
def test_every_link_and_picture_of_a_page_leads_somewhere(where):
    assert broken(SITE, where) == []


def test_there_are_pages():
    assert {"", "guides/torch", "reference/families", "reference/api/spec"} <= set(PAGES)


def test_no_name_with_two_underscores_has_an_entry():
    found = [
        f"{path.parent.name}: {name}"
        for path in (SITE / "reference" / "api").rglob("index.html")
        for name in re.findall(r'id="(\w+\.[\w.]*__\w+__)"', path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_every_entry_of_the_reference_is_the_thing_itself():
    """A module that has the name of its function is not shown in its place."""
    pages = sorted((SITE / "reference" / "api").rglob("index.html"))
    assert [
        path.parent.name for path in pages if "doc-symbol-heading doc-symbol-module" in path.read_text("utf-8")
    ] == []


def test_what_a_class_has_from_its_bases_is_shown():
    anchors = content_of(SITE / "reference" / "api" / "torch_state" / "index.html").anchors
    methods = {"merge", "parameter_groups", "print_trainable_parameters", "resize", "table"}
    assert {f"tnadapt_torch.AdapterState.{name}" for name in methods} <= anchors
    assert "tnadapt_torch.AdapterState.zero_grad" not in anchors  # torch's own


def found_first(page, address, words):
    """Return the address of the first result of a search."""
    open_at(page, address, "", "wide")
    page.click(".md-search__input")
    page.type(".md-search__input", words)
    page.wait_for_selector(".md-search-result__link")
    page.wait_for_function("() => document.querySelector('.md-search-result__meta').textContent.match(/[0-9]/)")
    return page.get_attribute(".md-search-result__link", "href").removeprefix(address)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("own adapter", r"guides/|tutorials/"),
        ("merge", r"guides/|tutorials/"),
        ("save", r"guides/|tutorials/"),
        ("learning rate", r"guides/|tutorials/|explanation/"),
        ("should take", r"explanation/choosing/"),
        ("rank_bound", r"explanation/|guides/|tutorials/|reference/api/"),
    ],
)
def test_a_search_finds_a_guide_first(page, address, words, wanted):
    assert re.match(wanted, found_first(page, address, words))


# ------------------------------------------------- each check finds what it looks for

LONG = "<pre style='overflow: visible; margin: 0'>" + "x" * 400 + "</pre>"


@pytest.mark.parametrize(
    ("body", "check"),
    [
        (LONG, PAST_THE_EDGE),
        (f"<div class='md-content'><div style='overflow: hidden'>{LONG}</div></div>", CUT_OFF),
        ("<div class='md-content'><div style='width: 900px'>x</div></div>", CUT_OFF),
        ("<img src='none.png'>", NOT_DRAWN),
    ],
)
def test_a_check_sees_its_fault(page, body, check, tmp_path):
    (tmp_path / "index.html").write_text(f"<!doctype html><title>x</title>{body}", encoding="utf-8")
    with served(tmp_path) as address:
        open_at(page, address, "", "narrow")
        assert page.evaluate(check)


def test_a_broken_link_is_seen(tmp_path):
    links = "<a href='none/'>x</a><a href='#none'>x</a><a href='#here' id='here'>x</a>"
    (tmp_path / "index.html").write_text(f"{links}<img src='none.png'>", encoding="utf-8")
    assert [fault.partition(":")[0] for fault in broken(tmp_path, "")] == ["none/", "#none", "none.png"]
