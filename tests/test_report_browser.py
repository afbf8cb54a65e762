"""Reports in a real browser: Debian's Chromium, driven by Playwright."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gadc.report.build import build_report
from report_runs import (
    INJECTIONS,
    WITH_SLASH,
    comparison_rows,
    select_images,
    write_comparison,
    write_experiment,
    write_named_images,
)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium; `apt-get install chromium` brings it"
)
WAIT_MS = 20_000  # a busy machine; what is waited for takes a fraction of a second


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        # The sandbox can't start as root, nor in many containers; the only pages are our own.
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("plain")
    images = write_named_images(root / "images", ("ash", "fir", "oak"), n_per_class=6)
    run = select_images(images, root / "selected", per_class=3)
    compared = write_comparison(
        root / "compared", comparison_rows() + comparison_rows(split="held-out", space="pixels")
    )
    build_report([run, compared], root / "report.html")
    return root / "report.html"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile")
    images = write_named_images(root / "images", INJECTIONS, n_per_class=2)
    runs = [select_images(images, root / INJECTIONS[0], per_class=1)]
    for place, name in enumerate(INJECTIONS[1:]):
        rows = comparison_rows(space=name)
        text = WITH_SLASH[place % len(WITH_SLASH)]
        for row in rows:
            row.update(title=name, measure_title=name + text, note=text)
        runs.append(write_comparison(root / name, rows))
    build_report(runs, root / "report.html")
    return root / "report.html"


class Visit:
    """A page that is open, and everything it complained of or asked for."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.set_default_timeout(WAIT_MS)
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        page.on("request", lambda request: self.requests.append(request.url))

    def open(self, path: Path) -> "Visit":
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready]", state="attached")
        return self

    @property
    def foreign_requests(self) -> list[str]:
        return [url for url in self.requests[1:] if not url.startswith("data:image/webp;base64,")]


@pytest.fixture
def visit(browser: Any, request: pytest.FixtureRequest) -> Iterator[Visit]:
    context = browser.new_context(**getattr(request, "param", {}))
    visit = Visit(context.new_page())
    yield visit
    context.close()
    assert visit.complaints == []
    assert visit.foreign_requests == []


def until(page: Any, expression: str) -> None:
    """Wait for what a script says; Playwright's own way needs `eval`, which the policy forbids."""
    for _ in range(WAIT_MS // 50):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"not so after {WAIT_MS} ms: {expression}")


def scroll_to(page: Any, selector: str) -> None:
    # The charts draw when they come near.
    page.locator(selector).evaluate("each => each.scrollIntoView({behavior: 'instant'})")


def test_the_slider_shows_the_first_images_of_each_class(visit: Visit, report: Path) -> None:
    page = visit.open(report).page
    assert page.locator(".tile:visible").count() == 9
    page.locator(".first").focus()
    page.keyboard.press("Home")
    assert page.locator(".tile:visible").count() == 3
    assert page.locator(".slider output").text_content() == "1"
    assert "3 images" in page.locator(".first-summary").text_content()
    page.keyboard.press("ArrowRight")
    assert page.locator(".tile:visible").count() == 6
    page.locator(".class-filter").select_option(label="fir")
    assert page.locator(".tile:visible").count() == 2


def test_the_slider_thins_the_map_too(visit: Visit, report: Path) -> None:
    page = visit.open(report).page
    scroll_to(page, ".map")
    chosen = page.locator(".map .scatterlayer .trace").last.locator("path.point")
    chosen.first.wait_for()
    assert chosen.count() == 9
    page.locator(".first").focus()
    page.keyboard.press("Home")
    scroll_to(page, ".map")
    until(page, "document.querySelector('.map').data.at(-1).x.length === 3")


def test_pointing_at_the_map_shows_the_image(visit: Visit, report: Path) -> None:
    page = visit.open(report).page
    scroll_to(page, ".map")
    point = page.locator(".map .scatterlayer .trace").last.locator("path.point").first
    point.wait_for()
    page.wait_for_timeout(300)  # until the page rests, or the point moves away
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2 - 3, box["y"] + box["height"] / 2)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=3)
    card = page.locator("#card")
    card.wait_for(state="visible")
    assert "chosen, rank" in card.text_content()
    assert card.locator("img").evaluate("image => image.naturalWidth") == 12
    page.mouse.move(5, 5)
    card.wait_for(state="hidden")


def test_an_image_opens_by_the_keyboard_with_its_neighbours(visit: Visit, report: Path) -> None:
    page = visit.open(report).page
    tile = page.locator(".tile").nth(1)
    tile.focus()
    page.keyboard.press("Enter")
    detail = page.locator("#detail")
    detail.wait_for(state="visible")
    assert page.locator("#detail-list li").count() == 5  # all others of six
    title = page.locator("#detail-title").text_content()
    assert tile.get_attribute("aria-label").endswith(title)
    page.keyboard.press("ArrowRight")
    assert page.locator("#detail-title").text_content() != title
    page.keyboard.press("Escape")
    detail.wait_for(state="hidden")
    focused = page.evaluate("document.activeElement.dataset.place")
    assert focused == "2"


def column(page: Any, table: str, place: int) -> list[str]:
    cells = page.locator(f"{table} tbody tr > :nth-child({place})").all_text_contents()
    return [cell.strip() for cell in cells]


def test_a_table_sorts_both_ways_and_says_so(visit: Visit, report: Path) -> None:
    page = visit.open(report).page
    table = "#run-1-quality table"
    button = page.locator(f"{table} thead th:nth-child(4) button")
    before = column(page, table, 4)
    button.focus()
    page.keyboard.press("Enter")
    assert column(page, table, 4) == sorted(before, key=float)
    heading = page.locator(f"{table} thead th:nth-child(4)")
    assert heading.get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Enter")
    assert column(page, table, 4) == sorted(before, key=float, reverse=True)
    assert heading.get_attribute("aria-sort") == "descending"
    page.locator(f"{table} thead th:nth-child(1) button").click()
    assert column(page, table, 1) == ["ash", "fir", "oak"]
    assert heading.get_attribute("aria-sort") is None


def test_methods_are_compared_with_error_bars(visit: Visit, report: Path) -> None:
    page = visit.open(report).page
    scroll_to(page, ".bars")
    page.locator(".bars .scatterlayer .trace path.point").first.wait_for()
    drawn = "document.querySelector('.bars').data[0]"
    assert page.evaluate(f"{drawn}.x") == [6, 4, 2]  # lower is better: the best on top
    assert page.evaluate(f"{drawn}.error_x.array") == [0, 1, 0]
    page.locator(".measure").select_option(label="recall")
    until(page, f"{drawn}.x.length === 2")  # k-center's is not defined
    assert page.locator(".matrix .best").all_text_contents() == ["2.0000", "0.5000"]
    assert "needs more than 5 images" in page.locator(".remarks").text_content()
    page.locator(".matrix thead th:nth-child(3) button").click()
    assert column(page, ".matrix", 1)[-1] == "K-Center"  # what is empty comes last


def test_losses_are_drawn_for_the_runs_that_are_ticked(visit: Visit, tmp_path: Path) -> None:
    build_report([write_experiment(tmp_path / "out")], tmp_path / "report.html")
    page = visit.open(tmp_path / "report.html").page
    scroll_to(page, ".losses")
    lines = page.locator(".losses .scatterlayer .trace path.js-line")
    until(page, "document.querySelectorAll('.losses .trace path.js-line').length === 2")
    page.locator(".groups input").first.uncheck()
    until(page, "document.querySelectorAll('.losses .trace path.js-line').length === 1")
    page.locator(".training .measure").select_option(label="images per second")
    until(page, "document.querySelector('.losses').data[0].y[0] === 50")
    assert lines.count() == 1


def background(page: Any) -> str:
    found: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return found


@pytest.mark.parametrize(
    "visit", [{"color_scheme": "light"}, {"color_scheme": "dark"}], indirect=True
)
def test_colours_follow_the_system_until_one_chooses(visit: Visit, report: Path) -> None:
    page = visit.open(report).page
    by_system = background(page)
    button = page.locator("#theme")
    button.click()
    assert button.text_content() == "Light"
    light = background(page)
    button.click()
    assert button.text_content() == "Dark"
    dark = background(page)
    assert light != dark
    assert by_system in (light, dark)
    button.click()
    assert background(page) == by_system


def test_the_two_systems_differ(browser: Any, report: Path) -> None:
    found = set()
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme=scheme)
        found.add(background(Visit(context.new_page()).open(report).page))
        context.close()
    assert len(found) == 2


@pytest.mark.parametrize(
    "visit",
    [{"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}],
    indirect=True,
)
def test_a_phone_shows_it_without_scrolling_sideways(visit: Visit, report: Path) -> None:
    page = visit.open(report).page
    for selector in (".curve", ".map", ".bars"):
        scroll_to(page, selector)
        page.locator(f"{selector} .main-svg").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.locator(".tile").first.tap()
    page.locator("#detail").wait_for(state="visible")
    assert page.evaluate("document.getElementById('detail').scrollWidth") <= 360


def test_everything_one_can_use_has_a_name(visit: Visit, report: Path) -> None:
    page = visit.open(report).page
    nameless = page.evaluate(
        """() => Array.from(document.querySelectorAll("button, select, input, a, [role=region]"))
        .filter(each => !(each.textContent.trim() || each.getAttribute("aria-label")
          || each.labels?.length)).map(each => each.outerHTML)"""
    )
    assert nameless == []
    assert page.locator("h1").count() == 2
    assert page.evaluate("document.querySelectorAll('img:not([alt])').length") == 0


def test_the_policy_stops_what_is_not_of_the_file(browser: Any, report: Path) -> None:
    context = browser.new_context()
    visit = Visit(context.new_page()).open(report)
    visit.page.evaluate(
        """() => {
          const script = document.createElement("script");
          script.textContent = "window.hit = 1";
          document.body.append(script);
          const picture = document.createElement("img");
          picture.src = "https://example.com/x.png";
          document.body.append(picture);
        }"""
    )
    asked = "fetch('https://example.com').then(() => 'sent', () => 'refused')"
    assert visit.page.evaluate(asked) == "refused"
    assert visit.page.evaluate("window.hit") is None
    assert len(visit.complaints) >= 3
    assert all("Content Security Policy" in each or "Fetch" in each for each in visit.complaints)
    context.close()


def test_hostile_names_are_shown_as_text(visit: Visit, hostile: Path) -> None:
    page = visit.open(hostile).page
    for selector in (".map", "#comparison-1 .bars", "#comparison-20 .bars"):
        scroll_to(page, selector)
        page.locator(f"{selector} .main-svg").first.wait_for()
    names = sorted(INJECTIONS)
    assert len(names) >= 30
    assert sorted(page.locator(".class h3 bdi").all_text_contents()) == names
    assert sorted(column(page, "#run-1-quality table", 1)) == names
    assert page.locator(".map-class option").all_text_contents()[1:] == names
    assert page.locator(".runs a").all_text_contents() == list(INJECTIONS)
    for name in ("<b>bold<b>", "&lt;script&gt;", "<br>"):  # plotly knows these
        chart = f"#comparison-{INJECTIONS.index(name)} .bars"
        scroll_to(page, chart)
        page.locator(f"{chart} .main-svg").first.wait_for()
        assert page.locator(f"{chart} .ytick text").first.text_content() == name
    for place in range(0, len(INJECTIONS), 7):
        page.locator(".tile").nth(place).click()
        path = page.locator("#detail-title").text_content()
        assert path.split("/")[0] == names[place]
        page.keyboard.press("Escape")
    assert page.evaluate("window.hit") is None
    allowed = {"SCRIPT": 4, "STYLE": None, "IFRAME": 0, "OBJECT": 0, "PLAINTEXT": 0}
    for tag, number in allowed.items():
        found = page.evaluate(f"document.getElementsByTagName('{tag}').length")
        assert number is None or found == number, tag
    assert page.evaluate("document.querySelectorAll('[onerror], [onload], [onfocus]').length") == 0
