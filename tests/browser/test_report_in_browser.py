"""The report, opened from its file in a browser without a network."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jinja2", reason="jinja2 is not installed")
pytest.importorskip("playwright", reason="playwright is not installed (make test BROWSER=none?)")
pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from report_documents import compared, many_layers, one_layer, two_models
from tessera.tools.report import write_html, write_pictures

DOCUMENTS: dict[str, Callable[[], Any]] = {
    "one_layer": one_layer,
    "two_models": two_models,
    "compared": compared,
    "many_layers": lambda: many_layers(num_layers=20, num_experts=160),
}
PHONE, DESKTOP = 390, 1280


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("there is no chromium")
    with sync_playwright() as playwright:
        # Containers give Chromium neither a sandbox of its own nor much shared memory.
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    """Each document with the file of its report."""
    folder = tmp_path_factory.mktemp("reports")
    made = {name: (make(), folder / f"{name}.html") for name, make in DOCUMENTS.items()}
    for document, path in made.values():
        write_html(document, path)
    return made


@pytest.fixture(params=DOCUMENTS)
def report(
    request: pytest.FixtureRequest, documents: dict[str, tuple[Any, Path]]
) -> tuple[Any, Path]:
    return documents[request.param]


def opened(browser: Browser, path: Path, width: int = DESKTOP, scheme: Any = "light") -> Page:
    """A new page; console output, or a request for anything but the file, fails the test."""
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.set_default_timeout(20_000)
    heard = list[str]()
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("request", lambda request: heard.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_load_state()
    assert heard == [path.as_uri()]
    return page


def rows(page: Page, caption: str, table: int = 0) -> list[list[str]]:
    """The cells of a table without its head."""
    found = page.locator("table", has=page.locator(f"caption:text-is('{caption}')")).nth(table)
    cells: list[list[str]] = found.locator("tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.cells].map(cell => cell.innerText))"
    )
    return cells


def _rounded(ratio: float) -> tuple[str, str]:
    return f"{ratio:.2f}", f"{ratio:.1f}"


def test_it_shows_what_the_document_holds(browser: Browser, report: tuple[Any, Path]) -> None:
    document, path = report
    page = opened(browser, path)
    for i, model in enumerate(document["models"]):
        assert any(model["name"] in one for one in page.locator("h1, h2").all_inner_texts())
        for row, one in zip(
            rows(page, "Recommended block size for each batch size", i),
            model["advice"],
            strict=True,
        ):
            assert row[0].removeprefix("≈ ") == f"{one['batch_size']:,}"
            assert row[1] == str(one["block_size"])
        load = rows(page, "Load of each layer", i)
        for row, layer in zip(load, model["layers"], strict=True):
            assert row[2].removesuffix("×") in _rounded(layer["load"]["max_over_mean"])
            shown = re.findall(r"(\d+) ([\d.]+)×", row[5])
            hot = layer["load"]["hot_experts"]
            assert len(shown) == min(len(hot), 10 if len(model["layers"]) < 5 else 4)
            for (expert, ratio), one in zip(shown, hot, strict=False):
                assert int(expert) == one["expert"]
                assert ratio in _rounded(one["over_mean"])
    page.close()


def test_every_figure_is_drawn_and_named(browser: Browser, report: tuple[Any, Path]) -> None:
    _, path = report
    page = opened(browser, path)
    figures = page.locator("figure")
    assert figures.count() >= 6
    for figure in figures.all():
        box = figure.locator("svg").bounding_box()
        assert box and box["width"] > 300 and box["height"] > 100
        assert len(figure.get_by_role("img").get_attribute("aria-label") or "") > 60
        assert figure.locator("figcaption").inner_text()
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["one_layer", "two_models"])
def test_axe_finds_nothing(
    browser: Browser, documents: dict[str, tuple[Any, Path]], name: str, scheme: str
) -> None:
    page = opened(browser, documents[name][1], PHONE, scheme)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    # Over the shades at their edges axe cannot judge the contrast of tables.
    page.add_style_tag(content=".scroll { background: none }")
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response
    assert [(one["id"], one["nodes"][0]["html"][:200]) for one in found["violations"]] == []
    passed = {one["id"] for one in found["passes"]}
    assert {"color-contrast", "scrollable-region-focusable", "svg-img-alt"} <= passed
    page.close()


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_the_page_itself_never_scrolls_sideways(
    browser: Browser, report: tuple[Any, Path], width: int
) -> None:
    _, path = report
    page = opened(browser, path, width)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    # Words in the figures are as large as a phone's reader needs them.
    sizes = page.evaluate(
        """[...document.querySelectorAll('svg text')].map(
             one => 12 * one.ownerSVGElement.getBoundingClientRect().width
                       / one.ownerSVGElement.viewBox.baseVal.width)"""
    )
    assert min(sizes) >= 10
    page.close()


def test_words_in_figures_do_not_touch(browser: Browser, report: tuple[Any, Path]) -> None:
    _, path = report
    page = opened(browser, path, PHONE)
    touching = page.evaluate(
        """[...document.querySelectorAll('svg')].flatMap(svg => {
             const texts = [...svg.querySelectorAll('text')].map(
               one => [one.textContent, one.getBoundingClientRect()]);
             const outer = svg.getBoundingClientRect();
             return texts.flatMap(([word, a], i) => [
               ...(a.left < outer.left - 1 || a.right > outer.right + 1 ? [word + ' is cut'] : []),
               ...texts.slice(i + 1).filter(([, b]) =>
                 a.left < b.right && b.left < a.right &&
                 a.top + 3 < b.bottom && b.top + 3 < a.bottom
               ).map(([other]) => word + ' touches ' + other)]);
           })"""
    )
    assert touching == []
    page.close()


def test_colours_follow_the_scheme(browser: Browser, report: tuple[Any, Path]) -> None:
    _, path = report
    colours = {}
    for scheme in ("light", "dark"):
        page = opened(browser, path, scheme=scheme)
        colours[scheme] = page.evaluate(
            """[[document.documentElement, 'backgroundColor'], [document.body, 'color'],
                [document.querySelector('svg text'), 'fill']].map(
                  ([one, what]) => getComputedStyle(one)[what])"""
        )
        page.close()
    light, dark = colours["light"], colours["dark"]
    assert light[0] == "rgb(255, 255, 255)"
    assert all(a != b for a, b in zip(light, dark, strict=True))


def test_the_keyboard_reaches_everything(
    browser: Browser, documents: dict[str, tuple[Any, Path]]
) -> None:
    page = opened(browser, documents["two_models"][1], PHONE)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the findings"
    assert page.locator(".skip").bounding_box()["x"] >= 0
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    focusable = "a[href], .scroll, summary"
    wanted = page.evaluate(
        f"[...document.querySelectorAll('main :is({focusable})')]"
        ".filter(one => one.checkVisibility()).length"
    )
    reached = list[str]()
    for _ in range(wanted):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                """(() => { const one = document.activeElement;
                     const name = one.getAttribute('aria-label') ?? one.textContent.trim();
                     return [one.closest('section').id, one.tagName, name,
                             getComputedStyle(one).outlineStyle].join('|'); })()"""
            )
        )
    assert len(set(reached)) == wanted
    assert all(not one.endswith("|none") for one in reached)
    assert sum("|SUMMARY|" in one for one in reached) == 6
    assert any("Block size for each batch size, m/a" in one for one in reached)
    page.close()


def test_a_table_scrolls_and_details_open_by_keyboard(
    browser: Browser, documents: dict[str, tuple[Any, Path]]
) -> None:
    page = opened(browser, documents["one_layer"][1], PHONE)
    table = page.locator(".scroll").first
    table.focus()
    page.keyboard.press("ArrowRight")
    # Scrolling takes a while, and the page's policy forbids what `wait_for_function` would do.
    for _ in range(250):
        if table.evaluate("one => one.scrollLeft") > 0:
            break
        page.wait_for_timeout(20)
    assert table.evaluate("one => one.scrollLeft") > 0
    summary = page.locator("summary").first
    hidden = page.locator("details table").first
    assert not hidden.is_visible()
    summary.focus()
    page.keyboard.press("Enter")
    assert hidden.is_visible()
    page.close()


def test_it_prints_light_and_without_the_long_tables(
    browser: Browser, report: tuple[Any, Path]
) -> None:
    document, path = report
    page = opened(browser, path, scheme="dark")
    printed = page.pdf(format="A4")
    pages = len(re.findall(rb"/Type\s*/Page\b", printed))
    assert 3 <= pages <= 6 + 6 * len(document["models"])
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == (
        "rgb(255, 255, 255)"
    )
    assert not page.locator("details").first.is_visible()
    assert page.locator(".paper").is_visible()
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pictures_bring_their_own_ground(browser: Browser, tmp_path: Path, scheme: str) -> None:
    for path in write_pictures(one_layer(), tmp_path):
        page = opened(browser, path, scheme=scheme)
        ground = page.evaluate("getComputedStyle(document.querySelector('.ground')).fill")
        assert ground == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 24, 30)")
        page.close()
